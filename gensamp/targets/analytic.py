"""Targets written down as formulas: normalised densities with exact draws and closed-form truth.

| target | definition | dim | log Z |
|---|---|---|---|
| gmm40 | 40 equal N(m_k, I), m_k in 40 U(-1, 1)^dim, shipped as data | 2, 50 | 0 |
| funnel | v ~ N(0, 9), x_i ~ N(0, e^v) | 10, 20 | 0 |
| banana | x_0 ~ N(0, 100), x_1 ~ N(0.03 (x_0^2 - 100), 1) | 2 | 0 |
| rosenbrock | 18 pairs x_i ~ N(1, 1), y_i ~ N(x_i^2, 0.1) | 36 | 0 |
| ill_conditioned_gaussian | N(0, diag(log-spaced variances)) | 100 | 0 |
| two_moons | two half circles under Gaussian noise | 2 | 0 |

Where a target is a chain of normal conditionals its inverse Rosenblatt transform, uniforms to draws coordinate by coordinate
(Rosenblatt 1952), is `truth.quantile`. Marginal quantiles of the funnel and the banana are those of a Gaussian mixture over
the nodes of a quadrature rule in the first coordinate.
"""

import math
from importlib import resources
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gensamp.core import Target, Truth, bind
from gensamp.targets.mixture import PROBABILITIES, float_dtype, marginal_quantiles, mixture, mixture_truth

__all__ = ["banana", "funnel", "gmm40", "ill_conditioned_gaussian", "rosenbrock", "two_moons"]


def gmm40(dim: int = 2, *, dtype: Any = None) -> Target:
    """Forty equal Gaussians N(m_k, I) with means uniform in [-40, 40]^dim: far apart, so a local chain finds few of them.

    `truth.modes` has the centres, and as radius the ball that holds 99 % of a component.

    Args:
        dim: 2 or 50.
        dtype: of events; jax's default float if None.

    Raises:
        ValueError: no means are shipped for this dimension.

    Source: Midgley et al. 2023 (FAB), section 4.1; these means, with unit covariance, are those of Blessing et al. 2024,
    "Beyond ELBOs", whose seed draws different means under newer random number generators: hence data and not a seed.
    """
    with resources.files("gensamp.targets").joinpath("gmm40_means.npz").open("rb") as file, np.load(file) as stored:
        shipped = {int(name[1:]): stored[name] for name in stored.files}
    if dim not in shipped:
        raise ValueError(f"gmm40 got dim={dim}; expected one of {sorted(shipped)}, for which means are shipped")
    from scipy.stats import chi2

    dtype = float_dtype(dtype)
    means = shipped[dim].astype(np.float64)
    weights = np.full(len(means), 1 / len(means))
    radius = np.full(len(means), math.sqrt(chi2.ppf(0.99, dim)))
    modes = tuple(jnp.asarray(a, dtype) for a in (means, weights, radius))
    truth = mixture_truth(weights, means, np.ones_like(means), dtype, source="closed form", modes=modes)
    return mixture(weights, means, np.ones_like(means), name=_named("gmm40", dim, 2), dtype=dtype, truth=truth)


def funnel(dim: int = 10, *, dtype: Any = None) -> Target:
    """Neal's funnel: x[0] = v ~ N(0, 9) and x[i] ~ N(0, e^v), so that no one step size suits both ends.

    Args:
        dim: at least 2, the coordinate v included.
        dtype: of events; jax's default float if None.

    Raises:
        ValueError: dim is below 2.

    Source: Neal 2003, "Slice sampling", section 8.
    """
    if dim < 2:
        raise ValueError(f"funnel got dim={dim}; expected at least 2: the log variance and one coordinate of it")
    dtype = float_dtype(dtype)
    v, weights = _normal_rule()
    scales = np.exp(1.5 * v)[:, None]
    inner = marginal_quantiles(weights, np.zeros_like(scales), scales, PROBABILITIES)
    outer = marginal_quantiles(np.ones(1), np.zeros((1, 1)), np.full((1, 1), 3.0), PROBABILITIES)
    variance = np.concatenate([[9.0], np.full(dim - 1, math.exp(4.5))])
    fourth = 3 * np.concatenate([[81.0], np.full(dim - 1, math.exp(18.0))])
    quantiles = [np.concatenate([a, np.full(dim - 1, b[0])]) for a, b in zip(outer, inner, strict=True)]
    template = jax.ShapeDtypeStruct((dim,), dtype)
    return Target.from_log_density(
        _funnel_log_density,
        template,
        name=_named("funnel", dim, 10),
        exact=bind(_exact, bind(_funnel_map), jnp.zeros(dim, dtype)),
        truth=_truth(np.zeros(dim), variance, fourth, quantiles, bind(_funnel_map), dtype),
    )


def banana(*, dtype: Any = None) -> Target:
    """A normal bent along a parabola: x[0] ~ N(0, 100), x[1] ~ N(0.03 (x[0]^2 - 100), 1).

    E x = (0, 0), E x^2 = (100, 19), Var x^2 = (20000, 4600.9).

    Source: Haario, Saksman and Tamminen 1999, with the constants of the inference-gym benchmark.
    """
    dtype = float_dtype(dtype)
    z, weights = _normal_rule()
    means = np.stack([10 * z, 3 * (z**2 - 1)], axis=1)
    # The first coordinate's own quantiles are closed form; as a mixture of points it would be a staircase.
    second = marginal_quantiles(weights, means[:, 1:], np.ones((len(z), 1)), PROBABILITIES)
    first = marginal_quantiles(np.ones(1), np.zeros((1, 1)), np.full((1, 1), 10.0), PROBABILITIES)
    quantiles = [np.concatenate(pair) for pair in zip(first, second, strict=True)]
    return Target.from_log_density(
        _banana_log_density,
        jax.ShapeDtypeStruct((2,), dtype),
        name="banana",
        exact=bind(_exact, bind(_banana_map), jnp.zeros(2, dtype)),
        truth=_truth(np.zeros(2), np.array([100.0, 19.0]), np.array([3e4, 4961.9]), quantiles, bind(_banana_map), dtype),
    )


def rosenbrock(pairs: int = 18, *, dtype: Any = None) -> Target:
    """Independent curved ridges, x_i ~ N(1, 1) and y_i ~ N(x_i^2, 0.1); an event is [x_1, ..., x_n, y_1, ..., y_n].

    E x^2 = 2, Var x^2 = 6, E y^2 = 10.1, Var y^2 = 668.02.

    Args:
        pairs: at least 1.
        dtype: of events; jax's default float if None.

    Raises:
        ValueError: pairs is below 1.

    Source: Rosenbrock 1960; as a density Goodman and Weare 2010, with the constants of Robnik et al. 2023, "Microcanonical
    Hamiltonian Monte Carlo".
    """
    if pairs < 1:
        raise ValueError(f"rosenbrock got pairs={pairs}; expected at least 1")
    dtype = float_dtype(dtype)
    z, weights = _normal_rule()
    x, spread = 1 + z, np.full((len(z), 1), math.sqrt(_RIDGE))
    first = marginal_quantiles(np.ones(1), np.ones((1, 1)), np.ones((1, 1)), PROBABILITIES)
    second = marginal_quantiles(weights, x[:, None] ** 2, spread, PROBABILITIES)
    moments = [(1.0, 2.0), (1.0, 10.0 + _RIDGE - 4.0), (10.0, 764.0 + 60 * _RIDGE + 3 * _RIDGE**2)]
    mean, variance, fourth = (np.repeat(pair, pairs) for pair in moments)
    return Target.from_log_density(
        _rosenbrock_log_density,
        jax.ShapeDtypeStruct((2 * pairs,), dtype),
        name=_named("rosenbrock", 2 * pairs, 36),
        exact=bind(_exact, bind(_rosenbrock_map), jnp.zeros(2 * pairs, dtype)),
        truth=_truth(
            mean,
            variance,
            fourth,
            [np.repeat([a[0], b[0]], pairs) for a, b in zip(first, second, strict=True)],
            bind(_rosenbrock_map),
            dtype,
        ),
    )


def ill_conditioned_gaussian(dim: int = 100, *, condition_number: float | int = 1e4, dtype: Any = None) -> Target:
    """N(0, diag(variances)) with variances log-spaced from condition_number^-1/2 to condition_number^1/2, smallest first.

    Args:
        dim: at least 2.
        condition_number: largest variance over smallest, at least 1.
        dtype: of events; jax's default float if None.

    Raises:
        ValueError: dim below 2 or condition_number below 1.

    Source: Robnik, De Luca, Silverstein and Seljak 2023, "Microcanonical Hamiltonian Monte Carlo".
    """
    if dim < 2 or not condition_number >= 1:
        raise ValueError(f"ill_conditioned_gaussian got dim={dim}, condition_number={condition_number}; expected >= 2 and >= 1")
    dtype = float_dtype(dtype)
    span = math.log10(condition_number) / 2
    variance = np.logspace(-span, span, dim)
    scale = jnp.asarray(np.sqrt(variance), dtype)
    from scipy.special import ndtri

    quantiles = [np.sqrt(variance) * ndtri(p) for p in PROBABILITIES]
    return Target.from_log_density(
        bind(_gaussian_log_density, scale),
        jax.ShapeDtypeStruct((dim,), dtype),
        name=_named("ill_conditioned_gaussian", dim, 100),
        exact=bind(_exact, bind(_gaussian_map, scale), jnp.zeros(dim, dtype)),
        truth=_truth(np.zeros(dim), variance, 3 * variance**2, quantiles, bind(_gaussian_map, scale), dtype),
    )


def two_moons(*, noise: float | int = 0.1, num_events: int = 10_000, dtype: Any = None) -> Target:
    """Two half circles under Gaussian noise: (cos a, sin a) or (1 - cos a, 1/2 - sin a), a ~ U(0, pi), plus N(0, noise^2 I).

    `exact` draws from the arcs themselves, and `data` is a fixed set of such draws for models that learn from data. The density
    is the integral over the arc by Gauss-Legendre's rule, a Gaussian mixture over its nodes, with a relative error below 1e-6
    for noise of at least 0.05.

    Args:
        noise: standard deviation, at least 0.05.
        num_events: events in `data`.
        dtype: of events; jax's default float if None.

    Raises:
        ValueError: noise below 0.05, where the quadrature would no longer be exact.

    Source: the `make_moons` of scikit-learn (Pedregosa et al. 2011), with random instead of equally spaced angles.
    """
    if not noise >= 0.05:
        raise ValueError(f"two_moons got noise={noise}; expected at least 0.05, where the density's quadrature is exact")
    dtype = float_dtype(dtype)
    nodes, weights = np.polynomial.legendre.leggauss(128)
    angle = (nodes + 1) * np.pi / 2
    means = np.concatenate([_arc(angle, 0, np), _arc(angle, 1, np)])
    weights = np.concatenate([weights, weights]) / 4
    rng = np.random.default_rng(0)
    angles, moons = rng.uniform(0, np.pi, num_events), rng.integers(0, 2, num_events)
    events = np.where(moons[:, None] == 0, _arc(angles, 0, np), _arc(angles, 1, np)) + noise * rng.normal(size=(num_events, 2))
    return mixture(
        weights,
        means,
        np.full_like(means, noise**2),
        name="two_moons",
        dtype=dtype,
        exact=bind(_moons_draw, jnp.asarray(noise, dtype)),
        data=jnp.asarray(events, dtype),
    )


def _named(name: str, dim: int, default: int) -> str:
    return name if dim == default else f"{name}_d{dim}"


def _normal_rule() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of the trapezoidal rule for N(0, 1), which converges geometrically for smooth integrands."""
    z = np.linspace(-10, 10, 2001)
    weights = np.exp(-0.5 * z**2)
    return z, weights / weights.sum()


def _truth(mean, variance, fourth, quantiles, map_normals, dtype) -> Truth:
    """fourth: E x^4."""
    square = variance + mean**2
    return Truth(
        log_normaliser=(0.0, 0.0),
        mean=(jnp.asarray(mean, dtype), 0.0),
        variance=(jnp.asarray(variance, dtype), 0.0),
        second_moment=(jnp.asarray(square, dtype), jnp.asarray(fourth - square**2, dtype)),
        quantiles={p: (jnp.asarray(q, dtype), 0.0) for p, q in zip(PROBABILITIES, quantiles, strict=True)},
        quantile=bind(_quantile, map_normals),
        source="closed form",
    )


def _exact(map_normals, like: Array, key: Array) -> Array:
    return map_normals(jax.random.normal(key, like.shape, like.dtype))


def _quantile(map_normals, u: Array) -> Array:
    return map_normals(jax.scipy.special.ndtri(u))


def _normal(x: Array, mean: Any, scale: Any) -> Array:
    return -0.5 * ((x - mean) / scale) ** 2 - jnp.log(scale) - 0.5 * math.log(2 * math.pi)


def _funnel_log_density(x: Float[Array, " dim"]) -> Array:
    v = x[0]
    return _normal(v, 0.0, jnp.asarray(3.0, x.dtype)) + jnp.sum(
        -0.5 * x[1:] ** 2 * jnp.exp(-v) - 0.5 * v - 0.5 * math.log(2 * math.pi)
    )


def _funnel_map(z: Float[Array, " dim"]) -> Array:
    v = 3 * z[0]
    return jnp.concatenate([v[None], jnp.exp(v / 2) * z[1:]])


def _banana_log_density(x: Float[Array, "2"]) -> Array:
    one = jnp.ones((), x.dtype)
    return _normal(x[0], 0.0, 10 * one) + _normal(x[1], 0.03 * (x[0] ** 2 - 100), one)


def _banana_map(z: Float[Array, "2"]) -> Array:
    return jnp.stack([10 * z[0], 3 * (z[0] ** 2 - 1) + z[1]])


_RIDGE = 0.1
"""The variance of y about x^2 in the Rosenbrock density."""


def _rosenbrock_log_density(x: Float[Array, " dim"]) -> Array:
    along, across = jnp.split(x, 2)
    one = jnp.ones((), x.dtype)
    return jnp.sum(_normal(along, one, one) + _normal(across, along**2, math.sqrt(_RIDGE) * one))


def _rosenbrock_map(z: Float[Array, " dim"]) -> Array:
    along, across = jnp.split(z, 2)
    return jnp.concatenate([1 + along, (1 + along) ** 2 + math.sqrt(_RIDGE) * across])


def _gaussian_log_density(scale: Array, x: Float[Array, " dim"]) -> Array:
    return jnp.sum(_normal(x, 0.0, scale))


def _gaussian_map(scale: Array, z: Float[Array, " dim"]) -> Array:
    return scale * z


def _arc(angle: Any, moon: int, library: Any) -> Any:
    """Points [..., 2] of one half circle."""
    cosine, sine = library.cos(angle), library.sin(angle)
    pair = (cosine, sine) if moon == 0 else (1 - cosine, 0.5 - sine)
    return library.stack(pair, axis=-1)


def _moons_draw(noise: Array, key: Array) -> Array:
    key_angle, key_moon, key_noise = jax.random.split(key, 3)
    angle = jax.random.uniform(key_angle, (), noise.dtype, maxval=math.pi)
    point = jnp.where(jax.random.bernoulli(key_moon), _arc(angle, 0, jnp), _arc(angle, 1, jnp))
    return point + noise * jax.random.normal(key_noise, (2,), noise.dtype)
