"""A normal law to start a path from: what `geometric` and nested sampling ask for as base or prior.

    base(x) = prod_j N(x_j; mean_j, scale_j^2),

normalised and with exact draws, for events of any structure. A base should be at least as wide as the target: where it has no
mass, no walk along the path begins.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gensamp.core import PyTree, Target, Truth, as_template, bind

__all__ = ["normal_base"]


def normal_base(template: PyTree, *, mean: Any = 0.0, scale: Any = 1.0) -> Target:
    """Independent normals over the coordinates of one event.

    Args:
        template: one event: arrays or `ShapeDtypeStruct`s.
        mean, scale: a number, or a tree like one event.

    Returns:
        Target: normalised, with exact draws.

    Raises:
        ValueError: a scale that is not positive and finite.
    """
    template = as_template(template)
    mean, scale = (_like(template, value) for value in (mean, scale))
    for leaf in jax.tree.leaves(scale):
        if not isinstance(leaf, jax.core.Tracer) and not ((np.asarray(leaf) > 0) & np.isfinite(leaf)).all():
            raise ValueError(f"normal_base got scale {np.asarray(leaf)}; expected positive finite numbers")
    return Target.from_log_density(
        bind(_log_density, mean, scale), template, name="normal", exact=bind(_draw, mean, scale),
        truth=Truth(log_normaliser=(0.0, 0.0), source="closed form"),
    )  # fmt: skip


def _like(template, value):
    """`value` as a tree of arrays with the template's shapes and dtypes."""
    if jax.tree.structure(value) != jax.tree.structure(template):
        value = jax.tree.map(lambda _: value, template)
    return jax.tree.map(lambda a, v: jnp.broadcast_to(jnp.asarray(v, a.dtype), a.shape), template, value)


def _log_density(mean, scale, x):
    def of(x, m, s):
        return jnp.sum(-0.5 * ((x - m) / s) ** 2 - jnp.log(s) - 0.5 * math.log(2 * math.pi))

    return jnp.sum(jnp.stack(jax.tree.leaves(jax.tree.map(of, x, mean, scale))))


def _draw(mean, scale, key):
    leaves, structure = jax.tree.flatten(mean)
    keys = jax.random.split(key, len(leaves))
    noise = [jax.random.normal(k, a.shape, a.dtype) for k, a in zip(keys, leaves, strict=True)]
    return jax.tree.map(lambda z, m, s: m + s * z, jax.tree.unflatten(structure, noise), mean, scale)
