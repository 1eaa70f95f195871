"""The diffusion transformer: identity at first, patches in their places, every patch seen by every other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gensamp.nets.transformer import _positions, transformer

IMAGE = jnp.zeros((8, 4, 2))
SMALL = {"width": 16, "depth": 2, "num_heads": 2}


def stirred(params):
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    return jax.tree.unflatten(structure, [a + 0.1 * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)])


def test_it_starts_at_zero_and_depends_on_event_time_and_class():
    network = transformer(IMAGE, num_classes=5, **SMALL)
    params = jax.jit(network.init)(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, *IMAGE.shape))
    apply = jax.jit(network.apply)
    assert np.all(apply(params, x[0], jnp.float32(0.5), jnp.int32(1)) == 0)
    params = stirred(params)
    base = apply(params, x[0], jnp.float32(0.5), jnp.int32(1))
    assert base.shape == IMAGE.shape and base.dtype == jnp.float32
    for other in ((x[1], 0.5, 1), (x[0], 0.51, 1), (x[0], 0.5, 2)):
        assert np.abs(apply(params, other[0], jnp.float32(other[1]), jnp.int32(other[2])) - base).max() > 1e-4


def test_blocks_start_as_the_identity_and_their_number_adds_no_program():
    shallow, deep = (transformer(IMAGE, width=16, depth=depth, num_heads=2) for depth in (1, 6))
    for network, depth in ((shallow, 1), (deep, 6)):
        params = jax.eval_shape(network.init, jax.random.key(0))
        assert {a.shape[0] for a in jax.tree.leaves(params["Scan_Block_0"])} == {depth}
    x = jax.random.normal(jax.random.key(1), IMAGE.shape)
    texts = [
        str(jax.make_jaxpr(n.apply)(jax.eval_shape(n.init, jax.random.key(0)), x, jnp.float32(0.5))) for n in (shallow, deep)
    ]
    assert len(texts[0].splitlines()) == len(texts[1].splitlines())


def test_a_patch_comes_back_to_its_place():
    # Blocks start as the identity: with a last map off zero, a patch is a function of itself and its place alone.
    network = transformer(IMAGE, **SMALL)
    params = jax.jit(network.init)(jax.random.key(0))
    last = {"Dense_4": jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(4), a.shape), params["Dense_4"])}
    params = {**params, **last}
    x = jax.random.normal(jax.random.key(1), IMAGE.shape)
    apply = jax.jit(network.apply)
    moved = apply(params, x.at[2:4, 2:4].add(1.0), jnp.float32(0.5)) - apply(params, x, jnp.float32(0.5))
    inside = np.zeros(IMAGE.shape, bool)
    inside[2:4, 2:4] = True
    assert np.abs(moved[inside]).min() > 1e-4 and np.abs(moved[~inside]).max() < 1e-6


def test_attention_reaches_every_patch():
    network = transformer(IMAGE, **SMALL)
    params = stirred(jax.jit(network.init)(jax.random.key(0)))
    x = jax.random.normal(jax.random.key(1), IMAGE.shape)
    apply = jax.jit(network.apply)
    moved = apply(params, x.at[0, 0].add(1.0), jnp.float32(0.5)) - apply(params, x, jnp.float32(0.5))
    assert np.abs(moved[-1, -1]).max() > 1e-5


def test_positions_are_distinct_and_bounded():
    positions = _positions(4, 3, 16)
    assert positions.shape == (12, 16) and np.abs(positions).max() <= 1
    gaps = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    assert gaps[~np.eye(12, dtype=bool)].min() > 0.1


def test_arithmetic_in_bfloat16_keeps_parameters_and_output_in_float32():
    low, full = transformer(IMAGE, compute=jnp.bfloat16, **SMALL), transformer(IMAGE, **SMALL)
    params = stirred(jax.jit(low.init)(jax.random.key(0)))
    assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    x = jax.random.normal(jax.random.key(1), IMAGE.shape)
    one, other = (jax.jit(n.apply)(params, x, jnp.float32(0.5)) for n in (low, full))
    assert one.dtype == jnp.float32
    assert 1e-4 < np.abs(one - other).max() / np.abs(other).max() < 0.05


def test_float64_events_stay_float64():
    with jax.enable_x64(True):
        network = transformer(jax.ShapeDtypeStruct((4, 4, 1), jnp.float64), **SMALL)
        params = jax.eval_shape(network.init, jax.random.key(0))
        assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype("float64")}
        x = jax.ShapeDtypeStruct((4, 4, 1), jnp.float64)
        assert jax.eval_shape(network.apply, params, x, jax.ShapeDtypeStruct((), jnp.float64)).dtype == jnp.float64


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="divisible by the patch"):
        transformer(jnp.zeros((5, 4, 1)))
    with pytest.raises(ValueError, match="one image"):
        transformer(jnp.zeros(5))
    with pytest.raises(ValueError, match="width=18"):
        transformer(IMAGE, width=18)
