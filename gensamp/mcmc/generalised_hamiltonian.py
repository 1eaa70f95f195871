"""Generalised Hamiltonian Monte Carlo: one leapfrog step a draw, with a momentum and a slice that persist, the kernel of MEADS.

In coordinates whitened by the metric the momentum is v ~ N(0, I), p = M^1/2 v. Every step refreshes a share alpha of it,

    v <- sqrt(1 - alpha) v + sqrt(alpha) xi,    xi ~ N(0, I),

and takes one leapfrog step (x, v) -> (x', v'). A rejection turns the momentum round, v <- -v: without that the law would be
wrong, and with it a rejection undoes the way that persistence has made. Hence the second idea (Neal 2020): the uniform number
that decides persists too. u drifts by delta through [-1, 1] (end to end) instead of being drawn anew, the step is accepted when

    |u| < r = exp(-H(x', v') + H(x, v)),    and then u <- u / r,

which keeps (x, v, u) invariant and bunches rejections together, with long runs of acceptances between.

The state holds v, not p: it then depends on neither metric nor step size, and a chain keeps its law when either changes. The
kernel is blackjax's. Row one of the table: no end, every state is a draw.

Sources: Horowitz 1991; Neal 2020 (the slice); Hoffman and Sountsov 2022 (section 2; alpha = 1 - exp(-2 eps gamma), delta =
alpha / 2).
"""

from typing import Any

import blackjax
import jax
import jax.numpy as jnp
from blackjax.mcmc.ghmc import GHMCState
from jax.flatten_util import ravel_pytree

from gensamp.core import Info, Sampler, Target, bind, scalar
from gensamp.mcmc.arguments import euclidean, read_log_density, read_metric, read_start, read_step_size, strong
from gensamp.mcmc.dynamic_hamiltonian import read_positive

__all__ = ["ghmc"]

_GHMC = blackjax.ghmc.build_kernel()


def ghmc(
    target: Target,
    step_size: Any,
    *,
    inverse_mass_matrix: Any = None,
    alpha: Any = None,
    delta: Any = None,
    start: Any = None,
) -> Sampler:
    """Generalised HMC with a persistent momentum and a persistent, non-reversible acceptance.

    Args:
        target: needs `log_density`.
        step_size: eps, the length of the leapfrog step, a scalar. An acceptance near 0.85 is best (measured on normal and
            quartic laws in 5 and 50 dimensions).
        inverse_mass_matrix: [d] or [d, d] over the flattened event; None is the identity.
        alpha: share of the momentum's variance that is new each step, in (0, 1]. None is 1 - exp(-2 step_size), the friction 1
            that suits a metric which whitens the target.
        delta: drift of the slice per step, in (0, 2). None is alpha / 2.
        start: (key) -> position; None is Uniform(-2, 2) in every coordinate.

    Returns:
        A Sampler without end; one gradient (with its value) per step, and one in init, which draws momentum and slice. Its
        state depends on neither step size nor metric. diverged marks an energy error above 1000.

    Raises:
        ValueError: the target has no log_density, the step size is not positive, alpha or delta is out of range, or the metric
            does not fit the event.
    """
    log_density = read_log_density(target, "ghmc")
    step_size = read_step_size(step_size, target.template, "ghmc")
    alpha = -jnp.expm1(-2 * step_size) if alpha is None else _read_share(alpha, target.template, "alpha", 1)
    delta = alpha / 2 if delta is None else _read_share(delta, target.template, "delta", 2)
    return Sampler(
        start=read_start(start, target.template),
        init=bind(_init, log_density),
        step=bind(_step, log_density, step_size, read_metric(inverse_mass_matrix, target.template, "ghmc"), alpha, delta),
        position=bind(_position),
    )


def _init(log_density, key, position):
    key_momentum, key_slice = jax.random.split(key)
    flat, unravel = ravel_pytree(position)
    momentum = unravel(jax.random.normal(key_momentum, flat.shape, flat.dtype))
    value, gradient = jax.value_and_grad(log_density)(position)
    slice_ = jax.random.uniform(key_slice, (), value.dtype, -1, 1)
    return strong(GHMCState(position, momentum, value, gradient, slice_))


def _step(log_density, step_size, inverse_mass_matrix, alpha, delta, key, state: GHMCState, index):
    del index
    metric = euclidean(inverse_mass_matrix)
    heavy = state._replace(momentum=metric.scale(state.position, state.momentum, inv=False, trans=False))
    heavy, info = _GHMC(key, heavy, log_density, step_size, metric, alpha, delta)
    state = heavy._replace(momentum=metric.scale(heavy.position, heavy.momentum, inv=True, trans=True))
    return strong(state), Info.of(gradients=1, acceptance=info.acceptance_rate, diverged=info.is_divergent)


def _position(state):
    return state.position


def _read_share(value, template, name, most):
    value = read_positive(value, template, "ghmc", name)
    if not isinstance(value, jax.core.Tracer) and float(value) > most:
        raise ValueError(f"ghmc got {name} {float(value)}; expected a number of at most {most}")
    return scalar(value, template)
