"""Nested sampling: the prior is compressed, shell by shell of rising likelihood, until nothing of the evidence is left inside.

With L = p / prior the likelihood and X(l) the prior mass of {L > l}, Z = integral of L dX over X in (0, 1). From n live points
drawn from the prior, again and again

    delete     the k points of least likelihood: each is a dead point that carries the n-th part of X, the mass that the live
               points share, and X is multiplied by 1 - k / n
    replace    each by a surviving point that `num_inner_steps` slice moves have taken elsewhere in {L > l}, l the likelihood of
               the last one deleted

and at the end the live points share what is left of X (Skilling 2006). These masses, and not the shells between the mean values
of X with the likelihood at their inner edge, make the estimate of Z unbiased (Walter 2017; Salomone, South, Johansen, Drovandi
and Kroese 2018, for whom it is an SMC sampler): with the other choice it is too large by a share of order H / n. The spread of
log Z is about sqrt(H / n), H the information of the posterior over the prior.

The moves are blackjax's nested slice sampling (Yallup, Kroupa and Handley 2026): hit-and-run along directions with the live
points' covariance, stepping out and shrinking (Neal 2003). Row two of the table, its path being the likelihood's level: finite,
one draw is a population of weighted points. How many points die depends on the data, so all is one step of the Sampler.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.mcmc.slice import build_kernel as build_slice
from blackjax.mcmc.slice import stepping_out
from blackjax.ns import base as shells
from blackjax.ns.from_mcmc import update_with_mcmc_take_last
from blackjax.ns.nss import sample_direction_from_covariance_factor, slice_constrained_step
from blackjax.smc.tuning.from_particles import particles_covariance_matrix

from gensamp.core import Info, PyTree, Sampler, Static, Target, Traits, bind, require, scalar
from gensamp.mcmc.arguments import dimension, strong
from gensamp.mcmc.levels import base_log_density
from gensamp.mcmc.smc import draw_population, log_weight_of, position_of, read_count

__all__ = ["NestedState", "nested"]

# Neal's limits: brackets wider than ten widths are cut, a slice that a hundred points miss is given up.
_SLICE = build_slice(interval=stepping_out, max_expansions=10, max_shrinkage=100)


class NestedState(NamedTuple):
    """position: [max_points, ...], dead and at the end live points. log_weight: [max_points], -inf in rows not used.
    live: [num_live, ...].
    """

    position: Any
    log_weight: Any
    live: Any


class Run(NamedTuple):
    """What the loop carries. live: blackjax's live points. position, log_likelihood, log_mass: [max_points] of the dead.
    dead: how many. log_mass_left: log X. log_z: of the dead. densities, accepted: so far.
    """

    live: Any
    position: Any
    log_likelihood: Any
    log_mass: Any
    dead: Any
    log_mass_left: Any
    log_z: Any
    densities: Any
    accepted: Any


def nested(
    target: Target,
    prior: Target,
    *,
    num_live: int,
    max_points: int,
    num_delete: int | None = None,
    num_inner_steps: int | None = None,
    remaining: Any = 1e-2,
    report: bool = False,
) -> Sampler:
    """Nested sampling with slice moves.

    Args:
        target: needs `log_density`, unnormalised: log likelihood + log prior.
        prior: with exact draws and a normalised density (or a truth that states its log normaliser), on the same events.
        num_live: n. Static.
        max_points: rows of the population, dead and live points together: about n (H + 3 sqrt(H) + 3) for a posterior that
            holds H nats more than the prior. Static. Where they do not suffice the run ends early and `diverged` is set.
        num_delete: k, points replaced side by side; None is a tenth of n. Static.
        num_inner_steps: slice moves per new point; None is the larger of 5 and twice the dimension. Static.
        remaining: the run ends when the live points hold less than this share of the evidence. A leaf.
        report: Info.extra carries num_points, information (H, in nats) and log_z_error, sqrt(H / n).

    Returns:
        A finite Sampler of one step whose draw is a population: position [max_points, ...], log_weight [max_points]. densities
        counts what the moves needed: for k > 1 they run side by side, and an idle one is evaluated along.

    Raises:
        ValueError: a density or exact draws are missing, the events differ, or a number is out of range.
    """
    by = "nested"
    if prior.template != target.template:
        raise ValueError(
            f"{by} got a prior of events {prior.template}, a target of events {target.template}; expected the same"
        )
    read_count(num_live, 4, by, "num_live")
    num_delete = max(1, num_live // 10) if num_delete is None else read_count(num_delete, 1, by, "num_delete")
    if num_delete > num_live // 2:
        raise ValueError(f"{by} got num_delete {num_delete} of {num_live} live points; expected at most half of them")
    if num_inner_steps is None:
        num_inner_steps = max(5, 2 * dimension(target.template))
    read_count(num_inner_steps, 1, by, "num_inner_steps")
    read_count(max_points, num_live + num_delete, by, "max_points")
    if not isinstance(remaining, jax.core.Tracer) and not 0 < remaining < 1:
        raise ValueError(f"{by} got remaining {remaining}; expected a share between 0 and 1")
    density = bind(_likelihood, base_log_density(prior, by), require(target, "log_density", by))
    fixed = Static((num_delete, num_inner_steps, report))
    return Sampler(
        start=bind(draw_population, prior.exact, Static(num_live)),
        init=bind(_init, Static(max_points), scalar(0.0, target.template)),
        step=bind(_step, density, scalar(remaining, target.template), fixed),
        position=bind(position_of),
        log_weight=bind(log_weight_of),
        num_steps=1,
        traits=Traits(law="asymptotic", population=max_points),
    )


def _likelihood(prior, log_density, x) -> tuple[jax.Array, jax.Array]:
    """log prior and log likelihood; one density of the target."""
    log_prior = prior(x)
    value = log_density(x) - log_prior
    return log_prior, jnp.where(jnp.isfinite(value), value, -jnp.inf)


def _init(max_points, zero, key, live):
    del key
    rows = jax.tree.map(lambda a: jnp.zeros((max_points.value, *a.shape[1:]), a.dtype), live)
    return strong(NestedState(rows, jnp.full((max_points.value,), -jnp.inf, zero.dtype), live))


def _point(density, position, loglikelihood_birth=0.0):
    log_prior, log_likelihood = density(position)
    birth = jnp.asarray(loglikelihood_birth, log_likelihood.dtype)
    return shells.StateWithLogLikelihood(position, log_prior, log_likelihood, birth)


def _step(density, remaining, fixed, key, state, index):
    del index
    num_delete, num_inner_steps, report = fixed.value
    num_live, max_points = jax.tree.leaves(state.live)[0].shape[0], state.log_weight.size
    dtype = state.log_weight.dtype
    make = partial(_point, density)
    move = update_with_mcmc_take_last(slice_constrained_step(make, _SLICE, _along), num_inner_steps, num_delete)
    empty = jnp.full((max_points,), -jnp.inf, dtype)
    zero = jnp.zeros((), dtype)
    start = Run(
        shells.NSState(jax.vmap(make)(state.live)), state.position, empty, empty, jnp.int32(0), zero, zero - jnp.inf,
        jnp.int32(num_live), zero,
    )  # fmt: skip
    shell = -jnp.log(jnp.asarray(num_live, dtype))
    shrunk = jnp.log1p(jnp.asarray(-num_delete / num_live, dtype))

    def log_z_live(run: Run):
        return _log_mean(run.live.particles.loglikelihood) + run.log_mass_left

    def unfinished(run: Run):
        room = run.dead + num_delete + num_live <= max_points
        left = log_z_live(run)
        return room & (left > -jnp.inf) & (left - jnp.logaddexp(left, run.log_z) > jnp.log(remaining))

    def round(run: Run) -> Run:
        kernel = shells.build_kernel(
            partial(_least, num_delete), partial(move, factor=_factor(run.live.particles.position, dtype))
        )
        live, info = kernel(jax.random.fold_in(key, run.dead), run.live)
        died = info.particles
        rows = run.dead + jnp.arange(num_delete, dtype=jnp.int32)
        log_mass = jnp.broadcast_to(run.log_mass_left + shell, rows.shape)
        moves = info.update_info
        # Two ends of the bracket, the steps out, and the points tried.
        spent = 2 * moves.num_shrink.size + moves.num_expansions.sum() + moves.num_shrink.sum()
        return Run(
            live=live,
            position=jax.tree.map(lambda a, b: a.at[rows].set(b), run.position, died.position),
            log_likelihood=run.log_likelihood.at[rows].set(died.loglikelihood),
            log_mass=run.log_mass.at[rows].set(log_mass),
            dead=run.dead + num_delete,
            log_mass_left=run.log_mass_left + shrunk,
            log_z=jnp.logaddexp(run.log_z, jax.nn.logsumexp(log_mass + died.loglikelihood)),
            densities=run.densities + spent.astype(jnp.int32),
            accepted=run.accepted + moves.is_accepted.mean(dtype=dtype) * num_delete,
        )

    end = jax.lax.while_loop(unfinished, round, start)
    rows = end.dead + jnp.arange(num_live, dtype=jnp.int32)
    live = end.live.particles
    log_likelihood = end.log_likelihood.at[rows].set(live.loglikelihood)
    log_mass = end.log_mass.at[rows].set(end.log_mass_left + shell)
    position = jax.tree.map(lambda a, b: a.at[rows].set(b), end.position, live.position)
    weight = jnp.where(log_mass > -jnp.inf, log_likelihood + log_mass, -jnp.inf)
    left = log_z_live(end)
    log_z = jnp.logaddexp(left, end.log_z)
    unconverged = ~(left - log_z <= jnp.log(remaining))
    extra = _extra(weight, log_likelihood, log_z, end.dead + num_live, num_live) if report else ()
    info = Info.of(
        densities=end.densities, acceptance=end.accepted / jnp.maximum(end.dead, 1), diverged=unconverged, extra=extra
    )
    log_weight = weight + jnp.log(jnp.asarray(max_points, dtype))
    return strong(NestedState(position, log_weight, live.position)), info


def _extra(weight, log_likelihood, log_z, num_points, num_live) -> dict[str, jax.Array]:
    """H = sum of p log(L / Z) over the points, p their share of Z."""
    share = jnp.exp(weight - log_z)
    terms = jnp.where(share > 0, share * (log_likelihood - log_z), 0)
    information = jnp.maximum(terms.sum(), 0)
    return {"num_points": num_points, "information": information, "log_z_error": jnp.sqrt(information / num_live)}


def _least(num_delete, state):
    return shells.delete_fn(state, num_delete)


def _factor(position: PyTree, dtype) -> jax.Array:
    """Lower factor [d, d] of the live points' covariance; a ridge keeps it regular when they lie in a plane."""
    covariance = jnp.atleast_2d(particles_covariance_matrix(position)).astype(dtype)
    scale = jnp.diagonal(covariance).mean()
    ridge = jnp.maximum(10 * jnp.finfo(dtype).eps * scale, jnp.finfo(dtype).tiny)
    return jnp.linalg.cholesky(covariance + ridge * jnp.eye(covariance.shape[0], dtype=dtype))


def _along(make, threshold, factor):
    """Points on a line through the present one, in the events' own dtype (blackjax's random numbers have jax's default)."""

    def generate(key, position, log_density):
        del log_density
        direction = sample_direction_from_covariance_factor(key, position, factor)

        def point(t):
            moved = jax.tree.map(lambda x, v: x + t.astype(x.dtype) * v.astype(x.dtype), position, direction)
            made = make(moved, loglikelihood_birth=threshold)
            return made, made.loglikelihood > threshold

        return point

    return generate


def _log_mean(values):
    return jax.nn.logsumexp(values) - jnp.log(jnp.asarray(values.size, values.dtype))
