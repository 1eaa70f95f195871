"""Targets with many modes far apart, beside the forty Gaussians of `analytic`: what a chain that stays in one mode gets wrong.

| target | definition | dim | log Z |
|---|---|---|---|
| gmm9 | nine equal N(m_k, 0.3 I), m_k on the grid {-5, 0, 5}^2 | 2 | 0 |
| gmm25 | 25 equal N(m_k, 0.3 I), m_k on the grid {-10, -5, 0, 5, 10}^2 | 2 | 0 |
| mos10 | ten equal products of Student t with two degrees of freedom, locations shipped as data | 2, 50 | 0 |
| many_well | 16 pairs (x, y) of -x^4 + 6 x^2 + x / 2 - y^2 / 2 | 32 | 164.695675 |
| bimodal | 0.75 N(0, I) + 0.25 N(4 e_1, 0.36 I) | 50 | 0 |

All have exact draws. The wells of many_well are drawn by rejection: -(x^2 - 3)^2 <= -3 (|x| - sqrt 3)^2 puts each well under a
normal density.
"""

import itertools
import math
from importlib import resources
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gensamp.core import Target, Truth, bind
from gensamp.targets.mixture import PROBABILITIES, float_dtype, mixture, mixture_truth

__all__ = ["bimodal", "gmm9", "gmm25", "many_well", "mos10"]


def gmm9(*, dtype: Any = None) -> Target:
    """Nine equal Gaussians on a grid, nine standard deviations apart; trivial for importance sampling, not for a chain.

    Source: the nine-component target of Zhang and Chen 2022 (path integral sampler), section 4.1.
    """
    return _grid("gmm9", (-5.0, 0.0, 5.0), dtype)


def gmm25(*, dtype: Any = None) -> Target:
    """Twenty-five equal Gaussians on a grid, nine standard deviations apart.

    Source: as gmm9, with the larger grid of the samplers that came after it.
    """
    return _grid("gmm25", (-10.0, -5.0, 0.0, 5.0, 10.0), dtype)


def bimodal(dim: int = 50, *, dtype: Any = None) -> Target:
    """Two Gaussians of unequal weight and width, 0.75 N(0, I) + 0.25 N(4 e_1, 0.36 I): found easily, weighed with difficulty.

    Args:
        dim: at least 1.
        dtype: of events; jax's default float if None.

    Raises:
        ValueError: dim is below 1.

    Source: the two-component test of annealed and tempered samplers, with these constants; closed form.
    """
    if dim < 1:
        raise ValueError(f"bimodal got dim={dim}; expected at least 1")
    means = np.zeros((2, dim))
    means[1, 0] = 4.0
    variances = np.repeat([[1.0], [0.36]], dim, axis=1)
    return _gaussians(_named("bimodal", dim, 50), np.array([0.75, 0.25]), means, variances, dtype)


def mos10(dim: int = 2, *, dtype: Any = None) -> Target:
    """Ten equal products of Student t distributions with two degrees of freedom and unit scale: heavy tails around each mode.

    The mean exists and the variance does not, so `truth.variance` is None. `truth.modes` has balls of half the least distance
    between two locations; tails reach far beyond them.

    Args:
        dim: 2 or 50.
        dtype: of events; jax's default float if None.

    Raises:
        ValueError: no locations are shipped for this dimension.

    Source: Blessing et al. 2024, "Beyond ELBOs", appendix; the locations are those of its code under the random number
    generator of its time, uniform in (-10, 10).
    """
    with resources.files("gensamp.targets").joinpath("mos10_means.npz").open("rb") as file, np.load(file) as stored:
        shipped = {int(name[1:]): stored[name].astype(np.float64) for name in stored.files}
    if dim not in shipped:
        raise ValueError(f"mos10 got dim={dim}; expected one of {sorted(shipped)}, for which locations are shipped")
    from scipy.spatial.distance import pdist

    dtype = float_dtype(dtype)
    places = shipped[dim]
    share = np.full(len(places), 1 / len(places))
    modes = (places, share, np.full(len(places), pdist(places).min() / 2))
    truth = Truth(
        log_normaliser=(0.0, 0.0),
        mean=(jnp.asarray(places.mean(0), dtype), 0.0),
        quantiles={p: (jnp.asarray(_student_quantile(places, p), dtype), 0.0) for p in PROBABILITIES},
        modes=tuple(jnp.asarray(a, dtype) for a in modes),
        source="closed form",
    )
    centres = jnp.asarray(places, dtype)
    return Target.from_log_density(
        bind(_student_log_density, centres),
        jax.ShapeDtypeStruct((dim,), dtype),
        name=_named("mos10", dim, 2),
        exact=bind(_student_draw, centres),
        truth=truth,
    )


def many_well(pairs: int = 16, *, dtype: Any = None) -> Target:
    """Independent pairs of a double well and a normal: 2^pairs modes, of which each coordinate shows two.

    An event is [x_1, y_1, x_2, y_2, ...]. The density is not normalised; its log normaliser is 10.293479731 for each pair.

    Args:
        pairs: at least 1.
        dtype: of events; jax's default float if None.

    Raises:
        ValueError: pairs is below 1.

    Source: Midgley et al. 2023 (FAB), section 4.2, after Noe et al. 2019.
    """
    if pairs < 1:
        raise ValueError(f"many_well got pairs={pairs}; expected at least 1")
    dtype = float_dtype(dtype)
    return Target.from_log_density(
        _many_well_log_density,
        jax.ShapeDtypeStruct((2 * pairs,), dtype),
        name=_named("many_well", 2 * pairs, 32),
        exact=bind(_many_well_draw, jnp.zeros(pairs, dtype)),
        truth=_many_well_truth(pairs, dtype),
    )


def _named(name: str, size: int, default: int) -> str:
    return name if size == default else f"{name}_d{size}"


def _grid(name: str, line: tuple[float, ...], dtype: Any) -> Target:
    means = np.array(list(itertools.product(line, line)))
    return _gaussians(name, np.full(len(means), 1 / len(means)), means, np.full_like(means, 0.3), dtype)


def _gaussians(name: str, weights: np.ndarray, means: np.ndarray, variances: np.ndarray, dtype: Any) -> Target:
    """A mixture whose modes are the balls that hold 99 % of a round component."""
    from scipy.stats import chi2

    dtype = float_dtype(dtype)
    radius = np.sqrt(variances[:, 0] * chi2.ppf(0.99, means.shape[1]))
    modes = tuple(jnp.asarray(a, dtype) for a in (means, weights, radius))
    truth = mixture_truth(weights, means, variances, dtype, source="closed form", modes=modes)
    return mixture(weights, means, variances, name=name, dtype=dtype, truth=truth)


def _student_log_density(centres: Float[Array, "modes dim"], x: Float[Array, " dim"]) -> Array:
    squares = (x[None, :] - centres) ** 2
    each = jnp.sum(-1.5 * jnp.log1p(squares / 2) - 1.5 * math.log(2), axis=1)
    return jax.nn.logsumexp(each) - math.log(len(centres))


def _student_draw(centres: Array, key: Array) -> Array:
    key_mode, key_normal, key_scale = jax.random.split(key, 3)
    place = centres[jax.random.randint(key_mode, (), 0, len(centres))]
    normal = jax.random.normal(key_normal, place.shape, place.dtype)
    # chi^2 with two degrees of freedom, over two, is a standard exponential.
    return place + normal / jnp.sqrt(jax.random.exponential(key_scale, place.shape, place.dtype))


def _student_quantile(places: np.ndarray, probability: float) -> np.ndarray:
    """Marginal quantiles [dim] by bisection of the mixture's distribution function 1/2 + t / (2 sqrt(2 + t^2))."""
    low, high = places.min(0) - 1e3, places.max(0) + 1e3
    for _ in range(80):
        middle = (low + high) / 2
        t = middle - places
        below = (0.5 + t / (2 * np.sqrt(2 + t**2))).mean(0) < probability
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


def _many_well_log_density(x: Float[Array, " dim"]) -> Array:
    well, normal = x[0::2], x[1::2]
    return jnp.sum(-(well**4) + 6 * well**2 + 0.5 * well - 0.5 * normal**2)


_ROOT = math.sqrt(3.0)
_SIDE = 1 / (1 + math.exp(-_ROOT))
"""The share of the right one of the two normal densities that cover the wells: their masses differ by exp(sqrt 3)."""


def _many_well_draw(like: Array, key: Array) -> Array:
    """Normal y, and x by rejection: on either side -(x^2 - 3)^2 + x / 2 lies under -3 (|x| - sqrt 3)^2 + x / 2, a normal."""
    key_wells, key_normals = jax.random.split(key)

    def propose(state):
        x, done, key = state
        key, key_side, key_normal, key_accept = jax.random.split(key, 4)
        side = jnp.where(jax.random.bernoulli(key_side, _SIDE, like.shape), 1.0, -1.0).astype(like.dtype)
        tried = side * _ROOT + 1 / 12 + jax.random.normal(key_normal, like.shape, like.dtype) / math.sqrt(6)
        log_ratio = 3 * (jnp.abs(tried) - _ROOT) ** 2 - (tried**2 - 3) ** 2
        accept = (side * tried > 0) & (jnp.log(jax.random.uniform(key_accept, like.shape, like.dtype)) < log_ratio)
        return jnp.where(done, x, tried), done | accept, key

    start = (like, jnp.zeros(like.shape, bool), key_wells)
    wells, _, _ = jax.lax.while_loop(lambda state: ~jnp.all(state[1]), propose, start)
    return jnp.stack([wells, jax.random.normal(key_normals, like.shape, like.dtype)], axis=1).ravel()


def _many_well_truth(pairs: int, dtype: Any) -> Truth:
    """Quadrature of one well by the trapezoidal rule, which is exact to rounding for so smooth and steep a density."""
    from scipy.special import ndtri

    x = np.linspace(-6.0, 6.0, 24_001)
    mass = np.exp(-((x**2 - 3) ** 2) + 0.5 * x)
    log_normaliser = 9 + math.log(mass.sum() * (x[1] - x[0])) + 0.5 * math.log(2 * math.pi)
    mass /= mass.sum()
    first, second, fourth = (float(mass @ x**k) for k in (1, 2, 4))
    below = np.cumsum(mass) - mass / 2

    def event(well, normal):
        return jnp.asarray(np.tile([well, normal], pairs), dtype)

    return Truth(
        log_normaliser=(pairs * log_normaliser, 0.0),
        mean=(event(first, 0.0), 0.0),
        variance=(event(second - first**2, 1.0), 0.0),
        second_moment=(event(second, 1.0), event(fourth - second**2, 2.0)),
        quantiles={p: (event(np.interp(p, below, x), ndtri(p)), 0.0) for p in PROBABILITIES},
        source="quadrature of one well; 2^pairs modes are too many to list",
    )
