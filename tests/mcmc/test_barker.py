"""Barker's proposal: its kernel against blackjax's, where that one is right and where not. Its law is in tests/statistical."""

import dataclasses
import importlib

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import gensamp as gs

KERNEL = blackjax.barker.build_kernel()
POINT = {"a": jnp.float32(0.4), "b": jnp.array([-0.8, 1.1])}


def log_quartic(x):
    return -0.5 * jnp.sum(x["a"] ** 2) - 0.3 * jnp.sum(x["b"] ** 4) - 0.2 * x["a"] * x["b"][0]


def log_skewed(x):
    return -0.5 * jnp.sum(x**2 / jnp.array([1.0, 1e4])) - 0.01 * x[0] ** 4


def log_linear(slopes, x):
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda s, a: jnp.sum(s * a), slopes, x))


def stay(x, key):
    del key
    return x


@jax.jit
def chain_from(sampler, x):
    """Twenty states from x."""
    return gs.chain(jax.random.key(0), dataclasses.replace(sampler, start=gs.bind(stay, x)), 20)


@pytest.fixture
def target():
    return gs.Target.from_log_density(log_quartic, {"a": jnp.zeros(()), "b": jnp.zeros((2,))})


def test_accepts_what_blackjax_accepts(target):
    """Of a proposal that blackjax made, ours says the same acceptance."""
    module = importlib.import_module("gensamp.mcmc.barker")
    state = blackjax.barker.init(POINT, target.log_density)

    def both(key):
        _, info = KERNEL(key, state, target.log_density, 1.0)
        there = info.proposal
        x, y, slope, slope_there = (
            ravel_pytree(tree)[0] for tree in (state.position, there.position, state.logdensity_grad, there.logdensity_grad)
        )
        ratio = there.logdensity - state.logdensity + module._correction(y - x, slope, slope_there)
        return jnp.minimum(jnp.exp(ratio), 1), info.acceptance_rate

    ours, theirs = jax.jit(jax.vmap(both))(jax.random.split(jax.random.key(1), 200))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert np.std(ours) > 0.1


def test_proposes_what_blackjax_proposes(target):
    """Increments, their signs and squares from a point with a slope, in units of their standard error."""
    state = blackjax.barker.init(POINT, target.log_density)
    # A density with the same slopes everywhere, under which every proposal of ours is accepted.
    flat = gs.Target.from_log_density(gs.bind(log_linear, state.logdensity_grad), target.template)
    sampler = gs.mcmc.barker(flat, 0.7)

    @jax.jit
    @jax.vmap
    def both(key):
        moved, info = sampler.step(key, sampler.init(key, POINT), jnp.int32(0))
        return moved.position, KERNEL(key, state, target.log_density, 0.7)[1].proposal.position, info.acceptance

    keys = jax.random.split(jax.random.key(2), 20_000)
    *positions, acceptance = both(keys)
    assert float(acceptance.min()) == pytest.approx(1, abs=1e-4)
    increments = [np.column_stack([np.asarray(x["a"]), np.asarray(x["b"])]) - ravel_pytree(POINT)[0][None] for x in positions]
    for statistic in (lambda w: w, lambda w: w > 0, lambda w: w**2):
        one, other = (np.asarray(statistic(np.asarray(w)), float) for w in increments)
        error = np.hypot(one.std(0), other.std(0)) / len(keys) ** 0.5
        assert (np.abs(one.mean(0) - other.mean(0)) < 4 * error).all()


@pytest.mark.parametrize("metric", [jnp.array([1.0, 1e4]), jnp.diag(jnp.array([1.0, 1e4]))], ids=["diagonal", "dense"])
def test_variances_as_a_metric_make_all_coordinates_move_alike(metric):
    target = gs.Target.from_log_density(log_skewed, jnp.zeros(2))
    sampler = gs.mcmc.barker(target, 1.0, inverse_mass_matrix=metric)
    moves = jnp.diff(gs.chain(jax.random.key(0), sampler, 2000).position, axis=0)
    assert float(moves[:, 1].std() / moves[:, 0].std()) == pytest.approx(100, rel=0.3)


def test_a_dense_metric_is_a_change_of_coordinates():
    covariance = jnp.array([[1.0, 0.5, 0.0], [0.5, 2.0, -0.3], [0.0, -0.3, 0.5]])
    root = jnp.linalg.cholesky(covariance)

    def log_density(x):
        return -0.5 * x @ jnp.linalg.solve(covariance, x) - 0.1 * jnp.sum(x**4)

    x = jnp.array([0.5, -1.0, 0.2])
    metric = gs.mcmc.barker(gs.Target.from_log_density(log_density, x), 0.8, inverse_mass_matrix=covariance)
    white = gs.mcmc.barker(gs.Target.from_log_density(lambda y: log_density(root @ y), x), 0.8)
    states = [metric.init(jax.random.key(0), x), white.init(jax.random.key(0), jnp.linalg.solve(root, x))]
    for i in range(10):
        (one, a), (other, b) = (
            s.step(jax.random.key(i), state, jnp.int32(i)) for s, state in zip((metric, white), states, strict=True)
        )
        np.testing.assert_allclose(one.position, root @ other.position, rtol=1e-4, atol=1e-4)
        assert float(a.acceptance) == pytest.approx(float(b.acceptance), rel=1e-3)
        states = [one, other]


@pytest.mark.parametrize("distance", [100.0, 1e4])
def test_comes_back_from_a_steep_tail(distance):
    """Gradients of thousands, where exp overflows in float32."""
    target = gs.Target.from_log_density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(3))
    sampler = gs.mcmc.barker(target, distance / 50, start=lambda key: jnp.full(3, distance))
    draws = gs.chain(jax.random.key(0), sampler, 400)
    assert float(jnp.abs(draws.position[-1]).max()) < distance / 10


def test_rejects_proposals_that_are_not_finite():
    def log_density(x):
        return jnp.where(x[0] > 0, jnp.log(x[0]) - x[0], jnp.nan)

    target = gs.Target.from_log_density(log_density, jnp.zeros(1))
    draws = gs.chain(jax.random.key(0), gs.mcmc.barker(target, 2.0, start=lambda key: jnp.ones(1)), 300)
    assert bool((draws.position > 0).all())
    assert bool(draws.info.diverged.any())
    assert float(draws.info.acceptance.min()) == 0.0


def test_refuses_what_is_not_a_step_size_or_a_metric(target):
    with pytest.raises(ValueError, match=r"barker got step_size -1\.0"):
        gs.mcmc.barker(target, -1.0)
    with pytest.raises(ValueError, match=r"barker got an inverse_mass_matrix of shape \[2\]"):
        gs.mcmc.barker(target, 1.0, inverse_mass_matrix=jnp.ones(2))
