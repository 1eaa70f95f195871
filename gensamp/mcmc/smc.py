"""Sequential Monte Carlo along a path: a population that is weighed, resampled and moved from level to level.

For levels 0 < t_1 < ... < t_L = 1 and particles x^n drawn from the base, level i does

    weigh      log w^n += log p_{t_i}(x^n) - log p_{t_{i-1}}(x^n)
    resample   where the effective number of particles (sum w)^2 / sum w^2 has fallen below ess_threshold * N: ancestors are
               drawn by their weights, and every weight becomes the mean weight (which carries the estimate of Z on)
    move       each particle by a kernel that leaves p_{t_i} invariant, its state made anew at that level

(`smc`; Del Moral, Doucet and Jasra 2006, algorithm 3.1.1 with the backward kernel of their section 3.3.2.3). `waste_free_smc`
resamples M < N ancestors at every level and keeps all P = N / M states of the chains started there (Dau and Chopin 2022,
algorithm 2). The mean of the final weights is an unbiased estimate of Z.

Row two of the table: finite, one draw is a population; particles of one population depend on each other.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.smc import resampling as schemes
from blackjax.smc.ess import log_ess

from gensamp.core import Info, Path, PyTree, Sampler, Static, Traits, add_info, bind, scalar
from gensamp.mcmc.arguments import strong
from gensamp.mcmc.hamiltonian import hmc
from gensamp.mcmc.levels import (
    Mover,
    base_log_density,
    densities_per_point,
    log_ratio,
    measure,
    read_levels,
    read_metrics,
    read_mover,
    read_per_level,
    value_at,
)  # fmt: skip

__all__ = ["SmcState", "smc", "waste_free_smc"]

SCHEMES = {name: getattr(schemes, name) for name in ("systematic", "stratified", "residual", "multinomial")}


class SmcState(NamedTuple):
    """position: [N, ...]. log_weight: [N], the running estimate of log Z in them. log_density: [N], of the law they stand in.
    measured: see `levels.measure`.
    """

    position: Any
    log_weight: Any
    log_density: Any
    measured: Any


def smc(
    path: Path,
    *,
    num_particles: int,
    levels: Any,
    step_sizes: Any,
    kernel: Callable = hmc,
    kernel_options: Mapping[str, Any] | None = None,
    inverse_mass_matrices: Any = None,
    num_moves: int = 1,
    resampling: str = "systematic",
    ess_threshold: Any = 0.5,
) -> Sampler:
    """A sequential Monte Carlo sampler with levels and step sizes given; `adaptive_smc` finds them as it goes.

    Args:
        path, levels, step_sizes, kernel, kernel_options, inverse_mass_matrices, num_moves: as for `ais`.
        num_particles: N. Static.
        resampling: how ancestors are drawn: "systematic" varies least.
        ess_threshold: share of N below which a population is resampled: 0 never, above 1 at every level. A leaf.

    Returns:
        A finite Sampler of L steps whose draw is a population: position [N, ...], log_weight [N]. A level costs, per particle,
        num_moves steps of the kernel and its init, and one density (two where the path is neither geometric nor tempered).

    Raises:
        ValueError: as for `ais`, or too few particles.

    Source: Del Moral, Doucet and Jasra 2006.
    """
    read_count(num_particles, 2, "smc", "num_particles")
    read_count(num_moves, 1, "smc", "num_moves")
    read_threshold(ess_threshold, "smc")
    rule = (read_scheme(resampling, "smc"), Static(num_moves), scalar(ess_threshold, path.base.template))
    return _along(path, "smc", num_particles, levels, step_sizes, kernel, kernel_options, inverse_mass_matrices, _step, rule)


def waste_free_smc(
    path: Path,
    *,
    num_particles: int,
    num_ancestors: int,
    levels: Any,
    step_sizes: Any,
    kernel: Callable = hmc,
    kernel_options: Mapping[str, Any] | None = None,
    inverse_mass_matrices: Any = None,
    resampling: str = "systematic",
) -> Sampler:
    """Waste-free SMC: few ancestors, long chains, and every state of a chain is a particle.

    Args:
        path, levels, step_sizes, kernel, kernel_options, inverse_mass_matrices, resampling: as for `smc`.
        num_particles: N. Static.
        num_ancestors: M, a divisor of N; chains have N / M states, of which the first is the ancestor. Static.

    Returns:
        A finite Sampler of L steps; a draw is a population of N. Per level it costs M (N / M - 1) steps of the kernel, M inits
        and N densities (2 N where the path is neither geometric nor tempered).

    Raises:
        ValueError: as for `smc`, or M does not divide N into chains of at least two states.

    Source: Dau and Chopin 2022.
    """
    read_ancestors(num_ancestors, num_particles, "waste_free_smc")
    rule = (read_scheme(resampling, "waste_free_smc"), Static(num_ancestors))
    return _along(
        path, "waste_free_smc", num_particles, levels, step_sizes, kernel, kernel_options, inverse_mass_matrices,
        _waste_free_step, rule,
    )  # fmt: skip


def read_count(value: Any, least: int, by: str, name: str) -> int:
    """An integer of at least `least`, or a ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{by} got {name} {value!r}; expected an integer of at least {least}")
    return value


def read_threshold(value: Any, by: str) -> None:
    """Raises ValueError for a concrete ess_threshold that is no number of at least 0."""
    if not isinstance(value, jax.core.Tracer) and not float(value) >= 0:
        raise ValueError(f"{by} got ess_threshold {value}; expected a share of the particles of at least 0")


def read_ancestors(num_ancestors: Any, num_particles: Any, by: str) -> int:
    """The number of ancestors of a waste-free population: a proper divisor of the number of particles, or a ValueError."""
    read_count(num_particles, 2, by, "num_particles")
    read_count(num_ancestors, 1, by, "num_ancestors")
    if num_particles % num_ancestors or num_particles == num_ancestors:
        raise ValueError(
            f"{by} got num_ancestors {num_ancestors} for {num_particles} particles; expected a divisor below it, so that "
            "chains have at least two states"
        )
    return num_ancestors


def ancestors(scheme: Static, key: jax.Array, log_weight: jax.Array, number: int) -> jax.Array:
    """Indices [number] of particles drawn by their weights; all alike if none has any weight."""
    lost = jnp.max(log_weight) == -jnp.inf
    weights = jax.nn.softmax(jnp.where(lost, 0, log_weight))
    return SCHEMES[scheme.value](key, weights, number).astype(jnp.int32)


def effective(log_weight: jax.Array) -> jax.Array:
    """The effective number of particles as a share of their number; 0 if none has any weight."""
    share = jnp.exp(log_ess(log_weight) - jnp.log(jnp.asarray(log_weight.size, log_weight.dtype)))
    return jnp.where(jnp.isfinite(share), share, 0)


def log_mean(log_weight: jax.Array) -> jax.Array:
    """log of the mean weight."""
    return jax.nn.logsumexp(log_weight) - jnp.log(jnp.asarray(log_weight.size, log_weight.dtype))


def moved(mover: Mover, t, metric, key, position: PyTree, step_sizes: jax.Array, num_moves: int, round: Any) -> tuple:
    """Every particle after `num_moves` moves with its own step size [N], and the Info of all."""

    def move(key, position, step_size):
        position, _, info = mover(t, step_size, metric, key, position, num_moves, round)
        return position, info

    position, info = jax.vmap(move)(jax.random.split(key, step_sizes.size), position, step_sizes)
    return position, _populated(info)


def chains(mover: Mover, t, metric, key, first: PyTree, step_sizes: jax.Array, length: int, round: Any) -> tuple:
    """All states [M * length, ...] of chains from M ancestors, each with its own step size [M], and the Info of all."""

    def chain(key, first, step_size):
        _, visited, info = mover(t, step_size, metric, key, first, length - 1, round)
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, visited), info

    position, info = jax.vmap(chain)(jax.random.split(key, step_sizes.size), first, step_sizes)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), position), _populated(info)


def stand(mover: Mover, t: jax.Array, position: PyTree, log_weight: jax.Array) -> SmcState:
    """The state of particles that have come to rest at level t; N densities, or 2 N (see `levels.measure`)."""
    measured = jax.vmap(measure, in_axes=(None, 0))(mover.log_density, position)
    log_density = jax.vmap(value_at, in_axes=(None, 0, None, 0))(mover.log_density, measured, t, position)
    return strong(SmcState(position, log_weight, log_density, measured))


def begin_population(base: Any, mover: Mover, key: jax.Array, position: PyTree) -> SmcState:
    """The state at the base: weights 1, each with the base's normalised density."""
    del key
    log_density = jax.vmap(base)(position)
    zeros = jnp.zeros(log_density.shape, scalar(0.0, position).dtype)
    measured = jax.vmap(measure, in_axes=(None, 0))(mover.log_density, position)
    return strong(SmcState(position, zeros, log_density.astype(zeros.dtype), measured))


def draw_population(exact: Any, number: Static, key: jax.Array) -> PyTree:
    """`number` exact draws of the base."""
    return jax.vmap(exact)(jax.random.split(key, number.value))


def position_of(state: Any) -> PyTree:
    """The particles."""
    return state.position


def log_weight_of(state: Any) -> jax.Array:
    """Their weights."""
    return state.log_weight


def _along(path, by, number, levels, step_sizes, kernel, options, metrics, step, rule) -> Sampler:
    """A finite population sampler with a given step for each level."""
    mover = read_mover(path, kernel, options, by)
    template = path.base.template
    levels = read_levels(levels, template, by)
    return Sampler(
        start=bind(draw_population, path.base.exact, Static(number)),
        init=bind(begin_population, base_log_density(path.base, by), mover),
        step=bind(
            step, mover, levels, read_per_level(step_sizes, levels, by, "step_sizes"),
            read_metrics(metrics, levels, template, by), *rule,
        ),
        position=bind(position_of),
        log_weight=bind(log_weight_of),
        num_steps=levels.size,
        traits=Traits(law="asymptotic", population=number),
    )  # fmt: skip


def weighed(mover: Mover, t: jax.Array, state: SmcState) -> jax.Array:
    """Log weights at level t."""
    here = jax.vmap(value_at, in_axes=(None, 0, None, 0))(mover.log_density, state.measured, t, state.position)
    return state.log_weight + log_ratio(here, state.log_density)


def _step(mover: Mover, levels, step_sizes, metrics, scheme, num_moves, threshold, key, state, index):
    t, metric = levels[index], None if metrics is None else metrics[index]
    key_ancestors, key_moves = jax.random.split(key)
    log_weight = weighed(mover, t, state)
    number = log_weight.size
    poor = effective(log_weight) < threshold
    chosen = jnp.where(poor, ancestors(scheme, key_ancestors, log_weight, number), jnp.arange(number, dtype=jnp.int32))
    log_weight = jnp.where(poor, log_mean(log_weight), log_weight)
    position = jax.tree.map(lambda a: a[chosen], state.position)

    sizes = jnp.broadcast_to(step_sizes[index], (number,))
    position, info = moved(mover, t, metric, key_moves, position, sizes, num_moves.value, index)
    return stand(mover, t, position, log_weight), add_info(info, _own_cost(mover, log_weight))


def _waste_free_step(mover: Mover, levels, step_sizes, metrics, scheme, num_ancestors, key, state, index):
    t, metric = levels[index], None if metrics is None else metrics[index]
    key_ancestors, key_moves = jax.random.split(key)
    log_weight = weighed(mover, t, state)
    first = ancestors(scheme, key_ancestors, log_weight, num_ancestors.value)
    first = jax.tree.map(lambda a: a[first], state.position)
    sizes = jnp.broadcast_to(step_sizes[index], (num_ancestors.value,))
    position, info = chains(mover, t, metric, key_moves, first, sizes, log_weight.size // num_ancestors.value, index)
    log_weight = jnp.broadcast_to(log_mean(log_weight), log_weight.shape)
    return stand(mover, t, position, log_weight), add_info(info, _own_cost(mover, log_weight))


def _populated(info: Info) -> Info:
    """The Info of a population from one per particle: counts of all, acceptance on average.

    One particle's divergent path means nothing to a population; `diverged` is left to say that no weight is left.
    """
    counts = {name: getattr(info, name).sum() for name in ("gradients", "densities", "forwards")}
    return Info.of(**counts, acceptance=info.acceptance.mean())


def _own_cost(mover: Mover, log_weight) -> Info:
    """What a level costs besides moves: densities where particles came to rest and, for want of a formula, where they stood."""
    densities = log_weight.size * (densities_per_point(mover.log_density) or 2)
    return Info.of(densities=densities, acceptance=0.0, diverged=log_weight.max() == -jnp.inf)


def read_scheme(resampling: str, by: str) -> Static:
    if resampling not in SCHEMES:
        raise ValueError(f"{by} got resampling {resampling!r}; expected one of {', '.join(SCHEMES)}")
    return Static(resampling)
