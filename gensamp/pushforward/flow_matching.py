"""Flow matching: learn the velocity of a path from noise to data, and follow it (Lipman et al. 2023; Liu, Gong and Liu 2023).

On the straight path x_t = (1 - t) x_0 + t eps between an event and independent noise, a network regresses the velocity

    loss = E_t E_x0 E_eps | u(t, x_t) - (eps - x_0) |^2 / d                                     (Lipman et al., equation 9)

whose minimiser, E[eps - x_0 | x_t], carries N(0, I) at t = 1 to the data at t = 0 along dx/dt = u. It is the probability-flow
ODE of a diffusion under another name: any process and any solver of `diffusion` may take the place of the straight line and of
Heun's method. Here t runs from data to noise, as everywhere in this package; the papers have it the other way round.
Row "diffusion" of the table: start Gaussian, learned velocity, as many steps as the grid has.
"""

from collections.abc import Callable
from typing import Any

from gensamp.core import Model, Network, Sampler
from gensamp.noise import Noise, rectified_flow
from gensamp.pushforward.diffusion.grids import uniform_time
from gensamp.pushforward.diffusion.heun import heun
from gensamp.pushforward.diffusion.model import diffusion_model

__all__ = ["flow_matching"]


def flow_matching(
    network: Network,
    *,
    template: Any,
    noise: Noise | None = None,
    solver: Callable[..., Sampler] = heun,
    num_steps: int = 20,
    grid: Any = None,
    clip: Any = None,
    conditional: bool = False,
    **options: Any,
) -> Model:
    """A velocity network, trained by flow matching.

    Args:
        network: apply(params, x, t) -> like x (and apply(params, x, t, condition) when conditional), one event each.
        template: one event.
        noise: the path; the straight line `noise.rectified_flow()` if None.
        solver: `heun`, `euler`, ... and its `options`, as for `diffusion_model`.
        num_steps: equal steps of time from noise to data; ignored when a grid is given.
        grid: [steps + 1] times, instead of equal steps.
        clip, conditional: as for `ddpm`.

    Returns:
        Model; one forward per event in a loss; those of the solver in a draw: 2 num_steps - 1 for Heun's method.

    Raises:
        ValueError: the solver refuses the grid, the process or an option.
    """
    return diffusion_model(
        network,
        rectified_flow() if noise is None else noise,
        template=template,
        solver=solver,
        grid=uniform_time(num_steps) if grid is None else grid,
        clip=clip,
        prediction="velocity",
        conditional=conditional,
        **options,
    )
