"""What a run has done so far: its draws, its counts and bill, and where its lanes stand.

The loops (`loops.py`) tell it what happened; it moves the bar, sets the pace of the blocks, hands draws to the store, and saves
and restores all of it, so that a run cut off anywhere goes on from its last checkpoint.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from gensamp.core import Bill, Info, PyTree
from gensamp.parallel import AXIS, put
from gensamp.plan import Plan
from gensamp.store import DiskStore, MemoryStore, key_words, like_saved, save_checkpoint

__all__ = ["BLOCK_SECONDS", "SAMPLE", "TUNE", "Run"]

BLOCK_SECONDS = 0.5
SAVE_SECONDS = 2.0
# The phases that are billed, as places in `Run.spent`.
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
        self.saved_place = None if saved is None else (self.index, self.done)
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

    def fell_short(self, info: Info) -> int:
        """How many finite populations say that they did not get to the end of their path."""
        finite = self.plan.num_steps is not None and self.plan.population > 1
        return int(np.sum(info.diverged)) if finite and info.diverged is not None else 0

    def save(self, carried: Callable[[], PyTree], *, last: bool = False) -> None:
        """Checkpoint the lanes, at most every few seconds, so that saving stays a small part of the run.

        carried: () -> the states of the lanes. last: whether the run ends here, and is saved unless it was here before.
        """
        due = time.perf_counter() - self.saved_at > max(SAVE_SECONDS, 20 * self.save_cost)
        if self.shelf.checkpoint is None or not (due or last) or self.saved_place == (self.index, self.done):
            return
        began = time.perf_counter()
        self.settle()
        tree = {
            "done": self.done, "index": self.index, "nonfinite": self.nonfinite,
            "bills": [list(row) for row in self.spent],
            "lanes": {str(i): np.asarray(key_words(leaf)) for i, leaf in enumerate(jax.tree.leaves(carried()))},
        }  # fmt: skip
        tree["identity"] = np.frombuffer(json.dumps(self.shelf.identity).encode(), np.uint8)
        if self.plan.num_steps is not None and self.plan.each is not None:
            tree["each"] = np.frombuffer(self.plan.rows_of_each(self.done).encode(), np.uint8)
        save_checkpoint(self.shelf.checkpoint, self.index + self.done * (1 + (self.plan.num_steps or 0)), tree)
        self.saved_at, self.saved_place = time.perf_counter(), (self.index, self.done)
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
