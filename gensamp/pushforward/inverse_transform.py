"""Inverse transform: x = Q(u) with u uniform on [0, 1]^d, the oldest map from noise to a law (Devroye 1986, section 2.2).

In more than one dimension Q is the inverse of the Rosenblatt transform: each coordinate through its quantile function given the
ones before it. The last row of the table: one step, learned by nobody, exact.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gensamp.core import Info, Sampler, Traits, bind
from gensamp.nets.event import Event

__all__ = ["inverse_transform"]


def inverse_transform(quantile: Any, template: Any, log_density: Any = None) -> Sampler:
    """Exact independent draws through a quantile function.

    Args:
        quantile: uniform [d] in (0, 1) -> x, such as `target.truth.quantile`; d is the number of coordinates of the template.
        template: one event.
        log_density: (x) -> scalar, the normalised log density, where known.

    Returns:
        A finite Sampler of one step that evaluates neither a density nor a network.

    Raises:
        ValueError: quantile is None, or does not return an event like the template.
    """
    event = Event.of(template)
    if quantile is None:
        raise ValueError("inverse_transform got quantile=None; expected a function [d] -> x, such as target.truth.quantile")
    quantile = quantile if isinstance(quantile, jax.tree_util.Partial) else bind(quantile)
    got = jax.eval_shape(quantile, jax.ShapeDtypeStruct((event.size,), event.dtype))
    if Event.of(got) != event:
        raise ValueError(f"quantile returned {got} for {event.size} uniforms; expected an event like {event.template}")
    return Sampler(
        start=bind(_uniform, event),
        init=bind(_stand, event),
        step=bind(_push, quantile),
        position=bind(_position),
        log_density=log_density,
        num_steps=1,
        traits=Traits(law="exact"),
    )


def _uniform(event, key):
    # The open interval: a quantile function may be infinite at both ends. Half a float32 spacing below one rounds to one.
    tiny = jnp.finfo(event.dtype).eps / 2
    return jax.random.uniform(key, (event.size,), event.dtype, minval=tiny, maxval=1 - tiny)


def _stand(event, key, z):
    del key
    return z, event.zeros()


def _push(quantile, key, state, index):
    del key, index
    return (state[0], quantile(state[0])), Info.of()


def _position(state):
    return state[1]
