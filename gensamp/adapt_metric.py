"""What a metric is learned from: the draws of a window, and of a low-rank one also the gradients there.

A kernel moves best where its inverse mass matrix is the target's covariance. Three estimates of it from n draws:

    diagonal   their variances, d numbers
    dense      their covariance, d^2 / 2 numbers, which wants n well above d
    low rank   diag(s) (I + U (L - I) U') diag(s), U [d, k] orthonormal, L k eigenvalues: variances, and a few directions that
               variances cannot mend

The first two are Welford's, drawn to 1e-3 by a weight of 5 draws (Stan). The third minimises the Fisher divergence to the
draws: with C the covariance of the draws and G that of the gradients of the log density, both in units of
s = (var x / var g)^1/4, the matrix in the brackets is the geometric mean of C and G^-1 on the leading directions of both, and
keeps eigenvalues outside [1/2, 2]. The gradients know the target's shape as well as the draws do and err the other way, so on a
normal law the error of few draws cancels: it is for windows shorter than the event.

The kernels take [d] or [d, d], so the low-rank metric is handed on as [d, d]: what it saves is draws, not arithmetic.

The estimators are blackjax's. They see covariances here, not draws: pseudo-draws with just that covariance stand for any number
of them. Sources: Stan reference manual, "HMC algorithm parameters"; Seyboldt, Carlson and Carpenter 2026 (Algorithm 1; the
low-rank metric of nutpie).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from blackjax.adaptation.mass_matrix import WelfordAlgorithmState, mass_matrix_adaptation, welford_algorithm
from blackjax.adaptation.metric_estimators import fisher_score_low_rank

from gensamp.mcmc.arguments import cast

__all__ = ["METRICS", "Learner", "LowRankState", "colour", "learner", "whiten"]

METRICS = ("diagonal", "dense", "low_rank")
# Directions a low-rank metric has at most; the weight of the identity beside covariances in units of s, for n draws and at
# least (float32 sees no smaller one).
RANK = 10
WEIGHT, LEAST = 5e-3, 1e-5


class Learner(NamedTuple):
    """init: (inverse_mass_matrix) -> state; observe: (state, positions [n, d], gradients [n, d] or None) -> state; renew:
    (state) -> state, whose inverse_mass_matrix is then what was observed since the last renewal. gradients: whether it wants
    them. dense: whether its matrix is [d, d].
    """

    init: Callable
    observe: Callable
    renew: Callable
    gradients: bool
    dense: bool


class LowRankState(NamedTuple):
    """inverse_mass_matrix: [d, d]. positions, gradients: moments of the window."""

    inverse_mass_matrix: jax.Array
    positions: WelfordAlgorithmState
    scores: WelfordAlgorithmState


def learner(metric: str) -> Learner:
    """The functions that learn a metric of this kind, one of METRICS."""
    if metric == "low_rank":
        return Learner(_low_rank_init, _low_rank_observe, _low_rank_renew, gradients=True, dense=True)
    begin, observe, renew = mass_matrix_adaptation(metric == "diagonal")

    def init(inverse_mass_matrix):
        return _typed(begin(len(inverse_mass_matrix), inverse_mass_matrix), inverse_mass_matrix.dtype)

    def observe_rows(state, positions, gradients):
        del gradients
        return _over_rows(observe, state, positions)

    return Learner(init, observe_rows, lambda state: cast(renew(state), state), gradients=False, dense=metric == "dense")


def whiten(inverse_mass_matrix: jax.Array, rows: jax.Array) -> jax.Array:
    """Positions or velocities [n, d] in the coordinates where this metric is the identity: L^-1 x with L L' the matrix."""
    if inverse_mass_matrix.ndim == 1:
        return rows / jnp.sqrt(inverse_mass_matrix)[None]
    factor = jnp.linalg.cholesky(inverse_mass_matrix)
    return jax.scipy.linalg.solve_triangular(factor, rows.T, lower=True).T


def colour(inverse_mass_matrix: jax.Array, rows: jax.Array) -> jax.Array:
    """Gradients [n, d] in the coordinates where this metric is the identity: L' g."""
    if inverse_mass_matrix.ndim == 1:
        return rows * jnp.sqrt(inverse_mass_matrix)[None]
    return rows @ jnp.linalg.cholesky(inverse_mass_matrix)


def _low_rank_init(inverse_mass_matrix):
    begin, _, _ = welford_algorithm(is_diagonal_matrix=False)
    moments = _typed(begin(len(inverse_mass_matrix)), inverse_mass_matrix.dtype)
    return LowRankState(inverse_mass_matrix, moments, moments)


def _low_rank_observe(state, positions, gradients):
    _, observe, _ = welford_algorithm(is_diagonal_matrix=False)
    return state._replace(
        positions=_over_rows(observe, state.positions, positions), scores=_over_rows(observe, state.scores, gradients)
    )


def _low_rank_renew(state):
    _, _, finish = welford_algorithm(is_diagonal_matrix=False)
    (draws, count, _), (scores, _, _) = finish(state.positions), finish(state.scores)
    size = len(draws)
    weight = jnp.maximum(WEIGHT / (count + 5), LEAST).astype(draws.dtype)
    # The estimator divides a sum over rows by its weight, and there are 2 d rows.
    rows = (_with_covariance(draws), _with_covariance(scores))
    found = fisher_score_low_rank(*rows, min(RANK, size), gamma=2 * size * weight)  # pyright: ignore[reportArgumentType]
    inner = jnp.eye(size, dtype=draws.dtype) + (found.U * (found.lam - 1)[None]) @ found.U.T
    matrix = found.sigma[:, None] * inner * found.sigma[None]
    return _low_rank_init((matrix + matrix.T) / 2)


def _with_covariance(covariance):
    """Rows [2 d, d] of mean zero whose covariance is this matrix."""
    # In units of its own diagonal, or the small directions of a badly scaled matrix drown in rounding.
    scale = jnp.sqrt(jnp.maximum(jnp.diag(covariance), jnp.finfo(covariance.dtype).tiny))
    values, vectors = jnp.linalg.eigh(covariance / scale[:, None] / scale[None])
    root = (jnp.sqrt(jnp.maximum(values, 0))[:, None] * vectors.T) * scale[None]
    return jnp.concatenate([root, -root]) * len(root) ** 0.5


def _over_rows(observe, state, rows):
    return jax.lax.scan(lambda s, row: (cast(observe(s, row), s), None), state, rows)[0]


def _typed(state, dtype):
    """blackjax starts its counters as Python numbers and its moments in the default dtype."""

    def typed(value):
        value = jnp.asarray(value)
        return value.astype(dtype if jnp.issubdtype(value.dtype, jnp.floating) else jnp.int32)

    return jax.tree.map(typed, state)
