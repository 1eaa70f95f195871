"""Noise-conditional score networks as they were first built and trained (Song and Ermon 2019; 2020, "Improved techniques").

A network that knows L noise levels sigma_1 > ... > sigma_L in geometric progression, trained at these alone by

    1/L sum_i sigma_i^2 E | s(x + sigma_i eps, sigma_i) + eps / sigma_i |^2                   (Song and Ermon 2019, equation 6)

and drawn from by Langevin steps at each level in turn. With eps_hat = -sigma s this is the loss of `pushforward.ddpm` on eps at
discrete times, and the draw is `score_langevin`'s: this module chooses what the two papers choose. `geometric_levels` follows
the second one: sigma_1 is the largest distance between two events (technique 1), and the ratio of levels is such that their
shells overlap by half in d dimensions (technique 2),

    Phi(sqrt(2 d) (g - 1) + 3 g) - Phi(sqrt(2 d) (g - 1) - 3 g) = 1/2,    g = sigma_i / sigma_{i+1}.

In fewer than about 17 dimensions shells of any ratio overlap by more, and the ratio is 2.

Row "annealed Langevin" of the table with row "diffusion"'s training.
"""

from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from gensamp.core import Model, Network, as_template
from gensamp.hybrid.score_langevin import score_langevin
from gensamp.nets.event import Event
from gensamp.nets.mlp import mlp
from gensamp.nets.noise_levels import at_levels, without_time
from gensamp.noise import ve
from gensamp.pushforward.diffusion.weightings import levels
from gensamp.pushforward.frame import enter, fit_frame

__all__ = ["Levels", "geometric_levels", "ncsn"]

_MOST_EVENTS = 1000
_LARGEST_RATIO = 2.0


class Levels(NamedTuple):
    """Geometric noise levels in the frame of the data: sigma_max = sigma_1, sigma_min = sigma_L, num_levels = L."""

    sigma_max: float
    sigma_min: float
    num_levels: int


def geometric_levels(data: Any, *, sigma_min: float = 0.01, most: int = 500) -> Levels:
    """The noise levels that techniques 1 and 2 choose for data.

    Args:
        data: tree of arrays with a leading axis of events, before they enter the frame; the first 1000 are looked at.
        sigma_min: the smallest level, in units of the data's standard deviation.
        most: of levels.

    Raises:
        ValueError: there are fewer than two events, or sigma_min is not below the largest distance.
    """
    from scipy.optimize import brentq
    from scipy.spatial.distance import pdist
    from scipy.stats import norm

    events = jax.tree.map(lambda a: np.asarray(a[:_MOST_EVENTS]), data)
    framed = jax.vmap(lambda x, frame: enter(frame, x), in_axes=(0, None))(events, fit_frame(events))
    flat = np.concatenate([np.asarray(a).reshape(len(a), -1) for a in jax.tree.leaves(framed)], axis=1)
    if len(flat) < 2:
        raise ValueError(f"geometric_levels got {len(flat)} events; expected at least two, to take their distance")
    largest, dim = float(pdist(flat).max()), flat.shape[1]
    if not 0 < sigma_min < largest:
        raise ValueError(f"geometric_levels got sigma_min={sigma_min}; expected it in (0, {largest:.3g}), the largest distance")

    def overlap(ratio):
        shift = np.sqrt(2 * dim) * (ratio - 1)
        return norm.cdf(shift + 3 * ratio) - norm.cdf(shift - 3 * ratio) - 0.5

    ratio = _LARGEST_RATIO if overlap(_LARGEST_RATIO) > 0 else float(np.asarray(brentq(overlap, 1.0, _LARGEST_RATIO)))
    wanted = 1 + int(np.ceil(np.log(largest / sigma_min) / np.log(ratio)))
    return Levels(largest, float(sigma_min), int(np.clip(wanted, 2, most)))


def ncsn(
    template: Any,
    chosen: Levels,
    *,
    network: Network | None = None,
    told: Literal["level", "nothing"] = "level",
    steps_per_level: int = 5,
    step_size: Any = 0.3,
) -> Model:
    """A noise-conditional score network with annealed Langevin sampling.

    Args:
        template: one event.
        chosen: noise levels, such as `geometric_levels(data)`.
        network: told "level", apply(params, x, t, label) with as many labels as levels; told "nothing", apply(params, x, t). A
            residual perceptron if None.
        told: "level": the level's number, as in 2019; "nothing": no more than the scaled input and output, as in 2020.
        steps_per_level, step_size: as for `score_langevin`.

    Returns:
        Model; one forward per event in a loss, num_levels * steps_per_level in a draw and one to start.

    Raises:
        ValueError: told is neither, or as for `score_langevin`.
    """
    if told not in ("level", "nothing"):
        raise ValueError(f"ncsn got told={told!r}; expected 'level' or 'nothing', what the network knows of the noise")
    template = Event.of(as_template(template)).template
    count = chosen.num_levels
    network = mlp(template, num_classes=count if told == "level" else None) if network is None else network
    process = ve(chosen.sigma_min, chosen.sigma_max)
    return score_langevin(
        at_levels(network, count) if told == "level" else without_time(network, process),
        process,
        template=template,
        num_levels=count,
        steps_per_level=steps_per_level,
        step_size=step_size,
        prediction="eps",
        weighting=levels(count),
    )
