"""Weightings of the denoising loss: one weighting is one loss whatever is predicted, and each is its paper's formula."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gensamp as gs
from gensamp import noise
from gensamp.nets import mlp
from gensamp.predictions import convert
from gensamp.pushforward import ddpm, diffusion_model, flow_matching
from gensamp.pushforward.diffusion import weightings
from gensamp.pushforward.diffusion.losses import denoising_loss

PROCESSES = {"cosine": noise.cosine(), "vp_linear": noise.vp_linear(), "ve": noise.ve()}
NAMED = ("elbo", "sigmoid", "min_snr", "edm")
EVENTS = jax.random.normal(jax.random.key(0), (64, 3))


def no_params(key):
    return ()


def guess(process, spoken, params, y, t):
    """One denoiser in every language; y is x / r, and so is what is called v."""
    prediction, r = spoken.value, jnp.sqrt(process.alpha(t) ** 2 + process.sigma(t) ** 2)
    clean = jnp.tanh(0.7 * y) * (1 - 0.3 * t)
    found = convert(process, t, y * r, clean, "x0", prediction)
    return found / r if prediction == "v" else found


@pytest.mark.parametrize(
    "process", [PROCESSES["cosine"], *(pytest.param(PROCESSES[name], marks=pytest.mark.slow) for name in ("vp_linear", "ve"))]
)
def test_a_weighted_loss_does_not_depend_on_what_is_predicted(process):
    with jax.enable_x64(True):
        process = jax.tree.map(lambda a: a.astype(jnp.float64), process)
        events = EVENTS.astype(jnp.float64)
        params = {"network": (), "shift": jnp.zeros(3), "scale": jnp.ones(3)}

        @jax.jit
        def every(key):
            losses = {}
            for prediction in ("x0", "eps", "v", "velocity"):
                network = gs.Network(gs.bind(no_params), gs.bind(guess, process, gs.Static(prediction)))
                for weighting in NAMED:
                    loss = denoising_loss(network, process, events[0], False, prediction, weighting)
                    losses[weighting, prediction] = loss(params, (), key, events)[0]
            return losses

        losses = every(jax.random.key(1))
        for (weighting, prediction), loss in losses.items():
            np.testing.assert_allclose(loss, losses[weighting, "x0"], rtol=1e-6, err_msg=f"{weighting}, {prediction}")


def test_the_weights_are_those_of_the_papers():
    process, t = noise.cosine(), jnp.linspace(0.05, 0.95, 7)
    log_snr, slope = jax.vmap(jax.value_and_grad(process.log_snr))(t)
    snr = jnp.exp(log_snr)

    @partial(jax.jit, static_argnums=(0, 1))
    def factors(weighting, prediction):
        return jax.vmap(lambda t: weightings.weighting_of(weighting).factor(process, t, prediction))(t)

    np.testing.assert_allclose(factors("min_snr", "v"), jnp.minimum(snr, 5) / (snr + 1), rtol=1e-4)
    np.testing.assert_allclose(factors("min_snr", "eps"), jnp.minimum(snr, 5) / snr, rtol=1e-4)
    np.testing.assert_allclose(factors("elbo", "eps"), -slope / 2, rtol=1e-4)
    np.testing.assert_allclose(factors("sigmoid", "eps"), -slope / 2 * jax.nn.sigmoid(2 - log_snr), rtol=1e-4)
    np.testing.assert_allclose(factors("edm", "v"), 1, rtol=1e-4)
    for prediction in ("eps", "v", "x0", "velocity"):
        np.testing.assert_array_equal(factors("uniform", prediction), 1)


def test_edm_draws_log_normal_noise_levels_and_levels_draws_its_own():
    u = (jnp.arange(4000) + 0.5) / 4000
    process = noise.edm(1e-4, 1e3)
    chosen = weightings.edm(mean=-0.5, scale=1.2)
    times_of = jax.jit(lambda process: chosen.times(process, u, *chosen.parameters))
    log_sigma = jnp.log(process.sigma(times_of(process)))
    assert log_sigma.mean() == pytest.approx(-0.5, abs=0.01) and log_sigma.std() == pytest.approx(1.2, abs=0.01)
    # Where the process ends before the law does, the law is cut off.
    short = noise.ve(0.5, 2.0)
    times = times_of(short)
    assert times.min() >= 0 and times.max() <= 1 and np.ptp(times) > 0.95

    process = noise.ve()
    chosen = weightings.levels(10)
    times = chosen.times(process, u, *chosen.parameters)
    found, counts = np.unique(np.asarray(process.sigma(times)), return_counts=True)
    np.testing.assert_allclose(found, np.geomspace(0.01, 50.0, 10), rtol=1e-4)
    assert counts.min() == counts.max() == 400


def test_the_default_is_the_plain_loss_and_models_pass_a_weighting_on():
    network = mlp(EVENTS[0], width=8, depth=1)
    process = PROCESSES["cosine"]
    plain = ddpm(network, process, template=EVENTS[0])
    params, _ = jax.jit(plain.init)(jax.random.key(0), EVENTS)
    params = jax.tree.map(lambda a: a + 0.05 * jax.random.normal(jax.random.key(2), a.shape), params)
    models = {
        name: diffusion_model(network, process, template=EVENTS[0], num_steps=4, weighting=name)
        for name in ("uniform", "min_snr", "elbo")
    }
    models["flow"] = flow_matching(network, template=EVENTS[0], num_steps=4, weighting=weightings.min_snr(1.0))

    @jax.jit
    def losses_of(key):
        return {name: model.loss(params, (), key, EVENTS) for name, model in {"plain": plain, **models}.items()}

    found = losses_of(jax.random.key(1))
    loss = {name: float(value[0]) for name, value in found.items()}
    assert loss["uniform"] == pytest.approx(loss["plain"], rel=1e-6) and len({round(a, 4) for a in loss.values()}) == 4
    errors = [float(found[name][1][1]["denoising_error"]) for name in ("plain", "uniform", "min_snr", "elbo")]
    np.testing.assert_allclose(errors, loss["plain"], rtol=1e-6)


def test_unknown_weightings_are_refused_in_a_sentence():
    network = mlp(EVENTS[0], width=8, depth=1)
    with pytest.raises(ValueError, match="weighting is 'snr'; expected one of uniform, elbo, sigmoid, min_snr, edm"):
        diffusion_model(network, PROCESSES["cosine"], template=EVENTS[0], weighting="snr")
    for make, value, told in (("min_snr", 0, "gamma=0"), ("edm", None, "scale=-1"), ("levels", 1, "num_levels=1")):
        with pytest.raises(ValueError, match=told):
            getattr(weightings, make)(scale=-1) if make == "edm" else getattr(weightings, make)(value)
