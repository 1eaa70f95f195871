"""Gaussian noising of data: how much signal and how much noise at each time.

One formula serves diffusion, score-based sampling and their solvers (row "diffusion" of the design's table):

    x_t = alpha(t) x_0 + sigma(t) eps,    eps ~ N(0, I),    t in [0, 1],

with data at t = 0 and noise at t = 1. A network may predict any one of the four equivalent quantities, and given x_t each
follows from each other:

    x_0,    eps,    v = alpha eps - sigma x_0  (Salimans and Ho 2022),    score = grad log p_t(x_t) = -eps / sigma.

The conversions are linear in what is predicted, so they hold for conditional means as well. Two of them divide: eps -> x_0 by
alpha (zero where no signal is left) and eps -> score by sigma (zero at clean data). Denominators are held above `FLOOR`, so
that every conversion is finite for finite input at both ends; at such an end the answer is a bound, not information.
v as defined here is not the velocity alpha' x_0 + sigma' eps of flow matching, which `predictions` converts.

Schedules: VP-linear, VE and sub-VP (Song et al. 2021, "Score-based generative modeling through SDEs", equations 29-33); cosine
in log-SNR form with both ends truncated (Ho and Salimans 2022, "Classifier-free diffusion guidance", section 3); EDM, whose
noise is proportional to time (Karras et al. 2022, table 1); rectified flow, the straight line (Liu et al. 2023; Lipman et al.
2023). No signal at all is left at the last time of a rectified flow, and no noise at time 0 of all but cosine and VE.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass
from jaxtyping import Array, Float

from gensamp.core import PyTree, Target, as_template, bind

__all__ = [
    "FLOOR", "Noise", "cosine", "diffuse", "edm", "eps_to_score", "eps_to_v", "eps_to_x0", "prior", "rectified_flow", "root",
    "score_to_eps", "score_to_x0", "sub_vp", "v_to_eps", "v_to_x0", "ve", "vp_linear", "x0_to_eps", "x0_to_score", "x0_to_v",
]  # fmt: skip

Time = Float[Array, ""] | float | int

FLOOR = 1e-5
"""Smallest alpha or sigma that a conversion divides by."""


@register_dataclass
@dataclass(frozen=True, eq=False)
class Noise:
    """A noise process x_t = alpha(t) x_0 + sigma(t) eps.

    alpha, sigma: (t) -> scalar in the dtype of t, for t in [0, 1]; bound functions. t_min: the smallest time at which a score
    should be asked for; 0 where sigma(0) > 0. Grids of solvers run over [t_min, 1].
    """

    alpha: Any
    sigma: Any
    t_min: float = dataclasses.field(default=0.0, metadata={"static": True})

    def log_snr(self, t: Time) -> Float[Array, ""]:
        """log(alpha^2 / sigma^2), decreasing in t, finite at both ends."""
        return 2 * (jnp.log(jnp.maximum(self.alpha(t), FLOOR)) - jnp.log(jnp.maximum(self.sigma(t), FLOOR)))


def vp_linear(beta_min: float | int = 0.1, beta_max: float | int = 20.0) -> Noise:
    """Variance preserving with a linear rate: alpha = exp(-B / 2), sigma^2 = 1 - exp(-B).

    B = beta_min t + (beta_max - beta_min) t^2 / 2. sigma(0) = 0, so t_min is 1e-3.

    Source: Song et al. 2021, equations 32-33; the continuous form of Ho, Jain and Abbeel 2020.

    Raises:
        ValueError: not 0 <= beta_min <= beta_max, or beta_max not positive.
    """
    rates = _vp_rates("vp_linear", beta_min, beta_max)
    return Noise(bind(_vp_alpha, *rates), bind(_vp_sigma, *rates), t_min=1e-3)


def sub_vp(beta_min: float | int = 0.1, beta_max: float | int = 20.0) -> Noise:
    """Signal as in `vp_linear` with less noise, sigma = 1 - exp(-B): a variance below one between the ends.

    sigma(0) = 0, so t_min is 1e-3.

    Source: Song et al. 2021, equation 29 with the linear rate of equation 32.

    Raises:
        ValueError: not 0 <= beta_min <= beta_max, or beta_max not positive.
    """
    rates = _vp_rates("sub_vp", beta_min, beta_max)
    return Noise(bind(_vp_alpha, *rates), bind(_sub_vp_sigma, *rates), t_min=1e-3)


def cosine(log_snr_min: float | int = -10.0, log_snr_max: float | int = 10.0) -> Noise:
    """Variance preserving on a quarter circle, alpha = cos(a t + b), sigma = sin(a t + b), truncated to a range of log-SNR.

    b = atan(exp(-log_snr_max / 2)), a = atan(exp(-log_snr_min / 2)) - b: neither end is singular, so t_min is 0.
    Source: Ho and Salimans 2022, section 3 (their range is -20 to 20); the cosine of Nichol and Dhariwal 2021.

    Raises:
        ValueError: not log_snr_min < log_snr_max.
    """
    if not log_snr_min < log_snr_max:
        raise ValueError(f"cosine got log_snr_min={log_snr_min}, log_snr_max={log_snr_max}; expected log_snr_min < log_snr_max")
    first, last = math.atan(math.exp(-log_snr_max / 2)), math.atan(math.exp(-log_snr_min / 2))
    # Each function gets the angle whose sine it takes: a cosine near pi/2 would lose its digits, and its sign, in float32.
    return Noise(bind(_line_sine, *_floats(math.pi / 2 - first, math.pi / 2 - last)), bind(_line_sine, *_floats(first, last)))


def ve(sigma_min: float | int = 0.01, sigma_max: float | int = 50.0) -> Noise:
    """Variance exploding: alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t; the prior's scale is sigma_max, not 1.

    Source: Song et al. 2021, equations 30-31, with the noise of x_0 itself at sigma_min instead of subtracted.

    Raises:
        ValueError: not 0 < sigma_min < sigma_max.
    """
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"ve got sigma_min={sigma_min}, sigma_max={sigma_max}; expected 0 < sigma_min < sigma_max")
    return Noise(bind(_one), bind(_geometric_line, *_floats(sigma_min, sigma_max)))


def edm(sigma_min: float | int = 0.002, sigma_max: float | int = 80.0) -> Noise:
    """Karras et al.'s process on [0, 1]: alpha = 1, sigma = sigma_max t. Their own time is sigma itself.

    sigma(0) = 0; t_min is sigma_min / sigma_max, the least noise a denoiser is trained at.

    Source: Karras, Aittala, Aila and Laine 2022, "Elucidating the design space of diffusion-based generative models", table 1.

    Raises:
        ValueError: not 0 < sigma_min < sigma_max.
    """
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"edm got sigma_min={sigma_min}, sigma_max={sigma_max}; expected 0 < sigma_min < sigma_max")
    return Noise(bind(_one), bind(_proportional, *_floats(sigma_max)), t_min=float(sigma_min) / float(sigma_max))


def rectified_flow() -> Noise:
    """The straight line from data to noise: alpha = 1 - t, sigma = t, whose velocity eps - x_0 does not depend on t.

    At t = 1 no signal is left, so eps and the score say nothing of x_0 there: a network had better predict the velocity (or
    x_0, or v). sigma(0) = 0, so t_min is 1e-3.

    Source: Liu, Gong and Liu 2023, "Flow straight and fast"; Lipman et al. 2023, "Flow matching for generative modeling".
    """
    return Noise(bind(_remainder), bind(_itself), t_min=1e-3)


def prior(noise: Noise, template: PyTree) -> Target:
    """The law N(0, sigma(1)^2) from which samplers start at t = 1: a normalised Target with exact draws.

    Args:
        noise: the process.
        template: one event.

    Returns:
        Target: like the template. What it leaves out, the last alpha(1) of signal, is the start's bias.
    """
    template = as_template(template)
    scale = noise.sigma(1.0)
    return Target.from_log_density(
        bind(_prior_log_density, scale), template, name="prior", exact=bind(_prior_draw, scale, _zeros(template))
    )


def diffuse(noise: Noise, t: Time, x0: PyTree, eps: PyTree) -> PyTree:
    """x_t = alpha x_0 + sigma eps, for one event."""
    return _combine(noise, t, lambda alpha, sigma, a, b: alpha * a + sigma * b, x0, eps)


def eps_to_x0(noise: Noise, t: Time, x: PyTree, eps: PyTree) -> PyTree:
    """x_0 = (x - sigma eps) / alpha."""
    return _combine(noise, t, lambda alpha, sigma, x, e: (x - sigma * e) / jnp.maximum(alpha, FLOOR), x, eps)


def x0_to_eps(noise: Noise, t: Time, x: PyTree, x0: PyTree) -> PyTree:
    """eps = (x - alpha x_0) / sigma."""
    return _combine(noise, t, lambda alpha, sigma, x, x0: (x - alpha * x0) / jnp.maximum(sigma, FLOOR), x, x0)


def eps_to_score(noise: Noise, t: Time, x: PyTree, eps: PyTree) -> PyTree:
    """score = -eps / sigma; x is not needed, and taken so that all conversions have one signature."""
    del x
    return _combine(noise, t, lambda alpha, sigma, e: -e / jnp.maximum(sigma, FLOOR), eps)


def score_to_eps(noise: Noise, t: Time, x: PyTree, score: PyTree) -> PyTree:
    """eps = -sigma score, with the floor of `eps_to_score`, so that the two are inverse to each other at both ends."""
    del x
    return _combine(noise, t, lambda alpha, sigma, s: -jnp.maximum(sigma, FLOOR) * s, score)


def score_to_x0(noise: Noise, t: Time, x: PyTree, score: PyTree) -> PyTree:
    """x_0 = (x + sigma^2 score) / alpha: Tweedie's formula (Robbins 1956)."""
    return _combine(noise, t, lambda alpha, sigma, x, s: (x + sigma**2 * s) / jnp.maximum(alpha, FLOOR), x, score)


def x0_to_score(noise: Noise, t: Time, x: PyTree, x0: PyTree) -> PyTree:
    """score = (alpha x_0 - x) / sigma^2."""
    return _combine(noise, t, lambda alpha, sigma, x, x0: (alpha * x0 - x) / jnp.maximum(sigma, FLOOR) ** 2, x, x0)


def v_to_x0(noise: Noise, t: Time, x: PyTree, v: PyTree) -> PyTree:
    """x_0 = (alpha x - sigma v) / (alpha^2 + sigma^2): never singular."""
    return _combine(noise, t, lambda alpha, sigma, x, v: (alpha * x - sigma * v) / (alpha**2 + sigma**2), x, v)


def v_to_eps(noise: Noise, t: Time, x: PyTree, v: PyTree) -> PyTree:
    """eps = (sigma x + alpha v) / (alpha^2 + sigma^2): never singular."""
    return _combine(noise, t, lambda alpha, sigma, x, v: (sigma * x + alpha * v) / (alpha**2 + sigma**2), x, v)


def eps_to_v(noise: Noise, t: Time, x: PyTree, eps: PyTree) -> PyTree:
    """v = alpha eps - sigma x_0, with x_0 recovered from x and eps (divides by alpha)."""
    x0 = eps_to_x0(noise, t, x, eps)
    return _combine(noise, t, lambda alpha, sigma, e, x0: alpha * e - sigma * x0, eps, x0)


def x0_to_v(noise: Noise, t: Time, x: PyTree, x0: PyTree) -> PyTree:
    """v = alpha eps - sigma x_0, with eps recovered from x and x_0 (divides by sigma)."""
    eps = x0_to_eps(noise, t, x, x0)
    return _combine(noise, t, lambda alpha, sigma, e, x0: alpha * e - sigma * x0, eps, x0)


def root(variance: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Square root whose gradient at zero is zero and not infinite, as where no noise is left."""
    positive = variance > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1)), 0)


def _combine(noise: Noise, t, formula, *trees: PyTree) -> PyTree:
    """`formula(alpha, sigma, *leaves)` on every leaf, with alpha and sigma in the dtype of the leaf."""
    alpha, sigma = noise.alpha(t), noise.sigma(t)
    return jax.tree.map(lambda *a: formula(alpha.astype(a[0].dtype), sigma.astype(a[0].dtype), *a), *trees)


def _floats(*values: float | int) -> tuple[Array, ...]:
    return tuple(jnp.asarray(v, jnp.result_type(float)) for v in values)


def _time(t, *parameters: Array) -> tuple[Array, ...]:
    """t as a floating array, and the parameters in its dtype: float32 times stay float32 under x64."""
    t = jnp.asarray(t)
    t = t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(jnp.result_type(float))
    return (t, *(p.astype(t.dtype) for p in parameters))


def _vp_rates(name: str, beta_min, beta_max) -> tuple[Array, ...]:
    if not 0 <= beta_min <= beta_max or beta_max <= 0:
        raise ValueError(f"{name} got beta_min={beta_min}, beta_max={beta_max}; expected 0 <= beta_min <= beta_max > 0")
    return _floats(beta_min, beta_max)


def _vp_rate(beta_min: Array, beta_max: Array, t) -> Array:
    t, beta_min, beta_max = _time(t, beta_min, beta_max)
    return beta_min * t + (beta_max - beta_min) * t**2 / 2


def _vp_alpha(beta_min: Array, beta_max: Array, t) -> Array:
    return jnp.exp(-_vp_rate(beta_min, beta_max, t) / 2)


def _vp_sigma(beta_min: Array, beta_max: Array, t) -> Array:
    return root(-jnp.expm1(-_vp_rate(beta_min, beta_max, t)))


def _sub_vp_sigma(beta_min: Array, beta_max: Array, t) -> Array:
    return -jnp.expm1(-_vp_rate(beta_min, beta_max, t))


def _line_sine(first: Array, last: Array, t) -> Array:
    t, first, last = _time(t, first, last)
    return jnp.sin(first + (last - first) * t)


def _one(t) -> Array:
    return jnp.ones_like(_time(t)[0])


def _geometric_line(first: Array, last: Array, t) -> Array:
    t, first, last = _time(t, first, last)
    return first * (last / first) ** t


def _proportional(rate: Array, t) -> Array:
    t, rate = _time(t, rate)
    return rate * t


def _remainder(t) -> Array:
    return 1 - _time(t)[0]


def _itself(t) -> Array:
    return _time(t)[0]


def _zeros(template: PyTree) -> PyTree:
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), template)


def _prior_log_density(scale: Array, x: PyTree) -> Array:
    def of(leaf):
        s = scale.astype(leaf.dtype)
        return jnp.sum(-0.5 * (leaf / s) ** 2 - jnp.log(s) - 0.5 * math.log(2 * math.pi))

    return jnp.sum(jnp.stack([of(leaf) for leaf in jax.tree.leaves(x)]))


def _prior_draw(scale: Array, like: PyTree, key: Array) -> PyTree:
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    drawn = [scale.astype(a.dtype) * jax.random.normal(k, a.shape, a.dtype) for k, a in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)
