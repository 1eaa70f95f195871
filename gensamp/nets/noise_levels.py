"""Score networks that know a few noise levels by number, or none at all (Song and Ermon 2019, 2020).

The first noise-conditional score network is told which of L levels an event is at, by an embedding of the level's number and
not by its size (Song and Ermon 2019, section 4.1). The second is told nothing: the score is one function of the noisy event,
divided by the level's standard deviation, s(x, sigma) = f(x) / sigma (Song and Ermon 2020, technique 3), which a network that
predicts eps = -sigma score is already. It must find the level in the event's own size, so the scaling to unit variance that
every model here applies is undone. Both wrap networks of ours into the (params, x, t) that those models take.
"""

from typing import Any

import jax.numpy as jnp

from gensamp.core import Network, Static, bind
from gensamp.nets.sizes import check_sizes
from gensamp.noise import Noise
from gensamp.predictions import combine

__all__ = ["at_levels", "without_time"]


def at_levels(network: Network, num_levels: int) -> Network:
    """A network over (params, x, t) that sees of the time only which of the levels it is nearest to.

    Args:
        network: apply(params, x, t, label) with labels in [0, num_levels), such as `mlp(template, num_classes=num_levels)`.
        num_levels: equally spaced in time from 0 to 1. To be trained at these levels alone: `weightings.levels(num_levels)`.

    Raises:
        ValueError: there are fewer than two levels, or their number is no integer.
    """
    check_sizes("at_levels", num_levels=(num_levels, 2))
    return Network(network.init, bind(_at_level, network.apply, Static(num_levels)))


def without_time(network: Network, noise: Noise) -> Network:
    """A network over (params, x, t) that is not told the time: one f(x) for all noise levels.

    Args:
        network: apply(params, x, t); it is asked at t = 0, and at the event as noised by the process.
        noise: the process, whose scaling of inputs is undone.
    """
    return Network(network.init, bind(_at_no_time, network.apply, noise), network.num_classes)


def _at_level(apply, num_levels, params: Any, x: Any, t: Any):
    level = jnp.round(t * (num_levels.value - 1)).astype(jnp.int32)
    return apply(params, x, jnp.zeros_like(t), level)


def _at_no_time(apply, noise, params: Any, x: Any, t: Any, *condition: Any):
    scale = jnp.sqrt(noise.alpha(t) ** 2 + noise.sigma(t) ** 2)
    return apply(params, combine(scale, x), jnp.zeros_like(t), *condition)
