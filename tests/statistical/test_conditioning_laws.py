"""Do guided and conditioned diffusions draw from the conditional law, and does one changed line show? Ten keys as lanes.

Denoisers, classifiers and operators are exact, so that nothing but the guidance and the solver is on trial. Where the law of a
guided diffusion is known in closed form it is held to it: a strength of one, and Gaussian priors for linear inverse problems.
"""

from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_posteriors import as_target, posterior
from statistical.test_pushforward_laws import PROCESS, assert_fails, assert_passes, predicted_noise, run

import gensamp as gs
from gensamp import paths
from gensamp.pushforward.diffusion import ancestral, uniform_log_snr, unipc
from gensamp.pushforward.diffusion.adaptive_sde import adaptive_sde
from gensamp.pushforward.diffusion.guidance import classifier_free, classifier_guided
from gensamp.pushforward.diffusion.inverse import measured
from gensamp.targets.mixture import mixture

GUIDANCE = import_module("gensamp.pushforward.diffusion.guidance")
SDE = import_module("gensamp.pushforward.diffusion.adaptive_sde")
EVERYTHING = mixture([0.5, 0.3, 0.2], [[-1.0, 0.0], [1.0, 1.0], [0.5, -1.0]], [[0.3, 0.2], [0.3, 0.3], [0.2, 0.3]])
LABELLED = mixture([0.3, 0.2], [[1.0, 1.0], [0.5, -1.0]], [[0.3, 0.3], [0.2, 0.3]])
NOISED, GIVEN = (paths.noised(target, PROCESS) for target in (EVERYTHING, LABELLED))
DENOISE, CONDITIONAL = (gs.bind(predicted_noise, path.score) for path in (NOISED, GIVEN))


def log_classifier(labelled, everything, t, x):
    """log p(label | x_t), without its constant."""
    return labelled(1 - t, x) - everything(1 - t, x)


CLASSIFIER = gs.bind(log_classifier, GIVEN.log_density, NOISED.log_density)


def solved(denoise):
    return unipc(denoise, PROCESS, uniform_log_snr(PROCESS, 30), EVERYTHING.template)


@pytest.mark.slow
def test_an_exact_classifier_gives_the_conditional_law_and_its_score_taken_for_eps_does_not(monkeypatch):
    sampler = solved(classifier_guided(DENOISE, CLASSIFIER, PROCESS))
    assert_passes(run(sampler, 1000)[0], LABELLED)
    # The broken line: the gradient added to eps without its sigma.
    monkeypatch.setattr(GUIDANCE, "score_to_eps", lambda noise, t, x, score: jax.tree.map(jnp.negative, score))
    assert_fails(run(sampler, 1000)[0], LABELLED)


@pytest.mark.slow
def test_guidance_of_strength_one_has_the_conditional_law_and_of_swapped_networks_has_not():
    assert_passes(run(solved(classifier_free(CONDITIONAL, DENOISE, PROCESS, strength=1.0)), 1000)[0], LABELLED)
    assert_fails(run(solved(classifier_free(DENOISE, CONDITIONAL, PROCESS, strength=1.0)), 1000)[0], LABELLED)


MEAN = np.array([0.5, -0.2])
COVARIANCE = np.array([[1.0, 0.6], [0.6, 0.8]])
MATRIX, OBSERVED, SCALE = np.array([[1.0, 0.5]]), np.array([1.5]), 0.4


def gaussian(mean, covariance, t, x):
    """The exact eps of data from N(mean, covariance)."""
    alpha, sigma = PROCESS.alpha(t), PROCESS.sigma(t)
    return sigma * jnp.linalg.solve(alpha**2 * covariance + sigma**2 * jnp.eye(len(mean)), x - alpha * mean)


def seen(matrix, x):
    return matrix @ x


@pytest.mark.slow
@pytest.mark.parametrize("stochastic", [False, True])
def test_draws_given_an_observation_have_the_posteriors_law_and_without_the_covariance_have_not(stochastic):
    prior = gs.bind(gaussian, *(jnp.asarray(a, jnp.float32) for a in (MEAN, COVARIANCE)))
    operator = gs.bind(seen, jnp.asarray(MATRIX, jnp.float32))
    template = EVERYTHING.template
    target = as_target(*posterior([1.0], [MEAN], [COVARIANCE], MATRIX, OBSERVED, SCALE), template)

    def sampler(moment):
        guided = measured(prior, PROCESS, operator, jnp.asarray(OBSERVED, jnp.float32), SCALE, template, moment=moment)
        return ancestral(guided, PROCESS, uniform_log_snr(PROCESS, 200), template) if stochastic else solved(guided)

    assert_passes(run(sampler("tweedie"), 1000)[0], target)
    # The broken line: x_0 taken as known.
    assert_fails(run(sampler("point"), 1000)[0], target)


@pytest.mark.slow
def test_the_adaptive_sde_has_the_law_and_the_wrong_noise_has_not(monkeypatch):
    sampler = adaptive_sde(DENOISE, PROCESS, jnp.array([1.0, 0.0]), EVERYTHING.template, rtol=0.05, atol=0.05)
    assert_passes(run(sampler, 1000)[0], EVERYTHING)
    # The broken line: the variance where its root belongs.
    monkeypatch.setattr(SDE, "root", lambda variance: variance)
    # diffrax keeps what it has traced.
    jax.clear_caches()
    assert_fails(run(sampler, 1000)[0], EVERYTHING)
    jax.clear_caches()
