"""Our own networks: one event in, one like it out, whatever its shape, dtype and condition."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gensamp.nets import Event, affine_couplings, at_levels, feedforward, generator, mlp, transformer, unet
from gensamp.nets.convolution import Convolution
from gensamp.nets.sizes import check_sizes

TREE = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}


def shapes(tree):
    return jax.tree.map(lambda a: (a.shape, a.dtype), tree)


def test_an_event_is_hashable_and_flattens_there_and_back():
    event = Event.of(TREE)
    assert hash(event) == hash(Event.of(TREE))
    assert event.size == 7
    x = event.normal(jax.random.key(0))
    assert shapes(x) == shapes(TREE)
    back = event.unflatten(event.flatten(x))
    jax.tree.map(np.testing.assert_array_equal, x, back)


@pytest.mark.parametrize(
    ("make", "template", "num_classes"),
    [
        (mlp, TREE, None),
        (mlp, jnp.zeros((2, 2)), 10),
        (partial(unet, multipliers=(1, 2, 2)), jnp.zeros((12, 8, 3)), None),
    ],
    ids=["mlp", "mlp_classes", "unet"],
)
def test_a_denoiser_returns_an_event_and_starts_at_zero(make, template, num_classes):
    network = make(template, width=8, num_classes=num_classes)
    condition = () if num_classes is None else (jnp.int32(3),)
    x = Event.of(template).normal(jax.random.key(1))
    out = jax.jit(lambda key: network.apply(network.init(key), x, jnp.float32(0.5), *condition))(jax.random.key(0))
    assert shapes(out) == shapes(template)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(out))


def test_a_denoiser_depends_on_event_time_and_class():
    network = unet(jnp.zeros((4, 4, 1)), width=8, num_classes=10)

    @jax.jit
    def apply(x, t, condition):
        params = network.init(jax.random.key(0))
        # Off its start at zero.
        params = jax.tree.map(lambda a: a + 0.1, params)
        return network.apply(params, x, t, condition)

    x = jax.random.normal(jax.random.key(2), (2, 4, 4, 1))
    base = apply(x[0], jnp.float32(0.2), jnp.int32(1))
    for other in ((x[1], 0.2, 1), (x[0], 0.21, 1), (x[0], 0.2, 2)):
        out = apply(other[0], jnp.float32(other[1]), jnp.int32(other[2]))
        assert np.abs(out - base).max() > 1e-4


def test_the_two_forms_of_convolution_are_one_function():
    patches, xla = (Convolution(3, form) for form in ("patches", "xla"))
    x = jax.random.normal(jax.random.key(2), (4, 6, 2))
    weights = xla.init(jax.random.key(0), x)["params"]["Conv_0"]
    # The kernel [3, 3, in, out] is the matrix [9 in, out] of the patches.
    matrix = {"params": {"Dense_0": {"kernel": weights["kernel"].reshape(-1, 3), "bias": weights["bias"]}}}
    want = xla.apply({"params": {"Conv_0": weights}}, x)
    np.testing.assert_allclose(patches.apply(matrix, x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 5])
def test_couplings_invert_and_know_their_jacobian(size):
    with jax.enable_x64(True):
        couplings = affine_couplings(size, num_layers=4, width=8, dtype=jnp.float64)

        @jax.jit
        def there_and_back(key, z):
            params = couplings.init(key)
            params = jax.tree.map(lambda a: a + 0.3 * jax.random.normal(key, a.shape, a.dtype), params)
            y, log_jacobian = couplings.forward(params, z)
            jacobian = jax.jacfwd(lambda z: couplings.forward(params, z)[0])(z)
            return y, log_jacobian, couplings.inverse(params, y), jnp.linalg.slogdet(jacobian)[1]

        z = jax.random.normal(jax.random.key(2), (size,))
        y, log_jacobian, (back, log_inverse), want = there_and_back(jax.random.key(1), z)
        assert y.dtype == jnp.float64
        np.testing.assert_allclose(back, z, atol=1e-12)
        np.testing.assert_allclose(log_jacobian, want, atol=1e-10)
        np.testing.assert_allclose(log_inverse, -log_jacobian, atol=1e-10)
        assert abs(float(log_jacobian)) > 1e-3


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="divisible by 4"):
        unet(jnp.zeros((6, 8, 1)), multipliers=(1, 2, 2))
    with pytest.raises(ValueError, match="one image"):
        unet(jnp.zeros(5))
    with pytest.raises(ValueError, match="depth=0"):
        mlp(jnp.zeros(3), depth=0)
    with pytest.raises(ValueError, match="num_layers=0"):
        affine_couplings(3, num_layers=0)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: mlp(jnp.zeros(3), depth=True), "mlp got depth"),
        (lambda: mlp(jnp.zeros(3), num_classes=True), "mlp got num_classes"),
        (lambda: unet(jnp.zeros((4, 4, 1)), num_blocks=True), "unet got num_blocks"),
        (lambda: transformer(jnp.zeros((4, 4, 1)), depth=True), "transformer got depth"),
        (lambda: feedforward(2, 3, depth=True), "feedforward got depth"),
        (lambda: generator(jnp.zeros(2), True), "generator got latent_dim"),
        (lambda: affine_couplings(3, width=True), "affine_couplings got width"),
        (lambda: at_levels(mlp(jnp.zeros(3)), True), "at_levels got num_levels"),
    ],
)
def test_sizes_that_are_no_integers_are_refused(build, name):
    with pytest.raises(ValueError, match=f"{name}=True; expected an integer of at least"):
        build()


@pytest.mark.parametrize("size", [16.0, "16", None, 0, jnp.ones(2)])
def test_what_is_no_size_is_refused(size):
    check_sizes("somebody", width=(16, 1), depth=(np.int64(0), 0), multipliers=((), 1), shape=([2, 3], 1))
    with pytest.raises(ValueError, match=r"somebody got width=.*; expected an integer of at least 1"):
        check_sizes("somebody", width=(size, 1))
    with pytest.raises(ValueError, match=r"somebody got shape=\(1, .*\); expected integers of at least 1"):
        check_sizes("somebody", shape=((1, size), 1))
