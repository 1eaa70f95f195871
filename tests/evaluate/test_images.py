"""Images judged by a classifier: distances have their closed forms, and a judge knows good draws from bad ones."""

import jax
import numpy as np
import pytest

from gensamp.evaluate.images import ImageJudge, frechet_distance, precision_recall


def test_the_frechet_distance_of_gaussians_is_the_closed_form():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, 3))
    y = 1.0 + rng.normal(size=(20_000, 3)) * [1.0, 2.0, 3.0]
    # |m - m'|^2 + the squares of differences of standard deviations.
    assert frechet_distance(x, y) == pytest.approx(3 + 1 + 4, rel=0.05)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-8)
    with pytest.raises(ValueError, match="at least two rows"):
        frechet_distance(x, y[:, :2])


def test_precision_misses_what_is_not_real_and_recall_what_is_not_drawn():
    rng = np.random.default_rng(0)
    real = np.concatenate([rng.normal(size=(400, 2)), rng.normal([50.0, 0.0], size=(400, 2))])
    one_mode = rng.normal(size=(800, 2))
    precision, recall = precision_recall(real, one_mode)
    assert precision > 0.8 and recall < 0.55
    precision, recall = precision_recall(one_mode, real)
    assert precision < 0.55 and recall > 0.8
    assert precision_recall(real, real + 1000.0) == (0.0, 0.0)
    with pytest.raises(ValueError, match="more than 3 rows"):
        precision_recall(real[:3], real)


def bars(rng, number):
    """Images of no bar, an upright one, one that lies, or both, somewhere, with their labels."""
    labels = rng.integers(0, 4, number)
    images = 0.3 * rng.normal(size=(number, 8, 8, 1)) - 1
    images[np.arange(number), :, rng.integers(2, 6, number)] += 2.0 * (labels % 2)[:, None, None]
    images[np.arange(number), rng.integers(2, 6, number)] += 2.0 * (labels // 2)[:, None, None]
    return images.astype(np.float32), labels


@pytest.fixture(scope="module")
def judge():
    rng = np.random.default_rng(0)
    return ImageJudge.of(
        jax.random.key(0), *bars(rng, 400), bars(rng, 300), bars(rng, 600)[0], width=8, num_features=8, num_steps=250,
        batch_size=32,
    )  # fmt: skip


def test_a_judge_knows_real_images_from_noise_and_from_half_of_the_classes(judge):
    rng = np.random.default_rng(1)
    assert judge.accuracy > 0.9
    images, labels = bars(rng, 200)
    real = judge.report(images)
    assert real.frechet.verdict == "indistinguishable" and real.class_gap < 0.15
    assert real.precision == pytest.approx(real.real_precision, abs=0.15) and real.confidence > 0.8
    noise = judge.report(rng.normal(size=images.shape).astype(np.float32))
    assert noise.frechet.verdict == "distinguishable" and noise.frechet.value > 5 * noise.frechet.floor.mean
    half = judge.report(np.repeat(images[labels < 2], 3, axis=0)[:200])
    assert half.class_gap > 0.15 and half.recall < real.recall - 0.2


def test_what_cannot_be_judged_is_refused(judge):
    with pytest.raises(ValueError, match="at most half as many"):
        judge.report(np.zeros((400, 8, 8, 1), np.float32))
    with pytest.raises(ValueError, match="not finite"):
        judge.report(np.full((100, 8, 8, 1), np.nan, np.float32))
    with pytest.raises(ValueError, match="sides divisible by 4"):
        ImageJudge.of(jax.random.key(0), np.zeros((9, 6, 6, 1)), np.zeros(9), (None, None), None)
