"""DDPM: a diffusion run backwards one Gaussian step at a time (Ho, Jain and Abbeel 2020), over any grid of continuous times.

Between times t > s of the process x_t = alpha_t x_0 + sigma_t eps, the law of x_s given x_t and x_0 is Gaussian. With
a = alpha_t / alpha_s and b = sigma_t^2 - a^2 sigma_s^2 (the noise added from s to t),

    mean = (a sigma_s^2 x_t + alpha_s b x_0) / sigma_t^2,    variance = b sigma_s^2 / sigma_t^2        (their equations 6-7)

and a step draws from it with x_0 replaced by the denoiser's guess (x_t - sigma_t eps_hat) / alpha_t (the variance is their
beta tilde). Row "diffusion" of the table: start N(0, sigma_1^2), learned stochastic steps, as many as the grid has.

The start's variance is sigma^2 at the grid's first time, plus alpha^2 times the data's variance: 2500 and not 1 for a
variance-exploding process with sigma_max = 50. In the frame of a fitted model the data's variance is one.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from gensamp.core import Info, Model, Network, Sampler, Static, bind, scalar
from gensamp.nets.event import Event
from gensamp.noise import FLOOR, Noise, root
from gensamp.predictions import Prediction, combine
from gensamp.pushforward.diffusion.grids import uniform_time
from gensamp.pushforward.diffusion.guidance import Guidance, steered, with_dropout
from gensamp.pushforward.diffusion.losses import denoising_init, denoising_loss
from gensamp.pushforward.diffusion.solver import guess, pose, reverse
from gensamp.pushforward.frame import frame_of

__all__ = ["ancestral", "ddpm", "model_clip", "model_grid", "posterior_variance", "unasked"]


def ancestral(
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
    """The ancestral sampler of any denoiser, learned or exact.

    Args:
        denoise: (t, x) -> what is predicted, like x; a Partial with its arrays bound.
        noise: the process the denoiser was made for.
        grid: [num_steps + 1] times from noise to data, as `grids` makes them. Leaves.
        template: one event.
        prediction: what the denoiser returns: "eps", "x0", "v", "score" or "velocity", see `predictions`.
        clip: (lowest, highest) value of an event's coordinates; guesses of x_0 are clipped to it. None: no clipping.
        data_variance: variance of the data in the frame's coordinates, for the scale of the start.
        frame: shift and scale in which the denoiser works (`pushforward.frame`); None: the data's own coordinates.

    Returns:
        A finite Sampler of `num_steps` steps, one forward each.

    Raises:
        ValueError: the grid is not a vector of at least two times in [0, 1] that never rise, or starts without any signal while
            eps or the score is predicted.
    """
    return reverse(pose("ancestral", denoise, noise, grid, template, prediction, clip, data_variance, frame), _step)


def ddpm(
    network: Network,
    noise: Noise,
    *,
    template: Any,
    num_steps: int = 200,
    grid: Any = None,
    clip: Any = None,
    prediction: Literal["eps", "v"] = "v",
    conditional: bool = False,
    guidance: Guidance | None = None,
) -> Model:
    """A denoising diffusion model with ancestral sampling.

    Args:
        network: apply(params, x, t) -> like x (and apply(params, x, t, condition) when conditional), one event each.
        noise: the process, such as `noise.cosine()`.
        template: one event.
        num_steps: steps of a draw, equally spaced in time; ignored when a grid is given.
        grid: [steps + 1] times, instead of equal spacing.
        clip: (lowest, highest) value of the data, (-1, 1) for such images; None: no clipping. It helps a poor network and
            biases a good one.
        prediction: what the network returns, see `losses`: "v", or "eps" as in the paper.
        conditional: batches are pairs (events, conditions), and samplers are made by model.sampler(params, condition).
        guidance: None, or what steers the draws, as for `diffusion_model`.

    Returns:
        Model; one forward per event in a loss, one per step of a draw, or what the guidance makes of it. Its parameters fit
        `ddim` and `score_langevin` of the same network, noise and prediction.

    Raises:
        TypeError, ValueError: the grid is refused as by `ancestral`, the clip is none, or guidance by labels is asked of a
            model that has no conditions.
    """
    event = Event.of(template)
    loss = denoising_loss(network, noise, template, conditional, prediction)
    grid, clip = model_grid(grid, num_steps), model_clip(clip, event.template)
    # What the sampler would refuse is better refused before the model is trained.
    ancestral(unasked(), noise, grid, event.template, clip=clip)
    return Model(
        init=denoising_init(network, conditional),
        loss=with_dropout(guidance, loss, conditional),
        sampler=bind(_model_sampler, network, noise, grid, event, clip, Static(prediction), guidance),
    )


def posterior_variance(noise: Noise, t: Any, s: Any) -> jax.Array:
    """Variance of x_s given x_t and x_0, for s <= t; 0 at s = t and where x_s is clean."""
    ratio = noise.alpha(t) / jnp.maximum(noise.alpha(s), FLOOR)
    added = jnp.maximum(noise.sigma(t) ** 2 - (ratio * noise.sigma(s)) ** 2, 0)
    return added * noise.sigma(s) ** 2 / jnp.maximum(noise.sigma(t) ** 2, FLOOR**2)


def model_grid(grid: Any, num_steps: int) -> jax.Array:
    """The grid that was given, or equal steps of time from 1 to 0."""
    return uniform_time(num_steps) if grid is None else jnp.asarray(grid)


def model_clip(clip: Any, template: Any) -> Any:
    """Bounds as two leaves, or None."""
    if clip is None:
        return None
    if np.shape(clip) != (2,) or not clip[0] < clip[1]:
        raise ValueError(f"clip is {clip}; expected (lowest, highest) value of the data")
    return tuple(scalar(bound, template) for bound in clip)


def unasked() -> Any:
    """A denoiser in the place of one that is not trained yet, for what a sampler checks when it is made."""
    return bind(_unasked)


def _unasked(t, x):
    del t
    return x


def _step(problem, key, x, index):
    noise = problem.noise
    t, s = problem.times[index], problem.times[index + 1]
    x0, _ = guess(problem, t, x)
    ratio = noise.alpha(t) / jnp.maximum(noise.alpha(s), FLOOR)
    # Weight of x_t in the mean; the rest goes to x_0. A step of no length at clean data has 0/0 here: it must keep x_t.
    clean = noise.sigma(t) < FLOOR
    kept = jnp.where(clean, 1, ratio * (noise.sigma(s) / jnp.maximum(noise.sigma(t), FLOOR)) ** 2)
    moved = noise.alpha(s) - kept * noise.alpha(t)
    spread = root(posterior_variance(noise, t, s))
    return combine(kept, x, moved, x0, spread, problem.event.normal(key)), Info.of(forwards=1)


def _model_sampler(network, noise, grid, event, clip, prediction, guidance, params, *condition):
    frame = frame_of(params, event.template, network)
    return ancestral(
        steered(guidance, network, noise, params, condition, prediction.value, "eps"),
        noise,
        grid,
        event.template,
        clip=clip,
        data_variance=1.0,
        frame=frame,
    )
