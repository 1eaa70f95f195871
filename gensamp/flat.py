"""Events as flat vectors: what linear algebra over whole events (metrics, optimisers, curvature) works on.

Leaves stand one after another in jax.tree order, as in every metric of this package.
"""

import math
from typing import Any

import jax
import numpy as np

from gensamp.core import PyTree, Static, Target, bind

__all__ = ["flat_target", "flatten", "unflatten"]


def flat_target(target: Target) -> Target:
    """The same law on events [d], for chains; its name, data and truth stay behind.

    Raises:
        TypeError: the leaves of the event have different dtypes, and one vector has one.
    """
    leaves, structure = jax.tree.flatten(target.template)
    if len({leaf.dtype for leaf in leaves}) != 1:
        raise TypeError(f"target '{target.name}' has events of dtypes {[str(a.dtype) for a in leaves]}; expected one dtype")
    shapes = Static((structure, tuple(leaf.shape for leaf in leaves)))
    template = jax.ShapeDtypeStruct((sum(math.prod(leaf.shape) for leaf in leaves),), leaves[0].dtype)
    return Target.from_log_density(bind(_log_density, shapes, target.log_density), template)


def flatten(template: PyTree, events: PyTree) -> np.ndarray:
    """Vectors [row, d] from events [row, ...] like `template`.

    Raises:
        ValueError: they are not like it.
    """
    leaves, structure = jax.tree.flatten(events)
    expected = jax.tree.leaves(template)
    if structure != jax.tree.structure(template) or any(
        np.shape(a)[1:] != b.shape or len(a) != len(leaves[0]) for a, b in zip(leaves, expected, strict=True)
    ):
        got = jax.tree.map(lambda a: list(np.shape(a)), events)
        raise ValueError(f"positions have shapes {got}; expected a leading axis and then events like {template}")
    return np.concatenate([np.asarray(a, b.dtype).reshape(len(a), -1) for a, b in zip(leaves, expected, strict=True)], axis=1)


def unflatten(template: PyTree, flat: Any) -> PyTree:
    """Events like `template` from vectors [..., d]."""
    leaves, structure = jax.tree.flatten(template)
    return _split(structure, [leaf.shape for leaf in leaves], flat)


def _log_density(shapes: Static, log_density, x: jax.Array) -> jax.Array:
    structure, parts = shapes.value
    return log_density(_split(structure, parts, x))


def _split(structure, shapes, flat) -> PyTree:
    parts, first = [], 0
    for shape in shapes:
        last = first + math.prod(shape)
        parts.append(flat[..., first:last].reshape(*flat.shape[:-1], *shape))
        first = last
    return jax.tree.unflatten(structure, parts)
