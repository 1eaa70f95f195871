"""ChEES: many chains learn one step size, one metric and one path length together, for `mcmc.dynamic_hmc`.

Paths have a length spread evenly over (0, T). The longer they are the less a draw remembers of the last, and the more it costs,
up to a point where they turn back. ChEES puts T where the Change in the Estimator of the Expected Square is greatest,

    ChEES(T) = E[(|x' - E x|^2 - |x - E x|^2)^2] / 4,

x' the end of a path from x, all in the coordinates that the metric whitens. On a normal law of one scale s that is at
T = 2.25 s (tan 2 T = 2 T). Its gradient in log T, with x' = x'(u T) and the velocity v' there, is

    u T (|x' - E x|^2 - |x - E x|^2) <x' - E x, v'>,

averaged over the chains, each weighted by its acceptance; E is the chains' mean. Adam climbs it (rate 0.025, beta 0 and 0.95),
and the harmonic mean of the chains' acceptances sets the step size by dual averaging.

It is a `Sampler` of a population: all chains are its walkers, and one step adapts and moves all of them. The metric is learned
from all chains on the schedule of `adapt_windows.py`. When it changes, so does the unit of T, which is therefore kept in units
of the chains' longest direction. Until there is a metric, paths are short: T / eps would be the target's condition number.

Criterion, Adam's step and dual averaging are blackjax's, its moving average switched off (decay_rate = 0): with it every step
of Adam shrinks as t^-1/2, since the average and not the last iterate goes into the next step, and at the paper's rate T cannot
move by more than a factor of 5 in 1000 steps. What is averaged so, as in the paper, is what `position` shows.

Source: Hoffman, Radul and Sountsov 2021.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from blackjax.adaptation import chees_adaptation
from blackjax.adaptation.meads_adaptation import maximum_eigenvalue
from blackjax.mcmc.hmc import HMCState
from jax.flatten_util import ravel_pytree

from gensamp.adapt_metric import learner, whiten
from gensamp.adapt_windows import HOLD, TEACH, Counts, bare, identity
from gensamp.core import Info, Sampler, Static, Target, Traits, bind, scalar
from gensamp.mcmc.arguments import cast
from gensamp.mcmc.dynamic_hamiltonian import jitter

__all__ = ["SHORT", "CheesState", "adaptation"]

# Leapfrog steps that a path may take: at all, and before there is a metric.
MOST, SHORT = 1000, 32
# The longest path to begin with once a metric whitens the target: a quarter of its period.
QUARTER = jnp.pi / 2
_ADAM = optax.adam(0.025, b1=0.0, b2=0.95)


class CheesState(NamedTuple):
    """inner: the sampler's states [chain, ...]. rule: blackjax's adaptation state, with the step size and the length in use.
    metric: what is learned of it. log_length: the averaged log T. counts, held: as in `adapt_windows.AdaptState`, [chain].
    """

    inner: Any
    rule: Any
    metric: Any
    log_length: jax.Array
    counts: Counts
    held: jax.Array


def adaptation(
    make: Callable[..., Sampler],
    target: Target,
    *,
    num_chains: int,
    schedule: Any,
    target_acceptance: Any = 0.651,
    metric: str = "diagonal",
    step_size: Any = 0.5,
    short: Any = 0,
) -> Sampler:
    """ChEES as a Sampler without end, of a population.

    Args:
        make: (target, step_size, *, inverse_mass_matrix, trajectory_length, report_path) -> Sampler, such as
            `gs.mcmc.dynamic_hmc`.
        target, metric, step_size: as for `tune`.
        num_chains: chains that adapt together.
        schedule: as for `adapt_windows.adaptation`.
        target_acceptance: what the harmonic mean of the chains' acceptances is to be.
        short: steps in which no path takes more than SHORT leapfrog steps.

    Returns:
        A Sampler whose position is a dict, with a leading axis of chains: position, step_size [], trajectory_length [] and
            inverse_mass_matrix [d] or [d, d] (the same for all chains, averages), acceptance [], moved [] and diverged []
            (means since the last restart, or since it holds).
        As many gradients per step as all chains' leapfrog steps. acceptance of a step is the chains' mean, and it diverged when
        one of them did.
    """
    target = bare(target)
    step_size = scalar(step_size, target.template)
    one = make(target, step_size, trajectory_length=step_size)
    rule = (Static(make), target, scalar(target_acceptance, target.template), Static(metric))
    return Sampler(
        start=bind(_start, Static(num_chains), one.start, step_size, identity(target.template, metric)),
        init=bind(_init, *rule),
        step=bind(_step, *rule, jnp.asarray(schedule, jnp.int32), jnp.asarray(short, jnp.int32)),
        position=bind(_position, *rule),
        traits=Traits(population=num_chains),
    )


def _start(num_chains, start, step_size, inverse_mass_matrix, key):
    number = num_chains.value
    same, zero = jnp.full((number,), step_size), jnp.zeros((number,), step_size.dtype)
    return {
        "position": jax.vmap(start)(jax.random.split(key, number)), "step_size": same, "trajectory_length": same,
        "inverse_mass_matrix": jnp.repeat(inverse_mass_matrix[None], number, 0),
        "acceptance": zero, "moved": zero, "diverged": zero,
    }  # fmt: skip


def _init(make, target, acceptance, metric, key, z):
    step_size, length, matrix = (z[name][0] for name in ("step_size", "trajectory_length", "inverse_mass_matrix"))
    sampler = make.value(target, step_size, inverse_mass_matrix=matrix, trajectory_length=length)
    number = len(z["step_size"])
    inner = jax.vmap(sampler.init)(jax.random.split(key, number), z["position"])
    if not isinstance(inner, HMCState):
        raise ValueError("tune(method='chees') got a sampler whose state is not an HMCState; expected gs.mcmc.dynamic_hmc")
    rule = _rule(acceptance, MOST)[0](jnp.int32(0), step_size)
    rule = _at_length(_typed(rule, step_size.dtype), length)
    counts = Counts.zero(z["step_size"])
    return CheesState(inner, rule, learner(metric.value).init(matrix), jnp.log(length), counts, jnp.bool_(False))


def _step(make, target, acceptance, metric, schedule, short, key, state, index):
    teaching, window_ends = schedule[jnp.minimum(index, schedule.shape[0] - 1)]
    held = teaching == HOLD
    step_size = jnp.where(held, _averaged(state), state.rule.step_size)
    most = jnp.where(index < short, SHORT, MOST)
    length = jnp.where(held, jnp.exp(state.log_length), jnp.minimum(state.rule.trajectory_length, most * step_size))
    matrix, number = state.metric.inverse_mass_matrix, len(state.counts.steps)
    sampler = make.value(target, step_size, inverse_mass_matrix=matrix, trajectory_length=length, report_path=True)
    inner, info = jax.vmap(sampler.step, in_axes=(0, 0, None))(jax.random.split(key, number), state.inner, index)
    begun, ended, velocity = map(_rows, (sampler.position(state.inner), info.extra["proposal"], info.extra["velocity"]))
    stands, gradients = _rows(sampler.position(inner)), _rows(inner.logdensity_grad)
    accepted = jnp.where(jnp.isfinite(info.acceptance), info.acceptance, 0).astype(step_size.dtype)

    def learn(rule, log_length):
        seen = (whiten(matrix, ended), -whiten(matrix, velocity), whiten(matrix, begun), accepted, info.diverged)
        # blackjax subtracts means from rows.
        with jax.numpy_rank_promotion("allow"):
            learned = _rule(acceptance, most)[1](rule._replace(random_generator_arg=index), *seen, jnp.ones_like(begun[0]))
        # blackjax keeps the length between one step and `most` of them, and a step size that dual averaging merely tries out
        # would shift it for good (a longer one to where the paths have turned back already): the averaged one bounds it.
        bound = jnp.log(most * jnp.exp(learned.da_state.log_x_avg))
        log_now = jnp.minimum(learned.log_trajectory_length_moving_average, bound)
        weight = jax.lax.rsqrt(rule.step.astype(length.dtype))
        return cast(_at_length(learned, jnp.exp(log_now)), rule), weight * log_now + (1 - weight) * log_length

    teacher = learner(metric.value)

    def renew(rule, taught, log_length):
        taught = cast(teacher.renew(taught), taught)
        longest = [maximum_eigenvalue(whiten(m, stands - stands.mean(0)[None])) for m in (matrix, taught.inverse_mass_matrix)]
        length = jnp.maximum(jnp.exp(log_length) * jnp.sqrt(longest[1] / longest[0]), QUARTER).astype(log_length.dtype)
        fresh = _rule(acceptance, MOST)[0](index, jnp.exp(rule.da_state.log_x_avg))
        return cast(_at_length(fresh, length), rule), taught, jnp.log(length)

    rule, log_length = jax.lax.cond(held, lambda *same: same, learn, state.rule, state.log_length)
    taught = jax.lax.cond(
        teaching == TEACH, lambda m: cast(teacher.observe(m, stands, gradients), m), lambda m: m, state.metric
    )
    rule, taught, log_length = jax.lax.cond(window_ends == 1, renew, lambda *same: same, rule, taught, log_length)
    news = Counts(jnp.ones((number,), jnp.int32), accepted, (begun != stands).any(1), info.diverged)
    counts = state.counts.after(news, fresh=held & ~state.held, done=window_ends == 1)
    state = CheesState(inner, rule, taught, log_length, counts, held)
    return state, Info.of(gradients=info.gradients.sum(), acceptance=accepted.mean(), diverged=info.diverged.any())


def _position(make, target, acceptance, metric, state):
    del acceptance, metric
    rule, matrix, number = state.rule, state.metric.inverse_mass_matrix, len(state.counts.steps)
    sampler = make.value(target, rule.step_size, inverse_mass_matrix=matrix, trajectory_length=rule.trajectory_length)
    return {
        "position": sampler.position(state.inner),
        "step_size": jnp.full((number,), _averaged(state)),
        "trajectory_length": jnp.full((number,), jnp.exp(state.log_length)),
        "inverse_mass_matrix": jnp.repeat(matrix[None], number, 0),
    } | state.counts.shown()


def _averaged(state):
    # Right after a restart there is nothing to average yet.
    return jnp.where(state.rule.step > 1, jnp.exp(state.rule.da_state.log_x_avg), state.rule.step_size)


def _rule(acceptance, most):
    """blackjax's (init, update), for paths of our own jitter; the index of the step stands for its random argument."""
    return chees_adaptation.base(
        lambda index: jitter(index, acceptance.dtype), lambda index: index, _ADAM, acceptance, 0.0, most
    )


def _at_length(rule, length):
    return rule._replace(trajectory_length=length, log_trajectory_length_moving_average=jnp.log(length))


def _rows(positions):
    return jax.vmap(lambda x: ravel_pytree(x)[0])(positions)


def _typed(state, dtype):
    def typed(value):
        value = jnp.asarray(value)
        return value.astype(dtype if jnp.issubdtype(value.dtype, jnp.floating) else jnp.int32)

    return jax.tree.map(typed, state)
