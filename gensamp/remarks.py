"""What a person should know of a run that `auto` made, beyond whether its rule was met.

    steps that diverged      a region too narrow for the step, or a bound that only the density knows of
    energies (E-BFMI)        (mean square of the energy's changes) / (its variance), low where fresh momenta hardly change it
    endless directions       lines along which the density does not fall off: the posterior looks improper
    coarse coordinates       a spread of a few neighbouring numbers of the dtype, as of dates counted in seconds in float32
    places never visited     where chains were stuck in warm-up, as high as the draws and beyond them all: perhaps a mode

Sources: Betancourt 2016 (E-BFMI); Gelman et al. 2020, "Bayesian workflow", section 5, for what a failed run says of a model.
"""

import jax
import numpy as np

from gensamp.core import PyTree, Target
from gensamp.cross_chain import STUCK, Together
from gensamp.flat import unflatten
from gensamp.runner import Draws
from gensamp.starts import HOPELESS, Evaluate

__all__ = ["DIVERGED", "coarse", "diverged", "endless", "missed", "remarks"]

DIVERGED = 0.01
LOW_ENERGY = 0.3
# Neighbouring numbers within a standard deviation: with fewer, rounding moves quantiles by more than a twentieth of it.
FEW_NUMBERS = 10
# Doublings of a line's length in the search for endless directions; more would leave float32 no digits.
FAR = 14


def remarks(
    draws: Draws,
    position: PyTree,
    together: Together,
    num_chains: int,
    hopeless: int,
    fell: int,
    unending: list[str],
    unvisited: int,
) -> tuple[list[str], list[str]]:
    """What was chosen and what came of it, the first line being the choice; and what a person should worry about.

    Args:
        draws: of the run, positions flat. position: the same as events [chain, draw, ...]. together: of its warm-up.
        num_chains, hopeless, fell: chains, those moved because their modes hold nothing, and gradients of each descent.
        unending, unvisited: of `endless` and `missed`.
    """
    metric = "a dense" if together.inverse_mass_matrix.ndim == 2 else "a diagonal"
    notes = [
        f"HMC with jittered paths and {metric} metric, {num_chains} chains, step size {float(together.step_size):.3g}; "
        f"starts let down in {fell} gradients per chain and thrown apart by twice the curvature's sd; warm-up together in "
        f"{together.steps} steps, to an acceptance of {together.acceptance.mean():.2f}"
    ]
    worries = []
    if hopeless:
        notes.append(
            f"{hopeless} of {num_chains} starts ended over {HOPELESS:.0f} nats below the best, in height and in what a normal "
            "law holds there, and were moved to others: if those are modes, they have next to no weight"
        )
    if len(together.left):
        times = len(together.left)
        notes.append(f"{times} times a chain was stuck in warm-up while the others moved, and started again from one of them")
    if together.given:
        notes.append(
            f"the first {together.given} draws per chain diverged too often and became warm-up: the step was shortened from "
            f"{together.first_step:.3g}"
        )
    if unvisited:
        worries.append(
            f"{unvisited} of the places where chains were stuck are as high as where the draws are, and no draw came by: if "
            "they are a mode, its weight is missing here"
        )
    if not together.settled:
        notes.append(f"the chains did not agree within {together.steps} steps of warm-up: the target may have modes far apart")
    if unending:
        worries.append(
            f"the density does not fall off along {', '.join(unending[:5])}: the posterior looks improper; give "
            "what it depends on proper priors"
        )
    if rough := coarse(position):
        worries.append(
            f"{', '.join(rough[:5])} hardly vary beside their size, so the numbers of their dtype are too far apart for the "
            "density; centre and scale them in the model, or use float64"
        )
    if (share := diverged(draws)) > DIVERGED:
        worries.append(
            f"{100 * share:.1f} % of the steps diverged: the draws miss a narrow region, or the density ends at a bound; "
            "reparameterise the model, or give the bound as constraints="
        )
    if low := _low_energy(draws):
        worries.append(
            f"chains {low} have an E-BFMI below {LOW_ENERGY}: fresh momenta hardly change the energy, and the tails are "
            "reached too rarely; reparameterise the model, or give what has heavy tails lighter ones"
        )
    accepted = np.asarray(draws.info.acceptance)
    stuck = np.flatnonzero(accepted.mean(1) < STUCK).tolist() if accepted.size else []
    if stuck:
        worries.append(f"chains {stuck} are stuck; do not average over them before you know why")
    return notes, worries


def diverged(draws: Draws) -> float:
    """The share of steps that diverged."""
    return float(np.mean(draws.info.diverged)) if np.size(draws.info.diverged) else 0.0


def coarse(position: PyTree) -> list[str]:
    """Names of the leaves [chain, draw, ...] with a coordinate whose spread is that of a few neighbouring numbers."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(position):
        x = np.asarray(leaf)
        gap = np.spacing(np.abs(x).max((0, 1), initial=0))
        if x.size and (np.std(x, axis=(0, 1), dtype=np.float64) < FEW_NUMBERS * gap).any():
            found.append(jax.tree_util.keystr(path, simple=True, separator=".") or "x")
    return found


def endless(target: Target, start: np.ndarray, end: np.ndarray) -> list[str]:
    """Endless directions among the coordinates and those in which chains went from `start` to `end`, both [chain, d].

    Lines begin where the chains did and are drawn at that scale: where chains of an improper posterior end, numbers have no
    digits left for the density.
    """
    from gensamp.targets.starts import endless_directions

    away = np.asarray(end, np.float64) - np.asarray(end, np.float64).mean(0)
    away *= start.std() / np.maximum(np.abs(away).max(1, keepdims=True), np.finfo(start.dtype).tiny)
    near = (start.mean(0) + away).astype(start.dtype)
    return endless_directions(target, unflatten(target.template, near), doublings=FAR)


def missed(evaluate: Evaluate, left: np.ndarray, position: np.ndarray) -> int:
    """How many of the places that stuck chains left [times, d] lie beyond all draws [chain, draw, d] and are as high."""
    if not len(left) or not position.shape[1]:
        return 0
    beyond = left[((left < position.min((0, 1))) | (left > position.max((0, 1)))).any(1)]
    if not len(beyond):
        return 0
    some = np.linspace(0, position.shape[1] - 1, 8).astype(int)
    usual = min(evaluate(position[:, i])[0].min() for i in some)
    lanes = len(position)
    heights = [evaluate(beyond[i : i + lanes])[0] for i in range(0, len(beyond), lanes)]
    return int((np.concatenate(heights) >= usual).sum())


def _low_energy(draws: Draws) -> list[int]:
    """Chains whose Bayesian fraction of missing information is low (Betancourt 2016)."""
    from arviz_stats.base import array_stats

    energy = np.asarray(draws.info.extra["energy"], np.float64)
    if energy.shape[1] < 4 or not np.isfinite(energy).all():
        return []
    with np.errstate(all="ignore"):
        return np.flatnonzero(np.asarray(array_stats.bfmi(energy, chain_axis=0, draw_axis=1)) < LOW_ENERGY).tolist()
