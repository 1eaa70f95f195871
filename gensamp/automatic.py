"""auto: draws for somebody who wants draws and no decisions.

    scattered starts -> each let down on its own -> thrown apart again -> warm-up together -> draws until the rule is met

Eight chains of HMC with paths of varying length (`mcmc.dynamic_hmc`) run side by side. More of them would not be ready sooner:
an R-hat of 1.01 asks for about as many draws of each chain, however many there are. Their common metric is a full covariance
(variances alone above 256 dimensions), which begins as the curvature where the best chain came to rest (`starts.py`) and is
refined by all of them (`cross_chain.py`).
Everything runs two compiled programs, the start (a batched gradient) and the step: compilation is most of the time to an
answer, so nothing else is compiled while it lasts, and what can wait in another thread does.

What it chose, and what a person should know of the run, stands in `Draws.notes`: divergences, chains that were stuck, chains
that never agreed, energies that hardly change (E-BFMI), an improper posterior, of which it draws little. What is to be worried
about is warned of as well, whether or not the rule was met. It sees a density and its shapes, never a
target's name.
"""

import dataclasses
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from gensamp import lanes
from gensamp.clock import compile_clock
from gensamp.core import Bill, Ledger, PyTree, Sampler, Target, check_key, require
from gensamp.cross_chain import STUCK, adapt_together
from gensamp.flat import flat_target, flatten, unflatten
from gensamp.parallel import AXIS, put
from gensamp.plan import Plan, make_plan
from gensamp.quantities import lower_constrain, named
from gensamp.runner import Draws, Until, lowered_step, sample
from gensamp.starts import HOPELESS, MOST_DENSE, let_down, overdispersed, resting_places, scattered

__all__ = ["auto"]

NUM_CHAINS, LEAST_CHAINS = 8, 4
MOST_LEAPFROGS = 256
DIVERGED = 0.01
# Doublings of a line's length in the search for endless directions; more would leave float32 no digits.
FAR = 14
LOW_ENERGY = 0.3


def auto(
    key: Any,
    target: Target,
    until: Any = None,
    *,
    num_chains: Any = None,
    most_draws: Any = 40_000,
    initial: PyTree = None,
    mesh: Any = None,
    progress: bool | None = None,
) -> Draws:
    """Draw from a density until the draws are good enough.

    Args:
        key: a typed key.
        target: with a `log_density`; from a plain function or a numpyro model.
        until: an `Until`, checked on every coordinate and every named quantity; `Until()` by default (bulk and tail ESS of
            400, R-hat of 1.01).
        num_chains: chains side by side, at least 4; by default 8, or as many as `initial` has.
        most_draws: draws per chain, at most.
        initial: positions [chain, ...] to scatter from instead of Uniform(-2, 2); they are let down all the same.
        mesh, progress: as for `sample`.

    Returns:
        Draws, position [chain, draw, ...event], with `notes`. The ledger's `tune` has descent, curvature and warm-up.

    Raises:
        TypeError, ValueError: bad input, before anything is compiled; or no start is feasible.
    """
    check_key(key)
    require(target, "log_density", "auto")
    until = Until() if until is None else until
    _check(until, num_chains, most_draws)
    if initial is not None:
        initial = _flat_starts(target, initial, num_chains)
    if num_chains is None:
        num_chains = NUM_CHAINS if initial is None else len(initial)
    flat = flat_target(target)
    size = flat.template.shape[0]
    dense = size <= MOST_DENSE
    # Not split: the program of fold_in is needed all the same.
    key_starts, key_warmup, key_draws = (jax.random.fold_in(key, event) for event in range(3))
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key_starts)).tolist())
    run = {"mesh": mesh, "effort": "quick"}
    with ThreadPoolExecutor(2) as aside:
        identity = jnp.asarray(np.eye(size) if dense else np.ones(size), flat.template.dtype)
        kernel = _kernel(flat, 0.5, inverse_mass_matrix=identity)
        gradient = _Gradient(make_plan(key_starts, kernel, 1, num_chains=num_chains, **run))
        began = time.perf_counter()
        with compile_clock() as clock:
            begun = scattered(gradient, rng, num_chains, size, initial=initial)
            # XLA compiles without Python's lock, so the chains are let down meanwhile.
            step, stood = lowered_step(key_starts, kernel, initial=begun.astype(flat.template.dtype), **run)
            compiled = aside.submit(step.compile)
            program = None if target.constrain is None else aside.submit(lower_constrain(target).compile)
            # Takes long, and is wanted by the stopping rule.
            import arviz_stats.base  # noqa: F401

            ends, near, metric = resting_places(gradient, let_down(gradient, begun), rng)
            start = overdispersed(gradient, ends, metric, rng.standard_normal(ends.shape)).astype(flat.template.dtype)
            compiled.result()
        descent = Bill(gradient.evaluations + stood, wall_seconds=time.perf_counter() - began, compile_seconds=clock.seconds)
        fell = gradient.evaluations
        together = adapt_together(key_warmup, _kernel, flat, start, metric=metric, progress=progress, **run)
        endless = [] if together.settled else _endless(target, start, together.initial)
        # More draws of a law that does not exist say no more.
        most_draws = min(most_draws, until.minimum) if endless else most_draws
        rule = _OnEverything(until, target, program)
        with warnings.catch_warnings():
            # Everything `sample` would warn of is in the message, and warned of below.
            warnings.simplefilter("ignore", UserWarning)
            draws = sample(
                key_draws, together.sampler, most_draws, initial=together.initial, until=rule, progress=progress, **run
            )
    if not endless and (draws.ending == "finished" or _diverged(draws) > DIVERGED):
        endless = _endless(target, start, draws.position[:, -1])
    missed = _missed(gradient, together.left, draws.position)
    notes, worries = _notes(draws, together, num_chains, int((~near).sum()), fell // num_chains, endless, missed)
    if draws.ending != "converged" or worries:
        warnings.warn("; ".join(filter(None, [draws.message, *notes[1:], *worries])), stacklevel=2)
    ledger = Ledger(tune=descent + together.ledger.tune + Bill(gradient.evaluations - fell)) + draws.ledger
    position = unflatten(target.template, draws.position)
    return dataclasses.replace(draws, position=position, notes=(*notes, *worries), ledger=ledger)


def _check(until, num_chains, most_draws) -> None:
    if not isinstance(until, Until):
        got = "the class Until itself" if until is Until else repr(until)
        raise TypeError(f"auto got until={got}; expected a rule, such as gensamp.Until(ess=400)")
    given = NUM_CHAINS if num_chains is None else num_chains
    for name, value, least in (("num_chains", given, LEAST_CHAINS), ("most_draws", most_draws, 1)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            why = ", since R-hat compares chains" if name == "num_chains" else ", draws per chain"
            raise ValueError(f"auto got {name} {value!r}; expected an integer of at least {least}{why}")


def _flat_starts(target: Target, initial: PyTree, num_chains: int | None) -> np.ndarray:
    leaves = [np.asarray(a) for a in jax.tree.leaves(initial)]
    if not leaves or not all(a.ndim and a.dtype.kind in "fiu" for a in leaves):
        got = ", ".join(f"{a.dtype}{list(a.shape)}" for a in leaves[:3]) + ", ..." * (len(leaves) > 3)
        raise ValueError(
            f"auto got an initial of {got or 'nothing'}; expected positions [chain, ...] of finite numbers, arrays and no lists"
        )
    try:
        flat = flatten(target.template, jax.tree.map(np.asarray, initial))
    except ValueError as error:
        raise ValueError(f"auto got an initial whose {error}") from error
    if num_chains is not None and len(flat) != num_chains:
        raise ValueError(f"auto got {len(flat)} initial positions for {num_chains} chains; leave one of the two out")
    if len(flat) < LEAST_CHAINS:
        raise ValueError(f"auto got {len(flat)} initial positions; expected one for each of at least {LEAST_CHAINS} chains")
    if not np.isfinite(flat).all():
        bad = int((~np.isfinite(flat).all(1)).sum())
        raise ValueError(f"auto got initial positions of which {bad} are not finite; replace them")
    return flat


def _kernel(target: Target, step_size: Any, *, inverse_mass_matrix: Any) -> Sampler:
    # blackjax is heavy, and who only looks at this module does not need it.
    from gensamp.mcmc.dynamic_hamiltonian import dynamic_hmc

    return dynamic_hmc(target, step_size, inverse_mass_matrix=inverse_mass_matrix, max_num_steps=MOST_LEAPFROGS, report=True)


class _Gradient:
    """Log density and gradient of positions [chain, d] by the start program of the sampler, which the run compiles anyway."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.ids = plan.block(0)[1]
        self.dtype = jax.tree.leaves(plan.maker.step.args[1])[0].dtype
        self.evaluations = 0

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        plan, number = self.plan, len(positions)
        rows = np.minimum(np.arange(plan.lanes), number - 1)
        at = put(np.asarray(positions, self.dtype)[rows], plan.mesh, P(AXIS))
        state = lanes.begin[plan.effort](plan.maker, None, plan.key, self.ids, at, mesh=plan.mesh)
        self.evaluations += number
        return np.asarray(state.logdensity)[:number], np.asarray(state.logdensity_grad)[:number]


@dataclass(frozen=True, eq=False)
class _OnEverything:
    """An `Until` on flat positions and on the named quantities as well, which `program` (a future, or None) makes of them."""

    until: Until
    target: Target
    program: Any

    @property
    def rhat(self):
        return self.until.rhat

    def __str__(self) -> str:
        return str(self.until)

    def next_look(self, num_draws: int) -> int:
        return self.until.next_look(num_draws)

    def met(self, position: np.ndarray) -> bool:
        if not self.until.met(position):
            return False
        if self.program is None:
            return True
        quantities = named(self.target, unflatten(self.target.template, position), program=self.program.result())
        columns = [np.asarray(a, np.float64).reshape(*a.shape[:2], -1) for a in quantities.values()]
        flat = np.concatenate([a for a in columns if a.shape[2]], axis=2)
        return self.until.met(flat[:, :, np.ptp(flat, axis=(0, 1)) > 0])


def _endless(target: Target, start: np.ndarray, end: np.ndarray) -> list[str]:
    """Endless directions among the coordinates and those in which chains went from `start` to `end`, both [chain, d].

    Lines begin where the chains did and are drawn at that scale: where chains of an improper posterior end, numbers have no
    digits left for the density.
    """
    from gensamp.targets.starts import endless_directions

    away = np.asarray(end, np.float64) - np.asarray(end, np.float64).mean(0)
    away *= start.std() / np.maximum(np.abs(away).max(1, keepdims=True), np.finfo(start.dtype).tiny)
    near = (start.mean(0) + away).astype(start.dtype)
    return endless_directions(target, unflatten(target.template, near), doublings=FAR)


def _diverged(draws: Draws) -> float:
    """The share of steps that diverged."""
    return float(np.mean(draws.info.diverged)) if np.size(draws.info.diverged) else 0.0


def _missed(gradient: _Gradient, left: np.ndarray, position: np.ndarray) -> int:
    """How many of the places that stuck chains left [times, d] lie beyond all draws [chain, draw, d] and are as high."""
    if not len(left) or not position.shape[1]:
        return 0
    beyond = left[((left < position.min((0, 1))) | (left > position.max((0, 1)))).any(1)]
    if not len(beyond):
        return 0
    some = np.linspace(0, position.shape[1] - 1, 8).astype(int)
    usual = min(gradient(position[:, i])[0].min() for i in some)
    lanes = len(position)
    heights = [gradient(beyond[i : i + lanes])[0] for i in range(0, len(beyond), lanes)]
    return int((np.concatenate(heights) >= usual).sum())


def _notes(
    draws: Draws, together, num_chains: int, hopeless: int, fell: int, endless: list[str], missed: int
) -> tuple[list[str], list[str]]:
    """What was chosen and what came of it, the first line being the choice; and what a person should worry about."""
    metric = "a dense" if together.inverse_mass_matrix.ndim == 2 else "a diagonal"
    notes = [
        f"HMC with jittered paths and {metric} metric, {num_chains} chains, step size {float(together.step_size):.3g}; "
        f"starts let down in {fell} gradients per chain and thrown apart by twice the curvature's sd; warm-up together in "
        f"{together.steps} steps, to an acceptance of {together.acceptance.mean():.2f}"
    ]
    worries = []
    if hopeless:
        notes.append(
            f"{hopeless} of {num_chains} starts ended over {HOPELESS:.0f} nats below the best, in height and in what a normal "
            "law holds there, and were moved to others: if those are modes, they have next to no weight"
        )
    if len(together.left):
        times = len(together.left)
        notes.append(f"{times} times a chain was stuck in warm-up while the others moved, and started again from one of them")
    if missed:
        worries.append(
            f"{missed} of the places where chains were stuck are as high as where the draws are, and no draw came by: if they "
            "are a mode, its weight is missing here"
        )
    if not together.settled:
        notes.append(f"the chains did not agree within {together.steps} steps of warm-up: the target may have modes far apart")
    if endless:
        worries.append(
            f"the density does not fall off along {', '.join(endless[:5])}: the posterior looks improper; give "
            "what it depends on proper priors"
        )
    if (share := _diverged(draws)) > DIVERGED:
        worries.append(
            f"{100 * share:.1f} % of the steps diverged: the draws miss a narrow region, or the density ends at a bound; "
            "reparameterise the model, or give the bound as constraints="
        )
    if low := _low_energy(draws):
        worries.append(
            f"chains {low} have an E-BFMI below {LOW_ENERGY}: fresh momenta hardly change the energy, and the tails are "
            "reached too rarely; reparameterise the model, or give what has heavy tails lighter ones"
        )
    accepted = np.asarray(draws.info.acceptance)
    stuck = np.flatnonzero(accepted.mean(1) < STUCK).tolist() if accepted.size else []
    if stuck:
        worries.append(f"chains {stuck} are stuck; do not average over them before you know why")
    return notes, worries


def _low_energy(draws: Draws) -> list[int]:
    """Chains whose Bayesian fraction of missing information is low (Betancourt 2016)."""
    from arviz_stats.base import array_stats

    energy = np.asarray(draws.info.extra["energy"], np.float64)
    if energy.shape[1] < 4 or not np.isfinite(energy).all():
        return []
    with np.errstate(all="ignore"):
        return np.flatnonzero(np.asarray(array_stats.bfmi(energy, chain_axis=0, draw_axis=1)) < LOW_ENERGY).tolist()
