"""BAOAB: its map without noise, its velocities, its state, and what it refuses. Its law is in tests/statistical."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gensamp as gs

COVARIANCE = jnp.array([[1.0, 0.5, 0.0], [0.5, 2.0, -0.3], [0.0, -0.3, 0.5]])


def log_density(x):
    return -0.5 * x @ jnp.linalg.solve(COVARIANCE, x) - 0.1 * jnp.sum(x**4)


@pytest.fixture
def target():
    return gs.Target.from_log_density(log_density, jnp.zeros(3))


@jax.jit
def states(sampler, x):
    """The states and Infos of twenty steps from x."""

    def body(state, index):
        state, info = sampler.step(jax.random.fold_in(jax.random.key(7), index), state, index)
        return state, (state, info)

    return jax.lax.scan(body, sampler.init(jax.random.key(0), x), jnp.arange(20, dtype=jnp.int32))[1]


def test_without_friction_it_is_the_leapfrog_and_keeps_the_energy(target):
    trail, info = states(gs.mcmc.underdamped(target, 0.02, friction=1e-12), jnp.array([0.5, -1.0, 0.2]))
    energy = jax.vmap(lambda s: 0.5 * jnp.sum(s.velocity**2) - log_density(s.position))(trail)
    assert float(jnp.ptp(energy)) < 1e-3 * float(jnp.ptp(jax.vmap(log_density)(trail.position)))
    assert info.gradients.tolist() == [1] * 20


def test_a_dense_metric_is_a_change_of_coordinates(target):
    """The state knows nothing of the metric: velocities agree, and positions are each other's image."""
    root = jnp.linalg.cholesky(COVARIANCE)
    white = gs.Target.from_log_density(lambda y: log_density(root @ y), jnp.zeros(3))
    y = jnp.array([0.5, -1.0, 0.2])
    one, _ = states(gs.mcmc.underdamped(target, 0.5, inverse_mass_matrix=COVARIANCE), root @ y)
    other, _ = states(gs.mcmc.underdamped(white, 0.5), y)
    np.testing.assert_allclose(one.velocity, other.velocity, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(one.position, other.position @ root.T, rtol=1e-3, atol=1e-3)


def test_velocities_of_a_whitened_gaussian_have_the_variance_they_should():
    """1 - eps^2 / 4, while the positions have variance 1, from a start in equilibrium."""
    target = gs.Target.from_log_density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(50_000))
    trail, _ = states(gs.mcmc.underdamped(target, 1.2), jax.random.normal(jax.random.key(1), (50_000,)))
    assert float(trail.velocity[-1].var()) == pytest.approx(1 - 1.2**2 / 4, abs=0.02)
    assert float(trail.position[-1].var()) == pytest.approx(1.0, abs=0.03)


def test_init_draws_a_velocity_and_nothing_of_metric_or_step(target):
    x = jnp.zeros(3)
    begin = [
        gs.mcmc.underdamped(target, size, inverse_mass_matrix=metric).init(jax.random.key(0), x)
        for size, metric in ((0.1, None), (0.7, COVARIANCE))
    ]
    jax.tree.map(np.testing.assert_array_equal, *begin)
    assert bool((begin[0].velocity != gs.mcmc.underdamped(target, 0.1).init(jax.random.key(1), x).velocity).all())


def test_follows_the_score_it_is_given_and_needs_no_density():
    target = gs.Target(template=gs.core.as_template(jnp.zeros(1)), score=gs.bind(lambda x: jnp.full_like(x, 3.0)))
    draws = gs.chain(jax.random.key(0), gs.mcmc.underdamped(target, 0.2, friction=2.0), 2000)
    drift = float(jnp.diff(draws.position[200:, 0]).mean()) / 0.2
    assert drift == pytest.approx(3.0 / 2.0, abs=0.2)  # the limiting speed is force / friction


def test_says_when_it_leaves_for_infinity():
    target = gs.Target.from_log_density(lambda x: -jnp.sum(x**4), jnp.zeros(2))
    draws = gs.chain(jax.random.key(0), gs.mcmc.underdamped(target, 5.0), 50)
    assert not draws.info.diverged[0]
    assert draws.info.diverged[-1]


@pytest.mark.parametrize("friction", [0.0, -1.0, float("nan"), None, jnp.ones(2)])
def test_refuses_a_friction_that_is_not_positive(target, friction):
    with pytest.raises(ValueError, match="underdamped got friction"):
        gs.mcmc.underdamped(target, 0.1, friction=friction)


def test_tune_has_nothing_to_tune_it_by(target):
    with pytest.raises(ValueError, match="accepts everything"):
        gs.tune(jax.random.key(0), gs.mcmc.underdamped, target, progress=False)
