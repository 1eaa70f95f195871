"""The five predictions: every way from one to another against the definitions, and both ends of time."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gensamp import noise as noising
from gensamp import predictions
from gensamp.predictions import PREDICTIONS, convert

PROCESSES = {
    "vp_linear": noising.vp_linear(), "cosine": noising.cosine(), "ve": noising.ve(), "sub_vp": noising.sub_vp(),
    "edm": noising.edm(), "rectified_flow": noising.rectified_flow(),
}  # fmt: skip
X0, EPS = (np.random.default_rng(3).normal(size=4) for _ in range(2))


def known(process, t):
    """x and all five, from their definitions, with derivatives by differences."""
    alpha, sigma = (float(f(t)) for f in (process.alpha, process.sigma))
    step = 1e-6
    alpha_rate, sigma_rate = (float((f(t + step) - f(t - step)) / (2 * step)) for f in (process.alpha, process.sigma))
    values = {
        "x0": X0, "eps": EPS, "v": alpha * EPS - sigma * X0, "score": -EPS / sigma,
        "velocity": alpha_rate * X0 + sigma_rate * EPS,
    }  # fmt: skip
    return jnp.asarray(alpha * X0 + sigma * EPS), {name: jnp.asarray(value) for name, value in values.items()}


@pytest.mark.parametrize("name", PROCESSES)
def test_every_conversion_agrees_with_the_definitions(name):
    with jax.enable_x64(True):
        process, t = PROCESSES[name], jnp.float64(0.4)
        x, values = known(process, t)
        for source, wanted in itertools.product(PREDICTIONS, PREDICTIONS):
            got = convert(process, t, x, values[source], source, wanted)
            np.testing.assert_allclose(got, values[wanted], rtol=1e-5, atol=1e-6, err_msg=f"{source} to {wanted}")


def test_v_taken_for_the_velocity_is_caught():
    with jax.enable_x64(True):
        process, t = PROCESSES["rectified_flow"], jnp.float64(0.4)
        x, values = known(process, t)
        assert np.abs(convert(process, t, x, values["v"], "velocity", "x0") - X0).max() > 0.1


@pytest.mark.parametrize("name", PROCESSES)
def test_conversions_are_finite_at_both_ends_and_keep_the_dtype(name):
    process, x, value = PROCESSES[name], {"a": jnp.asarray(X0, jnp.float32)}, {"a": jnp.asarray(EPS, jnp.float32)}
    for t in (jnp.float32(0), jnp.float32(1), 0, 1.0):
        for source, wanted in itertools.product(PREDICTIONS, PREDICTIONS):
            got = convert(process, t, x, value, source, wanted)["a"]
            assert got.dtype == jnp.float32 and np.isfinite(got).all(), (float(t), source, wanted)


def test_the_velocity_says_what_is_clean_where_no_signal_is_left():
    process = PROCESSES["rectified_flow"]
    x0, eps = jnp.asarray(X0), jnp.asarray(EPS)
    np.testing.assert_allclose(predictions.velocity_to_x0(process, 1.0, eps, eps - x0), x0, atol=1e-6)
    np.testing.assert_allclose(predictions.velocity_to_eps(process, 0.0, x0, eps - x0), eps, atol=1e-6)


def test_an_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="convert got prediction='noise'; expected one of eps, x0, v, score, velocity"):
        convert(PROCESSES["edm"], 0.5, jnp.zeros(2), jnp.zeros(2), "noise", "x0")
