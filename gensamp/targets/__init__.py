"""Things to draw from: formulas, posteriors and data sets, each with what is known of its law.

`make(name)` and `names()` are what the command line uses. A target of your own needs no entry here: every function of the
package takes a `Target`, made by `Target.from_log_density`, `Target.from_data` or `from_numpyro`.
"""

import difflib
from functools import partial
from typing import Any

from gensamp.core import Target
from gensamp.targets.analytic import banana, funnel, gmm40, ill_conditioned_gaussian, rosenbrock, two_moons
from gensamp.targets.brownian import brownian
from gensamp.targets.datasets import digits, digits_labelled
from gensamp.targets.hugging_face import hugging_face, hugging_face_labelled
from gensamp.targets.images import celeba, cifar10, images_labelled, mnist, olivetti
from gensamp.targets.lgcp import lgcp
from gensamp.targets.mixture import mixture
from gensamp.targets.multimodal import bimodal, gmm9, gmm25, many_well, mos10
from gensamp.targets.physics import lj13, phi4
from gensamp.targets.posteriordb import posteriordb, posteriordb_model, posteriordb_names, reference_draws
from gensamp.targets.posteriors import from_numpyro, prior_of, unconstrain
from gensamp.targets.schools import eight_schools
from gensamp.targets.sparse_logistic import sparse_logistic
from gensamp.targets.starts import endless_directions, feasible_start, prior_start, scattered_start

__all__ = [
    "banana", "bimodal", "brownian", "celeba", "cifar10", "data_sets", "digits", "digits_labelled", "eight_schools",
    "endless_directions", "feasible_start", "from_numpyro", "funnel", "gmm25", "gmm40", "gmm9", "hugging_face",
    "hugging_face_labelled", "ill_conditioned_gaussian", "images_labelled", "lgcp", "lj13", "make", "many_well", "mixture",
    "mnist", "mos10", "names", "olivetti", "phi4", "posteriordb", "posteriordb_model", "posteriordb_names", "prior_of",
    "prior_start", "reference_draws", "rosenbrock", "scattered_start", "sparse_logistic", "two_moons", "unconstrain",
]  # fmt: skip

_TARGETS = {
    "banana": banana,
    "bimodal": bimodal,
    "brownian": brownian,
    "digits": digits,
    "eight_schools": eight_schools,
    "funnel": funnel,
    "funnel_d20": partial(funnel, dim=20),
    "gmm25": gmm25,
    "gmm40": gmm40,
    "gmm40_d50": partial(gmm40, dim=50),
    "gmm9": gmm9,
    "ill_conditioned_gaussian": ill_conditioned_gaussian,
    "lgcp": lgcp,
    "lj13": lj13,
    "many_well": many_well,
    "mos10": mos10,
    "mos10_d50": partial(mos10, dim=50),
    "phi4": phi4,
    "rosenbrock": rosenbrock,
    "sparse_logistic": sparse_logistic,
    "two_moons": two_moons,
}
_DATA_SETS = {"celeba": celeba, "cifar10": cifar10, "mnist": mnist, "olivetti": olivetti}


def names() -> tuple[str, ...]:
    """The names that `make` knows, in alphabetical order."""
    return tuple(sorted(_TARGETS))


def data_sets() -> tuple[str, ...]:
    """The names of image sets that `make` knows as well: read from `GENSAMP_DATA`, else downloaded."""
    return tuple(_DATA_SETS)


def make(name: Any, **options: Any) -> Target:
    """The target of that name.

    Args:
        name: one of `names()`, `data_sets()` or `posteriordb_names()`; hyphens count as underscores, capitals as small letters.
        options: keyword arguments of its function, such as dim or dtype.

    Raises:
        TypeError: the name is no string.
        ValueError: there is no such target; the message names the nearest one.
        FileNotFoundError: what it is made of is neither in GENSAMP_DATA nor to be downloaded.
    """
    if not isinstance(name, str):
        raise TypeError(f"make got {type(name).__name__} as its name; expected a string, such as 'banana': see names()")
    posteriors = {_plain(known): partial(posteriordb, known) for known in posteriordb_names()}
    every = _TARGETS | _DATA_SETS | posteriors
    if _plain(name) in every:
        return every[_plain(name)](**options)
    spelt = {_plain(known): known for known in (*_TARGETS, *_DATA_SETS, *posteriordb_names())}
    nearest = difflib.get_close_matches(_plain(name), spelt, n=1, cutoff=0.3)
    hint = f"did you mean '{spelt[nearest[0]]}'? " if nearest else ""
    raise ValueError(f"no target is called '{name}'; {hint}there are {', '.join(sorted(spelt.values()))}")


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
