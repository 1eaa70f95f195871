"""Underdamped Langevin dynamics by BAOAB, unadjusted: one gradient a draw, a velocity that persists, no rejections.

In coordinates whitened by the metric, x = L y with L L' = M^-1, position and velocity v ~ N(0, I) obey

    dy = v dt,    dv = L' grad log p(x) dt - gamma v dt + sqrt(2 gamma) dW,

and a step of length eps composes the pieces that can be solved exactly, symmetrically about the noise:

    B  v += eps / 2  L' grad log p(x)
    A  x += eps / 2  L v
    O  v <- c v + sqrt(1 - c^2) xi,    xi ~ N(0, I),  c = exp(-gamma eps)
    A, B again.

Every draw is taken, so the law is biased (law = "approximate"), by order eps^2 in general: on exp(-x^4 / 4) at eps = 0.3, E x^2
is 0.4 % low (measured). On a Gaussian, whatever the metric and the friction, the positions have exactly the right law as long
as the dynamics is stable (eps < 2 / the highest frequency); the velocity, which nobody draws, has variance 1 - eps^2 / 4 on a
whitened one. With O behind the last B instead, it is the position that is wrong, by 1 / (1 - eps^2 / 4): the order of the
letters is the method. Row one of the table: no end, every state is a draw.

Sources: Leimkuhler and Matthews 2013 (BAOAB and its exactness on Gaussians); Bussi and Parrinello 2007 (exact O).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from gensamp.core import Info, Sampler, Target, Traits, bind, require
from gensamp.mcmc.arguments import euclidean, read_metric, read_start, read_step_size, strong
from gensamp.mcmc.dynamic_hamiltonian import read_positive

__all__ = ["UnderdampedState", "underdamped"]


class UnderdampedState(NamedTuple):
    """position, velocity (in whitened coordinates) and score, each like one event; the score belongs to the target of init."""

    position: Any
    velocity: Any
    score: Any


def underdamped(
    target: Target, step_size: Any, *, friction: Any = 1.0, inverse_mass_matrix: Any = None, start: Any = None
) -> Sampler:
    """Unadjusted underdamped Langevin dynamics (BAOAB).

    Args:
        target: needs `score` only. A learned or guided score serves.
        step_size: eps above, in time: below 2 in units of the target's smallest standard deviation once the metric is divided
            out; there is no acceptance to tune it by.
        friction: gamma above, per time: a scalar and a leaf. 1 suits a metric that whitens the target.
        inverse_mass_matrix: [d] or [d, d] over the flattened event; None is the identity.
        start: (key) -> position; None is Uniform(-2, 2) in every coordinate.

    Returns:
        A Sampler without end; one gradient per step, and one in init, which draws the velocity. Its state depends on neither
        step size nor metric. acceptance is 1; diverged marks a position that is not finite.

    Raises:
        ValueError: the target has no score, a size is not positive, or the metric does not fit the event.
    """
    score = require(target, "score", "underdamped")
    return Sampler(
        start=read_start(start, target.template),
        init=bind(_init, score),
        step=bind(
            _step, score, read_step_size(step_size, target.template, "underdamped"),
            read_positive(friction, target.template, "underdamped", "friction"),
            read_metric(inverse_mass_matrix, target.template, "underdamped"),
        ),
        position=bind(_position),
        traits=Traits(law="approximate"),
    )  # fmt: skip


def _init(score, key, position):
    return strong(UnderdampedState(position, _noise(key, position), score(position)))


def _step(score, step_size, friction, inverse_mass_matrix, key, state, index):
    del index
    metric = euclidean(inverse_mass_matrix)
    kick, drift = _half_steps(metric, step_size)
    position, velocity, slope = state
    velocity = kick(velocity, slope)
    position = drift(position, velocity)
    velocity = _rub(friction, step_size, velocity, _noise(key, position))
    position = drift(position, velocity)
    slope = score(position)
    velocity = kick(velocity, slope)
    finite = jnp.stack([jnp.isfinite(a).all() for a in jax.tree.leaves(position)]).all()
    return strong(UnderdampedState(position, velocity, slope)), Info.of(gradients=1, diverged=~finite)


def _half_steps(metric, step_size):
    """B and A. blackjax calls L the inverse of the mass matrix's root."""

    def kick(velocity, slope):
        force = metric.scale(velocity, slope, inv=True, trans=True)
        return jax.tree.map(lambda v, f: v + step_size / 2 * f, velocity, force)

    def drift(position, velocity):
        shift = metric.scale(position, velocity, inv=True, trans=False)
        return jax.tree.map(lambda x, s: x + step_size / 2 * s, position, shift)

    return kick, drift


def _rub(friction, step_size, velocity, noise):
    """O: friction and noise, exactly."""
    kept, added = jnp.exp(-friction * step_size), jnp.sqrt(-jnp.expm1(-2 * friction * step_size))
    return jax.tree.map(lambda v, n: kept * v + added * n, velocity, noise)


def _noise(key, like):
    # blackjax's generator would make float64 of a float32 event in 64-bit mode.
    flat, unravel = ravel_pytree(like)
    return unravel(jax.random.normal(key, flat.shape, flat.dtype))


def _position(state):
    return state.position
