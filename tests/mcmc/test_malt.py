"""MALT: its path against HMC's and against friction alone, its cost, and what it refuses. Its law is in tests/statistical."""

import importlib

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.mcmc.integrators import IntegratorState
from blackjax.mcmc.metrics import gaussian_euclidean

import gensamp as gs

COVARIANCE = jnp.array([[1.0, 0.5, 0.0], [0.5, 2.0, -0.3], [0.0, -0.3, 0.5]])
MALT = importlib.import_module("gensamp.mcmc.malt")


def log_density(x):
    return -0.5 * x @ jnp.linalg.solve(COVARIANCE, x) - 0.1 * jnp.sum(x**4)


def flat(x):
    return 0.0 * jnp.sum(x)


@pytest.fixture
def target():
    return gs.Target.from_log_density(log_density, jnp.zeros(3))


@pytest.mark.parametrize("metric", [jnp.array([1.0, 2.0, 0.5]), COVARIANCE], ids=["diagonal", "dense"])
def test_without_damping_a_path_is_that_of_hmc(target, metric):
    """The same end, and the same gain of energy, from the same momentum."""
    euclidean, x, p = gaussian_euclidean(metric), jnp.array([0.5, -1.0, 0.2]), jnp.array([1.0, 0.3, -0.7])
    begin = IntegratorState(x, p, *jax.value_and_grad(log_density)(x))
    path = jax.jit(lambda n: MALT._travel(log_density, euclidean, 0.3, jnp.float32(0), n, jax.random.key(0), begin))
    end, gained = path(jnp.int32(5))
    propose = blackjax.mcmc.hmc.hmc_proposal(
        blackjax.mcmc.integrators.velocity_verlet(log_density, euclidean.kinetic_energy), euclidean.kinetic_energy, 0.3, 5
    )
    _, info, _ = jax.jit(propose)(jax.random.key(0), begin)
    np.testing.assert_allclose(end.position, info.proposal.position, rtol=1e-5)
    energy = euclidean.kinetic_energy(p) - begin.logdensity
    assert float(gained - end.logdensity) == pytest.approx(float(info.energy - energy - begin.logdensity), abs=1e-4)


def test_friction_and_noise_alone_keep_the_momentum_normal_and_gain_no_energy():
    """Where the density is flat the momentum is an autoregression with coefficient exp(-damping time), and nothing is error."""
    euclidean, damping, step_size, count = gaussian_euclidean(COVARIANCE), jnp.float32(0.7), jnp.float32(0.25), 4

    @jax.jit
    @jax.vmap
    def path(key):
        p = euclidean.sample_momentum(key, jnp.zeros(3))
        begin = IntegratorState(jnp.zeros(3), p, jnp.float32(0), jnp.zeros(3))
        end, gained = MALT._travel(flat, euclidean, step_size, damping, count, jax.random.fold_in(key, 1), begin)
        return p, end.momentum, gained

    before, after, gained = (np.asarray(a) for a in path(jax.random.split(jax.random.key(0), 20_000)))
    mass = np.linalg.inv(COVARIANCE)
    np.testing.assert_allclose(np.cov(after.T), mass, atol=0.08)
    np.testing.assert_allclose(before.T @ after / len(before), np.exp(-0.7 * 0.25 * 4) * mass, atol=0.08)
    assert np.abs(gained).max() == 0


@pytest.mark.slow
def test_a_path_of_one_step_is_mala(target):
    """One leapfrog step from a new momentum: the acceptances have one law."""
    x, keys = jnp.array([0.5, -1.0, 0.2]), jax.random.split(jax.random.key(1), 4000)
    means = []
    for sampler in (gs.mcmc.malt(target, 0.9, trajectory_length=0.5), gs.mcmc.mala(target, 0.9**2 / 2)):
        _, info = jax.jit(jax.vmap(sampler.step, (0, None, None)))(keys, sampler.init(keys[0], x), jnp.int32(0))
        assert int(info.gradients.max()) == 1
        means.append((float(info.acceptance.mean()), float(info.acceptance.std()) / len(keys) ** 0.5))
    (one, error), (other, _) = means
    assert 0.1 < one < 0.95
    assert abs(one - other) < 4 * 2**0.5 * error


def test_a_draw_forgets_the_last_at_the_default_length():
    """On a whitened Gaussian with small steps the correlation between draws vanishes."""
    target = gs.Target.from_log_density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(200))
    x = gs.chain(jax.random.key(0), gs.mcmc.malt(target, 0.2), 100).position[20:]
    assert abs(float((x[1:] * x[:-1]).mean())) < 4 / x[1:].size ** 0.5 + 0.02


def test_costs_its_length_over_its_step_size(target):
    draws = gs.chain(jax.random.key(0), gs.mcmc.malt(target, 0.1, trajectory_length=0.95), 5)
    assert draws.info.gradients.tolist() == [10] * 5
    draws = gs.chain(jax.random.key(0), gs.mcmc.malt(target, 1e-30, max_num_steps=7), 5)
    assert draws.info.gradients.tolist() == [7] * 5


def test_a_path_into_nowhere_is_rejected():
    target = gs.Target.from_log_density(lambda x: -jnp.sum(x**4), jnp.zeros(2))
    sampler = gs.mcmc.malt(target, 50.0, trajectory_length=200.0, start=lambda key: jnp.ones(2))
    draws = gs.chain(jax.random.key(0), sampler, 20)
    assert bool((draws.position == 1).all())
    assert bool(draws.info.diverged.all())
    assert float(draws.info.acceptance.max()) == 0


@pytest.mark.slow
def test_tune_finds_step_size_and_metric():
    scales = jnp.array([0.1, 1.0, 10.0])
    stretched = gs.Target.from_log_density(lambda x: -0.5 * jnp.sum((x / scales) ** 2), jnp.zeros(3))
    tuned = gs.tune(jax.random.key(0), gs.mcmc.malt, stretched, num_steps=300, target_acceptance=0.65, progress=False)
    np.testing.assert_allclose(jnp.sqrt(tuned.inverse_mass_matrix), scales, rtol=0.3)
    assert 0.5 < tuned.acceptance.mean() < 0.8


@pytest.mark.parametrize("options", [{"trajectory_length": 0.0}, {"damping": -1.0}, {"damping": None}, {"max_num_steps": 0}])
def test_refuses_sizes_that_are_not_positive(target, options):
    with pytest.raises(ValueError, match=f"malt got {next(iter(options))}"):
        gs.mcmc.malt(target, 0.1, **options)
