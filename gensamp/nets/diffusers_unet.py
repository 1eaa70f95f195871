"""The U-Net of the diffusers library (`UNet2DModel`), layer by layer, so that weights pass between that library and this one.

It differs from `unet` in more than names: a skip from every block and not from every level, one block more on the way up, a
middle of two blocks with attention between them, strided convolutions on the way down and convolutions after doubling, and a
time of 0 to 999 (Ho et al. 2020, appendix B, as diffusers has it). Twice the work of `unet` at the same width: for what other
people trained, and for what other people shall load. `gensamp.weights` reads and writes the files.

Parameters carry the names of that library's tensors: the path of a leaf, joined by dots, is the name of its tensor but for the
last word ("kernel", "scale" and "embedding" are "weight" there), and convolutions are [height, width, in, out] here and
[out, in, height, width] there. A 3 x 3 convolution is computed as in `convolution`: nine shifted copies and one matrix
product, or the compiler's own; the parameters are the same for both.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from gensamp.core import Network, Static, as_template, bind
from gensamp.nets.attention import attend
from gensamp.nets.condition import told
from gensamp.nets.convolution import check_form, convolve, double, halve
from gensamp.nets.diffusers_layout import Layout
from gensamp.nets.event import Event
from gensamp.noise import FLOOR, Noise

__all__ = ["diffusers_unet", "layout_of"]

_ACTIVATIONS: Mapping[str, Callable] = {
    "silu": nn.silu, "swish": nn.silu, "relu": nn.relu, "mish": jax.nn.mish, "gelu": partial(nn.gelu, approximate=False),
}  # fmt: skip


def diffusers_unet(
    template: Any,
    *,
    clock: Noise | tuple[float | int, float | int] = (1000, -1),
    convolution: Literal["patches", "xla"] = "xla",
    compute: Any = None,
    **config: Any,
) -> Network:
    """A denoiser over images in the layout of diffusers: apply(params, x, t) or apply(params, x, t, condition) -> like x.

    Args:
        template: one image [height, width, channels]; both sides divisible by 2 ** (levels - 1).
        clock: what the network is told for a time t in [0, 1]. A pair (a, b): a t + b, but never less than 0; with the
            default, time k / 1000 is number k - 1 of a process of 1000 steps. A process: its sigma(t) / alpha(t), for networks
            with time_embedding_type="fourier".
        convolution: "xla" (fastest, see `nets.convolution`) or "patches" (for gradients of gradients).
        compute: dtype of the arithmetic, such as jnp.bfloat16; None: the event's.
        config: see `diffusers_layout.Layout`; sizes and channels come from the template.

    Returns:
        Network over ONE image, without dropout. The condition is an integer label in [0, num_class_embeds) of shape [], a
        number of shape [] (class_embed_type="timestep"), or a vector of the embedding's size ("identity"). Its last
        convolution starts at zero, and so does what attention adds.

    Raises:
        ValueError: the template is not one [height, width, channels] array, its sides do not divide, or the layout is not
            covered.
    """
    template = as_template(template)
    shape = getattr(template, "shape", None)
    if shape is None or len(shape) != 3:
        raise ValueError(f"diffusers_unet got a template of shape {shape}; expected one image [height, width, channels]")
    size = shape[0] if shape[0] == shape[1] else shape[:2]
    layout = Layout.of(config | {"sample_size": size, "in_channels": shape[2], "out_channels": shape[2]})
    factor = 2 ** (len(layout.block_out_channels) - 1)
    if shape[0] % factor or shape[1] % factor:
        raise ValueError(
            f"diffusers_unet got an image of {shape[0]} x {shape[1]} for {len(layout.block_out_channels)} levels; expected "
            f"sides divisible by {factor}"
        )
    check_form(convolution, "diffusers_unet")
    event = Event.of(template)
    module = _UNet(layout, convolution, event.dtype, compute or event.dtype)
    told = clock if isinstance(clock, Noise) else Static((float(clock[0]), float(clock[1])))
    return Network(bind(_init, Static(module), event), bind(_apply, Static(module), told), _num_classes(layout))


def layout_of(network: Network) -> tuple[Layout, Any]:
    """The layout of a network that `diffusers_unet` made, and its clock.

    Raises:
        TypeError: another network.
    """
    function = getattr(network.apply, "func", None)
    if function is not _apply:
        raise TypeError(f"the network's apply is {function}; expected a network that nets.diffusers_unet made")
    module, clock = network.apply.args
    return module.value.layout, clock.value if isinstance(clock, Static) else clock


class _Convolution(nn.Module):
    """A convolution of one image; padding is (before, after) of both sides."""

    features: int
    form: str
    dtype: Any
    size: int = 3
    stride: int = 1
    padding: tuple[int, int] = (1, 1)
    zero: bool = False

    @nn.compact
    def __call__(self, x):
        initial = nn.initializers.zeros if self.zero else nn.initializers.lecun_normal()
        kernel = self.param("kernel", initial, (self.size, self.size, x.shape[-1], self.features), self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.dtype)
        kernel, bias = kernel.astype(x.dtype), bias.astype(x.dtype)
        if self.form == "xla":
            y = convolve(x[None], kernel, (self.stride,) * 2, (self.padding, self.padding))[0]
        else:
            x = jnp.pad(x, (self.padding, self.padding, (0, 0)))
            height, width = ((side - self.size) // self.stride + 1 for side in x.shape[:2])
            rows, columns = self.stride * (height - 1) + 1, self.stride * (width - 1) + 1
            places = [(i, j) for i in range(self.size) for j in range(self.size)]
            patches = [x[i : i + rows : self.stride, j : j + columns : self.stride] for i, j in places]
            y = jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, self.features)
        return y + bias[None, None, :]


class _Resnet(nn.Module):
    """A residual block; `resample` is applied to both of its branches."""

    features: int
    layout: Layout
    form: str
    dtype: Any
    scale: float = 1.0
    resample: Callable | None = None

    @nn.compact
    def __call__(self, x, embedding):
        act = _ACTIVATIONS[self.layout.act_fn]
        shifts = self.layout.resnet_time_scale_shift == "scale_shift"
        h = act(_norm(x, self.layout.norm_num_groups, self.layout.norm_eps, self.dtype, "norm1"))
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = _Convolution(self.features, self.form, self.dtype, name="conv1")(h)
        time = _dense((2 if shifts else 1) * self.features, x.dtype, self.dtype, "time_emb_proj")(act(embedding))[None, None, :]
        h = h if shifts else h + time
        h = _norm(h, self.layout.norm_num_groups, self.layout.norm_eps, self.dtype, "norm2")
        if shifts:
            scale, shift = jnp.split(time, 2, axis=-1)
            h = h * (1 + scale) + shift
        h = _Convolution(self.features, self.form, self.dtype, name="conv2")(act(h))
        if x.shape[-1] != self.features:
            x = _Convolution(self.features, "patches", self.dtype, size=1, padding=(0, 0), name="conv_shortcut")(x)
        return (x + h) / self.scale


class _Attention(nn.Module):
    """x plus what its pixels tell each other; groups None: without a norm before."""

    layout: Layout
    groups: int | None
    dtype: Any
    scale: float = 1.0

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        per_head = self.layout.attention_head_dim or channels
        heads = channels // per_head
        h = x if self.groups is None else _norm(x, self.groups, self.layout.norm_eps, self.dtype, "group_norm")
        tokens = h.reshape(-1, channels)
        query, key, value = (
            _dense(heads * per_head, x.dtype, self.dtype, name)(tokens).reshape(-1, heads, per_head)
            for name in ("to_q", "to_k", "to_v")
        )
        told = attend(query, key, value).reshape(-1, heads * per_head)
        told = _dense(channels, x.dtype, self.dtype, "to_out.0", zero=True)(told)
        return (x + told.reshape(x.shape)) / self.scale


class _TimeEmbedding(nn.Module):
    """Two layers over features of a number."""

    size: int
    dtype: Any

    @nn.compact
    def __call__(self, features):
        h = nn.silu(_dense(self.size, features.dtype, self.dtype, "linear_1")(features))
        return _dense(self.size, features.dtype, self.dtype, "linear_2")(h)


class _FourierFeatures(nn.Module):
    """Sines and cosines of log(time) at random frequencies, which are not trained."""

    size: int
    dtype: Any

    @nn.compact
    def __call__(self, time):
        frequencies = jax.lax.stop_gradient(self.param("weight", nn.initializers.normal(16.0), (self.size,), self.dtype))
        angle = 2 * jnp.pi * jnp.log(time) * frequencies
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)])


class _UNet(nn.Module):
    layout: Layout
    form: str
    dtype: Any
    compute: Any

    @nn.compact
    def __call__(self, x, time, *condition):
        layout, channels = self.layout, self.layout.block_out_channels
        last = len(channels) - 1
        embedding = self._embed(time, condition)

        def resnet(name, features, **options):
            block = _Resnet(features, layout, self.form, self.dtype, name=name, **options)
            return lambda h: block(h, embedding)

        def attention(name, groups=layout.norm_num_groups, **options):
            return _Attention(layout, groups, self.dtype, name=name, **options)

        x = x.astype(self.compute)
        h = _Convolution(channels[0], self.form, self.dtype, name="conv_in")(2 * x - 1 if layout.center_input_sample else x)
        skips = [h]
        for i, kind in enumerate(layout.down_block_types):
            name, attends = f"down_blocks.{i}", kind == "AttnDownBlock2D"
            for j in range(layout.layers_per_block):
                h = resnet(f"{name}.resnets.{j}", channels[i])(h)
                h = attention(f"{name}.attentions.{j}")(h) if attends else h
                skips.append(h)
            if i < last:
                if attends and layout.downsample_type == "resnet":
                    h = resnet(f"{name}.downsamplers.0", channels[i], resample=halve)(h)
                else:
                    padding = (layout.downsample_padding, 1)
                    down = {"stride": 2, "padding": padding, "name": f"{name}.downsamplers.0.conv"}
                    h = _Convolution(channels[i], self.form, self.dtype, **down)(h)
                skips.append(h)
        if layout.mid_block_type is not None:
            scale = float(layout.mid_block_scale_factor)
            default = layout.norm_num_groups if layout.resnet_time_scale_shift == "default" else None
            h = resnet("mid_block.resnets.0", channels[-1], scale=scale)(h)
            if layout.add_attention:
                h = attention("mid_block.attentions.0", layout.attn_norm_num_groups or default, scale=scale)(h)
            h = resnet("mid_block.resnets.1", channels[-1], scale=scale)(h)
        for i, kind in enumerate(layout.up_block_types):
            name, attends, features = f"up_blocks.{i}", kind == "AttnUpBlock2D", channels[last - i]
            for j in range(layout.layers_per_block + 1):
                h = resnet(f"{name}.resnets.{j}", features)(jnp.concatenate([h, skips.pop()], axis=-1))
                h = attention(f"{name}.attentions.{j}")(h) if attends else h
            if i < last and attends and layout.upsample_type == "resnet":
                h = resnet(f"{name}.upsamplers.0", features, resample=double)(h)
            elif i < last:
                h = _Convolution(features, self.form, self.dtype, name=f"{name}.upsamplers.0.conv")(double(h))
        h = nn.silu(_norm(h, layout.norm_num_groups, layout.norm_eps, self.dtype, "conv_norm_out"))
        h = _Convolution(layout.out_channels, self.form, self.dtype, zero=True, name="conv_out")(h).astype(self.dtype)
        return h / time if layout.time_embedding_type == "fourier" else h

    def _embed(self, time, condition):
        """The embedding of time and class, [embedding_size]."""
        layout, size = self.layout, self.layout.embedding_size
        width = layout.block_out_channels[0]
        if layout.time_embedding_type == "fourier":
            features = _FourierFeatures(width, self.dtype, name="time_proj")
        else:
            features = partial(_sines, layout, width)
        embedding = _TimeEmbedding(size, self.dtype, name="time_embedding")(features(time).astype(self.compute))
        seen = told(condition, "diffusers_unet", wanted=layout.conditional, num_classes=_num_classes(layout))
        if seen is None:
            return embedding
        if layout.class_embed_type == "timestep":
            number = jnp.asarray(seen, self.dtype)
            seen = _TimeEmbedding(size, self.dtype, name="class_embedding")(features(number).astype(self.compute))
        elif layout.class_embed_type != "identity":
            seen = nn.Embed(layout.num_class_embeds, size, param_dtype=self.dtype, name="class_embedding")(seen)
        return embedding + seen.astype(self.compute)


def _num_classes(layout):
    """How many labels there are, or None where the condition is none of a number of them."""
    return layout.num_class_embeds if layout.conditional and layout.class_embed_type is None else None


def _norm(x, groups, epsilon, dtype, name):
    options = {"dtype": x.dtype, "param_dtype": dtype, "use_fast_variance": False, "name": name}
    # A leading axis of one event, because the layer takes its first axis for the batch.
    return nn.GroupNorm(num_groups=groups, epsilon=epsilon, **options)(x[None])[0]


def _dense(size, compute, dtype, name, zero=False):
    initial = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
    return nn.Dense(size, dtype=compute, param_dtype=dtype, kernel_init=initial, name=name)


def _sines(layout, width, time):
    """Features of time at frequencies from 1 down to about 1 / 10000, [width]."""
    half = width // 2
    frequency = jnp.exp(-jnp.log(10000.0) * jnp.arange(half) / (half - layout.freq_shift)).astype(time.dtype)
    sine, cosine = jnp.sin(time * frequency), jnp.cos(time * frequency)
    parts = [cosine, sine] if layout.flip_sin_to_cos else [sine, cosine]
    return jnp.concatenate([*parts, jnp.zeros(width % 2, time.dtype)])


def _init(module, event, key):
    layout, condition = module.value.layout, ()
    if layout.class_embed_type == "identity":
        condition = (jnp.zeros(layout.embedding_size, event.dtype),)
    elif layout.conditional:
        condition = (jnp.int32(0),)
    return module.value.init(key, event.zeros(), jnp.ones((), event.dtype), *condition)["params"]


def _apply(module, clock, params, x, t, *condition):
    t = jnp.asarray(t, x.dtype)
    if isinstance(clock, Static):
        time = jnp.maximum(clock.value[0] * t + clock.value[1], 0)
    else:
        time = clock.sigma(t) / jnp.maximum(clock.alpha(t), FLOOR)
    return module.value.apply({"params": params}, x, time.astype(x.dtype), *condition)
