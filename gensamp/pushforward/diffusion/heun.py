"""Heun's method on the probability-flow ODE, with noise churned in if one likes (Karras et al. 2022, algorithms 1 and 2).

    x' = x_t + (s - t) u(t, x_t),    x_s = x_t + (s - t) (u(t, x_t) + u(s, x')) / 2,    u = alpha' x_0 + sigma' eps

Second order, two forwards a step. A step to a time without noise has no correction, as in the paper: 2 N - 1 forwards for N
steps.

Churn first raises the ratio sigma / alpha of the event by a factor 1 + gamma, gamma = min(S_churn / N, sqrt(2) - 1) where the
ratio lies between S_tmin and S_tmax, with fresh noise of S_noise times the size that takes, and steps down from there. Karras
et al. state it for alpha = 1, where the ratio is sigma; for other processes it is the same in x / alpha. A ratio above that of
time 1 has no time, so churn stops there. Row "diffusion" of the table.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gensamp.core import Info, Sampler, scalar
from gensamp.noise import FLOOR, Noise, root
from gensamp.predictions import Prediction, combine
from gensamp.pushforward.diffusion.grids import times_of_log_snr
from gensamp.pushforward.diffusion.solver import (
    Problem,
    field,
    first_order,
    guess,
    known,
    level,
    level_at,
    pose,
    reverse,
    stirred,
)

__all__ = ["heun"]


def heun(
    denoise: Any,
    noise: Noise,
    grid: Any,
    template: Any,
    *,
    churn: Any = 0.0,
    churn_range: tuple[Any, Any] = (0.05, 50.0),
    churn_noise: Any = 1.003,
    prediction: Prediction = "eps",
    clip: Any = None,
    data_variance: Any = 0.0,
    frame: Any = None,
) -> Sampler:
    """Heun's method for any denoiser.

    Args:
        churn: S_churn, 0 (deterministic) up to about 0.4 N; a leaf, as the next two are.
        churn_range: (S_tmin, S_tmax), the ratios sigma / alpha between which noise is churned in.
        churn_noise: S_noise, the size of that noise, slightly above one against denoisers that remove too much.
        denoise, noise, grid, template, prediction, clip, data_variance, frame: as for `ancestral`.

    Returns:
        A finite Sampler of as many steps as the grid has, two forwards each, one in a step to a time without noise.

    Raises:
        ValueError: churn or churn_noise is negative, the range is not two rising numbers, or as for `ancestral`.
    """
    for label, value in (("churn", churn), ("churn_noise", churn_noise)):
        if not isinstance(value, jax.core.Tracer) and not float(value) >= 0:
            raise ValueError(f"heun got {label}={value}; expected a number that is not negative")
    bounds = [known(bound) for bound in churn_range]
    if len(bounds) != 2 or (bounds[0] is not None and bounds[1] is not None and not bounds[0] <= bounds[1]):
        raise ValueError(f"heun got churn_range={churn_range}; expected (lowest, highest) ratio of sigma to alpha")
    problem = pose("heun", denoise, noise, grid, template, prediction, clip, data_variance, frame)
    churn, low, high, size = (scalar(value, problem.event.template) for value in (churn, *churn_range, churn_noise))
    return reverse(problem, _step, _churned_times(problem, churn, low, high), size)


def _churned_times(problem: Problem, churn: Any, low: Any, high: Any) -> jax.Array:
    """The time to which each step's event is raised before it steps down, [num_steps]."""
    times, noise = problem.times[:-1], problem.noise
    log_snr = jax.vmap(noise.log_snr)(times)
    ratio = jnp.exp(-log_snr / 2)
    gamma = jnp.where((ratio >= low) & (ratio <= high), jnp.minimum(churn / times.size, 2**0.5 - 1), 0)
    wanted = jnp.maximum(log_snr - 2 * jnp.log1p(gamma), noise.log_snr(jnp.ones((), times.dtype)))
    raised = times_of_log_snr(noise, wanted, 1.0, noise.t_min)
    return jax.lax.stop_gradient(jnp.where(gamma > 0, jnp.maximum(raised, times), times))


def _step(problem, raised, size, key, x, index):
    now, then = level(problem, index), level(problem, index + 1)
    high = level_at(problem.noise, raised[index])
    grown = high.alpha / jnp.maximum(now.alpha, FLOOR)
    fresh = size * root(jnp.maximum(high.sigma**2 - (grown * now.sigma) ** 2, 0))
    # Where nothing is churned in, the event stays as it is, to the bit.
    grown, fresh = (jnp.where(high.t > now.t, a, b) for a, b in ((grown, 1.0), (fresh, 0.0)))
    x = stirred(problem, fresh, key, grown, x)

    x0, eps = guess(problem, high.t, x)
    velocity = field(problem, high.t, x0, eps)
    length = then.t - high.t

    def corrected(_):
        ahead = guess(problem, then.t, combine(jnp.ones_like(length), x, length, velocity))
        return combine(jnp.ones_like(length), x, length / 2, velocity, length / 2, field(problem, then.t, *ahead))

    x = jax.lax.cond(then.clean, lambda _: first_order(then, x0, eps), corrected, None)
    return x, Info.of(forwards=jnp.where(then.clean, 1, 2))
