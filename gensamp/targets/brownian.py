"""Brownian motion with unknown scales and a gap in the middle of its observations.

    log a, log b ~ N(0, 2^2),  x_1 ~ N(0, a^2),  x_t ~ N(x_{t-1}, a^2),  y_t ~ N(x_t, b^2) for t = 1..10 and 21..30.

An event is [log a, log b, x_1, ..., x_30], 32 coordinates; the scales are in logarithms, so the density has their Jacobian.
Given the two scales everything is normal: with K_st = min(s, t) and H the rows of the observed times,

    y | a, b ~ N(0, S),  S = a^2 H K H' + b^2 I,    x | y, a, b ~ N(a^2 K H' S^-1 y, a^2 K - a^4 K H' S^-1 H K),

what a Kalman filter and smoother would give. That leaves an integral over (log a, log b), done here by the trapezoidal rule:
log normaliser 1.187749, moments and marginal quantiles, to at least six digits. Exact draws take the scales from two tables,
log a by its normal score and log b given log a by another, linear between their knots: off by less than 1e-3 standard
deviations.

Source: Sountsov, Radul and contributors 2020, inference gym, BrownianMotionUnknownScalesMissingMiddleObservations (its data,
rounded to float32, are given below); Robnik, Cohn-Gordon and Seljak 2025, "Metropolis adjusted microcanonical Hamiltonian Monte
Carlo", for this parametrisation as a benchmark.
"""

import math
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gensamp.core import Target, Truth, bind
from gensamp.targets.mixture import PROBABILITIES, float_dtype, marginal_quantiles

__all__ = ["brownian"]

OBSERVATIONS = (
    0.21592641, 0.118771404, -0.07945447, 0.037677474, -0.27885845, -0.1484156, -0.3250906, -0.22957903, -0.44110894,
    -0.09830782, -0.8786016, -0.83736074, -0.7384849, -0.8939254, -0.7774566, -0.70238715, -0.87771565, -0.51853573,
    -0.6948214, -0.6202789,
)  # fmt: skip
"""What was seen at the times 1..10 and 21..30."""

_STEPS = 30
_SEEN = np.r_[0:10, 20:30]
_PRIOR_SCALE = 2.0


def brownian(*, dtype: Any = None) -> Target:
    """The posterior of two scales and thirty positions; see the module's docstring.

    Args:
        dtype: of events; jax's default float if None.

    Returns:
        Target: events [32]; `constrain` gives innovation_noise_scale, observation_noise_scale and locs.

    Source: as the module's docstring says. Exact draws and truth are this module's own.
    """
    dtype = float_dtype(dtype)
    y, seen = jnp.asarray(OBSERVATIONS, dtype), jnp.asarray(_SEEN)
    truth, tables = _solve()
    return Target.from_log_density(
        bind(_log_density, y, seen),
        jax.ShapeDtypeStruct((_STEPS + 2,), dtype),
        name="brownian",
        exact=bind(_exact, *(jnp.asarray(a, dtype) for a in (y, *tables)), seen),
        constrain=bind(_constrain),
        truth=_typed(truth, dtype),
    )


def _log_density(y: Array, seen: Array, x: Float[Array, "32"]) -> Array:
    log_a, log_b, path = x[0], x[1], x[2:]
    jumps = jnp.diff(path, prepend=0.0)
    prior = _normals(x[:2], jnp.asarray(math.log(_PRIOR_SCALE), x.dtype))
    return prior + _normals(jumps, log_a) + _normals(path[seen] - y, log_b)


def _normals(residuals: Array, log_scale: Array) -> Array:
    constant = residuals.size * (log_scale + 0.5 * math.log(2 * math.pi))
    return -0.5 * jnp.exp(-2 * log_scale) * jnp.sum(residuals**2) - constant


def _constrain(x):
    return {"innovation_noise_scale": jnp.exp(x[0]), "observation_noise_scale": jnp.exp(x[1]), "locs": x[2:]}


def _scales_and_path(log_a: np.ndarray, log_b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log p(y, log a, log b) [n], and means and variances [n, 30] of the path, at n pairs of scales."""
    values, vectors, loading = _rotation()
    rotated = np.asarray(OBSERVATIONS) @ vectors
    a, b = np.exp(2 * log_a)[:, None], np.exp(2 * log_b)[:, None]
    gain = a / (a * values + b)
    means = (gain * rotated) @ loading.T
    return _scales(log_a, log_b), means, a * np.arange(1.0, _STEPS + 1) - (a * gain) @ (loading**2).T


def _scales(log_a: np.ndarray, log_b: np.ndarray) -> np.ndarray:
    """log p(y, log a, log b), shapes broadcast."""
    values, vectors, _ = _rotation()
    a, b = np.exp(2 * log_a), np.exp(2 * log_b)
    joint = -0.5 * (log_a**2 + log_b**2) / _PRIOR_SCALE**2 - np.log(2 * np.pi * _PRIOR_SCALE**2)
    for value, y in zip(values, np.asarray(OBSERVATIONS) @ vectors, strict=True):
        spread = a * value + b
        joint = joint - 0.5 * (y**2 / spread + np.log(2 * np.pi * spread))
    return joint


def _rotation() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The basis U where H K H' is diagonal: its values [20], U [20, 20], and K H' U [30, 20]."""
    time = np.arange(1.0, _STEPS + 1)
    covariance = np.minimum(time[:, None], time)
    values, vectors = np.linalg.eigh(covariance[np.ix_(_SEEN, _SEEN)])
    return values, vectors, covariance[:, _SEEN] @ vectors


@cache
def _solve() -> tuple[Truth, tuple[np.ndarray, ...]]:
    """Truth by quadrature, in NumPy's float64, and the tables of the exact draws."""
    from scipy.special import ndtri

    log_a, log_b = np.arange(-9.0, 3.0, 0.02), np.arange(-18.0, 3.0, 0.02)
    joint = _scales(log_a[:, None], log_b)
    weights = np.exp(joint - joint.max())
    log_normaliser = float(joint.max()) + math.log(weights.sum() * (log_a[1] - log_a[0]) * (log_b[1] - log_b[0]))
    weights /= weights.sum()

    # Every sixth node in each direction integrates as exactly: the rule converges geometrically.
    coarse = weights[::6, ::6]
    rows, columns = np.nonzero(coarse > 1e-9 * coarse.max())
    mass = coarse[rows, columns] / coarse[rows, columns].sum()
    nodes = np.stack([log_a[::6][rows], log_b[::6][columns]], axis=1)
    _, path_means, path_variances = _scales_and_path(*nodes.T)
    means, variances = np.hstack([nodes, path_means]), np.hstack([np.zeros_like(nodes), path_variances])
    mean, square = mass @ means, mass @ (means**2 + variances)
    fourth = mass @ (means**4 + 6 * means**2 * variances + 3 * variances**2)

    marginals = [(log_a, weights.sum(1)), (log_b, weights.sum(0))]
    scores = [_normal_score(w[None])[0] for _, w in marginals]
    path = marginal_quantiles(mass, path_means, np.sqrt(path_variances), PROBABILITIES)
    quantiles = {
        p: (np.r_[[np.interp(ndtri(p), score, grid) for (grid, _), score in zip(marginals, scores, strict=True)], q], 0.0)
        for p, q in zip(PROBABILITIES, path, strict=True)
    }
    knots = np.linspace(-6.0, 6.0, 513)
    chosen = slice(None, None, 3)
    conditional = np.stack([np.interp(knots, score, log_b) for score in _normal_score(weights[chosen])])
    truth = Truth(
        log_normaliser=(log_normaliser, 1e-7),
        mean=(mean, 0.0),
        variance=(square - mean**2, 0.0),
        second_moment=(square, fourth - square**2),
        quantiles=quantiles,
        source="quadrature over the two scales, with the path integrated in closed form",
    )
    return truth, (knots, np.interp(knots, scores[0], log_a), log_a[chosen], conditional, *_rotation())


def _normal_score(weights: np.ndarray) -> np.ndarray:
    """Normal scores [rows, nodes] of the nodes' distribution functions, each tail summed from its own end."""
    from scipy.special import ndtri

    weights = weights / weights.sum(1, keepdims=True)
    lower = np.cumsum(weights, axis=1) - weights / 2
    upper = np.cumsum(weights[:, ::-1], axis=1)[:, ::-1] - weights / 2
    return np.where(lower < 0.5, ndtri(np.clip(lower, 1e-300, 0.5)), -ndtri(np.clip(upper, 1e-300, 0.5)))


def _typed(truth: Truth, dtype: Any) -> Truth:
    """The truth with its arrays in the dtype of the events."""
    return jax.tree.map(lambda a: jnp.asarray(a, dtype) if isinstance(a, np.ndarray) else a, truth)


def _exact(y, knots, table, rows, conditional, values, vectors, loading, seen, key):
    key_scales, key_path, key_noise = jax.random.split(key, 3)
    first, second = jax.random.normal(key_scales, (2,), y.dtype)
    log_a = jnp.interp(first, knots, table)
    place = jnp.clip((log_a - rows[0]) / (rows[1] - rows[0]), 0, len(rows) - 1.001)
    row = place.astype(jnp.int32)
    low, high = (jnp.interp(second, knots, conditional[row + i]) for i in (0, 1))
    log_b = low + (place - row) * (high - low)
    # A path and observations from the joint law, moved by what the true observations say of their difference.
    a, b = jnp.exp(log_a), jnp.exp(log_b)
    path = a * jnp.cumsum(jax.random.normal(key_path, (_STEPS,), y.dtype))
    imagined = path[seen] + b * jax.random.normal(key_noise, y.shape, y.dtype)
    path = path + a**2 * (loading @ ((y - imagined) @ vectors / (a**2 * values + b**2)))
    return jnp.concatenate([jnp.stack([log_a, log_b]), path])
