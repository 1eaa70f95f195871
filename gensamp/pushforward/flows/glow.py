"""Glow: a flow for images that looks at them at several scales (Kingma and Dhariwal 2018).

`nets.image_couplings` is the map: actnorm, 1 x 1 convolutions and convolutional couplings at every scale, half of the channels
leaving as noise in between. Actnorm is set from the batch that `init` is given, with noise added within its cells. Events that
are not images are read as one pixel with d channels, for which Glow is RealNVP with learned rotations instead of random halves.

Row "normalizing flow" of the table; `flow.py` says what all flows share.
"""

from typing import Any

from gensamp.core import Model, Target
from gensamp.nets.event import Event
from gensamp.nets.image_couplings import image_couplings
from gensamp.pushforward.flows.flow import flow

__all__ = ["glow"]


def glow(
    template: Any,
    *,
    target: Target | None = None,
    num_squeezes: int | None = None,
    num_steps: int = 4,
    width: int = 32,
    dequantise: Any = 0.0,
    num_draws: int = 256,
    anneal: int = 0,
    weighted: bool = False,
) -> Model:
    """A multiscale normalizing flow over images.

    Args:
        template: one image [height, width, channels]; anything else is one pixel of as many channels as coordinates.
        num_squeezes: scales, each with half the height and width of the one before, which both sides must allow; None takes as
            many as they allow, two at most. 0 is one scale of whole pixels.
        num_steps: steps of actnorm, 1 x 1 convolution and coupling per scale. width: hidden channels of the couplings.
        target, dequantise, num_draws, anneal, weighted: as for `realnvp`.

    Returns:
        Model with log_density (params, x); a draw costs one forward, and so does a density. Metrics as for `realnvp`.

    Raises:
        ValueError: a size is not positive, the sides do not divide, or as for `realnvp`.
    """
    event = Event.of(template)
    image = len(event.shapes) == 1 and len(event.shapes[0]) == 3
    shape = event.shapes[0] if image else (1, 1, event.size)
    if num_squeezes is None:
        num_squeezes = max(n for n in (0, 1, 2) if shape[0] % 2**n == 0 and shape[1] % 2**n == 0)
    layers = image_couplings(shape, num_squeezes=num_squeezes, num_steps=num_steps, width=width, dtype=event.dtype)
    options = {"target": target, "dequantise": dequantise, "num_draws": num_draws, "anneal": anneal, "weighted": weighted}
    return flow("glow", template, layers, **options)
