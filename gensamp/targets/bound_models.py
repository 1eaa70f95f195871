"""A numpyro model bound to its arguments: what posteriors and predictions are made from.

A function of it is module-level over `Static(model)`, the structure of the arguments, and the arrays among them as leaves, so
that new data of the same shapes run the program that is already compiled.

    split(args, kwargs)  ->  leaves, structure          arguments(structure, leaves)  ->  args, kwargs
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gensamp.core import Static, Target

__all__ = ["arguments", "arguments_of", "constrain", "has_model", "is_latent", "sites_of", "split"]

_DATA = "data"
"""Stands for an array in the static part of the arguments."""


def split(args: tuple, kwargs: dict) -> tuple[list[jax.Array], Static]:
    """The arrays among the arguments, and the hashable rest with their places.

    Raises:
        TypeError: an array of something else than numbers, or an argument that is neither an array nor hashable.
    """
    leaves, structure = jax.tree.flatten((args, kwargs))
    is_data = [isinstance(a, np.ndarray | jax.Array | float) for a in leaves]
    rest = tuple((_DATA, None) if data else ("static", a) for a, data in zip(leaves, is_data, strict=True))
    try:
        hash(rest)
    except TypeError:
        kinds = sorted({type(a).__name__ for a, data in zip(leaves, is_data, strict=True) if not data})
        raise TypeError(f"the model got arguments of types {kinds}, which have no hash; convert data to NumPy arrays") from None
    return [_as_data(a) for a, data in zip(leaves, is_data, strict=True) if data], Static((structure, rest))


def arguments(structure: Static, leaves: tuple) -> tuple[tuple, dict]:
    """The model's arguments, from what `split` made of them."""
    treedef, rest = structure.value
    data = iter(leaves)
    return jax.tree.unflatten(treedef, [next(data) if kind == _DATA else value for kind, value in rest])


def has_model(target: Target) -> bool:
    """Whether a target was made by `from_numpyro`."""
    return getattr(target.constrain, "func", None) is constrain


def arguments_of(target: Target, by: str) -> tuple:
    """What the functions of a posterior are bound to: the model, the structure of its arguments, the arrays."""
    if not has_model(target):
        raise ValueError(f"{by} got the target '{target.name}'; expected one made by from_numpyro")
    return target.constrain.args


def sites_of(model: Static, structure: Static, *leaves: jax.Array) -> dict[str, dict]:
    """The sites of the model at an arbitrary point of its support: flat priors have no draws to trace it at."""
    import numpyro
    from numpyro import handlers
    from numpyro.infer import init_to_feasible

    args, kwargs = arguments(structure, leaves)
    seeded = handlers.substitute(handlers.seed(model.value, jax.random.key(0)), substitute_fn=init_to_feasible)
    with numpyro.validation_enabled(False):
        return handlers.trace(seeded).get_trace(*args, **kwargs)


def is_latent(site: dict) -> bool:
    """Whether a site of a trace is a parameter."""
    return site["type"] == "sample" and not site["is_observed"]


def constrain(model: Static, structure: Static, *leaves_and_position: Any) -> dict[str, jax.Array]:
    """The model's own quantities at a position, deterministic sites included: what a posterior's `constrain` is."""
    import numpyro
    from numpyro.infer.util import constrain_fn

    *leaves, position = leaves_and_position
    args, kwargs = arguments(structure, tuple(leaves))
    with numpyro.validation_enabled(False):
        return constrain_fn(model.value, args, kwargs, position, return_deterministic=True)


def _as_data(value: Any) -> jax.Array:
    try:
        return jnp.asarray(value)
    except TypeError:
        raise TypeError(
            f"the model got an array of dtype {np.asarray(value).dtype}; expected numbers: turn labels and dates into them, "
            "and objects by astype(float)"
        ) from None
