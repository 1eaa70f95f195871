"""Pictures: a frame for every step of the way, images where they belong, and files that open."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gensamp import plot, pushforward
from gensamp.core import Info, Sampler, Target, Traits, Truth, bind, draw
from gensamp.evaluate.compare import compare


def start(key):
    return jax.random.normal(key, (4, 4, 1))


def init(key, z):
    return z


def step(key, state, index):
    return 0.5 * state + 0.1 * jax.random.normal(key, state.shape), Info.of(forwards=1)


def position(state):
    return state


def painter(num_steps=10):
    return Sampler(bind(start), bind(init), bind(step), bind(position), num_steps=num_steps, traits=Traits("approximate"))


def test_trajectory_ends_at_the_draw():
    key, sampler = jax.random.key(0), painter()
    frames = plot.trajectory(key, sampler, 3, 6)
    assert frames.shape == (6, 3, 4, 4, 1)
    ends = jax.vmap(draw, in_axes=(0, None))(jax.random.split(key, 3), sampler)
    np.testing.assert_allclose(frames[-1], ends.position, rtol=1e-5)
    assert len(plot.trajectory(key, painter(3), 3, 50)) == 4


def test_trajectory_needs_an_end():
    with pytest.raises(ValueError, match="finite sampler"):
        plot.trajectory(jax.random.key(0), painter(None), 3, 6)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    held, kept = (jnp.asarray(0.1 * rng.normal(size=(n, 4, 4, 1)), jnp.float32) for n in (100, 300))
    target = Target.from_data(kept, name="small images", truth=Truth(reference=held))
    return compare(jax.random.key(0), target, {"painter": painter(), "other": painter(12)}, "tiny", progress=False)


def test_image_targets_get_a_grid_and_an_animation(images, tmp_path):
    assert plot.is_image(images)
    files = plot.save_comparison(images, tmp_path, jax.random.key(0))
    assert set(files.values()) == {
        "small_images_samples.png", "small_images_painting.gif", "small_images_error_evaluations.png",
        "small_images_error_seconds.png",
    }  # fmt: skip
    with Image.open(tmp_path / "small_images_painting.gif") as movie:
        assert movie.n_frames == 13
    for file in files.values():
        with Image.open(tmp_path / file) as picture:
            assert min(picture.size) > 100 and len(set(picture.convert("L").get_flattened_data())) > 5


def one_dimension(x):
    return -0.5 * jnp.sum(x**2)


def exact(key):
    return jax.random.normal(key, (1,))


def quantile(u):
    return jax.scipy.special.ndtri(u)


def test_vector_targets_get_draws_beside_truth(tmp_path):
    target = Target.from_log_density(one_dimension, jnp.zeros(1), name="line", exact=exact)
    sampler = pushforward.inverse_transform(quantile, target.template)
    found = compare(jax.random.key(0), target, {"inverse": sampler}, "tiny", progress=False)
    assert set(plot.save_comparison(found, tmp_path, jax.random.key(0)).values()) == {
        "line_draws.png", "line_error_evaluations.png", "line_error_seconds.png"
    }  # fmt: skip
    figure = plot.draws_beside_truth(found)
    assert [axis.get_title() for axis in figure.axes if axis.get_visible()] == ["exact draws", "inverse"]


def test_animation_holds_the_last_frame(tmp_path):
    frames = {"long": np.zeros((9, 4, 3, 3, 1)), "short": np.ones((4, 4, 3, 3, 3))}
    plot.animate(frames, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as movie:
        movie.seek(movie.n_frames - 1)
        assert movie.info["duration"] >= 2_000
