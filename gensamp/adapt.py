"""tune: the statistician's training. It spends a bill once, on a step size and a metric, and hands back a sampler.

Adaptation is itself a `Sampler`, so the runner runs it like everything else. Three of them, each in a file of its own:

    windows   every chain for itself, on Stan's schedule: step size and metric of any kernel that rejects  `adapt_windows.py`
    chees     many chains together: step size, metric and path length of `dynamic_hmc`                     `adapt_chees.py`
    meads     many chains together: step size, metric and damping of `ghmc`                                `adapt_meads.py`

Each runs in two stages of one program. The first learns the metric. In the second it is fixed - the mean of what healthy chains
found, where each has its own - and the numbers are learned again, and averaged. (A metric from one chain is noisy, and one that
differs per chain is no single sampler.) In its last third they are held at their averages, to see how they do. While more than
one in a thousand of these steps diverges, the step is too long for somewhere the chains go, whatever their mean acceptance
says: the stage is run again for an acceptance half as far from one (with half the step, where nothing is asked of the
acceptance), three times at most.
"""

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gensamp import adapt_chees, adapt_meads, adapt_windows
from gensamp.adapt_metric import METRICS, learner
from gensamp.core import Bill, Ledger, PyTree, Sampler, Target, check_key, scalar

__all__ = ["Tuned", "tune"]

# A chain that moves in a smaller share of its steps is stuck. (Its acceptance does not tell: the step size shrinks until a
# proposal rounds to where the chain stands, and that is accepted.)
STUCK = 0.05
DIVERGED, MOST_RAISES = 0.001, 3


@dataclass(frozen=True, eq=False)
class Tuned:
    """What `tune` found: sampler is make(target, step_size, inverse_mass_matrix=inverse_mass_matrix, **settings).

    initial: positions [chain, ...] for `sample(initial=)`. ledger: its bill, under `tune`. step_size: scalar.
    inverse_mass_matrix: [d] or [d, d] over the flattened event. acceptance: [chain], near the end of tuning; above the one that
    was asked for where steps diverged. settings: what else the method found, scalars: trajectory_length of "chees", alpha and
    delta of "meads".
    """

    sampler: Sampler
    initial: PyTree
    ledger: Ledger
    step_size: jax.Array
    inverse_mass_matrix: jax.Array
    acceptance: np.ndarray
    settings: dict[str, jax.Array] = field(default_factory=dict)


@dataclass(frozen=True)
class _Method:
    """How one method is run. wants: keywords that `make` must take; kernel: one that does. together: whether its chains are one
    population. num_chains, num_steps, target_acceptance: defaults (None: it has no acceptance to meet)."""

    wants: tuple[str, ...]
    kernel: str
    together: bool
    num_chains: int
    num_steps: int
    target_acceptance: float | None


_METHODS = {
    "windows": _Method((), "nuts", False, 4, 1000, 0.8),
    "chees": _Method(("trajectory_length", "report_path"), "dynamic_hmc", True, 64, 500, 0.651),
    "meads": _Method(("alpha", "delta"), "ghmc", True, 64, 2000, None),
}


def tune(
    key: jax.Array,
    make: Callable[..., Sampler],
    target: Target,
    *,
    method: str = "windows",
    num_chains: int | None = None,
    num_steps: int | None = None,
    target_acceptance: Any = None,
    metric: str = "diagonal",
    starts: str | None = None,
    step_size: float = 0.5,
    initial: PyTree = None,
    mesh: Any = None,
    progress: bool | None = None,
) -> Tuned:
    """Find a step size and a metric, and what else the kernel has to be told.

    Args:
        key: a typed key.
        make: (target, step_size, *, inverse_mass_matrix) -> Sampler without end, such as `gs.mcmc.nuts`; its state must depend
            on neither step size nor metric. "chees" wants `gs.mcmc.dynamic_hmc`, "meads" `gs.mcmc.ghmc`, or a function that
            passes everything on to them. Pass the same function object again and nothing recompiles.
        target: what to draw from.
        method: "windows", each of a few chains for itself; or many chains together: "chees" or "meads".
        num_chains: chains that adapt side by side; 4 by default (64 together), or as `initial` says. "meads" wants a multiple
            of 4, and both work better with more.
        num_steps: steps of stage 1 per chain, 1000 by default ("chees" 500, "meads" 2000, of one gradient each); stage 2 adds a
            quarter as many (up to four times that where steps diverge).
        target_acceptance: mean acceptance to meet, or more where steps diverge: by default 0.8, which suits NUTS and HMC; for
            MALA 0.574 is best (Roberts and Rosenthal 1998). "chees" means the harmonic mean over chains, by default 0.651
            (Beskos et al. 2013). "meads" has none.
        metric: "diagonal" variances, a "dense" covariance, or "low_rank": variances and up to 10 directions, for windows
            shorter than the event; handed on as [d, d]; see `adapt_metric.py`. Of other than "chees" and "meads" it costs a
            gradient more in the steps that teach it.
        starts: None, the sampler's own; "laplace" or "pathfinder": chains let down to a normal approximation, thrown off by
            twice its standard deviation, its covariance the first metric; see `adapt_starts.py` on what R-hat then means.
        step_size: where the search starts ("meads" needs none).
        initial: positions [chain, ...] to start from (with `starts`, to let down from), instead of the sampler's own start.
        mesh, progress: as for `sample`; chains that adapt together stay on one device.

    Returns:
        Tuned. Chains that are stuck or not finite at the end of stage 1 are left out of the averages, with a warning. Where
        chains adapt together those are few among many, and they teach like the others.

    Raises:
        ValueError: the sampler is finite or rejects nothing (it then has no acceptance to tune), the method does not fit the
            kernel, an argument is out of range, or every chain is stuck.
        KeyboardInterrupt: it was interrupted; what was learned so far is lost.
    """
    from gensamp.runner import sample

    check_key(key)
    if not callable(make):
        raise TypeError(
            f"tune got {type(make).__name__}; expected a function (target, step_size) -> Sampler, such as gs.mcmc.nuts"
        )
    how = _read_method(method, make)
    made = make(target, step_size)
    if initial is not None:
        initial = _read_initial(target, initial, num_chains)
    if num_chains is None:
        num_chains = how.num_chains if initial is None else len(jax.tree.leaves(initial)[0])
    num_steps = how.num_steps if num_steps is None else num_steps
    _check(made, how, num_chains, num_steps, target_acceptance, metric, starts, mesh)
    asked = how.target_acceptance if target_acceptance is None else target_acceptance
    first, second = jax.random.split(key)
    bill, begun = Bill(), {}
    if starts is not None:
        from gensamp.adapt_starts import start_chains

        aside = jax.random.fold_in(key, 1)
        initial, covariance, bill = start_chains(aside, target, num_chains, how=starts, initial=initial)
        if learner(metric).dense != (covariance.ndim == 2):
            covariance = np.diag(covariance)
        begun = {"inverse_mass_matrix": covariance, "trajectory_length": adapt_chees.QUARTER}
    stages = {"make": make, "target": target, "metric": metric, "num_steps": num_steps, "step_size": step_size}
    stages |= {"num_chains": num_chains, "known": starts is not None}
    run = {"num_chains": 1 if how.together else num_chains, "mesh": mesh, "progress": progress}

    free = _stage(method, **stages, asked=asked)
    start = None if initial is None else _spread(free, initial, num_chains, begun)
    one = sample(first, free, 1, warmup=num_steps - 1, initial=_grouped(start, how), **run)
    bill += one.ledger.tune + one.ledger.sample
    last = _last(one)
    healthy = _healthy(last)
    pooled = {"inverse_mass_matrix": last["inverse_mass_matrix"][healthy].mean(0)}
    pooled |= {name: _centre(last[name][healthy]) for name in ("step_size", "trajectory_length", "damping") if name in last}
    start = last | {name: np.repeat(value[None], num_chains, 0) for name, value in pooled.items()}
    # An unhealthy chain stays where it is (a chain that is stuck should show in R-hat), unless it is nowhere.
    finite = _finite_rows(last["position"], num_chains)
    rows = np.where(finite, np.arange(num_chains), np.flatnonzero(healthy)[0])
    start["position"] = jax.tree.map(lambda a: a[rows], last["position"])

    raises = 0
    spent = max(num_steps // 4, 50)
    while True:
        fixed = _stage(method, **stages, asked=asked, spent=spent, raises=raises)
        keyed = jax.random.fold_in(second, raises)
        two = sample(keyed, fixed, 1, warmup=spent - 1, initial=_grouped(start, how), **run)
        bill += two.ledger.tune + two.ledger.sample
        last = _last(two)
        healthy = _healthy(last)
        if last["diverged"][healthy].mean() <= DIVERGED or raises == MOST_RAISES:
            break
        raises += 1
        start = last
    size, matrix = scalar(_centre(last["step_size"][healthy]), target.template), jnp.asarray(pooled["inverse_mass_matrix"])
    settings = {}
    if method == "chees":
        settings = {"trajectory_length": scalar(last["trajectory_length"][0], target.template)}
    elif method == "meads":
        alpha = adapt_meads.share(size, scalar(last["damping"][0], target.template))
        settings = {"alpha": alpha, "delta": alpha / 2}
    return Tuned(
        sampler=make(target, size, inverse_mass_matrix=matrix, **settings),
        initial=last["position"],
        ledger=Ledger(tune=bill),
        step_size=size,
        inverse_mass_matrix=matrix,
        acceptance=last["acceptance"],
        settings=settings,
    )


def _stage(method, *, make, target, metric, num_steps, step_size, num_chains, known, asked, spent=None, raises=0) -> Sampler:
    """The adaptation that learns everything; or, for `spent` steps, everything but the metric. Same shapes: one program."""
    learning = spent is None
    if method == "meads":
        schedule = adapt_meads.second_half(num_steps) if learning else adapt_windows.settled(num_steps, spent)
        flags = {"free": learning, "multiplier": 0.5 ** (1 + raises)}
        return adapt_meads.adaptation(make, target, num_chains=num_chains, schedule=schedule, metric=metric, **flags)
    schedule = adapt_windows.windows(num_steps) if learning else adapt_windows.settled(num_steps, spent)
    # Until there is a metric to measure a path by, it is short.
    short = int(np.argmax(schedule[:, 1])) + 1 if learning and not known and schedule[:, 1].any() else 0
    options = {"schedule": schedule, "metric": metric, "step_size": step_size}
    options["target_acceptance"] = 1 - (1 - asked) / 2**raises
    if method == "windows":
        return adapt_windows.adaptation(make, target, calm=not learning, **options)
    return adapt_chees.adaptation(make, target, num_chains=num_chains, short=short, **options)


def _read_method(method, make) -> _Method:
    if method not in _METHODS:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(map(repr, _METHODS))}")
    how = _METHODS[method]
    takes = inspect.signature(make).parameters
    anything = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in takes.values())
    missing = [name for name in how.wants if name not in takes and not anything]
    if "inverse_mass_matrix" not in takes and not anything:
        raise ValueError(
            "tune finds a step size and a metric, and the function it got takes no inverse_mass_matrix; expected (target, "
            "step_size, *, inverse_mass_matrix) -> Sampler, such as gs.mcmc.nuts"
        )
    if missing:
        name = getattr(make, "__name__", type(make).__name__)
        raise ValueError(
            f"tune(method='{method}') adapts gs.mcmc.{how.kernel}, and {name} takes no {' and no '.join(missing)}; pass "
            f"gs.mcmc.{how.kernel}, or tune {name} by method='windows'"
        )
    return how


def _read_initial(target: Target, initial: PyTree, num_chains) -> PyTree:
    """Positions [chain, ...] as arrays, or a ValueError of one sentence."""
    initial = jax.tree.map(np.asarray, initial)
    given, wanted = jax.tree.leaves(initial), jax.tree.leaves(target.template)
    alike = jax.tree.structure(initial) == jax.tree.structure(target.template)
    if not alike or any(a.shape[1:] != b.shape or a.ndim == 0 for a, b in zip(given, wanted, strict=True)):
        got = jax.tree.map(lambda a: list(a.shape), initial)
        expected = jax.tree.map(lambda a: ["chain", *a.shape], target.template)
        raise ValueError(f"tune got initial of shapes {got}; expected positions of shapes {expected}")
    if not all(a.dtype.kind in "fiu" and np.isfinite(a).all() for a in given):
        raise ValueError("tune got initial positions that are not finite numbers; expected finite ones")
    chains = {len(a) for a in given}
    if len(chains) > 1 or (num_chains is not None and chains != {num_chains}):
        asked = "" if num_chains is None else f" and num_chains={num_chains}"
        raise ValueError(f"tune got initial positions for {sorted(chains)} chains{asked}; expected one number of chains")
    return initial


def _check(sampler, how, num_chains, num_steps, target_acceptance, metric, starts, mesh) -> None:
    if sampler.num_steps is not None:
        raise ValueError("tune got a finite sampler; expected a chain without end, such as gs.mcmc.nuts")
    if sampler.traits.law == "approximate":
        raise ValueError(
            "tune adapts a step size to an acceptance probability, and this sampler accepts everything (its law is "
            "approximate); choose its step size by hand, or tune mala, hmc or nuts"
        )
    if target_acceptance is not None and how.target_acceptance is None:
        raise ValueError("method='meads' reads the step size off the gradients; leave target_acceptance out")
    number = isinstance(target_acceptance, int | float | np.integer | np.floating)
    if target_acceptance is not None and not (number and 0 < target_acceptance < 1):
        raise ValueError(f"target_acceptance is {target_acceptance!r}; expected a probability between 0 and 1")
    for name, value, known in (("metric", metric, METRICS), ("starts", starts, (None, "laplace", "pathfinder"))):
        if value not in known:
            *others, last = map(repr, known)
            raise ValueError(f"{name} is {value!r}; expected {', '.join(others)} or {last}")
    fewest = 8 if how.together else 1
    for name, value, least in (("num_chains", num_chains, fewest), ("num_steps", num_steps, 20)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is {value!r}; expected an integer of at least {least}")
    if how.kernel == "ghmc" and num_chains % adapt_meads.FOLDS:
        raise ValueError(f"num_chains is {num_chains}; method='meads' deals chains into {adapt_meads.FOLDS} equal folds")
    if how.together and mesh is not None:
        raise ValueError("mesh spreads chains over devices, and chains that adapt together stay on one; leave it out")


def _spread(sampler: Sampler, initial: PyTree, num_chains: int, begun: dict[str, Any]) -> PyTree:
    """Positions [chain, ...] as positions of the adaptation, with what is known to begin with instead of its own start."""
    first = sampler.start(jax.random.key(0))
    rows = {name: np.asarray(first[name]) for name in first if name != "position"}
    if sampler.traits.population == 1:
        rows = {name: np.repeat(value[None], num_chains, 0) for name, value in rows.items()}
    known = {name: np.repeat(np.asarray(value)[None], num_chains, 0) for name, value in begun.items() if name in rows}
    return {"position": initial} | rows | known


def _grouped(start: PyTree, how: _Method) -> PyTree:
    """For a population all chains are one run."""
    return jax.tree.map(lambda a: np.asarray(a)[None], start) if how.together else start


def _last(draws) -> dict[str, Any]:
    if draws.interrupted:
        raise KeyboardInterrupt(f"tune was {draws.message or 'interrupted'}")
    if draws.ending not in ("finished", "converged"):
        raise RuntimeError(f"tune {draws.ending}: {draws.message}; run it again")
    return jax.tree.map(lambda a: np.asarray(a[:, -1]), draws.position)


def _centre(values: np.ndarray) -> np.ndarray:
    """The geometric mean."""
    return np.asarray(np.exp(np.log(values).mean()))


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
