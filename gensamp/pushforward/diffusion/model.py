"""A diffusion model that draws with any solver: the training of `ddpm`, the arithmetic of `solver`s.

The loss and the parameters are those of `ddpm` and `ddim`; what differs is how the reversed diffusion is solved, so parameters
fitted under one solver are used with another, and a comparison of solvers trains once. The solver is given the network's
velocity if that is what it predicts, else its guess of x_0, which v reaches without dividing by alpha. Row "diffusion" of the
table.
"""

import dataclasses
import inspect
from collections.abc import Callable
from numbers import Integral
from typing import Any, Literal

from gensamp.core import Model, Network, Sampler, Static, bind, scalar
from gensamp.nets.event import Event
from gensamp.noise import Noise
from gensamp.pushforward.diffusion.ancestral import model_clip, unasked
from gensamp.pushforward.diffusion.grids import uniform_log_snr
from gensamp.pushforward.diffusion.guidance import Guidance, steered, with_dropout
from gensamp.pushforward.diffusion.losses import denoising_init, denoising_loss
from gensamp.pushforward.diffusion.unipc import unipc
from gensamp.pushforward.diffusion.weightings import Weighting
from gensamp.pushforward.frame import frame_of

__all__ = ["diffusion_model"]


def diffusion_model(
    network: Network,
    noise: Noise,
    *,
    template: Any,
    solver: Callable[..., Sampler] = unipc,
    num_steps: int = 20,
    grid: Any = None,
    clip: Any = None,
    prediction: Literal["eps", "v", "x0", "velocity"] = "v",
    weighting: Weighting | str = "uniform",
    conditional: bool = False,
    guidance: Guidance | None = None,
    likelihood: Any = None,
    **options: Any,
) -> Model:
    """A denoising diffusion model drawn from by a solver of one's choice.

    Args:
        network, noise, template, clip, conditional: as for `ddpm`.
        prediction: what the network returns, see `losses`.
        weighting: which noise levels the loss cares about: "uniform", "elbo", "sigmoid", "min_snr", "edm", or a `Weighting`
            with other parameters, see `weightings`.
        solver: `unipc`, `dpm_solver_pp`, `heun`, ... or any function of their signature, at the top level of a module.
        num_steps: steps of the grid, equally spaced in log-SNR from 1 to noise.t_min; ignored when a grid is given.
        grid: [steps + 1] times, as `grids` makes them.
        guidance: None, or what steers the draws: `label_guidance`, `autoguidance`, `classifier_guidance`, `measured_guidance`.
        likelihood: None, or `ode_likelihood(...)`, which gives the samplers (and the model) the log density of the
            probability-flow ODE: that of the draws of a deterministic solver, in the limit of many steps.
        options: the solver's own keywords, such as order=3 (static) or eta=1.0 (floats are leaves).

    Returns:
        Model; one forward per event in a loss; those of the solver in a draw.

    Raises:
        ValueError: the solver refuses the grid, the process or an option, or one that must be an integer is none.

    Example:
        diffusion_model(network, noise.cosine(), template=template, solver=dpm_solver_pp, order=3, num_steps=15)
    """
    event = Event.of(template)
    loss = denoising_loss(network, noise, template, conditional, prediction, weighting)
    grid = uniform_log_snr(noise, num_steps) if grid is None else grid
    for name, parameter in inspect.signature(solver).parameters.items():
        if parameter.annotation is int and not isinstance(options.get(name, 0), Integral):
            raise ValueError(f"diffusion_model got {name}={options[name]!r}; expected an integer, such as 3")
    static = {name: value for name, value in options.items() if isinstance(value, str | Integral)}
    leaves = {
        name: tuple(scalar(v, event.template) for v in value) if isinstance(value, tuple) else scalar(value, event.template)
        for name, value in options.items()
        if name not in static
    }
    bounds = model_clip(clip, event.template)
    # What the solver would refuse is better refused before the model is trained.
    solver(unasked(), noise, grid, event.template, prediction="x0", clip=bounds, **options)
    sampler = bind(
        _model_sampler,
        network,
        noise,
        grid,
        event,
        bounds,
        Static((solver, prediction, tuple(sorted(static.items())))),
        leaves,
        guidance,
        likelihood,
    )
    return Model(
        init=denoising_init(network, conditional),
        loss=with_dropout(guidance, loss, conditional),
        sampler=sampler,
        log_density=None if likelihood is None else bind(_log_density, sampler),
    )


def _model_sampler(network, noise, grid, event, clip, static, leaves, guidance, likelihood, params, *condition):
    solver, prediction, options = static.value
    returns = "velocity" if prediction == "velocity" else "x0"
    frame = frame_of(params, event.template, network)
    denoise = steered(guidance, network, noise, params, condition, prediction, returns)
    problem = {"prediction": returns, "clip": clip, "data_variance": 1.0, "frame": frame}
    sampler = solver(denoise, noise, grid, event.template, **problem, **dict(options), **leaves)
    if likelihood is None:
        return sampler
    return dataclasses.replace(sampler, log_density=likelihood(denoise, noise, grid, event.template, **problem))


def _log_density(make, params, x, *condition):
    return make(params, *condition).log_density(x)
