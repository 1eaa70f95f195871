"""The host's side of a run: the loops between compiled blocks, and what they keep.

`Run` holds what has been recorded, the counts and the bill, and saves and restores them. `run_chains` advances chains without
end, all lane blocks in step; `run_finite` makes the draws of a finite sampler one lane block after another.
"""

import json
import time
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from gensamp import lanes
from gensamp.core import Bill, Info, PyTree
from gensamp.parallel import AXIS, put
from gensamp.plan import Plan, recall
from gensamp.store import DiskStore, MemoryStore, key_words, like_saved, save_checkpoint

__all__ = ["Chains", "Run", "run_chains", "run_finite"]

BUFFER_BYTES = 2**24
BUFFER_ROWS = 2**15
BLOCK_SECONDS = 0.5
SAVE_SECONDS = 2.0
TUNE, SAMPLE = 0, 1


class Run:
    """Draws recorded so far, the step the lanes stand at, counts, the bill of both phases, and when to save.

    done: draws recorded, per chain. index: the next step (of the lane block in progress, for a finite sampler).
    """

    def __init__(self, plan: Plan, shelf: MemoryStore | DiskStore, started: float) -> None:
        self.plan, self.shelf = plan, shelf
        self.clock: Any = None
        self.bar: Any = None
        self.interrupted: Any = None
        saved = shelf.saved()
        progress = {"done": 0, "index": 0, "nonfinite": 0, "bills": [[0, 0, 0, 0.0, 0.0]] * 2, "lanes": {}}
        progress |= saved or {}
        self.done, self.index, self.nonfinite = (int(progress[name]) for name in ("done", "index", "nonfinite"))
        # Evaluations, seconds of the clock and of compilation, by phase: what a `Bill` says.
        self.spent: list[list[Any]] = [[*map(int, row[:3]), *map(float, row[3:])] for row in progress["bills"]]
        self.saved_lanes: dict[str, np.ndarray] = progress["lanes"]
        if saved is not None and plan.num_steps is not None and plan.each is not None:
            known = bytes(saved["each"]).decode()
            if known != plan.rows_of_each(self.done):
                raise ValueError(
                    f"each changed in the {self.done} rows whose draws the store has; append rows, or choose another store"
                )
            # The block in progress may have been padded with other rows than it has now.
            self.index, self.saved_lanes = 0, {}
        self.phase = TUNE if plan.num_steps is None and self.index < plan.warmup else SAMPLE
        # Where each makes the samplers, the first draws of this call and which chains have left them.
        self.watched = plan.num_steps is None and plan.each is not None and plan.population == 1
        self.resumed_at = self.done
        self.first: dict[int, list[np.ndarray]] = {}
        self.moved = np.zeros(plan.width, bool)
        self.mark, self.compile_mark = started, 0.0
        self.saved_at, self.save_cost = time.perf_counter(), 0.0
        # A sampler that ran before starts at the pace it had.
        self.pace = plan.facts.get(("pace", plan.lanes), 16)

    def timed(self, began: float, compiled: float, steps: int) -> None:
        """A block of `steps` steps is over: move the bar, and set the pace of the next one."""
        self.bar.update(steps)
        seconds = time.perf_counter() - began - (self.clock.seconds - compiled)
        # Of a block that was cut short by the end of the run, nothing follows for longer ones.
        if seconds < BLOCK_SECONDS / 2 and 2 * steps > self.pace:
            self.pace *= 4
        elif seconds > 2 * BLOCK_SECONDS:
            self.pace = max(1, self.pace // 2)
        if self.plan.chunk is None:
            self.plan.facts[("pace", self.plan.lanes)] = self.pace

    def steps(self, per_draw: int = 1) -> int:
        """Steps the next block may take."""
        return self.pace if self.plan.chunk is None else self.plan.chunk * per_draw

    def count(self, gradients: Any, densities: Any, forwards: Any) -> None:
        """Add evaluations to the bill of the present phase."""
        for place, number in enumerate((gradients, densities, forwards)):
            self.spent[self.phase][place] += int(np.sum(number, dtype=np.int64))

    @property
    def bills(self) -> list[Bill]:
        """What warm-up and draws have cost."""
        return [Bill(*row) for row in self.spent]

    def settle(self, phase: int | None = None) -> None:
        """Charge the seconds since the last settling to the present phase, and go on with `phase`."""
        now, compiled = time.perf_counter(), self.clock.seconds
        self.spent[self.phase][3] += now - self.mark
        self.spent[self.phase][4] += compiled - self.compile_mark
        self.mark, self.compile_mark = now, compiled
        self.phase = self.phase if phase is None else phase

    def record(self, chains: slice, draws: slice, values: PyTree) -> None:
        """Write values [chain, draw, ...] and count those that are not finite."""
        self.shelf.write(chains, draws, values)
        leaves = [np.asarray(a).reshape(*a.shape[:2], -1) for a in jax.tree.leaves(values["position"])]
        if not all(np.isfinite(a).all() for a in leaves):
            self.nonfinite += int(np.any([~np.isfinite(a).all(axis=2) for a in leaves], axis=0).sum())
        if self.watched:
            first = self.first.setdefault(chains.start, [a[:, :1].copy() for a in leaves])
            self.moved[chains] |= np.any([(a != b).any(axis=(1, 2)) for a, b in zip(leaves, first, strict=True)], axis=0)

    def unmoved(self) -> list[int]:
        """Chains made by `each` that stand where they stood at the first draw of this call."""
        drawn = self.done - self.resumed_at
        return np.flatnonzero(~self.moved).tolist() if self.watched and drawn > 1 else []

    def save(self, carried: PyTree, *, last: bool = False) -> None:
        """Checkpoint the lanes, at most every few seconds, so that saving stays a small part of the run."""
        due = time.perf_counter() - self.saved_at > max(SAVE_SECONDS, 20 * self.save_cost)
        if self.shelf.checkpoint is None or not (due or last):
            return
        began = time.perf_counter()
        self.settle()
        tree = {
            "done": self.done, "index": self.index, "nonfinite": self.nonfinite,
            "bills": [list(row) for row in self.spent],
            "lanes": {str(i): np.asarray(key_words(leaf)) for i, leaf in enumerate(jax.tree.leaves(carried))},
        }  # fmt: skip
        tree["identity"] = np.frombuffer(json.dumps(self.shelf.identity).encode(), np.uint8)
        if self.plan.num_steps is not None and self.plan.each is not None:
            tree["each"] = np.frombuffer(self.plan.rows_of_each(self.done).encode(), np.uint8)
        save_checkpoint(self.shelf.checkpoint, self.index + self.done * (1 + (self.plan.num_steps or 0)), tree)
        self.saved_at = time.perf_counter()
        self.save_cost = self.saved_at - began

    def restored(self, like: PyTree, rows: np.ndarray) -> PyTree:
        """Saved lanes in place of `like`, on its devices, cut to `rows`."""
        leaves, structure = jax.tree.flatten(like)
        saved = [self.saved_lanes[str(i)][rows] for i in range(len(leaves))]
        keyed = [like_saved(value, leaf) for value, leaf in zip(saved, leaves, strict=True)]
        return put(jax.tree.unflatten(structure, keyed), self.plan.mesh, P(AXIS))

    def recorded(self) -> tuple[dict[str, Any], Info]:
        """What the store holds by name, and the Info of the run."""
        if self.shelf.arrays is None:
            return {"position": None}, Info(0, 0, 0, None, None)
        arrays = self.shelf.read(self.done)
        if self.plan.num_steps is None:
            total = Bill(*(sum(parts) for parts in zip(*self.spent, strict=True)))
            per_draw = (arrays["acceptance"], arrays["diverged"], arrays["extra"])
            return arrays, Info(total.gradients, total.densities, total.forwards, *per_draw)
        if self.plan.population > 1:
            arrays = jax.tree.map(lambda a: a[0], arrays)
        return arrays, Info(**arrays["info"])


class Chains:
    """Chains stood at their starts, and the buffers that their draws go to, one of each per lane block.

    row: what is recorded of one draw, as shapes. fixed: counts that are the same number at every step; counted: the others.
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
        self.buffers = self.emptied()

    def emptied(self) -> list[dict[str, Any]]:
        """Buffers with room for `capacity` draws of each lane block."""
        shapes = _with_axes(self.kept, self.capacity, self.plan.lanes)
        return [_zeros(shapes, self.plan.mesh, lanes.ROWS) for _ in self.blocks]

    def advance(self, b: int, start: int, stop: int, first: int, *, lower: bool = False) -> Any:
        """Take block `b` from step `start` to `stop`, the draw of step `first` in its buffer's first row; its counts.

        lower: take no step, and return the program of it, lowered: who compiles that finds it compiled when steps are taken.
        """
        each, ids, _ = self.blocks[b]
        program = lanes.advance[self.plan.effort]
        span = [np.int32(value) for value in (start, stop, first)]
        thin = None if self.plan.thin == 1 else np.int32(self.plan.thin)
        arguments = (self.plan.maker, each, self.plan.key, ids, self.states[b], self.buffers[b], *span, thin)
        options = {"counted": self.counted, "mesh": self.plan.mesh}
        if lower:
            return program.lower(*arguments, **options)
        self.states[b], counts, self.buffers[b] = program(*arguments, **options)
        return counts


def run_chains(plan: Plan, run: Run, until: Any) -> bool:
    """Advance chains without end to their last draw; True when the stopping rule ended them before it."""
    chains = Chains(plan)
    firsts, states = chains.firsts, chains.states
    if run.saved_lanes:
        rows = [np.minimum(np.arange(first, first + plan.lanes), plan.width - 1) for first in firsts]
        states[:] = [run.restored(state, row) for state, row in zip(states, rows, strict=True)]
    else:
        _check_start(_joined(states, plan.width))
    run.shelf.open(_walkers_first(_with_axes(chains.row, plan.width), 1, plan.population), plan.num_draws)

    # With draws kept in memory, the host records a buffer while the devices fill the other one. A stored run's checkpoint is
    # of the states after its last recorded draw, which the devices may not write over before it is made.
    ahead = run.shelf.checkpoint is None
    waiting: list[tuple[int, int, list[dict[str, Any]]]] = []
    spare: list[list[dict[str, Any]]] = []

    def advance(stop: int, first: int) -> None:
        began, compiled = time.perf_counter(), run.clock.seconds
        if not chains.buffers:
            chains.buffers = spare.pop() if spare else chains.emptied()
        counts = [chains.advance(b, run.index, stop, first) for b in range(len(firsts))]
        flush()
        jax.block_until_ready(chains.buffers)
        summed = {name: each * (stop - run.index) * plan.width for name, each in chains.fixed.items()}
        run.count(**summed, **(_joined(counts, plan.width) if chains.counted else {}))
        run.timed(began, compiled, stop - run.index)
        run.index = stop

    def flush() -> None:
        while waiting:
            base, reached, buffers = waiting.pop()
            for first, buffer in zip(firsts, buffers, strict=True):
                rows = slice(first, min(first + plan.lanes, plan.width))
                valid = (slice(reached - base), slice(rows.stop - first))
                values = {dtype: np.moveaxis(np.asarray(a)[valid], 0, 1) for dtype, a in buffer.items()}
                values = lanes.unpacked(values, chains.row)
                run.record(rows, slice(base, reached), _walkers_first(values, 2, plan.population))
            run.done = reached
            spare.append(buffers)

    run.bar.update(run.index)
    while run.index < plan.warmup and not run.interrupted.is_set():
        stop = min(run.index + run.steps(), plan.warmup)
        advance(stop, run.index)
    if run.index < plan.warmup:
        run.save(_joined(states, plan.width), last=True)
        return False
    run.settle(phase=SAMPLE)
    base = reached = run.done
    turned = time.perf_counter()
    look = plan.num_draws if until is None else until.next_look(reached - 1)
    try:
        while reached < plan.num_draws and not run.interrupted.is_set():
            room = min(plan.num_draws, base + chains.capacity, look)
            if reached < room:
                reached = min(room, reached + max(1, run.steps(plan.thin) // plan.thin))
                advance(plan.warmup + reached * plan.thin, plan.warmup + base * plan.thin)
            # A resumed run may stand at a look already: then the rule decides before another step is taken.
            if reached < room and not run.interrupted.is_set() and time.perf_counter() - turned < BLOCK_SECONDS:
                continue
            if reached > base:
                waiting.append((base, reached, chains.buffers))
                chains.buffers, base = [], reached
            turned = time.perf_counter()
            ends = run.interrupted.is_set() or reached == plan.num_draws
            if ahead and not ends and reached < look:
                continue
            flush()
            met = False
            if until is not None and reached == look:
                met = until.met(jax.tree.map(lambda a: a[:, :reached], run.shelf.arrays["position"]))  # noqa: B023
                look = until.next_look(reached)
            run.save(_joined(states, plan.width), last=met or ends)
            if met:
                return True
    finally:
        flush()
    return False


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
            run.save(carried, last=run.interrupted.is_set())
        if run.index < num_steps:
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
        run.save((), last=run.done == plan.num_draws)


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
