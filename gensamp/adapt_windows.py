"""Window adaptation: every chain learns a step size and a metric for itself, on Stan's schedule.

It is a `Sampler`: its position is a dict of the event, the step size, the metric and how things went of late, its step makes
the inner sampler anew from the current step size and metric, moves it once and learns from the move. The schedule (Stan
reference manual, "HMC algorithm parameters") is a fast window for the step size, doubling slow windows at whose ends the metric
becomes what the window's draws say (`adapt_metric.py`), and a last fast window.

The step size follows dual averaging (Nesterov 2009; Hoffman and Gelman 2014, section 3.2): log eps moves so that the average
acceptance meets its target. Schedule, dual averaging and metrics are blackjax's.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.adaptation.step_size import dual_averaging_adaptation
from blackjax.adaptation.window_adaptation import build_schedule
from jax.flatten_util import ravel_pytree

from gensamp.adapt_metric import learner
from gensamp.core import PyTree, Sampler, Static, Target, bind, scalar
from gensamp.mcmc.arguments import cast

__all__ = ["HOLD", "TEACH", "AdaptState", "Counts", "adaptation", "bare", "identity", "settled", "windows"]

# Dual averaging divides the sum of t errors by t + STABILISER (t_0 of Hoffman and Gelman).
STABILISER = 10
# Its gain is 1 / gamma. At the usual 0.05 one rejection shifts log eps by more than 1 within the first hundred steps, and steps
# that vary so much meet an acceptance with an average far too short. Once the step size is roughly known, less is better.
EAGER, CALM = 0.05, 0.25
# Column 0 of a schedule: the step teaches the metric; or nothing is learned and what was found so far is tried out.
TEACH, HOLD = 1, 2


class Counts(NamedTuple):
    """Steps since the last restart, or since what was found is tried out, and over them the sum of acceptances, the number of
    steps that changed the position, and of those that diverged: [] of one chain, or [chain]."""

    steps: Any
    accepted: Any
    moves: Any
    divergences: Any

    @classmethod
    def zero(cls, like: jax.Array) -> "Counts":
        none = jnp.zeros(like.shape, jnp.int32)
        return cls(none, jnp.zeros_like(like), none, none)

    def after(self, news: "Counts", *, fresh: Any, done: Any) -> "Counts":
        """With a step's news: from zero if it is the first to be tried out (fresh), zero if it ends a window (done)."""

        def count(old, new):
            return jnp.where(done, 0, jnp.where(fresh, 0, old) + new).astype(old.dtype)

        return jax.tree.map(count, self, news)

    def shown(self) -> dict[str, jax.Array]:
        """acceptance, moved and diverged as means over these steps."""
        steps = jnp.maximum(self.steps, 1).astype(self.accepted.dtype)
        return {"acceptance": self.accepted / steps, "moved": self.moves / steps, "diverged": self.divergences / steps}


class AdaptState(NamedTuple):
    """inner: the sampler's own state. step, metric: blackjax's adaptation states. step_size, inverse_mass_matrix: in use now.
    counts: how things went. held: whether what was found is being tried out."""

    inner: Any
    step: Any
    metric: Any
    step_size: Any
    inverse_mass_matrix: Any
    counts: Counts
    held: Any


def adaptation(
    make: Callable[..., Sampler],
    target: Target,
    *,
    schedule: Any,
    target_acceptance: Any = 0.8,
    metric: str = "diagonal",
    step_size: Any = 0.5,
    calm: Any = False,
) -> Sampler:
    """Adaptation as a Sampler without end.

    Args:
        make, target, target_acceptance, metric, step_size: as for `tune`.
        schedule: int [steps, 2] as from `windows` or `settled`: in column 0 whether the step teaches the metric (TEACH), or
            tries out the averaged step size and teaches nothing (HOLD), in column 1 whether the metric is renewed after it.
            Later steps repeat the last row.
        calm: whether step_size is roughly known, and the search stays near it.

    Returns:
        A Sampler whose position is a dict: position (like one event), step_size [], inverse_mass_matrix [d] or [d, d],
            acceptance [], moved [] and diverged [] (means since the last restart, or since it holds). The step size shown is
            the averaged one, the one to use.
            Its evaluations per step are the inner sampler's, and a gradient more where it teaches a low-rank metric.
    """
    target = bare(target)
    step_size = scalar(step_size, target.template)
    rule = (Static(make), target, scalar(target_acceptance, target.template), Static(metric), jnp.asarray(calm, bool))
    return Sampler(
        start=bind(_start, make(target, step_size).start, step_size, identity(target.template, metric)),
        init=bind(_init, *rule),
        step=bind(_step, *rule, jnp.asarray(schedule, jnp.int32)),
        position=bind(_position, *rule),
        traits=make(target, step_size).traits,
    )


def windows(num_steps: int) -> np.ndarray:
    """Stan's schedule of that many steps, int [steps, 2]."""
    return np.asarray(build_schedule(num_steps), np.int32).reshape(num_steps, 2)


def settled(num_steps: int, spent: int) -> np.ndarray:
    """A schedule of that many rows for `spent` steps that teach no metric, the last third of them held."""
    schedule = np.zeros((num_steps, 2), np.int32)
    schedule[min(2 * spent // 3, num_steps - 1) :, 0] = HOLD
    return schedule


def bare(target: Target) -> Target:
    """The target without what does not enter the program and so must not key its compilation."""
    return dataclasses.replace(target, name="", data=None, truth=None, constrain=None)


def identity(template: PyTree, metric: str) -> jax.Array:
    """The metric to begin with, [d] or [d, d]."""
    size = sum(int(np.prod(a.shape)) for a in jax.tree.leaves(template))
    dtype = scalar(0, template).dtype
    return jnp.eye(size, dtype=dtype) if learner(metric).dense else jnp.ones((size,), dtype)


def _start(start, step_size, inverse_mass_matrix, key):
    zero = jnp.zeros_like(step_size)
    return {
        "position": start(key), "step_size": step_size, "inverse_mass_matrix": inverse_mass_matrix,
        "acceptance": zero, "moved": zero, "diverged": zero,
    }  # fmt: skip


def _init(make, target, acceptance, metric, calm, key, z):
    step_size, inverse_mass_matrix = z["step_size"], z["inverse_mass_matrix"]
    inner = make.value(target, step_size, inverse_mass_matrix=inverse_mass_matrix).init(key, z["position"])
    step = dual_averaging_adaptation(acceptance, STABILISER)[0](step_size)
    # blackjax starts its counters as Python numbers, and looks for the step size around ten times the first one.
    step = jax.tree.map(lambda a: _like(a, step_size.dtype), step)
    step = step._replace(mu=jnp.where(calm, jnp.log(step_size), step.mu))
    learned = learner(metric.value).init(inverse_mass_matrix)
    counts = Counts.zero(step_size)
    return AdaptState(inner, step, learned, step_size, inverse_mass_matrix, counts, jnp.bool_(False))


def _step(make, target, acceptance, metric, calm, schedule, key, state, index):
    teaching, window_ends = schedule[jnp.minimum(index, schedule.shape[0] - 1)]
    held = teaching == HOLD
    step_size = jnp.where(held, _averaged(state), state.step_size)
    sampler = make.value(target, step_size, inverse_mass_matrix=state.inverse_mass_matrix)
    inner, info = sampler.step(key, state.inner, index)
    restart, learn, average = dual_averaging_adaptation(acceptance, STABILISER, jnp.where(calm, CALM, EAGER))
    rule = learner(metric.value)

    def teach(learned):
        position = sampler.position(inner)
        # A state need not hold the gradient where it stands: this one is paid for.
        gradient = ravel_pytree(jax.grad(target.log_density)(position))[0][None] if rule.gradients else None
        return cast(rule.observe(learned, ravel_pytree(position)[0][None], gradient), learned)

    accepted = jnp.where(jnp.isfinite(info.acceptance), info.acceptance, 0).astype(state.step_size.dtype)
    step = jax.lax.cond(held, lambda s: s, lambda s: cast(learn(s, accepted), s), state.step)
    learned = jax.lax.cond(teaching == TEACH, teach, lambda learned: learned, state.metric)
    step, learned = jax.lax.cond(
        window_ends == 1,
        lambda s, m: (cast(restart(average(s)), state.step), cast(rule.renew(m), m)),
        lambda s, m: (s, m),
        step,
        learned,
    )
    before, after = (jax.tree.leaves(sampler.position(s)) for s in (state.inner, inner))
    moved = jnp.stack([(a != b).any() for a, b in zip(before, after, strict=True)]).any()
    news = Counts(1, accepted, moved, info.diverged)
    counts = state.counts.after(news, fresh=held & ~state.held, done=window_ends == 1)
    gradients = info.gradients + (teaching == TEACH) if rule.gradients else info.gradients
    state = AdaptState(inner, step, learned, jnp.exp(step.log_step_size), learned.inverse_mass_matrix, counts, held)
    return state, dataclasses.replace(info, gradients=gradients, extra=())


def _position(make, target, acceptance, metric, calm, state):
    del acceptance, metric, calm
    sampler = make.value(target, state.step_size, inverse_mass_matrix=state.inverse_mass_matrix)
    return {
        "position": sampler.position(state.inner),
        "step_size": _averaged(state),
        "inverse_mass_matrix": state.inverse_mass_matrix,
    } | state.counts.shown()


def _averaged(state):
    # Right after a restart there is nothing to average yet.
    return jnp.where(state.step.step > 1, jnp.exp(state.step.log_step_size_avg), state.step_size)


def _like(value, dtype):
    value = jnp.asarray(value)
    return value.astype(dtype if jnp.issubdtype(value.dtype, jnp.floating) else jnp.int32)
