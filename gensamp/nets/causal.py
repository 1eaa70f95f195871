"""A causal transformer that remembers: one function for a whole sequence and for its next token.

A token attends to itself and to those before it (Vaswani et al. 2017, section 3.2; layer normalisation first, as Radford et al.
2019). Keys and values of the tokens so far are held in a cache [layers, 2, length, width], so

    decode(params, cache, tokens [n, c], index) -> (outputs [n, k], cache)

reads n tokens that stand at index, ..., index + n - 1 and attends to all in the cache up to each of them. A sequence is n =
length tokens on an empty cache; its next token is n = 1, which costs a length-th of that.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gensamp.core import Static, bind
from gensamp.nets.attention import attend

__all__ = ["Decoder", "causal_decoder"]


class Decoder(NamedTuple):
    """init: (key) -> params. empty: () -> cache. decode: (params, cache, tokens [n, c], index) -> (outputs [n, k], cache)."""

    init: Any
    empty: Any
    decode: Any


def causal_decoder(
    length: int, channels: int, num_outputs: int, *, width: int = 64, depth: int = 2, num_heads: int = 4, dtype: Any = None
) -> Decoder:
    """A causal transformer over sequences of `length` tokens of `channels` numbers.

    Output i depends on the tokens up to and with i. The last matrix starts at zero, and with it every output.

    Args:
        length: the longest sequence. channels: numbers per token. num_outputs: numbers per output.
        width, depth, num_heads: of the residual stream, blocks, and heads of each.
        dtype: of the parameters; JAX's default float if None.

    Raises:
        ValueError: a number is no positive integer, or the heads do not divide the width.
    """
    sizes = (length, channels, num_outputs, width, depth, num_heads)
    if not all(isinstance(size, int) and size >= 1 for size in sizes) or width % num_heads:
        raise ValueError(
            f"causal_decoder got length={length}, channels={channels}, num_outputs={num_outputs}, width={width}, "
            f"depth={depth}, num_heads={num_heads}; expected positive integers and a width that the heads divide"
        )
    dtype = jnp.dtype(jnp.result_type(float) if dtype is None else dtype)
    module = Static(_Decoder(length, channels, num_outputs, width, depth, num_heads))
    return Decoder(bind(_init, module, Static(dtype)), bind(_empty, module, Static(dtype)), bind(_decode, module))


class _Decoder(nn.Module):
    length: int
    channels: int
    num_outputs: int
    width: int
    depth: int
    num_heads: int

    @nn.compact
    def __call__(self, cache, tokens, index):
        precision = {"dtype": tokens.dtype, "param_dtype": tokens.dtype}
        places = self.param("places", nn.initializers.normal(0.5), (self.length, self.width), tokens.dtype)
        number = tokens.shape[0]
        h = nn.Dense(self.width, **precision)(tokens) + jax.lax.dynamic_slice_in_dim(places, index, number)
        seen = jnp.arange(self.length)[None, :] <= (index + jnp.arange(number))[:, None]
        for layer in range(self.depth):
            query, key, value = jnp.split(nn.Dense(3 * self.width, **precision)(nn.LayerNorm(**precision)(h)), 3, axis=-1)
            place = [jnp.asarray(i, jnp.int32) for i in (layer, 0, index, 0)]
            cache = jax.lax.dynamic_update_slice(cache, jnp.stack([key, value])[None], place)
            told = attend(*(a.reshape(len(a), self.num_heads, -1) for a in (query, *cache[layer])), seen)
            h = h + nn.Dense(self.width, **precision)(told.reshape(query.shape))
            inner = nn.gelu(nn.Dense(4 * self.width, **precision)(nn.LayerNorm(**precision)(h)))
            h = h + nn.Dense(self.width, **precision)(inner)
        last = nn.Dense(self.num_outputs, kernel_init=nn.initializers.zeros, **precision)
        return last(nn.LayerNorm(**precision)(h)), cache


def _init(module, dtype, key):
    tokens = jnp.zeros((1, module.value.channels), dtype.value)
    return module.value.init(key, _empty(module, dtype), tokens, jnp.int32(0))["params"]


def _empty(module, dtype):
    return jnp.zeros((module.value.depth, 2, module.value.length, module.value.width), dtype.value)


def _decode(module, params, cache: Float[Array, "l 2 t w"], tokens: Float[Array, "n c"], index):
    return module.value.apply({"params": params}, cache, tokens, index)
