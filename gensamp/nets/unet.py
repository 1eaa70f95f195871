"""A small residual U-Net for images of one event [height, width, channels], with time and, optionally, a class.

Residual blocks (group norm, silu, convolution, twice) with the time embedding added between the convolutions, one average
pooling per level on the way down, nearest-neighbour doubling and a skip connection per level on the way up (Ho et al. 2020,
appendix B, after Ronneberger et al. 2015, without attention). Group norm and no batch norm, so an event's output depends on no
other event. The last convolution starts at zero: an untrained denoiser predicts zero noise.

A 3 x 3 convolution is written as nine shifted copies side by side and one matrix product: on CPU XLA computes the gradient
of a convolution's kernel slowly, and a matrix product's fast; see `convolution` below for the other form.
"""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from gensamp.core import Network, Static, as_template, bind
from gensamp.nets.event import Event
from gensamp.nets.mlp import time_features

__all__ = ["unet"]


def unet(
    template: Any,
    *,
    width: int = 32,
    multipliers: tuple[int, ...] = (1, 2),
    num_blocks: int = 1,
    num_classes: int | None = None,
    convolution: Literal["patches", "xla"] = "patches",
) -> Network:
    """A denoiser over images: apply(params, x, t) or apply(params, x, t, condition) -> like x.

    Args:
        template: one image [height, width, channels]; both sides divisible by 2 ** (len(multipliers) - 1).
        width: channels of the finest level. multipliers: channels of each level in units of `width`.
        num_blocks: residual blocks per level, on the way down and on the way up.
        num_classes: given, the network takes a third input, an integer label in [0, num_classes) of shape [].
        convolution: "patches" (one matrix product over shifted copies: trains faster on CPU, holds nine copies of the
            activations) or "xla" (the compiler's convolution).

    Returns:
        Network over ONE image; t is a scalar in [0, 1]. The output has the dtype of x.

    Raises:
        ValueError: the template is not one [height, width, channels] array, or its sides do not divide.
    """
    template = as_template(template)
    factor = 2 ** (len(multipliers) - 1)
    shape = getattr(template, "shape", None)
    if shape is None or len(shape) != 3 or shape[0] % factor or shape[1] % factor:
        raise ValueError(
            f"unet got a template of shape {shape}; expected one image [height, width, channels] with sides divisible by "
            f"{factor} (pass fewer multipliers, or use mlp)"
        )
    if convolution not in ("patches", "xla"):
        raise ValueError(f"unet got convolution={convolution!r}; expected 'patches' or 'xla'")
    module = Static(_UNet(shape[2], width, tuple(multipliers), num_blocks, num_classes, convolution))
    return Network(bind(_init, module, Event.of(template)), bind(_apply, module))


class _Convolution(nn.Module):
    """A 3 x 3 convolution with zero padding of one image [height, width, channels]."""

    features: int
    form: str
    zero: bool = False

    @nn.compact
    def __call__(self, x):
        initial = nn.initializers.zeros if self.zero else nn.initializers.lecun_normal()
        if self.form == "xla":
            return nn.Conv(self.features, (3, 3), dtype=x.dtype, param_dtype=x.dtype, kernel_init=initial)(x)
        height, width, _ = x.shape
        padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
        patches = [padded[i : i + height, j : j + width] for i in range(3) for j in range(3)]
        stacked = jnp.concatenate(patches, axis=-1)
        return nn.Dense(self.features, dtype=x.dtype, param_dtype=x.dtype, kernel_init=initial)(stacked)


class _Block(nn.Module):
    features: int
    form: str

    @nn.compact
    def __call__(self, x, embedding):
        h = _Convolution(self.features, self.form)(nn.silu(_group_norm(x)))
        h = h + nn.Dense(self.features, dtype=x.dtype, param_dtype=x.dtype)(embedding)[None, None, :]
        h = _Convolution(self.features, self.form)(nn.silu(_group_norm(h)))
        return h + (x if x.shape[-1] == self.features else nn.Dense(self.features, dtype=x.dtype, param_dtype=x.dtype)(x))


class _UNet(nn.Module):
    channels: int
    width: int
    multipliers: tuple[int, ...]
    num_blocks: int
    num_classes: int | None
    form: str

    @nn.compact
    def __call__(self, x, t, *condition):
        size = 4 * self.width
        embedding = nn.Dense(size, dtype=x.dtype, param_dtype=x.dtype)(time_features(t.astype(x.dtype), size))
        if self.num_classes is not None:
            embedding = embedding + nn.Embed(self.num_classes, size, dtype=x.dtype, param_dtype=x.dtype)(condition[0])
        embedding = nn.silu(embedding)

        h, skips = _Convolution(self.width, self.form)(x), []
        for level, multiplier in enumerate(self.multipliers):
            if level:
                h = _halve(h)
            for _ in range(self.num_blocks):
                h = _Block(self.width * multiplier, self.form)(h, embedding)
            skips.append(h)
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            h = h if level == len(self.multipliers) - 1 else jnp.concatenate([_double(h), skips[level]], axis=-1)
            for _ in range(self.num_blocks):
                h = _Block(self.width * multiplier, self.form)(h, embedding)
        return _Convolution(self.channels, self.form, zero=True)(nn.silu(_group_norm(h)))


def _group_norm(x):
    # A leading axis of one event, because the layer takes its first axis for the batch.
    groups = next(g for g in (8, 4, 2, 1) if x.shape[-1] % g == 0)
    return nn.GroupNorm(num_groups=groups, dtype=x.dtype, param_dtype=x.dtype)(x[None])[0]


def _halve(x):
    height, width, channels = x.shape
    return x.reshape(height // 2, 2, width // 2, 2, channels).mean((1, 3))


def _double(x):
    return jnp.repeat(jnp.repeat(x, 2, axis=0), 2, axis=1)


def _init(module, event, key):
    condition = () if module.value.num_classes is None else (jnp.int32(0),)
    return module.value.init(key, event.zeros(), jnp.zeros((), event.dtype), *condition)["params"]


def _apply(module, params, x, t, *condition):
    return module.value.apply({"params": params}, x, jnp.asarray(t), *condition)
