"""PixelCNN++: an image written pixel by pixel by a masked convolution (van den Oord et al. 2016; Salimans et al. 2017).

    p(x) = prod_t p(x_t | pixels above, and left in the row),    p(x_t | .) a mixture of discretised logistics over the channels

The network is `nets.masked_convolution`, two gated residual stacks; the down- and upsampling of the paper, which serves images
of 32 pixels and more, is left out. For values on no lattice the logistics are densities. An event that is not an image
[height, width, channels] is read as one row of pixels. Row "autoregressive" of the table: empty start, step t writes pixel t
with all its channels, as many steps as pixels, each of which computes one row of the network and not all; `writing.py` says
what such models share.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gensamp.core import Model, Static, bind
from gensamp.nets.event import Event
from gensamp.nets.masked import masked_convolution
from gensamp.pushforward.autoregressive.mixtures import Mixture
from gensamp.pushforward.autoregressive.writing import Scribe, check_lattice, writing

__all__ = ["pixelcnn"]


def pixelcnn(
    template: Any,
    *,
    num_components: int = 5,
    width: int = 32,
    depth: int = 3,
    lattice: Any = None,
    dequantise: Any = 0.0,
) -> Model:
    """An autoregressive convolutional network over images.

    Args:
        template: one image [height, width, channels]; anything else is flattened into one row.
        num_components: logistics per pixel. width: channels of either stack. depth: residual blocks.
        lattice: (low, high, levels) of the grey levels, such as (-1.0, 1.0, 256), or None for real numbers. `fit` refuses a
            value off the lattice among the first 4096 events; log_density scores one as if a cell were centred on it.
        dequantise: without a lattice, the width of a cell: training adds uniform noise in one cell.

    Returns:
        Model with log_density (params, x) - a log mass with a lattice - for one forward; a draw takes height * width steps of
        one forward each, over one row. Metrics: "nll" in nats per event, "bits_per_dim".

    Raises:
        ValueError: a size is not positive, the lattice is none, or dequantise is given with one.
    """
    event, lattice = Event.of(template), check_lattice("pixelcnn", lattice)
    image = len(event.shapes) == 1 and len(event.shapes[0]) == 3
    shape = event.shapes[0] if image else (1, event.size, 1)
    law = Mixture(num_components, shape[2], "logistic", None if lattice is None else lattice.levels)
    network = masked_convolution(shape, law.num_raw, width=width, depth=depth, dtype=event.dtype)
    scribe = Scribe(
        init=network.init,
        apply=bind(_pixels, Static(shape), network.apply),
        empty=bind(_nothing, network.empty),
        recall=bind(_pixel, Static(shape), network.row),
    )
    return writing("pixelcnn", template, scribe, law, lattice=lattice, dequantise=dequantise)


def _pixels(shape, apply, params, x) -> jax.Array:
    out = apply(params, x.reshape(shape.value))
    return out.reshape(x.shape[0], -1)


def _nothing(empty):
    """What is held of the row over this one, and of this one."""
    return empty(), empty()


def _pixel(shape, row, params, memory, x, index):
    over, here = memory
    r, column = jnp.divmod(index, shape.value[1])
    over = jnp.where(column == 0, here, over)
    out, here = row(params, over, x.reshape(shape.value), r)
    return out[column], (over, here)
