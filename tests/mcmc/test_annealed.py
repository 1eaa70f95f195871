"""Annealed Langevin: levels, costs, the final denoising step, and what it refuses. Its law is in tests/statistical."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gensamp as gs


def base_draw(key):
    return 10.0 * jax.random.normal(key, (2,))


def log_base(x):
    return -0.5 * jnp.sum(x**2) / 100


def score(t, x):
    """N(0, sigma^2) with log sigma falling from log 10 to 0 as t rises."""
    return -x * jnp.exp(-2 * jnp.log(10.0) * (1 - t))


@pytest.fixture
def path():
    base = gs.Target.from_log_density(log_base, jnp.zeros(2), exact=base_draw)
    return gs.Path(base=base, log_density=None, score=gs.bind(score))


def test_length_and_cost(path):
    sampler = gs.mcmc.annealed_langevin(path, levels=jnp.linspace(0, 1, 5), step_sizes=0.1, steps_per_level=3)
    draw = gs.draw(jax.random.key(0), sampler)
    assert sampler.num_steps == 15
    assert (int(draw.info.gradients), int(draw.info.forwards)) == (15, 0)


def test_network_evaluations_are_billed_as_forwards(path):
    learned = gs.Path(base=path.base, log_density=None, score=path.score, forwards=2)
    sampler = gs.mcmc.annealed_langevin(learned, levels=jnp.linspace(0, 1, 5), step_sizes=0.1, steps_per_level=3)
    draw = gs.draw(jax.random.key(0), sampler)
    assert (int(draw.info.gradients), int(draw.info.forwards)) == (0, 30)


def test_each_level_is_visited_in_turn(path):
    """With a score that names its level and no noise to speak of, the path is a sum over levels."""
    marked = gs.Path(base=path.base, log_density=None, score=gs.bind(_level_score))
    levels = jnp.array([0.0, 0.5, 1.0])
    sampler = gs.mcmc.annealed_langevin(marked, levels=levels, step_sizes=1e-12, steps_per_level=2)
    state = sampler.init(jax.random.key(0), jnp.zeros(2))
    seen = []
    for index in range(6):
        seen.append(float(state.score[0]))
        state, _ = sampler.step(jax.random.key(1), state, jnp.int32(index))
    assert seen == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]


def test_denoising_moves_by_the_last_score_for_free(path):
    options = {"levels": jnp.linspace(0, 1, 4), "step_sizes": 0.1, "steps_per_level": 2}
    noisy = gs.draw(jax.random.key(0), gs.mcmc.annealed_langevin(path, **options))
    clean = gs.draw(jax.random.key(0), gs.mcmc.annealed_langevin(path, **options, denoise=0.25))
    np.testing.assert_allclose(clean.position, 0.75 * noisy.position, rtol=1e-5)
    assert clean.info.gradients == noisy.info.gradients


def test_scaled_step_sizes_follow_the_noise():
    sizes = gs.mcmc.scaled_step_sizes(jnp.array([10.0, 2.0, 0.5]), 1e-2)
    np.testing.assert_allclose(sizes, [4.0, 0.16, 0.01], rtol=1e-5)


def test_levels_and_step_sizes_are_leaves_with_a_gradient(path):
    def end(levels, sizes):
        sampler = gs.mcmc.annealed_langevin(path, levels=levels, step_sizes=sizes, steps_per_level=2)
        return gs.draw(jax.random.key(0), sampler).position[0]

    gradients = jax.grad(end, argnums=(0, 1))(jnp.array([0.0, 0.4, 1.0]), jnp.full(3, 0.1))
    assert all(bool(jnp.isfinite(g).all()) and bool((g != 0).any()) for g in gradients)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps_per_level": 0}, "steps_per_level 0"),
        ({"levels": 0.5}, "shape"),
        ({"levels": jnp.array([1.0, 0.0])}, "times that rise"),
        ({"levels": jnp.array([0.0, 2.0])}, "times that rise"),
        ({"step_sizes": jnp.ones(3)}, r"\[2\] or one number"),
        ({"step_sizes": jnp.array([0.1, -0.1])}, "positive finite"),
    ],
)
def test_bad_arguments(path, change, message):
    options = {"levels": jnp.array([0.0, 1.0]), "step_sizes": 0.1, "steps_per_level": 2} | change
    with pytest.raises(ValueError, match=message):
        gs.mcmc.annealed_langevin(path, **options)


def test_base_must_have_exact_draws():
    base = gs.Target.from_log_density(log_base, jnp.zeros(2))
    with pytest.raises(ValueError, match=r"annealed_langevin needs target\.exact"):
        gs.mcmc.annealed_langevin(gs.Path(base, None, gs.bind(score)), levels=jnp.ones(1), step_sizes=0.1, steps_per_level=1)


def _level_score(t, x):
    return jnp.full_like(x, t)
