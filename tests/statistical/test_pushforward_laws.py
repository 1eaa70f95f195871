"""Do learned maps draw from the law they claim, and does one changed line show? Ten keys each, as lanes of one program.

The diffusion samplers run on an exact denoiser, so that nothing but the sampler is on trial; the flow and the VAE are held
against their own model's law, which is known in closed form.
"""

import dataclasses
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm

import gensamp as gs
from gensamp import noise, paths
from gensamp.pushforward import ancestral, ddim_sampler, inverse_transform, realnvp, uniform_log_snr, vae
from gensamp.targets.mixture import mixture
from gensamp.testing import check_laws, power

KEYS = 10
PROBABILITIES = (0.1, 0.5, 0.9)
PROCESS = noise.vp_linear()
# Modules whose names their main functions take in the packages above them.
ANCESTRAL = import_module("gensamp.pushforward.diffusion.ancestral")
FLOW = import_module("gensamp.pushforward.flows.flow")


def run(sampler, num_draws):
    """Positions and log weights [key, 1, draw, ...], ten keys side by side in one program (a new one for each sampler)."""
    keys = jax.random.split(jax.random.key(2024), (KEYS, 1, num_draws))
    out = jax.jit(jax.vmap(jax.vmap(jax.vmap(lambda key: gs.draw(key, sampler)[:2]))))(keys)
    return jax.tree.map(np.asarray, out)


def assert_passes(positions, target):
    checks = check_laws(positions, target, probabilities=PROBABILITIES)
    assert power(checks)["passed"] >= KEYS - 1, "\n".join(map(str, checks))


def assert_fails(positions, target):
    checks = check_laws(positions, target, probabilities=PROBABILITIES)
    assert power(checks)["failed"] >= KEYS - 1, "\n".join(map(str, checks))


def gaussian(mean, covariance):
    scale = np.sqrt(np.diag(covariance))
    truth = gs.Truth(
        mean=(mean, 0.0),
        variance=(scale**2, 0.0),
        quantiles={p: (mean + scale * float(norm.ppf(p)), 0.0) for p in PROBABILITIES},
    )
    return gs.Target(template=jax.ShapeDtypeStruct((len(mean),), jnp.float32), truth=truth, name="gaussian")


def predicted_noise(score, t, x):
    return -PROCESS.sigma(t) * score(1 - t, x)


@pytest.fixture(scope="module")
def three():
    return mixture([0.5, 0.3, 0.2], [[-1.0, 0.0], [1.0, 1.0], [0.5, -1.0]], [[0.3, 0.2], [0.3, 0.3], [0.2, 0.3]])


@pytest.fixture(scope="module")
def denoise(three):
    return gs.bind(predicted_noise, paths.noised(three, PROCESS).score)


GRID = uniform_log_snr(PROCESS, 150)


def test_ancestral_sampling_has_the_law_and_the_wrong_noise_variance_has_not(three, denoise, monkeypatch):
    sampler = ancestral(denoise, PROCESS, GRID, three.template)
    assert_passes(run(sampler, 1000)[0], three)
    # The broken line: the variance where its root belongs.
    monkeypatch.setattr(ANCESTRAL, "root", lambda variance: variance)
    assert_fails(run(sampler, 1000)[0], three)


def test_ddim_has_the_law_and_twice_the_prior_scale_has_not(three, denoise):
    sampler = ddim_sampler(denoise, PROCESS, GRID, three.template)
    assert_passes(run(sampler, 1000)[0], three)
    broken = dataclasses.replace(sampler, start=gs.bind(_doubled, sampler.start))
    assert_fails(run(broken, 1000)[0], three)


def test_ancestral_sampling_forgets_its_start(three, denoise):
    # What makes a doubled prior no twin for it, and a twin for DDIM.
    sampler = ancestral(denoise, PROCESS, GRID, three.template)
    assert_passes(run(dataclasses.replace(sampler, start=gs.bind(_doubled, sampler.start)), 1000)[0], three)


def _doubled(start, key):
    return 2 * start(key)


def exponential_quantile(u):
    return -jnp.log1p(-u)


def test_inverse_transform_has_the_law_and_the_wrong_tail_has_not():
    truth = gs.Truth(
        mean=(np.ones(2), 0.0),
        variance=(np.ones(2), 0.0),
        quantiles={p: (np.full(2, -np.log1p(-p)), 0.0) for p in PROBABILITIES},
    )
    target = gs.Target(template=jax.ShapeDtypeStruct((2,), jnp.float32), truth=truth, name="exponential")
    assert_passes(run(inverse_transform(exponential_quantile, target.template), 2000)[0], target)
    assert_fails(run(inverse_transform(lambda u: u / (1 - u), target.template), 2000)[0], target)


COVARIANCE = np.array([[1.0, 1.2], [1.2, 4.0]])
LOG_NORMALISER = 3.0


def log_tilted(precision, x):
    """N((1, -2), COVARIANCE) times exp(3)."""
    deviation = x - jnp.array([1.0, -2.0])
    constant = LOG_NORMALISER - 0.5 * np.log(np.linalg.det(2 * np.pi * COVARIANCE))
    return constant - 0.5 * deviation @ precision @ deviation


def test_reverse_kl_reaches_a_gaussian_and_its_normaliser(monkeypatch):
    precision = jnp.asarray(np.linalg.inv(COVARIANCE), jnp.float32)
    target = gs.Target.from_log_density(gs.bind(log_tilted, precision), jnp.zeros(2))
    model = realnvp(jnp.zeros(2), target=target, num_layers=4, width=16, depth=1, num_draws=64, weighted=True)
    fitted = gs.fit(jax.random.key(0), model, None, num_steps=800, progress=False)
    assert fitted.history["metrics"]["reverse_kl"][-50:].mean() == pytest.approx(-LOG_NORMALISER, abs=0.03)
    assert fitted.ledger.fit.gradients == 800 * 64 and fitted.ledger.fit.forwards == 800 * 2 * 64

    sampler = model.sampler(fitted.params)
    positions, log_weights = run(sampler, 2000)
    assert np.abs(standard_error_units(log_weights)).max() < 4
    # Weighted, the law is the target's.
    truth = gaussian(np.array([1.0, -2.0]), COVARIANCE)
    checks = check_laws(positions, truth, probabilities=PROBABILITIES, log_weight=log_weights)
    assert power(checks)["passed"] >= KEYS - 1, "\n".join(map(str, checks))

    # The broken line: a change of variables without the scale of the last layer.
    whole = FLOW._push
    monkeypatch.setattr(FLOW, "_push", lambda c, p, z: (whole(c, p, z)[0], whole(c, p, z)[1] + p["log_scale"].sum()))
    assert (np.abs(standard_error_units(run(sampler, 2000)[1])) > 4).sum() >= KEYS - 1


def standard_error_units(log_weights):
    """(log of the mean weight - truth) / standard error for each key."""
    ratio = np.exp(log_weights.astype(float) - LOG_NORMALISER).reshape(KEYS, -1)
    return np.log(ratio.mean(1)) / (ratio.std(1) / ratio.mean(1) / np.sqrt(ratio.shape[1]) + 1e-4)


@pytest.fixture(scope="module")
def linear_vae():
    """A VAE with a linear decoder, whose marginal is Gaussian, fitted to data of rank one plus noise."""
    key, key_latent, key_noise = jax.random.split(jax.random.key(0), 3)
    direction = jnp.array([[1.0, -2.0, 0.5]])
    events = jax.random.normal(key_latent, (2000, 1)) * direction + 0.5 * jax.random.normal(key_noise, (2000, 3))
    model = vae(events[0], latent_dim=1, depth=0)
    fitted = gs.fit(key, model, events, optimizer=optax.adam(5e-3), num_steps=1500, progress=False)

    params = jax.tree.map(np.asarray, fitted.params)
    dense, frame = params["decoder"]["Dense_0"], params["frame"]
    loadings = frame["scale"][:, None] * dense["kernel"].T
    sigma = frame["scale"] * (0.01 + np.exp(10 * params["log_scale"]))
    mean = frame["shift"] + frame["scale"] * dense["bias"]
    return model, fitted, events, mean, loadings @ loadings.T + np.diag(sigma**2)


def test_the_elbo_is_a_bound_and_tight_where_it_can_be(linear_vae):
    model, fitted, events, mean, covariance = linear_vae
    deviation = np.asarray(events) - mean
    quadratic = np.einsum("ni,ij,nj->n", deviation, np.linalg.inv(covariance), deviation)
    log_likelihood = -0.5 * (quadratic + np.linalg.slogdet(2 * np.pi * covariance)[1])

    def gap(params):
        loss = jax.jit(lambda keys: jax.vmap(lambda k: model.loss(params, (), k, events)[0])(keys))
        elbo = -np.asarray(loss(jax.random.split(jax.random.key(1), KEYS)))
        return log_likelihood.mean() - elbo

    assert np.all(gap(fitted.params) > -0.01) and np.all(gap(fitted.params) < 0.05)
    # The broken line: the decoder is right and the encoder is not, so the bound must open.
    encoder = jax.tree.map(lambda a: 0.5 * a, fitted.params["encoder"])
    assert np.all(gap({**fitted.params, "encoder": encoder}) > 0.1)


def test_vae_draws_have_the_models_law_and_its_means_have_not(linear_vae):
    model, fitted, events, mean, covariance = linear_vae
    target = gaussian(mean, covariance)
    assert_passes(run(model.sampler(fitted.params), 2000)[0], target)
    means = vae(events[0], latent_dim=1, depth=0, draws="mean")
    assert_fails(run(means.sampler(fitted.params), 2000)[0], target)
