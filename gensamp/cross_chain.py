"""Adaptation of many chains together: one step size and one metric, learned from all of them at once.

Chains side by side cost a vector machine little more than one, and their pooled covariance knows in tens of steps what
one chain learns in hundreds. So warm-up is a row of short rounds. A round runs every chain with a fixed kernel (by `sample`,
so that all rounds, and the draws that follow, are one program), and after it, on the host:

    step size   the acceptance a of HMC falls with its step as a = 2 Phi(-s), s proportional to eps^2 (Neal 2011, section
                5.4.4; Beskos et al. 2013), which is solved for the eps of the acceptance that is wanted; where steps diverge
                all the same, the target has regions much narrower than the rest, and more is wanted;
    metric      becomes w C + (1 - w) metric, C the pooled covariance (or variances) of the round's N draws and
                w = N / (N + 10 d) (10 for variances): a few draws refine what is known and do not replace it;
    stragglers  a chain that accepts next to nothing while the others move starts again from one of them.

Rounds grow until the chains agree: in every coordinate the means of the chains differ by no more than draws within the chains
explain, and the acceptance is met with a metric that has seen enough draws. It is for starts that are spread wider than the
target (`starts.py`); then agreement says something.

The last round may be too short to meet a narrow region, in which steps that are too long keep a chain for hundreds of draws. So
a run whose draws diverge (`bold`) was one more round of warm-up, and a long one: `more_careful` learns from it.

Sources: Hoffman, Radul and Sountsov 2021 (adaptation across chains); Gelman and Rubin 1992 (the agreement).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri
from tqdm.auto import tqdm

from gensamp.core import Bill, Ledger, Sampler, Target, scalar
from gensamp.runner import Draws, sample, shown

__all__ = ["Together", "adapt_together", "bold", "more_careful"]

FIRST_ROUND, GROWTH = 4, 1.4
AGREEMENT = 1.2
STUCK = 0.05
DIVERGED, CAREFUL = 0.001, 0.95
# Fewer divergences may be chance, and from this acceptance on shorter steps gain little.
FEWEST, BOLD = 3, 0.9
WELL_SEEN = 10


@dataclass(frozen=True, eq=False)
class Together:
    """What the chains learned together.

    sampler: made with the values below, on flat events. initial: positions [chain, d]. step_size: scalar. inverse_mass_matrix:
    [d, d] or [d]. acceptance: [chain], mean over the last round. steps: of warm-up, per chain. settled: whether the chains
    agreed in the end. left: [times, d], where chains were stuck that started again from another one. ledger: the bill, under
    `tune`. given: draws per chain that diverged too often and were given to warm-up. first_step: the step size of those.
    """

    sampler: Sampler
    initial: np.ndarray
    step_size: jax.Array
    inverse_mass_matrix: jax.Array
    acceptance: np.ndarray
    steps: int
    settled: bool
    left: np.ndarray
    ledger: Ledger
    given: int = 0
    first_step: float | None = None


def adapt_together(
    key: jax.Array,
    make: Callable[..., Sampler],
    target: Target,
    initial: np.ndarray,
    *,
    metric: np.ndarray,
    step_size: float = 0.5,
    target_acceptance: float = 0.8,
    most_steps: int = 1000,
    progress: bool | None = None,
    **run: Any,
) -> Together:
    """Run rounds until the chains agree, or `most_steps` are spent.

    Args:
        key: a typed key.
        make: (target, step_size, *, inverse_mass_matrix) -> Sampler without end.
        target: on flat events [d].
        initial: [chain, d], spread wider than the target.
        metric: the covariance [d, d], or variances [d], to begin with.
        step_size: where the search starts.
        target_acceptance: mean acceptance to meet; CAREFUL at least where chains that agree have more than a share of DIVERGED
            steps that diverge.
        most_steps: steps of warm-up per chain, at most.
        progress: show a bar; by default only in a terminal or a notebook.
        run: further arguments of `sample`, such as mesh and effort.

    Returns:
        Together.

    Raises:
        KeyboardInterrupt: it was interrupted; what was learned so far is lost.
    """
    eps, bill, spent, seen = float(step_size), Bill(), 0, 0
    position, settled, length, wanted = initial, False, float(FIRST_ROUND), target_acceptance
    left = [initial[:0]]
    bar = tqdm(total=most_steps, disable=not shown(progress), unit="step", desc="warm-up")
    while True:
        steps = int(min(length, most_steps - spent))
        sampler = make(target, scalar(eps, target.template), inverse_mass_matrix=jnp.asarray(metric, initial.dtype))
        draws = sample(jax.random.fold_in(key, spent), sampler, steps, initial=position, progress=False, **run)
        if draws.interrupted:
            # Warm-up has nothing to show yet; a round that was complete by then is no reason to go on.
            raise KeyboardInterrupt(draws.message or "warm-up was interrupted")
        bill += draws.ledger.tune + draws.ledger.sample
        spent += steps
        position, history = np.asarray(draws.position[:, -1]), np.asarray(draws.position, np.float64)
        accepted = _accepted(draws.info.acceptance)
        mean = float(accepted.mean())
        bar.update(steps)
        agree = _agree(history)
        if agree and np.mean(draws.info.diverged) > DIVERGED:
            wanted = max(wanted, CAREFUL)
        settled = agree and abs(mean - wanted) < 0.1 and seen >= WELL_SEEN * _unknowns(metric)
        if settled:
            break
        if spent >= most_steps:
            eps *= _correction(mean, wanted)
            sampler = make(target, scalar(eps, target.template), inverse_mass_matrix=jnp.asarray(metric, initial.dtype))
            break
        stuck = _stuck(accepted)
        if stuck.any():
            others = np.flatnonzero(~stuck)
            left.append(position[stuck])
            position = position.copy()
            position[stuck] = position[others[np.arange(stuck.sum()) % len(others)]]
            mean, history = float(accepted[~stuck].mean()), history[~stuck]
        eps *= _correction(mean, wanted)
        # While the step size is still sought, long rounds would only repeat what short ones say.
        length *= GROWTH if 0.4 < mean < 0.97 else 1.0
        # Draws of chains that still fall, or that hardly move, would teach their distance and not the target's shape.
        if mean > 0.5 and (agree or spent > most_steps // 10):
            refined = _refined(metric, history)
            # Chains that wander off without end have a covariance that no number holds.
            if _regular(refined, initial.dtype):
                metric = refined
                seen += history.shape[0] * steps
    bar.close()
    return Together(
        sampler=sampler, initial=position, step_size=scalar(eps, target.template),
        inverse_mass_matrix=jnp.asarray(metric, initial.dtype), acceptance=accepted, steps=spent, settled=settled,
        left=np.concatenate(left), ledger=Ledger(tune=bill),
    )  # fmt: skip


def bold(acceptance: np.ndarray, diverged: np.ndarray) -> bool:
    """Whether draws [chain, draw] diverged more often than they may, with steps that could well be shorter."""
    return bool(diverged.sum() >= FEWEST and diverged.mean() > DIVERGED and _accepted(acceptance).mean() < BOLD)


def more_careful(together: Together, draws: Draws, make: Callable[..., Sampler], target: Target) -> Together:
    """What is known when the draws of a run have become one more round of warm-up.

    Args:
        together: of the warm-up before. draws: of the run, on flat events. make, target: as for `adapt_together`.

    Returns:
        Together: a step for an acceptance of CAREFUL, the metric refined by these draws, chains where they are.
    """
    position, metric = np.asarray(draws.position), np.asarray(together.inverse_mass_matrix, np.float64)
    accepted = _accepted(draws.info.acceptance)
    moving = ~_stuck(accepted)
    mean, first_step = float(accepted[moving].mean()), float(together.step_size)
    refined = _refined(metric, position[moving].astype(np.float64))
    metric = jnp.asarray(refined if mean > 0.5 and _regular(refined, position.dtype) else metric, position.dtype)
    step_size = scalar(first_step * _correction(mean, CAREFUL), target.template)
    return replace(
        together, sampler=make(target, step_size, inverse_mass_matrix=metric), initial=position[:, -1], step_size=step_size,
        inverse_mass_matrix=metric, given=position.shape[1], first_step=first_step,
        ledger=Ledger(tune=together.ledger.tune + draws.ledger.tune + draws.ledger.sample),
    )  # fmt: skip


def _accepted(acceptance: np.ndarray) -> np.ndarray:
    """The mean acceptance of each chain."""
    return np.where(np.isfinite(acceptance), acceptance, 0).mean(1)


def _stuck(accepted: np.ndarray) -> np.ndarray:
    return (accepted < STUCK) & (np.median(accepted) > 0.5)


def _correction(acceptance: float, wanted: float) -> float:
    """The factor on the step size that takes one acceptance to another, within [1/5, 3]."""
    acceptance = min(max(acceptance, 1e-6), 1 - 1e-6)
    return float(np.clip(np.sqrt(ndtri(1 - wanted / 2) / ndtri(1 - acceptance / 2)), 0.2, 3.0))


def _agree(history: np.ndarray) -> bool:
    """Whether the R-hat of Gelman and Rubin is at most AGREEMENT in every coordinate of [chain, draw, d]."""
    within = history.var(1, ddof=1).mean(0)
    between = history.mean(1).var(0, ddof=1)
    return bool((between <= (AGREEMENT**2 - 1) * within).all())


def _unknowns(metric: np.ndarray) -> int:
    """What decides how many draws a metric wants: its dimension for a covariance, 1 for variances, each of its own."""
    return metric.shape[0] if metric.ndim == 2 else 1


def _refined(metric: np.ndarray, history: np.ndarray) -> np.ndarray:
    flat = history.reshape(-1, history.shape[-1])
    weight = len(flat) / (len(flat) + WELL_SEEN * _unknowns(metric))
    with np.errstate(over="ignore", invalid="ignore"):
        pooled = np.cov(flat, rowvar=False).reshape(metric.shape) if metric.ndim == 2 else flat.var(0, ddof=1)
        return weight * pooled + (1 - weight) * metric


def _regular(metric: np.ndarray, dtype: np.dtype) -> bool:
    """Whether a covariance, or variances, are finite and positive (definite) in the events' dtype."""
    with np.errstate(over="ignore", invalid="ignore"):
        metric = metric.astype(dtype)
    if not np.isfinite(metric).all():
        return False
    if metric.ndim == 1:
        return bool((metric > 0).all())
    try:
        np.linalg.cholesky(metric)
    except np.linalg.LinAlgError:
        return False
    return True
