"""What a comparison holds: budgets, rows with their curves, and the break-even of learned rows with the best chain."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gensamp.core import Sampler, Target
from gensamp.evaluate.cost import Cost, Unit, break_even, cost_of
from gensamp.evaluate.judge import Judge
from gensamp.evaluate.report import Report

__all__ = ["BUDGETS", "Budget", "Comparison", "Point", "Row"]


@dataclass(frozen=True)
class Budget:
    """How much to spend: tuning steps and draws per chain, finite draws, exact draws to judge by and to learn from."""

    name: Literal["tiny", "small", "full"]
    tune_steps: int
    chain_draws: int
    finite_draws: int
    reference: int
    replicates: int
    events: int
    num_chains: int = 4


BUDGETS = {
    "tiny": Budget("tiny", 150, 250, 300, 2_000, 6, 2_000),
    "small": Budget("small", 500, 5_000, 2_000, 16_384, 16, 10_000),
    "full": Budget("full", 2_000, 25_000, 10_000, 65_536, 32, 50_000),
}


@dataclass(frozen=True)
class Point:
    """The first `draws` draws: their cost in all, and their energy distance to the truth without the reference's share."""

    draws: int
    evaluations: float
    seconds: float
    error: float
    standard_error: float


@dataclass(frozen=True)
class Row:
    """One sampler on the target.

    report: None when it failed, and then `failure` says why. untrained: the same map before training, or None. curve:
    prefixes of the draws. coordinates: up to 2,000 draws [n, d] for pictures. sampler: what drew them. shares: the row whose
    training it shares.
    """

    name: str
    title: str
    half: str
    report: Report | None = None
    untrained: Report | None = None
    curve: tuple[Point, ...] = ()
    coordinates: np.ndarray | None = None
    sampler: Sampler | None = None
    shares: str = ""
    failure: str = ""

    @property
    def learned(self) -> bool:
        """Whether a fit stands behind it."""
        return self.untrained is not None

    @property
    def beats_untrained(self) -> bool | None:
        """Whether both distances fell by training, the energy distance by more than its floor's sd; None if not learned."""
        after, before = self.report, self.untrained
        if after is None or before is None:
            return None
        if before.energy is None or before.sliced is None or after.energy is None or after.sliced is None:
            return after.energy is not None
        return bool(
            after.energy.value < before.energy.value - after.energy.floor.sd and after.sliced.value < before.sliced.value
        )

    def cost(self, unit: Unit) -> Cost:
        """Bill and price per draw."""
        if self.report is None:
            raise ValueError(f"'{self.name}' failed and has no cost: {self.failure}")
        return cost_of(self.report.ledger, self.report.num_draws, unit)

    def cost_per_equivalent(self, unit: Unit) -> Cost:
        """Bill and price of one draw's worth of exact draws; for a chain this is what independence costs."""
        worth = self.report.equivalent.value / self.report.num_draws if self.report and self.report.equivalent else 0.0
        return self.cost(unit).per(worth)


@dataclass(frozen=True)
class Comparison:
    """All rows on one target. skipped: why registered samplers were left out. held_equal: sentences. seconds: of the whole.
    unfinished: samplers that Ctrl-C left without a row."""

    target: Target
    budget: Budget
    judge: Judge
    rows: tuple[Row, ...]
    skipped: Mapping[str, str]
    held_equal: tuple[str, ...]
    seconds: float
    unfinished: tuple[str, ...] = ()

    @property
    def done(self) -> tuple[Row, ...]:
        """Rows that did not fail."""
        return tuple(row for row in self.rows if row.report is not None)

    def best_chain(self, unit: Unit) -> Row | None:
        """The row without training whose draws' worth is cheapest."""
        chains = [row for row in self.done if row.report is not None and row.report.chains is not None]
        return min(chains, key=lambda row: row.cost_per_equivalent(unit).price, default=None)

    def break_evens(self, unit: Unit) -> dict[str, float | None]:
        """For each learned row the number of draws from which on it is cheaper than the best chain, whose draws count at their
        equivalent worth; None for never. Only as far as a row's own equivalent sample size do more of its draws help."""
        chain = self.best_chain(unit)
        if chain is None:
            return {}
        against = chain.cost_per_equivalent(unit)
        return {row.name: break_even(row.cost(unit), against) for row in self.done if row.learned}
