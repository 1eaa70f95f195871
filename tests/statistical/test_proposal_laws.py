"""Do chains without gradients have their target's law, and does one changed line show? Ten keys as lanes of one program."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.sgmcmc.diffusions import sghmc as sghmc_integrator
from planar_laws import (
    KEYS,
    METRIC,
    PROBABILITIES,
    assert_fails,
    assert_passes,
    bent_gaussian,
    correlated_gaussian,
    gaussian_truth,
    run,
)
from scipy.linalg import solve_discrete_lyapunov

import gensamp as gs
from gensamp.mcmc.langevin import langevin_move
from gensamp.pushforward import realnvp
from gensamp.testing import check_laws, power


@pytest.fixture(scope="module")
def gaussian():
    return correlated_gaussian()


@pytest.fixture(scope="module")
def banana():
    return bent_gaussian()


def broken(monkeypatch, sampler, name, line, module=None):
    """The sampler with the helper `name` of its module, which is one line of its step, replaced by another."""
    step = sampler.step.func
    monkeypatch.setattr(importlib.import_module(module or step.__module__), name, line)
    # A function of its own, so that no program compiled for the intact sampler is taken for this one.
    return dataclasses.replace(sampler, step=gs.bind(lambda *arguments: step(*arguments), *sampler.step.args))


def ends(sampler, num_chains, length):
    """The last states of many chains, which are independent: positions [key, 1, chain, 2]."""
    keys = jax.random.split(jax.random.key(2025), (KEYS, 1, num_chains))
    last = jax.jit(jax.vmap(jax.vmap(jax.vmap(lambda key: gs.chain(key, sampler, length).position[-1]))))
    return np.asarray(last(keys))


class TestRandomWalk:
    def test_correlated_gaussian(self, gaussian):
        assert_passes(run(gs.mcmc.random_walk(gaussian, 1.7, inverse_mass_matrix=METRIC), 4000), gaussian)

    @pytest.mark.slow
    def test_banana(self, banana):
        assert_passes(run(gs.mcmc.random_walk(banana, 1.0), 15_000), banana)

    @pytest.mark.slow
    def test_the_ends_of_short_chains(self, gaussian):
        assert_passes(ends(gs.mcmc.random_walk(gaussian, 1.7, inverse_mass_matrix=METRIC), 500, 60), gaussian)

    def test_accepting_everything_fails(self, gaussian, monkeypatch):
        # It has no law to settle into, so its chains never agree: judged are the ends of many short ones.
        sampler = gs.mcmc.random_walk(gaussian, 1.7, inverse_mass_matrix=METRIC)
        intact = importlib.import_module("gensamp.mcmc.random_walk")._ADDITIVE

        def indifferent(key, state, log_density, move):
            return intact(key, state, lambda x: state.logdensity, move)

        assert_fails(ends(broken(monkeypatch, sampler, "_ADDITIVE", indifferent), 500, 60), gaussian)


class TestIndependence:
    @pytest.fixture(scope="class")
    def flow(self):
        """A RealNVP that nobody trained, wider than the targets and no Gaussian."""
        model = realnvp(jnp.zeros(2), num_layers=2, width=8, depth=1)
        params, _ = model.init(jax.random.key(1), jnp.array([[-1.0, -1.0], [1.0, 1.0]]))
        params = jax.tree.map(lambda a: a + 0.3 * jax.random.normal(jax.random.key(2), a.shape), params)
        return model.sampler({**params, "log_scale": jnp.log(jnp.array([1.2, 1.8]))})

    def test_correlated_gaussian(self, gaussian, flow):
        assert_passes(run(gs.mcmc.independence(gaussian, flow), 3000), gaussian)

    @pytest.mark.slow
    def test_banana(self, banana, flow):
        assert_passes(run(gs.mcmc.independence(banana, flow), 4000), banana)

    def test_forgetting_the_density_of_the_proposal_fails(self, gaussian, flow, monkeypatch):
        twin = broken(monkeypatch, gs.mcmc.independence(gaussian, flow), "_log_proposal", lambda origin, end: 0.0)
        assert_fails(run(twin, 3000), gaussian)


class TestSlice:
    def test_correlated_gaussian(self, gaussian):
        assert_passes(run(gs.mcmc.slice_sampling(gaussian, jnp.array([1.5, 3.0])), 1500), gaussian)

    @pytest.mark.slow
    def test_banana(self, banana):
        assert_passes(run(gs.mcmc.slice_sampling(banana), 2000), banana)

    @pytest.mark.slow
    def test_a_short_interval_that_cannot_grow_keeps_the_law(self, gaussian):
        assert_passes(run(gs.mcmc.slice_sampling(gaussian, 1.0, max_expansions=2), 5000), gaussian)

    def test_taking_the_first_point_of_the_interval_fails(self, gaussian, monkeypatch):
        twin = broken(monkeypatch, gs.mcmc.slice_sampling(gaussian, 2.0), "_shrink", first_point, "blackjax.mcmc.slice")
        assert_fails(run(twin, 1500), gaussian)


def first_point(key, slice_fn, level, accept_fn, left, right, current_state, max_shrinkage):
    """blackjax's shrinkage without its loop."""
    candidate, is_valid = slice_fn(left + jax.random.uniform(key) * (right - left))
    return candidate, jnp.asarray(1), jnp.asarray(is_valid)


class TestHitAndRun:
    @pytest.mark.slow
    def test_correlated_gaussian(self, gaussian):
        assert_passes(run(gs.mcmc.hit_and_run(gaussian, inverse_mass_matrix=METRIC), 2500), gaussian)

    @pytest.mark.slow
    def test_banana(self, banana):
        assert_passes(run(gs.mcmc.hit_and_run(banana), 4000), banana)

    @pytest.mark.slow
    def test_taking_the_first_point_of_the_interval_fails(self, gaussian, monkeypatch):
        sampler = gs.mcmc.hit_and_run(gaussian, inverse_mass_matrix=METRIC)
        assert_fails(run(broken(monkeypatch, sampler, "_shrink", first_point, "blackjax.mcmc.slice"), 2500), gaussian)


class TestEllipticalSlice:
    mean, wide = jnp.array([0.5, -0.5]), jnp.array([[2.0, 1.0], [1.0, 5.0]])

    def test_correlated_gaussian(self, gaussian):
        assert_passes(run(gs.mcmc.elliptical_slice(gaussian, self.mean, self.wide), 3000), gaussian)

    @pytest.mark.slow
    def test_banana(self, banana):
        # Wide enough for the banana's long side, or chains stick there: with variances (2, 3) some 4 % of the keys fail.
        assert_passes(run(gs.mcmc.elliptical_slice(banana, self.mean, jnp.array([3.0, 12.0])), 4000), banana)

    def test_counting_the_gaussian_twice_fails(self, gaussian, monkeypatch):
        sampler = gs.mcmc.elliptical_slice(gaussian, self.mean, self.wide)
        twin = broken(monkeypatch, sampler, "_log_prior", lambda centre, root, x: 0.0, "gensamp.mcmc.elliptical_slice")
        assert_fails(run(twin, 3000), gaussian)


class TestStretch:
    """Walkers are no chains: the unit that is independent is the run, and errors come from the spread between runs."""

    runs, warmup, length = 60, 80, 120

    def walk(self, sampler):
        """Positions [key, run, draw * walker, 2]."""
        keys = jax.random.split(jax.random.key(2026), (KEYS, self.runs))
        walk = jax.jit(jax.vmap(jax.vmap(lambda key: gs.chain(key, sampler, self.warmup + self.length).position)))
        return np.asarray(walk(keys))[:, :, self.warmup :].reshape(KEYS, self.runs, -1, 2)

    def verdicts(self, sampler, target):
        positions = self.walk(sampler)
        checks = check_laws(
            positions, target, log_weight=np.zeros(positions.shape[:3]), min_ess=self.runs - 1, probabilities=PROBABILITIES
        )
        return power(checks), "\n".join(map(str, checks))

    def test_correlated_gaussian(self, gaussian):
        counts, report = self.verdicts(gs.mcmc.stretch(gaussian, 6), gaussian)
        assert counts["passed"] >= KEYS - 1, report

    @pytest.mark.slow
    def test_banana(self, banana):
        counts, report = self.verdicts(gs.mcmc.stretch(banana, 8), banana)
        assert counts["passed"] >= KEYS - 1, report

    def test_forgetting_the_volume_of_a_stretch_fails(self, gaussian, monkeypatch):
        sampler = gs.mcmc.stretch(gaussian, 6)
        counts, report = self.verdicts(broken(monkeypatch, sampler, "_log_volume", lambda z, size: 0.0 * z), gaussian)
        assert counts["failed"] >= KEYS - 1, report


def log_batch(prior_precision, noise_variance, number, x, batch):
    """The posterior of the mean of normal data, from a batch: N / n times its likelihood."""
    likelihood = -0.5 * (jnp.square(batch - x[None]) / noise_variance[None]).sum()
    return -0.5 * prior_precision * jnp.square(x).sum() + number / len(batch) * likelihood


def log_batch_unscaled(prior_precision, noise_variance, number, x, batch):
    return log_batch(prior_precision, noise_variance, len(batch), x, batch)


def log_posterior(prior_precision, noise_variance, data, x):
    return log_batch(prior_precision, noise_variance, len(data), x, data)


class TestMinibatches:
    """The mean of 1,000 normal data, where every recursion is linear and so its stationary law known."""

    number, batch, prior_precision = 1000, 200, 1 / 9
    noise_variance = np.array([1.0, 4.0])

    @pytest.fixture(scope="class")
    def data(self):
        noise = jax.random.normal(jax.random.key(3), (self.number, 2))
        return jnp.array([[0.5, -1.0]]) + noise * jnp.sqrt(jnp.asarray(self.noise_variance, jnp.float32))[None]

    @property
    def precision(self):
        return self.number / self.noise_variance + self.prior_precision

    def target(self, data, estimate=log_batch, checked=True):
        numbers = (jnp.float32(self.prior_precision), jnp.asarray(self.noise_variance, jnp.float32))
        whole = gs.Target.from_log_density(
            gs.bind(log_posterior, *numbers, data), jnp.zeros(2), data=data,
            minibatch_log_density=gs.bind(estimate, *numbers, jnp.float32(self.number)),
        )  # fmt: skip
        # Without a score there is nothing to check a batch against.
        return whole if checked else dataclasses.replace(whole, log_density=None, score=None)

    def law(self, data, variance):
        """N(posterior mean, variance): the recursions below are unbiased in the mean."""
        mean = np.asarray(data, float).sum(0) / self.noise_variance / self.precision
        quantiles = {p: (value + mean, error) for p, (value, error) in gaussian_truth(variance).quantiles.items()}
        truth = gs.Truth(mean=(mean, 0.0), variance=(variance, 0.0), quantiles=quantiles)
        return gs.Target(template=gs.core.as_template(jnp.zeros(2)), truth=truth, name="stationary")

    def gradient_noise(self, data):
        """Variance of a batch's gradient: N^2 / n times that of one row's."""
        return self.number**2 / self.batch * np.asarray(data, float).var(0) / self.noise_variance**2

    def sgld_variance(self, data, sizes):
        """Of x' = x - eps L x + eps zeta + sqrt(2 eps) xi."""
        return (2 + sizes * self.gradient_noise(data)) / (self.precision * (2 - sizes * self.precision))

    def sgld(self, target):
        return gs.mcmc.sgld(target, 2e-4, batch_size=self.batch, inverse_mass_matrix=self.noise_variance)

    def test_sgld_has_the_bias_it_should_have(self, data):
        positions = run(self.sgld(self.target(data)), 1500)
        assert_passes(positions, self.law(data, self.sgld_variance(data, 2e-4 * self.noise_variance)))
        assert_fails(positions, self.law(data, 1 / self.precision))

    @pytest.mark.slow
    def test_sgld_with_a_falling_step_ends_with_the_posterior(self, data):
        schedule = gs.mcmc.polynomial_decay(4e-4, delay=10.0, power=1.0)
        sampler = gs.mcmc.sgld(self.target(data), schedule, batch_size=self.batch, inverse_mass_matrix=self.noise_variance)
        variance = np.full(2, 4 / 3)
        for i in range(400):
            size = 4e-4 / (1 + i / 10.0) * self.noise_variance
            variance = (1 - size * self.precision) ** 2 * variance + 2 * size + size**2 * self.gradient_noise(data)
        # From twice the posterior's variance at the first step size.
        assert np.abs(variance * self.precision - 1).max() < 0.1
        assert_passes(ends(sampler, 300, 400), self.law(data, variance))

    @pytest.mark.slow
    def test_sgld_without_the_size_of_the_data_fails(self, data):
        positions = run(self.sgld(self.target(data, log_batch_unscaled, checked=False)), 5000)
        assert_fails(positions, self.law(data, self.sgld_variance(data, 2e-4 * self.noise_variance)))

    @pytest.mark.slow
    def test_sgld_with_half_the_noise_fails(self, data, monkeypatch):
        def quiet(key, position, score, step_size, metric):
            """sqrt(eps) in place of sqrt(2 eps): half the step along twice the score."""
            return langevin_move(key, position, 2 * score, step_size / 2, metric)

        twin = broken(monkeypatch, self.sgld(self.target(data)), "langevin_move", quiet)
        assert_fails(run(twin, 1500), self.law(data, self.sgld_variance(data, 2e-4 * self.noise_variance)))

    size, friction, removed = 0.01, 30.0, 1250.0

    def sghmc(self, target):
        options = {"friction": self.friction, "gradient_noise": self.removed}
        return gs.mcmc.sghmc(target, self.size, batch_size=self.batch, **options)

    def sghmc_variance(self, data):
        """Of x' = x + h p, p' = (1 - a h) p - h L x' + h zeta + sqrt(h (2 a - h b)) xi, by its Lyapunov equation."""
        h, a, b = self.size, self.friction, self.removed
        variance = []
        for precision, noise in zip(self.precision, self.gradient_noise(data), strict=True):
            map_ = np.array([[1, h], [-h * precision, 1 - a * h - h**2 * precision]])
            variance.append(solve_discrete_lyapunov(map_, np.diag([0, h**2 * noise + h * (2 * a - h * b)]))[0, 0])
        return np.array(variance)

    def test_sghmc_has_the_bias_it_should_have(self, data):
        positions = run(self.sghmc(self.target(data)), 2500, warmup=400)
        assert_passes(positions, self.law(data, self.sghmc_variance(data)))
        assert_fails(positions, self.law(data, 1 / self.precision))

    def test_sghmc_with_half_the_noise_fails(self, data, monkeypatch):
        def forgets_the_two(friction, gradient_noise):
            return sghmc_integrator(friction, gradient_noise + friction / self.size)

        sampler = self.sghmc(self.target(data))
        twin = broken(monkeypatch, sampler, "sghmc", forgets_the_two, "blackjax.sgmcmc.diffusions")
        assert_fails(run(twin, 2500, warmup=400), self.law(data, self.sghmc_variance(data)))
