"""What `fit` was asked for, checked: every bad input is named here, before anything is compiled."""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.tree_util import Partial

from gensamp import descent
from gensamp.core import Model, PyTree, Target, check_key
from gensamp.descent import Setting
from gensamp.parallel import AXIS
from gensamp.plan import MOST_STEPS
from gensamp.store import check_writable, fingerprint, need_packages

__all__ = [
    "check_arguments", "check_augment", "check_empty", "check_model", "check_store", "differing", "identity",
]  # fmt: skip


ORDERS = ("drawn", "epochs")


def check_arguments(
    key, model, data, optimizer, num_steps, batch_size, ema, validation, mesh, batches="drawn", accumulate=1
) -> Setting:  # fmt: skip
    """The Setting of a call to `fit`, or a TypeError or ValueError of one sentence."""
    seeds = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 1
    if not seeds:
        check_key(key)
    elif len(key) == 0:
        raise ValueError("key has shape [0]; expected one key or a non-empty array of keys [seeds]")
    if not isinstance(model, Model):
        raise TypeError(
            f"fit got {type(model).__name__} as its model; expected a Model, such as gensamp.pushforward.realnvp(...)"
        )
    for name, value in {"num_steps": num_steps, "batch_size": batch_size, "accumulate": accumulate}.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} is {value!r}; expected an integer of at least 1")
    if num_steps > MOST_STEPS:
        raise ValueError(f"num_steps is {num_steps}; expected at most {MOST_STEPS}, the most that are counted")
    if optimizer is not None and not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(f"optimizer is {optimizer!r}; expected an optax transformation, such as optax.adam(1e-3)")
    if batches not in ORDERS:
        raise ValueError(f"batches is {batches!r}; expected one of {', '.join(ORDERS)}")
    if ema is not None and not (isinstance(ema, float | np.floating) and 0 < ema < 1):
        raise ValueError(f"ema is {ema!r}; expected a decay between 0 and 1, such as 0.999, or None")
    number = isinstance(validation, int | float | np.integer | np.floating) and not isinstance(validation, bool)
    if not number or not 0 <= validation < 1:
        raise ValueError(f"validation is {validation!r}; expected the share of events to hold out, in [0, 1)")
    if data is None:
        held_out = 0
        given_for_data = {"validation": validation > 0, "mesh": mesh is not None, "accumulate": accumulate > 1}
        for name, given in (given_for_data | {"batches": batches != ORDERS[0]}).items():
            if given:
                raise ValueError(f"{name}= divides data, and data is None; leave it out for a model that learns from a density")
    else:
        events = _check_data(data)
        held_out = max(1, round(events * validation)) if validation else 0
        if held_out == events:
            raise ValueError(
                f"validation is {validation}, which holds out all {events} events; expected some to be left to train on"
            )
        if batch_size > events - held_out:
            raise ValueError(
                f"batch_size is {batch_size}; expected at most the {events - held_out} events there are to train on"
            )
    if mesh is not None and (not isinstance(mesh, Mesh) or tuple(mesh.axis_names) != (AXIS,)):
        got = f"has axes {mesh.axis_names}" if isinstance(mesh, Mesh) else f"is {mesh!r}"
        raise ValueError(f"mesh {got}; expected a mesh of one axis, made by gensamp.parallel.mesh()")
    if batch_size % accumulate:
        raise ValueError(f"accumulate is {accumulate}; expected a number of parts that divides the batch_size of {batch_size}")
    if mesh is not None and batch_size // accumulate % mesh.size:
        part = "" if accumulate == 1 else f" in {accumulate} parts"
        raise ValueError(f"batch_size is {batch_size}{part}; expected a multiple of the mesh's {mesh.size} devices")
    optimizer = descent.default_optimizer() if optimizer is None else optimizer
    epochs = batches == "epochs"
    return Setting(optimizer, int(batch_size), held_out, ema is not None, seeds, mesh, int(accumulate), epochs)


def _check_data(data: PyTree) -> int:
    """How many events there are."""
    leaves = jax.tree.leaves(data)
    if isinstance(data, Target):
        raise TypeError("fit got a Target as data; pass its target.data, or exact draws: jax.vmap(target.exact)(keys)")
    if not leaves or not all(hasattr(a, "shape") and hasattr(a, "dtype") for a in leaves):
        raise TypeError(
            f"data is made of {sorted({type(a).__name__ for a in leaves})}; expected NumPy or JAX arrays: convert lists by "
            "np.asarray"
        )
    kinds = sorted({str(a.dtype) for a in leaves if not _is_real(a.dtype)})
    if kinds:
        raise TypeError(f"data has values of dtype {', '.join(kinds)}; expected real numbers")
    lengths = {a.shape[0] if a.shape else 0 for a in leaves}
    if len(lengths) != 1 or 0 in lengths:
        shapes = [list(a.shape) for a in leaves]
        raise ValueError(f"data has shapes {shapes}; expected arrays that share a leading axis of at least one event")
    if not all(np.isfinite(np.asarray(a)).all() for a in leaves if jnp.issubdtype(a.dtype, jnp.inexact)):
        raise ValueError("data contains values that are not finite; drop or impute those events first")
    for a in leaves:
        kept = jax.dtypes.canonicalize_dtype(a.dtype)
        if kept != a.dtype and jnp.issubdtype(kept, jnp.floating) and not (np.abs(a) <= jnp.finfo(kept).max).all():
            raise ValueError(f"data has values beyond the range of {kept}, which JAX keeps them in; scale them first")
    return lengths.pop()


def _is_real(dtype) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))


def check_store(store: Any) -> Path:
    """The folder of checkpoints, made if it is not there; an ImportError, ValueError or TypeError of one sentence."""
    if not isinstance(store, str | os.PathLike) or not os.fspath(store):
        raise TypeError(f"store is {store!r}; expected the path of a folder, such as 'fit'")
    need_packages("fit(store=)", "orbax.checkpoint")
    folder = Path(os.fsdecode(store))
    if folder.is_file():
        raise ValueError(f"store {folder} is a file; expected the path of a folder to make or to go on with")
    # A folder that cannot be made is better known before the training than after it.
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_empty(folder: Path) -> None:
    """ValueError unless a folder without a checkpoint holds only what a fit that was killed may leave: unfinished ones."""
    others = sorted(path.name for path in folder.iterdir() if not (path.is_dir() and path.name[:1].isdigit()))
    if others:
        raise ValueError(f"store {folder} holds {others[0]} and no fit; choose another folder")


def check_augment(augment: Any, data: PyTree) -> Partial | None:
    """The augmentation as a pytree, or a TypeError or ValueError of one sentence: it must keep an event's shapes and dtypes."""
    if augment is None:
        return None
    if data is None:
        raise ValueError("augment= changes data, and data is None; leave it out for a model that learns from a density")
    if not callable(augment):
        raise TypeError(f"augment is {augment!r}; expected a function (key, event) -> event, such as gensamp.augment.flip()")
    augment = augment if isinstance(augment, Partial) else Partial(augment)
    _check_pair(data)
    batch = _shapes(data, 1)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    try:
        out = jax.eval_shape(descent.augmented, augment, keys, batch)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"augment cannot be applied to an event: {reason}") from error
    before, after = ([f"{a.dtype}{list(a.shape[1:])}" for a in jax.tree.leaves(tree)] for tree in (batch, out))
    if before != after or jax.tree.structure(batch) != jax.tree.structure(out):
        raise ValueError(f"augment turned an event of {before} into {after}; expected the same shapes and dtypes")
    return augment


def _check_pair(data: PyTree) -> None:
    """ValueError where nobody can tell (events, conditions) from events that are pairs, such as those of `reflow`."""
    if not isinstance(data, tuple | list) or len(data) != 2 or jax.tree.structure(data[0]) != jax.tree.structure(data[1]):
        return
    first, second = ([(a.shape[1:], a.dtype) for a in jax.tree.leaves(part)] for part in data)
    if first == second and all(jnp.issubdtype(dtype, jnp.floating) for _, dtype in first):
        got = ", ".join(f"{dtype}{list(shape)}" for shape, dtype in first)
        raise ValueError(
            f"augment= got data of two parts of {got} each, which may be (events, conditions) or events that are pairs; put "
            "the conditions, or the parts of an event, into a dict, or leave augment out"
        )


def check_model(key, model: Model, data: PyTree, setting: Setting) -> tuple[dict[str, Any], PyTree]:
    """Shapes of what one step records, and of the parameters, found by tracing alone."""
    # As many events as the model's own first batch, and their values, so that its init can refuse those too.
    events = slice(setting.held_out, setting.held_out + descent.INIT_EVENTS)
    first = jax.tree.map(lambda a: jax.device_put(np.asarray(a)[events]), data)

    def outcome(key, data):
        params, state = model.init(key, first)
        batch = jax.tree.map(lambda a: a[: setting.part_size], data)
        loss, (new_state, metrics) = model.loss(params, state, key, batch)
        return {"loss": loss, "metrics": metrics}, state, new_state, params

    shapes = _shapes(data)
    try:
        row, state, new_state, params = jax.eval_shape(outcome, jax.eval_shape(lambda: jax.random.key(0)), shapes)
    except Exception as error:
        events = ", ".join(f"{a.dtype}{list(a.shape[1:])}" for a in jax.tree.leaves(shapes))
        got = "no data (data=None)" if data is None else f"events of {events}"
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"the model cannot learn from {got}: {reason}") from error
    if not isinstance(row["metrics"], dict) or any(a.shape != () for a in jax.tree.leaves(row)):
        got = jax.tree.map(lambda a: list(a.shape), row)
        raise TypeError(
            f"model.loss returned shapes {got}; expected a scalar loss and a dict of scalars: average over the batch"
        )
    before, after = (jax.tree.map(lambda a: (a.shape, a.dtype), tree) for tree in (state, new_state))
    if before != after:
        raise TypeError(f"model.loss turned a state of {before} into {after}; expected the same shapes and dtypes")
    if setting.optimizer is not descent.default_optimizer():
        _check_optimizer(setting.optimizer, params)
    return row, params


def _check_optimizer(optimizer, params: PyTree) -> None:
    """TypeError unless the optimizer takes a step from what a step of `fit` hands to it."""

    def step(params, value):
        own = optimizer.init(params)
        updates, _ = optax.with_extra_args_support(optimizer).update(params, own, params, value=value, num_steps=value)
        return optax.apply_updates(params, updates)

    try:
        jax.eval_shape(step, params, jax.ShapeDtypeStruct((), jnp.float32))
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise TypeError(
            "optimizer cannot take a step from the gradient, the parameters and the loss; expected an optax transformation "
            f"without a line search, such as optax.adam(1e-3): {reason}"
        ) from error


def _shapes(data: PyTree, events: int | None = None) -> PyTree:
    """Data as shapes, with so many events."""

    def shape_of(a):
        length = a.shape[:1] if events is None else (events,)
        return jax.ShapeDtypeStruct((*length, *a.shape[1:]), jax.dtypes.canonicalize_dtype(a.dtype))

    return jax.tree.map(shape_of, data)


def identity(key, model, data, augment, setting: Setting, ema, num_steps, params: PyTree) -> dict[str, str]:
    """What a stored fit must share to be the same fit. The schedule of the default optimizer depends on num_steps; one of the
    caller's own (num_steps None) is known by its state for `params`, so that another rate is the same fit."""
    parts = {
        "key": fingerprint(key), "model": fingerprint(model), "data": fingerprint(data), "batch size": str(setting.batch_size),
        "events held out": str(setting.held_out), "ema": str(ema), "number of steps": str(num_steps),
        "optimizer": f"own {_make(setting.optimizer, params)}" if num_steps is None else "default",
    }  # fmt: skip
    # Named only where they are asked for, so that a fit stored before there was such a choice can be gone on with.
    asked = {
        "accumulation": (setting.parts > 1, setting.parts), "batches": (setting.epochs, "epochs"),
        "augmentation": (augment is not None, fingerprint(augment)),
    }  # fmt: skip
    return parts | {name: str(value) for name, (given, value) in asked.items() if given}


def differing(held: dict[str, str], own: dict[str, str]) -> list[str]:
    """The parts in which a stored fit, as `identity` named them, is another one than this."""
    differs = {part for part in held | own if held.get(part) != own.get(part)}
    # A store made before an optimizer's state was looked at says no more than that it is one of the caller's own.
    unsaid = held.get("optimizer") == "own" and own["optimizer"] != "default"
    return sorted(differs - {"optimizer"} if unsaid else differs)


def _make(optimizer, params: PyTree) -> str:
    """Structure, shapes and dtypes of an optimizer's state."""
    leaves, structure = jax.tree.flatten(jax.eval_shape(optimizer.init, params))
    return fingerprint((structure, [f"{a.dtype}{a.shape}" for a in leaves]))
