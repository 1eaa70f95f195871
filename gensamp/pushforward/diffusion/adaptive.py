"""The probability-flow ODE solved to a tolerance: Fehlberg's pair of orders 4 and 5, its steps chosen by diffrax (Kidger 2021).

    dx/dt = alpha' x_0 + sigma' eps                                              (Song et al. 2021, equation 13)

The solver chooses its own times between the ends of the grid, draw by draw, so the forwards of a draw depend on the draw. Of
the pairs at hand this one never reuses an evaluation from the step before, so six forwards a tried step is an exact count. To a
time without noise it solves as far as `noise.t_min` and returns the guess there. Row "diffusion" of the table, in one step.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gensamp.core import Info, Sampler, Static, bind, scalar
from gensamp.noise import Noise
from gensamp.predictions import Prediction
from gensamp.pushforward.diffusion.solver import field, first_order, guess, level, reverse
from gensamp.pushforward.diffusion.tolerance import check_tolerances, need_diffrax, pose_ends

__all__ = ["adaptive"]


def adaptive(
    denoise: Any,
    noise: Noise,
    grid: Any,
    template: Any,
    *,
    rtol: Any = 1e-4,
    atol: Any = 1e-4,
    max_steps: int = 1000,
    prediction: Prediction = "eps",
    clip: Any = None,
    data_variance: Any = 0.0,
    frame: Any = None,
) -> Sampler:
    """Any denoiser, to a tolerance.

    Args:
        grid: only its first and last times are used.
        rtol, atol: error allowed in a step, relative to the event and absolute; leaves.
        max_steps: tried steps after which a draw is given up, and reported as diverged.
        denoise, noise, template, prediction, clip, data_variance, frame: as for `ancestral`.

    Returns:
        A finite Sampler of one step, six forwards for each step tried inside, and one for the guess at the end.

    Raises:
        ImportError: diffrax is not installed.
        ValueError: a tolerance or max_steps is not positive, the grid has no length, or as for `ancestral`.
    """
    need_diffrax("adaptive")
    check_tolerances("adaptive", rtol, atol, max_steps)
    problem = pose_ends("adaptive", denoise, noise, grid, template, prediction, clip, data_variance, frame)
    tolerances = [scalar(value, problem.event.template) for value in (rtol, atol)]
    return reverse(problem, _step, *tolerances, Static(max_steps))


def _step(problem, rtol, atol, max_steps, key, x, index):
    del key, index
    diffrax = need_diffrax("adaptive")
    event = problem.event
    start, last = level(problem, 0), level(problem, 1)
    end = jnp.where(last.clean, jnp.asarray(problem.noise.t_min, last.t.dtype), last.t)
    # No first step is given here: diffrax would check it by calling the host from compiled code. The controller has it.
    zero, one = (np.asarray(value, event.dtype) for value in (0.0, 1.0))
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(bind(_velocity, problem, start.t, end - start.t)),
        _fehlberg()[0](),
        zero,
        one,
        None,
        event.flatten(x),
        stepsize_controller=_fehlberg()[1](rtol=rtol, atol=atol),
        max_steps=max_steps.value,
        throw=False,
    )
    assert solution.ys is not None
    x = event.unflatten(solution.ys[0])
    x = jax.lax.cond(last.clean, lambda: first_order(last, *guess(problem, end, x)), lambda: x)
    forwards = 6 * solution.stats["num_steps"] + last.clean
    return x, Info.of(forwards=forwards, diverged=solution.result != diffrax.RESULTS.successful)


def _velocity(problem, start, length, share, vector, _):
    """The field along a share of the way, from 0 to 1."""
    t, x = start + share * length, problem.event.unflatten(vector)
    return length * problem.event.flatten(field(problem, t, *guess(problem, t, x)))


# The same classes for all calls: others would be another program.
@functools.cache
def _fehlberg() -> Any:
    """The pair as a diffrax solver, and its step size control, which first tries a hundredth of the way.

    Source: Hairer, Norsett and Wanner, "Solving Ordinary Differential Equations I", table II.5.1.
    """
    diffrax = need_diffrax("adaptive")
    fifth = np.array([16 / 135, 0, 6656 / 12825, 28561 / 56430, -9 / 50, 2 / 55])
    fourth = np.array([25 / 216, 0, 1408 / 2565, 2197 / 4104, -1 / 5, 0])
    rows = (
        [1 / 4],
        [3 / 32, 9 / 32],
        [1932 / 2197, -7200 / 2197, 7296 / 2197],
        [439 / 216, -8, 3680 / 513, -845 / 4104],
        [-8 / 27, 2, -3544 / 2565, 1859 / 4104, -11 / 40],
    )

    class Fehlberg(diffrax.AbstractERK):
        tableau = diffrax.ButcherTableau(
            c=np.array([1 / 4, 3 / 8, 12 / 13, 1, 1 / 2]),
            b_sol=fifth,
            b_error=fifth - fourth,
            a_lower=tuple(np.array(row) for row in rows),
        )
        interpolation_cls = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

        def order(self, terms):
            del terms
            return 5

    class Control(diffrax.PIDController):
        def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
            return super().init(terms, t0, t1, y0, jnp.full_like(t0, 0.01), args, func, error_order)

    return Fehlberg, Control
