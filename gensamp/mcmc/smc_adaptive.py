"""Adaptive sequential Monte Carlo: the population chooses its next level, its metric and its step size.

From level t, at weights W^n that sum to 1, the next level s is as far as the population can follow,

    CESS(s) = N (sum W^n u^n)^2 / sum W^n (u^n)^2 = target_ess * N,    u^n = p_s(x^n) / p_t(x^n),

found by bisection (Jasra, Stephens, Doucet and Tsagaris 2011; the conditional form, which also counts right between two
resamplings, is that of Zhou, Johansen and Aston 2016), or 1 where even that is near enough. Then it weighs, resamples and
moves as `smc` does. The metric is the weighted variance of the particles. The step size follows the acceptance of the level
before, log eps' = log eps + (acceptance - target), with a spread over the particles, so that a region narrower than the rest is
moved in too (spreading tuning parameters over particles: Fearnhead and Taylor 2013; Buchholz, Chopin and Jacob 2021).

How many levels it takes depends on the data, so all of them are one step of the Sampler. Adaptation makes the estimate of Z
biased by order 1/N (Beskos, Jasra, Kantas and Thiery 2016, who show consistency). Row two of the table.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from gensamp.core import Info, Path, Sampler, Static, Traits, bind, scalar
from gensamp.mcmc.arguments import dimension, read_step_size, strong
from gensamp.mcmc.hamiltonian import hmc
from gensamp.mcmc.levels import Mover, base_log_density, densities_per_point, read_mover
from gensamp.mcmc.smc import (
    SmcState,
    ancestors,
    begin_population,
    chains,
    draw_population,
    effective,
    log_mean,
    log_weight_of,
    moved,
    position_of,
    read_ancestors,
    read_count,
    read_scheme,
    read_threshold,
    stand,
    weighed,
)  # fmt: skip

__all__ = ["adaptive_smc"]

# Halvings of the bisection for log(increment), from e^-30 of what is left: to within half a per cent.
BISECTIONS = 12
SMALLEST = -30.0


class Progress(NamedTuple):
    """What the loop over levels carries. history: rows [max_levels] of levels, step sizes, metrics and acceptances."""

    population: SmcState
    t: Any
    log_step: Any
    level: Any
    info: Info
    history: dict[str, Any]


def adaptive_smc(
    path: Path,
    *,
    num_particles: int,
    target_ess: Any = 0.9,
    ess_threshold: Any = 0.5,
    kernel: Callable = hmc,
    kernel_options: Mapping[str, Any] | None = None,
    num_moves: int = 1,
    num_ancestors: int | None = None,
    metric: str = "diagonal",
    step_size: Any = None,
    target_acceptance: Any = 0.8,
    spread: Any = 4.0,
    resampling: str = "systematic",
    max_levels: int = 1000,
    report: bool = False,
) -> Sampler:
    """A sequential Monte Carlo sampler that adapts levels, metric and step size to the path.

    Args:
        path, kernel, kernel_options, num_moves, num_particles, resampling, ess_threshold: as for `smc`.
        num_ancestors: a divisor of num_particles makes it waste-free: as many ancestors are drawn at every level and all states
            of the chains started there are particles (num_moves and ess_threshold then say nothing). Static.
        target_ess: share of the effective particles that one level keeps; nearer 1 means more levels. A leaf.
        metric: the particles' variances or covariance as the kernel's `inverse_mass_matrix`, or "none" for kernels that take
            none (the step size is then in the target's own units).
        step_size: at the first level; None is d^(-1/4), right for a leapfrog path in a well-scaled law of d coordinates
            (Beskos et al. 2013).
        target_acceptance: mean acceptance that the step size is led to.
        spread: step sizes of the particles are log-uniform between eps / spread and eps * spread; 1 for none.
        max_levels: levels at most. Static. When they do not suffice the last weights bridge what is left and `diverged` is set.
        report: Info.extra carries num_levels and, padded to max_levels, levels, step_sizes, acceptances and
            inverse_mass_matrices: what `smc` and `ais` take.

    Returns:
        A finite Sampler of one step whose draw is a population: position [N, ...], log_weight [N]. Per level it costs what
        `smc` costs, and BISECTIONS + 1 more densities per particle where the path is neither geometric nor tempered.

    Raises:
        ValueError: as for `smc`, a share or an acceptance outside (0, 1), or a step size that is not positive.
    """
    by = "adaptive_smc"
    for name, value in (("target_ess", target_ess), ("target_acceptance", target_acceptance)):
        if not isinstance(value, jax.core.Tracer) and not 0 < value < 1:
            raise ValueError(f"{by} got {name} {value}; expected a share between 0 and 1")
    if not isinstance(spread, jax.core.Tracer) and not spread >= 1:
        raise ValueError(f"{by} got spread {spread}; expected a factor of at least 1")
    if metric not in ("diagonal", "dense", "none"):
        raise ValueError(f"{by} got metric {metric!r}; expected 'diagonal', 'dense' or 'none'")
    read_count(num_particles, 2, by, "num_particles")
    read_count(max_levels, 1, by, "max_levels")
    template = path.base.template
    mover = read_mover(path, kernel, kernel_options, by)
    read_threshold(ess_threshold, by)
    step_size = read_step_size(dimension(template) ** -0.25 if step_size is None else step_size, template, by)
    shares = {"target_ess": target_ess, "ess_threshold": ess_threshold, "target_acceptance": target_acceptance}
    numbers = {name: scalar(value, template) for name, value in (shares | {"spread": spread, "step_size": step_size}).items()}
    if num_ancestors is not None:
        read_ancestors(num_ancestors, num_particles, by)
    fixed = (metric, read_count(num_moves, 1, by, "num_moves"), num_ancestors, max_levels, report)
    return Sampler(
        start=bind(draw_population, path.base.exact, Static(num_particles)),
        init=bind(begin_population, base_log_density(path.base, by), mover),
        step=bind(_step, mover, numbers, read_scheme(resampling, by), Static(fixed)),
        position=bind(position_of),
        log_weight=bind(log_weight_of),
        num_steps=1,
        traits=Traits(law="asymptotic", population=num_particles),
    )


def _step(mover: Mover, numbers, scheme, fixed, key, state, index):
    del index
    metric, num_moves, num_ancestors, max_levels, report = fixed.value
    dtype = state.log_weight.dtype
    flat, _ = ravel_pytree(jax.tree.map(lambda a: a[0], state.position))
    shape = {"diagonal": (flat.size,), "dense": (flat.size, flat.size), "none": ()}[metric]
    history = {
        "levels": jnp.ones((max_levels,), dtype), "step_sizes": jnp.ones((max_levels,), dtype),
        "acceptances": jnp.ones((max_levels,), dtype), "inverse_mass_matrices": jnp.ones((max_levels, *shape), dtype),
    }  # fmt: skip
    start = Progress(
        state, jnp.zeros((), dtype), jnp.log(numbers["step_size"]), jnp.int32(0), Info.of(acceptance=0.0),
        history if report else {},
    )  # fmt: skip

    def unfinished(progress: Progress):
        return (progress.t < 1) & (progress.level < max_levels)

    def level(progress: Progress) -> Progress:
        return _level(
            mover, numbers, scheme, (metric, num_moves, num_ancestors), jax.random.fold_in(key, progress.level), progress
        )

    end = jax.lax.while_loop(unfinished, level, start)
    # One more weighing, which changes nothing where t = 1 was reached.
    one = jnp.ones((), dtype)
    log_weight = jnp.where(end.t < 1, weighed(mover, one, end.population), end.population.log_weight)
    population = end.population._replace(log_weight=log_weight)
    number = state.log_weight.size
    family = 0 if densities_per_point(mover.log_density) else number
    info = end.info
    info = Info.of(
        gradients=info.gradients, densities=info.densities + family, forwards=info.forwards,
        acceptance=info.acceptance / end.level, diverged=(end.t < 1) | (log_weight.max() == -jnp.inf),
        extra={"num_levels": end.level, **end.history} if report else (),
    )  # fmt: skip
    return strong(population), info


def _level(mover, numbers, scheme, moves, key, progress: Progress) -> Progress:
    """One level: choose it, weigh, resample, adapt the metric, move, adapt the step size."""
    metric, num_moves, num_ancestors = moves
    state = progress.population
    number = state.log_weight.size
    key_ancestors, key_spread, key_moves = jax.random.split(key, 3)
    t = _next_level(mover, numbers["target_ess"], state, progress.t)
    log_weight = weighed(mover, t, state)
    matrix = _metric(metric, state.position, log_weight)
    if num_ancestors is None:
        poor = effective(log_weight) < numbers["ess_threshold"]
        chosen = jnp.where(poor, ancestors(scheme, key_ancestors, log_weight, number), jnp.arange(number, dtype=jnp.int32))
        log_weight = jnp.where(poor, log_mean(log_weight), log_weight)
    else:
        chosen = ancestors(scheme, key_ancestors, log_weight, num_ancestors)
        log_weight = jnp.broadcast_to(log_mean(log_weight), log_weight.shape)
    first = jax.tree.map(lambda a: a[chosen], state.position)
    # Stratified over particles in random order: all sizes between eps / spread and eps * spread are in use at every level.
    rank = (jax.random.permutation(key_spread, chosen.size) + 0.5).astype(log_weight.dtype) / chosen.size
    step_sizes = jnp.exp(progress.log_step + (2 * rank - 1) * jnp.log(numbers["spread"]))
    if num_ancestors is None:
        position, info = moved(mover, t, matrix, key_moves, first, step_sizes, num_moves, progress.level)
    else:
        position, info = chains(mover, t, matrix, key_moves, first, step_sizes, number // num_ancestors, progress.level)
    row = {"levels": t, "step_sizes": jnp.exp(progress.log_step), "acceptances": info.acceptance.astype(t.dtype)}
    row |= {} if matrix is None else {"inverse_mass_matrices": matrix}
    history = {name: rows.at[progress.level].set(row.get(name, 1)) for name, rows in progress.history.items()}
    accepted = jnp.where(jnp.isfinite(info.acceptance), info.acceptance, 0).astype(t.dtype)
    per_point = densities_per_point(mover.log_density)
    spent = Info.of(
        gradients=progress.info.gradients + info.gradients,
        densities=progress.info.densities + info.densities + number * (per_point or BISECTIONS + 3),
        forwards=progress.info.forwards + info.forwards,
        acceptance=progress.info.acceptance + info.acceptance,
    )
    log_step = progress.log_step + accepted - numbers["target_acceptance"]
    return Progress(stand(mover, t, position, log_weight), t, log_step, progress.level + 1, spent, history)


def _next_level(mover, target_ess, state: SmcState, t) -> jax.Array:
    """The level at which the conditional effective share has fallen to its target, or 1."""
    normalised = jax.nn.log_softmax(jnp.where(state.log_weight.max() == -jnp.inf, 0, state.log_weight))

    def level(log_share):
        # At least one step of the floating-point grid, or the loop over levels would stand still.
        return jnp.clip(t + (1 - t) * jnp.exp(log_share), jnp.nextafter(t, jnp.ones_like(t)), 1)

    def far(log_share):
        change = weighed(mover, level(log_share), state) - state.log_weight
        share = 2 * jax.nn.logsumexp(normalised + change) - jax.nn.logsumexp(normalised + 2 * change)
        return ~(share > jnp.log(target_ess))

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        beyond = far(middle)
        return jnp.where(beyond, low, middle), jnp.where(beyond, middle, high)

    zero = jnp.zeros_like(t)
    low, _ = jax.lax.fori_loop(0, BISECTIONS, halve, (zero + SMALLEST, zero))
    return jnp.where(far(zero), level(low), jnp.ones_like(t))


def _metric(metric: str, position, log_weight):
    """The weighted variance [d] or covariance [d, d] of the particles, or None."""
    if metric == "none":
        return None
    weights = jax.nn.softmax(jnp.where(log_weight.max() == -jnp.inf, 0, log_weight))
    flat = jax.vmap(lambda x: ravel_pytree(x)[0])(position).astype(weights.dtype)
    centred = flat - (weights @ flat)[None, :]
    variance = weights @ centred**2
    # A population that has collapsed onto one ancestor has no variance to offer.
    floor = math.sqrt(jnp.finfo(weights.dtype).eps)
    floor = jnp.maximum(floor * variance.max(), jnp.finfo(weights.dtype).tiny)
    if metric == "diagonal":
        return jnp.maximum(variance, floor)
    return (weights[:, None] * centred).T @ centred + floor * jnp.eye(variance.size, dtype=variance.dtype)
