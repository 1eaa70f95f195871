"""A fitted conditional model as a function from the condition to a Sampler, the form in which `sample(each=...)` takes it."""

from typing import Any

from jax.tree_util import Partial

from gensamp.core import Model, bind

__all__ = ["conditional"]


def conditional(model: Model, params: Any) -> Partial:
    """(condition) -> Sampler for a model that was built with `conditional=True`.

    Args:
        model: its batches are pairs (x, condition). params: as `fit` returned them.

    Returns:
        A Partial with the parameters as leaves. `sample(key, conditional(model, params), n, each=labels)` draws every label in
        one program, labels [n] being one condition per draw.
    """
    return bind(_sampler, model.sampler, params)


def _sampler(make, params, condition):
    return make(params, condition)
