"""The frame a learned map works in: data shifted and scaled to about zero mean and unit variance, y = (x - shift) / scale.

A map that starts from a standard normal has less to learn when its data have that scale, and a diffusion needs it: its noise
levels are absolute. Vectors get one shift and one scale per coordinate. Arrays of two or more axes (images) get one of each,
since a pixel that never changes has no scale of its own. A frame is a dict of two trees, kept among a model's parameters so
that it travels with them; gradients do not reach it except where a family says so.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["check_params", "enter", "fit_frame", "frame_of", "identity_frame", "leave", "log_volume"]


def check_params(params: Any, names: tuple[str, ...]) -> None:
    """Raises TypeError unless `params` has these entries. Keys alone are read, so that it costs nothing where it is traced."""
    if not isinstance(params, Mapping):
        hint = "model.sampler(fitted.params)" if hasattr(params, "params") else "the params of a fit of this model"
        raise TypeError(f"model.sampler got {type(params).__name__} as its parameters; expected {hint}")
    if not set(names) <= set(params):
        raise TypeError(
            f"model.sampler got parameters with the entries {sorted(params)}; expected {sorted(names)}: those of a fit of this "
            "model"
        )


def frame_of(params: Any, template: Any) -> dict[str, Any]:
    """The frame among a diffusion model's parameters.

    Raises:
        TypeError, ValueError: they are no such parameters, or of a model of other events.
    """
    check_params(params, ("network", "shift", "scale"))
    for part in ("shift", "scale"):
        alike = jax.tree.structure(params[part]) == jax.tree.structure(template)
        events, held = (jax.tree.leaves(tree) for tree in (template, params[part]))
        if not alike or any(_broadcast(jnp.shape(b), a.shape) != a.shape for a, b in zip(events, held, strict=True)):
            got = jax.tree.map(lambda a: list(jnp.shape(a)), params[part])
            want = jax.tree.map(lambda a: list(a.shape), template)
            raise ValueError(f"model.sampler got parameters with a {part} of shapes {got}; expected those of events {want}")
    return {"shift": params["shift"], "scale": params["scale"]}


def fit_frame(batch: Any) -> dict[str, Any]:
    """The frame of a batch: a tree of arrays with a leading axis of events. A constant coordinate gets scale 1."""

    def shift_of(a):
        return a.mean(0) if a.ndim <= 2 else a.mean()

    def scale_of(a):
        spread = a.std(0) if a.ndim <= 2 else a.std()
        return jnp.where(spread > 0, spread, 1).astype(a.dtype)

    return {"shift": jax.tree.map(shift_of, batch), "scale": jax.tree.map(scale_of, batch)}


def identity_frame(template: Any) -> dict[str, Any]:
    """The frame that changes nothing, shaped as `fit_frame` shapes it."""

    def like(value):
        return jax.tree.map(lambda a: jnp.full(a.shape if len(a.shape) <= 1 else (), value, a.dtype), template)

    return {"shift": like(0), "scale": like(1)}


def enter(frame: dict[str, Any], x: Any) -> Any:
    """y = (x - shift) / scale for one event."""
    return jax.tree.map(lambda a, shift, scale: (a - shift) / scale, x, frame["shift"], frame["scale"])


def leave(frame: dict[str, Any], y: Any) -> Any:
    """x = shift + scale y for one event."""
    return jax.tree.map(lambda a, shift, scale: shift + scale * a, y, frame["shift"], frame["scale"])


def log_volume(frame: dict[str, Any], template: Any) -> jax.Array:
    """log |dx/dy|, summed over the coordinates of one event."""
    terms = jax.tree.map(lambda a, scale: jnp.log(jnp.broadcast_to(scale, a.shape)).sum(), template, frame["scale"])
    return jax.tree.reduce(jnp.add, terms)


def _broadcast(*shapes: tuple[int, ...]) -> Any:
    try:
        return jnp.broadcast_shapes(*shapes)
    except ValueError:
        return None
