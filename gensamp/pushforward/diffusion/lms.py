"""LMS: Adams and Bashforth's linear multistep method on the probability-flow ODE in time.

    x_s = x_t + sum_j w_j u_{t_j},    w_j = integral from t to s of Lagrange's polynomial L_j(tau) dtau

with the velocities u = alpha' x_0 + sigma' eps of this step and the ones before, on steps of any length (Hairer, Norsett and
Wanner, "Solving Ordinary Differential Equations I", section III.5). For `noise.edm`, whose time is proportional to sigma, it is
the "LMS" of Crowson's k-diffusion. Of order p with p velocities, at one forward a step. To start with signal at order 3 or 4,
divide the first step of the grid (`grids.graded`). Row "diffusion" of the table.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gensamp.core import Info, Sampler, Static
from gensamp.noise import Noise
from gensamp.predictions import Prediction, combine
from gensamp.pushforward.diffusion.multistep import node_weights, pairs, past_times, usable_nodes
from gensamp.pushforward.diffusion.solver import field, first_order, guess, level, looked_up, pose, reverse

__all__ = ["lms"]


def lms(
    denoise: Any,
    noise: Noise,
    grid: Any,
    template: Any,
    *,
    order: int = 4,
    prediction: Prediction = "eps",
    clip: Any = None,
    data_variance: Any = 0.0,
    frame: Any = None,
) -> Sampler:
    """Adams-Bashforth for any denoiser.

    Args:
        order: 1 (Euler) to 4.
        denoise, noise, grid, template, prediction, clip, data_variance, frame: as for `ancestral`.

    Returns:
        A finite Sampler of as many steps as the grid has, one forward each, deterministic given its start.

    Raises:
        ValueError: the order is not from 1 to 4, or as for `ancestral`.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"lms got order={order}; expected 1, 2, 3 or 4")
    problem = pose("lms", denoise, noise, grid, template, prediction, clip, data_variance, frame)
    return reverse(problem, _step, Static(order), memory=max(order - 1, 1))


def _step(problem, order, key, state, index):
    del key
    x, memory = state
    t, then, weights = looked_up(index, _coefficients, problem, order)
    x0, eps = guess(problem, t, x)
    velocity = field(problem, t, x0, eps)
    moved = combine(jnp.ones_like(t), x, *pairs(weights, (velocity, *memory)[: order.value]))
    x = jax.tree.map(lambda a, b: jnp.where(then.clean, a, b), first_order(then, x0, eps), moved)
    return (x, (velocity, *memory)[: len(memory)]), Info.of(forwards=1)


def _coefficients(problem, order, index):
    """This time, the next one, and the weights of the velocities."""
    now, then = level(problem, index), level(problem, index + 1)
    length = then.t - now.t
    times = past_times(problem, index, order.value)
    moments = jnp.stack([length ** (k + 1) / (k + 1) for k in range(order.value)])
    return now.t, then, node_weights(times - now.t, moments, usable_nodes(times))
