"""Fitted densities against quadrature: on a plane they integrate to one, and they find the law they were shown."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gensamp as gs
from gensamp.pushforward.autoregressive import causal_transformer, made, pixelcnn
from gensamp.pushforward.flows import iaf, maf, neural_spline, realnvp

TEMPLATE = jax.ShapeDtypeStruct((2,), jnp.float32)
SIZES = {"num_layers": 4, "width": 32, "depth": 1}
MODELS = {
    "maf": lambda: maf(TEMPLATE, **SIZES),
    "spline coupling": lambda: neural_spline(TEMPLATE, num_bins=6, **SIZES),
    "made": lambda: made(TEMPLATE, num_components=6, width=32, depth=1),
    "realnvp": lambda: realnvp(TEMPLATE, **SIZES),
    "iaf": lambda: iaf(TEMPLATE, **SIZES),
    "spline autoregressive": lambda: neural_spline(TEMPLATE, form="autoregressive", num_bins=6, **SIZES),
    "pixelcnn": lambda: pixelcnn(TEMPLATE, num_components=6, width=16, depth=1),
    "causal transformer": lambda: causal_transformer(TEMPLATE, num_components=6, width=16, depth=1),
}
FAST = ("maf",)
RATE = optax.adam(5e-3)


def crescent(key, number):
    """x ~ N(0, 1), y ~ N(x^2 / 2, 0.3^2): bent, and its entropy is known."""
    x, noise = jax.random.normal(key, (2, number))
    return jnp.stack([x, 0.5 * x**2 + 0.3 * noise], axis=-1)


ENTROPY = np.log(2 * np.pi * np.e) + np.log(0.3)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in MODELS])
def test_a_fitted_density_integrates_to_one_and_is_near_the_best(name):
    model = MODELS[name]()
    events = crescent(jax.random.key(0), 4000)
    fitted = gs.fit(jax.random.key(1), model, events, optimizer=RATE, num_steps=300, batch_size=128, progress=False)
    assert fitted.ending == "finished"

    x, y = np.linspace(-7, 7, 141), np.linspace(-5, 22, 271)
    cell = (x[1] - x[0]) * (y[1] - y[0])
    grid = jnp.asarray(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2), jnp.float32)
    log_q = jax.jit(jax.vmap(model.log_density, in_axes=(None, 0)))(fitted.params, grid)
    assert np.exp(np.asarray(log_q, float)).sum() * cell == pytest.approx(1, abs=1e-2)

    # The best nll is the entropy; a Gaussian with the right moments is 0.78 nats above it.
    nll = -np.mean(jax.jit(jax.vmap(model.log_density, in_axes=(None, 0)))(fitted.params, crescent(jax.random.key(2), 4000)))
    assert ENTROPY - 0.05 < nll < ENTROPY + 0.2
