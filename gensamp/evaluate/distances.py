"""Two distances between samples, both zero only for equal laws: the energy distance and the sliced Wasserstein distance.

The energy distance of Szekely and Rizzo (2013), in its squared form,

    D^2(P, Q) = 2 E|X - Y| - E|X - X'| - E|Y - Y'|,

is estimated by its V-statistic: pairs of a draw with itself stay in the means, so it is never negative, and for n draws
of P against m draws of the same P its expectation is E|X - X'| (1/n + 1/m) exactly, for every law with a mean. That is its
floor, and `equivalent.py` turns it into a sample size. The sliced Wasserstein-2 distance (Rabin, Peyre, Delon and Bernot
2012) is OTT's, averaged over fixed random directions.

Samples are matrices [draws, coordinates]; weights are [draws], normalised here. Distances are taken in blocks of rows, so
memory stays at a few tens of megabytes for any number of draws.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Distance", "Floor", "energy_distance", "mean_distances", "sliced_wasserstein", "spread"]

_ROWS = 256
_COLUMNS = 8
_FAR = 1e15
_DIRECT = 16


@dataclass(frozen=True)
class Floor:
    """What the same statistic is for exact draws: mean and sd over `replicates` sets of the same size."""

    mean: float
    sd: float
    replicates: int

    @property
    def threshold(self) -> float:
        """Three sd above the mean. Null laws are weighted sums of chi-squares: one exact set in a hundred passes it."""
        return self.mean + 3.0 * self.sd


@dataclass(frozen=True)
class Distance:
    """A distance beside its floor; `verdict` says whether the two can be told apart."""

    value: float
    floor: Floor

    @property
    def verdict(self) -> str:
        """Either "indistinguishable" from exact draws of the same number, or "distinguishable"."""
        return "indistinguishable" if self.value <= self.floor.threshold else "distinguishable"


def energy_distance(
    x: np.ndarray, y: np.ndarray, *, x_weight: np.ndarray | None = None, y_weight: np.ndarray | None = None
) -> float:
    """The squared energy distance between two weighted samples (V-statistic, at least 0).

    Args:
        x: [n, d]. y: [m, d]. x_weight, y_weight: [n], [m], not negative; None for equal weights.

    Raises:
        ValueError: shapes that do not match, or an empty sample.
    """
    x, y = _matrices(x, y)
    p, q = normalised(x_weight, len(x)), normalised(y_weight, len(y))
    cross = mean_distances(x, y, q) @ p
    return float(max(2.0 * cross - mean_distances(x, x, p) @ p - mean_distances(y, y, q) @ q, 0.0))


def spread(x: np.ndarray) -> float:
    """E|X - X'| over distinct draws of [n, d]: the constant of the energy distance's floor."""
    x = np.asarray(x)
    return float(mean_distances(x, x, normalised(None, len(x))).mean() * len(x) / (len(x) - 1))


def sliced_wasserstein(
    x: np.ndarray,
    y: np.ndarray,
    *,
    x_weight: np.ndarray | None = None,
    y_weight: np.ndarray | None = None,
    num_projections: int = 32,
) -> float:
    """The sliced Wasserstein-2 distance, the root of the mean squared W2 over `num_projections` directions that never change.

    Args and raises as `energy_distance`.
    """
    x, y = _matrices(x, y)
    p, q = normalised(x_weight, len(x)), normalised(y_weight, len(y))
    squared = _sliced(*(_single(a) for a in (x, y, p, q)), num_projections)
    return float(jnp.sqrt(jnp.maximum(squared, 0.0)))


def mean_distances(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """sum_j weight_j |x_i - y_j| for every row of x: [n], or [n, k] for weights [m, k]; float64 from blocks in float32.

    Both samples are best centred and scaled beforehand. Shapes are padded, so that a few programs serve all sizes.
    """
    n, m, k = len(x), len(y), weight.shape[1:]
    weight = _single(weight.reshape(m, -1))
    weight = np.pad(weight, [(0, _bucket(m) - m), (0, -weight.shape[1] % _COLUMNS if k not in ((), (1,)) else 0)])
    x, y = (np.pad(_single(a), [(0, _bucket(len(a)) - len(a)), (0, 0)]) for a in (x, y))
    means = np.asarray(_mean_distances(x, y, weight), np.float64)[:n]
    return means[:, : k[0]] if k else means[:, 0]


def normalised(weight: np.ndarray | None, n: int) -> np.ndarray:
    """Weights [n] that sum to one; equal ones for None."""
    if weight is None:
        return np.full(n, 1.0 / n)
    weight = np.asarray(weight, np.float64)
    if weight.shape != (n,) or not np.isfinite(weight).all() or (weight < 0).any() or weight.sum() <= 0:
        raise ValueError(f"weights have shape {weight.shape} for {n} draws; expected one finite weight of at least 0 per draw")
    return weight / weight.sum()


@jax.jit
def _mean_distances(x, y, weight):
    squares = jnp.sum(y**2, axis=1)

    def block(rows):
        if x.shape[1] <= _DIRECT:
            squared = sum((rows[:, k, None] - y[None, :, k]) ** 2 for k in range(x.shape[1]))
        else:
            squared = jnp.sum(rows**2, axis=1)[:, None] + squares[None, :] - 2.0 * rows @ y.T
        return jnp.sqrt(jnp.maximum(squared, 0.0)) @ weight

    return jax.lax.map(block, x.reshape(-1, _ROWS, x.shape[1])).reshape(-1, weight.shape[1])


@partial(jax.jit, static_argnames="num_projections")
def _sliced(x, y, p, q, num_projections):
    from ott.tools import sliced

    return sliced.sliced_wasserstein(x, y, p, q, n_proj=num_projections, rng=jax.random.key(0))[0]


def _matrices(x, y) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not len(x) or not len(y):
        raise ValueError(f"samples have shapes {x.shape} and {y.shape}; expected [n, d] and [m, d] with at least one draw each")
    return x, y


def _bucket(n: int) -> int:
    """The size n is padded to: the next of 256, 512, 1024, ... or, from 4096 on, of the multiples of 4096."""
    return max(_ROWS, 1 << (n - 1).bit_length()) if n <= 4096 else -(-n // 4096) * 4096


def _single(a: np.ndarray) -> np.ndarray:
    # A runaway draw may stand at 1e30: its distance should be enormous, and its square must not overflow.
    return np.clip(np.asarray(a, np.float64), -_FAR, _FAR).astype(np.float32)
