"""Simulation-based calibration of model, auto and ranks on conjugate models; a wrong prior is rejected."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro import distributions as dist

import gensamp as gs
from gensamp.evaluate.calibration import calibrate, simulate_from


def normal_mean(y=None, scale=1.0):
    centre = numpyro.sample("centre", dist.Normal(2.0, scale))
    with numpyro.plate("events", 3):
        numpyro.sample("y", dist.Normal(centre, 4.0), obs=y)


def gamma_poisson(y=None, rate=1.0):
    intensity = numpyro.sample("intensity", dist.Gamma(3.0, rate))
    with numpyro.plate("events", 4):
        numpyro.sample("y", dist.Poisson(intensity), obs=y)


def posterior_of(model, **changed):
    def posterior(data):
        return gs.Target.from_numpyro(model, jnp.asarray(data["y"], jnp.float32), **changed)

    return posterior


MODELS = {"normal": (normal_mean, {"scale": 1.5}), "gamma-poisson": (gamma_poisson, {"rate": 1 / 1.5})}


@dataclasses.dataclass
class Run:
    position: dict
    ending: str = "finished"
    message: str = ""


def conjugate(key, target):
    """Exact draws of the normal posterior from its closed form, in place of a run."""
    y = np.asarray(target.log_density.args[-1], np.float64)
    precision = 1 + len(y) / 4.0**2
    centre = (2.0 + y.sum() / 4.0**2) / precision
    return Run({"centre": centre + jax.random.normal(key, (1, 63)) / precision**0.5})


@pytest.mark.parametrize("seed", range(3))
def test_exact_posterior_draws_are_calibrated(seed):
    simulate = simulate_from(normal_mean, observed="y")
    out = calibrate(jax.random.key(seed), simulate, posterior_of(normal_mean), run=conjugate, num_replicates=200)
    assert out.p_value > 1e-3, str(out)
    assert out.ranks["centre"].min() >= 0 and out.ranks["centre"].max() <= 63


@pytest.mark.parametrize(("test", "stretch", "shift"), [("spread", 1.4, 0.0), ("spread", 0.7, 0.0), ("location", 1.0, 0.5)])
def test_posteriors_too_wide_too_narrow_or_beside_the_truth_are_told_apart(test, stretch, shift):
    def run(key, target):
        exact = conjugate(key, target).position["centre"]
        return Run({"centre": exact.mean() + stretch * (exact - exact.mean()) + shift})

    out = calibrate(
        jax.random.key(0), simulate_from(normal_mean, observed="y"), posterior_of(normal_mean), run=run, num_replicates=200
    )
    row = out.p_values["centre"]
    assert min(row, key=row.__getitem__) == test and row[test] < 1e-4 and out.p_value < 1e-3, str(out)
    assert f"worst the {test} of centre" in str(out)


@pytest.mark.slow
def test_a_wrong_prior_is_rejected_where_auto_runs_the_chain():
    options = {"posterior": posterior_of(normal_mean), "num_replicates": 80, "num_bins": 4}
    right = calibrate(jax.random.key(0), simulate_from(normal_mean, observed="y"), **options)
    wrong = calibrate(jax.random.key(0), simulate_from(normal_mean, scale=3.0, observed="y"), **options)
    assert right.p_value > 0.01, str(right)
    assert wrong.p_value < 0.01, str(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MODELS)
def test_auto_is_calibrated_on_conjugate_models(name, seed):
    model, _ = MODELS[name]
    out = calibrate(jax.random.key(seed), simulate_from(model, observed="y"), posterior_of(model))
    assert out.p_value > 0.01, str(out)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_prior_of_one_and_a_half_times_the_scale_is_rejected(name):
    model, wider = MODELS[name]
    out = calibrate(jax.random.key(0), simulate_from(model, observed="y"), posterior_of(model, **wider))
    assert out.p_value < 0.01, str(out)


def test_bad_requests_are_named():
    simulate = simulate_from(normal_mean, observed="y")
    with pytest.raises(ValueError, match="expected a multiple, such as 64 and 16"):
        calibrate(jax.random.key(0), simulate, posterior_of(normal_mean), num_ranks=99)
    with pytest.raises(ValueError, match="fewer than 5 a bin; ask for 80"):
        calibrate(jax.random.key(0), simulate, posterior_of(normal_mean), num_replicates=20)
    with pytest.raises(ValueError, match=r"the model has no site \['z'\]"):
        calibrate(jax.random.key(0), simulate_from(normal_mean, observed="z"), posterior_of(normal_mean), num_replicates=80)
