"""Dynamic HMC: its path lengths, its cost, and what it refuses. Its law is in tests/statistical."""

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gensamp as gs
from gensamp.mcmc.dynamic_hamiltonian import jitter


def bowl(x):
    return -0.5 * jnp.sum(x**2)


@pytest.fixture
def target():
    return gs.Target.from_log_density(bowl, jnp.zeros(3))


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("first", [0, 10**6])
def test_jitter_fills_the_interval_evenly_under_every_stride(first, stride):
    index = jnp.arange(first, first + 1000 * stride, stride, dtype=jnp.int32)
    u = np.sort(jitter(index, jnp.float32))
    assert 0 < u[0] < u[-1] < 1
    # 1000 points at random would be off by 1.36 / sqrt(1000) = 0.043.
    assert np.abs(u - (np.arange(1000) + 0.5) / 1000).max() < 0.01


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_jitter_never_reaches_the_ends(dtype):
    with jax.enable_x64(True):
        u = jitter(jnp.array([-1, 2**31 - 1, 0], jnp.int32), dtype)
        assert u.dtype == dtype
        assert bool(((u > 0) & (u < 1)).all())


def test_every_step_is_an_hmc_step_of_that_length(target):
    """Against blackjax's own kernel, step by step from the same keys."""
    metric, kernel = jnp.array([1.0, 2.0, 0.5]), blackjax.hmc.build_kernel()
    sampler = gs.mcmc.dynamic_hmc(target, 0.3, inverse_mass_matrix=metric, trajectory_length=2.0)
    x = jnp.array([0.5, -1.0, 0.2])
    lengths = [int(np.ceil(float(jitter(jnp.int32(i), jnp.float32)) * 2.0 / 0.3)) for i in range(6)]
    assert len(set(lengths)) > 3

    @jax.jit
    def both(index, count, ours, theirs):
        key = jax.random.fold_in(jax.random.key(7), index)
        return sampler.step(key, ours, index), kernel(key, theirs, bowl, 0.3, metric, count)

    ours, theirs = sampler.init(jax.random.key(0), x), blackjax.hmc.init(x, bowl)
    for i, count in enumerate(lengths):
        (ours, info), (theirs, expected) = both(jnp.int32(i), jnp.int32(count), ours, theirs)
        np.testing.assert_allclose(ours.position, theirs.position, rtol=1e-4, atol=1e-4)
        assert float(info.acceptance) == pytest.approx(float(expected.acceptance_rate), rel=1e-4)
        assert int(info.gradients) == count


def test_costs_half_the_longest_path_on_average(target):
    sampler = gs.mcmc.dynamic_hmc(target, 0.1, trajectory_length=2.0)
    gradients = gs.chain(jax.random.key(0), sampler, 200).info.gradients
    assert float(gradients.mean()) == pytest.approx(2.0 / 0.1 / 2 + 0.5, rel=0.02)
    assert int(gradients.min()) == 1
    assert int(gradients.max()) == 20


def test_paths_are_bounded_whatever_the_step_size(target):
    sampler = gs.mcmc.dynamic_hmc(target, 1e-30, max_num_steps=7)
    assert gs.chain(jax.random.key(0), sampler, 5).info.gradients.tolist() == [7] * 5


def test_chains_side_by_side_take_paths_of_one_length(target):
    sampler = gs.mcmc.dynamic_hmc(target, 0.2)
    draws = jax.vmap(lambda key: gs.chain(key, sampler, 10))(jax.random.split(jax.random.key(0), 4))
    assert bool((draws.info.gradients == draws.info.gradients[:1]).all())


def test_tune_finds_step_size_and_metric(target):
    scales = jnp.array([0.1, 1.0, 10.0])
    stretched = gs.Target.from_log_density(gs.bind(log_stretched, scales), jnp.zeros(3))
    tuned = gs.tune(jax.random.key(0), gs.mcmc.dynamic_hmc, stretched, num_steps=300, target_acceptance=0.65, progress=False)
    np.testing.assert_allclose(jnp.sqrt(tuned.inverse_mass_matrix), scales, rtol=0.3)
    assert 0.5 < tuned.acceptance.mean() < 0.8


def log_stretched(scales, x):
    return bowl(x / scales)


def test_new_numbers_do_not_retrace(target):
    traces = 0

    @jax.jit
    def run(sampler):
        nonlocal traces
        traces += 1
        return gs.chain(jax.random.key(0), sampler, 3).position

    for length, most in ((1, 10), (2.5, 20), (jnp.float32(0.2), jnp.int32(5))):
        run(gs.mcmc.dynamic_hmc(target, 0.3, trajectory_length=length, max_num_steps=most))
    assert traces == 1


@pytest.mark.parametrize("length", [0.0, -1.0, float("nan"), jnp.ones(2), None])
def test_refuses_a_length_that_is_not_positive(target, length):
    with pytest.raises(ValueError, match="dynamic_hmc got trajectory_length"):
        gs.mcmc.dynamic_hmc(target, 0.1, trajectory_length=length)


@pytest.mark.parametrize("most", [0, 2.5, gs.Static(3), jnp.ones(2, int)])
def test_refuses_a_bound_that_is_not_a_count(target, most):
    with pytest.raises(ValueError, match="dynamic_hmc got max_num_steps"):
        gs.mcmc.dynamic_hmc(target, 0.1, max_num_steps=most)
