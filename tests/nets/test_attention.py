"""Attention, head by head and divided last, beside the softmax as it is usually written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gensamp.nets.attention import attend

CAUSAL = np.tril(np.ones((7, 7), bool))


def written_out(query, key, value, seen):
    logits = jnp.einsum("nhd,mhd->hnm", query, key) / query.shape[-1] ** 0.5
    logits = logits if seen is None else jnp.where(seen[None], logits, -1e30)
    weights = jax.nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    return jnp.einsum("hnm,mhd->nhd", weights.astype(value.dtype), value)


def arguments(scale=1.0, tokens=7, heard=7, heads=3, dtype=np.float32):
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(scale * rng.normal(size=(n, heads, 4)), dtype) for n in (tokens, heard, heard))


def gradients(function, given, seen):
    pull = jnp.asarray(np.random.default_rng(1).normal(size=given[0].shape), jnp.float32)
    return jax.grad(lambda given: jnp.sum(function(*given, seen).astype(jnp.float32) * pull))(given)


@pytest.mark.parametrize(
    ("shape", "seen"),
    [({}, None), ({}, CAUSAL), ({"tokens": 1, "heard": 5}, None), ({"tokens": 1, "heard": 1, "heads": 1}, None)],
)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_value_and_gradients_are_those_of_the_softmax(shape, seen, scale):
    with jax.enable_x64(True):
        given = arguments(scale, dtype=np.float64, **shape)
        np.testing.assert_allclose(attend(*given, seen), written_out(*given, seen), rtol=1e-10, atol=1e-10)
        for ours, theirs in zip(gradients(attend, given, seen), gradients(written_out, given, seen), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 3.0, 10.0])
def test_gradients_in_bfloat16_lose_no_more_than_those_of_the_softmax(scale):
    """Where the softmax is saturated, large numbers cancel in them."""
    given = tuple(a.astype(jnp.bfloat16) for a in arguments(scale))
    exact = gradients(written_out, tuple(a.astype(jnp.float32) for a in given), CAUSAL)

    def lost(function):
        pairs = zip(gradients(function, given, CAUSAL), exact, strict=True)
        return np.array([np.abs(np.asarray(a, np.float32) - b).max() for a, b in pairs])

    assert (lost(attend) <= np.maximum(1.5 * lost(written_out), 0.01)).all()
