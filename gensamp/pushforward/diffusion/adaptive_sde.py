"""The reversed SDE solved to a tolerance: ShARK of strong order 1.5, its steps and its Brownian path by diffrax (Kidger 2021).

    dx = [u + eta k eps] dt + sqrt(2 eta sigma k) dw,    k = sigma' - (alpha' / alpha) sigma,    t falling

with u the velocity of the probability-flow ODE: eta = 0 is that ODE, eta = 1 the reversed SDE (Song et al. 2021, equation 6),
and every eta has the diffusion's marginals (Karras et al. 2022, equation 6). The noise does not depend on x, so ShARK (Foster,
dos Reis and Strange 2023, equation 6.1) makes two forwards a tried step, with an error estimate between them.

A rejected step must not draw its noise anew: that would favour noise that gives small errors. Here each draw's key fixes one
Brownian path, a virtual tree that is read at whatever times the steps end at (Li et al. 2020; Jelincic et al. 2024), so
rejections do not bias the law. Such a path is rough: between times a rounding error apart it moves by the root of that error.
So steps are whole multiples of the shortest one, and end at times that are exact: draws are then the same to rounding in
whatever program they are made. Row "diffusion" of the table, in one step.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gensamp.core import Info, Sampler, Static, bind, scalar
from gensamp.noise import FLOOR, Noise, root
from gensamp.predictions import Prediction, rates
from gensamp.pushforward.diffusion.solver import field, first_order, guess, level, reverse
from gensamp.pushforward.diffusion.tolerance import check_tolerances, need_diffrax, pose_ends

__all__ = ["adaptive_sde"]

SHORTEST = 2.0**-16
"""Shortest step, as a share of the way; all are multiples of it, and the Brownian tree is finer."""


def adaptive_sde(
    denoise: Any,
    noise: Noise,
    grid: Any,
    template: Any,
    *,
    eta: Any = 1.0,
    rtol: Any = 1e-2,
    atol: Any = 1e-2,
    max_steps: int = 4000,
    prediction: Prediction = "eps",
    clip: Any = None,
    data_variance: Any = 0.0,
    frame: Any = None,
) -> Sampler:
    """Any denoiser, by the reversed SDE, to a tolerance.

    Args:
        grid: only its first and last times are used.
        eta: 1 for the reversed SDE, less for less noise; a leaf.
        rtol, atol: error allowed in a step, relative to the event and absolute; leaves.
        max_steps: tried steps after which a draw is given up, and reported as diverged.
        denoise, noise, template, prediction, clip, data_variance, frame: as for `ancestral`.

    Returns:
        A finite Sampler of one step, two forwards for each step tried inside, and one for the guess at the end of a grid that
        ends without noise.

    Raises:
        ImportError: diffrax is not installed.
        ValueError: eta is negative, a tolerance or max_steps is not positive, the grid has no length or starts where no signal
            is left, or as for `ancestral`.
    """
    need_diffrax("adaptive_sde")
    check_tolerances("adaptive_sde", rtol, atol, max_steps)
    if not isinstance(eta, jax.core.Tracer) and not float(eta) >= 0:
        raise ValueError(f"adaptive_sde got eta={eta}; expected 1 (the SDE), 0 (the ODE) or another positive number")
    problem = pose_ends(
        "adaptive_sde", denoise, noise, grid, template, prediction, clip, data_variance, frame, needs_signal=True
    )
    return reverse(problem, _step, *(scalar(value, problem.event.template) for value in (eta, rtol, atol)), Static(max_steps))


def _step(problem, eta, rtol, atol, max_steps, key, x, index):
    del index
    diffrax, (tree, control) = need_diffrax("adaptive_sde"), _parts()
    event = problem.event
    start, last = level(problem, 0), level(problem, 1)
    end = jnp.where(last.clean, jnp.asarray(problem.noise.t_min, last.t.dtype), last.t)
    zero, one = (np.asarray(value, event.dtype) for value in (0.0, 1.0))
    # Its ends are Python's own numbers, or diffrax would compare them by calling the host.
    shape = jax.ShapeDtypeStruct((event.size,), event.dtype)
    path = tree(0.0, 1.0, SHORTEST / 2, shape, key, levy_area=diffrax.SpaceTimeLevyArea)
    way = problem, eta, start.t, end - start.t
    solution = diffrax.diffeqsolve(
        diffrax.MultiTerm(diffrax.ODETerm(bind(_drift, *way)), diffrax.ControlTerm(bind(_diffusion, *way), path)),
        diffrax.ShARK(),
        zero,
        one,
        # As in `adaptive`: a first step given here would be checked by calling the host.
        None,
        event.flatten(x),
        stepsize_controller=control(rtol=rtol, atol=atol, pcoeff=0.1, icoeff=0.3, dtmin=SHORTEST),
        max_steps=max_steps.value,
        throw=False,
    )
    assert solution.ys is not None
    x = event.unflatten(solution.ys[0])
    x = jax.lax.cond(last.clean, lambda: first_order(last, *guess(problem, end, x)), lambda: x)
    forwards = 2 * solution.stats["num_steps"] + last.clean
    return x, Info.of(forwards=forwards, diverged=solution.result != diffrax.RESULTS.successful)


def _rate(noise, t):
    """k, never negative since the log-SNR falls."""
    alpha_rate, sigma_rate = rates(noise, t)
    return jnp.maximum(sigma_rate - alpha_rate / jnp.maximum(noise.alpha(t), FLOOR) * noise.sigma(t), 0)


def _drift(problem, eta, start, length, share, vector, _):
    """The drift along a share of the way, from 0 to 1."""
    t, event = start + share * length, problem.event
    x0, eps = guess(problem, t, event.unflatten(vector))
    velocity = event.flatten(field(problem, t, x0, eps))
    return length * (velocity + (eta * _rate(problem.noise, t)).astype(event.dtype) * event.flatten(eps))


def _diffusion(problem, eta, start, length, share, vector, _):
    import lineax

    t = start + share * length
    size = root(2 * eta * problem.noise.sigma(t) * _rate(problem.noise, t) * -length)
    return lineax.DiagonalLinearOperator(jnp.full(vector.shape, size, vector.dtype))


# The same classes for all calls: others would be another program.
@functools.cache
def _parts() -> Any:
    """diffrax's Brownian tree without its check of each time by a call to the host; its control, with steps that are exact."""
    diffrax = need_diffrax("adaptive_sde")

    class Tree(diffrax.VirtualBrownianTree):
        def _evaluate(self, r):
            r = jnp.clip(r, 0, 1)
            return jax.tree.map(lambda key, shape: self._evaluate_leaf(key, r, shape), self.key, self.shape)

    class Control(diffrax.PIDController):
        def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
            return super().init(terms, t0, t1, y0, jnp.full_like(t0, 2.0**-7), args, func, error_order)

        def adapt_step_size(self, *arguments):
            keep, t0, t1, *rest = super().adapt_step_size(*arguments)
            return keep, t0, t0 + SHORTEST * jnp.maximum(jnp.floor((t1 - t0) / SHORTEST), 1), *rest

    return Tree, Control
