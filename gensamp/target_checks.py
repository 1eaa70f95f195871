"""What a `Target` is made of, checked when it is made, by tracing alone: a density, what is known beside it, exact draws."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gensamp.core import PyTree, Target, Truth

__all__ = ["check_data", "check_density", "check_exact", "check_known", "check_score"]


def check_density(log_density: Callable, template: PyTree) -> None:
    """Raises TypeError unless log_density returns one real number for one event; ValueError when that is what it raised."""
    event = _described(template)
    try:
        out = jax.eval_shape(log_density, template)
    except jax.errors.TracerArrayConversionError as error:
        raise TypeError(
            f"log_density converts an event of {event} to a NumPy array; expected functions of jax.numpy, which can be compiled"
        ) from error
    except Exception as error:
        kind = ValueError if isinstance(error, ValueError) else TypeError
        reason = next(iter(str(error).splitlines()), "")
        raise kind(f"log_density cannot be traced at one event of {event}: {type(error).__name__}: {reason}") from error
    if not isinstance(out, jax.ShapeDtypeStruct) or out.shape != () or not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(
            f"log_density returned {_described(out)} for one event of {event}; expected one real number of shape []: sum over "
            "the coordinates, and let gensamp map over draws"
        )


def check_known(name: Any, known: Mapping[str, Any]) -> None:
    """Raises TypeError unless the further fields are fields of `Target`, each of its kind."""
    if not isinstance(name, str):
        raise TypeError(f"name is {name!r}; expected a string, for tables and plots")
    fields = [field.name for field in dataclasses.fields(Target) if field.name not in ("template", "name")]
    for field, value in known.items():
        if field not in fields:
            nearest = difflib.get_close_matches(field, fields, n=1)
            hint = f"did you mean {nearest[0]}? " if nearest else ""
            raise TypeError(f"a target has no field {field}; {hint}there are {', '.join(fields)}")
        if field == "truth" and not isinstance(value, Truth | None):
            raise TypeError(f"truth is {type(value).__name__}; expected a gensamp.Truth")
        if field in ("log_density", "score", "exact", "constrain", "minibatch_log_density") and not (
            value is None or callable(value)
        ):
            raise TypeError(f"{field} is {type(value).__name__}; expected a function")


def check_data(data: PyTree) -> None:
    """Raises TypeError or ValueError unless data are arrays of numbers that share a leading axis of events."""
    leaves = jax.tree.leaves(data)
    if any(not hasattr(a, "dtype") or a.dtype.kind not in "fiub" for a in leaves):
        kinds = sorted({str(a.dtype) if isinstance(a, np.ndarray | jax.Array) else type(a).__name__ for a in leaves})
        raise TypeError(f"data is made of {kinds}; expected NumPy or JAX arrays of real numbers: convert lists by np.asarray")
    if not leaves or any(jnp.ndim(a) == 0 for a in leaves) or len({len(a) for a in leaves}) != 1 or len(leaves[0]) == 0:
        shapes = [tuple(jnp.shape(a)) for a in leaves]
        raise ValueError(f"data has shapes {shapes}; expected arrays that share a leading axis of at least one event")
    if not any(jnp.size(a) for a in leaves):
        raise ValueError(f"data has shapes {[tuple(jnp.shape(a)) for a in leaves]}, events without coordinates")


def check_exact(exact: Callable | None, template: PyTree) -> None:
    """Raises ValueError unless exact draws events like the template."""
    if exact is not None:
        _check_events(exact, jax.eval_shape(lambda: jax.random.key(0)), template, "exact", "a key")


def check_score(score: Callable | None, template: PyTree) -> None:
    """Raises ValueError unless a score is like the event that it is of."""
    if score is not None:
        _check_events(score, template, template, "score", "an event")


def _check_events(function: Callable, argument: Any, template: PyTree, name: str, given: str) -> None:
    try:
        out = jax.eval_shape(function, argument)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        raise ValueError(f"{name} cannot be traced at {given}: {type(error).__name__}: {reason}") from error
    alike = jax.tree.structure(out) == jax.tree.structure(template)
    if not alike or any(a.shape != b.shape for a, b in zip(jax.tree.leaves(out), jax.tree.leaves(template), strict=True)):
        raise ValueError(f"{name} makes {_described(out)} of {given}; expected one event of {_described(template)}")


def _described(tree: PyTree) -> str:
    return str(jax.tree.map(lambda a: f"{a.dtype}{list(a.shape)}", tree)).replace("'", "")
