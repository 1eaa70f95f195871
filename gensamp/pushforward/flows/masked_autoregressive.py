"""Masked and inverse autoregressive flows: one stack of masked layers, used in either direction.

    masked (Papamakarios, Pavlakou and Murray 2017, equations 2-3):     x_t = m(x_<t) + exp(s(x_<t)) z_t
    inverse (Kingma et al. 2016, equations 10-12):                      x_t = m(z_<t) + exp(s(z_<t)) z_t

with the order of the coordinates turned round from layer to layer. A direction whose networks see what is given is one pass
through all layers; the other finds the coordinates one after another and takes d passes. So the masked flow has its density,
and with it its fit to data, for one pass and a draw for d; the inverse flow draws for one pass and suits reverse KL, where the
density of its own draws comes with them.

Row "normalizing flow" of the table; `flow.py` says what all flows share.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gensamp.core import Model, Target, bind
from gensamp.nets.couplings import Bijection
from gensamp.nets.event import Event
from gensamp.nets.masked import MaskedLayers, begin, end, masked_layers
from gensamp.nets.monotone import Affine
from gensamp.pushforward.flows.flow import flow

__all__ = ["iaf", "maf", "slow_inverse", "turned"]


def maf(
    template: Any,
    *,
    target: Target | None = None,
    num_layers: int = 4,
    width: int = 64,
    depth: int = 2,
    dequantise: Any = 0.0,
    num_draws: int = 256,
    anneal: int = 0,
    weighted: bool = False,
) -> Model:
    """A masked autoregressive flow over events of any shape (flattened): a density in one pass, a draw in d.

    Args:
        template: one event of d coordinates.
        num_layers, width, depth: autoregressive layers, and hidden units and layers of each network.
        target, dequantise, num_draws, anneal, weighted: as for `realnvp`.

    Returns:
        Model with log_density (params, x); a draw costs d forwards, a forward being a pass through all layers. Metrics as for
        `realnvp`.

    Raises:
        ValueError: a size is not positive, or as for `realnvp`.
    """
    event = Event.of(template)
    layers = masked_layers(event.size, Affine(), num_layers=num_layers, width=width, depth=depth, dtype=event.dtype)
    options = {"target": target, "dequantise": dequantise, "num_draws": num_draws, "anneal": anneal, "weighted": weighted}
    return flow("maf", template, turned(slow_inverse(layers, event.size)), **options)


def iaf(
    template: Any,
    *,
    target: Target | None = None,
    num_layers: int = 4,
    width: int = 64,
    depth: int = 2,
    dequantise: Any = 0.0,
    num_draws: int = 256,
    anneal: int = 0,
    weighted: bool = False,
) -> Model:
    """An inverse autoregressive flow over events of any shape (flattened): a draw in one pass, a density in d.

    Fit to data each event costs d passes; fit to a density (target=) each draw costs one.

    Args:
        template: one event of d coordinates.
        num_layers, width, depth: autoregressive layers, and hidden units and layers of each network.
        target, dequantise, num_draws, anneal, weighted: as for `realnvp`.

    Returns:
        Model with log_density (params, x); a draw costs one forward. Metrics as for `realnvp`.

    Raises:
        ValueError: a size is not positive, or as for `realnvp`.
    """
    event = Event.of(template)
    layers = masked_layers(event.size, Affine(), num_layers=num_layers, width=width, depth=depth, dtype=event.dtype)
    options = {"target": target, "dequantise": dequantise, "num_draws": num_draws, "anneal": anneal, "weighted": weighted}
    return flow("iaf", template, slow_inverse(layers, event.size), **options)


def slow_inverse(layers: MaskedLayers, size: int) -> Bijection:
    """The layers as a map whose inverse takes `size` passes."""
    return Bijection(layers.init, layers.through, bind(_sequential, layers.sweep), inverse_passes=size)


def turned(bijection: Bijection) -> Bijection:
    """The same map the other way round."""
    return Bijection(
        bijection.init,
        bijection.inverse,
        bijection.forward,
        forward_passes=bijection.inverse_passes,
        inverse_passes=bijection.forward_passes,
    )


def _sequential(sweep, params, v):
    def one(carry, index):
        return sweep(params, carry, index), None

    sweeps = jnp.arange(v.shape[0], dtype=jnp.int32)
    return end(jax.lax.scan(one, begin(v), sweeps)[0])
