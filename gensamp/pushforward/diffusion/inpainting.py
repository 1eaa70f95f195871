"""Inpainting by replacement: known coordinates are overwritten, at every noise level, by their own noised values.

    x_t <- mask (alpha_t x_known + sigma_t z) + (1 - mask) x_t,    z ~ N(0, I) afresh,   then an ancestral step

(Song et al. 2021, appendix I.2; for a Gaussian prior a step of it draws the rest given the *noised* known part, not the known
part itself.) **It is not the conditional law**: the unknown coordinates see the known ones only through their noise, and are
settled at high noise, where they saw little. With one pass per step, correlations between the two parts come out too weak.

Resampling (RePaint: Lugmayr et al. 2022, algorithm 1) repeats each step `repeats` times, going back up from s to t by the
process itself in between, x_t = (alpha_t / alpha_s) x_s + noise. The bias shrinks as repeats grow, slowly. Measured on a
mixture of three Gaussians in the plane with x_1 = 0.2 known, 100 steps, 2,000 draws: the mean of x_2 is -0.27, drawn as 0.07,
-0.04, -0.13 and -0.17 with 1, 5, 10 and 20 passes.

`inverse.measured` knows the covariance of x_0 given x_t and is exact for Gaussian priors; for others it has a bias of its own
(on the same mixture it draws -0.01, for a scale of 0.05). Row "diffusion" of the table.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gensamp.core import Info, PyTree, Sampler, Static, bind
from gensamp.noise import FLOOR, Noise, diffuse, root
from gensamp.predictions import Prediction, combine
from gensamp.pushforward.diffusion.ancestral import posterior_variance
from gensamp.pushforward.diffusion.solver import guess, pose, reverse
from gensamp.pushforward.frame import enter

__all__ = ["ancestral_move", "replacement"]


def replacement(
    denoise: Any,
    noise: Noise,
    grid: Any,
    template: Any,
    known: PyTree,
    mask: PyTree,
    *,
    repeats: int = 1,
    prediction: Prediction = "eps",
    clip: Any = None,
    data_variance: Any = 0.0,
    frame: Any = None,
) -> Sampler:
    """Inpainting with any denoiser.

    Args:
        known: one event in the data's units; what it holds where the mask is 0 does not matter, be it NaN.
        mask: like an event, or broadcast to one: 1 where a coordinate is known, 0 where it is to be drawn. Leaves, both, so
            `sample(each=)` gives each draw its own.
        repeats: passes over each step, 1 for plain replacement, 10 in RePaint.
        denoise, noise, grid, template, prediction, clip, data_variance, frame: as for `ancestral`.

    Returns:
        A finite Sampler of as many steps as the grid has, `repeats` forwards each. Known coordinates of a draw are as given.

    Raises:
        ValueError: repeats is not positive, known or mask does not fit the template, the mask holds other numbers than 0 and
            1, or as for `ancestral`.

    Example:
        denoise = denoiser(network, process, params)
        frame = {"shift": params["shift"], "scale": params["scale"]}
        replacement(denoise, process, grid, template, half_a_digit, mask, frame=frame, data_variance=1.0)
    """
    if repeats < 1:
        raise ValueError(f"replacement got repeats={repeats}; expected at least 1")
    problem = pose("replacement", denoise, noise, grid, template, prediction, clip, data_variance, frame)
    shapes = jax.tree.map(lambda a: tuple(a.shape), problem.event.template)
    try:
        known, mask = (
            jax.tree.map(lambda a, b: jnp.broadcast_to(jnp.asarray(b, a.dtype), a.shape), problem.event.template, part)
            for part in (known, mask)
        )
    except ValueError as error:
        raise ValueError(f"replacement got known or mask unlike an event; expected shapes {shapes}") from error
    if not all(isinstance(m, jax.core.Tracer) or np.isin(np.asarray(m), (0, 1)).all() for m in jax.tree.leaves(mask)):
        raise ValueError("replacement got a mask of other numbers; expected 1 where a coordinate is known, and 0 elsewhere")
    # Zero times NaN is NaN.
    known = jax.tree.map(lambda m, a: jnp.where(m > 0, a, 0), mask, known)
    sampler = reverse(problem, _step, enter(problem.frame, known), mask, Static(repeats))
    return dataclasses.replace(sampler, position=bind(_position, sampler.position, known, mask))


def ancestral_move(problem: Any, t: Any, s: Any, x0: PyTree, eps: PyTree, key: jax.Array) -> PyTree:
    """x_s drawn from its law given x_t and the guess (x_0, eps) at t: the ancestral step; consumes `key`."""
    variance = posterior_variance(problem.noise, t, s)
    kept = root(jnp.maximum(problem.noise.sigma(s) ** 2 - variance, 0))
    return combine(problem.noise.alpha(s), x0, kept, eps, root(variance), problem.event.normal(key))


def _blend(mask, one, other):
    return jax.tree.map(lambda m, a, b: m * a + (1 - m) * b, mask, one, other)


def _position(position, known, mask, state):
    return _blend(mask, known, position(state))


def _step(problem, known, mask, repeats, key, x, index):
    noise, event = problem.noise, problem.event
    t, s = problem.times[index], problem.times[index + 1]
    ratio = noise.alpha(t) / jnp.maximum(noise.alpha(s), FLOOR)
    added = root(jnp.maximum(noise.sigma(t) ** 2 - (ratio * noise.sigma(s)) ** 2, 0))

    def one_pass(x, key):
        key_known, key_move, key_back = jax.random.split(key, 3)
        x = _blend(mask, diffuse(noise, t, known, event.normal(key_known)), x)
        moved = ancestral_move(problem, t, s, *guess(problem, t, x), key_move)
        return combine(ratio, moved, added, event.normal(key_back)), moved

    # What a pass leaves behind is its event at s; what it hands to the next one, the same taken back up to t.
    _, moved = jax.lax.scan(one_pass, x, jax.random.split(key, repeats.value))
    return jax.tree.map(lambda a: a[-1], moved), Info.of(forwards=repeats.value)
