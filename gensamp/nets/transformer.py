"""The diffusion transformer, a denoiser over patches of an image (Peebles and Xie 2023, "Scalable diffusion models with
transformers", adaLN-zero blocks).

An image [height, width, channels] becomes one token per p x p patch, with fixed sines and cosines of its row and column
added. With c = embed(t) + embed(class), every block is

    (s_1, b_1, g_1, s_2, b_2, g_2) = linear(silu(c))
    h <- h + g_1 attention((1 + s_1) norm(h) + b_1),    h <- h + g_2 mlp((1 + s_2) norm(h) + b_2)

with layer norms that have no parameters of their own. The linear maps that make s, b and g start at zero, so every block
starts as the identity; so does the last map, so an untrained denoiser predicts zero. Blocks have one shape, are stacked along
a leading axis and scanned: compilation does not grow with the depth.

Time is multiplied by frequencies from 1 to 1000, as in `nets.mlp`. Attention costs the square of the number of patches: p = 2
at 8 x 8 is 16 tokens, p = 4 at 64 x 64 is 256. `compute=jnp.bfloat16` does the arithmetic in that precision; parameters,
norms' statistics, softmax, features of time and the output keep the event's.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from gensamp.core import Network, Static, as_template, bind
from gensamp.nets.attention import self_attention
from gensamp.nets.condition import told
from gensamp.nets.event import Event
from gensamp.nets.mlp import time_features
from gensamp.nets.sizes import check_sizes

__all__ = ["transformer"]


def transformer(
    template: Any,
    *,
    patch: int = 2,
    width: int = 128,
    depth: int = 4,
    num_heads: int = 4,
    num_classes: int | None = None,
    compute: Any = None,
) -> Network:
    """A diffusion transformer: apply(params, x, t) or apply(params, x, t, condition) -> like x.

    Args:
        template: one image [height, width, channels], both sides divisible by `patch`.
        patch: side p of a patch. width: numbers per token, divisible by 4 and by num_heads. depth: blocks.
        num_classes: given, the network takes a third input, an integer label in [0, num_classes) of shape [].
        compute: dtype of the arithmetic; None: the event's.

    Returns:
        Network over ONE image; t is a scalar in [0, 1]. The output has the dtype of x. The paper's sizes: DiT-S is width 384,
        depth 12, 6 heads; DiT-B 768, 12, 12.

    Raises:
        ValueError: a size is no positive integer, the template is not one image of such sides, or the width does not divide.
    """
    template = as_template(template)
    check_sizes(
        "transformer", patch=(patch, 1), width=(width, 4), depth=(depth, 1), num_heads=(num_heads, 1),
        num_classes=(1 if num_classes is None else num_classes, 1),
    )  # fmt: skip
    shape = getattr(template, "shape", None)
    if shape is None or len(shape) != 3 or shape[0] % patch or shape[1] % patch:
        raise ValueError(
            f"transformer got a template of shape {shape} and patch={patch}; expected one image [height, width, channels] with "
            "sides divisible by the patch (or use mlp)"
        )
    if width % 4 or width % num_heads:
        raise ValueError(
            f"transformer got width={width} and num_heads={num_heads}; expected a width divisible by 4 and by num_heads"
        )
    event = Event.of(template)
    module = _Transformer(shape, patch, width, depth, num_heads, num_classes, event.dtype, compute or event.dtype)
    return Network(bind(_init, Static(module), event), bind(_apply, Static(module)), num_classes)


class _Block(nn.Module):
    width: int
    num_heads: int
    dtype: Any
    compute: Any

    @nn.compact
    def __call__(self, h, condition):
        precision = {"dtype": self.compute, "param_dtype": self.dtype}
        parts = nn.Dense(6 * self.width, kernel_init=nn.initializers.zeros, **precision)(nn.silu(condition))
        scale_1, shift_1, gate_1, scale_2, shift_2, gate_2 = jnp.split(parts[None, :], 6, axis=-1)
        h = h + gate_1 * self_attention(_modulated(h, scale_1, shift_1, self.compute), self.num_heads, self.dtype)
        inner = nn.gelu(nn.Dense(4 * self.width, **precision)(_modulated(h, scale_2, shift_2, self.compute)))
        return h + gate_2 * nn.Dense(self.width, **precision)(inner), None


class _Transformer(nn.Module):
    shape: tuple[int, int, int]
    patch: int
    width: int
    depth: int
    num_heads: int
    num_classes: int | None
    dtype: Any
    compute: Any

    @nn.compact
    def __call__(self, x, t, *condition):
        precision = {"dtype": self.compute, "param_dtype": self.dtype}
        height, width, channels = self.shape
        p, rows, columns = self.patch, height // self.patch, width // self.patch

        embedding = nn.Dense(self.width, **precision)(time_features(t.astype(self.dtype), self.width))
        embedding = nn.Dense(self.width, **precision)(nn.silu(embedding))
        label = told(condition, "transformer", wanted=self.num_classes is not None, num_classes=self.num_classes)
        if label is not None:
            embedding = embedding + nn.Embed(self.num_classes, self.width, **precision)(label)

        patches = x.reshape(rows, p, columns, p, channels).transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1)
        h = nn.Dense(self.width, **precision)(patches) + jnp.asarray(_positions(rows, columns, self.width), self.compute)
        blocks = nn.scan(
            _Block, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast, length=self.depth
        )
        h, _ = blocks(self.width, self.num_heads, self.dtype, self.compute)(h, embedding)

        zero = {"kernel_init": nn.initializers.zeros, **precision}
        scale, shift = jnp.split(nn.Dense(2 * self.width, **zero)(nn.silu(embedding))[None, :], 2, axis=-1)
        out = nn.Dense(p * p * channels, **zero)(_modulated(h, scale, shift, self.compute))
        out = out.reshape(rows, columns, p, p, channels).transpose(0, 2, 1, 3, 4).reshape(self.shape)
        return out.astype(self.dtype)


def _modulated(h, scale, shift, compute):
    """(1 + scale) norm(h) + shift; call it inside a compact module."""
    return (1 + scale) * nn.LayerNorm(use_scale=False, use_bias=False, dtype=compute)(h) + shift


def _positions(rows: int, columns: int, width: int) -> np.ndarray:
    """Fixed features [rows * columns, width]: half of the row, half of the column (Vaswani et al. 2017, section 3.5)."""
    frequency = 10_000.0 ** (-np.arange(width // 4) / (width // 4))

    def of(number):
        angle = np.arange(number)[:, None] * frequency
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)

    row, column = np.repeat(of(rows), columns, axis=0), np.tile(of(columns), (rows, 1))
    return np.concatenate([row, column], axis=-1)


def _init(module, event, key):
    condition = () if module.value.num_classes is None else (jnp.int32(0),)
    return module.value.init(key, event.zeros(), jnp.zeros((), event.dtype), *condition)["params"]


def _apply(module, params, x, t, *condition):
    return module.value.apply({"params": params}, x, jnp.asarray(t), *condition)
