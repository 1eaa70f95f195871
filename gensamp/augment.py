"""Augmentation: random changes of an event that leave what it shows as it is, made anew each time it is trained on.

    augment: (key, event) -> event of the same shapes and dtypes,    fit(key, model, data, augment=chain(flip(), shift(2)))

An augmentation is a pure function of one event; `fit` maps it over the batch on the device, inside the compiled step, with keys
that follow from the key of the fit. Of data that are a pair (events, conditions) it sees the events alone, and it never touches
those held out for validation. Any function of this signature will do; those made here act on every leaf of an event alike, with
the same flip or shift for all of them. What is learned is then the law of the augmented events: a mirrored "2" is no "2".

Data that are a tuple or list of two are taken for such a pair, so the parts of an event belong into a dict. Where both are
floating-point numbers of one shape, as the pairs that `reflow` learns from, nobody can tell, and `fit` refuses to augment them.
"""

from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from gensamp.core import Static, bind

__all__ = ["chain", "dequantise", "flip", "shift"]


def flip(*, axis: Any = 1, probability: Any = 0.5) -> Partial:
    """Mirror an event along one axis, now and then.

    Args:
        axis: of an event without its batch: 1 swaps left and right of images [height, width, channels], 0 top and bottom.
        probability: of being mirrored.

    Raises:
        ValueError: the axis is no integer, or the probability not in [0, 1].
    """
    if not isinstance(axis, Integral):
        raise ValueError(f"flip got axis={axis!r}; expected an integer")
    if not isinstance(probability, int | float | np.number | np.ndarray | jax.Array) or not 0 <= probability <= 1:
        raise ValueError(f"flip got probability={probability!r}; expected a number in [0, 1]")
    return bind(_flip, Static(int(axis)), jnp.float32(probability))


def shift(pixels: Any, *, fill: float | None = None) -> Partial:
    """Move images by up to `pixels` along both sides: a random crop, of the image's own size, from the padded image.

    Args:
        pixels: the largest move; all moves from -pixels to pixels are equally likely, along height and width apart.
        fill: what moves in; None repeats the border.

    Raises:
        ValueError: pixels is negative or no integer.
    """
    if not isinstance(pixels, Integral) or pixels < 0:
        raise ValueError(f"shift got pixels={pixels!r}; expected an integer of at least 0")
    return bind(_shift, Static(int(pixels)), None if fill is None else jnp.float32(fill))


def dequantise(cell: Any) -> Partial:
    """Add noise that is uniform in a cell: events on a lattice become events with a density.

    Args:
        cell: the distance of neighbouring values, 2/255 for images of 256 levels scaled to [-1, 1].

    Raises:
        ValueError: the cell is not positive.
    """
    if not isinstance(cell, int | float | np.number | np.ndarray | jax.Array) or not cell > 0:
        raise ValueError(f"dequantise got cell={cell!r}; expected the positive distance of neighbouring values")
    return bind(_dequantise, jnp.float32(cell))


def chain(*augmentations: Any) -> Partial:
    """One augmentation after another, each with a key of its own.

    Args:
        augmentations: functions (key, event) -> event; none at all changes nothing.

    Raises:
        TypeError: one is not callable.
    """
    for one in augmentations:
        if not callable(one):
            raise TypeError(f"chain got {one!r}; expected functions (key, event) -> event, such as augment.flip()")
    return bind(_chain, tuple(one if isinstance(one, Partial) else Partial(one) for one in augmentations))


def _flip(axis, probability, key, event):
    for leaf in jax.tree.leaves(event):
        if not -leaf.ndim <= axis.value < leaf.ndim:
            raise ValueError(f"flip got an event of shape {list(leaf.shape)}; expected an axis {axis.value} to mirror along")
    mirrored = jax.random.bernoulli(key, probability)
    return jax.tree.map(lambda a: jnp.where(mirrored, jnp.flip(a, axis.value), a), event)


def _shift(pixels, fill, key, event):
    offsets = jax.random.randint(key, (2,), 0, 2 * pixels.value + 1)

    def move(a):
        if a.ndim < 2:
            raise ValueError(f"shift got an event of shape {list(a.shape)}; expected images [height, width, ...]")
        widths = [(pixels.value, pixels.value)] * 2 + [(0, 0)] * (a.ndim - 2)
        padded = jnp.pad(a, widths, mode="edge") if fill is None else jnp.pad(a, widths, constant_values=fill.astype(a.dtype))
        return jax.lax.dynamic_slice(padded, (*offsets, *[0] * (a.ndim - 2)), a.shape)

    return jax.tree.map(move, event)


def _dequantise(cell, key, event):
    leaves, structure = jax.tree.flatten(event)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        a + cell.astype(a.dtype) * jax.random.uniform(key, a.shape, a.dtype, minval=-0.5, maxval=0.5)
        for key, a in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, noisy)


def _chain(augmentations, key, event):
    for one, own in zip(augmentations, jax.random.split(key, len(augmentations)), strict=True) if augmentations else ():
        event = one(own, event)
    return event
