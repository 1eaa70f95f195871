"""Targets known through data only: real events, some kept aside to judge by.

`data` is what a model may learn from; `truth.reference` holds events that no model has seen, and every distance is measured to
those. The split is a fixed permutation, the same on every machine.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gensamp.core import Target, Truth
from gensamp.targets.mixture import float_dtype

__all__ = ["digits", "digits_labelled"]

_HELD_OUT = 450


def digits(*, dtype: Any = None) -> Target:
    """Handwritten digits, 8 x 8 grey levels scaled to [-1, 1], one event [8, 8, 1]: 1,347 to learn from and 450 held out.

    The grey levels are 17 equally spaced values, and pixels in the corners hardly vary: a density fitted to such data as it
    is has no upper bound, so add noise first (one level is 1/8). Labels: `digits_labelled`.

    Args:
        dtype: of events; jax's default float if None.

    Source: Alpaydin and Kaynak 1998, "Optical recognition of handwritten digits", UCI; the copy shipped with scikit-learn.
    """
    train, _ = digits_labelled("train", dtype=dtype)
    held_out, _ = digits_labelled("held_out", dtype=dtype)
    return Target.from_data(
        train, name="digits", truth=Truth(reference=held_out, source=f"{_HELD_OUT} held-out images, never in `data`")
    )


def digits_labelled(split: str = "train", *, dtype: Any = None) -> tuple[Float[Array, "events 8 8 1"], Int[Array, " events"]]:
    """The images of one split with their labels 0 to 9, in the order of `digits().data` or `digits().truth.reference`.

    Args:
        split: "train" or "held_out".
        dtype: of the images; jax's default float if None.

    Returns:
        images [events, 8, 8, 1] in [-1, 1] and labels [events], int32.

    Raises:
        ValueError: an unknown split.
    """
    if split not in ("train", "held_out"):
        raise ValueError(f"digits_labelled got split={split!r}; expected 'train' or 'held_out'")
    from sklearn.datasets import load_digits

    stored = load_digits()
    # An affine order, coprime to the count, needs no generator whose stream a later release may change.
    order = (np.arange(len(stored.images)) * 1009 + 7) % len(stored.images)
    chosen = order[:-_HELD_OUT] if split == "train" else order[-_HELD_OUT:]
    images = stored.images[chosen][..., None] / 8 - 1
    return jnp.asarray(images, float_dtype(dtype)), jnp.asarray(stored.target[chosen], jnp.int32)
