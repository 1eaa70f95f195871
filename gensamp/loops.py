"""The host's side of a run: the loops between compiled blocks.

`run_chains` advances chains without end, all lane blocks in step; `run_finite` makes the draws of a finite sampler one lane
block after another. What they have done so far is kept by a `Run` (`progress.py`).
"""

import time
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from gensamp import lanes
from gensamp.core import Info, PyTree
from gensamp.parallel import AXIS, put
from gensamp.plan import Plan, recall
from gensamp.progress import BLOCK_SECONDS, SAMPLE, Run
from gensamp.store import key_words

__all__ = ["Chains", "run_chains", "run_finite"]

BUFFER_BYTES = 2**24
BUFFER_ROWS = 2**15


class Chains:
    """Chains where they stand, in lane blocks, and what they have drawn that is not recorded yet.

    row: what is recorded of one draw, as shapes. fixed: counts that are the same number at every step; counted: the others.
    capacity: draws that a buffer holds; each lane block has one that fills, and while the host records it, another.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.firsts = range(0, plan.width, plan.lanes)
        self.blocks = [plan.block(first) for first in self.firsts]
        self.states = [
            lanes.begin[plan.effort](plan.maker, each, plan.key, ids, initial, mesh=plan.mesh)
            for each, ids, initial in self.blocks
        ]
        shapes = recall(plan.facts, "chain shapes", lambda: lanes.lane_shapes(plan.maker, self.blocks[0][0], self.states[0]))
        info, position, self.fixed = shapes
        self.counted = tuple(name for name in lanes.COUNTS if name not in self.fixed)
        self.row = lanes.recorded(info, position)
        self.kept = recall(plan.facts, "chain row", lambda: jax.eval_shape(lanes.packed, info, position))
        row_bytes = plan.width * sum(a.dtype.itemsize * a.size for a in self.kept.values())
        self.capacity = int(np.clip(BUFFER_BYTES // max(row_bytes, 1), 1, BUFFER_ROWS))
        self.filling = self._emptied()
        # (first draw, draw after the last, buffers) that the host has yet to record, and buffers that it is done with.
        self.waiting: list[tuple[int, int, list[dict[str, Any]]]] = []
        self.spare: list[list[dict[str, Any]]] = []

    def restore(self, run: Run) -> None:
        """Stand where the run was saved."""
        rows = [np.minimum(np.arange(first, first + self.plan.lanes), self.plan.width - 1) for first in self.firsts]
        self.states = [run.restored(state, row) for state, row in zip(self.states, rows, strict=True)]

    def carried(self) -> PyTree:
        """The states as host arrays [chain, ...]."""
        return _joined(self.states, self.plan.width)

    def lowered(self) -> Any:
        """The program of a step, lowered: who compiles it finds it compiled when steps are taken."""
        program, arguments, options = self._step(0, 0, 1, 0)
        return program.lower(*arguments, **options)

    def advance(self, run: Run, stop: int, first: int) -> None:
        """Take all chains from step `run.index` to `stop`, the draw of step `first` in the first row of their buffers."""
        began, compiled = time.perf_counter(), run.clock.seconds
        self.filling = self.filling or (self.spare.pop() if self.spare else self._emptied())
        counts = []
        for b in range(len(self.blocks)):
            program, arguments, options = self._step(b, run.index, stop, first)
            self.states[b], count, self.filling[b] = program(*arguments, **options)
            counts.append(count)
        # The devices are at work.
        self.record(run)
        jax.block_until_ready(self.filling)
        steps = stop - run.index
        summed = {name: each * steps * self.plan.width for name, each in self.fixed.items()}
        run.count(**summed, **(_joined(counts, self.plan.width) if self.counted else {}))
        run.timed(began, compiled, steps)
        run.index = stop

    def hand_over(self, base: int, reached: int) -> None:
        """Let the buffers, which hold the draws base <= i < reached, wait to be recorded."""
        if reached > base:
            self.waiting.append((base, reached, self.filling))
            self.filling = []

    def record(self, run: Run) -> None:
        """Record the draws that wait for it."""
        while self.waiting:
            base, reached, buffers = self.waiting.pop()
            for first, buffer in zip(self.firsts, buffers, strict=True):
                rows = slice(first, min(first + self.plan.lanes, self.plan.width))
                valid = (slice(reached - base), slice(rows.stop - first))
                values = {dtype: np.moveaxis(np.asarray(a)[valid], 0, 1) for dtype, a in buffer.items()}
                values = lanes.unpacked(values, self.row)
                run.record(rows, slice(base, reached), _walkers_first(values, 2, self.plan.population))
            run.done = reached
            self.spare.append(buffers)

    def _step(self, b: int, start: int, stop: int, first: int) -> tuple[Any, tuple, dict[str, Any]]:
        each, ids, _ = self.blocks[b]
        span = [np.int32(value) for value in (start, stop, first)]
        thin = None if self.plan.thin == 1 else np.int32(self.plan.thin)
        arguments = (self.plan.maker, each, self.plan.key, ids, self.states[b], self.filling[b], *span, thin)
        return lanes.advance[self.plan.effort], arguments, {"counted": self.counted, "mesh": self.plan.mesh}

    def _emptied(self) -> list[dict[str, Any]]:
        shapes = _with_axes(self.kept, self.capacity, self.plan.lanes)
        return [_zeros(shapes, self.plan.mesh, lanes.ROWS) for _ in self.blocks]


def run_chains(plan: Plan, run: Run, until: Any) -> bool:
    """Advance chains without end to their last draw; True when the stopping rule ended them before it."""
    chains = Chains(plan)
    if run.saved_lanes:
        chains.restore(run)
    else:
        _check_start(chains.carried())
    run.shelf.open(_walkers_first(_with_axes(chains.row, plan.width), 1, plan.population), plan.num_draws)
    run.bar.update(run.index)
    while run.index < plan.warmup and not run.interrupted.is_set():
        chains.advance(run, min(run.index + run.steps(), plan.warmup), run.index)
        run.save(chains.carried)
    if run.index < plan.warmup:
        run.save(chains.carried, last=True)
        return False
    run.settle(phase=SAMPLE)

    # A rule may end a run for how its steps went as well.
    looked_at = ("position", "acceptance", "diverged") if hasattr(until, "too_bold") else ("position",)

    def decided() -> bool:
        nonlocal look
        if until is None or reached != look:
            return False
        look = until.next_look(reached)
        position, *steps = (jax.tree.map(lambda a: a[:, :reached], run.shelf.arrays[name]) for name in looked_at)
        return until.met(position) or (bool(steps) and until.too_bold(*steps))

    # A stored run's checkpoint is of the states after its last recorded draw, so the devices may not run ahead of it.
    ahead = run.shelf.checkpoint is None
    base = reached = run.done
    turned = time.perf_counter()
    look = plan.num_draws if until is None else until.next_look(reached - 1)
    # A resumed run may stand at a look already: then the rule decides before another step is taken.
    met = decided()
    try:
        while not met and reached < plan.num_draws and not run.interrupted.is_set():
            room = min(plan.num_draws, base + chains.capacity, look)
            reached = min(room, reached + max(1, run.steps(plan.thin) // plan.thin))
            chains.advance(run, plan.warmup + reached * plan.thin, plan.warmup + base * plan.thin)
            if reached < room and time.perf_counter() - turned < BLOCK_SECONDS:
                continue
            chains.hand_over(base, reached)
            base, turned = reached, time.perf_counter()
            if ahead and reached < look:
                continue
            chains.record(run)
            met = decided()
            run.save(chains.carried)
        chains.hand_over(base, reached)
    finally:
        chains.record(run)
    run.save(chains.carried, last=True)
    return met


def run_finite(plan: Plan, run: Run, num_steps: int) -> None:
    """Make the draws of a finite sampler, lane block after lane block."""
    first, advanced, finished = recall(plan.facts, ("parts", plan.mesh), lambda: lanes.parts(plan.maker))
    info, constant, row = recall(plan.facts, "finite shapes", lambda: _finite_shapes(plan, first, advanced, finished))
    place = plan.lanes, plan.mesh
    zeros = recall(plan.facts, ("zeros", *place), lambda: _zeros(_with_axes(info, plan.lanes), plan.mesh, P(AXIS)))
    run.shelf.open(row, plan.num_draws)
    run.bar.update(run.done // plan.lanes * num_steps + run.index)
    while run.done < plan.num_draws:
        each, ids, _ = recall(plan.facts if run.done == 0 else {}, ("block", *place), lambda: plan.block(run.done))
        states = lanes.begin[plan.effort](first, each, plan.key, ids, None, mesh=plan.mesh)
        carried, made = (states, zeros), None
        if run.index and run.saved_lanes and len(run.saved_lanes["0"]) == plan.lanes:
            carried = run.restored(carried, np.arange(plan.lanes))
        else:
            run.index = 0
        while run.index < num_steps and not run.interrupted.is_set():
            began, compiled = time.perf_counter(), run.clock.seconds
            stop = min(run.index + run.steps(), num_steps)
            span = (np.int32(run.index), np.int32(stop))
            carried = lanes.advance_finite[plan.effort](advanced, each, plan.key, ids, *carried, *span, mesh=plan.mesh)
            if stop == num_steps:
                made = lanes.finish[plan.effort](finished, each, carried[0], mesh=plan.mesh)
            jax.block_until_ready(carried)
            run.timed(began, compiled, stop - run.index)
            run.index = stop
            run.save(lambda: carried)  # noqa: B023
        if run.index < num_steps:
            run.save(lambda: carried, last=True)  # noqa: B023
            return
        # A run may be gone on with after its last step.
        positions, log_weights = made or lanes.finish[plan.effort](finished, each, carried[0], mesh=plan.mesh)
        totals = _finished(carried[1], constant, plan.lanes, num_steps)
        rows = slice(run.done, min(run.done + plan.lanes, plan.num_draws))
        values = _recorded_draw(totals, positions, log_weights)
        values = jax.tree.map(lambda a: np.asarray(a)[None, : rows.stop - rows.start], values)  # noqa: B023
        run.record(slice(0, 1), rows, values)
        counted = values["info"]
        run.count(counted["gradients"], counted["densities"], counted["forwards"])
        run.done, run.index, run.saved_lanes = rows.stop, 0, {}
        run.save(lambda: (), last=run.done == plan.num_draws or run.interrupted.is_set())


def _finite_shapes(plan: Plan, first: Any, advanced: Any, finished: Any) -> tuple[Info, dict[str, Any], dict[str, Any]]:
    """As shapes, what is summed of the Info of one lane; what needs no summing; what is recorded of a draw, [1, ...]."""
    each, ids, _ = plan.block(0)
    # Asked of the jitted functions themselves, which remember their traces: a lambda around them would trace anew.
    states = lanes.begin[plan.effort].eval_shape(first, each, plan.key, ids, None, mesh=plan.mesh)
    info, _, constant = lanes.step_shapes(advanced, each, states)
    made = lanes.finish[plan.effort].eval_shape(finished, each, states, mesh=plan.mesh)
    row = _with_axes(_recorded_draw(info, *jax.tree.map(_one_lane, made)), 1)
    return replace(info, **dict.fromkeys(constant)), constant, row


def _finished(totals: Info, constant: dict[str, Any], width: int, num_steps: int) -> Info:
    """The Info of finished draws [width]: counts summed over steps, the acceptance averaged, diverged if any step was."""
    if totals.acceptance is not None:
        totals = replace(totals, acceptance=np.asarray(totals.acceptance) / np.float32(max(num_steps, 1)))
    whole = {name: value * num_steps if name in lanes.COUNTS else value for name, value in constant.items()}
    dtypes = {"acceptance": np.float32, "diverged": bool}
    return replace(totals, **{name: np.full(width, value, dtypes.get(name, np.int32)) for name, value in whole.items()})


def _recorded_draw(info: Info, position: PyTree, log_weight: Any) -> dict[str, Any]:
    """What is recorded of a finite draw."""
    row = {"position": position, "info": {name: getattr(info, name) for name in Info.__dataclass_fields__}}
    return row if log_weight is None else row | {"log_weight": log_weight}


def _walkers_first(values: PyTree, axis: int, population: int) -> PyTree:
    """Recorded rows with the walkers of a population (at `axis` of each position) as chains: [run * walker, ...]."""
    if population == 1:
        return values

    def move(a):
        if isinstance(a, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct((a.shape[0] * population, *a.shape[2:]), a.dtype)
        a = np.moveaxis(a, axis, 1)
        return a.reshape(-1, *a.shape[2:])

    return values | {"position": jax.tree.map(move, values["position"])}


def _one_lane(leaf) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)


def _check_start(state: PyTree) -> None:
    """Refuse chains that stand where the target, or what the sampler caches of it, is not finite."""
    bad = [
        ~np.isfinite(a).reshape(len(a), -1).all(axis=1) for a in jax.tree.leaves(state) if jnp.issubdtype(a.dtype, jnp.floating)
    ]
    if bad and np.any(bad):
        chains = np.flatnonzero(np.any(bad, axis=0)).tolist()
        raise ValueError(
            f"chains {chains} start where the log density or its gradient is not finite; give initial= inside the support"
        )


def _joined(states: list[PyTree], width: int) -> PyTree:
    """The states of all lane blocks as host arrays [chain, ...], without padding."""
    return jax.tree.map(lambda *parts: np.concatenate([np.asarray(key_words(part)) for part in parts])[:width], *states)


def _with_axes(shapes: PyTree, *axes: int) -> PyTree:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((*axes, *a.shape), a.dtype), shapes)


def _zeros(shapes: PyTree, mesh, spec) -> PyTree:
    return put(jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes), mesh, spec)
