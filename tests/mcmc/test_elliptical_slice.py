"""Elliptical slice sampling: what it refuses, that it is blackjax's, and that its loop always ends."""

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gensamp as gs

chain = jax.jit(gs.chain, static_argnums=2)


def tilted(x):
    """A Gaussian of unit variance times a likelihood that is none."""
    return -0.5 * jnp.sum(x**2) + jnp.sum(jnp.cos(x)) + x[0]


@pytest.fixture
def target():
    return gs.Target.from_log_density(tilted, jnp.zeros(3))


@pytest.fixture
def tree():
    return gs.Target.from_log_density(
        lambda x: -jnp.sum(x["a"] ** 2) - jnp.sum(x["b"] ** 2), {"a": jnp.zeros(()), "b": jnp.zeros((2,))}
    )


def test_the_gaussian_must_fit_the_event(tree):
    ones = {"a": jnp.ones(()), "b": jnp.ones(2)}
    for covariance in (jnp.ones(2), jnp.ones((2, 2)), 1.0):
        with pytest.raises(ValueError, match=r"expected variances \[3\] or a covariance \[3, 3\]"):
            gs.mcmc.elliptical_slice(tree, ones, covariance)
    for covariance in (jnp.array([1.0, -1.0, 1.0]), jnp.array([[1.0, 2, 0], [2, 1, 0], [0, 0, 1]]), jnp.zeros(3)):
        with pytest.raises(ValueError, match="not positive definite"):
            gs.mcmc.elliptical_slice(tree, ones, covariance)
    for mean in (jnp.ones(3), {"a": jnp.ones(()), "b": jnp.ones(3)}):
        with pytest.raises(ValueError, match="expected one event of the target"):
            gs.mcmc.elliptical_slice(tree, mean, jnp.ones(3))
    with pytest.raises(ValueError, match="elliptical_slice needs target"):
        gs.mcmc.elliptical_slice(gs.Target.from_data(jnp.ones((3, 2))), 0.0, jnp.ones(2))


def test_it_starts_at_a_draw_of_the_gaussian_on_any_tree(tree):
    mean = {"a": jnp.float32(5.0), "b": jnp.array([1.0, -3.0])}
    covariance = np.array([[4.0, 1.0, 0.0], [1.0, 1.0, 0.2], [0.0, 0.2, 0.5]])
    sampler = gs.mcmc.elliptical_slice(tree, mean, covariance)
    starts = jax.vmap(sampler.start)(jax.random.split(jax.random.key(0), 20_000))
    flat = np.column_stack([starts["a"], starts["b"]])
    np.testing.assert_allclose(flat.mean(0), [5.0, 1.0, -3.0], atol=0.06)
    np.testing.assert_allclose(np.cov(flat.T), covariance, atol=0.12)
    given = gs.mcmc.elliptical_slice(tree, mean, covariance, start=lambda key: mean)
    assert given.start(jax.random.key(0)) is mean


@pytest.mark.parametrize(
    "covariance",
    [pytest.param([1.0, 2.0, 0.5], marks=pytest.mark.slow), [[1.0, 0.5, 0.0], [0.5, 2.0, -0.3], [0.0, -0.3, 0.5]]],
    ids=["variances", "dense"],
)
def test_it_is_blackjax(target, covariance):
    mean, covariance = jnp.array([0.3, -0.2, 1.0]), jnp.array(covariance)
    precision = jnp.linalg.inv(jnp.diag(covariance) if covariance.ndim == 1 else covariance)

    def log_likelihood(x):
        return tilted(x) + 0.5 * (x - mean) @ precision @ (x - mean)

    sampler = gs.mcmc.elliptical_slice(target, mean, covariance)
    theirs = blackjax.elliptical_slice(log_likelihood, mean=mean, cov=covariance)
    x = jnp.array([0.5, -1.0, 0.2])
    ours, raw = sampler.init(jax.random.key(0), x), theirs.init(x)
    step, raw_step = jax.jit(sampler.step), jax.jit(theirs.step)
    tried = []
    for i in range(20):
        ours, info = step(jax.random.key(i), ours, jnp.int32(i))
        raw, raw_info = raw_step(jax.random.key(i), raw)
        np.testing.assert_allclose(sampler.position(ours), raw.position, rtol=1e-3, atol=1e-4)
        assert int(info.densities) == int(raw_info.subiter) and info.acceptance == 1.0
        tried.append(int(info.densities))
    assert max(tried) > 1


def test_with_the_targets_own_gaussian_every_first_point_is_taken():
    target = gs.Target.from_log_density(lambda x: -0.5 * jnp.sum(x**2 / 4), jnp.zeros(2))
    draws = chain(jax.random.key(0), gs.mcmc.elliptical_slice(target, 0.0, jnp.full(2, 4.0)), 200)
    # All but the draws whose level is within rounding of the likelihood, a constant.
    assert float(draws.info.densities.mean()) < 1.02


def hard(case, x):
    """Densities that are hard on a loop, chosen by number so that one program serves all."""
    nowhere = -jnp.inf * jnp.sum(x**2)
    unresolved = 1e7 - 1e9 * jnp.sum((x - 1) ** 4) + 0.1 * jnp.sum(jnp.sin(1e4 * x))
    half = jnp.where(x[0] > 0, -x[0], -jnp.inf)
    undefined = jnp.log(x[0]) - x[0]
    return jnp.stack([nowhere, unresolved, half, undefined])[case]


def at(place, key):
    del key
    return place


class TestTheLoopEnds:
    """Nothing bounds the number of points tried but the slice, which holds the current point."""

    @staticmethod
    def sampler(case, start):
        target = gs.Target.from_log_density(gs.bind(hard, jnp.int32(case)), jnp.zeros(1))
        return gs.mcmc.elliptical_slice(target, 0.5, jnp.ones(1), start=gs.bind(at, jnp.full(1, start)))

    def walk(self, case, start):
        return chain(jax.random.key(0), self.sampler(case, start), 300)

    def test_where_the_density_is_zero_everywhere(self):
        draws = self.walk(0, 1.0)
        assert bool((draws.position == 1.0).all()) and bool(draws.info.diverged.all())

    def test_from_a_place_that_is_no_number(self):
        draws = self.walk(2, jnp.nan)
        assert bool(jnp.isnan(draws.position).all()) and bool(draws.info.diverged.all())

    def test_where_no_point_reaches_the_level_again(self):
        # The state says that its density is higher than any evaluation will find, as a rounding error may.
        sampler = self.sampler(2, 1.0)
        state = sampler.init(jax.random.key(0), jnp.ones(1))._replace(logdensity=jnp.float32(1e6))
        after, info = jax.jit(sampler.step)(jax.random.key(1), state, jnp.int32(0))
        assert after.position.tolist() == [1.0] and 10 < int(info.densities) < 1000

    def test_in_a_likelihood_that_float32_can_hardly_resolve(self):
        draws = self.walk(1, 1.0)
        assert bool(jnp.isfinite(draws.position).all()) and not bool(draws.info.diverged.any())

    def test_it_finds_in_from_outside(self):
        draws = self.walk(2, -0.1)
        assert bool(draws.position[-1, 0] > 0) and not bool(draws.info.diverged[-1])

    def test_points_that_are_no_numbers_are_never_taken(self):
        draws = self.walk(3, 1.0)
        assert bool((draws.position > 0).all()) and not bool(draws.info.diverged.any())
