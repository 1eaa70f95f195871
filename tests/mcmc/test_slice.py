"""Slice samplers: what they refuse, what they cost, that they are blackjax's, and where they start from nowhere."""

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.mcmc.slice import stepping_out

import gensamp as gs

chain = jax.jit(gs.chain, static_argnums=2)


def bowl(x):
    return -0.5 * jnp.sum(x**2)


def hard(case, x):
    """An exponential, and a density that is nowhere defined; by number, so that one program serves both."""
    return jnp.stack([jnp.where(x[0] > 0, -x[0], -jnp.inf), x[0] * jnp.nan])[case]


def at(place, key):
    del key
    return place


@pytest.fixture
def target():
    return gs.Target.from_log_density(bowl, jnp.zeros(3))


@pytest.fixture
def tree():
    return gs.Target.from_log_density(
        lambda x: bowl(x["a"]) + bowl(x["b"]), {"a": jnp.zeros(()), "b": jnp.zeros((2,))}
    )  # fmt: skip


def test_widths_must_be_positive_and_fit(tree):
    with pytest.raises(ValueError, match=r"shape \[2\]; expected one number or \[3\]"):
        gs.mcmc.slice_sampling(tree, jnp.ones(2))
    with pytest.raises(ValueError, match=r"width \[1.0, 0.0, 1.0\]; expected positive"):
        gs.mcmc.slice_sampling(tree, np.array([1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="hit_and_run got width -1"):
        gs.mcmc.hit_and_run(tree, -1.0)
    with pytest.raises(ValueError, match=r"shape \[2\]; expected \[3\]"):
        gs.mcmc.hit_and_run(tree, inverse_mass_matrix=jnp.ones(2))


@pytest.mark.parametrize("make", [gs.mcmc.slice_sampling, gs.mcmc.hit_and_run])
def test_other_arguments_are_checked(make, target):
    with pytest.raises(ValueError, match=f"{make.__name__} got max_expansions 0"):
        make(target, max_expansions=0)
    with pytest.raises(ValueError, match=f"{make.__name__} needs target"):
        make(gs.Target.from_data(jnp.ones((3, 2))))


def follow(sampler, theirs, x, count, steps=10):
    """Both samplers from the same keys, and what each step cost."""
    ours, raw = sampler.init(jax.random.key(0), x), theirs.init(x)
    step, raw_step = jax.jit(sampler.step), jax.jit(theirs.step)
    for i in range(steps):
        ours, info = step(jax.random.key(i), ours, jnp.int32(i))
        raw, raw_info = raw_step(jax.random.key(i), raw)
        np.testing.assert_allclose(sampler.position(ours), raw.position, rtol=1e-5, atol=1e-6)
        assert int(info.densities) == count + int(raw_info.num_expansions) + int(raw_info.num_shrink)


def test_along_the_axes_it_is_blackjax(target):
    widths = jnp.array([0.5, 1.0, 4.0])
    theirs = blackjax.coordinate_slice(bowl, initial_widths=widths, interval=stepping_out, max_expansions=32, max_shrinkage=200)
    follow(gs.mcmc.slice_sampling(target, widths), theirs, jnp.array([0.5, -1.0, 0.2]), 6)


def test_along_random_directions_it_is_blackjax(target):
    theirs = blackjax.slice_sampling(bowl, width=2.0, interval=stepping_out, max_expansions=32, max_shrinkage=200)
    follow(gs.mcmc.hit_and_run(target), theirs, jnp.array([0.5, -1.0, 0.2]), 2)


@pytest.mark.slow
def test_directions_are_those_of_the_metric(target):
    """In whitened coordinates the metric is the identity."""
    metric = jnp.array([[1.0, 0.5, 0.0], [0.5, 2.0, -0.3], [0.0, -0.3, 0.5]])
    root = jnp.linalg.cholesky(metric)
    white = gs.Target.from_log_density(lambda y: bowl(root @ y), jnp.zeros(3))
    one, other = gs.mcmc.hit_and_run(target, inverse_mass_matrix=metric), gs.mcmc.hit_and_run(white)
    x = jnp.array([0.5, -1.0, 0.2])
    state, mirror = one.init(jax.random.key(0), x), other.init(jax.random.key(0), jnp.linalg.solve(root, x))
    step, mirror_step = jax.jit(one.step), jax.jit(other.step)
    for i in range(5):
        state, _ = step(jax.random.key(i), state, jnp.int32(i))
        mirror, _ = mirror_step(jax.random.key(i), mirror, jnp.int32(i))
        np.testing.assert_allclose(one.position(state), root @ other.position(mirror), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("make", [gs.mcmc.slice_sampling, gs.mcmc.hit_and_run])
class TestBothKinds:
    def test_events_of_any_tree(self, make, tree):
        draws = chain(jax.random.key(0), make(tree), 3)
        assert draws.position["b"].shape == (3, 2)
        assert bool((draws.info.densities >= 3).all()) and draws.info.gradients.tolist() == [0, 0, 0]
        assert draws.info.acceptance.tolist() == [1.0, 1.0, 1.0]

    @pytest.mark.slow
    def test_the_width_changes_the_cost_and_not_the_state(self, make, target):
        narrow, wide = (chain(jax.random.key(0), make(target, width), 200).info.densities for width in (0.05, 2.5))
        assert float(narrow.mean()) > 2 * float(wide.mean())

    def walk(self, make, case, start):
        target = gs.Target.from_log_density(gs.bind(hard, jnp.int32(case)), jnp.zeros(1))
        return chain(jax.random.key(0), make(target, 2.0, start=gs.bind(at, jnp.full(1, start))), 300)

    def test_where_the_density_is_zero_it_does_not_go(self, make):
        draws = self.walk(make, 0, 1.0)
        assert bool((draws.position > 0).all()) and not bool(draws.info.diverged.any())

    def test_from_where_the_density_is_zero_it_finds_in(self, make):
        draws = self.walk(make, 0, -0.5)
        assert bool(draws.position[-1, 0] > 0) and not bool(draws.info.diverged[-1])

    def test_where_there_is_nothing_it_stays_and_says_so(self, make):
        draws = self.walk(make, 1, 1.0)
        assert bool((draws.position == 1.0).all()) and bool(draws.info.diverged.all())
