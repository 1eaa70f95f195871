"""The U-Net with attention, classes and another precision, beside the critic and the generator of a GAN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gensamp.core import Network
from gensamp.nets import unet
from gensamp.nets.critic import critic, generator
from gensamp.nets.mlp import feedforward, mlp
from gensamp.nets.unet import _Attention

IMAGE = jnp.zeros((8, 8, 2))


def weights(network):
    """Random parameters of the right shapes, without the zeros that networks start with and without compiling their init."""
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    random = np.random.default_rng(0)

    def draw(path, a):
        centre = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return jnp.asarray(centre + random.normal(size=a.shape) / np.sqrt(max(a.size / a.shape[-1], 4)), a.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def products(jaxpr):
    """The operands' dtypes of every matrix product in a program."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found.append({str(v.aval.dtype) for v in equation.invars})
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "jaxpr")):
            if hasattr(inner, "jaxpr"):
                found += products(inner.jaxpr)
    return found


def test_attention_knows_no_order_and_mixes_pixels():
    module = _Attention(2, jnp.float32)
    h = jax.random.normal(jax.random.key(1), (4, 2, 8))
    params = {"params": weights(Network(lambda key: module.init(key, h)["params"], None))}
    order = jax.random.permutation(jax.random.key(2), 8)

    def shuffled(h):
        return h.reshape(8, 8)[order].reshape(4, 2, 8)

    np.testing.assert_allclose(module.apply(params, shuffled(h)), shuffled(module.apply(params, h)), rtol=1e-4, atol=1e-5)
    # What one pixel hears from another, beyond what the norm's statistics tell it.
    slope = jax.jacfwd(lambda h: module.apply(params, h)[0, 0])(h)[:, 3, 1]
    assert np.abs(slope).max() > 1e-3


def test_a_unet_with_attention_depends_on_its_class():
    x = jax.random.normal(jax.random.key(1), IMAGE.shape)
    network = unet(IMAGE, width=8, attention=(1,), num_heads=2, num_classes=3)
    params, apply = weights(network), jax.jit(network.apply)
    one, other = (apply(params, x, jnp.float32(0.3), jnp.int32(label)) for label in (1, 2))
    assert one.shape == IMAGE.shape and np.abs(one - other).max() > 1e-3


def test_attention_starts_as_nothing():
    h = jax.random.normal(jax.random.key(1), (4, 2, 8))
    np.testing.assert_array_equal(_Attention(2, jnp.float32).init_with_output(jax.random.key(0), h)[0], h)


@pytest.mark.parametrize(
    "make",
    [
        lambda **o: unet(IMAGE, width=8, attention=(1,), num_heads=2, **o),
        lambda **o: mlp(IMAGE, width=16, **o),
    ],
    ids=["unet", "mlp"],
)
def test_arithmetic_in_bfloat16_keeps_parameters_and_output_in_float32(make):
    x = jax.random.normal(jax.random.key(1), IMAGE.shape)
    low, full = make(compute=jnp.bfloat16), make()
    params = weights(low)
    assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    one, other = (jax.jit(net.apply)(params, x, jnp.float32(0.3)) for net in (low, full))
    assert one.dtype == jnp.float32
    assert 1e-4 < np.abs(one - other).max() / np.abs(other).max() < 0.05
    operands = products(jax.make_jaxpr(low.apply)(params, x, jnp.float32(0.3)).jaxpr)
    assert operands and all(dtypes == {"bfloat16"} for dtypes in operands)


def test_critics_and_generators_are_maps_between_events_and_numbers():
    for options in ({"width": 8, "depth": 2}, {"width": 4, "multipliers": (1, 2)}):
        judge, make = critic(IMAGE, **options), generator(IMAGE, 5, **options)
        x = jax.random.normal(jax.random.key(1), (2, *IMAGE.shape))
        z = jax.random.normal(jax.random.key(2), (2, 5))

        values = jax.jit(jax.vmap(judge.apply, in_axes=(None, 0)))(weights(judge), x)
        events = jax.jit(jax.vmap(make.apply, in_axes=(None, 0)))(weights(make), z)
        assert values.shape == (2,) and events.shape == (2, *IMAGE.shape)
        assert abs(values[0] - values[1]) > 1e-4 and np.abs(events[0] - events[1]).max() > 1e-3
    tree = {"a": jnp.zeros(3), "b": jnp.zeros(())}
    made = generator(tree, 2, width=8).apply(weights(generator(tree, 2, width=8)), jnp.ones(2))
    assert jax.tree.map(jnp.shape, made) == {"a": (3,), "b": ()}


def test_a_generator_of_one_coarse_pixel_depends_on_its_latents():
    make = generator(jnp.zeros((4, 4, 1)), 3, width=4, multipliers=(1, 2))
    params = weights(make)
    one, other = (make.apply(params, jax.random.normal(jax.random.key(i), (3,))) for i in (1, 2))
    assert np.abs(one - other).max() > 1e-3


def test_a_feedforward_map_is_linear_at_depth_zero():
    net = feedforward(3, 2, depth=0)
    params = net.init(jax.random.key(0))
    h = jnp.arange(3.0)
    np.testing.assert_allclose(net.apply(params, 2 * h), 2 * net.apply(params, h), rtol=1e-6)
    assert np.all(feedforward(3, 2, zero=True).apply(feedforward(3, 2, zero=True).init(jax.random.key(0)), h) == 0)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="expected levels among 0 to 1"):
        unet(IMAGE, width=8, attention=(2,))
    with pytest.raises(ValueError, match="divisible by num_heads"):
        unet(IMAGE, width=8, attention=(0,), num_heads=3)
    with pytest.raises(ValueError, match="feedforward got size_out=0; expected an integer of at least 1"):
        feedforward(3, 0)
    with pytest.raises(ValueError, match="latent_dim=0"):
        generator(IMAGE, 0)
