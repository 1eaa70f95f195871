"""Flow matching: its loss is the velocity's, its minimiser draws the data, its parameters serve any solver."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gensamp as gs
from gensamp import noise
from gensamp.nets import mlp
from gensamp.pushforward.diffusion import euler, unipc
from gensamp.pushforward.diffusion.losses import denoiser
from gensamp.pushforward.flow_matching import flow_matching

EVENTS = 3 + jax.random.normal(jax.random.key(0), (256, 2)) * jnp.array([[1.0, 0.1]])


def test_an_untrained_network_has_the_loss_of_the_velocity_itself():
    model = flow_matching(mlp(EVENTS[0], width=8, depth=1), template=EVENTS[0])
    params, state = jax.jit(model.init)(jax.random.key(0), EVENTS)
    loss, (_, metrics) = jax.jit(model.loss)(params, state, jax.random.key(1), EVENTS)
    # It predicts zero, and eps - x_0 has variance two in the frame of the data.
    assert loss == pytest.approx(2.0, abs=0.4) and metrics["denoising_error"] == loss


@pytest.mark.parametrize("prediction", ["eps", "x0", "velocity", "v"])
def test_what_a_network_predicts_is_given_in_every_other_way(prediction):
    process, t = noise.cosine(), jnp.float32(0.4)
    network = mlp(EVENTS[0], width=8, depth=1)
    params = {"network": jax.tree.map(lambda a: a + 0.3, network.init(jax.random.key(0)))}
    x = jnp.array([0.5, -1.0])
    eps, x0, velocity = (
        denoiser(network, process, params, prediction=prediction, returns=returns)(t, x)
        for returns in ("eps", "x0", "velocity")
    )
    np.testing.assert_allclose(noise.diffuse(process, t, x0, eps), x, rtol=1e-4)
    rates = [jax.grad(f)(t) for f in (process.alpha, process.sigma)]
    np.testing.assert_allclose(velocity, rates[0] * x0 + rates[1] * eps, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_fitted_by_flow_matching_any_solver_draws_the_data():
    model = flow_matching(mlp(EVENTS[0], width=64, depth=2), template=EVENTS[0])
    fitted = gs.fit(jax.random.key(0), model, EVENTS, num_steps=1500, batch_size=128, progress=False)
    for solver, options in ((None, {}), (euler, {}), (unipc, {"order": 2})):
        other = model if solver is None else flow_matching(
            mlp(EVENTS[0], width=64, depth=2), template=EVENTS[0], solver=solver, num_steps=40, **options
        )  # fmt: skip
        keys = jax.random.split(jax.random.key(1), 2000)
        sampler = other.sampler(fitted.params)
        draws = jax.jit(jax.vmap(lambda key, sampler=sampler: gs.draw(key, sampler).position))(keys)
        np.testing.assert_allclose(draws.mean(0), EVENTS.mean(0), atol=0.1)
        np.testing.assert_allclose(draws.std(0), EVENTS.std(0), rtol=0.15)
