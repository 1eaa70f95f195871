"""Starts from a normal approximation: near the mass before the first step, with a first metric, and still apart.

Every chain is let down from a scattered start of its own (`starts.py`). Around where that leads stands a normal law N(m, C):

    laplace     m the end, or the point of the descent where its ELBO is greatest (`starts.py`), C the inverse curvature of the
                log density there
    pathfinder  the descent's points are all tried: x_l, with the inverse Hessian
                H_l that L-BFGS has there, gives N(x_l + H_l grad log p(x_l), H_l), and each chain takes the law of its own path
                whose ELBO is greatest, by a few draws

and the chain starts at m + 2 C^1/2 xi, xi ~ N(0, I): twice as far off as the law says. C (of the best path) is the metric
that tuning begins with. Chains more than 20 nats (of height, or ELBO) below the best start from another one's law.

What R-hat then means: the starts are overdispersed where the normal approximation holds. Modes that no descent led to, and
tails that curvature does not show, are not in them, and R-hat cannot miss them. Chains scattered by the sampler's own start,
or given by `initial`, know no more of modes, but owe less to one approximation.

The descent is SciPy's, so that its evaluations can be counted, all of them as gradients; H_l and the draws are blackjax's, in
double precision. Sources: Zhang, Carpenter, Gelman and Vehtari 2022 (Algorithms 1, 3 and 4); Tierney and Kadane 1986.
"""

import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.optimizers.lbfgs import bfgs_sample, lbfgs_inverse_hessian_factors, lbfgs_recover_alpha

from gensamp.clock import compile_clock
from gensamp.core import Bill, PyTree, Target, require
from gensamp.flat import flat_target, flatten, unflatten
from gensamp.mcmc.arguments import read_log_density
from gensamp.starts import HOPELESS, let_down, others, overdispersed, resting_places, scattered

__all__ = ["start_chains"]

# Points of a path that are tried, draws for the ELBO of each, pairs that an inverse Hessian is made of.
POINTS, DRAWS, MEMORY = 20, 5, 6


class _Law(NamedTuple):
    """The normal laws of paths: mean [path, point, d], draws [path, point, DRAWS, d], log density of the draws [path, point,
    DRAWS], and alpha, beta, gamma of H = diag(alpha) + beta gamma beta'."""

    mean: Any
    draws: Any
    log_density: Any
    alpha: Any
    beta: Any
    gamma: Any


def start_chains(
    key: jax.Array, target: Target, num_chains: int, *, how: str, initial: PyTree = None
) -> tuple[PyTree, np.ndarray, Bill]:
    """Starts of chains, thrown off a normal approximation by twice its standard deviation.

    Args:
        key: a typed key.
        target: with a `log_density`.
        num_chains: chains.
        how: "laplace" or "pathfinder".
        initial: positions [chain, ...] to let down from, instead of Uniform(-2, 2).

    Returns:
        Positions [chain, ...event], the covariance [d, d] of the approximation (variances [d] of long events), and the bill: at
        most 200 gradients per chain for the descent, 2 d in all for the curvature or POINTS * DRAWS per chain for the ELBO, and
        a few to check the throw.

    Raises:
        ValueError: no feasible start, or no approximation that is finite.
    """
    require(target, "log_density", "tune")
    began = time.perf_counter()
    flat = flat_target(target)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    size = flat.template.shape[0]
    with compile_clock() as clock:
        evaluate = _Gradient(flat)
        begun = scattered(
            evaluate, rng, num_chains, size, initial=None if initial is None else flatten(target.template, initial)
        )
        evaluate.trace = []
        trails = let_down(evaluate, begun)
        trace, evaluate.trace = evaluate.trace, None
        if how == "pathfinder":
            ends = np.stack([trail.positions[-1] for trail in trails])
            centres, away, covariance = _pathfinder(key, evaluate, trace, ends)
        else:
            centres, _, covariance = resting_places(evaluate, trails, rng)
            noise = rng.standard_normal(begun.shape)
            away = noise @ np.linalg.cholesky(covariance).T if covariance.ndim == 2 else noise * np.sqrt(covariance)
        positions = overdispersed(evaluate, centres, np.ones(size), away).astype(evaluate.dtype)
    bill = Bill(evaluate.count, wall_seconds=time.perf_counter() - began, compile_seconds=clock.seconds)
    return unflatten(target.template, positions), covariance, bill


class _Gradient:
    """Log density and gradient of positions [chain, d]. count: evaluations so far. trace: None, or where they are kept."""

    def __init__(self, flat: Target) -> None:
        self.log_density = read_log_density(flat, "tune")
        self.dtype = np.dtype(flat.template.dtype)
        self.count = 0
        self.trace: list[tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        value, gradient = map(np.asarray, _evaluate(self.log_density, np.asarray(positions, self.dtype)))
        self.count += len(positions)
        if self.trace is not None:
            self.trace.append((np.array(positions, np.float64), value, gradient))
        return value, gradient


@jax.jit
def _evaluate(log_density, positions):
    return jax.vmap(jax.value_and_grad(log_density))(positions)


def _pathfinder(key, evaluate, trace, ends) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres [chain, d], deviations from them [chain, d], and the best path's covariance [d, d]."""
    number = len(ends)
    positions, gradients, valid = _paths(trace)
    keys = jax.random.split(key, (2, number))
    law = _laws(keys[0], positions, gradients)
    elbo = np.full((number, POINTS), -np.inf)
    for point in range(POINTS):
        tried = [evaluate(_within(law.draws[:, point, k]))[0].astype(np.float64) for k in range(DRAWS)]
        elbo[:, point] = (np.stack(tried, 1) - law.log_density[:, point]).mean(1)
    elbo = np.where(valid & np.isfinite(elbo), elbo, -np.inf)
    point, highest = elbo.argmax(1), elbo.max(1)
    if not np.isfinite(highest).any():
        raise ValueError(
            "starts='pathfinder' found no normal approximation with a finite ELBO on any path; use starts='laplace', or none"
        )
    rows = others(highest >= highest.max() - HOPELESS)
    # The same program with other keys: chains that share a path must not share their noise.
    again = _laws(keys[1], positions[rows], gradients[rows])
    each, point = np.arange(number), point[rows]
    centres = again.mean[each, point]
    away = again.draws[each, point, 0] - centres
    outside = ~np.isfinite(evaluate(_within(centres))[0])
    centres[outside] = ends[rows][outside]
    best = highest[rows].argmax()
    alpha, beta, gamma = (a[best, point[best]] for a in (again.alpha, again.beta, again.gamma))
    return centres, away, np.diag(alpha) + beta @ gamma @ beta.T


def _paths(trace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The last points of each descent that were better than all before: positions and gradients of the log density [path,
    POINTS + 1, d], the first repeated where there are too few, and which of the last POINTS are points [path, POINTS].
    """
    number, size = trace[0][0].shape
    positions, gradients = np.zeros((2, number, POINTS + 1, size))
    valid = np.zeros((number, POINTS), bool)
    for path in range(number):
        kept, best = [], -np.inf
        for x, value, gradient in trace:
            if value[path] > best and np.isfinite(gradient[path]).all():
                best = value[path]
                kept.append((x[path], gradient[path]))
        kept = kept[-POINTS - 1 :]
        full = [kept[0]] * (POINTS + 1 - len(kept)) + kept
        positions[path], gradients[path] = (np.stack([point[i] for point in full]) for i in (0, 1))
        valid[path] = np.arange(POINTS) >= POINTS + 1 - len(kept)
        # A start that is the end already has one point and the law of no step at all.
        valid[path, -1] = True
    return positions, gradients, valid


def _laws(keys, positions, gradients) -> _Law:
    # Locally, whatever the precision in force: badly scaled inverse Hessians drown in single.
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        return _Law(*(np.array(a) for a in _law(keys, jnp.asarray(positions), jnp.asarray(gradients))))


@jax.jit
@partial(jax.vmap, in_axes=(0, 0, 0))
def _law(key, positions, gradients):
    """The normal laws at the points of one path, [POINTS + 1, d] each."""
    steps, bends = jnp.diff(positions, axis=0), -jnp.diff(gradients, axis=0)

    def recover(alpha, pair):
        alpha, used = lbfgs_recover_alpha(alpha, *pair)
        return alpha, (alpha, used)

    _, (alphas, used) = jax.lax.scan(recover, jnp.ones_like(positions[0]), (steps, bends))
    steps, bends = (jnp.pad(jnp.where(used, a, 0), ((MEMORY, 0), (0, 0))) for a in (steps, bends))

    def at(point, key):
        recent = point + 1 + jnp.arange(MEMORY)
        alpha, x, gradient = alphas[point], positions[point + 1], gradients[point + 1]
        beta, gamma = lbfgs_inverse_hessian_factors(steps[recent].T, bends[recent].T, alpha)
        draws, log_density = bfgs_sample(key, DRAWS, x, gradient, alpha, beta, gamma)
        mean = x + alpha * gradient + beta @ (gamma @ (beta.T @ gradient))
        return mean, draws, log_density, alpha, beta, gamma

    return jax.vmap(at)(jnp.arange(POINTS), jax.random.split(key, POINTS))


def _within(positions):
    """Without infinities, of which some densities make errors and not small numbers."""
    return np.nan_to_num(positions, nan=0.0, posinf=1e15, neginf=-1e15)
