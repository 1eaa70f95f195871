"""Is a posterior's whole chain right - model, transform, adaptation, draws? Simulation-based calibration asks it of itself.

Draw a parameter from the prior, data from the model at that parameter, and L draws of the posterior given those data. Then the
rank of the parameter among its posterior draws is uniform on 0, ..., L, whatever the model: parameter and posterior draws are
L + 1 exchangeable draws of one law. Many replicates give a histogram of ranks. A wrong prior, a forgotten Jacobian, chains that
have not arrived: each bends it. Three tests look at it:

    shape      whether the histogram is flat, by chi-squared; sees everything, nothing sharply
    location   whether the mean of z = Phi^-1((rank + 1/2) / (L + 1)) is zero: posteriors that lie too high or too low
    spread     whether the mean square of z is what uniform ranks have: posteriors that are too wide or too narrow

A prior half as wide again moves a posterior's spread by some per cent, which the first test alone sees in half of 500
replicates and the third in nearly all.

Posterior draws must be nearly independent, or the histogram grows horns: L draws are taken at even distances out of all of a
run, so a run should have an effective sample size well above L.

Source: Talts, Betancourt, Simpson, Vehtari and Gelman 2018, "Validating Bayesian inference algorithms with simulation-based
calibration", theorem 1 and section 5; Cook, Gelman and Rubin 2006, section 2.3 (normal scores of the ranks).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from tqdm.auto import tqdm

from gensamp.core import PyTree, Target, check_key

__all__ = ["Calibration", "calibrate", "simulate_from"]


@dataclass(frozen=True, eq=False)
class Calibration:
    """What came out.

    ranks: {quantity: int [replicates]}, each in 0, ..., num_ranks. p_values: {quantity: {"shape", "location", "spread"}}.
    p_value: of the worst test of all, by Bonferroni. num_ranks: L. unfinished: replicates whose run did not meet its rule
    (they count all the same).
    """

    ranks: dict[str, np.ndarray]
    p_values: dict[str, dict[str, float]]
    p_value: float
    num_ranks: int
    unfinished: int

    def __str__(self) -> str:
        size = len(next(iter(self.ranks.values())))
        _, quantity, test = min((p, name, test) for name, row in self.p_values.items() for test, p in row.items())
        counts = f"{size} replicates ({self.unfinished} unfinished), {len(self.ranks)} quantities"
        return f"{counts}: p = {self.p_value:.3g}, worst the {test} of {quantity}"


def calibrate(
    key: Any,
    simulate: Callable[[jax.Array], tuple[dict[str, Any], PyTree]],
    posterior: Callable[[PyTree], Target],
    *,
    run: Callable[[jax.Array, Target], Any] | None = None,
    num_replicates: int = 500,
    num_ranks: int = 63,
    num_bins: int = 16,
    progress: bool | None = None,
) -> Calibration:
    """Run the calibration.

    Args:
        key: a typed key.
        simulate: (key) -> (parameters by name, data), one draw from the prior and one data set from the model at it; traceable.
            `simulate_from` makes one from a numpyro model.
        posterior: (data) -> Target, whose named quantities include the parameters. Data of one shape share their programs.
        run: (key, target) -> Draws; `auto` with its defaults if None.
        num_replicates: data sets.
        num_ranks: posterior draws that a rank is taken among, L.
        num_bins: bins of the test; num_ranks + 1 must be a multiple of it.
        progress: show a bar; by default only in a terminal or a notebook.

    Returns:
        Calibration. One run per replicate.

    Raises:
        ValueError: the bins do not divide the ranks, are expected to hold fewer than five replicates each, or a parameter is
            no named quantity of the posterior.
    """
    from gensamp.automatic import auto
    from gensamp.quantities import named
    from gensamp.runner import shown

    check_key(key)
    if (num_ranks + 1) % num_bins:
        raise ValueError(f"num_ranks + 1 is {num_ranks + 1} and num_bins {num_bins}; expected a multiple, such as 64 and 16")
    if num_replicates < 5 * num_bins:
        raise ValueError(f"{num_replicates} replicates in {num_bins} bins are fewer than 5 a bin; ask for {5 * num_bins}")
    run = auto if run is None else run
    key_simulate, key_run = jax.random.split(key)
    parameters, data = jax.jit(jax.vmap(simulate))(jax.random.split(key_simulate, num_replicates))
    parameters, data = jax.tree.map(np.asarray, (parameters, data))
    ranks: dict[str, list[int]] = {}
    unfinished = 0
    for i in tqdm(range(num_replicates), disable=not shown(progress), unit="replicate"):
        target = posterior(jax.tree.map(lambda a: a[i], data))  # noqa: B023
        draws = run(jax.random.fold_in(key_run, i), target)
        unfinished += draws.ending not in ("converged", "finished") or bool(draws.message)
        quantities = named(target, draws.position)
        for name, truth in parameters.items():
            if name not in quantities:
                raise ValueError(f"parameter '{name}' is no quantity of the posterior, {sorted(quantities)}; name it there")
            # Draw by draw, chains within: even distances then mix the chains.
            values = np.swapaxes(quantities[name], 0, 1).reshape(-1, *truth.shape[1:])
            chosen = values[np.linspace(0, len(values) - 1, num_ranks).astype(int)]
            below = (chosen < truth[i]).sum(0)
            for index in np.ndindex(*truth.shape[1:]):
                label = f"{name}[{','.join(map(str, index))}]" if index else name
                ranks.setdefault(label, []).append(int(below[index]))
    p_values = {name: _tests(np.asarray(row), num_ranks, num_bins) for name, row in ranks.items()}
    every = [p for row in p_values.values() for p in row.values()]
    worst = min(1.0, len(every) * min(every))
    return Calibration({name: np.asarray(row) for name, row in ranks.items()}, p_values, worst, num_ranks, unfinished)


def _tests(ranks: np.ndarray, num_ranks: int, num_bins: int) -> dict[str, float]:
    """The p value of each test of ranks [replicates]."""
    from scipy.stats import chisquare, norm

    counts = np.bincount(ranks // ((num_ranks + 1) // num_bins), minlength=num_bins)
    scores = norm.ppf((np.arange(num_ranks + 1) + 0.5) / (num_ranks + 1))

    def mean_of(values: np.ndarray) -> float:
        """How unlikely the mean of values[rank] is where every rank is as likely as any other."""
        return float(2 * norm.sf(abs(values[ranks].mean() - values.mean()) / (values.std() / np.sqrt(len(ranks)))))

    return {"shape": float(chisquare(counts).pvalue), "location": mean_of(scores), "spread": mean_of(scores**2)}


def simulate_from(model: Callable, *args: Any, observed: str | tuple[str, ...], **kwargs: Any) -> Callable:
    """A `simulate` for `calibrate` from a numpyro model called without its observations.

    Args:
        model: the numpyro model; args and kwargs: what it is called with, observations left out.
        observed: the sites that are data; the other sample sites and the deterministic ones are parameters.

    Returns:
        (key) -> (parameters, data), data a dict by site.
    """
    observed = (observed,) if isinstance(observed, str) else tuple(observed)

    def simulate(key):
        from numpyro import handlers

        sites = handlers.trace(handlers.seed(model, key)).get_trace(*args, **kwargs)
        values = {name: site["value"] for name, site in sites.items() if site["type"] in ("sample", "deterministic")}
        missing = sorted(set(observed) - set(values))
        if missing:
            raise ValueError(f"the model has no site {missing}; it has {sorted(values)}")
        return {n: v for n, v in values.items() if n not in observed}, {n: values[n] for n in observed}

    return simulate
