"""Conditional models: a law p(x | c) for every condition c, such as a class label, in one set of parameters.

Trained on pairs (events, conditions), a model's sampler takes the condition as a second argument, and a fitted one is a
function from the condition to a Sampler (`conditional`), the form in which `sample(each=...)` takes it. What a network does
with c is its own affair; one that knows of none is told a class by the indicator vector of its label, beside its input
(Mirza and Osindero 2014, "Conditional generative adversarial nets").
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from gensamp.core import Model, Network, Static, bind
from gensamp.nets.condition import told

__all__ = ["conditional", "indicator", "labelled"]


def conditional(model: Model, params: Any) -> Partial:
    """(condition) -> Sampler for a model that was built with `conditional=True` or `num_classes=`.

    Args:
        model: its batches are pairs (x, condition). params: as `fit` returned them.

    Returns:
        A Partial with the parameters as leaves. `sample(key, conditional(model, params), n, each=labels)` draws every label in
        one program, labels [n] being one condition per draw.
    """
    return bind(_sampler, model.sampler, params)


def labelled(network: Network, num_classes: int) -> Network:
    """A network of a vector and a label from one of a longer vector.

    Args:
        network: apply(params, h [size + num_classes]).
        num_classes: labels are integers in [0, num_classes), of shape [].

    Returns:
        Network: apply(params, h [size], label), which appends the label's indicator vector to h.
    """
    return Network(network.init, bind(_with_indicator, network.apply, Static(num_classes)), num_classes)


def indicator(label: Any, num_classes: int, dtype: Any) -> jax.Array:
    """The indicator vector of a label as `told` returns it, [num_classes]; NaN for a number that is none, and not zeros."""
    return jnp.where(label < num_classes, jax.nn.one_hot(label, num_classes, dtype=dtype), jnp.nan)


def _sampler(make, params, condition):
    return make(params, condition)


def _with_indicator(apply, num_classes, params, h, *condition):
    label = told(condition, "a network of labels", num_classes=num_classes.value)
    return apply(params, jnp.concatenate([h, indicator(label, num_classes.value, h.dtype)]))
