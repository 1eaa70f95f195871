"""Multilayer perceptrons: a residual denoiser for events of any shape, and a plain map between vectors.

The denoiser takes time and, optionally, a class as a condition:

    h_0 = W x + embed(t) + embed(c),    h_{l+1} = h_l + B silu(A layer_norm(h_l) + E_l silu(embed)),    out = V layer_norm(h_L)

Its last matrix starts at zero, so an untrained denoiser predicts zero noise and the loss starts at one per coordinate. Time is
embedded by sines and cosines of frequencies spread geometrically over [1, 1000] (Vaswani et al. 2017, section 3.5). Events that
are trees or images are flattened: on 8 x 8 images this is the cheaper network, on larger ones `unet` shares its weights.

Arithmetic can be asked for in another precision (`compute=jnp.bfloat16`): parameters, normalisations' statistics, the features
of time (whose highest frequency bfloat16 cannot resolve) and the output keep the event's.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from gensamp.core import Network, Static, bind
from gensamp.nets.condition import told
from gensamp.nets.event import Event
from gensamp.nets.sizes import check_sizes

__all__ = ["feedforward", "mlp", "time_features"]


def mlp(template: Any, *, width: int = 128, depth: int = 3, num_classes: int | None = None, compute: Any = None) -> Network:
    """A denoiser over events of any shape: apply(params, x, t) or apply(params, x, t, condition) -> like x.

    Args:
        template: one event, any pytree of floating-point arrays.
        width: hidden units. depth: residual blocks of two layers each.
        num_classes: given, the network takes a third input, an integer label in [0, num_classes) of shape [].
        compute: dtype of the arithmetic, such as jnp.bfloat16; None: the event's.

    Returns:
        Network over ONE event; t is a scalar in [0, 1]. The output has the dtype of x.

    Raises:
        ValueError: a size is no integer, or not positive; a width of 1.
    """
    check_sizes("mlp", width=(width, 2), depth=(depth, 1), num_classes=(1 if num_classes is None else num_classes, 1))
    event = Event.of(template)
    module = _ResidualMLP(event.size, width, depth, num_classes, event.dtype, compute)
    return Network(bind(_init, Static(module), event), bind(_apply, Static(module), event), num_classes)


def feedforward(
    size_in: int, size_out: int, *, width: int = 128, depth: int = 2, zero: bool = False, dtype: Any = None, compute: Any = None
) -> Network:
    """A map between vectors: apply(params, h [size_in]) -> [size_out], `depth` hidden layers with silu between them.

    Args:
        width, depth: hidden units and layers; depth 0 is one linear map.
        zero: whether the last matrix starts at zero.
        dtype: of parameters and output; jax's default float if None.
        compute: dtype of the arithmetic; None: the same.

    Raises:
        ValueError: a size is no integer, or not positive; the depth is negative.
    """
    check_sizes("feedforward", size_in=(size_in, 1), size_out=(size_out, 1), width=(width, 1), depth=(depth, 0))
    dtype = jnp.dtype(jnp.result_type(float) if dtype is None else dtype)
    module = Static(_Feedforward(size_out, width, depth, zero, dtype, compute))
    return Network(bind(_feedforward_init, module, Static(size_in)), bind(_feedforward_apply, module))


def time_features(t: Float[Array, ""], size: int) -> Float[Array, " size"]:
    """Sines and cosines of t in [0, 1] at frequencies spread geometrically over [1, 1000]; `size` is rounded down to even."""
    half = size // 2
    frequency = jnp.exp(jnp.linspace(0.0, jnp.log(1000.0), half)).astype(t.dtype)
    return jnp.concatenate([jnp.sin(frequency * t), jnp.cos(frequency * t)])


class _ResidualMLP(nn.Module):
    size: int
    width: int
    depth: int
    num_classes: int | None
    dtype: Any
    compute: Any

    @nn.compact
    def __call__(self, x, t, *condition):
        precision = {"dtype": self.compute or self.dtype, "param_dtype": self.dtype}
        embedding = nn.Dense(self.width, **precision)(time_features(t.astype(self.dtype), self.width))
        label = told(condition, "mlp", wanted=self.num_classes is not None, num_classes=self.num_classes)
        if label is not None:
            embedding = embedding + nn.Embed(self.num_classes, self.width, **precision)(label)
        embedding = nn.silu(embedding)
        h = nn.Dense(self.width, **precision)(x)
        for _ in range(self.depth):
            update = nn.Dense(self.width, **precision)(nn.LayerNorm(**precision)(h))
            update = nn.silu(update + nn.Dense(self.width, **precision)(embedding))
            h = h + nn.Dense(self.width, **precision)(update)
        return nn.Dense(self.size, kernel_init=nn.initializers.zeros, **precision)(nn.LayerNorm(**precision)(h))


class _Feedforward(nn.Module):
    features: int
    width: int
    depth: int
    zero: bool
    dtype: Any
    compute: Any

    @nn.compact
    def __call__(self, h):
        precision = {"dtype": self.compute or self.dtype, "param_dtype": self.dtype}
        for _ in range(self.depth):
            h = nn.silu(nn.Dense(self.width, **precision)(h))
        last = nn.initializers.zeros if self.zero else nn.initializers.lecun_normal()
        return nn.Dense(self.features, kernel_init=last, **precision)(h)


def _init(module, event, key):
    condition = () if module.value.num_classes is None else (jnp.int32(0),)
    return module.value.init(key, jnp.zeros(event.size, event.dtype), jnp.zeros((), event.dtype), *condition)["params"]


def _apply(module, event, params, x, t, *condition):
    return event.unflatten(module.value.apply({"params": params}, event.flatten(x), jnp.asarray(t), *condition))


def _feedforward_init(module, size_in, key):
    return module.value.init(key, jnp.zeros(size_in.value, module.value.dtype))["params"]


def _feedforward_apply(module, params, h):
    return module.value.apply({"params": params}, h).astype(module.value.dtype)
