"""auto: draws for somebody who wants draws and no decisions.

    scattered starts -> each let down on its own -> thrown apart again -> warm-up together -> draws until the rule is met

Eight chains of HMC with paths of varying length (`mcmc.dynamic_hmc`) run side by side. More of them would not be ready sooner:
an R-hat of 1.01 asks for about as many draws of each chain, however many there are. Their common metric is a full covariance
(variances alone above 256 dimensions), which begins as the curvature where the best chain came to rest (`starts.py`) and is
refined by all of them (`cross_chain.py`). Draws whose steps diverge too often are given to warm-up, and the run starts again.
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
from gensamp.cross_chain import adapt_together, bold, more_careful
from gensamp.flat import flat_target, flatten, unflatten
from gensamp.parallel import AXIS, put
from gensamp.plan import Plan, make_plan
from gensamp.quantities import lower_constrain, named
from gensamp.remarks import DIVERGED, diverged, endless, missed, remarks
from gensamp.runner import Draws, Until, lowered_step, sample
from gensamp.starts import MOST_DENSE, let_down, overdispersed, resting_places, scattered

__all__ = ["auto"]

NUM_CHAINS, LEAST_CHAINS = 8, 4
MOST_LEAPFROGS = 256


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
        most_draws: draws per chain, at most; those that diverge too often and become warm-up, once, are not counted.
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
    if flat.template.dtype.itemsize < 4:
        raise ValueError(f"auto got events of {flat.template.dtype}; expected float32 or float64, which its energies need")
    size = flat.template.shape[0]
    dense = size <= MOST_DENSE
    # Not split: the program of fold_in is needed all the same.
    key_starts, key_warmup, key_draws, key_again = (jax.random.fold_in(key, event) for event in range(4))
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key_starts)).tolist())
    run = {"mesh": mesh, "effort": "quick"}
    with ThreadPoolExecutor(2) as aside:
        identity = jnp.asarray(np.eye(size) if dense else np.ones(size), flat.template.dtype)
        kernel = _kernel(flat, 0.5, inverse_mass_matrix=identity)
        gradient = _Gradient(make_plan(key_starts, kernel, 1, num_chains=num_chains, **run))
        began = time.perf_counter()
        with compile_clock() as clock:
            begun = _begun(gradient, rng, num_chains, size, target, initial)
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
        unending = [] if together.settled else endless(target, start, together.initial)
        # More draws of a law that does not exist say no more.
        most_draws = min(most_draws, until.minimum) if unending else most_draws
        # Where paths are cut for their number of steps already, shorter ones would cut them more.
        wary = float(together.step_size) * MOST_LEAPFROGS > np.pi
        rule = _OnEverything(until, target, program, wary=wary)
        drawing = {"progress": progress, **run}
        with warnings.catch_warnings():
            # Everything `sample` would warn of is in the message, and warned of below.
            warnings.simplefilter("ignore", UserWarning)
            draws = sample(key_draws, together.sampler, most_draws, initial=together.initial, until=rule, **drawing)
            if rule.stopped and draws.interrupted:
                message = f"interrupted after {draws.position.shape[1]} of {most_draws} draws"
                draws = dataclasses.replace(draws, ending="interrupted", message=message)
            elif rule.stopped:
                rule = dataclasses.replace(rule, wary=False)
                together = more_careful(together, draws, _kernel, flat)
                draws = sample(key_again, together.sampler, most_draws, initial=together.initial, until=rule, **drawing)
    if not unending and (draws.ending == "finished" or diverged(draws) > DIVERGED):
        unending = endless(target, start, draws.position[:, -1])
    unvisited = missed(gradient, together.left, draws.position)
    position = unflatten(target.template, draws.position)
    notes, worries = remarks(draws, position, together, num_chains, int((~near).sum()), fell // num_chains, unending, unvisited)
    if draws.ending != "converged" or worries:
        warnings.warn("; ".join(filter(None, [draws.message, *notes[1:], *worries])), stacklevel=2)
    ledger = Ledger(tune=descent + together.ledger.tune + Bill(gradient.evaluations - fell)) + draws.ledger
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


def _begun(gradient, rng, num_chains, size, target, initial):
    try:
        return scattered(gradient, rng, num_chains, size, initial=initial)
    except ValueError as error:
        from gensamp.targets.posteriors import model_complaint

        complaint = model_complaint(target, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), target.template))
        raise ValueError(f"{error}{complaint and f' (numpyro says: {complaint})'}") from None


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


@dataclass(eq=False)
class _OnEverything:
    """An `Until` on flat positions and on the named quantities as well, which `program` (a future, or None) makes of them.

    wary: whether it stops draws whose steps were too bold as well; stopped: whether it did.
    """

    until: Until
    target: Target
    program: Any
    wary: bool = True
    stopped: bool = False

    @property
    def rhat(self):
        return self.until.rhat

    def __str__(self) -> str:
        return str(self.until)

    def next_look(self, num_draws: int) -> int:
        return self.until.next_look(num_draws)

    def too_bold(self, acceptance: np.ndarray, diverged: np.ndarray) -> bool:
        self.stopped = self.wary and bold(acceptance, diverged)
        return self.stopped

    def met(self, position: np.ndarray) -> bool:
        if not self.until.met(position):
            return False
        if self.program is None:
            return True
        quantities = named(self.target, unflatten(self.target.template, position), program=self.program.result())
        columns = [np.asarray(a, np.float64).reshape(*a.shape[:2], -1) for a in quantities.values()]
        flat = np.concatenate([a for a in columns if a.shape[2]], axis=2)
        return self.until.met(flat[:, :, np.ptp(flat, axis=(0, 1)) > 0])
