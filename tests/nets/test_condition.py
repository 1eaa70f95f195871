"""A network or a guidance that needs a condition says so where it got none, and so does one that would not look at it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gensamp as gs
from gensamp.nets.condition import check_labels
from gensamp.pushforward import classifier_guidance, diffusion_model, gan, label_guidance, measured_guidance, vae
from gensamp.pushforward.conditional import labelled

IMAGE = jnp.zeros((4, 4, 1))
PLAIN = [
    gs.nets.mlp(jnp.zeros(2), width=8, depth=1),
    gs.nets.unet(IMAGE, width=8),
    gs.nets.transformer(IMAGE, patch=2, width=8),
]
TOLD = [
    gs.nets.mlp(jnp.zeros(2), width=8, depth=1, num_classes=3),
    gs.nets.unet(IMAGE, width=8, num_classes=3),
    gs.nets.transformer(IMAGE, patch=2, width=8, num_classes=3),
]


@pytest.mark.parametrize("network", TOLD)
def test_network_asks_for_a_missing_condition(network):
    x = IMAGE if network is not TOLD[0] else jnp.zeros(2)
    with pytest.raises(ValueError, match="got no condition; expected one, such as a label"):
        jax.eval_shape(lambda key: network.apply(network.init(key), x, jnp.float32(0.5)), jax.random.key(0))


@pytest.mark.parametrize("network", PLAIN)
def test_network_refuses_a_condition_it_would_not_see(network):
    x = IMAGE if network is not PLAIN[0] else jnp.zeros(2)
    with pytest.raises(ValueError, match="would not see it; give num_classes="):
        jax.eval_shape(lambda key: network.apply(network.init(key), x, jnp.float32(0.5), jnp.int32(1)), jax.random.key(0))


def first_coordinate(x):
    return x[:1]


def likelihood(t, x, label):
    return -jnp.square(x).sum() * label


@pytest.mark.parametrize(
    ("guidance", "network", "conditional"),
    [
        (label_guidance(2, strength=2.0), TOLD[0], True),
        (classifier_guidance(likelihood), PLAIN[0], False),
        (measured_guidance(first_coordinate, 0.1, jnp.zeros(2)), PLAIN[0], False),
    ],
    ids=["label", "classifier", "measured"],
)
def test_guidance_asks_for_a_missing_condition(guidance, network, conditional):
    model = diffusion_model(network, gs.noise.cosine(), template=jnp.zeros(2), conditional=conditional, guidance=guidance)
    params = model.init(jax.random.key(0), (jnp.zeros((4, 2)), jnp.zeros(4, int)) if conditional else jnp.zeros((4, 2)))[0]
    with pytest.raises(ValueError, match="guidance got no condition"):
        model.sampler(params)


def test_conditional_gan_asks_for_its_label():
    model = gan(template=jnp.zeros(2), num_classes=3)
    params = model.init(jax.random.key(0), (jnp.zeros((4, 2)), jnp.zeros(4, int)))[0]
    with pytest.raises(ValueError, match="got no condition"):
        gs.draw(jax.random.key(1), model.sampler(params))


def test_a_label_is_a_number_of_any_kind_and_whole():
    network, x = TOLD[0], jnp.ones(2)
    params = jax.eval_shape(network.init, jax.random.key(0))
    for label in (2, np.int64(2), np.uint8(2), jnp.int32(2)):
        assert jax.eval_shape(lambda params, label=label: network.apply(params, x, 0.5, label), params).shape == (2,)
    with pytest.raises(ValueError, match="mlp got a label of dtype float32; expected integers from 0 to 2"):
        jax.eval_shape(network.apply, params, x, 0.5, jnp.float32(2))


def models():
    network = TOLD[0]
    noise, options = gs.noise.cosine(), {"template": jnp.zeros(2), "conditional": True}
    return {
        "model.sampler": diffusion_model(network, noise, **options),
        "gan": gan(jnp.zeros(2), num_classes=3),
        "vae": vae(jnp.zeros(2), num_classes=3, width=8),
        "label_guidance": diffusion_model(network, noise, guidance=label_guidance(3), **options),
    }


@pytest.mark.parametrize("name", models())
def test_labels_that_there_are_not_are_refused(name):
    model = models()[name]
    batch = jnp.zeros((4, 2)), jnp.zeros(4, int)
    params = jax.eval_shape(model.init, jax.random.key(0), batch)[0]
    params = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), params)
    if name == "label_guidance":
        with pytest.raises(ValueError, match="label_guidance got the label 3; expected integers from 0 to 2: number"):
            model.sampler(params, 1)
        return
    for label in (3, -1, np.int64(7)):
        with pytest.raises(ValueError, match=f"{name} got the label {label}; expected integers from 0 to 2: number the"):
            model.sampler(params, label)
    assert model.sampler(params, 2).num_steps


@pytest.mark.parametrize("make", [gan, vae])
def test_fit_refuses_labels_that_there_are_not(make):
    pairs = np.zeros((8, 2), np.float32), np.arange(8) % 3 + 1
    with pytest.raises(ValueError, match=f"{make.__name__} got the label 3; expected integers from 0 to 2"):
        gs.fit(jax.random.key(0), make(jnp.zeros(2), num_classes=3), pairs, batch_size=4)


def test_labels_whose_values_are_not_known_pass_for_no_class():
    embedded, indicated = TOLD[0], labelled(gs.nets.feedforward(5, 2, depth=0), 3)

    def both(label):
        one, other = (jax.tree.map(jnp.ones_like, net.init(jax.random.key(0))) for net in (embedded, indicated))
        return embedded.apply(one, jnp.ones(2), 0.5, label), indicated.apply(other, jnp.ones(2), label)

    for out in jax.jit(jax.vmap(both))(jnp.array([0, 2, 3, -1])):
        assert np.isfinite(out).all(1).tolist() == [True, True, False, False]


def test_labels_nobody_numbered_are_not_looked_at():
    check_labels((jnp.float32(7),), None, "somebody")
    check_labels((), 3, "somebody")


@pytest.mark.parametrize(("shift", "label"), [(1, 3), (-1, -1)])
def test_fit_refuses_labels_outside_of_the_classes(shift, label):
    model = diffusion_model(TOLD[0], gs.noise.cosine(), template=jnp.zeros(2), conditional=True)
    x, labels = np.zeros((12, 2), np.float32), np.arange(12) % 3 + shift
    with pytest.raises(ValueError, match=f"a diffusion model got the label {label}; expected integers from 0 to 2"):
        gs.fit(jax.random.key(0), model, (x, labels), num_steps=1, batch_size=4, progress=False)
