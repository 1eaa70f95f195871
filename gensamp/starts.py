"""Where chains start: scattered, then let down to where the mass is, then pushed apart again.

Scattered starts are often so far out that a chain spends its warm-up falling. Each chain is therefore let down from its own
scattered start (L-BFGS; modes that the starts tell apart stay apart), the curvature where the best one comes to rest gives a
first covariance, and every chain is thrown off its end by twice that covariance's standard deviation: starts are overdispersed,
and R-hat means something.

The end of a descent need not be where the mass is: where the scale of a hierarchical model goes to zero the density has no
bound, and next to no mass. So the best descent is walked back to the point x whose normal law N(x, C), C the inverse curvature
there, has the greatest evidence lower bound

    E log p(x + C^1/2 z) + 1/2 log det C,    z ~ N(0, I),

and no descent goes on above the height of that point.

The optimiser is SciPy's, one run per chain, all of them meeting at each evaluation, so that one call of a batched gradient
serves them all. The curvature is the central difference of gradients, 2 d evaluations in batches. `evaluate` maps positions
[chain, d] to (log density [chain], gradient [chain, d]) and is the start program of the sampler itself: nothing more compiles.

Sources: Liu and Nocedal 1989 (L-BFGS); Zhang, Carpenter, Gelman and Vehtari 2022 (its path as a start for chains, and the bound
that chooses on it); Gelman and Rubin 1992 (overdispersed starts).
"""

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

__all__ = [
    "HOPELESS", "MOST_DENSE", "Trail", "curvature", "diagonal_curvature", "let_down", "others", "overdispersed",
    "resting_places", "scattered", "walked_back",
]  # fmt: skip


@runtime_checkable
class Evaluate(Protocol):
    """Positions [chain, d] -> (log density [chain], gradient [chain, d]); dtype: that of the positions."""

    dtype: np.dtype

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


WALL = 1e30
TRIES = 100
HOPELESS = 20.0
# Above this many coordinates the curvature is taken by its diagonal.
MOST_DENSE = 256
BACK = 0.7
# What central differences of gradients cannot tell from nothing: in float32 or less, and in float64.
FLAT = (1e-4, 1e-8)


def scattered(
    evaluate: Evaluate, rng: np.random.Generator, num_chains: int, size: int, *, initial: np.ndarray | None = None
) -> np.ndarray:
    """Feasible starts [chain, d], Uniform(-2, 2) in every coordinate (Stan's), drawn again where the density is not finite.

    Raises:
        ValueError: a chain finds no feasible start, or the density is finite and its gradient is not.
    """
    positions = rng.uniform(-2, 2, (num_chains, size)) if initial is None else initial
    for _ in range(TRIES):
        value, gradient = evaluate(positions)
        bad = ~(np.isfinite(value) & np.isfinite(gradient).all(1))
        if not bad.any():
            return positions
        if initial is not None:
            break
        positions[bad] = rng.uniform(-2, 2, (int(bad.sum()), size))
    if (np.isfinite(value) & bad).any():
        which = np.flatnonzero(~np.isfinite(gradient[np.isfinite(value) & bad]).all(0)).tolist()
        raise ValueError(
            f"the log density is finite where chains start and its gradient is not, in coordinates {which}; look for a where, "
            "sqrt, log or norm at 0 in it"
        )
    raise ValueError(
        f"no feasible start for {int(bad.sum())} of {num_chains} chains"
        + (f" in {TRIES} tries each" if initial is None else "")
        + ": the log density is not finite; give initial= inside the support, or constraints= if it has bounds"
    )


class Trail(NamedTuple):
    """Where one descent came by, each point higher than all before: positions [point, d], log densities [point]."""

    positions: np.ndarray
    heights: np.ndarray

    def up_to(self, height: float) -> "Trail":
        """As far as the first point that reaches a height, or the whole of it."""
        count = int(np.searchsorted(self.heights, height)) + 1
        return Trail(self.positions[:count], self.heights[:count])


def let_down(evaluate: Evaluate, positions: np.ndarray, *, most: int = 200) -> list[Trail]:
    """Each chain let down towards a mode of its own.

    Args:
        evaluate: [chain, d] -> (log density [chain], gradient [chain, d]).
        positions: [chain, d].
        most: evaluations per chain, at most.

    Returns:
        The trail of each chain; its last point is where the descent ended.
    """
    from scipy.optimize import minimize

    requests: SimpleQueue = SimpleQueue()
    answers = [SimpleQueue() for _ in positions]
    trails: list[tuple[list, list]] = [([], []) for _ in positions]

    def descend(chain: int) -> None:
        points, heights = trails[chain]

        def objective(x):
            requests.put((chain, x))
            value, gradient = answers[chain].get()
            if not (np.isfinite(value) and np.isfinite(gradient).all()):
                return WALL, np.zeros_like(x)
            if not heights or value > heights[-1]:
                points.append(x.copy())
                heights.append(value)
            return -value, -gradient

        try:
            # SciPy divides by what may be infinite, and judges the quotient.
            with np.errstate(all="ignore"):
                minimize(
                    objective,
                    np.array(positions[chain], np.float64),
                    jac=True,
                    method="L-BFGS-B",
                    options={"maxfun": most, "ftol": 1e-6},
                )
        finally:
            requests.put((chain, None))

    threads = [threading.Thread(target=descend, args=(chain,), daemon=True) for chain in range(len(positions))]
    for thread in threads:
        thread.start()
    asked = np.array(positions)
    running = len(threads)
    while running:
        waiting = []
        for _ in range(running):
            chain, x = requests.get()
            if x is None:
                running -= 1
            else:
                asked[chain] = x
                waiting.append(chain)
        if waiting:
            value, gradient = evaluate(asked)
            for chain in waiting:
                answers[chain].put((float(value[chain]), np.asarray(gradient[chain], np.float64)))
    return [Trail(np.stack(points), np.array(heights)) for points, heights in trails]


def resting_places(
    evaluate: Evaluate, trails: list[Trail], rng: np.random.Generator, *, most_dense: int = MOST_DENSE
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where descents should have ended: the highest one walked back, the others no higher.

    A chain that comes within HOPELESS nats of the best one's height is where the mass is. One that does not may be in a mode
    that is lower and wider, and is judged by its own bound.

    Args:
        evaluate: [chain, d] -> (log density [chain], gradient [chain, d]).
        trails: of all chains.
        rng: for the bounds, and for the curvature of long events.
        most_dense: coordinates up to which the covariance is a matrix, and not variances.

    Returns:
        Positions [chain, d]; which chains [chain] are within HOPELESS nats of the best in height or bound, in place of the
        others stands one of them; the covariance at the best one.
    """
    shape = len(trails), trails[0].positions.shape[1]
    noise, signs = rng.standard_normal(shape), rng.choice([-1.0, 1.0], shape)

    def covariance_at(position):
        if shape[1] <= most_dense:
            return curvature(evaluate, position, len(trails))
        return diagonal_curvature(evaluate, position, signs)

    highest = int(np.argmax([trail.heights[-1] for trail in trails]))
    best, covariance, bound = walked_back(evaluate, trails[highest], covariance_at, noise)
    level = best.heights[-1]
    cut = [best if chain == highest else trail.up_to(level) for chain, trail in enumerate(trails)]
    bounds = np.full(len(cut), bound)
    for chain, trail in enumerate(cut):
        if trail.heights[-1] < level - HOPELESS:
            own = covariance_at(trail.positions[-1])
            bounds[chain] = _lower_bound(evaluate, trail.positions[-1], own, noise)
            if bounds[chain] > bound:
                bound, covariance = bounds[chain], own
    near = bounds >= bound - HOPELESS if np.isfinite(bound) else np.ones(len(cut), bool)
    return np.stack([trail.positions[-1] for trail in cut])[others(near)], near, covariance


def others(near: np.ndarray) -> np.ndarray:
    """[chain]: itself, or one that is near in place of one that is not."""
    kept = np.flatnonzero(near)
    rows = np.arange(len(near))
    return np.where(near, rows, kept[rows % len(kept)])


def walked_back(
    evaluate: Evaluate, trail: Trail, covariance_at: Callable[[np.ndarray], np.ndarray], noise: np.ndarray
) -> tuple[Trail, np.ndarray, float]:
    """A trail as far as the point around which a normal law holds most, that law's covariance, and its bound.

    Args:
        evaluate: [lanes, d] -> (log density [lanes], gradient [lanes, d]).
        trail: of one descent.
        covariance_at: position [d] -> covariance [d, d], or variances [d].
        noise: standard normal [lanes, d], for the evidence lower bound; all points share it.

    Returns:
        The trail, and covariance and evidence lower bound at its last point (an identity and minus infinity, if nowhere on the
        trail is a law). Points are tried from the end on backwards, each at seven tenths of the way to the one before: a
        covariance and a call of `evaluate` for each, ten of them for a trail of fifty points.
    """
    best, end, found = -np.inf, len(trail.heights) - 1, None
    index = end
    while index >= 0:
        covariance = covariance_at(trail.positions[index])
        bound = _lower_bound(evaluate, trail.positions[index], covariance, noise)
        if bound > best:
            best, end, found = bound, index, covariance
        index = int(BACK * index) if index else -1
    if found is None:
        found = np.eye(noise.shape[1]) if covariance.ndim == 2 else np.ones(noise.shape[1])
    return Trail(trail.positions[: end + 1], trail.heights[: end + 1]), found, best


def _lower_bound(evaluate: Evaluate, position: np.ndarray, covariance: np.ndarray, noise: np.ndarray) -> float:
    """E log p + entropy of N(position, covariance), up to a constant; minus infinity where that is no law."""
    try:
        root = _root(covariance)
    except np.linalg.LinAlgError:
        return -np.inf
    with np.errstate(divide="ignore"):
        entropy = np.log(root.diagonal() if root.ndim == 2 else root).sum()
    bound = evaluate(position + _times(noise, root))[0].astype(np.float64).mean() + entropy
    return float(bound) if np.isfinite(bound) else -np.inf


def _root(covariance: np.ndarray) -> np.ndarray:
    """The Cholesky factor of a covariance, or standard deviations of variances."""
    return np.linalg.cholesky(covariance) if covariance.ndim == 2 else np.sqrt(covariance)


def _times(noise: np.ndarray, root: np.ndarray) -> np.ndarray:
    return noise @ root.T if root.ndim == 2 else noise * root


def curvature(evaluate: Evaluate, position: np.ndarray, lanes: int) -> np.ndarray:
    """The covariance [d, d] of the normal law that has the log density's curvature at `position` [d].

    Directions in which it is curved upwards, or less than a difference of gradients can tell (`FLAT`), get variance 1, both in
    units in which the curvature's diagonal is 1.
    """
    size, dtype = len(position), evaluate.dtype
    position = position.astype(dtype)
    step = np.finfo(dtype).eps ** (1 / 3) * np.maximum(np.abs(position), 1e-2)
    points = np.concatenate([position + np.diag(step), position - np.diag(step)]).astype(dtype)
    padded = np.concatenate([points, np.repeat(points[-1:], -len(points) % lanes, 0)])
    gradients = np.concatenate([np.asarray(evaluate(batch)[1], np.float64) for batch in padded.reshape(-1, lanes, size)])
    difference = points[:size].diagonal().astype(np.float64) - points[size:].diagonal().astype(np.float64)
    with np.errstate(all="ignore"):
        hessian = (gradients[:size] - gradients[size : 2 * size]) / difference[:, None]
        hessian = (hessian + hessian.T) / 2
    if not np.isfinite(hessian).all():
        return np.eye(size)
    # Scaled to a unit diagonal first: the eigenvalues of badly scaled matrices drown in rounding.
    scale = 1 / np.sqrt(np.maximum(np.abs(np.diag(hessian)), 1e-12))
    values, vectors = np.linalg.eigh(-hessian * scale[:, None] * scale)
    flat = values < FLAT[dtype.itemsize == 8]
    covariance = (vectors / np.where(flat, 1.0, values)) @ vectors.T
    return covariance * scale[:, None] * scale


def diagonal_curvature(evaluate: Evaluate, position: np.ndarray, probes: np.ndarray) -> np.ndarray:
    """As `curvature`, its diagonal alone, for events too long for a matrix: variances [d].

    The diagonal of the Hessian is the mean of v * (H v) over random signs v, `probes` [lanes, d] (Bekas, Kokiopoulou and Saad
    2007): 2 evaluations for each probe, whatever d.
    """
    step = np.finfo(evaluate.dtype).eps ** (1 / 3) * max(float(np.abs(position).mean()), 1e-2)
    ahead, behind = (np.asarray(evaluate(position + sign * step * probes)[1], np.float64) for sign in (1, -1))
    hessian = (probes * (ahead - behind) / (2 * step)).mean(0)
    return np.where(np.isfinite(hessian) & (hessian < -1e-4), -1 / np.minimum(hessian, -1e-4), 1.0)


def overdispersed(
    evaluate: Evaluate, ends: np.ndarray, covariance: np.ndarray, noise: np.ndarray, *, times: float = 2.0
) -> np.ndarray:
    """Every end [chain, d] thrown off by `times` standard deviations of `covariance` ([d, d], or variances [d]).

    Under a normal law that costs times^2 d / 2 nats on average. A throw that costs ten times as much, or that leaves the
    support, says that the curvature misleads there: it is halved until it does not.

    noise: standard normal [chain, d].
    """
    away = times * _times(noise, _root(covariance))
    floor = evaluate(ends)[0] - 5 * times**2 * ends.shape[1]
    for _ in range(20):
        value, gradient = evaluate(ends + away)
        bad = ~(np.isfinite(gradient).all(1) & (value >= floor))
        if not bad.any():
            return ends + away
        away[bad] /= 2
    away[bad] = 0
    return ends + away
