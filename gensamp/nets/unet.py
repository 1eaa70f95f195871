"""A residual U-Net for images of one event [height, width, channels], with time and, optionally, a class.

Residual blocks (group norm, silu, convolution, twice) with the time embedding added between the convolutions, one average
pooling per level on the way down, nearest-neighbour doubling and a skip connection per level on the way up (Ho et al. 2020,
appendix B, after Ronneberger et al. 2015). Levels may add self-attention over their pixels after every block, as Ho et al. do
at 16 x 16: its cost grows with the fourth power of the side, so it belongs to the low resolutions. A class is embedded and
added to the time (Nichol and Dhariwal 2021). Group norm and no batch norm, so an event's output depends on no other event. The
last convolution starts at zero, an untrained denoiser predicts zero noise; so does what attention adds.

3 x 3 convolutions are `nets.convolution`'s, in one of two forms.

Arithmetic can be asked for in another precision (`compute=jnp.bfloat16`): parameters, statistics of norms, attention's softmax,
features of time and the output keep the event's.
"""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from gensamp.core import Network, Static, as_template, bind
from gensamp.nets.attention import self_attention
from gensamp.nets.condition import told
from gensamp.nets.convolution import Convolution, check_form, double, group_norm, halve
from gensamp.nets.event import Event
from gensamp.nets.mlp import time_features
from gensamp.nets.sizes import check_sizes

__all__ = ["unet"]


def unet(
    template: Any,
    *,
    width: int = 32,
    multipliers: tuple[int, ...] = (1, 2),
    num_blocks: int = 1,
    attention: tuple[int, ...] = (),
    num_heads: int = 4,
    num_classes: int | None = None,
    convolution: Literal["patches", "xla"] = "xla",
    compute: Any = None,
) -> Network:
    """A denoiser over images: apply(params, x, t) or apply(params, x, t, condition) -> like x.

    Args:
        template: one image [height, width, channels]; both sides divisible by 2 ** (len(multipliers) - 1).
        width: channels of the finest level. multipliers: channels of each level in units of `width`.
        num_blocks: residual blocks per level, on the way down and on the way up.
        attention: levels whose blocks attend, 0 being the finest: (2, 3) of four levels. num_heads divides their channels.
        num_classes: given, the network takes a third input, an integer label in [0, num_classes) of shape [].
        convolution: "xla" (the compiler's convolution, with gradients that are quick on a CPU) or "patches" (one matrix product
            over shifted copies, for gradients of gradients); see `nets.convolution`.
        compute: dtype of the arithmetic, such as jnp.bfloat16; None: the event's.

    Returns:
        Network over ONE image; t is a scalar in [0, 1]. The output has the dtype of x.

    Raises:
        ValueError: the template is not one [height, width, channels] array, its sides do not divide, a size is no positive
            integer, a level of attention does not exist, or its channels do not divide among the heads.
    """
    template = as_template(template)
    check_sizes(
        "unet", width=(width, 1), multipliers=(multipliers, 1), num_blocks=(num_blocks, 1), num_heads=(num_heads, 1),
        num_classes=(1 if num_classes is None else num_classes, 1),
    )  # fmt: skip
    factor = 2 ** (len(multipliers) - 1)
    shape = getattr(template, "shape", None)
    if shape is None or len(shape) != 3 or shape[0] % factor or shape[1] % factor:
        raise ValueError(
            f"unet got a template of shape {shape}; expected one image [height, width, channels] with sides divisible by "
            f"{factor} (pass fewer multipliers, or use mlp)"
        )
    check_form(convolution, "unet")
    if any(not 0 <= level < len(multipliers) or width * multipliers[level] % num_heads for level in attention):
        raise ValueError(
            f"unet got attention={attention} with {num_heads} heads; expected levels among 0 to {len(multipliers) - 1} whose "
            f"channels, {tuple(width * m for m in multipliers)}, are divisible by num_heads"
        )
    event = Event.of(template)
    module = _UNet(
        shape[2], width, tuple(multipliers), num_blocks, tuple(attention), num_heads, num_classes, convolution, event.dtype,
        compute or event.dtype,
    )  # fmt: skip
    return Network(bind(_init, Static(module), event), bind(_apply, Static(module)), num_classes)


class _Block(nn.Module):
    features: int
    form: str
    num_heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x, embedding):
        precision = {"dtype": x.dtype, "param_dtype": self.dtype}
        h = Convolution(self.features, self.form, param_dtype=self.dtype)(nn.silu(group_norm(x, self.dtype)))
        h = h + nn.Dense(self.features, **precision)(embedding)[None, None, :]
        h = Convolution(self.features, self.form, param_dtype=self.dtype)(nn.silu(group_norm(h, self.dtype)))
        h = h + (x if x.shape[-1] == self.features else nn.Dense(self.features, **precision)(x))
        return _Attention(self.num_heads, self.dtype)(h) if self.num_heads else h


class _Attention(nn.Module):
    """h plus what its pixels tell each other; nothing at first."""

    num_heads: int
    dtype: Any

    @nn.compact
    def __call__(self, h):
        tokens = group_norm(h, self.dtype).reshape(-1, h.shape[-1])
        told = self_attention(tokens, self.num_heads, self.dtype, zero=True)
        return h + told.reshape(h.shape)


class _UNet(nn.Module):
    channels: int
    width: int
    multipliers: tuple[int, ...]
    num_blocks: int
    attention: tuple[int, ...]
    num_heads: int
    num_classes: int | None
    form: str
    dtype: Any
    compute: Any

    @nn.compact
    def __call__(self, x, t, *condition):
        precision = {"dtype": self.compute, "param_dtype": self.dtype}
        size = 4 * self.width
        embedding = nn.Dense(size, **precision)(time_features(t.astype(self.dtype), size))
        label = told(condition, "unet", wanted=self.num_classes is not None, num_classes=self.num_classes)
        if label is not None:
            embedding = embedding + nn.Embed(self.num_classes, size, **precision)(label)
        embedding = nn.silu(embedding)

        def block(level):
            heads = self.num_heads if level in self.attention else 0
            return _Block(self.width * self.multipliers[level], self.form, heads, self.dtype)

        h, skips = Convolution(self.width, self.form, param_dtype=self.dtype)(x.astype(self.compute)), []
        for level in range(len(self.multipliers)):
            if level:
                h = halve(h)
            for _ in range(self.num_blocks):
                h = block(level)(h, embedding)
            skips.append(h)
        for level in reversed(range(len(self.multipliers))):
            h = h if level == len(self.multipliers) - 1 else jnp.concatenate([double(h), skips[level]], axis=-1)
            for _ in range(self.num_blocks):
                h = block(level)(h, embedding)
        h = nn.silu(group_norm(h, self.dtype))
        return Convolution(self.channels, self.form, zero=True, param_dtype=self.dtype)(h).astype(self.dtype)


def _init(module, event, key):
    condition = () if module.value.num_classes is None else (jnp.int32(0),)
    return module.value.init(key, event.zeros(), jnp.zeros((), event.dtype), *condition)["params"]


def _apply(module, params, x, t, *condition):
    return module.value.apply({"params": params}, x, jnp.asarray(t), *condition)
