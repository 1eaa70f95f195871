"""Barker's proposal: a random walk whose every increment takes the sign that the gradient favours.

In coordinates whitened by the metric, x = L y with L L' = M^-1, an increment z_i ~ N(0, eps^2) is drawn for each coordinate and
kept with probability 1 / (1 + exp(-z_i c_i)), c = L' grad log p(x), else turned round, giving b_i = +1 or -1:

    x' = x + L (b * z),

accepted with the Metropolis probability of that proposal, whose log ratio is

    log p(x') - log p(x) + sum_i softplus(-w_i c_i) - softplus(w_i c'_i),    w = b * z,  c' = L' grad log p(x').

A gradient enters through signs only, so a start in a steep tail or a step size ten times too long costs efficiency and not
stability, where MALA overshoots. Row one of the table: no end, every state is a draw.

The kernel is written here and not taken from blackjax (1.7.1), with which it agrees for M = I and moderate gradients (a test
compares them). There log(1 + exp(a)) overflows, so that a chain in a steep tail never moves, and a large inverse mass shortens
the steps of a coordinate instead of lengthening them.

Sources: Livingstone and Zanella 2022, algorithms 1 and 2 (in d dimensions, coordinate by coordinate), appendix G (the metric).
"""

from typing import Any

import blackjax
import jax
import jax.numpy as jnp
from blackjax.mcmc.hmc import HMCState
from blackjax.mcmc.proposal import static_binomial_sampling
from jax.flatten_util import ravel_pytree

from gensamp.core import Info, Sampler, Target, bind
from gensamp.mcmc.arguments import euclidean, read_log_density, read_metric, read_start, read_step_size, strong

__all__ = ["barker"]


def barker(target: Target, step_size: Any, *, inverse_mass_matrix: Any = None, start: Any = None) -> Sampler:
    """Metropolis with Barker's proposal; best near an acceptance of 0.57 (Vogrinc, Livingstone and Zanella 2023).

    Args:
        target: needs `log_density`, whose gradient is taken by JAX.
        step_size: eps above, a scalar: the standard deviation of an increment in whitened coordinates.
        inverse_mass_matrix: [d] or [d, d] over the flattened event; None is the identity.
        start: (key) -> position; None is Uniform(-2, 2) in every coordinate.

    Returns:
        A Sampler without end; one gradient (with its value) per step, and one in init. Its state does not depend on step size
        or metric. diverged marks a proposal where the log density is not a finite number.

    Raises:
        ValueError: the target has no log_density, the step size is not positive, or the metric does not fit the event.
    """
    log_density = read_log_density(target, "barker")
    return Sampler(
        start=read_start(start, target.template),
        init=bind(_init, log_density),
        step=bind(
            _step, log_density, read_step_size(step_size, target.template, "barker"),
            read_metric(inverse_mass_matrix, target.template, "barker"),
        ),
        position=bind(_position),
    )  # fmt: skip


def _init(log_density, key, position):
    del key
    return strong(blackjax.hmc.init(position, log_density))


def _step(log_density, step_size, inverse_mass_matrix, key, state, index):
    del index
    key_size, key_sign, key_accept = jax.random.split(key, 3)
    metric = euclidean(inverse_mass_matrix)
    slope = _whitened(metric, state)
    size = step_size * jax.random.normal(key_size, slope.shape, slope.dtype)
    keep = jax.random.uniform(key_sign, slope.shape, slope.dtype) < jax.nn.sigmoid(size * slope)
    move = jnp.where(keep, size, -size)

    _, unravel = ravel_pytree(state.position)
    shift = metric.scale(state.position, unravel(move), inv=True, trans=False)
    proposal = blackjax.hmc.init(jax.tree.map(jnp.add, state.position, shift), log_density)
    log_ratio = proposal.logdensity - state.logdensity + _correction(move, slope, _whitened(metric, proposal))
    log_ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)
    state, (_, acceptance, _) = static_binomial_sampling(key_accept, log_ratio, state, proposal)
    return strong(state), Info.of(gradients=1, acceptance=acceptance, diverged=~jnp.isfinite(proposal.logdensity))


def _correction(move, slope, slope_there):
    """log q(x | x') - log q(x' | x), without the symmetric Gaussian."""
    return jnp.sum(jax.nn.softplus(-move * slope) - jax.nn.softplus(move * slope_there))


def _whitened(metric, state: HMCState):
    """L' grad log p, flat. blackjax calls L the inverse of the mass matrix's root."""
    return ravel_pytree(metric.scale(state.position, state.logdensity_grad, inv=True, trans=True))[0]


def _position(state):
    return state.position
