"""MCLMC and MAMS: their kernels against blackjax's, cost, metric, bias, and what they refuse. Laws are in tests/statistical."""

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.mcmc.integrators import isokinetic_mclachlan, isokinetic_velocity_verlet

import gensamp as gs
from gensamp.mcmc.dynamic_hamiltonian import jitter

COVARIANCE = jnp.array([[1.0, 0.5, 0.0], [0.5, 2.0, -0.3], [0.0, -0.3, 0.5]])
INTEGRATORS = {"leapfrog": isokinetic_velocity_verlet, "minimal_norm": isokinetic_mclachlan}
POINT = jnp.array([0.5, -1.0, 0.2])


def log_density(x):
    return -0.5 * x @ jnp.linalg.solve(COVARIANCE, x) - 0.1 * jnp.sum(x**4)


def log_normal(x):
    return -0.5 * jnp.sum(x**2)


@pytest.fixture
def target():
    return gs.Target.from_log_density(log_density, jnp.zeros(3))


@jax.jit
def states(sampler, x):
    """The states and Infos of twelve steps from x."""

    def body(state, index):
        state, info = sampler.step(jax.random.fold_in(jax.random.key(7), index), state, index)
        return state, (state, info)

    return jax.lax.scan(body, sampler.init(jax.random.key(0), x), jnp.arange(12, dtype=jnp.int32))[1]


def expected(kernel, state, steps):
    """What blackjax's kernel makes of the same keys."""

    def body(state, index):
        state, info = kernel(jax.random.fold_in(jax.random.key(7), index), state, index)
        return state, (state, info)

    return jax.jit(lambda s: jax.lax.scan(body, s, jnp.arange(steps, dtype=jnp.int32))[1])(state)


def assert_close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3), one, other)


@pytest.mark.parametrize("integrator", ["leapfrog", pytest.param("minimal_norm", marks=pytest.mark.slow)])
def test_mclmc_is_that_of_blackjax(target, integrator):
    metric, kernel = jnp.array([1.0, 2.0, 0.5]), blackjax.mclmc.build_kernel(INTEGRATORS[integrator])
    sampler = gs.mcmc.mclmc(target, 0.4, inverse_mass_matrix=metric, decoherence_length=1.5, integrator=integrator)
    ours, info = states(sampler, POINT)
    begin = blackjax.mclmc.init(POINT, log_density, jax.random.key(0))
    assert_close(ours, expected(lambda key, s, i: kernel(key, s, log_density, metric, 1.5, 0.4), begin, 12)[0])
    assert info.gradients.tolist() == [{"leapfrog": 1, "minimal_norm": 2}[integrator]] * 12


@pytest.mark.parametrize("noise", [1.5, pytest.param(np.inf, marks=pytest.mark.slow)])
def test_mams_is_that_of_blackjax_with_paths_of_varying_length(target, noise):
    metric, kernel = jnp.array([1.0, 2.0, 0.5]), blackjax.adjusted_mclmc.build_kernel(isokinetic_velocity_verlet)
    sampler = gs.mcmc.mams(target, 0.8, inverse_mass_matrix=metric, trajectory_length=5.0, decoherence_length=noise)
    ours, info = states(sampler, POINT)

    def step(key, state, index):
        count = jnp.ceil(jitter(index, jnp.float32) * 5.0 / 0.8).astype(jnp.int32)
        return kernel(key, state, log_density, 0.8, (count,), metric, noise / (count * 0.8))

    theirs, their_info = expected(step, blackjax.hmc.init(POINT, log_density), 12)
    assert_close((ours, info.acceptance), (theirs, their_info.acceptance_rate))
    assert info.gradients.tolist() == their_info.num_integration_steps.tolist()
    assert len(set(info.gradients.tolist())) > 3


@pytest.mark.slow
@pytest.mark.parametrize("make", [gs.mcmc.mclmc, gs.mcmc.mams])
@pytest.mark.parametrize("integrator", list(INTEGRATORS))
def test_counts_are_those_of_the_density(make, integrator):
    calls = []

    def counted(x):
        jax.debug.callback(lambda: calls.append(1))
        return log_density(x)

    _, info = states(make(gs.Target.from_log_density(counted, jnp.zeros(3)), 0.7, integrator=integrator), POINT)
    jax.effects_barrier()
    assert len(calls) == int(info.gradients.sum()) + 1  # one to stand at the start
    assert int(info.densities.sum()) == 0


@pytest.mark.parametrize("make", [gs.mcmc.mclmc, pytest.param(gs.mcmc.mams, marks=pytest.mark.slow)])
def test_a_dense_metric_is_a_change_of_coordinates(target, make):
    """By the symmetric root, the same for positions and forces; the states know nothing of it."""
    values, vectors = np.linalg.eigh(np.asarray(COVARIANCE))
    root = jnp.asarray(vectors @ np.diag(np.sqrt(values)) @ vectors.T)
    white = gs.Target.from_log_density(lambda y: log_density(root @ y), jnp.zeros(3))
    one, a = states(make(target, 0.6, inverse_mass_matrix=COVARIANCE), root @ POINT)
    other, b = states(make(white, 0.6), POINT)
    assert_close((one.position, a.acceptance), (other.position @ root, b.acceptance))
    if make is gs.mcmc.mclmc:
        np.testing.assert_allclose(jnp.linalg.norm(one.momentum, axis=1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("make", [gs.mcmc.mclmc, gs.mcmc.mams])
def test_state_knows_neither_step_nor_metric(target, make):
    begin = [
        make(target, size, inverse_mass_matrix=metric).init(jax.random.key(0), POINT)
        for size, metric in ((0.1, None), (0.7, COVARIANCE))
    ]
    jax.tree.map(np.testing.assert_array_equal, *begin)


@pytest.mark.slow
def test_a_badly_conditioned_dense_metric_stays_positive():
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))
    covariance = (rotation * 10.0 ** np.arange(-4, 2)) @ rotation.T
    metric = jnp.asarray((covariance + covariance.T) / 2, jnp.float32) + 1e-6 * jnp.eye(6)
    stretched = gs.Target.from_log_density(
        lambda x: -0.5 * x @ jnp.asarray(np.linalg.inv(covariance), jnp.float32) @ x, jnp.zeros(6)
    )
    state, info = states(gs.mcmc.mams(stretched, 0.5, inverse_mass_matrix=metric), jnp.zeros(6))
    assert bool(jnp.isfinite(state.position).all())
    assert float(info.acceptance.mean()) > 0.5


@pytest.mark.slow
def test_bias_of_mclmc_is_what_its_table_says():
    """On a normal law, d = 50: the leapfrog at 0.45 sqrt d has E x^2 1.9 % high, minimal norm at 0.9 sqrt d 1.0 % low."""
    normal = gs.Target.from_log_density(log_normal, jnp.zeros(50))

    @jax.jit
    def squares(sampler):
        def one(key):
            x = gs.chain(key, sampler, 2000).position[200:]
            return jnp.mean(x**2)

        return jax.vmap(one)(jax.random.split(jax.random.key(0), 8))

    for integrator, step_size, bias in (("leapfrog", 0.45, 0.019), ("minimal_norm", 0.9, -0.010)):
        x2 = np.asarray(squares(gs.mcmc.mclmc(normal, step_size * 50**0.5, integrator=integrator)))
        assert x2.mean() - 1 == pytest.approx(bias, abs=0.004 + 4 * float(x2.std()) / 8**0.5)


@pytest.mark.parametrize("make", [gs.mcmc.mclmc, gs.mcmc.mams])
def test_a_step_into_nowhere_is_not_taken(make):
    wall = gs.Target.from_log_density(lambda x: jnp.where(jnp.abs(x).max() < 2, log_normal(x), jnp.nan), jnp.zeros(2))
    state, info = states(make(wall, 1.5), jnp.ones(2))
    assert bool((jnp.abs(state.position) < 2).all())
    assert bool(info.diverged.any())
    assert not bool(info.diverged.all())


@pytest.mark.slow
def test_tune_finds_step_size_and_metric():
    scales = jnp.array([0.1, 1.0, 10.0])
    stretched = gs.Target.from_log_density(lambda x: log_normal(x / scales), jnp.zeros(3))
    tuned = gs.tune(jax.random.key(0), gs.mcmc.mams, stretched, num_steps=300, target_acceptance=0.9, progress=False)
    np.testing.assert_allclose(jnp.sqrt(tuned.inverse_mass_matrix), scales, rtol=0.3)
    assert 0.8 < tuned.acceptance.mean() < 0.96


def test_paths_are_bounded_whatever_the_step_size(target):
    _, info = states(gs.mcmc.mams(target, 1e-30, max_num_steps=7), POINT)
    assert info.gradients.tolist() == [7] * 12


@pytest.mark.parametrize("make", [gs.mcmc.mclmc, gs.mcmc.mams])
class TestArguments:
    def test_one_coordinate_is_too_few(self, make):
        with pytest.raises(ValueError, match="event of 1 coordinate; expected at least 2"):
            make(gs.Target.from_log_density(log_normal, jnp.zeros(1)), 0.1)

    def test_integrator_must_be_known(self, make, target):
        with pytest.raises(ValueError, match="integrator 'euler'; expected one of leapfrog, minimal_norm"):
            make(target, 0.1, integrator="euler")

    @pytest.mark.parametrize("length", [0.0, -1.0, jnp.ones(2)])
    def test_lengths_must_be_positive(self, make, target, length):
        with pytest.raises(ValueError, match="got decoherence_length"):
            make(target, 0.1, decoherence_length=length)
