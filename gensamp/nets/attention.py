"""Multi-head self-attention of the tokens of one event (Vaswani et al. 2017), with the softmax never below float32.

Flax's own layer offers a float32 softmax by doing the sum over values in float32 as well; here the products stay in the
precision of the tokens. Heads come first in both products, so that they are products of plain matrices: on a CPU three times
as fast as JAX's `dot_product_attention`, whose heads stand in the middle (16 events, 196 tokens, 8 heads of 8: 13.5 ms, not
38.4).
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


def attend(query: jax.Array, key: jax.Array, value: jax.Array, **unused: Any) -> jax.Array:
    """What each token hears, [tokens, heads, size per head], as all three arguments are."""
    del unused
    query, key, value = (x.transpose(1, 0, 2) for x in (query, key, value))
    high = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.matmul(query, key.transpose(0, 2, 1), preferred_element_type=high)
    weights = jax.nn.softmax(logits / query.shape[-1] ** 0.5, axis=-1).astype(value.dtype)
    return (weights @ value).transpose(1, 0, 2)
