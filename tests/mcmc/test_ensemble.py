"""The stretch move: what it refuses, what comes out of it, and the two properties that its formula promises."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gensamp as gs

chain = jax.jit(gs.chain, static_argnums=2)

ENSEMBLE = importlib.import_module("gensamp.mcmc.ensemble")


def bowl(x):
    return -0.5 * jnp.sum(x**2)


@pytest.fixture
def target():
    return gs.Target.from_log_density(bowl, jnp.zeros(2))


@pytest.fixture
def tree():
    return gs.Target.from_log_density(lambda x: bowl(x["a"]) + bowl(x["b"]), {"a": jnp.zeros(()), "b": jnp.zeros((2,))})


@pytest.mark.parametrize("number", [2, 5, 7, 4.0])
def test_walkers_must_be_even_and_enough(tree, number):
    with pytest.raises(Exception, match=r"num_walkers"):
        gs.mcmc.stretch(tree, number)


def test_the_number_of_walkers_wanted_is_said(tree):
    with pytest.raises(ValueError, match="num_walkers 4 for events of 3 coordinates; expected an even integer of at least 6"):
        gs.mcmc.stretch(tree, 4)


@pytest.mark.parametrize("scale", [1.0, 0.5, float("nan"), jnp.ones(3)])
def test_the_scale_must_be_above_one(target, scale):
    with pytest.raises(ValueError, match="expected one number greater than 1"):
        gs.mcmc.stretch(target, 4, scale=scale)


def test_a_target_without_density_is_refused():
    with pytest.raises(ValueError, match="stretch needs target"):
        gs.mcmc.stretch(gs.Target.from_data(jnp.ones((3, 2))), 4)


def test_it_is_a_population_whose_counts_are_totals(tree):
    sampler = gs.mcmc.stretch(tree, 8)
    assert sampler.traits.population == 8 and sampler.num_steps is None
    draws = chain(jax.random.key(0), sampler, 5)
    assert draws.position["a"].shape == (5, 8) and draws.position["b"].shape == (5, 8, 2)
    assert draws.info.densities.tolist() == [8] * 5 and draws.info.gradients.tolist() == [0] * 5
    assert draws.info.acceptance.shape == (5,)


def test_walkers_come_out_of_sample_as_chains(target):
    draws = gs.sample(jax.random.key(0), gs.mcmc.stretch(target, 4), 10, num_chains=3, warmup=5, progress=False)
    assert draws.position.shape == (12, 10, 2) and draws.info.acceptance.shape == (3, 10)
    assert draws.ledger.sample.densities == 3 * 10 * 4 and draws.ledger.tune.densities == 3 * 5 * 4
    # Walkers that all stand at one point have no line to move along.
    initial = jnp.full((3, 4, 2), 3.0)
    again = gs.sample(jax.random.key(1), gs.mcmc.stretch(target, 4), 10, initial=initial, warmup=5, progress=False)
    np.testing.assert_array_equal(again.position, jnp.full((12, 10, 2), 3.0))


def test_a_start_is_that_of_one_walker(target):
    def start(key):
        return 10.0 + jax.random.normal(key, (2,))

    walkers = gs.mcmc.stretch(target, 6, start=start).start(jax.random.key(0))
    assert walkers.shape == (6, 2) and float(walkers.mean()) > 8
    assert len(np.unique(walkers[:, 0])) == 6


def test_an_affine_map_of_the_target_maps_the_walkers(target):
    linear, shift = jnp.array([[5.0, 0.0], [-3.0, 0.05]]), jnp.array([1.0, -2.0])
    mapped = gs.Target.from_log_density(lambda y: bowl(jnp.linalg.solve(linear, y - shift)), jnp.zeros(2))
    carry = jax.vmap(lambda x: linear @ x + shift)
    one, other = gs.mcmc.stretch(target, 6), gs.mcmc.stretch(mapped, 6)
    x = jax.random.normal(jax.random.key(0), (6, 2))
    state, image = one.init(jax.random.key(0), x), other.init(jax.random.key(0), carry(x))
    steps, moved = [jax.jit(s.step) for s in (one, other)], 0.0
    for i in range(20):
        state, info = steps[0](jax.random.key(i), state, jnp.int32(i))
        image, _ = steps[1](jax.random.key(i), image, jnp.int32(i))
        moved += float(info.acceptance)
        np.testing.assert_allclose(image.position, carry(state.position), rtol=1e-3, atol=1e-3)
    assert 5 < moved < 20


def test_stretches_have_their_law():
    """E z = (a + 1 + 1/a) / 3 of the density proportional to z^-1/2 on [1/a, a], and g(1/z) = z g(z)."""
    for a in (1.5, 2.0, 4.0):
        z = ENSEMBLE._stretches(jax.random.key(0), jnp.float32(a), 100_000)
        assert float(z.min()) >= 1 / a - 1e-6 and float(z.max()) <= a + 1e-5
        assert float(z.mean()) == pytest.approx((a + 1 + 1 / a) / 3, rel=0.01)
        # The symmetry, integrated: P(z < 1) = E[1/z; z > 1].
        assert float((z < 1).mean()) == pytest.approx(float(jnp.where(z > 1, 1 / z, 0).mean()), abs=0.01)


def test_in_one_dimension_a_flat_density_takes_every_proposal():
    flat = gs.Target.from_log_density(lambda x: 0.0 * jnp.sum(x), jnp.zeros(1))
    draws = chain(jax.random.key(0), gs.mcmc.stretch(flat, 4), 20)
    np.testing.assert_allclose(draws.info.acceptance, 1.0)


def test_places_that_are_not_finite_are_left_and_never_entered():
    target = gs.Target.from_log_density(lambda x: jnp.log(x[0]) - x[0], jnp.zeros(1))
    draws = chain(jax.random.key(0), gs.mcmc.stretch(target, 8), 400)
    assert not bool(draws.info.diverged[-1]) and bool((draws.position[-1] > 0).all())
    inside = chain(jax.random.key(0), gs.mcmc.stretch(target, 8, start=lambda key: 1 + jax.random.uniform(key, (1,))), 400)
    assert bool((inside.position > 0).all()) and not bool(inside.info.diverged.any())
