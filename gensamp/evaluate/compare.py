"""compare: samplers of both halves on one target, on one scale, with what each of them cost.

Each row is tuned or fitted, sampled and evaluated in this run; nothing in a Comparison comes from anywhere else. A learned
map also runs with its network untrained (the parameters `init` gave), so that a table cannot hide a fit that learned nothing.
Held equal are the judge (one reference, the same number of draws beside one floor), the tuning steps and draws of every
chain, and the events every fit learns from; `Comparison.held_equal` says it in words. Evaluations and seconds are then what
differs, and both are reported. A run that was cut short is no row: Ctrl-C ends the comparison before the row in hand.
"""

import dataclasses
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from gensamp.core import Ledger, Model, Sampler, Target, Truth, check_key
from gensamp.evaluate.comparison import BUDGETS, Budget, Comparison, Point, Row
from gensamp.evaluate.cost import cost_of
from gensamp.evaluate.judge import Judge
from gensamp.evaluate.long_run import with_long_run
from gensamp.evaluate.report import evaluate, in_order

__all__ = ["compare"]

_KEPT = 2_000
_MOST = 10_000


@dataclass(frozen=True)
class _Candidate:
    name: str
    title: str
    half: str
    make: Callable[[], Sampler | Model]
    kernel: Callable[..., Sampler] | None
    events: bool | None
    training: Mapping[str, Any]
    acceptance: float = 0.8


def compare(
    key: jax.Array,
    target: Any,
    samplers: Any = None,
    budget: Any = "small",
    *,
    progress: bool | None = None,
) -> Comparison:
    """Run samplers on one target and judge them alike.

    Args:
        key: a typed key; a row depends on it and on the row's name only.
        target: any Target. Data without held-out events are split: four fifths to learn from, the rest to judge by. A
            density without exact or reference draws is judged by a long NUTS run, and the report says so.
        samplers: None for the registered ones that are compared by default and apply; names of registered ones, or "all"; or a
            dict from names to Samplers, Models or functions (target) -> Sampler | Model. Chains of yours are run as they are,
            after a warm-up; Models are fitted.
        budget: "tiny", "small", "full", or a Budget.
        progress: a bar over the rows; by default only in a terminal or a notebook.

    Returns:
        Comparison. A sampler that raises becomes a row that says why. After Ctrl-C it holds the rows that were finished, and
        names the others in `unfinished`.

    Raises:
        ValueError: an unknown name or budget, nothing to compare, or a target that offers nothing to judge by.
        TypeError: something in the dict is neither a Sampler, nor a Model, nor a function that makes one.
        KeyboardInterrupt: Ctrl-C before the first row was finished.
    """
    from gensamp.runner import shown

    check_key(key)
    if not isinstance(target, Target):
        raise TypeError(f"compare got {type(target).__name__} as its target; expected a Target, such as gs.targets.banana()")
    budget = BUDGETS.get(budget, budget) if isinstance(budget, str) else budget
    if not isinstance(budget, Budget):
        raise ValueError(f"budget is {budget!r}; expected one of {', '.join(BUDGETS)}, or a Budget")
    candidates, skipped = _candidates(samplers, target, budget)
    started = time.perf_counter()
    target = _with_reference(jax.random.fold_in(key, 3), target)
    judge = Judge.of(
        jax.random.fold_in(key, 0),
        target,
        num_draws=budget.finite_draws,
        num_reference=budget.reference,
        replicates=budget.replicates,
    )
    events = _events(jax.random.fold_in(key, 1), target, budget)
    rows, fits = [], []
    bar = tqdm(candidates, desc=target.name, unit="sampler", disable=not shown(progress))
    for candidate in bar:
        bar.set_postfix_str(candidate.name)
        own = jax.random.fold_in(jax.random.fold_in(key, 2), zlib.crc32(candidate.name.encode()))
        try:
            rows.append(_run(own, candidate, target, budget, judge, events, fits))
        except KeyboardInterrupt:
            if not rows:
                raise
            break
        except Exception as error:
            failure = f"{type(error).__name__}: {error}".splitlines()[0]
            warnings.warn(f"{candidate.name} failed on {target.name}: {failure}", stacklevel=2)
            rows.append(Row(candidate.name, candidate.title, candidate.half, failure=failure))
    bar.close()
    unfinished = tuple(candidate.name for candidate in candidates[len(rows) :])
    if unfinished:
        warnings.warn(f"compare was interrupted; without rows: {', '.join(unfinished)}", stacklevel=2)
    held = _held_equal(budget, judge, candidates[: len(rows)], rows, events)
    return Comparison(target, budget, judge, tuple(rows), skipped, held, time.perf_counter() - started, unfinished)


def _candidates(samplers, target, budget) -> tuple[list[_Candidate], dict[str, str]]:
    from gensamp import registry

    skipped: dict[str, str] = {}
    if isinstance(samplers, Sampler | Model | Target):
        raise TypeError(f"compare got a {type(samplers).__name__} as its samplers; pass a dict {{name: sampler}}")
    if isinstance(samplers, Mapping):
        chosen = [_of_yours(name, made, target, budget) for name, made in samplers.items()]
    else:
        if samplers is not None and not isinstance(samplers, str):
            samplers = list(dict.fromkeys(_names(samplers)))
        asked = registry.choose(samplers)
        skipped = {entry.name: entry.reason(target) for entry in asked if not entry.applicable(target)}
        chosen = [_of_registry(entry, target, budget) for entry in asked if entry.applicable(target)]
    if not chosen:
        raise ValueError(f"nothing to compare on '{target.name}': " + ("; ".join(skipped.values()) or "no sampler was given"))
    return chosen, skipped


def _names(samplers: Any) -> list[str]:
    if not isinstance(samplers, Iterable):
        raise TypeError(f"compare got {type(samplers).__name__} as its samplers; expected names, or a dict {{name: sampler}}")
    names = list(samplers)
    others = sorted({type(name).__name__ for name in names if not isinstance(name, str)})
    if others:
        raise TypeError(f"compare got a list with {', '.join(others)}; pass a dict {{name: sampler}}, or a list of names alone")
    return names


def _of_registry(entry, target, budget) -> _Candidate:
    training = entry.fit_options(budget.name).as_keywords() if entry.makes == "model" else {}
    events = "events" in entry.needs if entry.makes == "model" else None
    return _Candidate(
        entry.name, entry.title, entry.half, lambda: entry.make(target, budget.name), entry.kernel, events, training,
        entry.target_acceptance,
    )  # fmt: skip


def _of_yours(name, made, target, budget) -> _Candidate:
    if not isinstance(name, str) or not name:
        raise TypeError(f"compare got {name!r} as the name of a sampler; expected a string")
    if not isinstance(made, Sampler | Model) and not callable(made):
        raise TypeError(f"'{name}' is {type(made).__name__}; expected a Sampler, a Model or a function (target) -> one of them")
    from gensamp.registry import find

    training = find("realnvp").fit_options(budget.name).as_keywords()
    make = (lambda: made) if isinstance(made, Sampler | Model) else (lambda: made(target))
    return _Candidate(name, name, "yours", make, None, None, training)


def _run(key, candidate, target, budget, judge, events, fits) -> Row:
    from gensamp.runner import sample

    made = candidate.make()
    if not isinstance(made, Sampler | Model):
        raise TypeError(f"'{candidate.name}' made {type(made).__name__}; expected a Sampler or a Model")
    prepare, run = jax.random.split(key)
    row = Row(candidate.name, candidate.title, candidate.half)
    if isinstance(made, Model):
        data = events if candidate.events in (True, None) else None
        fitted, untrained, shares = _fitted(prepare, candidate, made, data, fits)
        sampler = made.sampler(fitted.params if fitted.ema is None else fitted.ema)
        draws = _finite(run, sampler, judge, budget)
        before = evaluate(_finite(run, made.sampler(untrained), judge, budget), target, judge=judge)
        row = dataclasses.replace(row, untrained=before, shares=shares)
        ledger = fitted.ledger + draws.ledger
    elif made.num_steps is not None:
        sampler, draws = made, _finite(run, made, judge, budget)
        ledger = draws.ledger
    elif candidate.kernel is None:
        sampler = made
        drawn = {"num_chains": budget.num_chains, "warmup": budget.tune_steps, "progress": False}
        draws = _whole(sample(run, made, budget.chain_draws, **drawn))
        ledger = draws.ledger
    else:
        tuned, sampler = _tuned(prepare, candidate, target, budget)
        draws = _whole(sample(run, sampler, budget.chain_draws, initial=tuned.initial, progress=False))
        ledger = tuned.ledger + draws.ledger
    draws = dataclasses.replace(draws, ledger=ledger)
    report = evaluate(draws, target, judge=judge)
    x = judge.coordinates(in_order(draws.position))
    return dataclasses.replace(
        row, report=report, curve=_curve(x, draws, ledger, judge), sampler=sampler,
        coordinates=x[np.linspace(0, len(x) - 1, min(len(x), _KEPT)).round().astype(int)],
    )  # fmt: skip


def _tuned(key, candidate, target, budget):
    """What `tune` found, and the sampler.

    A kernel that accepts everything has no acceptance to tune: it takes MALA's metric and a quarter of its step size, which
    leaves it biased, but not by the step that MALA can afford because it rejects.
    """
    from gensamp.adapt import tune
    from gensamp.registry import find

    kernel, acceptance = candidate.kernel, candidate.acceptance
    adjusted = kernel(target, 1.0).traits.law != "approximate"
    if not adjusted:
        mala = find("mala")
        kernel, acceptance = mala.kernel, mala.target_acceptance
    options = {"num_chains": budget.num_chains, "num_steps": budget.tune_steps, "target_acceptance": acceptance}
    tuned = tune(key, kernel, target, progress=False, **options)
    if adjusted:
        return tuned, tuned.sampler
    return tuned, candidate.kernel(target, tuned.step_size / 4, inverse_mass_matrix=tuned.inverse_mass_matrix)


def _finite(key, sampler, judge, budget):
    from gensamp.runner import sample

    return _whole(sample(key, sampler, min(budget.finite_draws, judge.num_draws), progress=False))


def _whole(made):
    """Draws, or Fitted, that cost what every row is given; a run that was cut short is none.

    Raises:
        KeyboardInterrupt: it was interrupted.
        RuntimeError: it failed on the way.
    """
    from gensamp.runner import Draws

    if made.ending == "interrupted" or (isinstance(made, Draws) and made.interrupted):
        raise KeyboardInterrupt(made.message)
    if made.ending == "failed":
        raise RuntimeError(made.message)
    return made


def _fitted(key, candidate, model, data, fits):
    """Fitted, what it started from, and "" or the earlier row whose fit it is: two samplers of one network share one."""
    from gensamp.training import fit

    for name, other, training, fitted, untrained in fits:
        if training == candidate.training and _same((model.init, model.loss), (other.init, other.loss)):
            return fitted, untrained, name
    fitted = _whole(fit(key, model, data, progress=False, **candidate.training))
    # The last step of the default schedule has rate zero: one step alone gives back where this fit started, nothing recompiled.
    untrained = _whole(fit(key, model, data, progress=False, **candidate.training | {"num_steps": 1})).params
    fits.append((candidate.name, model, candidate.training, fitted, untrained))
    return fitted, untrained, ""


def _same(a: Any, b: Any) -> bool:
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def _curve(x, draws, ledger: Ledger, judge) -> tuple[Point, ...]:
    """Prefixes of 10, 30, 100, ... draws and all of them (up to 10,000), each at the bill plus its draws' price."""
    costs = [cost_of(ledger, len(x), unit) for unit in ("evaluations", "seconds")]
    most = min(len(x), _MOST)
    if not np.isfinite(x[:most]).all():
        return ()
    weight = np.ones(most) if draws.log_weight is None else _from_log(in_order(np.asarray(draws.log_weight, np.float64))[:most])
    sizes = sorted({int(size) for size in np.outer(10.0 ** np.arange(1, 4), [1, 3]).ravel() if size < most} | {most})
    prefixes = np.where(np.arange(most)[:, None] < np.array(sizes)[None, :], weight[:, None], 0.0)
    errors, sds = judge.yard.errors(judge.scaled(x[:most]), prefixes / prefixes.sum(0)[None, :])
    return tuple(
        Point(n, costs[0].of(n), costs[1].of(n), float(e), float(sd)) for n, e, sd in zip(sizes, errors, sds, strict=True)
    )


def _from_log(log_weight: np.ndarray) -> np.ndarray:
    # The first draws alone may all have next to no weight; a floor far below rounding keeps every prefix a sample.
    return np.maximum(np.exp(log_weight - log_weight.max()), 1e-30)


def _with_reference(key, target: Target) -> Target:
    """The target, with something to judge by: a fifth of its data held out, or a long NUTS run, if it has nothing better."""
    known = target.truth.reference if target.truth is not None else None
    if target.exact is not None or known is not None or (target.data is None and target.log_density is None):
        return target
    if target.data is None:
        return with_long_run(key, target)
    n = len(jax.tree.leaves(target.data)[0])
    rows = np.random.default_rng(0).permutation(n)
    if n < 50:
        raise ValueError(
            f"target '{target.name}' has {n} events; expected at least 50, a fifth of which are held out to judge by"
        )
    held, kept = rows[: n // 5], rows[n // 5 :]
    truth = dataclasses.replace(target.truth or Truth(), reference=jax.tree.map(lambda a: np.asarray(a)[held], target.data))
    return dataclasses.replace(target, truth=truth, data=jax.tree.map(lambda a: jnp.asarray(np.asarray(a)[kept]), target.data))


def _events(key, target: Target, budget: Budget) -> Any:
    """What learned maps learn from: the target's data, or exact draws; None if it has neither."""
    if target.data is not None or target.exact is None:
        return target.data
    return jax.jit(jax.vmap(target.exact))(jax.random.split(key, budget.events))


def _held_equal(budget, judge, candidates, rows, events) -> tuple[str, ...]:
    judged = sorted({row.report.judged for row in rows if row.report is not None})
    lines = [
        f"Distances: {' or '.join(f'{n:,}' for n in judged)} draws of each row against the same {len(judge.reference):,} exact "
        f"draws ({judge.source}); floors from {budget.replicates} sets of as many exact draws. n_eq: all draws of a row, at "
        "most 10,000."
    ]
    if any(row.report is not None and row.report.chains is not None for row in rows):
        lines.append(
            f"Chains: {budget.num_chains} chains, {budget.tune_steps:,} tuning steps (and a quarter as many to settle), then "
            f"{budget.chain_draws:,} draws each."
        )
    trained = {c.name: c.training for c, row in zip(candidates, rows, strict=True) if row.learned}
    if trained:
        sizes = {}
        for name, options in trained.items():
            sizes.setdefault((options["num_steps"], options["batch_size"]), []).append(name)
        steps = "; ".join(f"{n:,} steps of {b} events: {', '.join(names)}" for (n, b), names in sizes.items())
        learned = "" if events is None else f" from the same {len(jax.tree.leaves(events)[0]):,} events"
        lines.append(f"Learned maps: fitted{learned} ({steps}); those that learn from the density see no events.")
    lines.append("Not held equal: evaluations and seconds, which are the price of a row and stand beside it.")
    return tuple(lines)
