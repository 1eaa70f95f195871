"""Samplers small enough to know everything about, shared by the tests of the runner."""

import jax
import jax.numpy as jnp

from gensamp.core import Info, Sampler, Static, Target, Traits, bind, scalar
from gensamp.mcmc import nuts
from gensamp.nets import unet
from gensamp.noise import cosine
from gensamp.pushforward import ddpm


def autoregression(rho=0.5, *, shape=(3,), num_steps=None, dtype=jnp.float32) -> Sampler:
    """x' = rho x + sqrt(1 - rho^2) noise: leaves N(0, 1) invariant, autocorrelation rho. One gradient per step, by decree."""
    rho = scalar(rho, jax.ShapeDtypeStruct((), dtype))
    return Sampler(
        bind(_normal, Static(shape), Static(jnp.dtype(dtype).name)), bind(_stand), bind(_mix, rho), bind(_stood),
        num_steps=num_steps, traits=Traits(law="asymptotic"),
    )  # fmt: skip


def two_steps(rho) -> Sampler:
    """A finite autoregression, for `each`."""
    return autoregression(rho, num_steps=2)


def convolution(width=4, num_steps=6) -> Sampler:
    """A finite sampler whose step is a convolution: x' = conv(x, kernel) / norm + noise, on 8 x 8 images."""
    kernel = jax.random.normal(jax.random.key(7), (3, 3, 1, width)) / 9.0
    return Sampler(
        bind(_normal, Static((8, 8, 1)), Static("float32")), bind(_stand), bind(_convolve, kernel), bind(_stood),
        num_steps=num_steps, traits=Traits(law="approximate"),
    )  # fmt: skip


def no_u_turn(step_size=0.3) -> Sampler:
    """NUTS on a Gaussian with 32 different scales."""
    return nuts(Target.from_log_density(_stiff, jnp.zeros(32)), step_size)


def diffusion(num_steps=5) -> Sampler:
    """DDPM with an untrained U-Net of XLA's convolutions on 8 x 8 images."""
    template = jax.ShapeDtypeStruct((8, 8, 1), jnp.float32)
    model = ddpm(unet(template, width=8, convolution="xla"), cosine(), template=template, num_steps=num_steps)
    params, _ = model.init(jax.random.key(0), jax.random.normal(jax.random.key(1), (16, 8, 8, 1)))
    return model.sampler(params)


def slow_nuts() -> Sampler:
    """NUTS whose step is far too short: hundreds of gradients a draw, so that a run lasts long enough to be killed."""
    return no_u_turn(0.02)


def slow_diffusion() -> Sampler:
    """Thousands of steps, for the same purpose."""
    return diffusion(1_500)


def _stiff(x):
    return -0.5 * jnp.sum(x**2 * jnp.arange(1.0, 33.0))


def _normal(shape, dtype, key):
    return jax.random.normal(key, shape.value, dtype.value)


def _stand(key, z):
    return (z,)


def _stood(state):
    return state[0]


def _mix(rho, key, state, index):
    (x,) = state
    noise = jax.random.normal(key, x.shape, x.dtype)
    return (rho * x + jnp.sqrt(1 - rho**2) * noise,), Info.of(gradients=1)


def _convolve(kernel, key, state, index):
    (x,) = state
    dimensions = ("NHWC", "HWIO", "NHWC")
    features = jax.lax.conv_general_dilated(x[None], kernel, (1, 1), "SAME", dimension_numbers=dimensions)[0]
    x = jnp.tanh(features).mean(axis=-1, keepdims=True) + 0.5 * jax.random.normal(key, x.shape, x.dtype)
    return (x,), Info.of(forwards=1)
