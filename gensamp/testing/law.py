"""Do these draws have the target's law? Moments and quantiles against truth, in units of their own standard error.

For every coordinate the averages of x, of (x - mu)^2 and of the indicators 1[x <= q_p] at the 10, 50 and 90 % quantiles are
compared with what the target says they are,

    z = (average - truth) / sqrt(spread^2 / ESS + error_of_truth^2),

where the ESS is that of the statistic's own series (ArviZ's split-chain estimate; for independent draws, their number), so that
a correlated chain is not blamed for its correlation. The threshold is Bonferroni's: over all m checks together an intact
sampler is failed with probability `significance`, so |z| <= Phi^-1(1 - significance / 2m) whatever the draws were.

Three verdicts, because too few draws prove nothing: "passed", "failed", and "undecided" where the smallest ESS is below
`min_ess` (which is also what chains that sit in different modes come to). Only the first counts as passing.

Heavy tails. A z of a moment means something only where the moment's average is close to normal. Where its skewness would make
the tail beyond the threshold wrong by more than a factor of about twenty (Edgeworth: skewness threshold^3 / (3 sqrt ESS) > 3),
or where a single exact draw carries more than a twentieth of the squared spread (the sign of a variance that is not finite),
the moment is left out and listed in `left_out`. Quantiles are indicators, need no moments, and are always checked.

Sources: Vehtari, Gelman, Simpson, Carpenter and Buerkner (2021) for the ESS; Hall (1992), section 2.6, for the skewness of a
studentised mean. It serves every row of DESIGN's table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import numpy as np
from jax.tree_util import Partial

from gensamp.core import PyTree, Target

__all__ = ["LawCheck", "check_law", "check_laws", "power"]

_SKEW_LIMIT = 3.0
_SHARE_LIMIT = 0.05


@dataclass(frozen=True)
class LawCheck:
    """The verdict on one set of draws.

    worst: the largest |z|, reached by the statistic named `where`. threshold: the |z| allowed, from the number of checks.
    z: name -> z of each check. ess: the smallest effective sample size among them. left_out: moments too heavy-tailed to judge.
    """

    verdict: Literal["passed", "failed", "undecided"]
    worst: float
    where: str
    threshold: float
    ess: float
    z: Mapping[str, float] = field(repr=False)
    left_out: tuple[str, ...] = field(default=(), repr=False)

    @property
    def passed(self) -> bool:
        """Whether the draws passed: an undecided check did not."""
        return self.verdict == "passed"

    def __str__(self) -> str:
        size = f"{len(self.z)} checks, smallest ESS {self.ess:.0f}"
        return f"{self.verdict}: |z| = {self.worst:.2f} at {self.where}, threshold {self.threshold:.2f}, {size}"


@dataclass(frozen=True)
class _Claim:
    """What the truth says of the average of one statistic, for every coordinate: its series, value, error and spread."""

    kind: str
    at: np.ndarray
    value: np.ndarray
    error: np.ndarray
    spread: np.ndarray | None
    judged: np.ndarray

    def series(self, x: np.ndarray) -> np.ndarray:
        if self.kind == "mean":
            return x
        return (x - self.at) ** 2 if self.kind == "variance" else (x <= self.at).astype(float)


def check_law(
    position: PyTree,
    target: Target,
    *,
    log_weight: Any = None,
    significance: float = 1e-3,
    min_ess: float = 100.0,
    independent: bool | None = None,
    probabilities: Sequence[float] = (0.1, 0.5, 0.9),
    num_exact: int = 100_000,
) -> LawCheck:
    """Compare draws with the truth of their target.

    Args:
        position: tree of arrays [chain, draw, ...event]; finite draws come as [1, draw, ...event].
        target: with a truth (mean, variance, quantiles, or reference draws) or exact draws, tried statistic by statistic in
            this order; the error of the truth is propagated.
        log_weight: [chain, draw] for weighted draws, or None. The unit that is independent is then the draw if there is one
            chain, and the chain (a run of a population) if there are several.
        significance: probability that an intact sampler fails any of the checks.
        min_ess: effective draws below which the verdict is "undecided".
        independent: whether draws are independent, so that their ESS is their number; by default when there is one chain.
        probabilities: quantiles to check.
        num_exact: exact draws made where the truth has no closed form (always from the same key).

    Returns:
        LawCheck.

    Raises:
        ValueError: shapes do not fit the target's template, or the target knows no truth at all.
    """
    claims = _claims(target, tuple(probabilities), num_exact)
    return _check(position, target, claims, log_weight, significance, min_ess, independent)


def check_laws(positions: PyTree, target: Target, *, log_weight: Any = None, **options: Any) -> list[LawCheck]:
    """`check_law` for several keys at once: positions [key, chain, draw, ...event], log_weight [key, chain, draw] or None."""
    claims = _claims(target, tuple(options.pop("probabilities", (0.1, 0.5, 0.9))), options.pop("num_exact", 100_000))
    settings = {"significance": 1e-3, "min_ess": 100.0, "independent": None} | options
    num_keys = len(jax.tree.leaves(positions)[0])
    weights = [None] * num_keys if log_weight is None else log_weight
    return [
        _check(jax.tree.map(lambda a, i=i: a[i], positions), target, claims, weights[i], **settings) for i in range(num_keys)
    ]


def power(checks: Sequence[LawCheck]) -> dict[str, int]:
    """How many checks reached each verdict: {"passed": , "failed": , "undecided": }."""
    return {verdict: sum(c.verdict == verdict for c in checks) for verdict in ("passed", "failed", "undecided")}


def _check(position, target, claims, log_weight, significance, min_ess, independent) -> LawCheck:
    from scipy.stats import norm

    x, names = _flat(position, target.template, axes=2)
    if not np.isfinite(x).all():
        bad = ~np.isfinite(x).all((0, 1))
        where = names[int(np.argmax(bad))]
        return LawCheck("failed", np.inf, f"{where}, which is not finite", 0.0, 0.0, {where: np.inf})
    if independent is None:
        independent = x.shape[0] == 1
    threshold = float(norm.isf(significance / (2 * len(claims) * len(names))))

    z: dict[str, float] = {}
    left_out: list[str] = []
    smallest = np.inf
    ess_of_mean = None
    for label, claim in claims.items():
        series = claim.series(x)
        if log_weight is not None:
            average, error, ess = _weighted(series, np.asarray(log_weight, float))
        else:
            ess = _ess(series, independent)
            ess_of_mean = _ess(x, independent) if ess_of_mean is None else ess_of_mean
            constant = np.ptp(series, axis=(0, 1)) == 0
            # An indicator no draw has crossed says nothing of its own correlation.
            ess = np.where(constant, np.minimum(ess, ess_of_mean), ess)
            spread = series.std((0, 1)) if claim.spread is None else claim.spread
            average, error = series.mean((0, 1)), spread / np.sqrt(ess)
        judged = claim.judged
        if claim.kind != "quantile":
            skewness = _skewness(series)
            judged = judged & (skewness * threshold**3 <= 3 * _SKEW_LIMIT * np.sqrt(ess))
        gap, scale = average - claim.value, np.hypot(error, claim.error)
        with np.errstate(divide="ignore", invalid="ignore"):
            score = np.where(np.abs(gap) <= 1e-6 * (1 + np.abs(claim.value)), 0.0, gap / scale)
        for name, value, keep, size in zip(names, score, judged, ess, strict=True):
            if keep:
                z[f"{label} of {name}"] = float(value)
                smallest = min(smallest, float(size))
            else:
                left_out.append(f"{label} of {name}")
    where = max(z, key=lambda name: abs(z[name])) if z else "nothing"
    worst = abs(z[where]) if z else 0.0
    verdict = "undecided" if not z or smallest < min_ess else "passed" if worst <= threshold else "failed"
    return LawCheck(verdict, worst, where, threshold, smallest, z, tuple(left_out))


def _ess(series: np.ndarray, independent: bool) -> np.ndarray:
    if independent:
        return np.full(series.shape[-1], float(series.shape[0] * series.shape[1]))
    from arviz_stats.base import array_stats

    return np.asarray(array_stats.ess(series, chain_axis=0, draw_axis=1, method="mean"))


def _skewness(series: np.ndarray) -> np.ndarray:
    """Absolute skewness of each coordinate [chain, draw, coordinate]; 0 where nothing varies."""
    gap = series - series.mean((0, 1))
    spread = series.std((0, 1))
    return np.abs((gap**3).mean((0, 1))) / np.maximum(spread, np.finfo(float).tiny ** (1 / 3)) ** 3


def _weighted(series, log_weight) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Self-normalised average, its error by the delta method over independent units, and the units' effective number."""
    if log_weight.shape != series.shape[:2]:
        raise ValueError(f"log_weight has shape {list(log_weight.shape)}; expected one per draw, {list(series.shape[:2])}")
    weight = np.exp(log_weight - log_weight.max())[..., None]
    average = (weight * series).sum((0, 1)) / weight.sum()
    over = 0 if series.shape[0] == 1 else 1
    residual = (weight * (series - average)).sum(over)
    units = weight.sum(over)
    error = np.sqrt((residual**2).sum(0)) / weight.sum()
    return average, error, np.full(series.shape[-1], units.sum() ** 2 / (units**2).sum())


def _claims(target: Target, probabilities: tuple[float, ...], num_exact: int) -> dict[str, _Claim]:
    """What is known of each statistic: the closed form first, else an average over exact or reference draws."""
    truth = target.truth
    known = {name: getattr(truth, name, None) for name in ("mean", "variance", "quantiles")}
    sample = _exact_draws(target, num_exact)
    if sample is None and not any(value is not None for value in known.values()):
        raise ValueError(
            f"check_law needs to know target '{target.name}', which has neither a truth nor exact draws; give it exact= or "
            "truth=Truth(mean=(value, error))"
        )

    claims = {}
    mean = _pair(known["mean"], target.template)
    if mean is not None:
        claims["mean"] = _claim("mean", mean[0], mean, None, sample)
    elif sample is not None:
        claims["mean"] = _claim("mean", sample.mean(0), None, None, sample)
    if "mean" in claims:
        centre = claims["mean"].value
        variance = _pair(known["variance"], target.template) if mean is not None else None
        if variance is not None or sample is not None:
            claims["variance"] = _claim("variance", centre, variance, None, sample)
    for p in probabilities:
        quantile = _quantile(known["quantiles"], p, target.template)
        label = f"{100 * p:g} % quantile"
        if quantile is not None:
            error = _quantile_error(quantile, sample)
            spread = np.full_like(quantile[0], np.sqrt(p * (1 - p)))
            claims[label] = _claim("quantile", quantile[0], (np.full_like(quantile[0], p), error), spread, sample)
        elif sample is not None:
            claims[label] = _claim("quantile", np.quantile(sample, p, axis=0), None, None, sample)
    return claims


def _claim(kind, at, known, spread, sample) -> _Claim:
    judged = np.ones(at.shape, bool)
    claim = _Claim(kind, at, at, at, spread, judged)
    if sample is None:
        return _Claim(kind, at, known[0], known[1], spread, judged)
    series = claim.series(sample)
    value, deviation = series.mean(0), series.std(0)
    squares = (series - value) ** 2
    total = squares.sum(0)
    if kind != "quantile":
        judged = squares.max(0) <= _SHARE_LIMIT * np.maximum(total, np.finfo(float).tiny)
        judged |= total == 0
    if known is not None:
        return _Claim(kind, at, known[0], known[1], spread, judged)
    # An indicator's spread is known from the truth; a moment's is estimated from the draws, where heavy tails show.
    spread = deviation if kind == "quantile" else None
    return _Claim(kind, at, value, deviation / np.sqrt(len(sample)), spread, judged)


def _exact_draws(target: Target, num_exact: int) -> np.ndarray | None:
    """Exact draws [draws, coordinate], or the reference draws of the truth, or None."""
    if target.exact is not None:
        keys = jax.random.split(jax.random.key(20_250_101), num_exact)
        draws = _many(target.exact if isinstance(target.exact, Partial) else Partial(target.exact), keys)
        return _flat(draws, target.template, axes=1)[0]
    reference = getattr(target.truth, "reference", None)
    return None if reference is None else _flat(reference, target.template, axes=1)[0]


@jax.jit
def _many(exact, keys):
    return jax.vmap(exact)(keys)


def _pair(known, template) -> tuple[np.ndarray, np.ndarray] | None:
    """(value, standard error) as flat arrays, from (tree, tree or number)."""
    if known is None:
        return None
    value, error = known
    value = _flat(value, template, axes=0)[0]
    if jax.tree.structure(error) == jax.tree.structure(template) and np.ndim(jax.tree.leaves(error)[0]):
        return value, _flat(error, template, axes=0)[0]
    return value, np.full_like(value, 0.0 if error is None else float(np.asarray(error)))


def _quantile(known, p, template) -> tuple[np.ndarray, np.ndarray] | None:
    """The p-quantile of every coordinate, from a mapping p -> (value, error)."""
    found = [pair for probability, pair in (known or {}).items() if abs(float(probability) - p) < 1e-9]
    return _pair(found[0], template) if found else None


def _quantile_error(quantile, sample) -> np.ndarray:
    """The error in P(x <= q) that an error in q makes."""
    value, error = quantile
    if sample is None or not error.any():
        return np.zeros_like(value)
    return ((sample <= value + error).mean(0) - (sample <= value - error).mean(0)) / 2


def _flat(tree, template, axes: int) -> tuple[np.ndarray, list[str]]:
    """A tree [*axes, ...event] as one float64 array [*axes, coordinate], with a name for each coordinate."""
    expected = jax.tree_util.tree_flatten_with_path(template)[0]
    if jax.tree.structure(tree) != jax.tree.structure(template):
        raise ValueError(f"draws have the structure {jax.tree.structure(tree)}; expected {jax.tree.structure(template)}")
    columns, names = [], []
    for (path, leaf), values in zip(expected, jax.tree.leaves(tree), strict=True):
        values = np.asarray(values, float)
        if values.ndim != axes + len(leaf.shape) or values.shape[axes:] != leaf.shape:
            lead = ["chain", "draw"][:axes] if axes == 2 else ["draw"][:axes]
            raise ValueError(f"draws have shape {list(values.shape)}; expected [{', '.join([*lead, *map(str, leaf.shape)])}]")
        columns.append(values.reshape(*values.shape[:axes], -1))
        label = jax.tree_util.keystr(path) or "x"
        names += [f"{label}{list(index)}" if index else label for index in np.ndindex(leaf.shape)]
    return np.concatenate(columns, axis=-1), names
