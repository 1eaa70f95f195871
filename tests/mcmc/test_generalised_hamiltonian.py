"""Generalised HMC: its state, its kernel against blackjax's, and what it refuses. Its law is in tests/statistical."""

import blackjax
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


def test_without_a_metric_it_is_blackjax(target):
    sampler, kernel = gs.mcmc.ghmc(target, 0.4, alpha=0.3, delta=0.2), blackjax.ghmc.build_kernel()

    @jax.jit
    def both(key):
        begin = sampler.init(key, jnp.array([0.5, -1.0, 0.2]))

        def body(states, index):
            key = jax.random.fold_in(jax.random.key(7), index)
            ours, info = sampler.step(key, states[0], index)
            theirs, expected = kernel(key, states[1], log_density, 0.4, jnp.ones(3), 0.3, 0.2)
            return (ours, jax.tree.map(jnp.asarray, theirs)), ((ours, info.acceptance), (theirs, expected.acceptance_rate))

        return jax.lax.scan(body, (begin, begin), jnp.arange(30, dtype=jnp.int32))[1]

    ours, theirs = both(jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), ours, theirs)
    assert 0 < float(ours[1].min()) < 1


def test_a_dense_metric_is_a_change_of_coordinates(target):
    """The whitened momentum is all the state knows of a metric: the states agree, and the positions are each other's image."""
    root = jnp.linalg.cholesky(COVARIANCE)
    white = gs.Target.from_log_density(lambda y: log_density(root @ y), jnp.zeros(3))
    y = jnp.array([0.5, -1.0, 0.2])
    one, other = (
        chain(gs.mcmc.ghmc(t, 0.5, inverse_mass_matrix=metric), x)
        for t, metric, x in ((target, COVARIANCE, root @ y), (white, None, y))
    )
    np.testing.assert_allclose(one[0].slice, other[0].slice, rtol=1e-4)
    np.testing.assert_allclose(one[0].momentum, other[0].momentum, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(one[0].position, other[0].position @ root.T, rtol=1e-3, atol=1e-3)


@jax.jit
def chain(sampler, x):
    """The states of twenty steps from x."""

    def body(state, index):
        state, info = sampler.step(jax.random.fold_in(jax.random.key(7), index), state, index)
        return state, (state, info)

    return jax.lax.scan(body, sampler.init(jax.random.key(0), x), jnp.arange(20, dtype=jnp.int32))[1]


def test_init_draws_momentum_and_slice_and_nothing_of_the_metric(target):
    one, other = gs.mcmc.ghmc(target, 0.1), gs.mcmc.ghmc(target, 0.7, inverse_mass_matrix=COVARIANCE)
    assert jax.tree.structure(one.init) == jax.tree.structure(other.init)
    state = jax.jit(jax.vmap(one.init, (0, None)))(jax.random.split(jax.random.key(0), 5000), jnp.zeros(3))
    np.testing.assert_allclose(np.cov(state.momentum.T), np.eye(3), atol=0.1)
    assert float(state.slice.min()) == pytest.approx(-1, abs=0.01)
    assert float(state.slice.max()) == pytest.approx(1, abs=0.01)


def test_a_step_into_nowhere_is_rejected_and_the_chain_goes_on():
    """Energies that overflow must leave momentum and slice finite."""
    target = gs.Target.from_log_density(lambda x: -jnp.sum(x**4), jnp.zeros(2))
    state, info = chain(gs.mcmc.ghmc(target, 1e6), jnp.ones(2))
    assert bool(info.diverged.all())
    assert float(info.acceptance.max()) == 0
    assert bool((state.position == 1).all())
    assert bool(jnp.isfinite(state.momentum).all() & jnp.isfinite(state.slice).all())


def test_defaults_follow_the_step_size(target):
    *_, alpha, delta = gs.mcmc.ghmc(target, 0.5).step.args
    assert float(alpha) == pytest.approx(1 - np.exp(-1.0))
    assert float(delta) == pytest.approx(float(alpha) / 2)
    *_, alpha, delta = gs.mcmc.ghmc(target, 0.5, alpha=0.2).step.args
    assert (float(alpha), float(delta)) == (pytest.approx(0.2), pytest.approx(0.1))


@pytest.mark.parametrize("options", [{"alpha": 0.0}, {"alpha": 1.5}, {"delta": 2.5}, {"delta": -0.1}, {"alpha": jnp.ones(2)}])
def test_refuses_shares_out_of_range(target, options):
    with pytest.raises(ValueError, match=f"ghmc got {next(iter(options))}"):
        gs.mcmc.ghmc(target, 0.5, **options)
