"""DDIM: a diffusion run backwards with as much fresh noise as one likes, none by default (Song, Meng and Ermon 2021).

With x_0 and eps as guessed at time t, and v the posterior variance of the ancestral step from t to s, a step is

    x_s = alpha_s x_0 + sqrt(sigma_s^2 - eta^2 v) eps + eta sqrt(v) z,    z ~ N(0, I)              (their equations 12, 16)

eta = 1 is the ancestral sampler in law; eta = 0 is deterministic, a first-order exponential solver of the probability-flow ODE:
halving the step halves the error. It never forgets its start, so the start must have the process's own scale.
Row "diffusion" of the table.
"""

from typing import Any, Literal

import jax

from gensamp.core import Info, Model, Network, Sampler, Static, bind, scalar
from gensamp.nets.event import Event
from gensamp.noise import Noise, root
from gensamp.predictions import Prediction
from gensamp.pushforward.diffusion.ancestral import model_clip, model_grid, posterior_variance, unasked
from gensamp.pushforward.diffusion.guidance import Guidance, steered, with_dropout
from gensamp.pushforward.diffusion.losses import denoising_init, denoising_loss
from gensamp.pushforward.diffusion.solver import guess, looked_up, pose, reverse, stirred
from gensamp.pushforward.frame import frame_of

__all__ = ["ddim", "ddim_sampler"]


def ddim_sampler(
    denoise: Any,
    noise: Noise,
    grid: Any,
    template: Any,
    *,
    eta: Any = 0.0,
    prediction: Prediction = "eps",
    clip: Any = None,
    data_variance: Any = 0.0,
    frame: Any = None,
) -> Sampler:
    """The DDIM sampler of any denoiser, learned or exact.

    Args:
        eta: 0 (deterministic) to 1 (as noisy as the ancestral sampler), a leaf.
        denoise, noise, grid, template, prediction, clip, data_variance, frame: as for `ancestral`.

    Returns:
        A finite Sampler of as many steps as the grid has, one forward each.

    Raises:
        ValueError: eta is outside [0, 1], or as for `ancestral`.
    """
    if not isinstance(eta, jax.core.Tracer) and not 0 <= float(eta) <= 1:
        raise ValueError(f"ddim got eta={eta}; expected a number from 0 (deterministic) to 1 (ancestral)")
    problem = pose("ddim", denoise, noise, grid, template, prediction, clip, data_variance, frame)
    return reverse(problem, _step, scalar(eta, template))


def ddim(
    network: Network,
    noise: Noise,
    *,
    template: Any,
    num_steps: int = 50,
    eta: Any = 0.0,
    grid: Any = None,
    clip: Any = None,
    prediction: Literal["eps", "v"] = "v",
    conditional: bool = False,
    guidance: Guidance | None = None,
) -> Model:
    """A denoising diffusion model with DDIM sampling: the loss and the parameters of `ddpm`, another way to draw.

    Args:
        eta: 0 (deterministic) to 1 (ancestral), a leaf.
        network, noise, template, num_steps, grid, clip, prediction, conditional, guidance: as for `ddpm`.

    Returns:
        Model; one forward per event in a loss, one per step of a draw, or what the guidance makes of it.

    Raises:
        TypeError, ValueError: eta is outside [0, 1], or as for `ddpm`.
    """
    event = Event.of(template)
    loss = denoising_loss(network, noise, template, conditional, prediction)
    grid, clip = model_grid(grid, num_steps), model_clip(clip, event.template)
    # What the sampler would refuse is better refused before the model is trained.
    ddim_sampler(unasked(), noise, grid, event.template, eta=eta, clip=clip)
    return Model(
        init=denoising_init(network, conditional),
        loss=with_dropout(guidance, loss, conditional),
        sampler=bind(
            _model_sampler, network, noise, grid, event, clip, scalar(eta, event.template), Static(prediction), guidance
        ),
    )


def _step(problem, eta, key, x, index):
    t, kept, direction, fresh = looked_up(index, _coefficients, problem, eta)
    x0, eps = guess(problem, t, x)
    return stirred(problem, fresh, key, kept, x0, direction, eps), Info.of(forwards=1)


def _coefficients(problem, eta, index):
    """This time, and the coefficients of x_0, eps and z."""
    noise = problem.noise
    t, s = problem.times[index], problem.times[index + 1]
    fresh = eta * root(posterior_variance(noise, t, s))
    return t, noise.alpha(s), root(noise.sigma(s) ** 2 - fresh**2), fresh


def _model_sampler(network, noise, grid, event, clip, eta, prediction, guidance, params, *condition):
    frame = frame_of(params, event.template, network)
    return ddim_sampler(
        steered(guidance, network, noise, params, condition, prediction.value, "eps"), noise, grid, event.template,
        eta=eta, clip=clip, data_variance=1.0, frame=frame,
    )  # fmt: skip
