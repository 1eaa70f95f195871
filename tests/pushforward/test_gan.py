"""GANs: one loss for two players, penalties in closed form, an optimizer of two rates. Laws are tested elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gensamp as gs
from gensamp.nets.critic import critic, generator
from gensamp.pushforward.gan import gan, gan_optimizer

TREE = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
EVENTS = {"a": 5 + jnp.arange(48.0).reshape(16, 3), "b": jax.random.normal(jax.random.key(0), (16, 2, 2))}
OBJECTIVES = ("nonsaturating", "wasserstein", "hinge")


def small(objective, **options):
    """A GAN over TREE with small networks."""
    nets = {"generator": generator(TREE, 2, width=8, depth=1), "critic": critic(TREE, width=8, depth=2)}
    return gan(TREE, objective=objective, latent_dim=2, **nets, **options)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_player_has_the_gradient_of_its_own_game(objective):
    model = small(objective)
    params, state = jax.jit(model.init)(jax.random.key(1), EVENTS)

    @jax.jit
    def gradients(params):
        def term(*names):
            def total(params):
                metrics = model.loss(params, state, jax.random.key(2), EVENTS)[1][1]
                return sum(metrics[name] for name in names)

            return jax.grad(total)(params)

        whole = jax.grad(lambda p: model.loss(p, state, jax.random.key(2), EVENTS)[0])(params)
        return whole, term("critic_loss", "penalty"), term("generator_loss")

    whole, of_critic, of_generator = gradients(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole["critic"], of_critic["critic"])
    jax.tree.map(np.testing.assert_array_equal, whole["generator"], of_generator["generator"])
    for of_other in (of_critic["generator"], of_generator["critic"], whole["frame"]):
        assert all(np.all(a == 0) for a in jax.tree.leaves(of_other))
    assert min(float(optax.tree.norm(whole[name])) for name in ("critic", "generator")) > 1e-3


def linear(params, x):
    return params @ x


def linear_init(key):
    return jnp.array([3.0, -4.0])


@pytest.mark.parametrize(("objective", "penalty"), [("nonsaturating", 12.5), ("hinge", 12.5), ("wasserstein", 16.0)])
def test_penalties_of_a_linear_critic_are_in_closed_form(objective, penalty):
    # |grad D| = 5 everywhere: 5^2 / 2, and (5 - 1)^2.
    model = gan(jnp.zeros(2), objective=objective, critic=gs.Network(linear_init, linear), penalty=2.0)
    events = jax.random.normal(jax.random.key(0), (8, 2))
    params, _ = jax.jit(model.init)(jax.random.key(1), events)
    loss, (_, metrics) = jax.jit(model.loss)(params, (), jax.random.key(2), events)
    assert metrics["penalty"] == pytest.approx(2 * penalty, rel=1e-5)
    total = metrics["critic_loss"] + metrics["penalty"] + metrics["generator_loss"]
    assert loss == pytest.approx(float(total), rel=1e-6)


def test_a_flat_critic_has_finite_gradients():
    model = gan(jnp.zeros(2), objective="wasserstein", critic=gs.Network(lambda key: jnp.zeros(2), linear))
    events = jax.random.normal(jax.random.key(0), (8, 2))
    params, _ = jax.jit(model.init)(jax.random.key(1), events)
    gradient = jax.jit(jax.grad(lambda p: model.loss(p, (), jax.random.key(2), events)[0]))(params)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(gradient))


def test_the_generator_moves_at_every_nth_step_and_the_frame_never():
    optimizer = gan_optimizer(critic_steps=3, generator_rate=0.1, critic_rate=0.5)
    params = {"generator": jnp.zeros(2), "critic": jnp.zeros(2), "frame": {"shift": jnp.zeros(2)}}
    gradient = jax.tree.map(jnp.ones_like, params)
    state = optimizer.init(params)
    moved = []
    for _ in range(6):
        updates, state = optimizer.update(gradient, state, params, num_steps=6)
        moved.append([float(jnp.abs(updates[name]).max()) for name in ("generator", "critic")])
        assert np.all(updates["frame"]["shift"] == 0)
    generator_moves, critic_moves = np.array(moved).T
    np.testing.assert_allclose(generator_moves, [0, 0, 0.1, 0, 0, 0.1], atol=1e-6)
    np.testing.assert_allclose(critic_moves, 0.5, rtol=1e-5)
    # One object for the same arguments: `fit` knows an optimizer by identity.
    assert gan_optimizer(critic_steps=3, generator_rate=0.1, critic_rate=0.5) is optimizer


def test_fit_plays_the_game_without_a_special_case():
    model = small("nonsaturating")
    events = jax.tree.map(lambda a: jnp.tile(a, (4,) + (1,) * (a.ndim - 1)), EVENTS)
    optimizer = gan_optimizer(critic_steps=2)
    fitted = gs.fit(jax.random.key(0), model, events, optimizer=optimizer, num_steps=5, batch_size=8, ema=0.9, progress=False)
    assert fitted.ending == "finished" and fitted.ledger.fit.forwards == 5 * 8 * 4
    assert set(fitted.history["metrics"]) == {"critic_loss", "generator_loss", "penalty", "gap"}
    jax.tree.map(np.testing.assert_allclose, fitted.params["frame"], fitted.ema["frame"])
    draws = gs.sample(jax.random.key(1), model.sampler(fitted.ema), 4, progress=False)
    assert jax.tree.map(lambda a: a.shape[2:], draws.position) == jax.tree.map(jnp.shape, TREE)
    assert draws.ledger.sample.forwards == 4


def test_float64_events_stay_float64():
    with jax.enable_x64(True):
        template = jax.ShapeDtypeStruct((3,), jnp.float64)
        events = jax.random.normal(jax.random.key(0), (8, 3), jnp.float64)
        for objective in ("nonsaturating", "wasserstein"):
            model = gan(template, objective=objective, latent_dim=2)
            params, state = jax.eval_shape(model.init, jax.random.key(0), events)
            assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype("float64")}
            assert jax.eval_shape(model.loss, params, state, jax.random.key(1), events)[0].dtype == jnp.float64


def test_bad_input_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="latent_dim=0"):
        gan(jnp.zeros(2), latent_dim=0)
    with pytest.raises(ValueError, match="penalty=-1"):
        gan(jnp.zeros(2), penalty=-1)
    with pytest.raises(ValueError, match="gan got no data"):
        gan(jnp.zeros(2)).init(jax.random.key(0), None)
    with pytest.raises(ValueError, match="critic_steps=0"):
        gan_optimizer(critic_steps=0)
    with pytest.raises(ValueError, match="divisible by 4"):
        critic(jnp.zeros((6, 8, 1)), multipliers=(1, 2))
    with pytest.raises(ValueError, match="one image"):
        generator(TREE, 2, multipliers=(1,))
