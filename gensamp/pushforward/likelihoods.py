"""The last step of a VAE: the law of an event given what a decoder says of it.

    gaussian              x ~ N(m, s^2) per coordinate; s learned (one for all, one each), or predicted with m
    discretised_logistic  P(x) = F((x + c/2 - m) / s) - F((x - c/2 - m) / s), F the logistic distribution function, for
                          events on a lattice of cells c; the outermost cells take the tails (Kingma et al. 2016, appendix A;
                          Salimans et al. 2017, equation 2, with one component)

A Gaussian with s fixed at 1, as is often done, measures squared error, and its draws are blurred by more noise than the data
have. The logistic one is a probability and no density: it needs no dequantisation, and cannot grow without bound.

Decoders speak in the frame of the data (`pushforward.frame`), about zero mean and unit variance; events are in the data's own
units, and so is what is returned. Row "VAE" of the table: the noise of the last step.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass
from jaxtyping import Array

from gensamp.core import Static, bind, scalar
from gensamp.nets.event import Event
from gensamp.pushforward.frame import enter, leave, log_volume
from gensamp.pushforward.lattice import Lattice

__all__ = ["Likelihood", "discretised_logistic", "gaussian"]

_RATE = 10.0
"""An optimiser that moves every number alike would take most of a fit to move a log scale by two."""
_UNIT = math.log(math.e - 1)
"""softplus(_UNIT) = 1."""
_NARROWEST = 0.02
"""Of a cell: a logistic law as narrow as this lies in its cell entirely, and its gradient is gone."""


@register_dataclass
@dataclass(frozen=True, eq=False)
class Likelihood:
    """The law p(x | outputs) of one event of d coordinates.

    init: () -> params, a dict (empty where the decoder says all). log_prob: (params, frame, outputs, x) -> scalar, with outputs
    [numbers * d]. draw: (params, frame, outputs, key) -> x. mean: (params, frame, outputs) -> x. numbers: how many a decoder
    gives for each coordinate.
    """

    init: Any
    log_prob: Any
    draw: Any
    mean: Any
    numbers: int = dataclasses.field(default=1, metadata={"static": True})


def gaussian(
    template: Any,
    *,
    variance: Literal["shared", "coordinate", "predicted"] = "coordinate",
    smallest_scale: float = 1e-2,
) -> Likelihood:
    """Gaussian noise on every coordinate.

    Args:
        template: one event.
        variance: one learned number that all coordinates share, one for each, or predicted by the decoder for each event
            ("learned variance": two numbers per coordinate).
        smallest_scale: lower bound of the noise in units of the data's spread; without one a coordinate that the decoder
            predicts exactly drives the likelihood to infinity.

    Raises:
        ValueError: an unknown variance, or a bound that is not positive.
    """
    if variance not in ("shared", "coordinate", "predicted") or not smallest_scale > 0:
        raise ValueError(
            f"a Gaussian likelihood got variance={variance!r}, smallest_scale={smallest_scale}; expected shared, coordinate or "
            "predicted, and a positive bound"
        )
    event = Event.of(template)
    smallest, kind = scalar(smallest_scale, event.template), Static(variance)
    return Likelihood(
        init=bind(_gaussian_init, event, kind),
        log_prob=bind(_gaussian_log_prob, event, kind, smallest),
        draw=bind(_gaussian_draw, event, kind, smallest),
        mean=bind(_gaussian_mean, event, kind, smallest),
        numbers=2 if variance == "predicted" else 1,
    )


def discretised_logistic(template: Any, lattice: Lattice) -> Likelihood:
    """A logistic law on each coordinate, gathered into the cells of a lattice; location and scale come from the decoder.

    Args:
        template: one event.
        lattice: the values that a coordinate can take, `Lattice(-1, 1, 256)` for images scaled to [-1, 1]. Data between the
            values are scored as if their cell were centred on them.
    """
    event = Event.of(template)
    values = tuple(scalar(value, event.template) for value in (lattice.low, lattice.high, lattice.cell))
    return Likelihood(
        init=bind(_nothing),
        log_prob=bind(_logistic_log_prob, event, values),
        draw=bind(_logistic_draw, event, values),
        mean=bind(_logistic_mean, event, values),
        numbers=2,
    )


def _gaussian_init(event, kind):
    sizes = {"shared": 1, "coordinate": event.size}
    return {"log_scale": jnp.zeros(sizes[kind.value], event.dtype)} if kind.value in sizes else {}


def _gaussian_parts(event, kind, smallest, params, outputs) -> tuple[Array, Array]:
    """Mean and standard deviation [d] in the frame's coordinates."""
    if kind.value == "predicted":
        mean, raw = jnp.split(outputs, 2)
        return mean, smallest + jax.nn.softplus(raw + _UNIT)
    # A smooth bound from below, so the gradient never dies there.
    scale = smallest + jnp.exp(_RATE * params["log_scale"])
    return outputs, jnp.broadcast_to(scale, (event.size,))


def _gaussian_log_prob(event, kind, smallest, params, frame, outputs, x):
    mean, scale = _gaussian_parts(event, kind, smallest, params, outputs)
    y = event.flatten(enter(frame, x))
    constant = event.size * jnp.log(2 * jnp.pi).astype(event.dtype)
    return -0.5 * (jnp.square((y - mean) / scale).sum() + constant) - jnp.log(scale).sum() - log_volume(frame, event.template)


def _gaussian_draw(event, kind, smallest, params, frame, outputs, key):
    mean, scale = _gaussian_parts(event, kind, smallest, params, outputs)
    return leave(frame, event.unflatten(mean + scale * jax.random.normal(key, mean.shape, mean.dtype)))


def _gaussian_mean(event, kind, smallest, params, frame, outputs):
    return leave(frame, event.unflatten(_gaussian_parts(event, kind, smallest, params, outputs)[0]))


def _nothing():
    return {}


def _logistic_parts(event, lattice, frame, outputs) -> tuple[Array, Array]:
    """Location and scale [d] in the data's units."""
    location, raw = jnp.split(outputs, 2)
    spread = jax.tree.map(lambda a, s: jnp.broadcast_to(s, a.shape), event.template, frame["scale"])
    # A logistic law's standard deviation is 1.8 times its scale: starting at a half, it starts at the spread of the data.
    scale = 0.5 * event.flatten(spread) * jax.nn.softplus(raw + _UNIT)
    return event.flatten(leave(frame, event.unflatten(location))), _NARROWEST * lattice[2] + scale


def _logistic_log_prob(event, lattice, params, frame, outputs, x):
    del params
    lowest, highest, cell = lattice
    location, scale = _logistic_parts(event, lattice, frame, outputs)
    flat = event.flatten(x)
    below = jax.nn.log_sigmoid((flat + cell / 2 - location) / scale)
    above = jax.nn.log_sigmoid(-(flat - cell / 2 - location) / scale)
    # F(a) - F(b) = F(a) F(-b) (1 - exp(b - a)): no difference of two numbers that may both be one.
    inside = below + above + jnp.log(-jnp.expm1(-cell / scale))
    outside = jnp.where(flat < lowest + cell / 2, below, above)
    edge = (flat < lowest + cell / 2) | (flat > highest - cell / 2)
    return jnp.where(edge, outside, inside).sum()


def _logistic_draw(event, lattice, params, frame, outputs, key):
    del params
    lowest, highest, cell = lattice
    location, scale = _logistic_parts(event, lattice, frame, outputs)
    noisy = location + scale * jax.random.logistic(key, location.shape, location.dtype)
    index = _nearest((jnp.clip(noisy, lowest, highest) - lowest) / cell)
    return event.unflatten(lowest + cell * index)


def _nearest(index):
    return jnp.round(index)


def _logistic_mean(event, lattice, params, frame, outputs):
    del params
    location, _ = _logistic_parts(event, lattice, frame, outputs)
    return event.unflatten(jnp.clip(location, lattice[0], lattice[1]))
