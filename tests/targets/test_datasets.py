"""Data sets: shapes, ranges, and a split that does not leak."""

import jax.numpy as jnp
import numpy as np
import pytest

from gensamp import targets


def test_digits_are_scaled_images_with_held_out_references():
    target = targets.digits()
    assert target.template.shape == (8, 8, 1) and target.log_density is None and target.exact is None
    assert target.data.shape == (1347, 8, 8, 1) and target.truth.reference.shape == (450, 8, 8, 1)
    for images in (target.data, target.truth.reference):
        assert float(images.min()) == -1 and float(images.max()) == 1


def test_no_image_is_in_both_parts_and_all_are_in_one():
    from sklearn.datasets import load_digits

    target = targets.digits()
    parts = [{image.tobytes() for image in np.asarray(images)} for images in (target.data, target.truth.reference)]
    assert not parts[0] & parts[1]
    everything = {image.tobytes() for image in np.float32(load_digits().images[..., None] / 8 - 1)}
    assert parts[0] | parts[1] == everything


def test_labels_belong_to_the_images():
    from sklearn.neighbors import KNeighborsClassifier

    target = targets.digits()
    (x, y), (held_x, held_y) = targets.digits_labelled(), targets.digits_labelled("held_out")
    assert bool((x == target.data).all()) and bool((held_x == target.truth.reference).all())
    assert y.dtype == held_y.dtype == jnp.int32
    counts = np.bincount(held_y, minlength=10)
    assert counts.min() >= 30, counts
    model = KNeighborsClassifier(3).fit(x.reshape(len(x), -1), y)
    flat = held_x.reshape(len(held_x), -1)
    assert model.score(flat, held_y) > 0.95 and model.score(flat, np.roll(held_y, 1)) < 0.3


def test_the_split_is_the_same_every_time():
    first, second = targets.digits(), targets.digits()
    assert bool((first.data == second.data).all())


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="expected 'train' or 'held_out'"):
        targets.digits_labelled("test")
