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
from jax.tree_util import Partial

from gensamp.core import Network

__all__ = [
    "check_frame", "check_params", "enter", "fit_frame", "frame_of", "identity_frame", "leave", "log_volume", "shapes_of",
]  # fmt: skip


def check_params(params: Any, expected: Mapping[str, Any]) -> None:
    """What `model.sampler` is given, checked before anything is traced with it. Shapes alone are read.

    Args:
        params: what should be the parameters of a fit.
        expected: the entries that a draw needs, each as a tree of shapes (`shapes_of`), or None where any will do.

    Raises:
        TypeError: they are no dict with these entries.
        ValueError: an entry is another network's.
    """
    if not isinstance(params, Mapping):
        hint = "model.sampler(fitted.params)" if hasattr(params, "params") else "the params of a fit of this model"
        raise TypeError(f"model.sampler got {type(params).__name__} as its parameters; expected {hint}")
    if not set(expected) <= set(params):
        raise TypeError(
            f"model.sampler got parameters with the entries {sorted(params)}; expected {sorted(expected)}: those of a fit of "
            "this model"
        )
    for name, tree in expected.items():
        if tree is None:
            continue
        held, wanted = _by_place(name, params[name]), _by_place(name, tree)
        for place in sorted(held.keys() ^ wanted.keys()):
            which = f"without {place}" if place in wanted else f"with {place}, which this model does not have"
            raise ValueError(f"model.sampler got parameters {which}; expected those of a fit of this model")
        for place, shape in wanted.items():
            if held[place] != shape:
                raise ValueError(
                    f"model.sampler got parameters whose {place} has shape {held[place]}; expected {shape}: those of a fit of "
                    "this model"
                )


def shapes_of(init: Any, *batch: Any) -> Any:
    """The parameters that (key, *batch) -> params makes, as shapes: traced once for a network, and None if there is no init."""
    if not callable(init):
        return None
    return _made.eval_shape(init if isinstance(init, Partial) else Partial(init), jax.random.key(0), *batch)


def check_frame(frame: Any, template: Any) -> None:
    """Raises TypeError or ValueError unless `frame` has a shift and a scale for such events."""
    if not isinstance(frame, Mapping) or not {"shift", "scale"} <= set(frame):
        got = sorted(frame) if isinstance(frame, Mapping) else type(frame).__name__
        raise TypeError(f"model.sampler got parameters with a frame of {got}; expected shift and scale")
    for part in ("shift", "scale"):
        alike = jax.tree.structure(frame[part]) == jax.tree.structure(template)
        events, held = (jax.tree.leaves(tree) for tree in (template, frame[part]))
        if not alike or any(_broadcast(jnp.shape(b), a.shape) != a.shape for a, b in zip(events, held, strict=True)):
            got = jax.tree.map(lambda a: list(jnp.shape(a)), frame[part])
            want = jax.tree.map(lambda a: list(a.shape), template)
            raise ValueError(f"model.sampler got parameters with a {part} of shapes {got}; expected those of events {want}")


def frame_of(params: Any, template: Any, network: Network) -> dict[str, Any]:
    """The frame among a diffusion model's parameters.

    Raises:
        TypeError, ValueError: they are no such parameters, or of a model of other events or another network.
    """
    check_params(params, {"network": None, "shift": None, "scale": None})
    check_frame(params, template)
    check_params(params, {"network": shapes_of(network.init)})
    return {"shift": params["shift"], "scale": params["scale"]}


def fit_frame(batch: Any) -> dict[str, Any]:
    """The frame of a batch: a tree of arrays with a leading axis of events.

    A coordinate that has one value throughout the batch gets scale 1; any other its standard deviation, however small.

    Raises:
        TypeError: the events are not made of floating-point numbers.
    """
    kinds = sorted({str(a.dtype) for a in jax.tree.leaves(batch) if not jnp.issubdtype(a.dtype, jnp.floating)})
    if kinds:
        raise TypeError(
            f"data have events of dtype {', '.join(kinds)}; expected floating-point numbers: convert the events by "
            "astype(np.float32), conditions stay as they are"
        )
    return {"shift": jax.tree.map(_shift_of, batch), "scale": jax.tree.map(_scale_of, batch)}


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


def _shift_of(a):
    return a.mean(0) if a.ndim <= 2 else a.mean()


def _scale_of(a):
    axis = 0 if a.ndim <= 2 else None
    # By the range, since the mean of a constant is rounded and its spread is not zero; and in units of a power of two near the
    # range, which round nothing, since the squares of very small numbers vanish.
    reach = jnp.max(a, axis, keepdims=True) - jnp.min(a, axis, keepdims=True)
    _, power = jnp.frexp(reach)
    spread = jnp.std(jnp.ldexp(a, -power), axis, keepdims=True)
    scale = jnp.where(reach > 0, jnp.ldexp(spread, power), 1)
    return scale[0] if axis == 0 else scale.reshape(())


def _broadcast(*shapes: tuple[int, ...]) -> Any:
    try:
        return jnp.broadcast_shapes(*shapes)
    except ValueError:
        return None


@jax.jit
def _made(init, key, *batch):
    return init(key, *batch)


def _by_place(name: str, tree: Any) -> dict[str, list[int]]:
    """The shapes of a tree's leaves by their names, "network/Dense_0/kernel"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path({name: tree})
    return {jax.tree_util.keystr(path, simple=True, separator="/"): list(jnp.shape(leaf)) for path, leaf in leaves}
