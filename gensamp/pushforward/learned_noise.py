"""A diffusion whose noise schedule is learned with it: the variational diffusion model (Kingma, Salimans, Poole and Ho 2021).

The schedule is gamma(t) = -log SNR, increasing from gamma(0) to gamma(1), and the process variance preserving,

    alpha^2 = sigmoid(-gamma),    sigma^2 = sigmoid(gamma),    gamma(t) = gamma_0 + (gamma_1 - gamma_0) s(t)

with s a monotone spline from 0 to 1 (`nets.monotone`). In continuous time the diffusion's part of the negative ELBO,

    1/2 E_t gamma'(t) |eps_hat - eps|^2,    t ~ U(0, 1)                                            (their equation 17)

depends on the schedule through its two ends only (section 5.1): what lies between changes nothing but the variance of the
estimate. So each part is trained for what it can change: the network and the ends, together with the prior's KL and the
reconstruction, minimise the bound; s minimises the mean square of each event's term, whose mean it cannot move (appendix I.2).
One forward does for both: the gradient of l^2 is 2 l times that of l, event by event.

The network is asked not at t but at (gamma - low) / (high - low), low and high being the ends it starts with: a denoiser must
know the noise level, and under another schedule t is another level. Row "diffusion" of the table.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gensamp.core import Model, Network, Sampler, Static, bind, scalar
from gensamp.nets.event import Event
from gensamp.nets.monotone import Spline
from gensamp.noise import Noise, diffuse
from gensamp.pushforward.diffusion.ancestral import model_clip
from gensamp.pushforward.diffusion.grids import uniform_time
from gensamp.pushforward.diffusion.losses import check_network, denoiser, denoising_init, split_condition
from gensamp.pushforward.diffusion.unipc import unipc
from gensamp.pushforward.frame import check_params, enter, frame_of, log_volume

__all__ = ["learned_noise", "variational_diffusion"]

# The spline maps [-1/2, 1/2] to itself, and the identity there is the straight line from end to end.
_SPLINE = Spline(num_bins=12, bound=0.5)
ENDS = (-10.0, 6.0)


def learned_noise(schedule: Any) -> Noise:
    """The process of a schedule.

    Args:
        schedule: {"ends": [2], gamma(0) and gamma(1); "raw": [35], the spline's parameters}, such as the "schedule" of a fitted
            `variational_diffusion`'s params. Zeros are a straight line.

    Returns:
        Noise: variance preserving, singular at neither end, so that t_min is 0. Its arrays are leaves.
    """
    return Noise(bind(_alpha, schedule), bind(_sigma, schedule))


def variational_diffusion(
    network: Network,
    *,
    template: Any,
    ends: tuple[float | int, float | int] = ENDS,
    solver: Callable[..., Sampler] = unipc,
    num_steps: int = 20,
    dequantise: Any = 0.0,
    clip: Any = None,
    conditional: bool = False,
) -> Model:
    """A diffusion model trained on its ELBO, schedule included.

    Args:
        network: as for `ddpm`; it predicts v.
        template: one event.
        ends: gamma(0) and gamma(1) to start from; both are learned.
        solver: of a draw, as for `diffusion_model`; num_steps: equal steps of time, which the schedule makes levels.
        dequantise: for data on a lattice, the width of a cell; training adds uniform noise in one cell. Otherwise such data
            have a density without bound, and gamma(0) falls for as long as it is trained.
        clip, conditional: as for `ddpm`.

    Returns:
        Model; its loss is the negative ELBO in nats per coordinate, in the data's units: one forward per event. Metrics:
        "prior", "diffusion" and "reconstruction", of which it is made, "spread", the standard deviation of the diffusion's
        part over events and times, and "first" and "last", the ends.

    Raises:
        TypeError: the network is none.
        ValueError: the ends do not rise, or the solver refuses an option.
    """
    check_network(network)
    if not ends[0] < ends[1]:
        raise ValueError(f"variational_diffusion got ends={ends}; expected gamma(0) < gamma(1), such as (-10, 6)")
    event = Event.of(template)
    low_high = scalar(jnp.asarray(ends), event.template)
    return Model(
        init=bind(_init, network, low_high, Static(conditional)),
        loss=bind(_loss, network, low_high, event, scalar(dequantise, event.template), Static(conditional)),
        sampler=bind(
            _sampler, network, low_high, uniform_time(num_steps), event, model_clip(clip, event.template), Static(solver)
        ),
    )


def _init(network, ends, conditional, key, batch):
    params, state = denoising_init(network, conditional.value)(key, batch)
    schedule = {"ends": ends, "raw": jnp.zeros(_SPLINE.num_raw, ends.dtype)}
    return {**params, "schedule": schedule}, state


def _loss(network, reference, event, dequantise, conditional, params, state, key, batch):
    x, condition = split_condition(conditional.value, batch)
    event.check(x)
    frame = jax.lax.stop_gradient({"shift": params["shift"], "scale": params["scale"]})
    size = len(jax.tree.leaves(x)[0])
    key_time, key_cell, key_noise = jax.random.split(key, 3)
    spread = jnp.mod(jax.random.uniform(key_time, (), event.dtype) + jnp.arange(size, dtype=event.dtype) / size, 1)
    cells = jax.random.uniform(key_cell, (size, event.size), event.dtype, minval=-0.5, maxval=0.5)
    clean = jax.vmap(lambda a, u: enter(frame, jax.tree.map(lambda b, c: b + dequantise * c, a, event.unflatten(u))))(x, cells)

    def errors(weights, ends, share, rate, clean, *condition):
        """Each event's part of the bound, in nats per coordinate, at gamma = ends[0] + (ends[1] - ends[0]) share."""
        eps = jax.vmap(event.normal)(jax.random.split(key_noise, size))

        def one(share, rate, x0, eps, *condition):
            gamma, slope = ends[0] + (ends[1] - ends[0]) * share, (ends[1] - ends[0]) * rate
            noise = _at_gamma(gamma)
            found = _guess(network, noise, reference, gamma, weights, condition, diffuse(noise, 0.0, x0, eps))
            return 0.5 * slope * jnp.square(event.flatten(found) - event.flatten(eps)).mean()

        return jax.vmap(one)(share, rate, clean, eps, *condition)

    schedule = params["schedule"]
    shape = jax.vmap(lambda t: _share(schedule["raw"], t))(spread)
    parts, pull = jax.vjp(
        lambda share, rate: errors(params["network"], schedule["ends"], share, rate, clean, *condition),
        *jax.lax.stop_gradient(shape),
    )
    # Each part depends on its own share and rate alone, so the gradient of its square is 2 l times its own.
    steer = jax.lax.stop_gradient(pull(2 * jax.lax.stop_gradient(parts) / size))
    steered = sum(jnp.vdot(slope, value) for slope, value in zip(steer, shape, strict=True))

    first, last = schedule["ends"]
    square = jax.vmap(lambda x0: jnp.square(event.flatten(x0)).mean())(clean).mean()
    # KL from N(0, 1) at the noisy end, and at the other the entropy of N(x_0 / alpha, sigma^2 / alpha^2).
    prior = 0.5 * (jax.nn.sigmoid(last) - 1 - jax.nn.log_sigmoid(last) + jax.nn.sigmoid(-last) * square)
    volume = log_volume(frame, event.template) / event.size
    reconstruction = -0.5 * (1 + jnp.log(2 * jnp.pi).astype(event.dtype) + first) - volume
    loss = parts.mean() + prior - reconstruction + steered - jax.lax.stop_gradient(steered)
    metrics = {
        "prior": prior, "diffusion": parts.mean(), "reconstruction": reconstruction, "spread": parts.std(), "first": first,
        "last": last,
    }  # fmt: skip
    return loss, (state, metrics)


def _sampler(network, reference, grid, event, clip, solver, params, *condition):
    frame = frame_of(params, event.template, network)
    check_params(params, {"schedule": {"ends": reference, "raw": jnp.zeros(_SPLINE.num_raw)}})
    noise = learned_noise(params["schedule"])
    denoise = bind(_denoise, network, noise, reference, params["schedule"], params["network"], condition)
    return solver.value(
        denoise, noise, grid, event.template,
        prediction="x0", clip=clip, data_variance=1.0, frame=frame,
    )  # fmt: skip


def _denoise(network, noise, reference, schedule, weights, condition, t, x):
    gamma = _gamma(schedule, t)
    return _guess(network, noise, reference, gamma, weights, condition, x, t=t, returns="x0")


def _guess(network, noise, reference, gamma, weights, condition, x, *, t=0.0, returns="eps"):
    """eps_hat or x0_hat of an event at level gamma, the network being asked at the level's place between the first ends."""
    place = (gamma - reference[0]) / (reference[1] - reference[0])
    asked = Network(network.init, bind(_asked, network.apply, place))
    return denoiser(asked, noise, {"network": weights}, condition, "v", returns)(jnp.asarray(t, place.dtype), x)


def _asked(apply, place, weights, x, t, *condition):
    del t
    return apply(weights, x, place, *condition)


def _at_gamma(gamma) -> Noise:
    """A process that stands at one level."""
    return Noise(bind(_level_alpha, gamma), bind(_level_sigma, gamma))


def _level_alpha(gamma, t):
    del t
    return jnp.exp(0.5 * jax.nn.log_sigmoid(-gamma))


def _level_sigma(gamma, t):
    del t
    return jnp.exp(0.5 * jax.nn.log_sigmoid(gamma))


def _alpha(schedule, t):
    return _level_alpha(_gamma(schedule, t), t)


def _sigma(schedule, t):
    return _level_sigma(_gamma(schedule, t), t)


def _gamma(schedule, t) -> Float[Array, ""]:
    first, last = schedule["ends"]
    t = jnp.asarray(t, schedule["ends"].dtype)
    return first + (last - first) * _share(schedule["raw"], t)[0]


def _share(raw, t):
    """s(t) and s'(t)."""
    moved, log_rate = _SPLINE.forward(raw[:, None], t[None] - 0.5)
    return moved[0] + 0.5, jnp.exp(log_rate[0])
