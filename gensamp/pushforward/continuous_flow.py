"""A continuous flow: flow matching's training with the likelihood of its ODE (Chen et al. 2018; Lipman et al. 2023).

The velocity is learned by regression, not by likelihood, so training never solves the ODE; the density is there when it is
asked for, with an exact trace in few dimensions. Rows "diffusion" and "normalizing flow" of the table: start Gaussian, learned
velocity, as many steps as the grid has.
"""

from typing import Any

from gensamp.core import Model, Network
from gensamp.pushforward.diffusion.likelihood import ode_likelihood
from gensamp.pushforward.flow_matching import flow_matching

__all__ = ["continuous_flow"]


def continuous_flow(network: Network, *, template: Any, likelihood: Any = None, **options: Any) -> Model:
    """A flow that is trained by flow matching, and has a log density.

    Args:
        likelihood: `ode_likelihood(...)`; an exact trace along the sampler's own grid if None.
        network, template, options: as for `flow_matching`. The solver must be deterministic: the density is the ODE's.

    Returns:
        Model with log_density (params, x), for a conditional model (params, x, condition); its samplers have log_density too.

    Raises:
        ValueError: as for `flow_matching`.
    """
    return flow_matching(
        network, template=template, likelihood=ode_likelihood() if likelihood is None else likelihood, **options
    )
