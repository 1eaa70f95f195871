"""Evidence: the normaliser Z of a target, with its error, from weighted draws or from replicas along a path.

    weighted draws        log Z = log mean w, the mean over draws, or over the runs of a population            `log_evidence`
    replicas x_i ~ p_i    with f_i = log p_{i+1}(x_i) - log p_i(x_i),  b_i = log p_i(x_{i+1}) - log p_{i+1}(x_{i+1})
                          log Z_{i+1} / Z_i = log E e^{f_i}                                                   `stepping_stone`
                                            = r with E sigmoid(f_i - r) = E sigmoid(b_i + r)                  `bridge`
                                            ~ (E f_i - E b_i) / 2 - (Var b_i - Var f_i) / 12                  `thermodynamic`

Stepping stones (Xie, Lewis, Fan, Kuo and Chen 2011) use one end of each pair, the bridge (Bennett 1976; Meng and Wong 1996)
both, with the least variance of its kind; the thermodynamic integral (Gelman and Meng 1998) has no exponentials but a
discretisation error, smaller with the correction by variances (Friel, Hurn and Wyse 2014).

Errors are those of independent units: draws, runs, chains (cut into blocks where they are few).
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from gensamp.core import Bill, Path, Target
from gensamp.runner import Draws, sample

__all__ = [
    "Evidence", "EvidenceComparison", "bridge", "compare_evidence", "log_evidence", "stepping_stone", "thermodynamic",
]  # fmt: skip

# Blocks that a jackknife leaves out one at a time, at least.
BLOCKS = 16


@dataclass(frozen=True)
class Evidence:
    """value: the estimate of log Z. error: its standard error, NaN where one unit says nothing of it. ess: how many units of
    equal weight the estimate rests on (Kish); far below their number it rests on a few, and so does the error.
    """

    value: float
    error: float
    ess: float

    def __str__(self) -> str:
        error = "unknown: one run" if math.isnan(self.error) else f"{self.error:.4f}"
        return f"log Z = {self.value:.4f} (standard error {error}, {self.ess:.0f} effective units)"


@dataclass(frozen=True, eq=False)
class EvidenceComparison:
    """evidence: {model: Evidence}. draws: {model: Draws}, weighted draws of each posterior. bill: what all of it cost."""

    evidence: Mapping[str, Evidence]
    draws: Mapping[str, Draws]
    bill: Bill

    def log_bayes_factor(self, one: str, other: str) -> tuple[float, float]:
        """log Z_one - log Z_other, and its standard error."""
        for name in (one, other):
            if name not in self.evidence:
                raise ValueError(f"there is no model '{name}'; expected one of {', '.join(self.evidence)}")
        a, b = self.evidence[one], self.evidence[other]
        return a.value - b.value, math.hypot(a.error, b.error)

    @property
    def best(self) -> str:
        """The model of the largest evidence."""
        return max(self.evidence, key=lambda name: self.evidence[name].value)

    def __str__(self) -> str:
        rows = []
        for name in sorted(self.evidence, key=lambda name: -self.evidence[name].value):
            factor, error = self.log_bayes_factor(name, self.best)
            against = "" if name == self.best else f"; log Bayes factor against {self.best} {factor:.3f} +- {error:.3f}"
            rows.append(f"{name}: {self.evidence[name]}{against}")
        return "\n".join(rows)


def log_evidence(draws: Any) -> Evidence:
    """log Z from the weights of a finite sampler (`ais`, `smc`, `adaptive_smc`, `nested`, ...).

    Args:
        draws: Draws of `sample`, with log_weight [1, draw], or [run, particle] of a population. The particles of a run depend
            on each other, so the runs are the units, and one run has no error. The error is that of the mean weight, by the
            delta method.

    Raises:
        TypeError: they are no Draws.
        ValueError: the draws have no weights, or a weight is NaN or +inf.

    Warns of populations that ended before they reached the target.
    """
    if not hasattr(draws, "log_weight"):
        raise TypeError(f"log_evidence got {type(draws).__name__}; expected the Draws that sample(...) returns")
    if draws.log_weight is None:
        raise ValueError("log_evidence needs weighted draws, and these have none; use ais, smc, adaptive_smc or nested")
    weight = np.asarray(draws.log_weight, np.float64)
    if np.isnan(weight).any() or np.isposinf(weight).any():
        raise ValueError("log_evidence got log weights that are NaN or +inf; a weight of zero is -inf")
    # Info is recorded per draw: [1, draw] for single draws, [run] for populations.
    single = np.ndim(draws.info.gradients) == 2
    if not single and (short := int(np.sum(draws.info.diverged))):
        warnings.warn(
            f"{short} of {len(weight)} populations did not reach the target, so log Z and its error mean little; give "
            "max_levels= or max_points= more, or a base nearer to the target",
            stacklevel=2,
        )
    units = weight[0] if single else _log_sum(weight, 1) - math.log(weight.shape[1])
    return _mean_of(units)


def stepping_stone(log_ratios: Any, *, base_log_normaliser: float = 0.0) -> Evidence:
    """log Z by stepping stones, from the lower end of every pair.

    Args:
        log_ratios: [chain, step, pair, 2], f_i and b_i above: `Info.extra["log_ratios"]` of `parallel_tempering(report=True)`
            after warm-up; [step, pair, 2] for one chain.
        base_log_normaliser: log normaliser of the path's law at t = 0; 0 for a normalised base.

    Returns:
        Evidence: the error by a jackknife over chains, or over at least 16 blocks of them (which must be longer than a chain's
            memory); ess is that of the worst pair.

    Raises:
        ValueError: another shape, or ratios that are not finite.
    """

    def estimate(ratios):
        return _log_sum(ratios[..., 0], 0) - math.log(len(ratios))

    ratios = _read_ratios(log_ratios, "stepping_stone")
    forward = ratios.reshape(-1, *ratios.shape[2:])[..., 0]
    ess = np.exp(2 * _log_sum(forward, 0) - _log_sum(2 * forward, 0)).min()
    return _jackknife(ratios, estimate, base_log_normaliser, float(ess))


def bridge(log_ratios: Any, *, base_log_normaliser: float = 0.0) -> Evidence:
    """log Z by Bennett's acceptance ratio for every pair.

    Args, Raises: as for `stepping_stone`. ess: twice the draws that lie in the overlap of the worst pair.
    """
    ratios = _read_ratios(log_ratios, "bridge")
    flat = ratios.reshape(-1, *ratios.shape[2:])
    overlap = _sigmoid(flat[..., 0] - _bennett(flat)[None, :]).mean(0)
    return _jackknife(ratios, _bennett, base_log_normaliser, float(2 * len(flat) * overlap.min()))


def thermodynamic(log_ratios: Any, *, base_log_normaliser: float = 0.0) -> Evidence:
    """log Z by thermodynamic integration, the trapezoidal rule corrected by variances.

    It wants many more levels than the other two. The correction holds where log p_t is linear in t, as on a geometric path; its
    size is taken for that of the discretisation error which remains, and is in `error`.

    Args, Raises: as for `stepping_stone`. ess: the number of draws per level.
    """

    def correction(ratios):
        return (ratios[..., 0].var(0) - ratios[..., 1].var(0)) / 12

    def estimate(ratios):
        return (ratios[..., 0].mean(0) - ratios[..., 1].mean(0)) / 2 + correction(ratios)

    ratios = _read_ratios(log_ratios, "thermodynamic")
    found = _jackknife(ratios, estimate, base_log_normaliser, float(ratios.shape[0] * ratios.shape[1]))
    remains = float(correction(ratios.reshape(-1, *ratios.shape[2:])).sum())
    return replace(found, error=math.hypot(found.error, remains))


def compare_evidence(
    key: jax.Array,
    targets: Any,
    *,
    priors: Any = None,
    num_runs: int = 16,
    num_particles: int = 1024,
    num_moves: int = 3,
    **options: Any,
) -> EvidenceComparison:
    """The evidence of several models, by adaptive SMC from the prior of each to its posterior.

    Args:
        key: a typed key.
        targets: {model: Target}, each an unnormalised posterior, log likelihood + log prior, such as `Target.from_numpyro`
            gives.
        priors: {model: Target} or one for all: normalised, with exact draws, on the same coordinates. None takes the numpyro
            model's own (`targets.prior_of`).
        num_runs: independent populations, on whose spread the error rests; at least 4.
        num_particles, num_moves, options: as for `gs.mcmc.adaptive_smc`.

    Returns:
        EvidenceComparison. Its log Bayes factors are those of the models as given: constants left out of one log likelihood and
            not of the other count.

    Raises:
        TypeError: targets is no mapping of Targets, or priors neither that nor one Target.
        ValueError: fewer than one model or four runs, or a model without a prior on its coordinates.
    """
    from gensamp.mcmc import adaptive_smc

    _check_targets(targets, "targets", "{name: Target}")
    if priors is not None and not isinstance(priors, Target):
        _check_targets(priors, "priors", "{name: Target}, one Target for all, or None")
    if not targets:
        raise ValueError("compare_evidence got no model; expected {name: Target}")
    if not isinstance(num_runs, int) or num_runs < 4:
        raise ValueError(f"compare_evidence got num_runs {num_runs!r}; expected at least 4, on whose spread the error rests")
    paths = {name: _from_prior(name, target, priors) for name, target in targets.items()}
    evidence, drawn, bill = {}, {}, Bill()
    for number, (name, path) in enumerate(paths.items()):
        sampler = adaptive_smc(path, num_particles=num_particles, num_moves=num_moves, **options)
        drawn[name] = sample(jax.random.fold_in(key, number), sampler, num_runs, progress=False)
        evidence[name] = log_evidence(drawn[name])
        bill += drawn[name].ledger.sample
    return EvidenceComparison(evidence, drawn, bill)


def _check_targets(given: Any, argument: str, expected: str) -> None:
    if not isinstance(given, Mapping):
        raise TypeError(f"compare_evidence got {type(given).__name__} as {argument}; expected {expected}")
    for name, target in given.items():
        if not isinstance(target, Target):
            raise TypeError(f"compare_evidence got {type(target).__name__} for '{name}' in {argument}; expected a Target")


def _from_prior(name: str, target: Target, priors: Mapping[str, Target] | Target | None) -> Path:
    """The path from a model's prior to its posterior."""
    from gensamp.paths import geometric
    from gensamp.targets import prior_of
    from gensamp.targets.bound_models import has_model

    if isinstance(priors, Mapping) and name not in priors:
        raise ValueError(f"compare_evidence got no prior for '{name}', only for {', '.join(priors)}; give every model one")
    if priors is None and not has_model(target):
        raise ValueError(f"compare_evidence got no prior for '{name}', which is not made by from_numpyro; pass it as priors=")
    try:
        prior = prior_of(target) if priors is None else priors[name] if isinstance(priors, Mapping) else priors
        return geometric(prior, target)
    except ValueError as error:
        raise ValueError(f"compare_evidence cannot go from the prior of '{name}' to its target: {error}") from error


def _mean_of(log_units: np.ndarray) -> Evidence:
    """log of the mean of independent positive units."""
    number = log_units.size
    value = float(_log_sum(log_units, 0) - math.log(number))
    if value == -math.inf:
        return Evidence(value, math.nan, 0.0)
    units = np.exp(log_units - value)
    error = float(units.std(ddof=1) / math.sqrt(number)) if number > 1 else math.nan
    return Evidence(value, error, float(number**2 / (units**2).sum()))


def _read_ratios(log_ratios: Any, by: str) -> np.ndarray:
    ratios = np.asarray(log_ratios, np.float64)
    ratios = ratios[None] if ratios.ndim == 3 else ratios
    if ratios.ndim != 4 or ratios.shape[3] != 2 or ratios.shape[0] * ratios.shape[1] < 2:
        raise ValueError(f"{by} got log_ratios of shape {list(np.shape(log_ratios))}; expected [chain, step, pair, 2]")
    if not np.isfinite(ratios).all():
        raise ValueError(
            f"{by} got log ratios that are not finite: a replica stood where a neighbour's density is; leave warm-up out, or "
            "use a path whose laws share their support"
        )
    return ratios


def _jackknife(ratios: np.ndarray, estimate: Any, constant: float, ess: float) -> Evidence:
    """The sum over pairs of an estimate from draws [draw, pair, 2], and its error by leaving out one block at a time."""
    cuts = 1 if len(ratios) >= BLOCKS else math.ceil(BLOCKS / len(ratios))
    blocks = [block for chain in ratios for block in np.array_split(chain, min(cuts, len(chain)))]
    value = float(estimate(np.concatenate(blocks)).sum())
    number = len(blocks)
    without = [float(estimate(np.concatenate(blocks[:i] + blocks[i + 1 :])).sum()) for i in range(number)]
    error = math.sqrt((number - 1) * np.var(without)) if number > 1 else math.nan
    return Evidence(value + constant, error, ess)


def _bennett(ratios: np.ndarray) -> np.ndarray:
    """log Z_{i+1} / Z_i [pair] from draws [draw, pair, 2], by bisection: one side falls with r, the other rises."""
    forward, backward = ratios[..., 0], ratios[..., 1]
    low = np.minimum(forward.min(0), -backward.max(0))
    high = np.maximum(forward.max(0), -backward.min(0))
    # A base that reaches where the target is hardly anything has ratios of -1e20: halved until that tells.
    while np.any(high - low > 1e-10 * np.maximum(1, np.abs(low + high))):
        middle = (low + high) / 2
        below = _sigmoid(forward - middle[None, :]).mean(0) > _sigmoid(backward + middle[None, :]).mean(0)
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


def _log_sum(values: np.ndarray, axis: int) -> Any:
    return np.logaddexp.reduce(values, axis=axis)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return (1 + np.tanh(values / 2)) / 2
