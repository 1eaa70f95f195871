"""What a network may predict of a noised event, and every way from one to another.

    x_0,    eps,    v = alpha eps - sigma x_0,    score = -eps / sigma,    velocity = alpha' x_0 + sigma' eps

are five names for one thing once x_t = alpha x_0 + sigma eps is known. The velocity is that of flow matching (Lipman et al.
2023): its mean given x_t is the field of the probability-flow ODE dx/dt = velocity (Song et al. 2021, equation 13), whatever
the process, with t running from data (0) to noise (1). It is not v, although both are called so.

`to_x0`, `to_eps` and `convert` take any of the five. From v and from the velocity the way is never singular; from eps and the
score it divides by alpha to reach x_0, from x_0 by sigma to reach the others, with `noise.FLOOR` under both.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gensamp.core import PyTree
from gensamp.noise import FLOOR, Noise, Time, eps_to_x0, score_to_eps, v_to_eps, v_to_x0, x0_to_eps

__all__ = [
    "PREDICTIONS", "Prediction", "check_prediction", "combine", "convert", "rates", "to_eps", "to_x0", "velocity_to_eps",
    "velocity_to_x0",
]  # fmt: skip

Prediction = Literal["eps", "x0", "v", "score", "velocity"]

PREDICTIONS: tuple[Prediction, ...] = ("eps", "x0", "v", "score", "velocity")
"""What a denoiser may return."""


def check_prediction(prediction: str, by: str) -> None:
    """Raises ValueError, naming who asked, unless `prediction` is one of the five."""
    if prediction not in PREDICTIONS:
        raise ValueError(f"{by} got prediction={prediction!r}; expected one of {', '.join(PREDICTIONS)}")


def rates(noise: Noise, t: Time) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """alpha'(t) and sigma'(t), by forward differentiation; below `noise.t_min` those there, as sigma' may be infinite at 0."""
    t = jnp.asarray(t)
    t = jnp.maximum(t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(jnp.result_type(float)), noise.t_min)
    alpha_rate, sigma_rate = (jax.jvp(function, (t,), (jnp.ones_like(t),))[1] for function in (noise.alpha, noise.sigma))
    return alpha_rate, sigma_rate


def velocity_to_x0(noise: Noise, t: Time, x: PyTree, velocity: PyTree) -> PyTree:
    """x_0 = (sigma' x - sigma velocity) / (alpha sigma' - alpha' sigma)."""
    alpha_rate, sigma_rate, determinant = _determinant(noise, t)
    del alpha_rate
    return combine(sigma_rate / determinant, x, -noise.sigma(t) / determinant, velocity)


def velocity_to_eps(noise: Noise, t: Time, x: PyTree, velocity: PyTree) -> PyTree:
    """eps = (alpha velocity - alpha' x) / (alpha sigma' - alpha' sigma)."""
    alpha_rate, sigma_rate, determinant = _determinant(noise, t)
    del sigma_rate
    return combine(-alpha_rate / determinant, x, noise.alpha(t) / determinant, velocity)


def to_x0(noise: Noise, t: Time, x: PyTree, value: PyTree, prediction: str) -> PyTree:
    """x_0, given x and any of the five.

    Args:
        noise: the process. t: scalar time. x: the noised event. value: what was predicted, like x.
        prediction: what `value` is, one of `PREDICTIONS`.
    """
    if prediction == "x0":
        return value
    ways = {"v": v_to_x0, "velocity": velocity_to_x0}
    if prediction in ways:
        return ways[prediction](noise, t, x, value)
    return eps_to_x0(noise, t, x, to_eps(noise, t, x, value, prediction))


def to_eps(noise: Noise, t: Time, x: PyTree, value: PyTree, prediction: str) -> PyTree:
    """eps, given x and any of the five; arguments as for `to_x0`."""
    if prediction == "eps":
        return value
    ways = {"x0": x0_to_eps, "v": v_to_eps, "score": score_to_eps, "velocity": velocity_to_eps}
    check_prediction(prediction, "to_eps")
    return ways[prediction](noise, t, x, value)


def convert(noise: Noise, t: Time, x: PyTree, value: PyTree, source: str, wanted: str) -> PyTree:
    """Any of the five from any other; `source` names what `value` is, the rest as for `to_x0`.

    Raises:
        ValueError: `source` or `wanted` is none of the five.
    """
    for prediction in (source, wanted):
        check_prediction(prediction, "convert")
    if source == wanted:
        return value
    if wanted == "x0":
        return to_x0(noise, t, x, value, source)
    eps = to_eps(noise, t, x, value, source)
    if wanted == "eps":
        return eps
    if wanted == "score":
        return combine(-1 / jnp.maximum(noise.sigma(t), FLOOR), eps)
    x0 = to_x0(noise, t, x, value, source)
    if wanted == "v":
        return combine(noise.alpha(t), eps, -noise.sigma(t), x0)
    alpha_rate, sigma_rate = rates(noise, t)
    return combine(alpha_rate, x0, sigma_rate, eps)


def combine(*pairs: Any) -> PyTree:
    """combine(a, x, b, y, ...) = a x + b y + ... for scalars and events, each scalar in the dtype of the leaf."""
    coefficients, trees = pairs[::2], pairs[1::2]
    return jax.tree.map(lambda *leaves: sum(c.astype(a.dtype) * a for c, a in zip(coefficients, leaves, strict=True)), *trees)


def _determinant(noise: Noise, t) -> tuple[Array, Array, Array]:
    """alpha', sigma' and alpha sigma' - alpha' sigma, which is positive since the log-SNR falls; held above the floor."""
    alpha_rate, sigma_rate = rates(noise, t)
    return alpha_rate, sigma_rate, jnp.maximum(noise.alpha(t) * sigma_rate - alpha_rate * noise.sigma(t), FLOOR)
