"""Posteriors of numpyro models as targets, and reference draws to judge them by.

A model with data becomes one function of the unconstrained parameters z, a dict with one entry per latent site:

    log_density(z) = log p(data, x(z)) + log |dx/dz|,    constrain(z) = {site: x(z)} with the deterministic sites.

The function is module-level over `Static(model)`, and the arrays among the model's arguments are leaves: new data of the same
shapes run the program that is already compiled. (numpyro's own `potential_fn` closes over the data and retraces.)
"""

import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gensamp.core import PyTree, Static, Target, bind

__all__ = ["from_numpyro", "reference_draws"]


def from_numpyro(model: Callable, *args: Any, **kwargs: Any) -> Target:
    """The posterior of a numpyro model, on unconstrained coordinates.

    Args:
        model: a numpyro model; reparameterised and otherwise handled models are fine.
        args, kwargs: what the model is called with. Arrays and Python floats are data: they become leaves, and replacing them
            by others of the same shape recompiles nothing. Integers, booleans, strings and None are structure (sizes of plates,
            options): they are static. Give the observations, or their sites are taken for parameters.

    Returns:
        Target: events are dicts {site: array} of unconstrained values; `constrain` returns the model's own quantities,
        deterministic sites included. One log density costs one run of the model.

    Raises:
        ValueError: the model has no latent site, or a discrete one, which has no gradient.
        TypeError: an argument is neither an array nor hashable.

    Source: Kucukelbir et al. 2017 (ADVI), section 2.3, for the change of variables; numpyro's bijections.
    """
    leaves, structure = _split(args, kwargs)
    template = jax.eval_shape(_unconstrained_prior, Static(model), structure, *leaves)
    return Target.from_log_density(
        bind(_log_density, Static(model), structure, *leaves),
        template,
        name=getattr(model, "__name__", "posterior"),
        constrain=bind(_constrain, Static(model), structure, *leaves),
    )


def reference_draws(name: str) -> dict[str, np.ndarray]:
    """Reference draws of a posterior in posteriordb, by the names of its Stan program.

    Args:
        name: posteriordb's, such as "eight_schools-eight_schools_noncentered".

    Returns:
        dict of float64 arrays [chains, draws, ...], on the constrained scale: `theta[1]`, `theta[2]`, ... become one "theta".

    Raises:
        FileNotFoundError: the environment variable GENSAMP_DATA names no folder with posteriordb/draws/<name>.json.zip.

    Source: Magnusson, Buerkner and Vehtari, posteriordb (BSD-3): long Stan runs, thinned to be nearly independent.
    """
    path = Path(os.environ.get("GENSAMP_DATA", ""), "posteriordb", "draws", f"{name}.json.zip")
    if not path.is_file():
        raise FileNotFoundError(
            f"reference draws of '{name}' are not at {path}; set GENSAMP_DATA to a folder with posteriordb's reference "
            f"draws as posteriordb/draws/{name}.json.zip"
        )
    with zipfile.ZipFile(path) as archive:
        chains = json.loads(archive.read(archive.namelist()[0]))
    columns = {label: np.asarray([chain[label] for chain in chains], np.float64) for label in chains[0]}
    gathered: dict[str, dict[tuple[int, ...], np.ndarray]] = {}
    for label, values in columns.items():
        match = re.fullmatch(r"([^\[]+)(?:\[([\d,]+)\])?", label)
        if match is None:
            raise ValueError(f"reference draws of '{name}' have a column {label!r}; expected a name, or a name[i] or name[i,j]")
        index = tuple(int(i) - 1 for i in match[2].split(",")) if match[2] else ()
        gathered.setdefault(match[1], {})[index] = values
    return {site: _assemble(parts) for site, parts in gathered.items()}


def _assemble(parts: dict[tuple[int, ...], np.ndarray]) -> np.ndarray:
    """[chains, draws, ...] from one column [chains, draws] per index."""
    shape = tuple(max(index) + 1 for index in zip(*parts, strict=True))
    first = next(iter(parts.values()))
    out = np.full((*first.shape, *shape), np.nan)
    for index, values in parts.items():
        out[(..., *index)] = values
    return out


_DATA = "data"
"""Stands for an array in the static part of the arguments."""


def _split(args: tuple, kwargs: dict) -> tuple[list[jax.Array], Static]:
    """The arrays among the arguments, and the hashable rest with their places."""
    leaves, structure = jax.tree.flatten((args, kwargs))
    is_data = [isinstance(a, np.ndarray | jax.Array | float) for a in leaves]
    rest = tuple((_DATA, None) if data else ("static", a) for a, data in zip(leaves, is_data, strict=True))
    try:
        hash(rest)
    except TypeError:
        kinds = sorted({type(a).__name__ for a, data in zip(leaves, is_data, strict=True) if not data})
        raise TypeError(f"the model got arguments of types {kinds}, which have no hash; convert data to NumPy arrays") from None
    return [jnp.asarray(a) for a, data in zip(leaves, is_data, strict=True) if data], Static((structure, rest))


def _arguments(structure: Static, leaves: tuple) -> tuple[tuple, dict]:
    treedef, rest = structure.value
    data = iter(leaves)
    return jax.tree.unflatten(treedef, [next(data) if kind == _DATA else value for kind, value in rest])


def _unconstrained_prior(model: Static, structure: Static, *leaves: jax.Array) -> PyTree:
    """One prior draw on unconstrained coordinates: traced for its shapes, never run."""
    from numpyro import handlers
    from numpyro.infer.util import unconstrain_fn

    args, kwargs = _arguments(structure, leaves)
    seeded = handlers.seed(model.value, jax.random.key(0))
    sites = handlers.trace(seeded).get_trace(*args, **kwargs)
    latent = {name: site for name, site in sites.items() if site["type"] == "sample" and not site["is_observed"]}
    discrete = [name for name, site in latent.items() if site["fn"].support.is_discrete]
    if discrete:
        raise ValueError(f"model has discrete latent sites {discrete}, which have no gradient; sum them out in the model first")
    if not latent:
        raise ValueError("model has no latent site, so there is nothing to draw; leave at least one `sample` site without obs")
    return unconstrain_fn(seeded, args, kwargs, {name: site["value"] for name, site in latent.items()})


def _log_density(model: Static, structure: Static, *leaves_and_position: Any) -> jax.Array:
    from numpyro.infer.util import potential_energy

    *leaves, position = leaves_and_position
    args, kwargs = _arguments(structure, tuple(leaves))
    dtype = jnp.result_type(*jax.tree.leaves(position))
    return -jnp.asarray(potential_energy(model.value, args, kwargs, position), dtype)


def _constrain(model: Static, structure: Static, *leaves_and_position: Any) -> dict[str, jax.Array]:
    from numpyro.infer.util import constrain_fn

    *leaves, position = leaves_and_position
    args, kwargs = _arguments(structure, tuple(leaves))
    return constrain_fn(model.value, args, kwargs, position, return_deterministic=True)
