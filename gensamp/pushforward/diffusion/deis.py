"""DEIS: exponential integration of eps by polynomials through its last values (Zhang and Chen 2023).

With rho = sigma / alpha the probability-flow ODE is d(x / alpha) / d rho = eps, so

    x_s = (alpha_s / alpha_t) x_t + alpha_s sum_j w_j eps_{t_j},    w_j = integral from t to s of L_j d rho

(their equations 14-15), L_j being Lagrange's polynomials through this step and the ones before, in a variable of one's choice:

    lam = -log rho   alpha_s w_j = -sigma_s integral_0^h e^{h - v} L_j(lam_t + v) dv with h = lam_s - lam_t, in closed form. It
                     depends on noise levels alone, not on the clock that a process happens to have; what is most used.
    time             the paper's "tAB". The integral is taken by Gauss and Legendre's rule, its weights scaled so that a
                     constant eps is integrated exactly.

The better one is that in which the steps of the grid are nearly equal. On exact scores, over several processes: on grids of
log-SNR and Karras's lam has mostly a tenth to four fifths of the error of time, on grids of equal times one to ten times as
much. First order is DDIM. To start with signal at order 3 or 4, divide the first step of the grid (`grids.graded`).
Row "diffusion" of the table.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from gensamp.core import Info, Sampler, Static
from gensamp.noise import FLOOR, Noise
from gensamp.predictions import Prediction, combine, rates
from gensamp.pushforward.diffusion.multistep import (
    exponential_moments,
    half_log_snr,
    node_weights,
    pairs,
    past_times,
    usable_nodes,
)
from gensamp.pushforward.diffusion.solver import first_order, guess, level, looked_up, pose, reverse

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
    variable: Literal["log_snr", "time"] = "log_snr",
    prediction: Prediction = "eps",
    clip: Any = None,
    data_variance: Any = 0.0,
    frame: Any = None,
) -> Sampler:
    """DEIS for any denoiser.

    Args:
        order: how many eps the polynomial goes through, 1 to 4; the paper's "AB1" to "AB3" are 2 to 4.
        variable: of the polynomial: "log_snr", for grids of `uniform_log_snr` and `karras`, or "time", for `uniform_time`.
        denoise, noise, grid, template, prediction, clip, data_variance, frame: as for `ancestral`.

    Returns:
        A finite Sampler of as many steps as the grid has, one forward each, deterministic given its start.

    Raises:
        ValueError: the order is not from 1 to 4, the variable is unknown, the grid starts where no signal is left, or as for
            `ancestral`.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"deis got order={order}; expected 1, 2, 3 or 4")
    if variable not in ("log_snr", "time"):
        raise ValueError(f"deis got variable={variable!r}; expected 'log_snr' or 'time'")
    problem = pose("deis", denoise, noise, grid, template, prediction, clip, data_variance, frame, needs_signal=True)
    place = _in_log_snr if variable == "log_snr" else _in_time
    return reverse(problem, _step, Static((order, place)), memory=max(order - 1, 1))


def _step(problem, static, key, state, index):
    del key
    order, _ = static.value
    x, memory = state
    t, then, kept, weights = looked_up(index, _coefficients, problem, static)
    x0, eps = guess(problem, t, x)
    moved = combine(kept, x, *pairs(weights, (eps, *memory)[:order]))
    x = jax.tree.map(lambda a, b: jnp.where(then.clean, a, b), first_order(then, x0, eps), moved)
    return (x, (eps, *memory)[: len(memory)]), Info.of(forwards=1)


def _coefficients(problem, static, index):
    """This time, the next one, and the coefficients of x and of the eps."""
    order, place = static.value
    now, then = level(problem, index), level(problem, index + 1)
    times = past_times(problem, index, order)
    nodes, moments = place(problem, now, then, times)
    return now.t, then, then.alpha / jnp.maximum(now.alpha, FLOOR), node_weights(nodes, moments, usable_nodes(times))


def _in_log_snr(problem, now, then, times):
    """Nodes and moments of alpha_s d rho, [p] each, from the place of this step."""
    # At rate -1 the moments are those of -e^{h - v} dv.
    moments = exponential_moments(times.size, then.lam - now.lam, -1)
    return half_log_snr(problem, times) - now.lam, then.sigma * moments


def _in_time(problem, now, then, times):
    noise, length = problem.noise, then.t - now.t
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
    moments = jnp.stack([jnp.sum(shares * (length * places) ** k) for k in range(times.size)])
    return times - now.t, then.alpha * moments
