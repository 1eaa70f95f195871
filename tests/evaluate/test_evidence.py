"""Evidence: values and errors against closed forms, the three estimators from replicas, and the comparison of two models."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import gensamp as gs
from gensamp.evaluate.evidence import bridge, compare_evidence, log_evidence, stepping_stone, thermodynamic


def drawn(log_weight, single, short=0):
    log_weight = np.asarray(log_weight)
    counts = np.zeros(log_weight.shape if single else log_weight.shape[:1])
    return SimpleNamespace(
        log_weight=log_weight, info=SimpleNamespace(gradients=counts, diverged=np.arange(len(counts)) < short)
    )


class TestLogEvidence:
    def test_value_and_error_cover_the_truth(self):
        """Lognormal weights have a mean of exp(sd^2 / 2)."""
        rng = np.random.default_rng(0)
        z = []
        for _ in range(200):
            found = log_evidence(drawn(3 + 0.5 * rng.normal(size=(1, 400)), single=True))
            z.append((found.value - 3 - 0.125) / found.error)
        assert abs(np.mean(z)) < 0.3 and 0.85 < np.std(z) < 1.15

    def test_runs_are_the_units_of_populations(self):
        """Particles that share their run's luck add nothing to it."""
        luck = np.random.default_rng(0).normal(size=(50, 1))
        found = log_evidence(drawn(np.repeat(luck, 100, axis=1), single=False))
        alone = log_evidence(drawn(luck.T, single=True))
        np.testing.assert_allclose([found.value, found.error, found.ess], [alone.value, alone.error, alone.ess])

    def test_one_run_has_no_error_and_says_so(self):
        found = log_evidence(drawn(np.zeros((1, 100)), single=False))
        assert found.value == pytest.approx(0) and math.isnan(found.error)
        assert "unknown: one run" in str(found)

    def test_populations_that_did_not_arrive_are_warned_of(self):
        with pytest.warns(UserWarning, match="2 of 3 populations did not reach the target.*max_levels"):
            log_evidence(drawn(np.zeros((3, 10)), single=False, short=2))

    def test_ess_counts_units_of_equal_weight(self):
        assert log_evidence(drawn([[0.0, 0.0, -np.inf, -np.inf]], single=True)).ess == pytest.approx(2)
        assert log_evidence(drawn([[-np.inf, -np.inf]], single=True)).value == -np.inf

    @pytest.mark.parametrize(
        ("draws", "message"),
        [
            (SimpleNamespace(log_weight=None), "needs weighted draws"),
            (5, r"log_evidence got int; expected the Draws that sample\(...\) returns"),
            (drawn([[0.0, np.nan]], single=True), "NaN or \\+inf"),
            (drawn([[0.0, np.inf]], single=True), "NaN or \\+inf"),
        ],
    )
    def test_what_is_no_weight_is_refused(self, draws, message):
        with pytest.raises((TypeError, ValueError), match=message):
            log_evidence(draws)

    def test_draws_of_a_sampler_of_either_kind(self):
        base = gs.mcmc.normal_base(jnp.zeros(2), scale=1.5)
        target = gs.Target.from_log_density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(2))
        options = {"levels": jnp.ones(1), "step_sizes": 0.5, "kernel": gs.mcmc.mala}
        path = gs.paths.geometric(base, target)
        for sampler, number in ((gs.mcmc.ais(path, **options), 500), (gs.mcmc.smc(path, num_particles=20, **options), 25)):
            found = log_evidence(gs.sample(jax.random.key(0), sampler, number))
            assert abs(found.value - math.log(2 * math.pi)) < 4 * found.error < 0.4
            assert found.ess < number


def gaussian_replicas(rng, chains=20, steps=500, levels=(0.0, 0.3, 1.0)):
    """Exact draws of p_t = exp(-x^2 / (2 s_t^2)), 1 / s_t^2 = 1 - t + 4 t, and log Z = log sqrt(2 pi s^2) in between."""
    precision = 1 + 3 * np.asarray(levels)
    x = rng.normal(size=(chains, steps, len(levels))) / np.sqrt(precision)
    change = np.diff(precision)
    forward = -0.5 * change * x[..., :-1] ** 2
    backward = 0.5 * change * x[..., 1:] ** 2
    return np.stack([forward, backward], -1), -0.5 * math.log(precision[-1])


@pytest.mark.parametrize("estimate", [stepping_stone, bridge])
def test_estimates_from_replicas_are_right_within_their_error(estimate):
    rng = np.random.default_rng(1)
    z = []
    for _ in range(40):
        ratios, truth = gaussian_replicas(rng, steps=60)
        found = estimate(ratios)
        z.append((found.value - truth) / found.error)
    assert abs(np.mean(z)) < 0.5 and 0.7 < np.std(z) < 1.3


def test_the_bridge_has_the_smaller_error():
    ratios, _ = gaussian_replicas(np.random.default_rng(1), levels=(0.0, 1.0))
    assert bridge(ratios).error < 0.9 * stepping_stone(ratios).error
    assert 0 < bridge(ratios).ess < 20 * 500


def test_a_base_that_reaches_where_the_target_is_hardly_anything_leaves_the_bridge_its_digits():
    """A normal law, and the part of it above -1, below which the log density falls by 1e20."""
    x = np.random.default_rng(1).normal(size=(20, 500, 1))
    ratios = np.stack([np.where(x > -1, 0, -1e20), np.zeros_like(x)], -1)
    found = bridge(ratios)
    assert abs(found.value - norm.logsf(-1)) < 4 * found.error < 0.04


def test_the_thermodynamic_integral_converges_in_the_levels():
    rng = np.random.default_rng(1)
    gaps = []
    for number in (3, 5, 9):
        ratios, truth = gaussian_replicas(rng, steps=20_000, levels=np.linspace(0, 1, number))
        found = thermodynamic(ratios)
        gaps.append(abs(found.value - truth))
        assert gaps[-1] < found.error
    assert gaps[0] > 4 * gaps[1] and gaps[2] < 0.005


def test_one_chain_is_cut_into_blocks_and_the_base_may_be_unnormalised():
    ratios, truth = gaussian_replicas(np.random.default_rng(2), chains=1, steps=4000)
    found = stepping_stone(ratios[0], base_log_normaliser=5.0)
    assert abs(found.value - 5 - truth) < 4 * found.error < 0.2


def test_replicas_of_parallel_tempering():
    base = gs.mcmc.normal_base(jnp.zeros(1), scale=2.0)
    target = gs.Target.from_log_density(lambda x: -0.5 * jnp.sum(x**2) + 7.0, jnp.zeros(1))
    sampler = gs.mcmc.parallel_tempering(
        gs.paths.geometric(base, target), levels=jnp.array([0.0, 0.3, 1.0]), step_sizes=1.0, kernel=gs.mcmc.mala, report=True
    )
    draws = gs.sample(jax.random.key(0), sampler, 2000, num_chains=4, warmup=50)
    for estimate in (stepping_stone, bridge, thermodynamic):
        found = estimate(draws.info.extra["log_ratios"])
        assert abs(found.value - 7 - 0.5 * math.log(2 * math.pi)) < 4 * found.error < 0.4


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        (np.zeros((10, 2)), "log_ratios of shape \\[10, 2\\]; expected \\[chain, step, pair, 2\\]"),
        (np.zeros((1, 1, 3, 2)), "expected \\[chain, step, pair, 2\\]"),
        (np.full((2, 10, 3, 2), np.inf), "not finite"),
    ],
)
@pytest.mark.parametrize("estimate", [stepping_stone, bridge, thermodynamic])
def test_what_are_no_ratios_is_refused(estimate, ratios, message):
    with pytest.raises(ValueError, match=message):
        estimate(ratios)


def log_likelihood(y, noise, x):
    return jnp.sum(-0.5 * ((y - x[0]) / noise) ** 2 - jnp.log(noise) - 0.5 * jnp.log(2 * jnp.pi))


def log_posterior(prior, y, noise, x):
    return prior(x) + log_likelihood(y, noise, x)


def conjugate(y, noise, scale):
    """y_i ~ N(x, noise^2), x ~ N(0, scale^2): log evidence in closed form."""
    n, total = len(y), float(np.sum(y))
    precision = n / noise**2 + 1 / scale**2
    return (
        -0.5 * n * math.log(2 * math.pi * noise**2) - 0.5 * float(np.sum(y**2)) / noise**2
        - 0.5 * math.log(scale**2 * precision) + 0.5 * (total / noise**2) ** 2 / precision
    )  # fmt: skip


BASE = gs.mcmc.normal_base(jnp.zeros(1))


class TestCompareEvidence:
    y = np.array([0.9, 1.4, 0.2, 1.1, 0.7], np.float32)

    def models(self):
        priors = {name: gs.mcmc.normal_base(jnp.zeros(1), scale=scale) for name, scale in (("tight", 1.0), ("wide", 30.0))}
        data = jnp.asarray(self.y), jnp.float32(0.5)
        targets = {
            name: gs.Target.from_log_density(gs.bind(log_posterior, prior.log_density, *data), jnp.zeros(1))
            for name, prior in priors.items()
        }
        return targets, priors

    def test_bayes_factor_in_closed_form(self):
        targets, priors = self.models()
        found = compare_evidence(jax.random.key(0), targets, priors=priors, num_particles=256)
        truth = {"tight": conjugate(self.y, 0.5, 1.0), "wide": conjugate(self.y, 0.5, 30.0)}
        for name, value in truth.items():
            assert abs(found.evidence[name].value - value) < 4 * found.evidence[name].error < 0.3
        factor, error = found.log_bayes_factor("tight", "wide")
        assert abs(factor - truth["tight"] + truth["wide"]) < 4 * error
        assert found.best == "tight" and str(found).startswith("tight: log Z = ")
        assert found.bill.gradients > 0 and found.draws["wide"].log_weight.shape == (16, 256)
        with pytest.raises(ValueError, match="no model 'none'"):
            found.log_bayes_factor("none", "wide")

    @pytest.mark.slow
    def test_two_numpyro_models_in_one_call(self):
        import numpyro
        from numpyro import distributions as dist

        def model(y, scale):
            x = numpyro.sample("x", dist.Normal(0.0, scale))
            numpyro.sample("y", dist.Normal(x, 0.5), obs=y)

        targets = {name: gs.Target.from_numpyro(model, self.y, scale) for name, scale in (("tight", 1.0), ("wide", 30.0))}
        found = compare_evidence(jax.random.key(0), targets, num_particles=256)
        factor, error = found.log_bayes_factor("tight", "wide")
        assert abs(factor - conjugate(self.y, 0.5, 1.0) + conjugate(self.y, 0.5, 30.0)) < 4 * error < 0.3

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"num_runs": 2}, "num_runs 2; expected at least 4"),
            ({"targets": {}}, "got no model"),
            ({"targets": [BASE]}, "got list as targets; expected {name: Target}"),
            ({"targets": BASE}, "got Target as targets; expected {name: Target}"),
            ({"targets": {"tight": 3}}, "got int for 'tight' in targets; expected a Target"),
            ({"priors": "mine"}, "got str as priors; expected {name: Target}, one Target for all, or None"),
            ({"priors": {"tight": None}}, "got NoneType for 'tight' in priors; expected a Target"),
            ({"priors": {"tight": BASE}}, "got no prior for 'wide', only for tight"),
            ({"priors": None}, "no prior for 'tight', which is not made by from_numpyro; pass it as priors="),
            (
                {"priors": gs.mcmc.normal_base(jnp.zeros(2))},
                "from the prior of 'tight' to its target: geometric got a base of events",
            ),
            (
                {"priors": dataclasses.replace(BASE, exact=None)},
                "from the prior of 'tight' to its target: geometric needs target.exact",
            ),
        ],
    )
    def test_what_cannot_be_compared_is_refused(self, change, message):
        targets, priors = self.models()
        with pytest.raises((TypeError, ValueError), match=message):
            compare_evidence(**({"key": jax.random.key(0), "targets": targets, "priors": priors} | change))
