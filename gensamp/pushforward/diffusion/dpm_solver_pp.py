"""DPM-Solver++, multistep: exponential integration of the guess of x_0, deterministic or stochastic (Lu et al. 2022b).

With lam = log(alpha / sigma), h = lam_s - lam_t and noise eta (0: the ODE, 1: the SDE of the same marginals), exactly

    x_s = (sigma_s / sigma_t) e^{-eta h} x_t + alpha_s integral_0^h (1 + eta) e^{-(1 + eta)(h - v)} x_0(lam_t + v) dv
          + sigma_s sqrt(1 - e^{-2 eta h}) z,    z ~ N(0, I)                                (their equations 8 and 17)

and the method of order p replaces x_0 by the polynomial through its last p guesses: "DPM-Solver++(2M)", "(3M)" and their SDE
versions, first order being DDIM (eta = 0) and ancestral sampling (eta = 1). Second order takes integral v dmu as h / 2 of
integral dmu, as in their algorithm 2. Third order integrates the polynomial exactly.

To start with signal at third order, divide the first step of the grid (`grids.graded`).
Row "diffusion" of the table.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gensamp.core import Info, Sampler, Static, scalar
from gensamp.noise import FLOOR, Noise, root
from gensamp.predictions import Prediction
from gensamp.pushforward.diffusion.multistep import (
    exponential_moments,
    half_log_snr,
    landed,
    node_weights,
    pairs,
    past_times,
    usable_nodes,
)
from gensamp.pushforward.diffusion.solver import guess, level, looked_up, pose, reverse, stirred

__all__ = ["dpm_solver_pp"]


def dpm_solver_pp(
    denoise: Any,
    noise: Noise,
    grid: Any,
    template: Any,
    *,
    order: int = 2,
    eta: Any = 0.0,
    prediction: Prediction = "eps",
    clip: Any = None,
    data_variance: Any = 0.0,
    frame: Any = None,
) -> Sampler:
    """Multistep DPM-Solver++ for any denoiser.

    Args:
        order: 1, 2 ("2M") or 3 ("3M").
        eta: 0 for the ODE, 1 for the SDE ("SDE-DPM-Solver++"), and any positive number; a leaf.
        denoise, noise, grid, template, prediction, clip, data_variance, frame: as for `ancestral`.

    Returns:
        A finite Sampler of as many steps as the grid has, one forward each.

    Raises:
        ValueError: the order is not from 1 to 3, eta is negative, or as for `ancestral`.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"dpm_solver_pp got order={order}; expected 1, 2 or 3")
    if not isinstance(eta, jax.core.Tracer) and not float(eta) >= 0:
        raise ValueError(f"dpm_solver_pp got eta={eta}; expected 0 (deterministic), 1 (the SDE) or another positive number")
    problem = pose("dpm_solver_pp", denoise, noise, grid, template, prediction, clip, data_variance, frame)
    eta = scalar(eta, problem.event.template)
    return reverse(problem, _step, eta, Static(order), memory=max(order - 1, 1))


def _step(problem, eta, order, key, state, index):
    x, memory = state
    t, kept, weights, fresh = looked_up(index, _coefficients, problem, eta, order)
    x0, _ = guess(problem, t, x)
    guesses = (x0, *memory)[: order.value]
    x = stirred(problem, fresh, key, kept, x, *pairs(weights, guesses))
    return (x, (x0, *memory)[: len(memory)]), Info.of(forwards=1)


def _coefficients(problem, eta, order, index):
    """This time, and the coefficients of x, of the guesses and of z."""
    now, then = level(problem, index), level(problem, index + 1)
    h = then.lam - now.lam
    times = past_times(problem, index, order.value)
    moments = exponential_moments(order.value, h, 1 + eta)
    nodes = half_log_snr(problem, times) - now.lam
    weights = then.alpha * node_weights(nodes, moments, usable_nodes(times), pair=h / 2 * moments[0])
    kept = then.sigma / jnp.maximum(now.sigma, FLOOR) * jnp.exp(-eta * h)
    fresh = jnp.where(then.clean, 0, then.sigma * root(-jnp.expm1(-2 * eta * h)))
    return now.t, *landed(now, then, kept, weights), fresh
