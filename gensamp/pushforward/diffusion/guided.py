"""A denoiser made of other functions, which knows what a call costs: guidance, in the form in which every solver takes it.

A solver asks for (t, x) -> prediction and counts its calls. Guidance by two networks makes two forwards a call, by a classifier
one forward and one gradient; so what guides is a `Guided`, and the solvers' common end, `solver.reverse`, multiplies. Guided
denoisers may guide with guided ones: costs add up. Row "diffusion" of the table.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from jax.tree_util import register_dataclass

from gensamp.core import Static, bind

__all__ = ["Guided", "charged", "cost"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class Guided:
    """A denoiser, called as any other: (t, x) -> prediction.

    apply: the bound function. forwards, gradients: evaluations of a network, and of the gradient of a log likelihood, that one
    call makes.
    """

    apply: Any
    forwards: int = dataclasses.field(default=1, metadata={"static": True})
    gradients: int = dataclasses.field(default=0, metadata={"static": True})

    def __call__(self, t: Any, x: Any) -> Any:
        return self.apply(t, x)


def cost(*denoisers: Any) -> tuple[int, int]:
    """(forwards, gradients) of one call of each denoiser; (1, 0) for one that is not `Guided`."""
    prices = [(d.forwards, d.gradients) if isinstance(d, Guided) else (1, 0) for d in denoisers]
    return sum(price[0] for price in prices), sum(price[1] for price in prices)


def charged(step: Any, denoise: Any) -> Any:
    """A solver's bound step, which counts calls of the denoiser, as one that counts what they cost."""
    price = cost(denoise)
    return step if price == (1, 0) else bind(_charged, step, Static(price))


def _charged(step, price, key, state, index):
    state, info = step(key, state, index)
    forwards, gradients = price.value
    calls = info.forwards
    return state, dataclasses.replace(info, forwards=forwards * calls, gradients=info.gradients + gradients * calls)
