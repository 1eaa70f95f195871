"""MEADS: many chains learn the step size and the damping of `mcmc.ghmc` together, from what they are and not from what they do.

The chains stand in K folds. In the coordinates that a fold's standard deviations s whiten, with g the gradients of the log
density there, lambda(.) the largest eigenvalue of the second moments and t the step,

    eps = min(1, 1 / (2 sqrt lambda(g s))),    gamma eps = max(eps / sqrt lambda((x - mean) / s), 1 / t),

alpha = 1 - exp(-2 gamma eps) and delta = alpha / 2: the step fits the narrowest direction, and the momentum is forgotten over
the time that the longest one takes. A fold moves with s and eps of the fold to its left, and gamma from its own positions; the
fold k = t mod K stands still, so that no fold looks at itself, not even in a ring. Every K steps the chains are dealt into
folds anew. lambda is estimated by the ratio of tr S^2 to tr S, without bias from few chains.

So it is while `free`. What comes out must be one metric, step and damping for every chain, so the second half of the free steps
teaches a metric from all chains (`adapt_metric.py`), and with it fixed, in its coordinates, eps and gamma are measured
again, and averaged over the steps.

It is a `Sampler` of a population: all chains are its walkers, and one step adapts and moves all of them but a fold. The kernel
and the estimate of lambda are blackjax's. Source: Hoffman and Sountsov 2022 (Algorithm 3).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.adaptation.meads_adaptation import maximum_eigenvalue
from blackjax.mcmc.ghmc import GHMCState
from jax.flatten_util import ravel_pytree

from gensamp.adapt_metric import colour, learner, whiten
from gensamp.adapt_windows import HOLD, TEACH, Counts, bare, identity
from gensamp.core import Info, Sampler, Static, Target, Traits, bind, scalar
from gensamp.mcmc.arguments import cast

__all__ = ["FOLDS", "MeadsState", "adaptation", "second_half", "share"]

FOLDS = 4


class MeadsState(NamedTuple):
    """inner: the sampler's states [chain, ...]. order: int [chain], the folds one after another. metric: what is learned of it.
    log_step_size, log_damping: averages over the steps so far, and steps: their number. counts, held: as in
    `adapt_windows.AdaptState`, [chain].
    """

    inner: Any
    order: jax.Array
    metric: Any
    log_step_size: jax.Array
    log_damping: jax.Array
    steps: jax.Array
    counts: Counts
    held: jax.Array


def adaptation(
    make: Callable[..., Sampler],
    target: Target,
    *,
    num_chains: int,
    schedule: Any,
    free: Any = True,
    multiplier: Any = 0.5,
    metric: str = "diagonal",
) -> Sampler:
    """MEADS as a Sampler without end, of a population.

    Args:
        make: (target, step_size, *, inverse_mass_matrix, alpha, delta) -> Sampler, such as `gs.mcmc.ghmc`.
        target, metric: as for `tune`.
        num_chains: chains that adapt together, a multiple of FOLDS.
        schedule: as for `adapt_windows.adaptation`, or from `second_half`; where it holds, all chains have the averaged step
            size and damping.
        free: whether every fold whitens itself; else all use the metric they start with.
        multiplier: the step is this over the root of the gradients' eigenvalue.

    Returns:
        A Sampler whose position is a dict, with a leading axis of chains: position, step_size [], damping [] (gamma) and
            inverse_mass_matrix [d] or [d, d] (the same for all chains, averages), acceptance [], moved [] and diverged []
            (means since the last restart, or since it holds).
        num_chains (1 - 1 / FOLDS) gradients per step. acceptance of a step is the mean of the chains that moved, and it
        diverged when one of them did.
    """
    target = bare(target)
    unit = scalar(1, target.template)
    rule = (Static(make), target, scalar(multiplier, target.template), Static(metric))
    flags = (jnp.asarray(schedule, jnp.int32), jnp.asarray(free, bool))
    return Sampler(
        start=bind(_start, Static(num_chains), make(target, unit).start, identity(target.template, metric)),
        init=bind(_init, *rule),
        step=bind(_step, *rule, *flags),
        position=bind(_position, *rule),
        traits=Traits(population=num_chains),
    )


def second_half(num_steps: int) -> np.ndarray:
    """The schedule int [steps, 2] that learns a metric from the second half of the steps, ready after the last."""
    schedule = np.zeros((num_steps, 2), np.int32)
    schedule[num_steps // 2 :, 0] = TEACH
    schedule[-1, 1] = 1
    return schedule


def share(step_size: Any, damping: Any) -> Any:
    """alpha, the share of the momentum that is new after a step."""
    return -jnp.expm1(-2 * step_size * damping)


def _start(num_chains, start, inverse_mass_matrix, key):
    number = num_chains.value
    one = jnp.ones((number,), inverse_mass_matrix.dtype)
    return {
        "position": jax.vmap(start)(jax.random.split(key, number)), "step_size": one, "damping": one,
        "inverse_mass_matrix": jnp.repeat(inverse_mass_matrix[None], number, 0),
        "acceptance": 0 * one, "moved": 0 * one, "diverged": 0 * one,
    }  # fmt: skip


def _init(make, target, multiplier, metric, key, z):
    del multiplier
    step_size, damping, matrix = (z[name][0] for name in ("step_size", "damping", "inverse_mass_matrix"))
    number = len(z["step_size"])
    sampler = make.value(target, step_size, inverse_mass_matrix=matrix)
    inner = jax.vmap(sampler.init)(jax.random.split(key, number), z["position"])
    if not isinstance(inner, GHMCState):
        raise ValueError("tune(method='meads') got a sampler whose state is not a GHMCState; expected gs.mcmc.ghmc")
    return MeadsState(
        inner, jnp.arange(number, dtype=jnp.int32), learner(metric.value).init(matrix), jnp.log(step_size), jnp.log(damping),
        jnp.int32(0), Counts.zero(z["step_size"]), jnp.bool_(False),
    )  # fmt: skip


def _step(make, target, multiplier, metric, schedule, free, key, state, index):
    key_move, key_deal = jax.random.split(key)
    teaching, renewing = schedule[jnp.minimum(index, schedule.shape[0] - 1)]
    held = teaching == HOLD
    matrix, number = state.metric.inverse_mass_matrix, len(state.order)
    steps = jnp.where(held, state.steps, state.steps + 1)
    # The fold that stands still comes first; the ring's order stays.
    folds = jnp.roll(state.order.reshape(FOLDS, number // FOLDS), -(index % FOLDS), axis=0)
    positions, gradients = _rows(state.inner.position), _rows(state.inner.logdensity_grad)
    metrics, step_size, longest = jax.vmap(_measure, in_axes=(0, 0, None, None, None))(
        positions[folds], gradients[folds], matrix, free, multiplier
    )

    def average(old, new):
        return jnp.where(held, old, old + (jnp.log(new).mean() - old) / steps.astype(old.dtype))

    log_step_size, log_damping = average(state.log_step_size, step_size), average(state.log_damping, 1 / longest)
    metrics, step_size = jax.tree.map(lambda a: jnp.roll(a, 1, axis=0)[1:], (metrics, step_size))
    damped = jnp.maximum(step_size / longest[1:], 1 / steps.astype(step_size.dtype))
    step_size = jnp.where(held, jnp.exp(log_step_size), step_size)
    alpha = -jnp.expm1(-2 * jnp.where(held, jnp.exp(log_step_size + log_damping), damped))

    def move(metric, step_size, alpha, keys, inner):
        sampler = make.value(target, step_size, inverse_mass_matrix=metric, alpha=alpha, delta=alpha / 2)
        return jax.vmap(sampler.step, in_axes=(0, 0, None))(keys, inner, index)

    moving = folds[1:]
    keys = jax.random.split(key_move, moving.shape)
    after, info = jax.vmap(move)(metrics, step_size, alpha, keys, jax.tree.map(lambda a: a[moving], state.inner))
    inner = jax.tree.map(lambda all_, some: all_.at[moving].set(some), state.inner, after)

    teacher = learner(metric.value)
    stands, forces = _rows(inner.position), _rows(inner.logdensity_grad)
    taught = jax.lax.cond(teaching == TEACH, lambda m: cast(teacher.observe(m, stands, forces), m), lambda m: m, state.metric)
    taught = jax.lax.cond(renewing == 1, lambda m: cast(teacher.renew(m), m), lambda m: m, taught)
    order = jax.lax.cond(
        (index + 1) % FOLDS == 0, lambda order: jax.random.permutation(key_deal, order), lambda order: order, state.order
    )
    accepted = jnp.where(jnp.isfinite(info.acceptance), info.acceptance, 0).astype(step_size.dtype)
    some = Counts(jnp.ones(moving.shape, jnp.int32), accepted, (positions != stands).any(1)[moving], info.diverged)
    news = jax.tree.map(lambda old, new: jnp.zeros_like(old).at[moving].set(new.astype(old.dtype)), state.counts, some)
    counts = state.counts.after(news, fresh=held & ~state.held, done=False)
    state = MeadsState(inner, order, taught, log_step_size, log_damping, steps, counts, held)
    return state, Info.of(gradients=moving.size, acceptance=accepted.mean(), diverged=info.diverged.any())


def _measure(positions, gradients, matrix, free, multiplier):
    """The metric, the step size and the longest direction (in that metric) of one fold: [d] or [d, d], [], []."""
    variance = positions.var(0)
    variance = jnp.where(variance > 0, variance, 1)
    metric = jnp.where(free, variance if matrix.ndim == 1 else jnp.diag(variance), matrix)
    forces = colour(metric, gradients)
    # The eigenvalue takes fourth powers, which overflow where chains start far out.
    unit = jnp.maximum(jnp.abs(forces).max(), jnp.finfo(forces.dtype).tiny)
    step_size = jnp.minimum(multiplier / jnp.sqrt(maximum_eigenvalue(forces / unit)) / unit, 1)
    return metric, step_size, jnp.sqrt(maximum_eigenvalue(whiten(metric, positions - positions.mean(0)[None])))


def _position(make, target, multiplier, metric, state):
    del multiplier, metric
    matrix, number = state.metric.inverse_mass_matrix, len(state.order)
    step_size, damping = jnp.exp(state.log_step_size), jnp.exp(state.log_damping)
    sampler = make.value(target, step_size, inverse_mass_matrix=matrix)
    return {
        "position": sampler.position(state.inner),
        "step_size": jnp.full((number,), step_size),
        "damping": jnp.full((number,), damping),
        "inverse_mass_matrix": jnp.repeat(matrix[None], number, 0),
    } | state.counts.shown()


def _rows(positions):
    return jax.vmap(lambda x: ravel_pytree(x)[0])(positions)
