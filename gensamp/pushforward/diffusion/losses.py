"""The denoising loss, and the trained network as a denoiser: what every diffusion and score sampler shares.

    loss = E_t E_x0 E_eps | eps_hat(t, alpha x0 + sigma eps) - eps |^2 / d,    t ~ U(t_min, 1)

is Ho, Jain and Abbeel's simple loss (2020, equation 14) in continuous time; as score matching it is Song and Ermon's (2019,
equation 6) with weight sigma^2, since the score is -eps / sigma. So ancestral, DDIM and annealed Langevin sampling can exchange
parameters, given one network and one noise. The batch's times are one uniform number and its equal shifts modulo one, which
covers the noise levels evenly and lowers the variance of the loss (Kingma et al. 2021, appendix I.1).

A network may predict eps itself, or v = (alpha eps - sigma x_0) / r with r = sqrt(alpha^2 + sigma^2): the v of Salimans and Ho
(2022) where r = 1, and the preconditioning of Karras et al. (2022, table 1) for a process that explodes. The loss is then taken
on v, and eps_hat = (sigma x_t / r + alpha v_hat) / r: the noisy input goes straight through, so that a small network need not
carry it, and high noise levels weigh more. It may also predict x_0, or the velocity alpha' x_0 + sigma' eps, whose loss is flow
matching's (Lipman et al. 2023, equation 9); the loss is taken on what is predicted, unless a weighting (`weightings`) says
which noise levels count how much.

Events enter the frame (`pushforward.frame`) of the first batch, and the network sees x_t / r, which has about unit variance at
every level of every process.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from gensamp.core import Network, Static, bind
from gensamp.nets.condition import check_labels
from gensamp.nets.event import Event
from gensamp.noise import Noise, diffuse
from gensamp.predictions import combine, convert, rates
from gensamp.pushforward.diffusion.weightings import Weighting, weighting_of
from gensamp.pushforward.frame import enter, fit_frame

__all__ = ["asked", "check_network", "check_parts", "denoiser", "denoising_init", "denoising_loss", "split_condition"]


def denoising_init(network: Network, conditional: bool) -> Any:
    """Model.init: (key, batch) -> ({"network", "shift", "scale"}, ()); `fit` does not move shift and scale, the frame."""
    return bind(_init, network, Static(conditional))


def denoising_loss(
    network: Network, noise: Noise, template: Any, conditional: bool, prediction: str, weighting: Weighting | str = "uniform"
) -> Any:
    """Model.loss: one forward per event.

    Metric: "denoising_error", the unweighted loss, about 1 for a network that returns zero.
    """
    check_parts(network, noise)
    if prediction not in ("eps", "v", "x0", "velocity"):
        raise ValueError(
            f"prediction is {prediction!r}; expected 'eps', 'v', 'x0' or 'velocity', what the network is to return"
        )
    return bind(_loss, network, noise, Event.of(template), Static((conditional, prediction, weighting_of(weighting))))


def check_parts(network, noise) -> None:
    """Raises TypeError unless a diffusion model is made of a Network and a Noise, in this order."""
    check_network(network)
    if not isinstance(noise, Noise):
        got = repr(noise) if isinstance(noise, str) else type(noise).__name__
        raise TypeError(f"noise is {got}; expected a Noise, such as gensamp.noise.cosine()")


def check_network(network) -> None:
    """Raises TypeError unless it is a Network."""
    if not isinstance(network, Network):
        raise TypeError(f"network is {type(network).__name__}; expected a Network, such as gensamp.nets.mlp(template)")


def asked(network: Network, weights: Any, x: Any, t: Any, condition: tuple = ()) -> Any:
    """What the network says of x at time t, for all that train one or draw with it; one forward.

    Raises:
        ValueError: it is not like x: broadcast against events it would train, and draw something else.
    """
    found = network.apply(weights, x, t, *condition)
    if jax.tree.structure(found) != jax.tree.structure(x) or _shapes(found) != _shapes(x):
        got, wanted = (jax.tree.map(lambda a: f"{jnp.result_type(a)}{list(jnp.shape(a))}", tree) for tree in (found, x))
        raise ValueError(f"the network returned {got}; expected {wanted}, like x")
    return found


def denoiser(
    network: Network,
    noise: Noise,
    params: Any,
    condition: tuple = (),
    prediction: str = "v",
    returns: Literal["eps", "x0", "velocity"] = "eps",
) -> Any:
    """The trained network as (t, x) -> eps_hat, or x0_hat, in the frame's coordinates, for any sampler that takes a denoiser.

    From v or the velocity no way is singular; that from eps to x0 divides by alpha, that from x0 to eps by sigma.
    """
    return bind(_predicted, network, noise, params["network"], condition, Static((prediction, returns)))


def split_condition(conditional: bool, batch: Any) -> tuple[Any, tuple]:
    """The events of a batch, and () or (conditions,).

    Raises:
        ValueError: a conditional model's batch is not a pair.
    """
    if not conditional:
        return batch, ()
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(f"a conditional model got a {type(batch).__name__} as batch; expected a pair (events, conditions)")
    return batch[0], (batch[1],)


def _init(network, conditional, key, batch):
    if batch is None:
        raise ValueError("a diffusion model got no data; expected a batch of events to learn from")
    x, condition = split_condition(conditional.value, batch)
    check_labels(condition, network.num_classes, "a diffusion model")
    return {"network": network.init(key), **fit_frame(x)}, ()


def _loss(network, noise, event, options, params, state, key, batch):
    conditional, prediction, weighting = options.value
    x, condition = split_condition(conditional, batch)
    event.check(x)
    frame = jax.lax.stop_gradient({"shift": params["shift"], "scale": params["scale"]})
    size = len(jax.tree.leaves(x)[0])
    key_time, key_noise = jax.random.split(key)
    offset = jax.random.uniform(key_time, (), event.dtype)
    spread = jnp.mod(offset + jnp.arange(size, dtype=event.dtype) / size, 1)
    times = weighting.times(noise, spread, *weighting.parameters)

    def one(key, t, x, *condition):
        eps, x0 = event.normal(key), enter(frame, x)
        wanted = _wanted(noise, t, x0, eps, prediction)
        found = asked(network, params["network"], _scaled(noise, t, diffuse(noise, t, x0, eps)), t, condition)
        return jnp.square(event.flatten(found) - event.flatten(wanted)).mean()

    errors = jax.vmap(one)(jax.random.split(key_noise, size), times, x, *condition)
    weights = jax.vmap(lambda t: weighting.factor(noise, t, prediction))(times)
    return (weights * errors).mean(), (state, {"denoising_error": errors.mean()})


def _wanted(noise, t, x0, eps, prediction):
    """What the network is to return for an event x_0 noised with eps."""
    if prediction == "v":
        return _scaled(noise, t, diffuse(noise, t, eps, jax.tree.map(jnp.negative, x0)))
    if prediction == "velocity":
        alpha_rate, sigma_rate = rates(noise, t)
        return combine(alpha_rate, x0, sigma_rate, eps)
    return {"eps": eps, "x0": x0}[prediction]


def _predicted(network, noise, weights, condition, options, t, x):
    prediction, returns = options.value
    scaled = _scaled(noise, t, x)
    found = asked(network, weights, scaled, t, condition)
    if prediction != "v":
        return convert(noise, t, x, found, prediction, returns)
    # A network's v is divided by r, and then the ways back are v_to_eps and v_to_x0 with r in two places.
    if returns == "x0":
        return _scaled(noise, t, combine(noise.alpha(t), scaled, -noise.sigma(t), found))
    eps = _scaled(noise, t, diffuse(noise, t, found, scaled))
    return eps if returns == "eps" else convert(noise, t, x, eps, "eps", returns)


def _shapes(tree):
    return [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]


def _scaled(noise, t, x):
    """x / r."""
    scale = jax.lax.rsqrt(noise.alpha(t) ** 2 + noise.sigma(t) ** 2)
    return jax.tree.map(lambda a: a * scale.astype(a.dtype), x)
