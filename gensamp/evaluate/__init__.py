"""Judging draws: every statistic beside what exact draws of the same number would give, and what the draws cost.

`evaluate(draws, target)` says all there is to say of one run, `compare(key, target, samplers, budget)` of many on one target.
The parts stand alone: chain diagnostics, distances, equivalent sample size, mode coverage, and the break-even of two costs.
"""

import sys
from types import ModuleType

from gensamp.evaluate.chains import Chains, diagnose, ess_bulk, ess_tail, ess_weights, rhat
from gensamp.evaluate.cost import Cost, break_even, cost_of
from gensamp.evaluate.distances import Distance, Floor, energy_distance, sliced_wasserstein
from gensamp.evaluate.equivalent import EquivalentSize, equivalent_sample_size
from gensamp.evaluate.judge import Judge
from gensamp.evaluate.modes import Coverage, mode_coverage
from gensamp.evaluate.report import MeanError, Report, evaluate

__all__ = [
    "Chains", "Cost", "Coverage", "Distance", "EquivalentSize", "Floor", "Judge", "MeanError", "Report", "break_even",
    "cost_of", "diagnose", "energy_distance", "equivalent_sample_size", "ess_bulk", "ess_tail", "ess_weights", "evaluate",
    "mode_coverage", "rhat", "sliced_wasserstein",
]  # fmt: skip


class _Verb(ModuleType):
    """The package is the verb as well: `gs.evaluate(draws, target)`. One name serves both, so the module is callable."""

    def __call__(self, draws, target, **options) -> Report:
        return evaluate(draws, target, **options)


sys.modules[__name__].__class__ = _Verb
