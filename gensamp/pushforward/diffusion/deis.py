"""DEIS: exponential integration of eps by polynomials in time (Zhang and Chen 2023, "tAB-DEIS").

With rho = sigma / alpha the probability-flow ODE is d(x / alpha) / d rho = eps, so

    x_s = (alpha_s / alpha_t) x_t + alpha_s sum_j w_j eps_{t_j},    w_j = integral from t to s of L_j(tau) (d rho / d tau) dtau

(their equations 14-15), L_j being Lagrange's polynomials in time through this step and the ones before. The integral is taken
by Gauss and Legendre's rule, its weights scaled so that a constant eps is integrated exactly: then first order is DDIM.
The first step of the grid is divided (`multistep.graded`). Row "diffusion" of the table.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gensamp.core import Info, Sampler, Static
from gensamp.noise import FLOOR, Noise
from gensamp.predictions import Prediction, combine, rates
from gensamp.pushforward.diffusion.multistep import graded, node_weights, pairs, past_times, usable_nodes
from gensamp.pushforward.diffusion.solver import first_order, guess, level, pose, reverse

__all__ = ["deis"]

# On [0, 1].
_PLACES, _SHARES = (
    tuple((a / 2 + shift).tolist()) for a, shift in zip(np.polynomial.legendre.leggauss(12), (0.5, 0), strict=True)
)


def deis(
    denoise: Any,
    noise: Noise,
    grid: Any,
    template: Any,
    *,
    order: int = 3,
    prediction: Prediction = "eps",
    clip: Any = None,
    data_variance: Any = 0.0,
    frame: Any = None,
) -> Sampler:
    """tAB-DEIS for any denoiser.

    Args:
        order: how many eps the polynomial goes through, 1 to 4; the paper's "tAB1" to "tAB3" are 2 to 4.
        denoise, noise, grid, template, prediction, clip, data_variance, frame: as for `ancestral`.

    Returns:
        A finite Sampler of as many steps as the grid has, and one more for order 3, two more for order 4; one forward each,
        deterministic given its start.

    Raises:
        ValueError: the order is not from 1 to 4, the grid starts where no signal is left, or as for `ancestral`.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"deis got order={order}; expected 1, 2, 3 or 4")
    problem = pose("deis", denoise, noise, grid, template, prediction, clip, data_variance, frame, needs_signal=True)
    return reverse(graded(problem, order), _step, Static(order), memory=max(order - 1, 1))


def _step(problem, order, key, state, index):
    del key
    x, memory = state
    noise = problem.noise
    now, then = level(problem, index), level(problem, index + 1)
    x0, eps = guess(problem, now.t, x)
    length = then.t - now.t
    times = past_times(problem, index, order.value)

    # d rho / dt = rho (sigma' / sigma - alpha' / alpha), at the rule's places between t and s.
    places = jnp.asarray(_PLACES, now.t.dtype)
    at = now.t + length * places
    alpha, sigma = jax.vmap(noise.alpha)(at), jax.vmap(noise.sigma)(at)
    alpha_rate, sigma_rate = jax.vmap(lambda t: rates(noise, t))(at)
    density = (sigma_rate * alpha - alpha_rate * sigma) / jnp.maximum(alpha, FLOOR) ** 2
    shares = jnp.asarray(_SHARES, now.t.dtype) * density
    change = then.sigma / jnp.maximum(then.alpha, FLOOR) - now.sigma / jnp.maximum(now.alpha, FLOOR)
    total = jnp.sum(shares)
    shares = shares * change / jnp.where(total == 0, 1, total)
    moments = jnp.stack([jnp.sum(shares * (length * places) ** k) for k in range(order.value)])

    weights = then.alpha * node_weights(times - now.t, moments, usable_nodes(times))
    kept = then.alpha / jnp.maximum(now.alpha, FLOOR)
    moved = combine(kept, x, *pairs(weights, (eps, *memory)[: order.value]))
    x = jax.tree.map(lambda a, b: jnp.where(then.clean, a, b), first_order(then, x0, eps), moved)
    return (x, (eps, *memory)[: len(memory)]), Info.of(forwards=1)
