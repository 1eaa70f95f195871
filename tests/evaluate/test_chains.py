"""Chain diagnostics on chains whose answer is known, and where the usual one would flatter a chain that is stuck."""

import jax
import numpy as np
import pytest

from gensamp.evaluate.chains import coordinate_names, diagnose, ess_bulk, ess_tail, ess_weights, rhat


def autoregressive(seed, shape, phi):
    """Stationary AR(1) [chain, draw, ...] with unit variance."""
    noise = np.random.default_rng(seed).normal(size=shape)
    x = noise.copy()
    for i in range(1, shape[1]):
        x[:, i] = phi * x[:, i - 1] + np.sqrt(1 - phi**2) * noise[:, i]
    return x


def test_ess_of_an_autoregression():
    phi = 0.8
    x = autoregressive(1, (4, 5_000), phi)
    assert float(ess_bulk(x)) == pytest.approx(20_000 * (1 - phi) / (1 + phi), rel=0.2)
    assert float(rhat(x)) < 1.01
    assert float(ess_tail(x)) > 1_000


def test_chains_that_disagree():
    x = autoregressive(5, (4, 1_000, 2), 0.0)
    x[0, :, 1] += 3.0
    found = diagnose(x)
    assert found.rhat[0] < 1.01 < 1.1 < found.rhat[1] and found.ess_bulk[1] < 0.05 * found.ess_bulk[0]
    assert found.worst()["rhat"][0] == "x[1]"


def test_a_chain_that_never_moves_has_no_ess():
    x = autoregressive(2, (4, 100, 2), 0.0)
    x[1, :, 0] = 3.0
    found = diagnose(x)
    assert np.isnan(found.ess_bulk[0]) and np.isnan(found.rhat[0]) and found.ess_bulk[1] > 100
    assert found.worst()["ess_bulk"][0] == "x[0]"


def test_a_value_that_is_not_finite_is_not_averaged():
    x = autoregressive(3, (2, 100), 0.0)
    x[0, 5] = np.inf
    assert np.isnan(float(ess_bulk(x)))


def test_trees_keep_their_shape_and_names():
    x = autoregressive(4, (2, 50, 3), 0.0)
    tree = {"mu": x[..., 0], "theta": x}
    assert ess_bulk(tree)["theta"].shape == (3,)
    assert coordinate_names(tree, lead=2) == ("mu", "theta[0]", "theta[1]", "theta[2]")
    assert diagnose(tree).names == ("mu", "theta[0]", "theta[1]", "theta[2]")
    assert coordinate_names(jax.ShapeDtypeStruct((2, 1), np.float32)) == ("x[0,0]", "x[1,0]")


def test_weights():
    assert ess_weights(np.zeros((2, 5))) == pytest.approx(10)
    assert ess_weights(np.array([0.0, -1e6, -1e6])) == pytest.approx(1)


@pytest.mark.parametrize("bad", [np.zeros(10), np.zeros((4, 3)), {"a": np.zeros((2, 20)), "b": np.zeros((3, 20))}])
def test_bad_shapes_are_named(bad):
    with pytest.raises(ValueError, match="expected leading axes"):
        diagnose(bad)
