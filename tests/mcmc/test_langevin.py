"""ULA and MALA: what they refuse, what they cost, and what their states are made of."""

import jax
import jax.numpy as jnp
import pytest

import gensamp as gs


def bowl(x):
    return -0.5 * jnp.sum(x["a"] ** 2) - jnp.sum(x["b"] ** 2)


@pytest.fixture
def target():
    return gs.Target.from_log_density(bowl, {"a": jnp.zeros(()), "b": jnp.zeros((2,))})


@pytest.mark.parametrize("make", [gs.mcmc.ula, gs.mcmc.mala])
class TestArguments:
    @pytest.mark.parametrize("step_size", [0.0, -1.0, float("nan"), float("inf")])
    def test_step_size_must_be_positive(self, make, target, step_size):
        with pytest.raises(ValueError, match="positive finite number"):
            make(target, step_size)

    def test_step_size_must_be_one_number(self, make, target):
        with pytest.raises(ValueError, match=r"shape \[3\].*each="):
            make(target, jnp.ones(3))

    def test_metric_must_fit_the_flattened_event(self, make, target):
        with pytest.raises(ValueError, match=r"shape \[2\]; expected \[3\]"):
            make(target, 0.1, inverse_mass_matrix=jnp.ones(2))

    @pytest.mark.parametrize("metric", [jnp.array([1.0, -1.0, 1.0]), jnp.array([[1.0, 2, 0], [2, 1, 0], [0, 0, 1]])])
    def test_metric_must_be_positive_definite(self, make, target, metric):
        with pytest.raises(ValueError, match="not positive definite"):
            make(target, 0.1, inverse_mass_matrix=metric)

    def test_start_must_be_a_function(self, make, target):
        with pytest.raises(TypeError, match=r"sample\(initial=\)"):
            make(target, 0.1, start=jnp.zeros(3))

    def test_target_must_have_a_density(self, make):
        with pytest.raises(ValueError, match=f"{make.__name__} needs target"):
            make(gs.Target.from_data(jnp.ones((3, 2))), 0.1)

    def test_given_start_is_used(self, make, target):
        def start(key):
            del key
            return {"a": jnp.float32(3.0), "b": jnp.array([4.0, 5.0])}

        sampler = make(target, 0.1, start=start)
        assert sampler.start(jax.random.key(0))["b"].tolist() == [4.0, 5.0]


@pytest.mark.parametrize("make", [gs.mcmc.ula, gs.mcmc.mala])
def test_state_keeps_structure_and_strong_types(make, target):
    sampler = make(target, 0.1, inverse_mass_matrix=jnp.eye(3))
    state = sampler.init(jax.random.key(0), sampler.start(jax.random.key(1)))
    moved, info = sampler.step(jax.random.key(2), state, jnp.int32(0))
    shapes = [jax.tree.map(lambda a: (a.shape, a.dtype, a.weak_type), s) for s in (state, moved)]
    assert shapes[0] == shapes[1]
    assert jax.tree.structure(sampler.position(moved)) == jax.tree.structure(target.template)
    assert (info.gradients, info.densities, info.forwards) == (1, 0, 0)


@pytest.mark.parametrize("make", [gs.mcmc.ula, gs.mcmc.mala])
def test_state_follows_the_dtype_of_the_template(make):
    with jax.enable_x64(True):
        target = gs.Target.from_log_density(lambda x: -jnp.sum(x**2), jnp.zeros(2, jnp.float64))
        draws = gs.chain(jax.random.key(0), make(target, 0.1), 3)
    assert draws.position.dtype == jnp.float64


@pytest.mark.parametrize("make", [gs.mcmc.ula, gs.mcmc.mala])
def test_step_sizes_sweep_inside_traced_code(make, target):
    def spread(step_size):
        return jnp.var(gs.chain(jax.random.key(0), make(target, step_size), 200).position["a"])

    spreads = jax.jit(jax.vmap(spread))(jnp.array([0.001, 0.3]))
    assert spreads[1] > 2 * spreads[0]


def test_chains_start_spread_out(target):
    starts = jax.vmap(gs.mcmc.mala(target, 0.1).start)(jax.random.split(jax.random.key(0), 1000))
    assert float(jnp.abs(starts["b"]).max()) <= 2
    assert float(starts["b"].std()) == pytest.approx(4 / 12**0.5, rel=0.1)


def test_ula_follows_the_score_it_is_given_and_needs_no_density():
    target = gs.Target(template=gs.core.as_template(jnp.zeros(1)), score=gs.bind(_constant_score))
    draws = gs.chain(jax.random.key(0), gs.mcmc.ula(target, 0.5), 400)
    drift = float(jnp.diff(draws.position[:, 0]).mean())
    assert drift == pytest.approx(0.5 * 3.0, abs=4 * (2 * 0.5 / 400) ** 0.5)


def test_ula_says_when_it_leaves_for_infinity():
    target = gs.Target.from_log_density(lambda x: jnp.sum(x**4), jnp.zeros(1))
    draws = gs.chain(jax.random.key(0), gs.mcmc.ula(target, 1.0), 50)
    assert not draws.info.diverged[0]
    assert draws.info.diverged[-1]


def test_mala_rejects_proposals_that_are_not_finite():
    def log_density(x):
        return jnp.where(x[0] > 0, jnp.log(x[0]) - x[0], jnp.nan)

    def start(key):
        del key
        return jnp.ones(1)

    target = gs.Target.from_log_density(log_density, jnp.zeros(1))
    draws = gs.chain(jax.random.key(0), gs.mcmc.mala(target, 2.0, start=start), 300)
    assert bool((draws.position > 0).all())
    assert float(draws.info.acceptance.min()) == 0.0


def _constant_score(x):
    return jnp.full_like(x, 3.0)
