"""Arrays that hide from JAX: in a closure, a functools.partial, a bound method, a default argument, or a global of the script.

A `jax.tree_util.Partial` shows the arrays among its *arguments* to `jit`, `vmap`, `grad` and checkpoints. An array anywhere
else is baked into the compiled program: it cannot be swept or differentiated, it is not saved, and a rebuilt function compiles
again. `hidden_arrays` walks what a Partial calls and says where such an array sits.
"""

import functools
import types
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from gensamp.core import Static

__all__ = ["hidden_arrays"]


def hidden_arrays(tree: Any) -> list[str]:
    """Where arrays hide in the functions of a pytree: one phrase for each, empty when all are leaves.

    A function wrapped in `Static` is the caller's own promise and is not entered, nor are globals of imported modules.
    """
    return sorted({place for partial in _partials(tree) for place in _inside(partial.func, _name(partial.func), 0)})


def _partials(tree: Any) -> Iterator[Partial]:
    """Every Partial of a tree, those among the arguments of others included."""
    for node in jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, Partial)):
        if isinstance(node, Partial):
            yield node
            yield from _partials((node.args, node.keywords))


def _inside(thing: Any, where: str, depth: int) -> Iterator[str]:
    if depth > 6:
        return
    if isinstance(thing, functools.partial):
        kind = "Partial of a Partial" if isinstance(thing, Partial) else "functools.partial"
        for value in (*thing.args, *thing.keywords.values()):
            if _holds_arrays(value):
                yield f"{where} (an argument of a {kind} inside the function)"
            yield from _inside(value, where, depth + 1)
        yield from _inside(thing.func, where, depth + 1)
    elif isinstance(getattr(thing, "fun", None), functools.partial):
        # What JAX puts around a Partial that is given to Partial.
        yield from _inside(thing.fun, where, depth + 1)
    elif isinstance(thing, types.MethodType):
        if _holds_arrays(thing.__self__) or _holds_arrays(getattr(thing.__self__, "__dict__", ())):
            yield f"{where} (a bound method)"
        yield from _inside(thing.__func__, where, depth + 1)
    elif isinstance(thing, types.FunctionType):
        names = thing.__code__.co_freevars
        for name, cell in zip(names, thing.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:
                continue
            if _holds_arrays(value):
                yield f"{where} (variable '{name}' of a closure)"
            yield from _inside(value, where, depth + 1)
        for value in (*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()):
            if _holds_arrays(value):
                yield f"{where} (a default argument)"
        if hasattr(thing, "__wrapped__"):
            yield from _inside(thing.__wrapped__, where, depth + 1)


def _holds_arrays(value: Any) -> bool:
    if isinstance(value, Static | types.ModuleType):
        return False
    return any(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(value))


def _name(function: Any) -> str:
    inner = function
    while isinstance(inner, functools.partial) or hasattr(inner, "fun"):
        inner = inner.func if isinstance(inner, functools.partial) else inner.fun
    return getattr(inner, "__qualname__", type(inner).__name__)
