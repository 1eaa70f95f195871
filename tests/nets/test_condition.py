"""A network or a guidance that needs a condition says so where it got none, and so does one that would not look at it."""

import jax
import jax.numpy as jnp
import pytest

import gensamp as gs
from gensamp.pushforward import classifier_guidance, diffusion_model, gan, label_guidance, measured_guidance

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
