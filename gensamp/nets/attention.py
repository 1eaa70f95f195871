"""Multi-head self-attention of the tokens of one event (Vaswani et al. 2017), with the softmax never below float32.

Flax's own layer offers a float32 softmax by doing the sum over values in float32 as well; here the products stay in the
precision of the tokens, as in JAX's `dot_product_attention`, which picks the fastest form a device has.
"""

from typing import Any

import flax.linen as nn
import jax

__all__ = ["self_attention"]


def self_attention(tokens: jax.Array, num_heads: int, param_dtype: Any, *, zero: bool = False) -> jax.Array:
    """What the tokens [tokens, width] tell each other, in their dtype; call it inside a compact module.

    zero: whether the last map starts at zero, so that nothing is told at first.
    """
    last = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
    layer = nn.MultiHeadDotProductAttention(
        num_heads, dtype=tokens.dtype, param_dtype=param_dtype, out_kernel_init=last, attention_fn=_attend
    )
    return layer(tokens)


def _attend(query, key, value, **unused):
    """query, key, value: [tokens, heads, width per head]."""
    del unused
    return jax.nn.dot_product_attention(query, key, value)
