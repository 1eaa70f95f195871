"""RealNVP: a Gaussian pushed through affine couplings, with an exact density (Dinh, Sohl-Dickstein and Bengio 2017).

    y = b z + (1 - b) (z exp(s) + m),    (s, m) = net(b z),    b a mask that keeps half of the coordinates

`nets.affine_couplings` is the map. Row "normalizing flow" of the table; `flow.py` says what all flows share: how they are fit
to data and, by reverse KL, to a density.
"""

from typing import Any

from gensamp.core import Model, Target
from gensamp.nets.couplings import affine_couplings
from gensamp.nets.event import Event
from gensamp.pushforward.flows.flow import flow

__all__ = ["realnvp"]


def realnvp(
    template: Any,
    *,
    target: Target | None = None,
    num_layers: int = 8,
    width: int = 64,
    depth: int = 2,
    dequantise: Any = 0.0,
    num_draws: int = 256,
    anneal: int = 0,
    weighted: bool = False,
) -> Model:
    """A normalizing flow over events of any shape (images and trees are flattened).

    Args:
        template: one event of d coordinates.
        target: None learns from data by likelihood. A Target with a log_density is learned by reverse KL, and batches are None.
        num_layers, width, depth: couplings, and hidden units and layers of each conditioner.
        dequantise: for data on a lattice, the width of a cell: training adds uniform noise in one cell, without which a density
            has no finite best fit. Draws are then of the smoothed law.
        num_draws: draws per step of the reverse KL.
        anneal: steps of the reverse KL over which the flattened target becomes the target; 0 starts with the target itself.
        weighted: with a target, draws carry log_weight = log p(x) - log q(x): importance sampling, which makes expectations
            consistent and estimates log Z, for one density per draw.

    Returns:
        Model with log_density (params, x); its samplers have log_density too, and cost one forward per draw. Metrics: "nll" in
        nats per event and "bits_per_dim" for data (of the lattice, where there is one); "reverse_kl" (up to log Z) and
        "log_normaliser" (an importance estimate over the step's draws) for a density, and "gradients", the score evaluations of
        the step.

    Raises:
        ValueError: the target has no log_density or another template, weights are asked for without one, num_draws < 1, or
            anneal < 0.
    """
    event = Event.of(template)
    couplings = affine_couplings(event.size, num_layers=num_layers, width=width, depth=depth, dtype=event.dtype)
    options = {"target": target, "dequantise": dequantise, "num_draws": num_draws, "anneal": anneal, "weighted": weighted}
    return flow("realnvp", template, couplings, **options)
