"""evaluate: everything that can be said of draws from a target, each number beside what exact draws would give.

`evaluate(draws, target)` is one function for all families. Draws of a chain additionally get ESS and R-hat; draws with
weights have them in every statistic; draws that are not finite are counted, left out of the statistics, and cost the verdict.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from gensamp.core import Bill, Ledger, Target
from gensamp.evaluate.chains import FEWEST_DRAWS, Chains, diagnose_coordinates, ess_weights
from gensamp.evaluate.distances import Distance
from gensamp.evaluate.equivalent import EquivalentSize
from gensamp.evaluate.judge import Judge
from gensamp.evaluate.modes import Coverage, mode_coverage

__all__ = ["MeanError", "Report", "evaluate", "in_order", "plain"]

_MOST_FOR_EQUIVALENT = 10_000


@dataclass(frozen=True)
class MeanError:
    """The coordinate whose mean is worst: its error in the target's sd, and in standard errors (draws and truth together)."""

    name: str
    bias: float
    z: float


@dataclass(frozen=True)
class Report:
    """What `evaluate` found.

    num_draws: over all chains. judged: draws behind the two distances, evenly thinned from all. nonfinite, divergences: counts.
    acceptance: mean. chains: diagnostics per coordinate, or None for independent draws. ess_weights: Kish's, or None. energy,
    sliced: distances to exact draws beside their floors. equivalent: the equivalent sample size of (at most 10,000 of) the
    draws. mean: the worst mean, against the judge's exact draws. reference_mean: the same against the target's reference
    draws where the judge's draws are others.
    coverage: modes, or None. ledger: what the draws cost. source: where the exact draws come from. notes: sentences on numbers
    that are missing or left out draws. Coordinates are the judge's: the user's quantities where the target has a constrain.
    """

    num_draws: int
    judged: int
    nonfinite: int
    divergences: int
    acceptance: float
    chains: Chains | None
    ess_weights: float | None
    energy: Distance | None
    sliced: Distance | None
    equivalent: EquivalentSize | None
    mean: MeanError | None
    reference_mean: MeanError | None
    coverage: Coverage | None
    ledger: Ledger
    source: str
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """Is "indistinguishable" when neither distance tells the draws from exact ones and all are finite."""
        if self.energy is None or self.sliced is None or self.nonfinite:
            return "distinguishable"
        same = self.energy.verdict == self.sliced.verdict == "indistinguishable"
        return "indistinguishable" if same else "distinguishable"

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts, ready for JSON (NaN and infinity as None)."""
        out: dict[str, Any] = {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)} | {
            "verdict": self.verdict
        }
        for name in ("energy", "sliced"):
            if (distance := getattr(self, name)) is not None:
                out[name]["verdict"] = distance.verdict
        return out


def evaluate(draws: Any, target: Any, *, judge: Any = None, key: jax.Array | None = None) -> Report:
    """Judge draws against what is known of their target.

    Args:
        draws: `Draws` of a run, or a tree of positions: [chain, draw, ...event] as in Draws ([1, draw, ...event] is taken for
            independent draws).
        target: what they should be draws from. It needs an exact sampler, reference draws or data.
        judge: a `Judge` of this target, to share one reference between several calls.
        key: for the judge's exact draws, if none is given; jax.random.key(0) by default.

    Returns:
        A Report. It costs no evaluation of the target's density.

    Raises:
        ValueError: the target offers nothing to judge against, or positions do not look like its events.
        TypeError: the target is no Target, or the judge no Judge.
    """
    if not isinstance(target, Target):
        raise TypeError(f"evaluate got {type(target).__name__} as its target; expected evaluate(draws, target) with a Target")
    if judge is not None and not isinstance(judge, Judge):
        raise TypeError(f"evaluate got {type(judge).__name__} as its judge; expected a Judge, Judge.of(key, target)")
    position = getattr(draws, "position", draws)
    _check_events(position, target)
    judge = Judge.of(jax.random.key(0) if key is None else key, target) if judge is None else judge
    lead = jax.tree.leaves(position)[0].shape[:2]
    info = getattr(draws, "info", None)
    is_chain = lead[0] > 1 if info is None else np.ndim(info.gradients) == 0
    events = in_order(position)
    log_weight = getattr(draws, "log_weight", None)
    x = judge.coordinates(events)
    finite = np.isfinite(x).all(1)
    weight = _weights(log_weight, finite)
    chains = None
    if is_chain and lead[1] >= FEWEST_DRAWS:
        chains = diagnose_coordinates(x.reshape(lead[1], lead[0], -1).swapaxes(0, 1), judge.names)
    known: dict[str, Any] = dict(
        num_draws=len(x), nonfinite=int((~finite).sum()), chains=chains,
        divergences=0 if info is None else int(np.sum(info.diverged)),
        acceptance=float("nan") if info is None else float(np.mean(info.acceptance)),
        ess_weights=None if log_weight is None else ess_weights(np.ravel(log_weight)),
        ledger=getattr(draws, "ledger", Ledger()), source=judge.source,
        notes=_noticed(finite, chains, lead[1] if is_chain else None),
    )  # fmt: skip
    if finite.sum() < 2:
        return Report(
            judged=0, energy=None, sliced=None, equivalent=None, mean=None, reference_mean=None, coverage=None, **known
        )
    x = x[finite]
    scaled = judge.scaled(x)
    few, many = _thinned(len(x), judge.num_draws), _thinned(len(x), _MOST_FOR_EQUIVALENT)
    return Report(
        judged=len(few),
        energy=judge.energy(scaled[few], _rows(weight, few)),
        sliced=judge.sliced(scaled[few], _rows(weight, few)),
        equivalent=judge.yard.equivalent(scaled[many], _rows(weight, many)),
        mean=_mean_error(x, weight, chains, judge.names, judge.moments),
        reference_mean=None
        if judge.reference_moments is None
        else _mean_error(x, weight, chains, judge.names, judge.reference_moments),
        coverage=_coverage(jax.tree.map(lambda a: a[finite], events), weight, target),
        **known,
    )


def in_order(position: Any) -> Any:
    """[chain, draw, ...] as [draw * chain, ...]: first draws of all chains first, so that prefixes are runs cut short."""
    return jax.tree.map(lambda a: np.swapaxes(np.asarray(a), 0, 1).reshape(-1, *a.shape[2:]), position)


def _noticed(finite: np.ndarray, chains: Chains | None, draws_per_chain: int | None) -> tuple[str, ...]:
    """Why a number is NaN, missing, or of fewer draws than there are."""
    notes, lost = [], int((~finite).sum())
    if lost:
        which = f"{lost:,} of {len(finite):,} draws {'is' if lost == 1 else 'are'} not finite and left out of every statistic"
        notes.append(which + ", and ESS and R-hat of the coordinates they touch are NaN" * (chains is not None))
    if len(finite) - lost < 2:
        notes.append("there are no distances, errors or n_eq, which need at least 2 draws that are finite")
    if chains is None and draws_per_chain is not None:
        notes.append(
            f"there are no ESS and R-hat, which need at least {FEWEST_DRAWS} draws per chain, and got {draws_per_chain}"
        )
    if chains is not None and not lost and np.isnan(chains.ess_bulk).any():
        still = [name for name, size in zip(chains.names, chains.ess_bulk, strict=True) if np.isnan(size)]
        more = f" and {len(still) - 1} more" if len(still) > 1 else ""
        notes.append(f"ESS and R-hat of {still[0]}{more} are NaN, since a chain never moved there")
    return tuple(notes)


def _check_events(position, target) -> None:
    got = jax.tree.map(lambda a: tuple(np.shape(a)), position)
    want = jax.tree.map(lambda a: a.shape, target.template)
    same = jax.tree.structure(position) == jax.tree.structure(target.template)
    if not same or any(
        np.ndim(a) < 2 or np.shape(a)[2:] != b.shape or not np.size(a)
        for a, b in zip(jax.tree.leaves(position), jax.tree.leaves(target.template), strict=True)
    ):
        raise ValueError(f"positions have shapes {got}; expected [chain, draw, ...] of events {want} of target '{target.name}'")


def _weights(log_weight, finite) -> np.ndarray | None:
    if log_weight is None:
        return None
    log_weight = np.swapaxes(np.asarray(log_weight, np.float64), 0, 1).reshape(-1)[finite]
    log_weight = np.where(np.isfinite(log_weight), log_weight, -np.inf)
    return np.exp(log_weight - log_weight.max()) if np.isfinite(log_weight).any() else np.ones(len(log_weight))


def _rows(weight, rows):
    return None if weight is None else weight[rows]


def _thinned(n: int, most: int) -> np.ndarray:
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).round().astype(int)


def _mean_error(x, weight, chains, names, moments) -> MeanError:
    p = np.full(len(x), 1.0 / len(x)) if weight is None else weight / weight.sum()
    mean = p @ x
    sd = np.sqrt(p @ (x - mean[None, :]) ** 2)
    worth = np.full(len(mean), 1.0 / np.sum(p**2)) if chains is None else chains.ess_bulk
    with np.errstate(invalid="ignore", divide="ignore"):
        bias = (mean - moments.mean) / np.where(moments.sd > 0, moments.sd, 1.0)
        z = (mean - moments.mean) / np.sqrt(sd**2 / worth + moments.error**2)
    worst = int(np.argmax(np.abs(bias)))
    return MeanError(names[worst], float(bias[worst]), float(z[worst]))


def _coverage(events, weight, target) -> Coverage | None:
    leaves = jax.tree.leaves(events)
    if target.truth is None or target.truth.modes is None or len(leaves) != 1:
        return None
    return mode_coverage(leaves[0], *target.truth.modes, weight=weight)


def plain(value: Any) -> Any:
    """Anything a Report holds as JSON can hold it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return fields | ({"evaluations": value.evaluations} if isinstance(value, Bill) else {})
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(v) for v in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value
