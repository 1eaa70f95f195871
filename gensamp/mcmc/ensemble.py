"""The affine-invariant ensemble: walkers that move along the lines between them, so that no scale or metric is needed.

K walkers x_1, ..., x_K stand in two halves. In turn every walker x of one half is stretched away from (or towards) a walker x_j
drawn from the other half,

    y = x_j + z (x - x_j),    z ~ g(z) on [1/a, a], g(z) proportional to z^-1/2,

and y is accepted with probability min(1, z^(d-1) p(y) / p(x)); g(1/z) = z g(z), and the rest of z^(d-1) is the volume that a
stretch by z makes (Goodman and Weare 2010, equations 6 to 8). The walkers of a half do not look at each other, so they move at
once (Foreman-Mackey et al. 2013, algorithm 3). An affine map of the target maps the whole chain, so a narrow law is as easy as
a round one. In many dimensions (some tens) the stretch is a poor proposal (Huijser, Goodman and Brewer 2015).

Row one of the table: no end, and every state is a draw: of a population. One run's walkers are not independent of each other;
runs are. The law on K walkers is the product of the target's.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from gensamp.core import Info, Sampler, Static, Target, Traits, bind, scalar
from gensamp.mcmc.arguments import dimension, read_log_density, read_start, strong

__all__ = ["StretchState", "stretch"]


class StretchState(NamedTuple):
    """position: like one event, with a leading axis of walkers. log_density: [walkers]."""

    position: Any
    log_density: jax.Array


def stretch(target: Target, num_walkers: int, *, scale: Any = 2.0, start: Any = None) -> Sampler:
    """The stretch move on an ensemble of walkers.

    Args:
        target: needs `log_density`; no gradient is taken.
        num_walkers: K, even and at least 2 d, so that the lines between them span the space.
        scale: a above, a number greater than 1.
        start: (key) -> position of one walker, called with a key for each; None is Uniform(-2, 2) in every coordinate. Walkers
            that start at one point, or in one plane, never leave it.

    Returns:
        A Sampler without end, a population: positions are [num_walkers, ...event], and `sample` makes [run * walker, draw, ...]
        of them. num_walkers densities per step, and in init; Info counts those of all walkers, and acceptance is the average
        over them. diverged marks a step after which a walker stands where the log density is not finite.

    Raises:
        ValueError: the target has no log_density, num_walkers is odd or less than 2 d, or the scale is not above 1.
    """
    log_density = read_log_density(target, "stretch")
    size = dimension(target.template)
    if not isinstance(num_walkers, int) or num_walkers < 2 * size or num_walkers % 2:
        raise ValueError(
            f"stretch got num_walkers {num_walkers!r} for events of {size} coordinates; expected an even integer of at least "
            f"{2 * size}"
        )
    if jnp.shape(scale) != () or not (isinstance(scale, jax.core.Tracer) or 1 < float(scale) < float("inf")):
        raise ValueError(f"stretch got scale {scale}; expected one number greater than 1 (2 is usual)")
    return Sampler(
        start=bind(_scatter, Static(num_walkers), read_start(start, target.template)),
        init=bind(_init, log_density),
        step=bind(_step, log_density, scalar(scale, target.template)),
        position=bind(_position),
        traits=Traits(population=num_walkers),
    )


def _scatter(num_walkers, start, key):
    return jax.vmap(start)(jax.random.split(key, num_walkers.value))


def _init(log_density, key, position):
    del key
    return strong(StretchState(position, _values(log_density, position)))


def _step(log_density, scale, key, state, index):
    del index
    number = state.log_density.size
    first = jax.tree.map(lambda a: a[: number // 2], state)
    second = jax.tree.map(lambda a: a[number // 2 :], state)

    def turn(halves, key):
        # The half that waits next meets this one where it then stands: against the old places the law would not be invariant.
        moving, waiting = halves
        moved, acceptance = _move_half(log_density, scale, key, moving, waiting.position)
        return (waiting, moved), acceptance

    # A loop over the two halves and not two calls, which would be compiled twice.
    halves, acceptance = jax.lax.scan(turn, (first, second), jax.random.split(key))
    state = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *halves)
    return strong(state), Info.of(
        densities=number, acceptance=acceptance.mean(), diverged=~jnp.isfinite(state.log_density).all()
    )


def _move_half(log_density, scale, key, half, others):
    """Every walker of a half stretched along the line to one of the others, and the mean acceptance probability."""
    key_partner, key_stretch, key_accept = jax.random.split(key, 3)
    (walkers, unravel), (others, _) = _flat(half.position), _flat(others)
    partners = others[jax.random.randint(key_partner, (len(walkers),), 0, len(others))]
    z = _stretches(key_stretch, scale, len(walkers))
    proposals = partners + z[:, None] * (walkers - partners)
    position = jax.vmap(unravel)(proposals)
    value = _values(log_density, position)
    ratio = _log_volume(z, walkers.shape[1]) + value - half.log_density
    # NaN where the density is zero at both ends.
    ratio = jnp.where(jnp.isnan(ratio), -jnp.inf, ratio)
    accept = jnp.log(jax.random.uniform(key_accept, ratio.shape, ratio.dtype)) < ratio

    def choose(new, old):
        return jnp.where(accept.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    moved = jax.tree.map(choose, StretchState(position, value), half)
    return moved, jnp.exp(jnp.minimum(ratio, 0)).mean()


def _values(log_density, position):
    """The log density of every walker; -inf where it is not a number, since from there any other place is better."""
    values = jax.vmap(log_density)(position)
    return jnp.where(jnp.isnan(values), -jnp.inf, values)


def _stretches(key, scale, number):
    """z ~ g by inversion: its distribution function is (sqrt z - sqrt(1/a)) / (sqrt a - sqrt(1/a))."""
    u = jax.random.uniform(key, (number,), scale.dtype)
    return jnp.square(1 + (scale - 1) * u) / scale


def _log_volume(z, size):
    return (size - 1) * jnp.log(z)


def _flat(position):
    """Walkers as rows [walkers, d], and the way back for one."""
    one = jax.tree.map(lambda a: a[0], position)
    return jax.vmap(lambda x: ravel_pytree(x)[0])(position), ravel_pytree(one)[1]


def _position(state):
    return state.position
