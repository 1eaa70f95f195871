"""A causal transformer over coordinates or pixels, with keys and values kept between steps.

    p(x) = prod_t p(x_t | x_1..x_{t-1}),    p(x_t | .) = mixture(decode(x_1..x_{t-1}))

Token t of the input is x_{t-1} (nothing for t = 1), so output t sees x_1..x_{t-1}. Drawn with the cache, step t reads one token
and attends to the t before it; without it every step reads all T again, for the same draw and T times the work. Row
"autoregressive" of the table: empty start, step t writes site t; `writing.py` says what such models share.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gensamp.core import Model, bind
from gensamp.nets.causal import causal_decoder
from gensamp.nets.event import Event
from gensamp.pushforward.autoregressive.mixtures import Mixture
from gensamp.pushforward.autoregressive.writing import Scribe, check_lattice, writing

__all__ = ["causal_transformer"]


def causal_transformer(
    template: Any,
    *,
    num_components: int = 8,
    width: int = 64,
    depth: int = 2,
    num_heads: int = 4,
    lattice: Any = None,
    dequantise: Any = 0.0,
    cache: bool = True,
) -> Model:
    """A causal transformer over events of any shape: the pixels of an image [height, width, channels], else coordinates.

    Args:
        template: one event.
        num_components: of each site's mixture: of normals, or on a lattice of discretised logistics; of logistics for images.
        width, depth, num_heads: of the transformer; the heads divide the width.
        lattice: (low, high, levels) of the values that data take, or None for real numbers. `fit` refuses a
            value off the lattice among the first 4096 events; log_density scores one as if a cell were centred on it.
        dequantise: without a lattice, the width of a cell: training adds uniform noise in one cell.
        cache: whether draws keep keys and values. The draws are the same to rounding.

    Returns:
        Model with log_density (params, x) - a log mass with a lattice - for one forward over all sites; a draw takes one step
        and one forward per site, over one token each with the cache. Metrics: "nll" in nats per event, "bits_per_dim".

    Raises:
        ValueError: a size is not positive, the heads do not divide the width, the lattice is none, or dequantise is given with
            one.
    """
    event, lattice = Event.of(template), check_lattice("causal_transformer", lattice)
    image = len(event.shapes) == 1 and len(event.shapes[0]) == 3
    channels = event.shapes[0][2] if image else 1
    if image or lattice is not None:
        law = Mixture(num_components, channels, "logistic", None if lattice is None else lattice.levels)
    else:
        law = Mixture(num_components)
    decoder = causal_decoder(
        event.size // channels, channels, law.num_raw, width=width, depth=depth, num_heads=num_heads, dtype=event.dtype
    )
    scribe = Scribe(decoder.init, bind(_sequence, decoder.empty, decoder.decode))
    if cache:
        scribe = scribe._replace(empty=decoder.empty, recall=bind(_next, decoder.decode))
    return writing("causal_transformer", template, scribe, law, lattice=lattice, dequantise=dequantise)


def _sequence(empty, decode, params, x) -> jax.Array:
    tokens = jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])
    return decode(params, empty(), tokens, jnp.int32(0))[0]


def _next(decode, params, memory, x, index):
    token = jnp.where(index > 0, x[index - 1], 0)[None]
    raw, memory = decode(params, memory, token, index)
    return raw[0], memory
