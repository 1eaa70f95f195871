"""UniPC: a multistep predictor whose next evaluation also corrects the step it came from (Zhao et al. 2023).

On the guess of x_0 and with lam = log(alpha / sigma), as DPM-Solver++. A step of order p

    predicts   x'_s  from the guesses at t and at the p - 1 times before,
    corrects   x_s   once the guess at (s, x'_s) is known, which joins the polynomial: one order more

(their algorithms 6 and 7, B_2(h) = e^h - 1). The guess at x'_s is not asked for again at x_s, so a step costs one forward. The
last step is not corrected, for that would cost a forward of its own. Order p + 1 overall. With two nodes the method takes
integral v dmu as h / 2 of integral dmu (B_2); with more it integrates the polynomial exactly. To start with signal at order 3,
divide the first step of the grid (`grids.graded`). Row "diffusion" of the table.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gensamp.core import Info, Sampler, Static
from gensamp.noise import FLOOR, Noise
from gensamp.predictions import Prediction, combine
from gensamp.pushforward.diffusion.multistep import (
    exponential_moments,
    half_log_snr,
    landed,
    node_weights,
    pairs,
    past_times,
    usable_nodes,
)
from gensamp.pushforward.diffusion.solver import guess, level, looked_up, pose, reverse

__all__ = ["unipc"]


def unipc(
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
    """UniPC for any denoiser.

    Args:
        order: of the predictor, 1 to 3.
        denoise, noise, grid, template, prediction, clip, data_variance, frame: as for `ancestral`.

    Returns:
        A finite Sampler of as many steps as the grid has, one forward each, deterministic given its start.

    Raises:
        ValueError: the order is not from 1 to 3, or as for `ancestral`.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"unipc got order={order}; expected 1, 2 or 3")
    problem = pose("unipc", denoise, noise, grid, template, prediction, clip, data_variance, frame)
    # Remembered besides the guesses: the corrected event, as far as it is known before the guess that it waits for. The event
    # that the step started from would do as well, and every event that is remembered is copied in every step.
    return reverse(problem, _step, Static(order), memory=order)


def _step(problem, order, key, state, index):
    del key
    x, (begun, *guesses) = state
    t, idle, newest, prediction, correction = looked_up(index, _coefficients, problem, order)
    x0, _ = guess(problem, t, x)

    # The correction of the step that led here: what was known of it before, and the new guess.
    corrected = combine(jnp.ones_like(newest), begun, newest, x0)
    x = jax.tree.map(lambda a, b: jnp.where(idle, a, b), x, corrected)

    guesses = (x0, *guesses)
    ahead, begun = (combine(kept, x, *pairs(weights, guesses)) for kept, weights in (prediction, correction))
    return (ahead, (begun, *guesses[:-1])), Info.of(forwards=1)


def _coefficients(problem, order, index):
    """This time; whether there is nothing to correct, and the weight of the newest guess where there is; what predicts the
    next event; what corrects it, but for the guess that is yet to be made there."""
    last, now, then = (level(problem, index + k) for k in (-1, 0, 1))
    times, ahead = (past_times(problem, index + k, order.value + 1) for k in (0, 1))
    newest = _integral(problem, last, now, times)[1][0]
    kept, weights = _integral(problem, now, then, ahead)
    prediction = landed(now, then, *_integral(problem, now, then, times[:-1]))
    return now.t, now.clean | (now.t == last.t), newest, prediction, (kept, weights[1:])


def _integral(problem, start, end, times):
    """Coefficients of the event at `start`, and of the guesses at the times [p], for the event at `end`."""
    h = end.lam - start.lam
    moments = exponential_moments(times.size, h, 1)
    nodes = half_log_snr(problem, times) - start.lam
    weights = node_weights(nodes, moments, usable_nodes(times), pair=h / 2 * moments[0])
    return end.sigma / jnp.maximum(start.sigma, FLOOR), end.alpha * weights
