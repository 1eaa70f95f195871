"""The shape of one event, as a hashable value: what a network or a learned map must know before it sees any data.

A template is a pytree of `jax.ShapeDtypeStruct`, which is no array and, in a dict, has no hash either. `Event` keeps the same
facts in a form that rides through `jax.jit` without leaves, and adds what every learned map does with them: one event as a
flat vector [size], the way back, and standard normal noise of the same shape.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import register_static

from gensamp.core import as_template

__all__ = ["Event"]


@register_static
@dataclass(frozen=True)
class Event:
    """Shapes and dtypes of the leaves of one event, and the tree they hang on."""

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]
    structure: Any

    @classmethod
    def of(cls, template: Any) -> "Event":
        """The event of a template (arrays or `ShapeDtypeStruct`s; raises TypeError unless all are floating point)."""
        leaves, structure = jax.tree.flatten(as_template(template))
        return cls(tuple(a.shape for a in leaves), tuple(jnp.dtype(a.dtype) for a in leaves), structure)

    @property
    def template(self) -> Any:
        """The pytree of `jax.ShapeDtypeStruct` this was made from."""
        leaves = [jax.ShapeDtypeStruct(s, d) for s, d in zip(self.shapes, self.dtypes, strict=True)]
        return jax.tree.unflatten(self.structure, leaves)

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return sum(math.prod(s) for s in self.shapes)

    @property
    def dtype(self) -> Any:
        """The common dtype of the flat vector."""
        return jnp.result_type(*self.dtypes)

    def check(self, batch: Any) -> None:
        """Raises ValueError unless `batch` is made of such events with one leading axis. Shapes alone are read."""
        leaves, structure = jax.tree.flatten(batch)
        if structure != self.structure or [a.shape[1:] for a in leaves] != list(self.shapes):
            got = [list(a.shape[1:]) for a in leaves]
            raise ValueError(f"data have events of shapes {got}; expected {[list(s) for s in self.shapes]}, as in the template")

    def flatten(self, x: Any) -> jax.Array:
        """One event as a vector [size]."""
        return jnp.concatenate([jnp.ravel(leaf).astype(self.dtype) for leaf in jax.tree.leaves(x)])

    def unflatten(self, vector: jax.Array) -> Any:
        """The event whose coordinates are `vector` [size]."""
        leaves, at = [], 0
        for shape, dtype in zip(self.shapes, self.dtypes, strict=True):
            size = math.prod(shape)
            leaves.append(vector[at : at + size].reshape(shape).astype(dtype))
            at += size
        return jax.tree.unflatten(self.structure, leaves)

    def normal(self, key: jax.Array) -> Any:
        """Independent standard normal coordinates, shaped like one event; consumes `key`."""
        keys = jax.random.split(key, len(self.shapes))
        leaves = [jax.random.normal(k, s, d) for k, s, d in zip(keys, self.shapes, self.dtypes, strict=True)]
        return jax.tree.unflatten(self.structure, leaves)

    def zeros(self) -> Any:
        """The event of zeros."""
        return self.unflatten(jnp.zeros(self.size, self.dtype))
