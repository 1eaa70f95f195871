"""MADE: all conditionals of a vector from one masked network (Germain, Gregor, Murray and Larochelle 2015).

    p(x) = prod_t p(x_t | x_1..x_{t-1}),    p(x_t | .) a mixture of K normals, or of K discretised logistics on a lattice

For real numbers the conditionals are those of Uria, Murray and Larochelle 2013 ("RNADE", equation 5). Row "autoregressive" of
the
table: empty start, step t writes coordinate t, as many steps as coordinates; `writing.py` says what such models share.
"""

from typing import Any

import jax

from gensamp.core import Model, bind
from gensamp.nets.event import Event
from gensamp.nets.masked import masked_mlp
from gensamp.pushforward.autoregressive.mixtures import Mixture
from gensamp.pushforward.autoregressive.writing import Scribe, check_lattice, writing

__all__ = ["made"]


def made(
    template: Any,
    *,
    num_components: int = 8,
    width: int = 128,
    depth: int = 2,
    lattice: Any = None,
    smallest_scale: float | int = 1e-2,
    dequantise: Any = 0.0,
) -> Model:
    """A masked autoencoder for density estimation over events of any shape (flattened).

    Args:
        template: one event of d coordinates.
        num_components: K. width, depth: hidden units and layers.
        lattice: (low, high, levels) of the values that data take, or None for real numbers. `fit` refuses a
            value off the lattice among the first 4096 events; log_density scores one as if a cell were centred on it.
        smallest_scale: for real numbers, lower bound of a component's scale in units of the data's spread.
        dequantise: without a lattice, the width of a cell: training adds uniform noise in one cell.

    Returns:
        Model with log_density (params, x) - a log mass with a lattice - for one forward; a draw takes d steps of one forward
        each. Metrics: "nll" in nats per event, "bits_per_dim".

    Raises:
        ValueError: a size is not positive, the lattice is none, or dequantise is given with one.
    """
    event, lattice = Event.of(template), check_lattice("made", lattice)
    if lattice is None:
        law = Mixture(num_components, smallest=smallest_scale)
    else:
        law = Mixture(num_components, kernel="logistic", levels=lattice.levels)
    network = masked_mlp(event.size, law.num_raw, width=width, depth=depth, dtype=event.dtype)
    scribe = Scribe(network.init, bind(_rows, network.apply))
    return writing("made", template, scribe, law, lattice=lattice, dequantise=dequantise)


def _rows(apply, params, x) -> jax.Array:
    return apply(params, x[:, 0]).T
