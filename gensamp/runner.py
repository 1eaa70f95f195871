"""sample: the one runner, for chains without end and for finite samplers alike.

A run is a Python loop over compiled blocks of steps (`lanes.py`). Between them, and only there, stand the progress bar, the
writing of draws, the checkpoint, the stopping rule and Ctrl-C; no callback enters compiled code. The number of steps of a block
is an argument of the program, so one compilation serves warm-up, the odd tail, a longer run and a resumed one, and block
lengths adapt to about half a second unless `chunk` fixes them.

Chains without end advance together. The draws of a finite sampler are made one lane block after another.

    leading axes of what comes out:   endless [chain, draw]    finite [1, draw]
                                      endless population [run * walker, draw]    finite population [run, particle]
"""

import sys
import time
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

import jax
import numpy as np
from tqdm.auto import tqdm

from gensamp.clock import compile_clock
from gensamp.core import Info, Ledger, PyTree
from gensamp.interrupt import interruptible
from gensamp.loops import Chains, run_chains, run_finite
from gensamp.plan import make_plan
from gensamp.progress import Run
from gensamp.store import DiskStore, MemoryStore

__all__ = ["Draws", "Until", "sample", "shown"]

Ending = Literal["finished", "converged", "interrupted", "failed"]


@dataclass(frozen=True)
class Until:
    """When to stop chains before `num_draws`: every coordinate has bulk and tail ESS >= ess and rank R-hat <= rhat.

    ess: number of effective draws over all chains. rhat: number above 1, or None to ask for ESS alone. minimum: draws per chain
    before the first look.
    Looks come at fixed draw counts, each half as many again as the last, so where a run stops does not depend on timing. R-hat
    compares chains: with one chain, ask for rhat=None.
    """

    ess: Any = 400
    rhat: Any = 1.01
    minimum: Any = 100

    def __post_init__(self) -> None:
        numbers = {"ess": (self.ess, Real), "minimum": (self.minimum, Integral)}
        numbers |= {} if self.rhat is None else {"rhat": (self.rhat, Real)}
        for name, (value, kind) in numbers.items():
            if isinstance(value, bool) or not isinstance(value, kind):
                raise TypeError(f"Until got {name}={value!r}; expected {'a number' if kind is Real else 'a whole number'}")
        if not self.ess > 0 or not self.minimum >= 8 or not (self.rhat is None or self.rhat > 1):
            raise ValueError(
                f"{self} cannot be met or looked at; expected ess > 0, rhat > 1 (or None) and minimum of 8 or more"
            )

    def next_look(self, num_draws: int) -> int:
        """The first draw count above `num_draws` at which the rule looks."""
        look = self.minimum
        while look <= num_draws:
            look = int(np.ceil(1.5 * look))
        return look

    def met(self, position: PyTree) -> bool:
        """Whether draws [chain, draw, ...] satisfy the rule (Vehtari et al. 2021, by arviz-stats)."""
        return all(self._met_by(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(position))

    @np.errstate(all="ignore")  # quotients of draws that overflow, or that never move, come out as no
    def _met_by(self, leaf: np.ndarray) -> bool:
        from arviz_stats.base import array_stats

        flat = leaf.reshape(*leaf.shape[:2], -1)
        # Ranks of thousands of coordinates take long, and the one that disagrees most says no in no time.
        halves = np.concatenate(np.array_split(flat[:, : flat.shape[1] // 2 * 2], 2, axis=1))
        for i in np.argsort(-halves.mean(1).var(0) / halves.var(1).mean(0)):
            one = flat[:, :, i : i + 1]
            bulk = array_stats.ess(one, chain_axis=0, draw_axis=1, method="bulk")
            tail = array_stats.ess(one, chain_axis=0, draw_axis=1, method="tail", prob=(0.05, 0.95))
            if not min(bulk.item(), tail.item()) >= self.ess:
                return False
            if self.rhat is not None and not array_stats.rhat(one, chain_axis=0, draw_axis=1).item() <= self.rhat:
                return False
        return True


@dataclass(frozen=True, eq=False)
class Draws:
    """What comes out of `sample`.

    position: tree of arrays with the leading axes of the module's docstring (zarr arrays when a store was given). Walkers of a
    population are not independent of each other: compare runs. log_weight: like the leading axes, or None. info: for chains
    the counts summed over the run (Python integers) with acceptance (of the step that ended at the draw) and diverged (since
    the last draw) per draw; for finite samplers all per draw. ledger: the bill, with warm-up under `tune`; the evaluation that
    stands a chain at its start is not a step and not in it. ending: how the run ended. message: what a person should know: why
    it did not finish, or that draws are not finite. nonfinite: draws with a NaN or an infinity in their position. notes: what
    `auto` chose and what it noticed, a sentence each. interrupted: whether Ctrl-C came, be it too late to cut the run short.
    """

    position: Any
    log_weight: Any
    info: Info
    ledger: Ledger
    ending: Ending
    message: str
    nonfinite: int
    notes: tuple[str, ...] = ()
    interrupted: bool = False


def sample(
    key: Any,
    sampler: Any,
    num_draws: int,
    *,
    num_chains: int | None = None,
    warmup: int = 0,
    thin: int = 1,
    initial: PyTree = None,
    each: PyTree = None,
    mesh: Any = None,
    batch: int | None = None,
    chunk: int | None = None,
    until: Any = None,
    store: Any = None,
    resume: bool = False,
    effort: str = "full",
    progress: bool | None = None,
) -> Draws:
    """Draw from any sampler.

    Args:
        key: a typed key. Chain (or draw) c at step i uses fold_in(fold_in(key, c), i + 1): draws depend on nothing else.
        sampler: a Sampler, or with `each` a Partial (one slice of each) -> Sampler.
        num_draws: draws per chain; for a finite sampler, draws (runs, for a population).
        num_chains: chains of a sampler without end (runs, for a population), 4 by default (or as `each` or `initial` says).
        warmup: steps thrown away first; billed under `tune`.
        thin: steps per recorded draw.
        initial: positions [chain, ...] (a population: [run, walker, ...]) to start from, instead of the sampler's own start.
        each: tree of finite arrays with a leading chain (or draw) axis: class labels, step sizes, observations.
        mesh: devices to spread over (`parallel.mesh()`); one device by default.
        batch: lanes per device and program, at least 2. By default all draws of a device (for finite samplers as many as fit
            in 2^18 numbers). Draws have the same bits for any chunk, interruption and sub-mesh when it is set.
        chunk: draws (finite: steps) per compiled block at most; by default blocks last about half a second.
        until: stop early when the rule is met; num_draws is then the most.
        store: path of a zarr group to write draws to; host memory then does not grow with the number of draws.
        resume: go on with the run in `store`; a larger num_draws extends a finished one (a smaller one leaves it as it is).
        effort: "full", or "quick" for runs that are mostly compilation; see `lanes`.
        progress: show a bar; by default only in a terminal or a notebook.

    Returns:
        Draws. After Ctrl-C, or a failure once something was recorded, it holds what was recorded and says so. (A second Ctrl-C
        raises KeyboardInterrupt at once.)

    Raises:
        TypeError, ValueError, FileExistsError: bad input, in one sentence, before the sampling program is compiled.
        ModuleNotFoundError: store= without zarr and orbax.
        MemoryError: the device has too little memory before anything is recorded (it names the batch that fits), or the host
            has too little for so many draws.
    """
    started = time.perf_counter()
    plan = make_plan(
        key, sampler, num_draws, num_chains=num_chains, warmup=warmup, thin=thin, initial=initial, each=each, mesh=mesh,
        batch=batch, chunk=chunk, until=until, store=store, resume=resume, effort=effort,
    )  # fmt: skip
    shelf = MemoryStore() if store is None else DiskStore(store, plan.identity(), resume)
    run = Run(plan, shelf, started)
    ending: Ending = "finished"
    message = ""
    bar = tqdm(total=plan.total_steps, unit="step") if shown(progress) else nullcontext(_NoBar())
    with compile_clock() as run.clock, interruptible() as run.interrupted, bar as run.bar:
        try:
            if plan.num_steps is not None:
                run_finite(plan, run, plan.num_steps)
            elif run_chains(plan, run, until):
                ending = "converged"
        except Exception as error:
            # Imported when it is needed: it knows training too, and that knows optax.
            from gensamp import memory

            exhausted = memory.is_exhausted(error)
            reason = memory.sample_advice(plan, error) if exhausted else error
            nothing = run.done == 0 or shelf.arrays is None
            if nothing and exhausted:
                raise MemoryError(reason) from error
            if nothing:
                raise
            ending, message = "failed", f"failed after {run.done} of {num_draws} draws: {reason}"
        run.settle()
    if ending == "finished" and run.done < num_draws:
        ending, message = "interrupted", f"interrupted after {run.done} of {num_draws} draws"
    if until is not None and ending == "finished":
        message = f"all {num_draws} draws were made before {until} was met"
    if run.nonfinite:
        message = "; ".join(filter(None, [message, f"{run.nonfinite} draws hold a NaN or an infinity (kept, and counted)"]))
    if unmoved := run.unmoved():
        message = "; ".join(filter(None, [message, f"chains {unmoved} never moved; look at their rows of each"]))
    recorded, info = run.recorded()
    if short := run.fell_short(info):
        why = f"{short} of {run.done} populations did not reach the target: no weight was left, or no levels or points"
        message = "; ".join(filter(None, [message, why]))
    if message:
        warnings.warn(message, stacklevel=2)
    ledger = Ledger(tune=run.bills[0], sample=run.bills[1])
    return Draws(
        recorded["position"], recorded.get("log_weight"), info, ledger, ending, message, run.nonfinite,
        interrupted=run.interrupted.is_set(),
    )  # fmt: skip


class _NoBar:
    """A progress bar that nobody sees: making a disabled one takes longer than a step of a small network."""

    def update(self, steps: int) -> None:
        """Nothing."""


def lowered_step(key: Any, sampler: Any, *, initial: PyTree, mesh: Any = None, effort: str = "full") -> tuple[Any, int]:
    """The program with which `sample` will advance chains from such positions: lowered, for another thread to compile.

    Returns:
        What has `compile()`, after which such calls of `sample` find the program; and how many chains were stood at their
        starts for it, each at the cost of one `init`.
    """
    plan = make_plan(key, sampler, 1, initial=initial, mesh=mesh, effort=effort)
    return Chains(plan).lowered(), plan.width


def shown(progress: bool | None) -> bool:
    """Whether to show a progress bar: as asked, else in a terminal or a notebook."""
    if progress is not None:
        return progress
    # Not whether ipykernel was imported: a program that merely runs notebooks imports it too.
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return sys.stderr.isatty() or getattr(shell, "kernel", None) is not None
