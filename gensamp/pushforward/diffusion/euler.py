"""Euler's method on the probability-flow ODE in time: the plainest solver, and flow matching's usual one.

    x_s = x_t + (s - t) u(t, x_t),    u = alpha' x_0 + sigma' eps

(Song et al. 2021, equation 13; Karras et al. 2022, algorithm 1 without its correction). First order: halving the step halves
the error. For a straight process (`noise.rectified_flow`, and `noise.edm` in time proportional to sigma) it is DDIM; for others
it sees the curvature of alpha and sigma that DDIM integrates exactly. Row "diffusion" of the table.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gensamp.core import Info, Sampler
from gensamp.noise import Noise
from gensamp.predictions import Prediction
from gensamp.pushforward.diffusion.solver import field, first_order, guess, level, pose, reverse

__all__ = ["euler"]


def euler(
    denoise: Any,
    noise: Noise,
    grid: Any,
    template: Any,
    *,
    prediction: Prediction = "eps",
    clip: Any = None,
    data_variance: Any = 0.0,
    frame: Any = None,
) -> Sampler:
    """Euler's method for any denoiser.

    Args:
        denoise, noise, grid, template, prediction, clip, data_variance, frame: as for `ancestral`.

    Returns:
        A finite Sampler of as many steps as the grid has, one forward each, deterministic given its start.

    Raises:
        ValueError: as for `ancestral`.
    """
    return reverse(pose("euler", denoise, noise, grid, template, prediction, clip, data_variance, frame), _step)


def _step(problem, key, x, index):
    del key
    now, then = level(problem, index), level(problem, index + 1)
    x0, eps = guess(problem, now.t, x)
    length = then.t - now.t

    def update(x, velocity, last):
        return jnp.where(then.clean, last, x + length.astype(x.dtype) * velocity)

    return jax.tree.map(update, x, field(problem, now.t, x0, eps), first_order(then, x0, eps)), Info.of(forwards=1)
