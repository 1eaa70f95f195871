"""What draws cost: a bill paid once (training, tuning, warm-up, compilation) and a price per draw, and where two of them meet.

A chain has a small bill and dear draws, a learned map a large bill and cheap ones. `break_even` is the number of draws at
which the
second becomes the cheaper: the n with bill_a + n price_a = bill_b + n price_b.
"""

import math
from dataclasses import dataclass
from typing import Literal

from gensamp.core import Ledger

__all__ = ["Cost", "Unit", "break_even", "cost_of"]

Unit = Literal["evaluations", "seconds"]


@dataclass(frozen=True)
class Cost:
    """`bill` paid before the first draw and `price` per draw, in evaluations or in seconds."""

    bill: float | int
    price: float | int

    def of(self, draws: float | int) -> float:
        """What `draws` draws cost in all."""
        return self.bill + draws * self.price

    def per(self, efficiency: float | int) -> "Cost":
        """The same bill with the price of one draw's worth of information: `efficiency` is equivalent draws per draw."""
        return Cost(self.bill, self.price / efficiency if efficiency > 0 else math.inf)


def cost_of(ledger: Ledger, num_draws: int, unit: Unit = "evaluations") -> Cost:
    """The cost in a ledger of a run that gave `num_draws` draws (over all chains).

    In seconds the bill includes compiling the program that draws, which is paid once as well.

    Raises:
        ValueError: no draws.
    """
    if num_draws < 1:
        raise ValueError(f"num_draws is {num_draws}; expected at least 1 draw to divide the cost by")
    if unit == "evaluations":
        return Cost(float(ledger.fit.evaluations + ledger.tune.evaluations), ledger.sample.evaluations / num_draws)
    once = ledger.fit.wall_seconds + ledger.tune.wall_seconds + ledger.sample.compile_seconds
    return Cost(once, max(ledger.sample.wall_seconds - ledger.sample.compile_seconds, 0.0) / num_draws)


def break_even(learned: Cost, chain: Cost) -> float | None:
    """The number of draws from which on `learned` is the cheaper: 0 when it is from the start, None when it never is."""
    saved, extra = chain.price - learned.price, learned.bill - chain.bill
    if math.isnan(saved) or math.isnan(extra):
        return None
    if extra <= 0:
        # Cheaper at the start; unless its draws are dearer, for then it is overtaken and never the cheaper for good.
        return 0.0 if saved >= 0 else None
    if saved <= 0:
        return None
    return 0.0 if math.isinf(saved) else extra / saved
