"""Distances against closed forms: shifted Gaussians, point masses, direct sums."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.special import erf

from gensamp.evaluate.distances import Distance, Floor, energy_distance, mean_distances, sliced_wasserstein, spread


def energy_of_shift(delta):
    """D^2(N(0, 1), N(delta, 1)) on the line."""
    return 2 * (2 / np.sqrt(np.pi) * np.exp(-(delta**2) / 4) + delta * erf(delta / 2)) - 4 / np.sqrt(np.pi)


@pytest.mark.parametrize("delta", [0.5, 2.0])
def test_energy_distance_of_shifted_gaussians(delta):
    rng = np.random.default_rng(0)
    n, m = 3_000, 5_000
    values = [energy_distance(rng.normal(size=(n, 1)) + delta, rng.normal(size=(m, 1))) for _ in range(20)]
    expected = energy_of_shift(delta) + 2 / np.sqrt(np.pi) * (1 / n + 1 / m)
    assert abs(np.mean(values) - expected) < 4 * np.std(values) / np.sqrt(len(values))


@pytest.mark.parametrize("d", [2, 40])
def test_blocks_add_up_to_the_direct_sum(d):
    rng = np.random.default_rng(1)
    x, y, w = rng.normal(size=(700, d)), rng.normal(size=(300, d)), rng.random(300)
    np.testing.assert_allclose(mean_distances(x, y, w), cdist(x, y) @ w, rtol=2e-5)
    two = np.stack([w, np.ones(300)], 1)
    np.testing.assert_allclose(mean_distances(x, y, two), cdist(x, y) @ two, rtol=2e-5)
    direct = 2 * cdist(x, y).mean() - cdist(x, x).mean() - cdist(y, y).mean()
    assert energy_distance(x, y) == pytest.approx(direct, rel=1e-3)
    assert spread(y) == pytest.approx(cdist(y, y).sum() / (300 * 299), rel=1e-4)


def test_weights_count_like_repetition():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(50, 2)), rng.normal(size=(60, 2))
    counts = rng.integers(1, 4, size=50)
    repeated = np.repeat(x, counts, axis=0)
    assert energy_distance(x, y, x_weight=counts) == pytest.approx(energy_distance(repeated, y), rel=1e-3)
    assert sliced_wasserstein(x, y, x_weight=counts) == pytest.approx(sliced_wasserstein(repeated, y), rel=1e-3)


def test_a_sample_is_at_no_distance_from_itself():
    x = np.random.default_rng(3).normal(size=(200, 3))
    assert energy_distance(x, x[::-1]) < 1e-5
    assert sliced_wasserstein(x, x[::-1]) < 1e-3


def test_sliced_wasserstein_of_a_shift():
    x = np.random.default_rng(4).normal(size=(400, 1))
    assert sliced_wasserstein(x + 0.7, x) == pytest.approx(0.7, rel=1e-4)
    x = np.random.default_rng(5).normal(size=(400, 3))
    # The mean over directions of (shift . direction)^2 is |shift|^2 / 3; 512 directions give it to a few per cent.
    shifted = sliced_wasserstein(x + np.array([[1.0, 0.0, 0.0]]), x, num_projections=512)
    assert shifted**2 == pytest.approx(1 / 3, rel=0.15)


def test_a_runaway_draw_is_far_and_not_undefined():
    x = np.random.default_rng(6).normal(size=(300, 3))
    runaway = x.copy()
    runaway[0] = 1e30
    assert 1e10 < energy_distance(runaway, x) < np.inf
    assert 1e10 < sliced_wasserstein(runaway, x) < np.inf


def test_verdict_allows_the_floor():
    floor = Floor(1.0, 0.1, 16)
    assert Distance(1.25, floor).verdict == "indistinguishable"
    assert Distance(1.35, floor).verdict == "distinguishable"
    assert Distance(float("nan"), floor).verdict == "distinguishable"


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"expected \[n, d\] and \[m, d\]"):
        energy_distance(np.zeros((3, 2)), np.zeros((3, 3)))
    with pytest.raises(ValueError, match="one finite weight"):
        energy_distance(np.zeros((3, 2)), np.zeros((3, 2)), x_weight=np.array([1.0, -1.0, 1.0]))
