"""Langevin dynamics, with and without a Metropolis correction.

A discretised diffusion whose law at equilibrium is close to the target,

    x' = x + eps M^-1 grad log p(x) + sqrt(2 eps) M^-1/2 xi,    xi ~ N(0, I),

eps the step size and M^-1 the inverse mass matrix (the metric; a covariance of the target is a good one). `ula` takes every x'
and so samples a neighbour of the target: on N(0, s^2) with M = I its variance is s^2 / (1 - eps / (2 s^2)). `mala` accepts x'
with the Metropolis probability of that proposal and is right in the limit of many steps.

`mala` is Hamiltonian Monte Carlo with one leapfrog step of length h = sqrt(2 eps) (Neal 2011, section 5.5.2), and that is how
it runs: on blackjax's HMC kernel, which knows about metrics (its MALA kernel does not). With M = I the two agree draw by draw.
Row one of the table: no end, every state is a draw.

Sources: Roberts and Tweedie 1996 (both algorithms); Roberts and Stramer 2002 (the metric).
"""

from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp

from gensamp.core import Info, Sampler, Target, Traits, bind, require
from gensamp.mcmc.arguments import euclidean, read_log_density, read_metric, read_start, read_step_size, strong

__all__ = ["UlaState", "mala", "ula"]

_KERNEL = blackjax.hmc.build_kernel()


class UlaState(NamedTuple):
    """position and score, each like one event; the score belongs to the target the state was initialised with."""

    position: Any
    score: Any


def ula(target: Target, step_size: Any, *, inverse_mass_matrix: Any = None, start: Any = None) -> Sampler:
    """Unadjusted Langevin: every proposal is taken, so the law is biased by order step_size (law = "approximate").

    Args:
        target: needs `score` only. A learned or guided score serves.
        step_size: eps above, a scalar; in units of the target's variance once the metric is divided out.
        inverse_mass_matrix: [d] or [d, d] over the flattened event; None is the identity.
        start: (key) -> position; None is Uniform(-2, 2) in every coordinate.

    Returns:
        A Sampler without end; one gradient per step (and one in init). acceptance is 1; diverged marks a position that is not
        finite.

    Raises:
        ValueError: the target has no score, the step size is not positive, or the metric does not fit the event.
    """
    score = require(target, "score", "ula")
    return Sampler(
        start=read_start(start, target.template),
        init=bind(_ula_init, score),
        step=bind(
            _ula_step, score, read_step_size(step_size, target.template, "ula"),
            read_metric(inverse_mass_matrix, target.template, "ula"),
        ),
        position=bind(_position),
        traits=Traits(law="approximate"),
    )  # fmt: skip


def mala(target: Target, step_size: Any, *, inverse_mass_matrix: Any = None, start: Any = None) -> Sampler:
    """Metropolis-adjusted Langevin; best near an acceptance of 0.574 (Roberts and Rosenthal 1998).

    Args:
        target: needs `log_density`, whose gradient is taken by JAX.
        step_size: eps above, a scalar.
        inverse_mass_matrix: [d] or [d, d] over the flattened event; None is the identity.
        start: (key) -> position; None is Uniform(-2, 2) in every coordinate.

    Returns:
        A Sampler without end; one gradient (with its value) per step, and one in init. Its state does not depend on step size
        or metric. diverged marks an energy error above 1000.

    Raises:
        ValueError: the target has no log_density, the step size is not positive, or the metric does not fit the event.
    """
    log_density = read_log_density(target, "mala")
    return Sampler(
        start=read_start(start, target.template),
        init=bind(_mala_init, log_density),
        step=bind(
            _mala_step, log_density, read_step_size(step_size, target.template, "mala"),
            read_metric(inverse_mass_matrix, target.template, "mala"),
        ),
        position=bind(_position),
    )  # fmt: skip


def langevin_move(key: jax.Array, position: Any, score: Any, step_size: jax.Array, inverse_mass_matrix: jax.Array) -> Any:
    """x' of the formula above. The metric's momentum p ~ N(0, M) gives the noise: M^-1 p has the law of M^-1/2 xi."""
    metric = euclidean(inverse_mass_matrix)
    momentum = metric.sample_momentum(key, position)
    impulse = jax.tree.map(lambda s, p: step_size * s + jnp.sqrt(2 * step_size) * p, score, momentum)
    return jax.tree.map(jnp.add, position, jax.grad(metric.kinetic_energy)(impulse))


def _ula_init(score, key, position):
    del key
    return strong(UlaState(position, score(position)))


def _ula_step(score, step_size, inverse_mass_matrix, key, state, index):
    del index
    position = langevin_move(key, state.position, state.score, step_size, inverse_mass_matrix)
    finite = jnp.stack([jnp.isfinite(a).all() for a in jax.tree.leaves(position)]).all()
    return strong(UlaState(position, score(position))), Info.of(gradients=1, diverged=~finite)


def _mala_init(log_density, key, position):
    del key
    return strong(blackjax.hmc.init(position, log_density))


def _mala_step(log_density, step_size, inverse_mass_matrix, key, state, index):
    del index
    state, info = _KERNEL(key, state, log_density, jnp.sqrt(2 * step_size), euclidean(inverse_mass_matrix), 1)
    return strong(state), Info.of(gradients=1, acceptance=info.acceptance_rate, diverged=info.is_divergent)


def _position(state):
    return state.position
