"""Annealed importance sampling: what it costs, what it carries from level to level, and what it refuses. Its law is in
tests/statistical."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gensamp as gs
from gensamp.testing import check_sampler


def log_shifted(x):
    """N(1, 1) in both coordinates, times e^2 over its normaliser: log Z = 2."""
    return 2.0 - 0.5 * jnp.sum((x - 1) ** 2) - jnp.log(2 * jnp.pi)


TARGET = gs.Target.from_log_density(log_shifted, jnp.zeros(2))
BASE = gs.mcmc.normal_base(TARGET.template, scale=2.0)
PATH = gs.paths.geometric(BASE, TARGET)
LEVELS = jnp.linspace(0, 1, 5)[1:]

draw = jax.jit(gs.draw)


def mala_path(path=PATH, **options):
    return gs.mcmc.ais(path, **({"levels": LEVELS, "step_sizes": 0.5, "kernel": gs.mcmc.mala} | options))


def log_z(draws):
    weight = np.asarray(draws.log_weight, float)
    value = np.exp(weight - weight.max())
    return np.log(value.mean()) + weight.max(), value.std() / value.mean() / np.sqrt(value.size)


def test_counts_are_held_for_formulas_and_for_families():
    """A geometric path costs one density per level besides the moves; a family without formula two."""
    family = dataclasses.replace(PATH, log_density=gs.bind(lambda f, t, x: f(t, x), PATH.log_density))
    for path, densities in ((PATH, 4), (family, 8)):
        sampler = mala_path(path, num_moves=2)
        info = draw(jax.random.key(0), sampler).info
        assert (int(info.gradients), int(info.densities)) == (4 * 3, densities)
        assert check_sampler(sampler, target=TARGET, contracts=["counts"]) == {"counts": "held"}


def test_formula_and_family_weigh_alike():
    family = dataclasses.replace(PATH, log_density=gs.bind(lambda f, t, x: f(t, x), PATH.log_density))
    one, two = (draw(jax.random.key(0), mala_path(path)) for path in (PATH, family))
    np.testing.assert_allclose(one.log_weight, two.log_weight, rtol=1e-5)
    np.testing.assert_allclose(one.position, two.position, rtol=1e-5)


def test_one_level_is_importance_sampling():
    one = draw(jax.random.key(3), mala_path(levels=jnp.ones(1)))
    x = BASE.exact(jax.random.split(jax.random.fold_in(jax.random.key(3), 0))[0])
    np.testing.assert_allclose(one.log_weight, log_shifted(x) - BASE.log_density(x), rtol=1e-5)


@pytest.mark.parametrize("smallest", [0.0, 0.2])
def test_a_base_outside_the_family_serves(smallest):
    """A tempered path does not contain its base: the first weight still is p_1 / base."""
    path = gs.paths.tempered(TARGET, BASE, smallest=smallest)
    value, error = log_z(gs.sample(jax.random.key(1), mala_path(path), 2_000))
    assert abs(value - 2) < 4 * error < 0.3


def test_a_noised_path_serves():
    mixture = gs.targets.mixture([0.4, 0.6], [[-2.0, 0.0], [1.0, 1.0]], [[0.5, 1.0], [1.0, 0.3]])
    path = gs.paths.noised(mixture, gs.noise.vp_linear())
    value, error = log_z(gs.sample(jax.random.key(1), mala_path(path, step_sizes=0.2), 1_000))
    assert abs(value) < 4 * error < 0.2


def test_a_base_that_states_its_normaliser_is_corrected():
    truth = gs.Truth(log_normaliser=(5.0, 0.0))
    scaled = dataclasses.replace(BASE, log_density=gs.bind(lambda f, x: 5 + f(x), BASE.log_density), truth=truth)
    path = dataclasses.replace(PATH, base=scaled)
    one, two = (draw(jax.random.key(0), mala_path(p)) for p in (PATH, path))
    np.testing.assert_allclose(one.log_weight, two.log_weight, atol=1e-5)


def test_metrics_step_sizes_and_options_reach_the_kernel():
    options = {"kernel": gs.mcmc.hmc, "step_sizes": jnp.full(4, 0.2), "inverse_mass_matrices": jnp.full((4, 2), 2.0)}
    many = draw(jax.random.key(0), mala_path(**options, kernel_options={"num_integration_steps": 7}))
    assert int(many.info.gradients) == 4 * 8
    traced = draw(jax.random.key(0), mala_path(**options, kernel_options={"num_integration_steps": jnp.int32(7)}))
    np.testing.assert_allclose(many.position, traced.position, rtol=1e-5)
    other = draw(jax.random.key(0), mala_path(**{**options, "inverse_mass_matrices": jnp.eye(2)}))
    assert not np.allclose(many.position, other.position)


def test_an_event_outside_the_support_has_no_weight():
    half = gs.Target.from_log_density(lambda x: jnp.where(x[0] > 0, log_shifted(x), -jnp.inf), jnp.zeros(2))
    draws = gs.sample(jax.random.key(0), mala_path(gs.paths.geometric(BASE, half), levels=jnp.ones(1)), 400)
    lost = np.isneginf(draws.log_weight)
    assert 0.4 < lost.mean() < 0.6
    assert np.isfinite(draws.log_weight[~lost]).all()
    value, error = log_z(draws)
    assert abs(value - 2 - np.log(0.8413)) < 4 * error < 0.5


def test_events_may_be_trees():
    target = gs.Target.from_log_density(lambda x: -0.5 * (x["a"] ** 2 + jnp.sum(x["b"] ** 2)), {"a": 0.0, "b": jnp.zeros(2)})
    base = gs.mcmc.normal_base(target.template, mean={"a": 1.0, "b": jnp.zeros(2)}, scale=2.0)
    draws = gs.sample(jax.random.key(0), mala_path(gs.paths.geometric(base, target)), 1_000)
    value, error = log_z(draws)
    assert draws.position["b"].shape == (1, 1_000, 2)
    assert abs(value - 1.5 * np.log(2 * np.pi)) < 4 * error < 0.3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": jnp.zeros((2, 2))}, "levels of shape \\[2, 2\\]; expected \\[levels\\]"),
        ({"levels": jnp.linspace(0, 0.9, 5)}, "end at 1, the target"),
        ({"levels": jnp.array([0.5, 0.2, 1.0])}, "times that rise"),
        ({"step_sizes": jnp.ones(3)}, r"step_sizes of shape \[3\]; expected one number, or \[\d+\] for one per level"),
        ({"step_sizes": -1.0}, "expected positive numbers"),
        ({"inverse_mass_matrices": jnp.ones(3)}, r"shape \[3\]; expected \[2\] or \[2, 2\], or \[(\d+), 2\] or \[\1, 2, 2\]"),
        ({"num_moves": 0}, "num_moves 0; expected an integer of at least 1"),
        ({"kernel_options": {"start": []}}, "do not hash"),
        ({"path": gs.Path(BASE, None, PATH.score)}, "path's log_density, and this path has none"),
        ({"path": dataclasses.replace(PATH, base=TARGET)}, "ais needs target.exact"),
        ({"kernel": lambda target, step_size: mala_path()}, "a kernel that is finite or moves a population"),
    ],
)
def test_what_cannot_work_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        mala_path(**change)


def test_a_base_of_no_width_is_refused():
    with pytest.raises(ValueError, match="normal_base got scale"):
        gs.mcmc.normal_base(jnp.zeros(2), scale=0.0)
