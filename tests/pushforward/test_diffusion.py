"""Diffusion samplers: what a step is, what a grid may be, what a model shares with its siblings. Laws are tested elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gensamp as gs
from gensamp import noise
from gensamp.hybrid import score_langevin
from gensamp.nets import mlp
from gensamp.pushforward import (
    ancestral,
    conditional,
    ddim,
    ddim_sampler,
    ddpm,
    diffusion_model,
    uniform_log_snr,
    uniform_time,
)

NOISES = {"cosine": noise.cosine(), "vp_linear": noise.vp_linear(), "ve": noise.ve()}
TREE = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
EVENTS = {"a": 5 + jnp.arange(48.0).reshape(16, 3), "b": jax.random.normal(jax.random.key(0), (16, 2, 2))}


def shrink(gain, t, x):
    """Any denoiser will do."""
    return jax.tree.map(lambda a: jnp.tanh(gain * a + t.astype(a.dtype)), x)


DENOISE = gs.bind(shrink, jnp.float32(0.7))


@pytest.mark.parametrize("clip", [None, (-0.5, 0.5)])
@pytest.mark.parametrize("process", NOISES.values(), ids=NOISES)
def test_ddim_with_eta_one_is_the_ancestral_sampler(process, clip):
    grid = uniform_time(7)
    one = ancestral(DENOISE, process, grid, jnp.zeros(4), clip=clip)
    other = ddim_sampler(DENOISE, process, grid, jnp.zeros(4), eta=1.0, clip=clip)
    x, key = jax.random.normal(jax.random.key(1), (4,)), jax.random.key(2)
    step = jax.jit(lambda sampler, index: sampler.step(key, x, index)[0])
    for index in (0, 3, 6):
        np.testing.assert_allclose(step(one, index), step(other, index), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("process", NOISES.values(), ids=NOISES)
def test_no_grid_gives_nan(process):
    grids = {
        "to zero": uniform_time(6),
        "repeated": jnp.array([1.0, 1.0, 0.5, 0.5, 0.0, 0.0, 0.0]),
        "log-SNR": uniform_log_snr(process, 6),
        "standing": jnp.zeros(7),
    }
    draw = jax.jit(lambda key, sampler: gs.draw(key, sampler))
    for sampler in (ancestral, ddim_sampler):
        for name, grid in grids.items():
            out = draw(jax.random.key(0), sampler(DENOISE, process, grid, jnp.zeros(4)))
            assert np.isfinite(out.position).all(), name
            assert out.info.forwards == 6
    # A grid is a leaf: eight runs, two programs.
    assert draw._cache_size() == 2


def test_the_last_step_returns_the_guess_where_no_noise_is_left():
    process = NOISES["vp_linear"]
    x, t = jax.random.normal(jax.random.key(1), (4,)), jnp.float32(0.3)
    want = noise.eps_to_x0(process, t, x, DENOISE(t, x))
    for make in (ancestral, ddim_sampler):
        sampler = make(DENOISE, process, jnp.array([0.3, 0.0]), jnp.zeros(4))
        np.testing.assert_allclose(sampler.step(jax.random.key(0), x, 0)[0], want, rtol=1e-5)


def test_the_start_has_the_scale_of_the_process():
    for name, scale in (("ve", 50.0), ("cosine", 1.0)):
        sampler = ddim_sampler(DENOISE, NOISES[name], uniform_time(2), jnp.zeros(2000))
        assert np.std(sampler.start(jax.random.key(0))) == pytest.approx(scale, rel=0.1)


def test_log_snr_grids_are_even_in_log_snr():
    for process in NOISES.values():
        grid = uniform_log_snr(process, 8)
        assert np.all(np.diff(grid) < 0) and grid[0] == 1 and grid[-1] == np.float32(process.t_min)
        np.testing.assert_allclose(np.diff(jax.vmap(process.log_snr)(grid), 2), 0, atol=0.02)


@pytest.fixture(scope="module")
def network():
    return mlp(TREE, width=16, depth=1)


def test_siblings_share_loss_and_parameters(network):
    losses, structures = [], set()
    for make in (ddpm, ddim, score_langevin):
        model = make(network, NOISES["cosine"], template=TREE)
        params, state = jax.jit(model.init)(jax.random.key(0), EVENTS)
        loss, (_, metrics) = jax.jit(model.loss)(params, state, jax.random.key(1), EVENTS)
        losses.append(float(loss))
        structures.add(jax.tree.structure(params))
        assert metrics["denoising_error"] == loss and model.forwards == 1
    assert losses[0] == losses[1] == losses[2] and len(structures) == 1
    # An untrained network predicts zero noise: the loss is the mean square of 112 normals.
    assert losses[0] == pytest.approx(1.0, abs=0.5)


def test_new_parameters_and_a_new_eta_add_no_program_and_the_frame_is_undone(network):
    draw = jax.jit(lambda key, sampler: gs.draw(key, sampler))
    model = ddim(network, NOISES["cosine"], template=TREE, num_steps=4, eta=0.5)
    params, _ = jax.jit(model.init)(jax.random.key(0), EVENTS)
    first = draw(jax.random.key(1), model.sampler(params)).position
    other = ddim(network, NOISES["cosine"], template=TREE, num_steps=4, eta=0.0)
    draw(jax.random.key(1), other.sampler(params))
    moved = {**params, "shift": jax.tree.map(lambda a: a + 100, params["shift"])}
    second = draw(jax.random.key(1), model.sampler(moved)).position
    assert draw._cache_size() == 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b - a, 100, atol=0.05), first, second)


def test_draws_keep_within_the_clip_and_the_dtype_of_the_template(network):
    with jax.enable_x64(True):
        template = jax.ShapeDtypeStruct((3,), jnp.float64)
        model = ddpm(mlp(template, width=8, depth=1), noise.cosine(), template=template, num_steps=3, clip=(-1.0, 1.0))
        events = jax.random.uniform(jax.random.key(0), (8, 3), jnp.float64)
        params, state = jax.jit(model.init)(jax.random.key(0), events)
        assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype("float64")}
        assert jax.jit(model.loss)(params, state, jax.random.key(1), events)[0].dtype == jnp.float64
        x = jax.jit(gs.draw)(jax.random.key(1), model.sampler(params)).position
        assert x.dtype == jnp.float64 and np.abs(x).max() < 1.1


def test_a_conditional_model_draws_every_label_in_one_program():
    template = jnp.zeros(2)
    network = mlp(template, width=8, depth=1, num_classes=3)
    model = ddpm(network, noise.cosine(), template=template, num_steps=3, conditional=True)
    batch = (jax.random.normal(jax.random.key(0), (6, 2)), jnp.arange(6) % 3)
    params, state = jax.jit(model.init)(jax.random.key(0), batch)
    assert np.isfinite(jax.jit(model.loss)(params, state, jax.random.key(1), batch)[0])
    params = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(3), a.shape), params)

    @jax.jit
    def draws(make, labels):
        return jax.vmap(lambda label: gs.draw(jax.random.key(2), make(label)).position)(labels)

    out = draws(conditional(model, params), jnp.arange(3))
    assert out.shape == (3, 2) and np.abs(np.diff(out, axis=0)).min() > 1e-4
    draws(conditional(model, jax.tree.map(jnp.negative, params)), jnp.array([2, 1, 0]))
    assert draws._cache_size() == 1


def test_bad_input_is_refused_in_a_sentence(network):
    with pytest.raises(ValueError, match="from noise"):
        ancestral(DENOISE, NOISES["ve"], jnp.array([0.0, 1.0]), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"shape \(1,\)"):
        ancestral(DENOISE, NOISES["ve"], jnp.array([1.0]), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"eta=1\.5"):
        ddim_sampler(DENOISE, NOISES["ve"], uniform_time(2), jnp.zeros(2), eta=1.5)
    with pytest.raises(ValueError, match="clip"):
        ddpm(network, NOISES["ve"], template=TREE, clip=(1.0, -1.0))
    with pytest.raises(ValueError, match=r"clip is 1\.0; expected \(lowest, highest\)"):
        ddpm(network, NOISES["ve"], template=TREE, clip=1.0)
    for make in (ddpm, ddim):
        with pytest.raises(ValueError, match=r"got the grid .* expected times from noise"):
            make(network, NOISES["ve"], template=TREE, grid=jnp.linspace(0, 1, 5))
    for eta in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=f"ddim got eta={eta}; expected a number from 0"):
            ddim(network, NOISES["ve"], template=TREE, eta=eta)
    with pytest.raises(ValueError, match=r"diffusion_model got order=3\.0; expected an integer"):
        diffusion_model(network, NOISES["ve"], template=TREE, order=3.0)
    with pytest.raises(ValueError, match="num_steps=0"):
        ddim(network, NOISES["ve"], template=TREE, num_steps=0)
    with pytest.raises(ValueError, match="no data"):
        ddpm(network, NOISES["ve"], template=TREE).init(jax.random.key(0), None)
    model = ddpm(network, NOISES["ve"], template=TREE, conditional=True)
    with pytest.raises(ValueError, match="pair"):
        model.init(jax.random.key(0), EVENTS)
