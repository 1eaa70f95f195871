"""HMC and NUTS: what they refuse, report and cost. Their laws are in tests/statistical, their kernels in tests/oracles."""

import jax
import jax.numpy as jnp
import pytest

import gensamp as gs


def bowl(x):
    return -0.5 * jnp.sum(x**2)


@pytest.fixture
def target():
    return gs.Target.from_log_density(bowl, jnp.zeros(3))


class Counter:
    """A log density that counts how often it is evaluated, gradients included."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        jax.debug.callback(self.count)
        return -0.25 * jnp.sum(x**4)

    def count(self):
        self.calls += 1


@pytest.mark.parametrize(
    ("make", "options", "step_size"),
    [
        (gs.mcmc.mala, {}, 0.1),
        (gs.mcmc.hmc, {"num_integration_steps": 7}, 0.1),
        (gs.mcmc.hmc, {"num_integration_steps": gs.Static(3)}, 0.1),
        (gs.mcmc.nuts, {"max_tree_depth": 4}, 0.3),
        (gs.mcmc.nuts, {}, 30.0),  # most paths diverge at once
        (gs.mcmc.ula, {}, 0.01),
    ],
)
def test_counts_are_those_of_the_density(make, options, step_size):
    counter = Counter()
    target = gs.Target.from_log_density(counter, jnp.zeros(3))
    sampler = make(target, step_size, **options)
    counter.calls = 0
    draws = jax.jit(gs.chain, static_argnums=2)(jax.random.key(0), sampler, 40)
    jax.effects_barrier()
    jax.block_until_ready(draws)
    assert counter.calls == int(draws.info.gradients.sum()) + 1  # one to stand at the start
    assert int(draws.info.densities.sum()) == int(draws.info.forwards.sum()) == 0


def test_nuts_path_is_bounded_by_its_depth(target):
    draws = gs.chain(jax.random.key(0), gs.mcmc.nuts(target, 1e-3, max_tree_depth=3), 20)
    assert draws.info.gradients.tolist() == [7] * 20


@pytest.mark.parametrize(("dtype", "x64", "expected"), [("bfloat16", False, "float32"), ("float32", True, "float64")])
def test_nuts_refuses_events_that_are_not_of_the_default_dtype(dtype, x64, expected):
    with jax.enable_x64(x64):
        target = gs.Target.from_log_density(lambda x: -(x @ x), jnp.zeros(2, dtype))
        with pytest.raises(ValueError, match=f"nuts got events of {dtype}; expected {expected}, jax's default"):
            gs.mcmc.nuts(target, 0.5)


def test_nuts_draws_in_double_precision():
    with jax.enable_x64(True):
        target = gs.Target.from_log_density(lambda x: -(x @ x), jnp.zeros(2))
        position = gs.chain(jax.random.key(0), gs.mcmc.nuts(target, 0.5, inverse_mass_matrix=jnp.eye(2)), 5).position
    assert position.dtype == jnp.float64


def test_hmc_reports_divergence_and_stays(target):
    draws = gs.chain(jax.random.key(0), gs.mcmc.hmc(target, 50.0), 20)
    assert bool(draws.info.diverged.all())
    assert float(jnp.ptp(draws.position, axis=0).max()) == 0.0


@pytest.mark.parametrize("make", [gs.mcmc.hmc, gs.mcmc.nuts, gs.mcmc.mala])
def test_a_log_density_of_plus_infinity_is_never_accepted(make):
    """What overflow can turn a log density into: a chain that took it would never come back."""
    target = gs.Target.from_log_density(lambda x: jnp.where(jnp.abs(x[0]) > 3, jnp.inf, -0.5 * x[0] ** 2), jnp.zeros(1))
    draws = gs.chain(jax.random.key(0), make(target, 2.5), 200)
    assert float(jnp.abs(draws.position).max()) <= 3
    assert bool(draws.info.diverged.any())


@pytest.mark.parametrize(("make", "names"), [(gs.mcmc.hmc, {"energy"}), (gs.mcmc.nuts, {"energy", "num_steps"})])
def test_report_is_empty_unless_asked_for(target, make, names):
    key = jax.random.key(0)
    assert gs.chain(key, make(target, 0.3), 2).info.extra == ()
    extra = gs.chain(key, make(target, 0.3, report=True), 5).info.extra
    assert set(extra) == names
    assert all(bool(jnp.isfinite(a).all()) for a in extra.values())


@pytest.mark.parametrize("count", [0, -1, 2.5, jnp.ones(2, int)])
def test_hmc_refuses_a_count_that_is_not_one(target, count):
    with pytest.raises(ValueError, match="num_integration_steps"):
        gs.mcmc.hmc(target, 0.1, num_integration_steps=count)


@pytest.mark.parametrize("depth", [0, 31])
def test_nuts_refuses_a_depth_out_of_range(target, depth):
    with pytest.raises(ValueError, match="max_tree_depth"):
        gs.mcmc.nuts(target, 0.1, max_tree_depth=depth)


def test_new_numbers_do_not_retrace(target):
    traces = 0

    @jax.jit
    def run(sampler):
        nonlocal traces
        traces += 1
        return gs.chain(jax.random.key(0), sampler, 3).position

    for step_size, count in ((1, 3), (0.5, 4), (jnp.float32(0.2), jnp.int32(5))):
        run(gs.mcmc.hmc(target, step_size, num_integration_steps=count, inverse_mass_matrix=jnp.full(3, step_size)))
    assert traces == 1


def test_hmc_with_static_count_can_be_differentiated(target):
    def end(step_size):
        return gs.chain(jax.random.key(0), gs.mcmc.hmc(target, step_size, num_integration_steps=gs.Static(3)), 1).position.sum()

    assert bool(jnp.isfinite(jax.grad(end)(0.1)))


def test_state_does_not_depend_on_step_size_or_metric(target):
    x = jnp.arange(3.0)
    states = [
        make(target, step_size, inverse_mass_matrix=metric).init(jax.random.key(0), x)
        for make in (gs.mcmc.hmc, gs.mcmc.nuts, gs.mcmc.mala)
        for step_size, metric in ((0.1, None), (0.7, jnp.eye(3) * 2))
    ]
    for state in states:
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), state, states[0]))
