"""Both forms of a convolution are one function, with gradients that are right and that XLA computes quickly on a CPU."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gensamp.nets.convolution import Convolution, convolve

IMAGES = jax.random.normal(jax.random.key(0), (3, 6, 4, 2))
KERNEL = jax.random.normal(jax.random.key(1), (3, 3, 2, 5))
ORDER = ("NHWC", "HWIO", "NHWC")


def plain(x, kernel, strides, padding):
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=ORDER)


def slopes(function, strides, padding):
    """Value, gradients, a directional derivative and a gradient of a gradient."""

    def loss(x, kernel):
        return jnp.sin(function(x, kernel, strides, padding)).sum()

    def steepness(x, kernel):
        return jnp.square(jax.grad(loss)(x, kernel)).sum()

    along = jax.jvp(loss, (IMAGES, KERNEL), (jnp.cos(IMAGES), jnp.cos(KERNEL)))
    return along, jax.grad(loss, (0, 1))(IMAGES, KERNEL), jax.grad(steepness, (0, 1))(IMAGES, KERNEL)


@pytest.mark.parametrize("strides, padding", [((1, 1), "SAME"), ((2, 2), ((0, 1), (0, 1)))], ids=["same", "strided"])
def test_gradients_are_those_of_the_compilers_convolution(strides, padding):
    found, wanted = (jax.jit(lambda f=f: slopes(f, strides, padding))() for f in (convolve, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), found, wanted)


def as_patches(x, kernel):
    """A convolution as the layer computes it from nine copies, given the compiler's kernel."""
    dense = {"kernel": kernel.reshape(-1, kernel.shape[-1]), "bias": jnp.zeros(kernel.shape[-1])}
    return Convolution(kernel.shape[-1], "patches").apply({"params": {"Dense_0": dense}}, x)


def as_xla(x, kernel):
    conv = {"kernel": kernel, "bias": jnp.zeros(kernel.shape[-1])}
    return Convolution(kernel.shape[-1], "xla").apply({"params": {"Conv_0": conv}}, x)


def test_both_forms_are_one_function_with_one_gradient():
    def all_of(form):
        def loss(kernel):
            return jnp.square(jax.vmap(form, in_axes=(0, None))(IMAGES, kernel)).sum()

        return jax.jit(jax.value_and_grad(loss))(KERNEL)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), all_of(as_patches), all_of(as_xla))


def test_in_a_loop_every_convolution_of_a_training_step_has_the_order_that_is_fast():
    def step(i, kernels):
        def loss(kernels):
            h = jnp.sin(jax.vmap(as_xla, in_axes=(0, None))(IMAGES, kernels[0]))
            return jnp.square(jax.vmap(as_xla, in_axes=(0, None))(h, kernels[1])).sum()

        return jax.tree.map(lambda a, b: a - 1e-3 * b, kernels, jax.grad(loss)(kernels))

    kernels = (KERNEL, jnp.ones((3, 3, 5, 1)))
    program = jax.jit(lambda kernels, n: jax.lax.fori_loop(0, n, step, kernels)).lower(kernels, 2).compile().as_text()
    assert " while(" in program
    orders = re.findall(r" convolution\(.*dim_labels=([\w>-]+)", program)
    # Two forward, two towards kernels, one towards the image between.
    assert len(orders) == 5 and set(orders) == {"b01f_01io->b01f"}
