"""fit: the one training loop, for every model, from data or from a density.

    theta_{i+1} = theta_i + update(grad loss(theta_i, state_i, key_i, batch_i)),    i = 0, ..., num_steps - 1

A fit is a Python loop over compiled chunks of steps (`descent.py`). Between them, and only there, stand the progress bar, the
validation loss, the checkpoint and Ctrl-C. Data go to the device once. What is learned depends on the key, the data and
num_steps, never on how the steps were cut into chunks or whether the run was interrupted and resumed.

    shapes: data [events, ...];    history [steps];    with an array of keys: params [seeds, ...], history [seeds, steps]
"""

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from tqdm.auto import tqdm

from gensamp import descent, memory
from gensamp.clock import compile_clock
from gensamp.core import Bill, Ledger, Model, PyTree
from gensamp.descent import Setting
from gensamp.fit_checks import check_arguments, check_augment, check_empty, check_model, check_store, differing, identity
from gensamp.interrupt import interruptible
from gensamp.parallel import put
from gensamp.runner import shown
from gensamp.store import key_words, like_saved, load_checkpoint, save_checkpoint

__all__ = ["Fitted", "fit"]

CAPACITY = 1024
CHUNK_SECONDS = 0.5
SAVE_SECONDS = 2.0
VALIDATIONS = 20
COUNTS = ("gradients", "densities", "forwards")


@dataclass(frozen=True, eq=False)
class Fitted:
    """What comes out of `fit`; with an array of keys every array has a leading axis of seeds.

    params: the parameters after the last step that was taken. ema: their exponential moving average, or None. state: the
    model's state. history: NumPy arrays "loss" [steps] and "metrics" (a dict of them), one entry per step, NaN after a seed has
    failed; "validation" and "validation_step" [validations]: mean loss over the held-out events after that many steps.
    ledger: the bill, under `fit`. ending: how the run ended. message: why it did not finish.
    """

    params: Any
    ema: Any
    state: Any
    history: dict[str, Any]
    ledger: Ledger
    ending: Literal["finished", "interrupted", "failed"]
    message: str


def fit(
    key: jax.Array,
    model: Model,
    data: PyTree,
    *,
    optimizer: optax.GradientTransformation | None = None,
    num_steps: int = 1000,
    batch_size: int = 128,
    batches: Literal["drawn", "epochs"] = "drawn",
    accumulate: int = 1,
    augment: Callable | None = None,
    ema: float | None = None,
    validation: float = 0.0,
    mesh: Mesh | None = None,
    store: Any = None,
    resume: bool = False,
    progress: bool | None = None,
) -> Fitted:
    """Train a model.

    Args:
        key: a typed key, or an array of them [seeds]: then that many models are trained side by side in one program.
        model: what to train.
        data: tree of NumPy or JAX arrays with a leading axis of events; a pair (events, conditions) for a conditional model;
            None for a model that learns from a density. The events of a learned map are floating-point numbers; conditions may
            be of any real dtype.
        optimizer: an optax transformation that takes the gradient, the parameters and at most the loss (`value=`), so no line
            search such as `optax.lbfgs()`. It is compiled in, and known by identity: make it once and pass the same object,
            since `optax.adam(1e-3)` made anew compiles anew. By default Adam behind a clip of the gradient's global norm at 1,
            with a rate that warms up to 1e-3 over 5 % of the steps and falls to 0 along a cosine.
        num_steps: gradient steps.
        batch_size: events per step.
        batches: "drawn" with replacement, or "epochs": every event once, in an order that is shuffled on the device, before any
            comes again; what is left of an order after its last whole batch is left out, other events in each epoch.
        accumulate: parts, dividing batch_size, in which a batch is taken one after another, with one update after the last: the
            memory of a smaller batch and the gradient of the whole one, to rounding, where the loss is a mean over events and
            adds no noise of its own; otherwise other noise of the same law.
        augment: (key, event) -> event, such as `gensamp.augment.flip()`, applied anew to every event that is trained on.
        ema: decay of an exponential moving average of the parameters, such as 0.999; it is debiased.
        validation: share of the events held out, drawn by the key; their loss is computed 20 times, at the averaged parameters
            where there are any. Zero holds out nothing.
        mesh: devices to spread each batch over (`parallel.mesh()`); one device by default.
        store: folder for checkpoints, written every few seconds and at the end.
        resume: go on from the newest checkpoint in `store`, to the same bits as without the interruption. With an optimizer of
            your own, a larger num_steps extends a finished run.
        progress: show a bar; by default only in a terminal or a notebook.

    Returns:
        Fitted. After Ctrl-C it holds what there is (a second Ctrl-C raises). When a loss or a gradient is not finite the step
        is not taken, and the fit ends as "failed" with the parameters before it; when a checkpoint cannot be written, with
        those that were reached.

        Spent: num_steps * batch_size * model.forwards forwards (num_steps * model.forwards without data), those of the
        validation, and what a model counts itself in metrics named "gradients", "densities" and "forwards".

    Raises:
        TypeError, ValueError, FileExistsError: bad input, in one sentence, before anything is compiled.
        ImportError: store= without orbax, before anything is compiled.
        MemoryError: the device has too little memory; it names the batch that fits. What is in `store` can be gone on with.
    """
    started = time.perf_counter()
    setting = check_arguments(
        key, model, data, optimizer, num_steps, batch_size, ema, validation, mesh, batches, accumulate
    )  # fmt: skip
    augment = check_augment(augment, data)
    if resume and store is None:
        raise ValueError("resume=True needs store=, the folder of the fit to go on with")
    row, params = check_model(key, model, data, setting)
    checkpoints = None
    if store is not None:
        own = identity(key, model, data, augment, setting, ema, num_steps if optimizer is None else None, params)
        checkpoints = _Checkpoints(check_store(store), own, resume, num_steps)
    with compile_clock() as clock, interruptible() as interrupted:
        decay = 0.0 if ema is None else ema
        run = _Run(model, data, augment, key, setting, row, num_steps, decay, clock, started, checkpoints)
        with tqdm(total=num_steps, initial=run.index, disable=not shown(progress), unit="step") as bar:
            while run.index < num_steps and not run.stopped and not run.unsaved and not interrupted.is_set():
                bar.update(run.advance())
                if not bar.disable:
                    bar.set_postfix(loss=f"{run.recent_loss():.4g}", refresh=False)
        run.save(last=True)
        average = run.average()
    ending, message = run.ending()
    if message:
        warnings.warn(message, stacklevel=2)
    return Fitted(run.carry.params, average, run.carry.state, run.history(), Ledger(fit=run.bill()), ending, message)


class _Run:
    """A fit in progress: the carry on the device, the history on the host, and when to save.

    index: steps taken. rows: what each chunk recorded, arrays [steps, ...]. validations: (steps taken, loss). unsaved: why a
    checkpoint could not be written, or "".
    """

    def __init__(
        self, model, data, augment, key, setting: Setting, row, num_steps: int, decay: float, clock, started, checkpoints
    ) -> None:
        self.setting, self.num_steps, self.decay, self.clock = setting, num_steps, np.float32(decay), clock
        self.events = None if data is None else len(jax.tree.leaves(data)[0])
        self.model, self.data, self.key, self.augment = self._placed((model, data, key, augment))
        self.carry, self.order = descent.begin(self.model, self.data, self.key, setting=setting)
        seeds = key.shape
        self.buffer = self._placed(jax.tree.map(lambda a: np.zeros((CAPACITY, *seeds), a.dtype), row))
        self.rows = [jax.tree.map(lambda a: np.zeros((0, *seeds), a.dtype), row)]
        self.validations: list[tuple[int, np.ndarray]] = []
        self.index, self.pace, self.unsaved = 0, 16, ""
        self.earlier, self.started, self.checkpoints = Bill(), started, checkpoints
        if checkpoints is not None and checkpoints.found is not None:
            self._restore(*checkpoints.found)

    @property
    def failed(self) -> np.ndarray:
        """The step each seed failed at, -1 while it has not [seeds]."""
        return np.atleast_1d(np.asarray(self.carry.failed))

    @property
    def stopped(self) -> bool:
        """Whether no seed is left that can go on."""
        return bool((self.failed >= 0).all())

    def advance(self) -> int:
        """One chunk of steps; returns how many."""
        began, compiled, start = time.perf_counter(), self.clock.seconds, self.index
        every = -(-self.num_steps // VALIDATIONS) if self.setting.held_out else self.num_steps
        stop = min(start + min(self.pace, CAPACITY), self.num_steps, (start // every + 1) * every)
        span = (np.int32(start), np.int32(stop), np.float32(self.num_steps), self.decay)
        arguments = (self.model, self.data, self.order, self.key, self.carry, self.buffer, *span, self.augment)
        try:
            self.carry, self.buffer = jax.block_until_ready(descent.advance(*arguments, setting=self.setting))
        except jax.errors.JaxRuntimeError as error:
            if not memory.is_exhausted(error):
                raise
            raise MemoryError(memory.fit_advice(self.setting, arguments, error)) from error
        if self.stopped:
            stop = int(self.failed.max()) + 1
        self.rows.append(jax.tree.map(lambda a: np.array(a[: stop - start]), jax.device_get(self.buffer)))
        self.index = stop
        if self.setting.held_out and (stop % every == 0 or stop == self.num_steps):
            count = np.int32(stop)
            loss = descent.validate(
                self.model, self.data, self.order, self.key, self.carry, count, self.decay, setting=self.setting
            )
            self.validations.append((stop, np.asarray(loss)))
        seconds = time.perf_counter() - began - (self.clock.seconds - compiled)
        if seconds < CHUNK_SECONDS / 2:
            self.pace = min(4 * self.pace, CAPACITY)
        elif seconds > 2 * CHUNK_SECONDS:
            self.pace = max(1, self.pace // 2)
        self.save()
        return stop - start

    def average(self) -> PyTree:
        """The averaged parameters, or None."""
        if not self.setting.averaging:
            return None
        return descent.averaged(self.carry, np.int32(self.index), self.decay, setting=self.setting)

    def recent_loss(self) -> float:
        """Mean loss over the last chunk and all seeds."""
        return float(np.mean(self.rows[-1]["loss"]))

    def recorded(self) -> PyTree:
        """Loss and metrics of all steps, [steps, ...]."""
        self.rows = [jax.tree.map(lambda *parts: np.concatenate(parts), *self.rows)]
        return self.rows[0]

    def history(self) -> dict[str, Any]:
        """See `Fitted`: the seeds first, the counts left to the bill."""
        recorded = jax.tree.map(np.transpose, self.recorded())
        metrics = {name: values for name, values in recorded["metrics"].items() if name not in COUNTS}
        values = np.asarray([loss for _, loss in self.validations], recorded["loss"].dtype)
        values = values.reshape(len(self.validations), *self.carry.failed.shape).T
        steps = np.asarray([step for step, _ in self.validations], int)
        return {"loss": recorded["loss"], "metrics": metrics, "validation": values, "validation_step": steps}

    def bill(self) -> Bill:
        """Everything spent, interrupted runs before this one included."""
        recorded = self.recorded()
        taken = int(np.where(self.failed < 0, self.index, self.failed + 1).sum())
        forwards = taken * (1 if self.events is None else self.setting.batch_size)
        forwards += len(self.validations) * self.setting.held_out * self.failed.size
        counted = {name: int(np.sum(recorded["metrics"].get(name, 0), dtype=np.int64)) for name in COUNTS}
        counted["forwards"] += forwards * self.model.forwards
        wall = self.earlier.wall_seconds + time.perf_counter() - self.started
        return Bill(**counted, wall_seconds=wall, compile_seconds=self.earlier.compile_seconds + self.clock.seconds)

    def ending(self) -> tuple[Literal["finished", "interrupted", "failed"], str]:
        """How the run ended, and the sentence for people."""
        failed = self.failed
        if (failed >= 0).any():
            first = int(failed[failed >= 0].min())
            who = f"seeds {np.flatnonzero(failed >= 0).tolist()} of {failed.size} met" if self.carry.failed.ndim else "met"
            return "failed", (
                f"fit {who} a loss or gradient that is not finite, first at step {first} of {self.num_steps}; the "
                "parameters before that step are returned: lower the learning rate, or look for infinities in the loss"
            )
        if self.unsaved:
            return "failed", (
                f"fit failed after {self.index} of {self.num_steps} steps, whose parameters are returned: the checkpoint could "
                f"not be written ({self.unsaved})"
            )
        if self.index < self.num_steps:
            return "interrupted", f"fit was interrupted after {self.index} of {self.num_steps} steps"
        return "finished", ""

    def save(self, *, last: bool = False) -> None:
        """Checkpoint when one is due; what was trained outlives the folder it should have gone to."""
        if self.checkpoints is None or self.unsaved or not self.checkpoints.due(self.index, last):
            return
        bill = self.bill()
        tree = {
            "carry": {str(i): np.asarray(key_words(leaf)) for i, leaf in enumerate(jax.tree.leaves(self.carry))},
            "rows": {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(self.recorded()))} if self.index else {},
            "validations": {str(step): loss for step, loss in self.validations},
            "wall_seconds": bill.wall_seconds, "compile_seconds": bill.compile_seconds,
        }  # fmt: skip
        try:
            self.checkpoints.save(self.index, tree)
        except Exception as error:
            self.unsaved = f"{type(error).__name__}: {error}".splitlines()[0]

    def _restore(self, index: int, tree: PyTree) -> None:
        self.index = index
        leaves, structure = jax.tree.flatten(self.carry)
        restored = [like_saved(tree["carry"][str(i)], leaf) for i, leaf in enumerate(leaves)]
        self.carry = self._placed(jax.tree.unflatten(structure, restored))
        if index:
            structure = jax.tree.structure(self.rows[0])
            self.rows = [jax.tree.unflatten(structure, [tree["rows"][str(i)] for i in range(structure.num_leaves)])]
        self.validations = [(step, tree["validations"][str(step)]) for step in sorted(map(int, tree["validations"]))]
        self.earlier = Bill(wall_seconds=tree["wall_seconds"], compile_seconds=tree["compile_seconds"])

    def _placed(self, tree: PyTree) -> PyTree:
        return jax.tree.map(jnp.asarray, tree) if self.setting.mesh is None else put(tree, self.setting.mesh, P())


class _Checkpoints:
    """The folder of checkpoints of one fit: what was found in it, and when to write the next.

    Raises (before anything is compiled):
        FileExistsError: the folder holds a fit and resume is False.
        ValueError: it holds another fit (names what differs), or one longer than num_steps.
    """

    def __init__(self, folder: FilePath, identity: dict[str, str], resume: bool, num_steps: int) -> None:
        self.folder, self.identity = folder, identity
        try:
            self.found = load_checkpoint(folder)
        except Exception as error:
            raise ValueError(f"store {folder} cannot be read; choose another folder: {error}".splitlines()[0]) from error
        self.saved_at, self.cost, self.saved_index = time.perf_counter(), 0.0, -1
        if self.found is None:
            check_empty(folder)
            return
        if not resume:
            raise FileExistsError(f"store {folder} already holds a fit; pass resume=True to go on with it, or another folder")
        self.saved_index, tree = self.found
        if "identity" not in tree:
            raise ValueError(f"store {folder} holds checkpoints of something else; choose another folder")
        held = json.loads(np.asarray(tree["identity"], np.uint8).tobytes())
        differs = differing(held, identity)
        if differs:
            verb = "differs" if len(differs) == 1 else "differ"
            raise ValueError(f"store {folder} belongs to another fit: its {', '.join(differs)} {verb}; choose another folder")
        if self.saved_index > num_steps:
            raise ValueError(
                f"store {folder} holds {self.saved_index} steps and num_steps is {num_steps}; expected at least as many"
            )

    def due(self, index: int, last: bool) -> bool:
        """At most every few seconds, so that saving stays a small part of the run."""
        waited = time.perf_counter() - self.saved_at > max(SAVE_SECONDS, 20 * self.cost)
        return self.saved_index != index and (waited or last)

    def save(self, index: int, tree: PyTree) -> None:
        """Write one; the one before it is kept until it is whole."""
        began = time.perf_counter()
        identity = np.frombuffer(json.dumps(self.identity).encode(), np.uint8)
        save_checkpoint(self.folder, index, tree | {"identity": identity})
        self.saved_at, self.saved_index = time.perf_counter(), index
        self.cost = self.saved_at - began
