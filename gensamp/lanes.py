"""The compiled programs of the runner, each by effort: begin, then advance; or for finite samplers advance_finite, finish.

A lane block is a fixed number of draws advanced side by side by one program: `vmap` over the lanes of one device, `shard_map`
over the devices. The number of steps of a call is a traced loop bound and the steps write into a buffer of fixed capacity, so
any chunk length, a longer run and a resumed one are the same program, and give the same bits. The step index is shared by all
lanes and stays outside `vmap`: batched, it would turn every branch on it into a select.

Three things keep a cheap kernel as fast as a bare scan: step keys are hashed for KEY_BLOCK steps at a time, counts that do
not depend on the state (one gradient a step, say) are multiplied on the host, not summed on the device, and what is kept of a
draw is written as one array of each dtype, the divergence as the sign of the acceptance: each array written is a kernel call.

Effort: "full" is XLA's default; "quick" asks its code generator for less, which on a CPU takes a third off the compilation
(more than half with jax 0.10) and slows few programs, so it is for runs that are mostly compilation. Draws may differ in the
last bits.

Shapes: ids [lanes], each and states [lanes, ...], buffer [capacity, lanes, numbers] for each dtype.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from gensamp import core
from gensamp.core import Info, PyTree, Sampler
from gensamp.parallel import AXIS, per_device

__all__ = [
    "COUNTS", "EFFORTS", "advance", "advance_finite", "begin", "finish", "lane_shapes", "packed", "parts", "recorded",
    "resolve", "step_shapes", "unpacked",
]  # fmt: skip

ROWS = P(None, AXIS)
KEY_BLOCK = 64
# Finite samplers may have very many lanes: no more keys than this at a time, but for at least so many steps.
LANE_KEYS = 2**16
LEAST_BLOCK = 4
COUNTS = ("gradients", "densities", "forwards")
NUMBERS = (*COUNTS, "acceptance", "diverged")
QUICK: dict[str, Any] = {"xla_backend_optimization_level": 1}
if jax.__version_info__ < (0, 11):
    # The older of XLA's two code generators takes half the time for code as fast; newer releases have the other one only.
    QUICK["xla_cpu_use_fusion_emitters"] = False
EFFORTS: dict[str, dict[str, Any]] = {"full": {}, "quick": {"compiler_options": QUICK}}


def resolve(maker: Any, each: PyTree) -> Sampler:
    """The sampler of one lane: itself, or made from that lane's slice of `each`."""
    return maker if isinstance(maker, Sampler) else maker(each)


def parts(maker: Any) -> tuple[Any, Any, Any]:
    """What of a sampler (or of a maker: all of it) the programs begin, advance and finish need.

    Each array handed to a program takes the host a microsecond, and a network has hundreds.
    """
    if not isinstance(maker, Sampler):
        return maker, maker, maker
    bare = replace(maker, start=None, init=None, step=None, position=None, log_density=None, log_weight=None)
    return (
        replace(bare, start=maker.start, init=maker.init),
        replace(bare, step=maker.step, position=maker.position),
        replace(bare, position=maker.position, log_weight=maker.log_weight),
    )


def programs(**options: Any) -> Callable[[Callable], dict[str, Any]]:
    """A decorator: the function jitted with these options, once for each effort."""

    def jitted(function: Callable) -> dict[str, Any]:
        return {effort: jax.jit(function, **options, **more) for effort, more in EFFORTS.items()}

    return jitted


@programs(static_argnames="mesh")
def begin(maker, each, key, ids, initial, *, mesh: Mesh):
    """States [lanes, ...] at `initial` positions, or (None) at draws from the start."""

    def one(maker, each, key, id, position):
        return core.begin(jax.random.fold_in(key, id), resolve(maker, each), position)

    def device(maker, each, key, ids, initial):
        return jax.vmap(one, in_axes=(None, 0, None, 0, 0))(maker, each, key, ids, initial)

    split = (P(), P(AXIS), P(), P(AXIS), P(AXIS))
    return per_device(device, mesh, split_in=split, split_out=P(AXIS))(maker, each, key, ids, initial)


@programs(static_argnames=("counted", "mesh"), donate_argnames=("states", "buffer"))
def advance(maker, each, key, ids, states, buffer, start, stop, first, thin, *, counted: tuple[str, ...], mesh: Mesh):
    """Steps start <= i < stop of samplers without end; the draw of step i stands in row (i - first) // thin of the buffer.

    thin is None when every step is a draw. Otherwise a row is overwritten until the last of its `thin` steps.
    Returns states, the counts named in `counted` summed over this call (int32 [lanes] each), and the buffer.
    """

    def device(maker, each, key, ids, states, buffer, start, stop, first, thin):
        keys = _lane_keys(key, ids)

        def step(i, step_keys, carry):
            states, counts, diverged, buffer = carry
            states, info, positions = _step(maker, each, step_keys, states, i)
            slot = i - first
            if thin is not None:
                slot, part = slot // thin, slot % thin
                diverged = info.diverged | (diverged & (part != 0))
                info = replace(info, diverged=diverged)
            row = jax.vmap(packed)(info, positions)
            buffer = jax.tree.map(lambda b, x: jax.lax.dynamic_update_index_in_dim(b, x, slot, 0), buffer, row)
            return states, {name: counts[name] + getattr(info, name) for name in counted}, diverged, buffer

        counts = {name: jnp.zeros(ids.shape, jnp.int32) for name in counted}
        # Whether a step since the last draw diverged; nothing to carry when every step is a draw.
        carry = (states, counts, None if thin is None else jnp.zeros(ids.shape, bool), buffer)
        states, counts, _, buffer = _stepped(step, keys, start, stop, KEY_BLOCK, carry)
        return states, counts, buffer

    split = (P(), P(AXIS), P(), P(AXIS), P(AXIS), ROWS, P(), P(), P(), P())
    mapped = per_device(device, mesh, split_in=split, split_out=(P(AXIS), P(AXIS), ROWS))
    return mapped(maker, each, key, ids, states, buffer, start, stop, first, thin)


@programs(static_argnames="mesh", donate_argnames="states")
def advance_finite(maker, each, key, ids, states, totals, start, stop, *, mesh: Mesh):
    """Steps start <= i < stop of finite samplers; `totals` is the Info summed over steps so far, per lane.

    A part of the totals that is None is not summed.
    """

    def device(maker, each, key, ids, states, totals, start, stop):
        keys = _lane_keys(key, ids)

        def step(i, step_keys, carry):
            states, totals = carry
            states, info, _ = _step(maker, each, step_keys, states, i)
            return states, _added(totals, info)

        return _stepped(step, keys, start, stop, min(KEY_BLOCK, max(LEAST_BLOCK, LANE_KEYS // ids.size)), (states, totals))

    split = (P(), P(AXIS), P(), P(AXIS), P(AXIS), P(AXIS), P(), P())
    mapped = per_device(device, mesh, split_in=split, split_out=(P(AXIS), P(AXIS)))
    return mapped(maker, each, key, ids, states, totals, start, stop)


@programs(static_argnames="mesh")
def finish(maker, each, states, *, mesh: Mesh):
    """Positions [lanes, ...] and log weights [lanes] or [lanes, population] (or None) of finished states."""

    def one(maker, each, state):
        sampler = resolve(maker, each)
        return sampler.position(state), None if sampler.log_weight is None else sampler.log_weight(state)

    def device(maker, each, states):
        return jax.vmap(one, in_axes=(None, 0, 0))(maker, each, states)

    return per_device(device, mesh, split_in=(P(), P(AXIS), P(AXIS)), split_out=P(AXIS))(maker, each, states)


def lane_shapes(maker, each, states) -> tuple[Info, PyTree, dict[str, Any]]:
    """Info and position of one step of one lane, as shapes, and the counts that are the same number at every step."""
    info, position, constant = step_shapes(maker, each, states)
    return info, position, {name: constant[name] for name in COUNTS if name in constant}


def step_shapes(maker, each, states) -> tuple[Info, PyTree, dict[str, Any]]:
    """The same, with whatever of the Info is the same at every step."""
    each, state = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), (each, states))
    key = jax.eval_shape(lambda: jax.random.key(0))
    traced = _first_step.trace(maker, each, key, state, jax.ShapeDtypeStruct((), jnp.int32))
    outputs = dict(zip(NUMBERS, traced.jaxpr.jaxpr.outvars, strict=False))
    constant = {name: np.asarray(output.val).item() for name, output in outputs.items() if isinstance(output, Literal)}
    return *jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), traced.out_info), constant


def recorded(info: Info, position: PyTree) -> dict[str, Any]:
    """What is recorded of one draw of a chain without end."""
    return {"position": position, "acceptance": info.acceptance, "diverged": info.diverged, "extra": info.extra}


def packed(info: Info, position: PyTree) -> dict[str, Any]:
    """The numbers of one draw as a buffer keeps them: side by side in one array [numbers] for each dtype."""
    row = recorded(info, position)
    acceptance = jnp.abs(info.acceptance)  # a NaN may come with either sign
    row["acceptance"] = jnp.where(row.pop("diverged"), -acceptance, acceptance)
    kinds: dict[str, list] = {}
    for leaf in jax.tree.leaves(row):
        kinds.setdefault(str(leaf.dtype), []).append(jnp.ravel(leaf))
    return {dtype: jnp.concatenate(parts) for dtype, parts in kinds.items()}


def unpacked(rows: dict[str, np.ndarray], like: dict[str, Any]) -> dict[str, Any]:
    """Rows of a buffer, on the host, [..., numbers] of each dtype, as they are recorded: trees like `like`, as views."""
    used = dict.fromkeys(rows, 0)

    def cut(leaf):
        dtype, size = str(leaf.dtype), int(np.prod(leaf.shape))
        start, used[dtype] = used[dtype], used[dtype] + size
        part = rows[dtype][..., start : start + size]
        return part.reshape(*part.shape[:-1], *leaf.shape)

    whole = jax.tree.map(cut, {name: part for name, part in like.items() if name != "diverged"})
    acceptance = whole["acceptance"]
    return whole | {"acceptance": np.abs(acceptance), "diverged": np.signbit(acceptance)}


@jax.jit
def _first_step(maker, each, key, state, index):
    """Never run: a jitted function remembers its traces, so a second run of a sampler is not traced again."""
    _, info, position = _step_one(maker, each, key, state, index)
    return info, position


def _lane_keys(key, ids):
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, ids)


def _event_keys(keys, event):
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, event)


def _added(totals: Info, info: Info) -> Info:
    """What is summed, with one step more."""

    def sum_of(name):
        add = jnp.logical_or if name == "diverged" else jnp.add
        return jax.tree.map(add, getattr(totals, name), getattr(info, name))

    return replace(totals, **{name: sum_of(name) for name in Info.__dataclass_fields__ if getattr(totals, name) is not None})


def _stepped(step, keys, start, stop, size: int, carry):
    """carry after step(i, keys of event i + 1, carry) for start <= i < stop, keys being hashed for `size` steps at a time."""

    def block(number, carry):
        begin = start + number * size
        step_keys = jax.vmap(_event_keys, in_axes=(None, 0))(keys, begin + 1 + jnp.arange(size, dtype=jnp.int32))
        end = jnp.minimum(begin + size, stop)
        return jax.lax.fori_loop(begin, end, lambda i, carry: step(i, step_keys[i - begin], carry), carry)

    return jax.lax.fori_loop(0, (stop - start + size - 1) // size, block, carry)


def _step(maker, each, keys, states, index):
    return jax.vmap(_step_one, in_axes=(None, 0, 0, 0, None))(maker, each, keys, states, index)


def _step_one(maker, each, key, state, index):
    sampler = resolve(maker, each)
    state, info = sampler.step(key, state, index)
    return state, info, sampler.position(state)
