"""Things to draw from: formulas, posteriors and data sets, each with what is known of its law.

`make(name)` and `names()` are what the command line uses. A target of your own needs no entry here: every function of the
package takes a `Target`, made by `Target.from_log_density`, `Target.from_data` or `from_numpyro`.
"""

import difflib
from functools import partial
from typing import Any

from gensamp.core import Target
from gensamp.targets.analytic import banana, funnel, gmm40, ill_conditioned_gaussian, two_moons
from gensamp.targets.datasets import digits, digits_labelled
from gensamp.targets.mixture import mixture
from gensamp.targets.posteriors import from_numpyro, reference_draws
from gensamp.targets.schools import eight_schools

__all__ = [
    "banana", "digits", "digits_labelled", "eight_schools", "from_numpyro", "funnel", "gmm40", "ill_conditioned_gaussian",
    "make", "mixture", "names", "reference_draws", "two_moons",
]  # fmt: skip

_TARGETS = {
    "banana": banana,
    "digits": digits,
    "eight_schools": eight_schools,
    "funnel": funnel,
    "gmm40": gmm40,
    "gmm40_d50": partial(gmm40, dim=50),
    "ill_conditioned_gaussian": ill_conditioned_gaussian,
    "two_moons": two_moons,
}


def names() -> tuple[str, ...]:
    """The names that `make` knows, in alphabetical order."""
    return tuple(sorted(_TARGETS))


def make(name: str, **options: Any) -> Target:
    """The target of that name.

    Args:
        name: one of `names()`; hyphens count as underscores.
        options: keyword arguments of its function, such as dim or dtype.

    Raises:
        ValueError: there is no such target; the message names the nearest one.
    """
    known = name.lower().replace("-", "_")
    if known in _TARGETS:
        return _TARGETS[known](**options)
    nearest = difflib.get_close_matches(known, _TARGETS, n=1, cutoff=0.3)
    hint = f"did you mean '{nearest[0]}'? " if nearest else ""
    raise ValueError(f"no target is called '{name}'; {hint}there are {', '.join(names())}")
