"""Gaussian mixtures with diagonal covariances, in closed form.

    p(x) = sum_k w_k prod_j N(x_j; m_kj, v_kj),    score(x) = sum_k r_k(x) (m_k - x) / v_k,    r_k(x) = w_k N_k(x) / p(x).

Density, score, exact draws, moments and marginal quantiles are all known, and noise added to a mixture leaves a mixture, so
that `paths.noised` has exact scores at every level: the oracle that learned scores are held against. Many other laws have
Gaussian conditionals; a mixture over the nodes of a quadrature rule then gives their marginals too (funnel, banana, two moons).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass
from jaxtyping import Array, Float

from gensamp.core import Target, Truth, bind

__all__ = [
    "PROBABILITIES", "Mixture", "float_dtype", "marginal_quantiles", "mixture", "mixture_draw", "mixture_log_density",
    "mixture_score", "mixture_truth",
]  # fmt: skip

PROBABILITIES = (0.1, 0.5, 0.9)
"""The probabilities whose quantiles every closed-form truth states."""


@register_dataclass
@dataclass(frozen=True, eq=False)
class Mixture:
    """log_weights: [components]. means, variances: [components, dim]."""

    log_weights: Any
    means: Any
    variances: Any


def mixture(weights: Any, means: Any, variances: Any, *, name: str = "mixture", dtype: Any = None, **known: Any) -> Target:
    """A normalised target from a Gaussian mixture; one event has shape [dim].

    Args:
        weights: [components], positive; normalised here.
        means: [components, dim].
        variances: [components, dim], diagonal covariances.
        name: for tables.
        dtype: of events and parameters; jax's default float if None.
        known: fields of `Target` that replace those of the mixture (exact, truth, data).

    Raises:
        ValueError: shapes differ, or weights or variances are not positive.
    """
    weights, means, variances = (np.asarray(a, np.float64) for a in (weights, means, variances))
    if means.ndim != 2 or weights.shape != means.shape[:1] or variances.shape != means.shape:
        raise ValueError(
            f"mixture got weights {list(weights.shape)}, means {list(means.shape)}, variances {list(variances.shape)}; "
            "expected [components], [components, dim] and [components, dim]"
        )
    if not (weights > 0).all() or not (variances > 0).all():
        raise ValueError("mixture got weights or variances that are not positive; leave such components out")
    weights = weights / weights.sum()
    dtype = float_dtype(dtype)
    components = Mixture(*(jnp.asarray(a, dtype) for a in (np.log(weights), means, variances)))
    known.setdefault("exact", bind(mixture_draw, components))
    if "truth" not in known:
        known["truth"] = mixture_truth(weights, means, variances, dtype, source="closed form")
    return Target.from_log_density(
        bind(mixture_log_density, components),
        jax.ShapeDtypeStruct(means.shape[1:], dtype),
        name=name,
        score=bind(mixture_score, components),
        **known,
    )


def mixture_truth(
    weights: np.ndarray, means: np.ndarray, variances: np.ndarray, dtype: Any, *, source: str, modes: Any = None
) -> Truth:
    """Moments and marginal quantiles of a normalised mixture [components], [components, dim], [components, dim]."""
    mean = weights @ means
    variance = weights @ (variances + (means - mean) ** 2)
    square = weights @ (means**2 + variances)
    fourth = weights @ (means**4 + 6 * means**2 * variances + 3 * variances**2)
    quantiles = marginal_quantiles(weights, means, np.sqrt(variances), PROBABILITIES)
    return Truth(
        log_normaliser=(0.0, 0.0),
        mean=(jnp.asarray(mean, dtype), 0.0),
        variance=(jnp.asarray(variance, dtype), 0.0),
        second_moment=(jnp.asarray(square, dtype), jnp.asarray(fourth - square**2, dtype)),
        quantiles={p: (jnp.asarray(q, dtype), 0.0) for p, q in zip(PROBABILITIES, quantiles, strict=True)},
        modes=modes,
        source=source,
    )


def float_dtype(dtype: Any) -> np.dtype:
    """The floating dtype asked for, or jax's default one for None.

    Raises:
        ValueError: it is no floating dtype, or float64 while jax runs without x64.
    """
    wanted = jnp.dtype(jnp.result_type(float) if dtype is None else dtype)
    if not jnp.issubdtype(wanted, jnp.floating) or jax.dtypes.canonicalize_dtype(wanted) != wanted:
        raise ValueError(f"dtype is {wanted}; expected a floating dtype, and float64 only with jax_enable_x64")
    return wanted


def marginal_quantiles(
    weights: np.ndarray, means: np.ndarray, scales: np.ndarray, probabilities: Sequence[float]
) -> list[np.ndarray]:
    """Quantiles [dim] of each marginal of a mixture, by bisection of its distribution function in float64."""
    from scipy.special import ndtr

    found = []
    for probability in probabilities:
        low, high = (means - 12 * scales).min(0), (means + 12 * scales).max(0)
        # 80 halvings exhaust float64 from any bracket; a stopping rule would only add a tolerance.
        for _ in range(80):
            middle = (low + high) / 2
            below = weights @ ndtr((middle - means) / scales) < probability
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        found.append((low + high) / 2)
    return found


def mixture_log_density(components: Mixture, x: Float[Array, " dim"]) -> Float[Array, ""]:
    """log p(x), normalised."""
    return jax.nn.logsumexp(_joint(components, x))


def mixture_score(components: Mixture, x: Float[Array, " dim"]) -> Float[Array, " dim"]:
    """grad log p(x), without a backward pass."""
    responsibility = jax.nn.softmax(_joint(components, x))
    return responsibility @ ((components.means - x[None, :]) / components.variances)


def mixture_draw(components: Mixture, key: Array) -> Float[Array, " dim"]:
    """One exact draw."""
    key_component, key_noise = jax.random.split(key)
    k = jax.random.categorical(key_component, components.log_weights)
    mean = components.means[k]
    return mean + jnp.sqrt(components.variances[k]) * jax.random.normal(key_noise, mean.shape, mean.dtype)


def _joint(components: Mixture, x: Array) -> Array:
    """log w_k + log N_k(x), [components]."""
    squares = (x[None, :] - components.means) ** 2 / components.variances
    return components.log_weights - 0.5 * jnp.sum(squares + jnp.log(components.variances) + math.log(2 * math.pi), axis=1)
