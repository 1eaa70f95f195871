"""Augmentations: what they keep, how often they act, and that they are one program for all amounts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gensamp import augment
from gensamp.clock import compile_clock

IMAGE = jnp.arange(30.0).reshape(5, 3, 2)
KEYS = jax.random.split(jax.random.key(0), 4000)


@jax.jit
def many(change, event):
    return jax.vmap(change, in_axes=(0, None))(KEYS, event)


def test_a_flip_mirrors_as_often_as_it_is_asked_to():
    out = np.asarray(many(augment.flip(probability=0.3), IMAGE))
    mirrored = (out == np.asarray(IMAGE[:, ::-1])).all((1, 2, 3))
    assert (mirrored | (out == np.asarray(IMAGE)).all((1, 2, 3))).all()
    assert mirrored.mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / len(KEYS)))
    with compile_clock() as clock:
        never = augment.flip(probability=0.0)
        np.testing.assert_array_equal(many(never, IMAGE), np.broadcast_to(IMAGE, out.shape))
    assert "jit(many)" not in clock.programs
    upside_down = augment.flip(axis=0, probability=1.0)(jax.random.key(0), IMAGE)
    np.testing.assert_array_equal(upside_down, IMAGE[::-1])


def test_a_shift_is_every_crop_of_the_padded_image_equally_often():
    padded = np.pad(np.asarray(IMAGE), [(1, 1), (1, 1), (0, 0)], mode="edge")
    crops = [padded[i : i + 5, j : j + 3] for i in range(3) for j in range(3)]
    out = np.asarray(many(augment.shift(1), IMAGE))
    counts = np.array([(out == crop).all((1, 2, 3)).sum() for crop in crops])
    assert counts.sum() == len(KEYS)
    # Chi-squared with 8 degrees of freedom: 30 is passed once in 5,000.
    assert ((counts - len(KEYS) / 9) ** 2 / (len(KEYS) / 9)).sum() < 30
    filled = np.asarray(many(augment.shift(1, fill=-1.0), IMAGE))
    assert (filled == -1).any((1, 2, 3)).mean() == pytest.approx(8 / 9, abs=0.02)


def test_dequantising_noise_is_uniform_in_the_cell():
    noise = np.asarray(many(augment.dequantise(0.25), jnp.zeros(3)))
    assert np.abs(noise).max() <= 0.125
    assert noise.var() == pytest.approx(0.25**2 / 12, rel=0.03) and abs(noise.mean()) < 4 * 0.25 / np.sqrt(12 * noise.size)
    np.testing.assert_allclose(np.corrcoef(noise.T), np.eye(3), atol=4 / np.sqrt(len(KEYS)))


def test_a_chain_gives_each_a_key_of_its_own():
    both = augment.chain(augment.flip(axis=0), augment.flip(axis=1))
    out = np.asarray(many(both, IMAGE))
    kinds = [IMAGE, IMAGE[::-1], IMAGE[:, ::-1], IMAGE[::-1, ::-1]]
    shares = [(out == np.asarray(kind)).all((1, 2, 3)).mean() for kind in kinds]
    np.testing.assert_allclose(shares, 0.25, atol=4 * np.sqrt(0.1875 / len(KEYS)))
    assert augment.chain()(jax.random.key(0), IMAGE) is IMAGE
    own = augment.chain(lambda key, event: 2 * event, augment.flip(probability=0.0))
    np.testing.assert_array_equal(own(jax.random.key(0), IMAGE), 2 * IMAGE)


def test_trees_keep_their_shapes_and_precision():
    with jax.enable_x64(True):
        event = {"a": jnp.ones((4, 4)), "b": jnp.zeros((4, 4, 2), jnp.float32)}
        change = augment.chain(augment.flip(), augment.shift(1, fill=0.0), augment.dequantise(0.1))
        out = jax.eval_shape(change, jax.random.key(0), event)
        assert jax.tree.map(lambda a: (a.shape, a.dtype), out) == jax.tree.map(lambda a: (a.shape, a.dtype), event)


def test_bad_input_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="probability=2"):
        augment.flip(probability=2.0)
    with pytest.raises(ValueError, match="probability='x'; expected a number"):
        augment.flip(probability="x")
    with pytest.raises(ValueError, match=r"axis=1\.5; expected an integer"):
        augment.flip(axis=1.5)
    with pytest.raises(ValueError, match="pixels=-1"):
        augment.shift(-1)
    with pytest.raises(ValueError, match=r"pixels=1\.5; expected an integer"):
        augment.shift(1.5)
    with pytest.raises(ValueError, match="cell='a'; expected the positive distance"):
        augment.dequantise("a")
    with pytest.raises(ValueError, match="cell=0"):
        augment.dequantise(0.0)
    with pytest.raises(TypeError, match=r"chain got 3; expected functions \(key, event\)"):
        augment.chain(3)
    with pytest.raises(ValueError, match=r"flip got an event of shape \[3\]"):
        augment.flip()(jax.random.key(0), jnp.zeros(3))
    with pytest.raises(ValueError, match=r"shift got an event of shape \[3\]"):
        augment.shift(1)(jax.random.key(0), jnp.zeros(3))
