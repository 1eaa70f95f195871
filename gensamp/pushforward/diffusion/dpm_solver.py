"""DPM-Solver, singlestep: a Runge-Kutta step within each step of the grid (Lu et al. 2022a, and DPM-Solver++ 2S, 3S, 2022b).

With lam = log(alpha / sigma) and h = lam_s - lam_t, the ODE's solution is an integral of eps or, just as well, of x_0:

    x_s = (alpha_s / alpha_t) x_t - alpha_s integral e^{-lam} eps dlam,    g = h         (DPM-Solver)
    x_s = (sigma_s / sigma_t) x_t + sigma_s integral e^{lam} x_0 dlam,     g = -h        (DPM-Solver++)

With (a, b, m) = (alpha, sigma, eps) or (sigma, alpha, x_0) the two are one. Order 2 looks once at the middle of the step in
lam, order 3 at its thirds:

    2: x_s = (a_s / a_t) x_t - b_s (e^g - 1) (m_t + (m_1 - m_t) / (2 r_1)),                         r_1 = 1/2
    3: x_s = (a_s / a_t) x_t - b_s (e^g - 1) m_t - b_s ((e^g - 1) / g - 1) (m_2 - m_t) / r_2,       r = 1/3, 2/3

(2022a, algorithms 1 and 2). Row "diffusion" of the table.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from gensamp.core import Info, Sampler, Static
from gensamp.noise import FLOOR, Noise
from gensamp.predictions import Prediction, combine
from gensamp.pushforward.diffusion.grids import times_of_log_snr
from gensamp.pushforward.diffusion.multistep import phi
from gensamp.pushforward.diffusion.solver import Level, Problem, first_order, guess, level, level_at, pose, reverse

__all__ = ["dpm_solver"]


def dpm_solver(
    denoise: Any,
    noise: Noise,
    grid: Any,
    template: Any,
    *,
    order: int = 3,
    integrates: Literal["eps", "x0"] = "eps",
    prediction: Prediction = "eps",
    clip: Any = None,
    data_variance: Any = 0.0,
    frame: Any = None,
) -> Sampler:
    """Singlestep DPM-Solver for any denoiser.

    Args:
        order: 2 or 3, which is also the forwards of a step.
        integrates: "eps" for DPM-Solver-2 and -3, "x0" for DPM-Solver++ 2S and 3S; whatever the denoiser predicts.
        denoise, noise, grid, template, prediction, clip, data_variance, frame: as for `ancestral`.

    Returns:
        A finite Sampler of as many steps as the grid has, `order` forwards each, one in a step to a time without noise.

    Raises:
        ValueError: the order is neither, `integrates` is neither, the grid starts without any signal while eps is integrated,
            or as for `ancestral`.
    """
    if order not in (2, 3) or integrates not in ("eps", "x0"):
        raise ValueError(f"dpm_solver got order={order}, integrates={integrates!r}; expected 2 or 3, and 'eps' or 'x0'")
    problem = pose(
        "dpm_solver", denoise, noise, grid, template, prediction, clip, data_variance, frame, needs_signal=integrates == "eps"
    )
    return reverse(problem, _step, _inner_times(problem, order), Static((order, integrates)))


def _inner_times(problem: Problem, order: int) -> jax.Array:
    """The times inside each step, [num_steps, order - 1], at equal parts of log-SNR."""
    noise, times = problem.noise, problem.times
    log_snr = jax.vmap(noise.log_snr)(times)
    share = jnp.arange(1, order, dtype=times.dtype)[None, :] / order
    wanted = log_snr[:-1, None] + share * jnp.diff(log_snr)[:, None]
    found = times_of_log_snr(noise, wanted.ravel(), 1.0, 0.0).reshape(wanted.shape)
    return jax.lax.stop_gradient(jnp.clip(found, times[1:, None], times[:-1, None]))


def _singlestep(problem: Problem, integrates: str, now: Level, then: Level, inner: jax.Array, x: Any, found: Any) -> Any:
    """The event at the level `then`, of one order more than there are inner times; one forward at each of these.

    x is the event at `now`, found the (x_0, eps) guessed from it; `then` must have noise.
    """
    first = _integrand(integrates, found)
    one = jnp.ones_like(now.t)

    def change(inside, at):
        """What the integrand at an inner level adds to that at the first."""
        return combine(one, _integrand(integrates, guess(problem, inside.t, at)), -one, first)

    near = level_at(problem.noise, inner[0])
    reach = _share(now, near, then)
    kept, weight, _ = _weights(integrates, now, near)
    slope = change(near, combine(kept, x, weight, first))
    kept, weight, curved = _weights(integrates, now, then)
    if len(inner) == 1:
        return combine(kept, x, weight, first, weight / (2 * reach), slope)

    far = level_at(problem.noise, inner[1])
    further = _share(now, far, then)
    part, size, bent = _weights(integrates, now, far)
    slope = change(far, combine(part, x, size, first, bent * further / reach, slope))
    return combine(kept, x, weight, first, curved / further, slope)


def _step(problem, inner, options, key, x, index):
    del key
    order, integrates = options.value
    now, then = level(problem, index), level(problem, index + 1)
    found = guess(problem, now.t, x)
    x = jax.lax.cond(
        then.clean,
        lambda: first_order(then, *found),
        lambda: _singlestep(problem, integrates, now, then, inner[index], x, found),
    )
    return x, Info.of(forwards=jnp.where(then.clean, 1, order))


def _weights(integrates, start, end):
    """a_s / a_t, -b_s (e^g - 1) and -b_s ((e^g - 1) / g - 1)."""
    if integrates == "eps":
        kept, scale, g = end.alpha / jnp.maximum(start.alpha, FLOOR), end.sigma, end.lam - start.lam
    else:
        kept, scale, g = end.sigma / jnp.maximum(start.sigma, FLOOR), end.alpha, start.lam - end.lam
    functions = phi(2, g)
    return kept, -scale * g * functions[1], -scale * g * functions[2]


def _integrand(integrates, found):
    x0, eps = found
    return eps if integrates == "eps" else x0


def _share(start, inner, end):
    """How far into the step an inner time lies in log-SNR; one half in a step of no length."""
    length = end.lam - start.lam
    inside = (inner.lam > start.lam) & (length > 0)
    return jnp.where(inside, (inner.lam - start.lam) / jnp.where(length > 0, length, 1), 0.5)
