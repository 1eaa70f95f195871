"""Draws in the user's own quantities: `constrain` over all draws, in blocks of one size, so that it compiles once.

Positions are trees [chain, draw, ...event] on the coordinates chains move in; named quantities are a dict of arrays
[chain, draw, ...], the deterministic sites of a numpyro model among them. A target without `constrain` names the leaves of its
event.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gensamp.core import PyTree, Target
from gensamp.lanes import EFFORTS

__all__ = ["clash", "lower_constrain", "named", "names"]

BLOCK = 1024


def named(target: Any, position: PyTree, *, program: Callable | None = None) -> dict[str, np.ndarray]:
    """Named quantities of draws.

    Args:
        target: a Target, whose `constrain` is applied; it evaluates no density.
        position: tree of arrays [chain, draw, ...event].
        program: what `lower_constrain(target).compile()` gave, where that was done beforehand.

    Returns:
        dict of arrays [chain, draw, ...].

    Raises:
        TypeError: the first argument is no target.
        ValueError: the draws are not like the target's events, or two quantities would have one name.
    """
    if not isinstance(target, Target):
        raise TypeError(f"named got {type(target).__name__} as its target; expected named(target, position)")
    if hasattr(position, "position"):
        raise TypeError(f"named got {type(position).__name__}; expected positions, such as draws.position")
    leaves = jax.tree.leaves(position)
    expected = jax.tree.leaves(target.template)
    if jax.tree.structure(position) != jax.tree.structure(target.template) or any(
        np.ndim(a) < 2 or np.shape(a)[2:] != b.shape for a, b in zip(leaves, expected, strict=True)
    ):
        got = jax.tree.map(lambda a: list(np.shape(a)), position)
        raise ValueError(f"position has shapes {got}; expected [chain, draw, ...] of events like {target.template}")
    if target.constrain is None:
        names(target)
        return {_label(path): np.asarray(a) for path, a in jax.tree_util.tree_flatten_with_path(position)[0]}
    lead = leaves[0].shape[:2]
    total = lead[0] * lead[1]
    rows = jax.tree.map(lambda a, one: np.asarray(a, one.dtype).reshape(total, *one.shape), position, target.template)
    constrain = program or _constrain
    blocks = []
    for first in range(0, total, BLOCK):
        ids = np.minimum(np.arange(first, first + BLOCK), total - 1)
        out = constrain(target.constrain, jax.tree.map(lambda a: a[ids], rows))  # noqa: B023
        blocks.append(jax.tree.map(lambda a: np.asarray(a)[: total - first], out))  # noqa: B023
    return jax.tree.map(lambda *parts: np.concatenate(parts).reshape(*lead, *parts[0].shape[1:]), *blocks)


def names(target: Target) -> list[str]:
    """The names that `named` gives, found by tracing.

    Raises:
        ValueError: two entries of the event would have one name.
    """
    if target.constrain is not None:
        return list(jax.eval_shape(target.constrain, target.template))
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(target.template)[0]]
    complaint = clash([_label(path) for path in paths])
    if complaint:
        raise ValueError(f"entries of the event {complaint}; rename them")
    return [_label(path) for path in paths]


def clash(names: list[str]) -> str:
    """What is wrong with names of quantities, in which "/" and "." are the same sign for ArviZ; "" if nothing is."""
    plain: dict[str, str] = {}
    for name in names:
        one = name.replace("/", ".")
        if not one.strip("."):
            return f"are named {name!r}, which is no name"
        if one in plain:
            return f"are both named {one!r}"
        plain[one] = name
    return ""


def lower_constrain(target: Target) -> Any:
    """The program of `named`, traced but not compiled: `.compile()` may run in another thread."""
    rows = jax.tree.map(lambda a: jax.ShapeDtypeStruct((BLOCK, *a.shape), a.dtype), target.template)
    return _constrain.lower(target.constrain, rows)


def _over_rows(constrain, rows):
    return jax.vmap(constrain)(rows)


_constrain = jax.jit(_over_rows, **EFFORTS["quick"])


def _label(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".") or "x"
