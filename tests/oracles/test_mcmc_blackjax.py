"""Our chains against raw blackjax, step by step, from the same keys."""

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.mcmc.diffusions import overdamped_langevin

import gensamp as gs

COVARIANCE = jnp.array([[1.0, 0.5, 0.0], [0.5, 2.0, -0.3], [0.0, -0.3, 0.5]])
STEP = 0.3
STEPS = 30


def log_density(x):
    return -0.5 * x @ jnp.linalg.solve(COVARIANCE, x) - 0.1 * jnp.sum(x**4)


@pytest.fixture
def target():
    return gs.Target.from_log_density(log_density, jnp.zeros(3))


def ours(sampler, x):
    def body(state, index):
        state, info = sampler.step(jax.random.fold_in(jax.random.key(7), index), state, index)
        return state, (sampler.position(state), info.acceptance)

    return jax.lax.scan(body, sampler.init(jax.random.key(0), x), jnp.arange(STEPS, dtype=jnp.int32))[1]


def theirs(algorithm, x):
    def body(state, index):
        state, info = algorithm.step(jax.random.fold_in(jax.random.key(7), index), state)
        return state, (state.position, info.acceptance_rate)

    return jax.lax.scan(body, algorithm.init(x), jnp.arange(STEPS, dtype=jnp.int32))[1]


def assert_close(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_mala_without_a_metric_is_blackjax_mala(target):
    x = jnp.array([0.5, -1.0, 0.2])
    ours_x, ours_a = ours(gs.mcmc.mala(target, STEP), x)
    assert_close((ours_x, ours_a), theirs(blackjax.mala(log_density, STEP), x))
    assert 0 < float(ours_a.mean()) < 1


@pytest.mark.parametrize("metric", [jnp.array([1.0, 2.0, 0.5]), COVARIANCE], ids=["diagonal", "dense"])
def test_mala_with_a_metric_is_blackjax_mala_in_whitened_coordinates(target, metric):
    root = jnp.linalg.cholesky(jnp.diag(metric) if metric.ndim == 1 else metric)
    x = jnp.array([0.5, -1.0, 0.2])
    white, acceptance = theirs(blackjax.mala(lambda y: log_density(root @ y), STEP), jnp.linalg.solve(root, x))
    assert_close(ours(gs.mcmc.mala(target, STEP, inverse_mass_matrix=metric), x), (white @ root.T, acceptance))


def test_hmc_is_blackjax_hmc(target):
    x, metric = jnp.array([0.5, -1.0, 0.2]), jnp.array([1.0, 2.0, 0.5])
    sampler = gs.mcmc.hmc(target, STEP, inverse_mass_matrix=metric, num_integration_steps=5)
    assert_close(ours(sampler, x), theirs(blackjax.hmc(log_density, STEP, metric, 5), x))


def test_nuts_is_blackjax_nuts(target):
    x = jnp.array([0.5, -1.0, 0.2])
    sampler = gs.mcmc.nuts(target, STEP, inverse_mass_matrix=COVARIANCE)
    assert_close(ours(sampler, x), theirs(blackjax.nuts(log_density, STEP, COVARIANCE), x))


def test_ula_is_the_overdamped_langevin_of_blackjax(target):
    x = jnp.array([0.5, -1.0, 0.2])
    sampler = gs.mcmc.ula(target, STEP)
    move = overdamped_langevin(jax.value_and_grad(log_density))
    state, raw = sampler.init(jax.random.key(0), x), blackjax.mala.init(x, log_density)
    for i in range(5):
        state, _ = sampler.step(jax.random.key(i), state, jnp.int32(i))
        raw = move(jax.random.key(i), raw, STEP)
        np.testing.assert_allclose(state.position, raw.position, rtol=1e-5, atol=1e-5)


def test_ula_with_a_dense_metric_is_ula_in_whitened_coordinates(target):
    x = jnp.array([0.5, -1.0, 0.2])
    root = jnp.linalg.cholesky(COVARIANCE)
    white = gs.Target.from_log_density(lambda y: log_density(root @ y), jnp.zeros(3))
    left, _ = ours(gs.mcmc.ula(target, STEP, inverse_mass_matrix=COVARIANCE), x)
    right, _ = ours(gs.mcmc.ula(white, STEP), jnp.linalg.solve(root, x))
    np.testing.assert_allclose(left, right @ root.T, rtol=1e-3, atol=1e-3)
