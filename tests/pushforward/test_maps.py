"""RealNVP, VAE and inverse transform: densities, shapes, counts and refusals. Laws are tested elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gensamp as gs
from gensamp.pushforward import inverse_transform, realnvp, vae

TREE = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
EVENTS = {"a": 5 + jnp.arange(48.0).reshape(16, 3), "b": jax.random.normal(jax.random.key(0), (16, 2, 2))}
DRAW = jax.jit(gs.draw)


def log_normal(x):
    return sum(-0.5 * jnp.sum(a**2) for a in jax.tree.leaves(x))


def disturbed(params, size):
    """Off the identity that couplings start at."""
    couplings = jax.tree.map(lambda a: a + size * jax.random.normal(jax.random.key(5), a.shape), params["couplings"])
    return {**params, "couplings": couplings}


def test_a_flow_density_integrates_to_one():
    model = realnvp(jnp.zeros(2), num_layers=4, width=16)
    events = jnp.array([[1.0, -2.0]]) + jnp.array([[2.0, 0.5]]) * jax.random.normal(jax.random.key(0), (64, 2))
    params, _ = jax.jit(model.init)(jax.random.key(1), events)
    params = disturbed(params, 0.15)
    x, y = jnp.linspace(-40, 40, 501), jnp.linspace(-12, 12, 501)
    cell = (x[1] - x[0]) * (y[1] - y[0])
    grid = jnp.stack(jnp.meshgrid(x, y), axis=-1).reshape(-1, 2)
    log_q = jax.jit(jax.vmap(model.log_density, in_axes=(None, 0)))(params, grid)
    np.testing.assert_allclose(np.exp(log_q).sum() * cell, 1.0, atol=2e-3)
    # Far from the Gaussian it starts as.
    standard = (grid - params["shift"][None]) / jnp.exp(params["log_scale"])[None]
    gaussian = jax.scipy.stats.norm.logpdf(standard).sum(-1) - params["log_scale"].sum()
    assert (np.exp(log_q) * np.abs(log_q - gaussian)).sum() * cell > 0.1


def test_a_flow_knows_the_density_of_its_draws():
    model = realnvp(TREE, target=gs.Target.from_log_density(log_normal, TREE), num_layers=3, width=8, weighted=True)
    params, _ = jax.jit(model.init)(jax.random.key(1), None)
    params = {**disturbed(params, 0.3), "shift": jnp.arange(7.0), "log_scale": jnp.linspace(-1, 1, 7)}
    sampler = model.sampler(params)
    out = DRAW(jax.random.key(2), sampler)
    assert jax.tree.map(jnp.shape, out.position) == jax.tree.map(jnp.shape, TREE)
    want = log_normal(out.position) - sampler.log_density(out.position)
    np.testing.assert_allclose(out.log_weight, want, rtol=1e-4, atol=1e-4)
    assert (out.info.forwards, out.info.densities, out.info.gradients) == (1, 1, 0)


def test_a_flow_starts_at_the_scale_of_the_data():
    model = realnvp(TREE, num_layers=2, width=8)
    params, _ = jax.jit(model.init)(jax.random.key(1), EVENTS)
    np.testing.assert_allclose(params["shift"][:3], EVENTS["a"].mean(0), rtol=1e-5)
    np.testing.assert_allclose(np.exp(params["log_scale"][:3]), EVENTS["a"].std(0), rtol=1e-5)
    loss, (_, metrics) = jax.jit(model.loss)(params, (), jax.random.key(2), EVENTS)
    assert metrics["nll"] == loss and metrics["bits_per_dim"] == pytest.approx(float(loss) / 7 / np.log(2), rel=1e-5)


def test_a_vae_reports_its_bound():
    model = vae(TREE, latent_dim=2, width=8)
    params, _ = jax.jit(model.init)(jax.random.key(1), EVENTS)
    loss, (_, metrics) = jax.jit(model.loss)(params, (), jax.random.key(2), EVENTS)
    assert float(loss) == pytest.approx(float(metrics["kl"] - metrics["reconstruction"]), rel=1e-6)
    assert metrics["elbo"] == -loss and metrics["kl"] == pytest.approx(0, abs=1e-5) and params["log_scale"].shape == (7,)
    out = DRAW(jax.random.key(2), model.sampler(params))
    assert jax.tree.map(jnp.shape, out.position) == jax.tree.map(jnp.shape, TREE) and out.info.forwards == 1


def test_the_elbo_knows_the_units_of_the_data():
    # In units a tenth as large, every density over seven coordinates is a tenth to the seventh as high.
    model = vae(TREE, latent_dim=2, width=8)
    losses = []
    for unit in (1.0, 10.0):
        events = jax.tree.map(lambda a, unit=unit: unit * a, EVENTS)
        params, _ = jax.jit(model.init)(jax.random.key(1), events)
        losses.append(float(jax.jit(model.loss)(params, (), jax.random.key(2), events)[0]))
    assert losses[1] - losses[0] == pytest.approx(7 * np.log(10), rel=1e-3)


def test_inverse_transform_is_one_free_step():
    sampler = inverse_transform(lambda u: {"a": u[:3], "b": -jnp.log(u[3:].reshape(2, 2))}, TREE)
    out = DRAW(jax.random.key(0), sampler)
    assert sampler.num_steps == 1 and sampler.traits.law == "exact"
    assert out.info.forwards + out.info.densities + out.info.gradients == 0
    assert (out.position["a"] > 0).all() and (out.position["b"] > 0).all()


def test_parameters_are_leaves():
    draw = jax.jit(lambda key, sampler: gs.draw(key, sampler).position)
    for model in (realnvp(TREE, num_layers=2, width=8), vae(TREE, latent_dim=2, width=8)):
        params, _ = jax.jit(model.init)(jax.random.key(1), EVENTS)
        before = draw._cache_size()
        first = draw(jax.random.key(0), model.sampler(params))
        second = draw(jax.random.key(0), model.sampler(jax.tree.map(lambda a: a + 0.1, params)))
        assert draw._cache_size() == before + 1
        assert np.abs(first["a"] - second["a"]).max() > 1e-3


def test_float64_events_stay_float64():
    with jax.enable_x64(True):
        template = jax.ShapeDtypeStruct((3,), jnp.float64)
        events = jax.random.normal(jax.random.key(0), (8, 3), jnp.float64)
        for model in (realnvp(template, num_layers=2, width=4), vae(template, latent_dim=2, width=4)):
            params, state = jax.jit(model.init)(jax.random.key(0), events)
            assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype("float64")}
            assert jax.jit(model.loss)(params, state, jax.random.key(1), events)[0].dtype == jnp.float64
            assert DRAW(jax.random.key(1), model.sampler(params)).position.dtype == jnp.float64


def test_bad_input_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"needs target\.log_density"):
        realnvp(jnp.zeros(2), target=gs.Target.from_data(jnp.zeros((4, 2))))
    with pytest.raises(ValueError, match="weighted=True without a target"):
        realnvp(jnp.zeros(2), weighted=True)
    with pytest.raises(ValueError, match="expected the same"):
        realnvp(jnp.zeros(2), target=gs.Target.from_log_density(log_normal, jnp.zeros(3)))
    with pytest.raises(ValueError, match="no data"):
        realnvp(jnp.zeros(2)).init(jax.random.key(0), None)
    with pytest.raises(ValueError, match="latent_dim=0"):
        vae(jnp.zeros(2), latent_dim=0)
    with pytest.raises(ValueError, match="event like"):
        inverse_transform(lambda u: u[:1], jnp.zeros(2))
    with pytest.raises(ValueError, match="quantile=None"):
        inverse_transform(None, jnp.zeros(2))
