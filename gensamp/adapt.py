"""tune: the statistician's training. It spends a bill once, on a step size and a metric, and hands back a sampler.

Adaptation is itself a `Sampler`. Its position is a dict of the event, the step size, the metric and how things went of late,
its step makes the inner sampler anew from the current step size and metric, moves it once and learns from the move. So the
runner runs it like everything else. Two stages, one program:

1. Every chain for itself, on Stan's schedule (Stan reference manual, "HMC algorithm parameters"): a fast window for the step
   size, doubling slow windows at whose ends the metric becomes the regularised covariance of the window (Welford), a last fast
   window.
2. The metrics of healthy chains are averaged; with the average fixed, every chain adapts its step size again; the result is
   their geometric mean. (A metric from one chain is noisy, and one that differs per chain is no single sampler.) While more
   than one in a thousand of these steps diverges, the step is too long for somewhere the chains go, whatever their mean
   acceptance says: the stage is run again for an acceptance half as far from one, three times at most.

The step size follows dual averaging (Nesterov 2009; Hoffman and Gelman 2014, section 3.2): log eps moves so that the average
acceptance meets its target. Schedule, dual averaging and covariance are blackjax's.
"""

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.adaptation.mass_matrix import mass_matrix_adaptation
from blackjax.adaptation.step_size import dual_averaging_adaptation
from blackjax.adaptation.window_adaptation import build_schedule

from gensamp.core import Ledger, PyTree, Sampler, Static, Target, bind, check_key, scalar

__all__ = ["AdaptState", "Tuned", "adaptation", "tune"]

# A chain that moves in a smaller share of its steps is stuck. (Its acceptance does not tell: the step size shrinks until a
# proposal rounds to where the chain stands, and that is accepted.)
STUCK = 0.05
# Divergences count once dual averaging has tried out steps that are far too long.
DIVERGED, TRIALS, MOST_RAISES = 0.001, 30, 3
# Dual averaging divides the sum of t errors by t + STABILISER (t_0 of Hoffman and Gelman).
STABILISER = 10


@dataclass(frozen=True, eq=False)
class Tuned:
    """What `tune` found.

    sampler: made with the values below. initial: positions [chain, ...] for `sample(initial=)`. ledger: its bill, under `tune`.
    step_size: scalar. inverse_mass_matrix: [d] or [d, d] over the flattened event. acceptance: [chain], near the end of tuning;
    above the one that was asked for where steps diverged.
    """

    sampler: Sampler
    initial: PyTree
    ledger: Ledger
    step_size: jax.Array
    inverse_mass_matrix: jax.Array
    acceptance: np.ndarray


class AdaptState(NamedTuple):
    """inner: the sampler's own state. step, metric: blackjax's adaptation states. step_size, inverse_mass_matrix: in use now.
    moves, divergences: steps since the last restart that changed the position, and (after TRIALS) that diverged.
    """

    inner: Any
    step: Any
    metric: Any
    step_size: Any
    inverse_mass_matrix: Any
    moves: Any
    divergences: Any


def tune(
    key: jax.Array,
    make: Callable[..., Sampler],
    target: Target,
    *,
    num_chains: int | None = None,
    num_steps: int = 1000,
    target_acceptance: float = 0.8,
    metric: str = "diagonal",
    step_size: float = 0.5,
    initial: PyTree = None,
    mesh: Any = None,
    progress: bool | None = None,
) -> Tuned:
    """Find a step size and a metric.

    Args:
        key: a typed key.
        make: (target, step_size, *, inverse_mass_matrix) -> Sampler without end, such as `gs.mcmc.nuts`; its state must depend
            on neither step size nor metric. Pass the same function object again and nothing recompiles.
        target: what to draw from.
        num_chains: chains that adapt side by side; 4 by default, or as `initial` says.
        num_steps: steps of stage 1 per chain; stage 2 adds a quarter as many (up to four times that where steps diverge).
        target_acceptance: mean acceptance to meet, or more where steps diverge. 0.8 suits NUTS and HMC; for MALA 0.574 is best
            (Roberts and Rosenthal 1998), for HMC with a well-chosen length 0.65 (Beskos et al. 2013).
        metric: "diagonal" variances or a "dense" covariance.
        step_size: where the search starts.
        initial: positions [chain, ...] to start from, instead of the sampler's own start.
        mesh, progress: as for `sample`.

    Returns:
        Tuned. Chains that are stuck or not finite at the end of stage 1 are left out of the averages, with a warning.

    Raises:
        ValueError: the sampler is finite or rejects nothing (it then has no acceptance to tune), an argument is out of range,
            or every chain is stuck.
    """
    from gensamp.runner import sample

    check_key(key)
    if not callable(make):
        raise TypeError(
            f"tune got {type(make).__name__}; expected a function (target, step_size) -> Sampler, such as gs.mcmc.nuts"
        )
    if num_chains is None:
        num_chains = 4 if initial is None else len(jax.tree.leaves(initial)[0])
    _check(make(target, step_size), num_chains, num_steps, target_acceptance, metric)
    first, second = jax.random.split(key)
    schedule = np.asarray(build_schedule(num_steps), np.int32).reshape(num_steps, 2)
    settings = {"target_acceptance": target_acceptance, "metric": metric, "step_size": step_size}
    free = adaptation(make, target, schedule=schedule, **settings)
    if initial is not None:
        initial = _spread(free, initial, num_chains)
    run = {"num_chains": num_chains, "mesh": mesh, "progress": progress}
    one = sample(first, free, 1, warmup=num_steps - 1, initial=initial, **run)
    last = _last(one)
    healthy = _healthy(last)
    pooled = {
        "step_size": np.exp(np.log(last["step_size"][healthy]).mean()),
        "inverse_mass_matrix": last["inverse_mass_matrix"][healthy].mean(0),
    }
    start = last | {name: np.repeat(value[None], num_chains, 0) for name, value in pooled.items()}
    # An unhealthy chain stays where it is (a chain that is stuck should show in R-hat), unless it is nowhere.
    finite = _finite_rows(last["position"], num_chains)
    rows = np.where(finite, np.arange(num_chains), np.flatnonzero(healthy)[0])
    start["position"] = jax.tree.map(lambda a: a[rows], last["position"])

    bill, raises = one.ledger.tune + one.ledger.sample, 0
    while True:
        fixed = adaptation(make, target, schedule=np.zeros_like(schedule), **settings)
        two = sample(jax.random.fold_in(second, raises), fixed, 1, warmup=max(num_steps // 4, 50) - 1, initial=start, **run)
        bill += two.ledger.tune + two.ledger.sample
        last = _last(two)
        healthy = _healthy(last)
        if last["diverged"][healthy].mean() <= DIVERGED or raises == MOST_RAISES:
            break
        raises += 1
        settings["target_acceptance"] = (1 + settings["target_acceptance"]) / 2
        start = last
    size = scalar(np.exp(np.log(last["step_size"][healthy]).mean()), target.template)
    inverse_mass_matrix = jnp.asarray(pooled["inverse_mass_matrix"])
    return Tuned(
        sampler=make(target, size, inverse_mass_matrix=inverse_mass_matrix),
        initial=last["position"],
        ledger=Ledger(tune=bill),
        step_size=size,
        inverse_mass_matrix=inverse_mass_matrix,
        acceptance=last["acceptance"],
    )


def adaptation(
    make: Callable[..., Sampler],
    target: Target,
    *,
    schedule: Any,
    target_acceptance: Any = 0.8,
    metric: str = "diagonal",
    step_size: Any = 0.5,
) -> Sampler:
    """Adaptation as a Sampler without end.

    Args:
        make, target, target_acceptance, metric, step_size: as for `tune`.
        schedule: int [steps, 2] as from blackjax's `build_schedule`: in column 0 whether the step teaches the metric, in column
            1 whether the metric is renewed after it. Later steps repeat the last row.

    Returns:
        A Sampler whose position is a dict: position (like one event), step_size [], inverse_mass_matrix [d] or [d, d],
            acceptance [], moved [] and diverged [] (means since the last restart). The step size shown is the averaged one,
            the one to use.
            Its evaluations per step are the inner sampler's.
    """
    # Name, data and truth do not enter the program, so they must not key its compilation.
    bare = dataclasses.replace(target, name="", data=None, truth=None, constrain=None)
    size = sum(int(np.prod(a.shape)) for a in jax.tree.leaves(target.template))
    step_size = scalar(step_size, target.template)
    identity = jnp.ones((size,), step_size.dtype) if metric == "diagonal" else jnp.eye(size, dtype=step_size.dtype)
    rule = (Static(make), bare, scalar(target_acceptance, target.template), Static(metric == "diagonal"))
    return Sampler(
        start=bind(_start, make(bare, step_size).start, step_size, identity),
        init=bind(_init, *rule),
        step=bind(_step, *rule, jnp.asarray(schedule, jnp.int32)),
        position=bind(_position, *rule),
        traits=make(bare, step_size).traits,
    )


def _start(start, step_size, inverse_mass_matrix, key):
    zero = jnp.zeros_like(step_size)
    return {
        "position": start(key), "step_size": step_size, "inverse_mass_matrix": inverse_mass_matrix,
        "acceptance": zero, "moved": zero, "diverged": zero,
    }  # fmt: skip


def _init(make, target, acceptance, diagonal, key, z):
    step_size, inverse_mass_matrix = z["step_size"], z["inverse_mass_matrix"]
    inner = make.value(target, step_size, inverse_mass_matrix=inverse_mass_matrix).init(key, z["position"])
    step = dual_averaging_adaptation(acceptance, STABILISER)[0](step_size)
    metric = mass_matrix_adaptation(diagonal.value)[0](inverse_mass_matrix.shape[0], inverse_mass_matrix)
    # blackjax starts its counters as Python numbers and its moments in the default dtype.
    step, metric = jax.tree.map(lambda a: _like(a, step_size.dtype), (step, metric))
    none = jnp.zeros_like(step.step)
    return AdaptState(inner, step, metric, step_size, inverse_mass_matrix, none, none)


def _step(make, target, acceptance, diagonal, schedule, key, state, index):
    sampler = make.value(target, state.step_size, inverse_mass_matrix=state.inverse_mass_matrix)
    inner, info = sampler.step(key, state.inner, index)
    restart, learn, average = dual_averaging_adaptation(acceptance, STABILISER)
    _, observe, renew = mass_matrix_adaptation(diagonal.value)
    slow, window_ends = schedule[jnp.minimum(index, schedule.shape[0] - 1)]

    accepted = jnp.where(jnp.isfinite(info.acceptance), info.acceptance, 0).astype(state.step_size.dtype)
    step = learn(state.step, accepted)
    metric = jax.lax.cond(slow == 1, lambda m: _cast(observe(m, sampler.position(inner)), m), lambda m: m, state.metric)
    step, metric = jax.lax.cond(
        window_ends == 1,
        lambda s, m: (_cast(restart(average(s)), state.step), _cast(renew(m), m)),
        lambda s, m: (_cast(s, state.step), m),
        step,
        metric,
    )
    before, after = (jax.tree.leaves(sampler.position(s)) for s in (state.inner, inner))
    moved = jnp.stack([(a != b).any() for a, b in zip(before, after, strict=True)]).any()
    moves, divergences = (
        jnp.where(window_ends == 1, 0, count + more)
        for count, more in ((state.moves, moved), (state.divergences, info.diverged & (step.step > TRIALS)))
    )
    state = AdaptState(inner, step, metric, jnp.exp(step.log_step_size), metric.inverse_mass_matrix, moves, divergences)
    return state, dataclasses.replace(info, extra=())


def _position(make, target, acceptance, diagonal, state):
    del diagonal
    sampler = make.value(target, state.step_size, inverse_mass_matrix=state.inverse_mass_matrix)
    learned = state.step.step - 1
    error = state.step.avg_error * (learned + STABILISER) / jnp.maximum(learned, 1)
    return {
        "position": sampler.position(state.inner),
        # Right after a restart there is nothing to average yet.
        "step_size": jnp.where(learned > 0, jnp.exp(state.step.log_step_size_avg), state.step_size),
        "inverse_mass_matrix": state.inverse_mass_matrix,
        "acceptance": acceptance - error,
        "moved": (state.moves / jnp.maximum(learned, 1)).astype(acceptance.dtype),
        "diverged": (state.divergences / jnp.maximum(learned - TRIALS, 1)).astype(acceptance.dtype),
    }


def _like(value, dtype):
    value = jnp.asarray(value)
    return value.astype(dtype if jnp.issubdtype(value.dtype, jnp.floating) else jnp.int32)


def _cast(new, old):
    return jax.tree.map(lambda a, b: jnp.asarray(a).astype(b.dtype), new, old)


def _check(sampler, num_chains, num_steps, target_acceptance, metric) -> None:
    if sampler.num_steps is not None:
        raise ValueError("tune got a finite sampler; expected a chain without end, such as gs.mcmc.nuts")
    if sampler.traits.law == "approximate":
        raise ValueError(
            "tune adapts a step size to an acceptance probability, and this sampler accepts everything (its law is "
            "approximate); choose its step size by hand, or tune mala, hmc or nuts"
        )
    if not 0 < target_acceptance < 1:
        raise ValueError(f"target_acceptance is {target_acceptance}; expected a probability between 0 and 1")
    if metric not in ("diagonal", "dense"):
        raise ValueError(f"metric is {metric!r}; expected 'diagonal' or 'dense'")
    for name, value, least in (("num_chains", num_chains, 1), ("num_steps", num_steps, 20)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is {value!r}; expected an integer of at least {least}")


def _spread(sampler: Sampler, initial: PyTree, num_chains: int) -> PyTree:
    """Positions [chain, ...] as positions of the adaptation."""
    first = sampler.start(jax.random.key(0))
    rest = {name: np.repeat(np.asarray(first[name])[None], num_chains, 0) for name in first if name != "position"}
    return {"position": initial} | rest


def _last(draws) -> dict[str, Any]:
    if draws.ending not in ("finished", "converged"):
        raise RuntimeError(f"tune {draws.ending}: {draws.message}; run it again")
    return jax.tree.map(lambda a: np.asarray(a[:, -1]), draws.position)


def _finite_rows(tree: PyTree, rows: int) -> np.ndarray:
    return np.all([np.isfinite(a).reshape(rows, -1).all(1) for a in jax.tree.leaves(tree)], axis=0)


def _healthy(last: dict[str, Any]) -> np.ndarray:
    """[chain]: finite throughout, and moving."""
    healthy = _finite_rows(last, len(last["moved"])) & (last["moved"] > STUCK)
    if not healthy.any():
        raise ValueError(
            f"tune found every chain stuck or not finite (share of steps that moved: {last['moved'].round(3).tolist()}); start "
            "from other positions (initial=), or check that the log density is finite and smooth there"
        )
    if not healthy.all():
        warnings.warn(f"tune left out chains {np.flatnonzero(~healthy).tolist()}, which are stuck or not finite", stacklevel=3)
    return healthy
