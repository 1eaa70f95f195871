"""What to do when a device has no memory left: name the batch that fits.

XLA says only how many bytes it asked for in vain. How many a program needs can be had without running it, from the compiled
program itself (`memory_analysis`: arguments, results and what it holds in between), so the same program is compiled for smaller
batches until one fits; two sizes give a line, and a size read off that line is compiled again before it is named.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from gensamp import descent, lanes
from gensamp.descent import Setting
from gensamp.plan import Plan

__all__ = ["fit_advice", "fitting_size", "is_exhausted", "room", "sample_advice"]

_NEAR = 0.9
"""A size that close to the one that failed is no advice: something else was in memory beside it."""


def is_exhausted(error: BaseException) -> bool:
    """Whether XLA ran out of memory, on a device or on the host."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def fit_advice(setting: Setting, arguments: tuple, error: BaseException) -> str:
    """The sentence for a fit whose batch was too large.

    Args:
        setting, arguments: those of the call of `descent.advance` that failed; arrays may have been donated.
    """
    mesh, failed = setting.mesh, setting.part_size
    multiple = 1 if mesh is None else mesh.size
    shapes = _shapes_of(arguments)

    def needs(part_size: int) -> int:
        # As it will be when accumulated, the sum of gradients included: what fits so fits as a batch of its own.
        parts = max(2, setting.parts)
        smaller = setting._replace(batch_size=part_size * parts, parts=parts, epochs=False)
        return _program_bytes(descent.advance.lower(*shapes, setting=smaller))

    fitting = fitting_size(needs, failed, multiple, room(jax.local_devices()[0] if mesh is None else mesh.devices.flat[0]))
    got = f"fit ran out of memory with {failed} events on the way at one time ({_first_line(error)})"
    if fitting is None:
        return f"{got}, and no smaller batch fits; take a smaller network, fewer events or more devices (mesh=)"
    sizes = {k: setting.batch_size // k for k in range(1, setting.batch_size + 1) if setting.batch_size % k == 0}
    kept = (k for k, size in sizes.items() if size <= fitting and size % multiple == 0)
    same = next((f", or accumulate={k}, which keeps the batch of {setting.batch_size}" for k in kept), "")
    parts = "" if setting.parts == 1 else f" with accumulate={setting.parts}"
    return f"{got}; batch_size={fitting * setting.parts}{parts} fits: pass that{same}"


def sample_advice(plan: Plan, error: BaseException) -> str:
    """The sentence for a run of `sample` whose lanes were too many."""
    failed = plan.lanes // plan.mesh.size
    device = plan.mesh.devices.flat[0]
    fitting = fitting_size(lambda batch: _lanes_bytes(plan, batch), failed, 2, room(device))
    got = f"sample ran out of memory with {failed} draws side by side on a device ({_first_line(error)})"
    if fitting is None:
        return f"{got}, and no smaller batch fits; take fewer chains, a smaller network or more devices (mesh=)"
    return f"{got}; batch={fitting} fits: pass that"


def room(device: Any) -> int | None:
    """Bytes that programs may use on a device: as it says itself, else what the machine has; None where nobody says."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None and device.platform == "cpu" and hasattr(os, "sysconf"):
        limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return limit


def fitting_size(needs: Callable[[int], int], failed: int, multiple: int, limit: int | None) -> int | None:
    """A size below `failed`, a multiple of `multiple`, whose program needs at most `limit` bytes; None where there is none.

    Args:
        needs: (size) -> bytes, compiling a program; one that cannot be compiled for want of memory does not fit.
        limit: bytes there are; None where nobody knows, and then nothing is said to fit.
    """
    if limit is None:
        return None

    def fits(size: int) -> int | None:
        try:
            need = needs(size)
        except jax.errors.JaxRuntimeError as error:
            if not is_exhausted(error):
                raise
            return None
        return need if need <= limit else None

    def rounded(size: float) -> int:
        return int(size) // multiple * multiple

    size = rounded(failed / 2)
    while size >= multiple and (need := fits(size)) is None:
        size = rounded(size / 2)
    if size < multiple:
        return None
    smaller = rounded(size / 2)
    less = fits(smaller) if smaller >= multiple else None
    if less is None or less >= need:
        return size
    guess = rounded(size + (limit - need) * (size - smaller) / (need - less))
    return guess if size < guess < _NEAR * failed and fits(guess) is not None else size


def _program_bytes(lowered: Any) -> int:
    """Bytes per device that a lowered program needs while it runs; compiles it."""
    analysis = lowered.compile().memory_analysis()
    held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return int(held + analysis.temp_size_in_bytes)


def _lanes_bytes(plan: Plan, batch: int) -> int:
    """Bytes per device of a run in blocks of `batch` lanes: its program, and the blocks that wait while it runs."""
    plan = replace(plan, lanes=batch * plan.mesh.size)
    each, ids, initial = _shapes_of(plan.block(0))
    maker, key = _shapes_of((plan.maker, plan.key))
    states = jax.eval_shape(lanes.begin[plan.effort], maker, each, key, ids, initial, mesh=plan.mesh)
    info, position, fixed = lanes.lane_shapes(maker, each, states)
    start, stop = np.int32(0), np.int32(1)
    if plan.num_steps is not None:
        totals = jax.tree.map(lambda a: jax.ShapeDtypeStruct((plan.lanes, *a.shape), a.dtype), info)
        program = lanes.advance_finite[plan.effort]
        return _program_bytes(program.lower(maker, each, key, ids, states, totals, start, stop, mesh=plan.mesh))
    # The buffers of all blocks hold a few megabytes, whatever the batch: one row stands for them. Each has a second one.
    row = jax.eval_shape(lanes.packed, info, position)
    buffer = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, plan.lanes, *a.shape), a.dtype), row)
    counted = tuple(name for name in lanes.COUNTS if name not in fixed)
    program = lanes.advance[plan.effort]
    lowered = program.lower(
        maker, each, key, ids, states, buffer, start, stop, start, None, counted=counted, mesh=plan.mesh
    )  # fmt: skip
    waiting = -(-plan.width // plan.lanes) - 1
    return _program_bytes(lowered) + (waiting * _bytes_of(states) + _bytes_of(buffer)) // plan.mesh.size


def _shapes_of(tree: Any) -> Any:
    """Arrays as shapes, so that a program can be compiled for arguments that are gone or were never made."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a), a.dtype, sharding=getattr(a, "sharding", None)), tree)


def _bytes_of(shapes: Any) -> int:
    return sum(int(np.prod(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(shapes))


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0].rstrip(".")
