"""Every sampler and model of the package, as explicit lists: what the contract tests iterate and `compare` chooses from.

To add a sampler, write its file and add one `Entry` to the list of its half; it is then tested and compared. Nothing registers
itself on import, and what an entry makes is imported when it is made. A sampler of your own needs no entry: `sample`, `fit` and
`compare` take Samplers and Models as they are.
"""

import difflib
from collections.abc import Iterable

from gensamp.registry import (
    annealing,
    chains,
    conditioning,
    densities,
    dynamics,
    few_step,
    latents,
    learned,
    proposals,
    solvers,
)
from gensamp.registry.entry import BUDGETS, Entry, FitOptions

__all__ = ["BUDGETS", "Entry", "FitOptions", "choose", "entries", "find"]

ENTRIES = (
    *chains.ENTRIES, *dynamics.ENTRIES, *proposals.ENTRIES, *annealing.ENTRIES, *learned.ENTRIES, *densities.ENTRIES,
    *latents.ENTRIES, *solvers.ENTRIES, *conditioning.ENTRIES, *few_step.ENTRIES,
)  # fmt: skip


def entries() -> tuple[Entry, ...]:
    """All samplers and models, the statistician's first."""
    return ENTRIES


def find(name: str) -> Entry:
    """The entry of that name.

    Raises:
        ValueError: there is none; the message names the nearest one.
        TypeError: the name is no string.
    """
    names = [entry.name for entry in ENTRIES]
    if not isinstance(name, str):
        raise TypeError(f"the name of a sampler is {type(name).__name__}; expected a string, such as 'nuts'")
    if name in names:
        return ENTRIES[names.index(name)]
    nearest = difflib.get_close_matches(name.lower().replace("-", "_"), names, n=1, cutoff=0.3)
    hint = f"did you mean '{nearest[0]}'? " if nearest else ""
    raise ValueError(f"no sampler is called '{name}'; {hint}there are {', '.join(names)}")


def choose(names: str | Iterable[str] | None) -> list[Entry]:
    """The entries of these names; None for those that are compared by default, "all" for every one.

    Raises:
        ValueError: there is no entry of a name (the message names the nearest one), or "all" stands beside others.
    """
    if names is None:
        return [entry for entry in ENTRIES if entry.default]
    names = [names] if isinstance(names, str) else list(names)
    if "all" not in names:
        return [find(name) for name in names]
    if len(names) > 1:
        raise ValueError(f"the names are {', '.join(names)}; expected 'all' alone, or names without it")
    return list(ENTRIES)
