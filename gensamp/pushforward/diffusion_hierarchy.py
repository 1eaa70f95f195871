"""Diffusion as a hierarchical VAE whose encoder is fixed (Ho, Jain and Abbeel 2020; Kingma, Salimans, Poole and Ho 2021).

The groups are the noised events at the times of a grid, t_1 > t_2 > ... > t_L, the noisiest on top. With x_t = alpha_t x +
sigma_t eps, a = alpha_t / alpha_s and b = sigma_t^2 - a^2 sigma_s^2 for neighbours t > s,

    q(x_s | x_t, x) = N((a sigma_s^2 x_t + alpha_s b x) / sigma_t^2, b sigma_s^2 / sigma_t^2)       fixed: nothing is inferred
    p(x_s | x_t)    = the same with the denoiser's guess of x in the place of x                   (Ho et al., equations 6-7)
    p(x | x_L)      = N(x_L / alpha_L, sigma_L^2 / alpha_L^2)

and the top is q = N(alpha_1 x, sigma_1^2) against p = N(0, sigma_1^2 + alpha_1^2), the data having unit variance in their
frame. So the ELBO of `hierarchical_vae` is the diffusion's (`diffusion_elbo` computes that by another formula), its rates say
what each level of noise costs, and `prefix` decodes an event from its noised self at any level.

The parameters are those of `diffusion.ddpm` with the same network, noise and prediction. Rows "hierarchical VAE" and
"diffusion" of the table.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gensamp.core import Network, Static, bind
from gensamp.nets.event import Event
from gensamp.noise import Noise
from gensamp.pushforward.diffusion.losses import denoiser, denoising_init
from gensamp.pushforward.frame import enter, leave, log_volume
from gensamp.pushforward.hierarchical_vae import Hierarchy

__all__ = ["check_grid", "diffusion_hierarchy", "guess_clean"]


def diffusion_hierarchy(network: Network, noise: Noise, grid: Any, *, template: Any, prediction: Any = "v") -> Hierarchy:
    """The hierarchy of a diffusion over a grid of times.

    Args:
        network: apply(params, x, t) -> like x.
        noise: the process.
        grid: [num_groups] times from noise to data, a leaf; some noise must be left at the last.
        template: one event. prediction: what the network returns, as in `ddpm`.

    Returns:
        Hierarchy for `hierarchical_vae`, `prefix` and `rates`: one forward per group below the top, none for the rest.

    Raises:
        ValueError: the grid is not a vector of at least two falling times, or ends without noise or signal.
    """
    event = Event.of(template)
    times = check_grid(noise, grid, event)
    return Hierarchy(
        init=denoising_init(network, False),
        encode=bind(_encode, event),
        groups=bind(_groups, noise, times),
        begin=bind(_begin, event),
        top=bind(_top, noise, times, event),
        prior=bind(_prior, network, noise, event, Static(prediction)),
        posterior=bind(_posterior),
        merge=bind(_merge),
        log_prob=bind(_log_prob, noise, times, event),
        draw=bind(_draw, noise, times, event),
        event=event,
        latent_dim=event.size,
        num_groups=times.size,
        forwards=(0, 1, 0, 0),
    )


def check_grid(noise: Noise, grid: Any, event: Event) -> jax.Array:
    """The grid in the event's dtype, or a ValueError where it is not what `diffusion_hierarchy` expects."""
    times = jnp.asarray(grid, event.dtype)
    if times.ndim != 1 or times.size < 2:
        raise ValueError(
            f"a diffusion hierarchy got a grid of shape {list(times.shape)}; expected [num_groups], at least 2 times"
        )
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((noise, times))):
        with jax.ensure_compile_time_eval():
            last = float(noise.alpha(times[-1])), float(noise.sigma(times[-1]))
        if not (np.diff(np.asarray(times)) < 0).all() or min(last) <= 0:
            raise ValueError(
                f"a diffusion hierarchy got a grid from {float(times[0]):g} to {float(times[-1]):g}, where alpha and sigma are "
                f"{last[0]:g} and {last[1]:g}; expected falling times, both positive at the last: end at noise.t_min or later"
            )
    return times


def guess_clean(network: Network, noise: Noise, event: Event, prediction: str, params: Any, t: Any, y: jax.Array) -> jax.Array:
    """The denoiser's guess of the clean event [d], in the frame, from y [d] at time t: one forward."""
    return event.flatten(denoiser(network, noise, params, (), prediction, "x0")(t, event.unflatten(y)))


def _encode(event, params, x):
    return event.flatten(enter(_frame(params), x))


def _groups(noise, times, params):
    del params
    alpha, sigma = jax.vmap(noise.alpha)(times), jax.vmap(noise.sigma)(times)
    # Above the top nothing is left of the event, which makes its posterior N(alpha x, sigma^2) by the formula of all others.
    nothing = jnp.zeros(1, times.dtype)
    above = {
        "time_above": jnp.concatenate([times[:1], times[:-1]]),
        "alpha_above": jnp.concatenate([nothing, alpha[:-1]]),
        "sigma_above": jnp.concatenate([nothing + 1, sigma[:-1]]),
    }
    return {"alpha": alpha, "sigma": sigma, **above}


def _begin(event, params):
    del params
    return jnp.zeros(event.size, event.dtype)


def _top(noise, times, event, params):
    del params
    zeros = jnp.zeros(event.size, event.dtype)
    return zeros, zeros + jnp.sqrt(noise.sigma(times[0]) ** 2 + noise.alpha(times[0]) ** 2)


def _prior(network, noise, event, prediction, params, at, path):
    clean = guess_clean(network, noise, event, prediction.value, params, at["time_above"], path)
    return *_between(at, path, clean), path


def _posterior(params, at, path, prior, features):
    del params, prior
    return _between(at, path, features)


def _between(at, above, clean):
    """Mean and scale [d] of a group given the one above and the clean event."""
    ratio = at["alpha_above"] / at["alpha"]
    total = at["sigma_above"] ** 2
    added = total - (ratio * at["sigma"]) ** 2
    mean = (ratio * at["sigma"] ** 2 * above + at["alpha"] * added * clean) / total
    return mean, jnp.broadcast_to(at["sigma"] * jnp.sqrt(added / total), mean.shape)


def _merge(params, at, path, z):
    del params, at, path
    return z


def _last(noise, times):
    """alpha and sigma of the last group."""
    return noise.alpha(times[-1]), noise.sigma(times[-1])


def _log_prob(noise, times, event, params, path, x):
    alpha, sigma = _last(noise, times)
    frame = _frame(params)
    error = (alpha * event.flatten(enter(frame, x)) - path) / sigma
    constant = event.size * (jnp.log(sigma / alpha) + 0.5 * jnp.log(2 * jnp.pi).astype(event.dtype))
    return -0.5 * jnp.square(error).sum() - constant - log_volume(frame, event.template)


def _draw(noise, times, event, params, path, key):
    alpha, sigma = _last(noise, times)
    noisy = path + sigma * jax.random.normal(key, path.shape, path.dtype)
    return leave(_frame(params), event.unflatten(noisy / alpha))


def _frame(params):
    return jax.lax.stop_gradient({"shift": params["shift"], "scale": params["scale"]})
