"""The equivalent sample size against closed forms: independent draws, an autoregression, a bias, weights."""

import numpy as np
import pytest
from scipy.special import erf

from gensamp.evaluate.equivalent import Yard, equivalent_sample_size

SPREAD = 2 / np.sqrt(np.pi)
REPEATS = 30


@pytest.fixture(scope="module")
def line():
    """A reference of the standard normal on the line."""
    return Yard(np.random.default_rng(0).normal(size=(16_384, 1)))


@pytest.fixture(scope="module")
def space():
    return Yard(np.random.default_rng(1).normal(size=(16_384, 3)))


def worth(yard, make):
    """The sample size that the average error of many runs is worth, and its relative standard error, the reference included."""
    found = [yard.error(make(np.random.default_rng(seed))) for seed in range(REPEATS)]
    errors, reference = np.array(found).T
    relative = np.hypot(errors.std() / np.sqrt(REPEATS), reference.mean()) / errors.mean()
    return yard.spread / errors.mean(), relative


def close(found, expected):
    size, relative = found
    return abs(np.log(size / expected)) < 4 * relative


@pytest.mark.parametrize("n", [100, 1_000])
def test_independent_draws_are_worth_their_number(line, space, n):
    assert close(worth(line, lambda rng: rng.normal(size=(n, 1))), n)
    assert close(worth(space, lambda rng: rng.normal(size=(n, 3))), n)


def autoregression_worth(n, phi):
    """n_eq of a stationary Gaussian AR(1) on the line, exactly: E|X_i - X_j| = spread sqrt(1 - phi^|i - j|)."""
    lag = np.arange(1, n)
    share = 1 + 2 * np.sum((1 - lag / n) * (1 - np.sqrt(1 - phi**lag)))
    return n / share


def test_correlated_draws_are_worth_less(line):
    n, phi = 2_000, 0.9

    def chain(rng):
        noise = rng.normal(size=n)
        x = np.empty(n)
        x[0] = noise[0]
        for i in range(1, n):
            x[i] = phi * x[i - 1] + np.sqrt(1 - phi**2) * noise[i]
        return x[:, None]

    expected = autoregression_worth(n, phi)
    assert close(worth(line, chain), expected)
    # It is an ESS of the whole law: near that of the mean, n (1 - phi) / (1 + phi), and far below n.
    assert 1 <= expected / (n * (1 - phi) / (1 + phi)) < 2


def test_a_bias_saturates(line):
    delta = 0.2
    bias = 2 * (SPREAD * np.exp(-(delta**2) / 4) + delta * erf(delta / 2)) - 2 * SPREAD
    few, many = (worth(line, lambda rng, n=n: rng.normal(size=(n, 1)) + delta) for n in (1_000, 4_000))
    assert close(few, SPREAD / (bias + SPREAD / 1_000)) and close(many, SPREAD / (bias + SPREAD / 4_000))
    assert many[0] < 1.2 * few[0]


def test_weights_repair_a_wrong_proposal(line):
    n, scale = 2_000, 1.6
    rng = np.random.default_rng(2)
    x = scale * rng.normal(size=(n, 1))
    weight = np.exp(-0.5 * x[:, 0] ** 2 * (1 - 1 / scale**2))
    kish = weight.sum() ** 2 / (weight**2).sum()
    right, wrong = line.equivalent(x, weight), line.equivalent(x)
    assert right.low < kish < right.high
    assert wrong.high < 0.2 * kish


def test_intervals_cover():
    """The 95% interval for n independent draws holds n on at least 26 of 30 keys (fewer has probability below 0.02)."""
    yard = Yard(np.random.default_rng(3).normal(size=(8_192, 2)))
    hits = 0
    for seed in range(30):
        found = yard.equivalent(np.random.default_rng(seed + 100).normal(size=(300, 2)))
        hits += found.low <= 300 <= found.high
    assert hits >= 26


def test_twin_that_keeps_the_reference_error_is_caught():
    """Without the subtraction independent draws look like half their number against a reference of their own size."""
    n, errors, twins = 400, [], []
    for seed in range(REPEATS):
        rng = np.random.default_rng(seed)
        yard = Yard(rng.normal(size=(n, 2)))
        errors.append(yard.error(rng.normal(size=(n, 2)))[0] / yard.spread)
        twins.append(errors[-1] + 1 / n)
    sd = np.std(errors) / np.sqrt(REPEATS)
    assert abs(np.mean(errors) - 1 / n) < 4 * sd < abs(np.mean(twins) - 1 / n)


def test_too_good_to_tell():
    """Against a short reference only a lower bound is known, and it says so."""
    rng = np.random.default_rng(5)
    found = equivalent_sample_size(rng.normal(size=(20_000, 2)), rng.normal(size=(500, 2)))
    assert not found.resolved and np.isinf(found.high) and str(found).startswith(">=")
    assert found.value > 100


def test_draws_beyond_all_bounds_are_worth_nothing(line):
    assert line.equivalent(np.full((100, 1), 1e30)).value < 1e-6


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="expected"):
        equivalent_sample_size(np.zeros((3, 2)), np.zeros((30, 3)))
    with pytest.raises(ValueError, match="at least 10"):
        equivalent_sample_size(np.zeros((3, 2)), np.zeros((5, 2)))
