"""Linear inverse problems: exact for Gaussian priors, and measured biases, in closed form, for a mixture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_posteriors import moments, posterior

import gensamp as gs
from gensamp import noise, paths
from gensamp.nets import mlp
from gensamp.predictions import convert
from gensamp.pushforward import conditional
from gensamp.pushforward.diffusion import ancestral, diffusion_model, unipc
from gensamp.pushforward.diffusion.grids import uniform_log_snr
from gensamp.pushforward.diffusion.inpainting import replacement
from gensamp.pushforward.diffusion.inverse import dps, measured, measured_guidance
from gensamp.targets.mixture import mixture
from gensamp.testing import check_sampler

PROCESS = noise.cosine()
SLOW = pytest.mark.slow
TEMPLATE = jax.ShapeDtypeStruct((3,), jnp.float32)
MEAN = np.array([0.5, -0.2, 0.1])
COVARIANCE = np.array([[1.0, 0.6, 0.2], [0.6, 0.8, 0.0], [0.2, 0.0, 0.5]])
MATRIX = np.array([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]])
OBSERVED, SCALE = np.array([1.0, -0.5]), 0.4
TIMES = jnp.linspace(0.1, 0.9, 5)
POINTS = jax.random.normal(jax.random.key(0), (5, 3))


def gaussian(process, mean, covariance, prediction, t, x):
    """What is predicted of data from N(mean, covariance), exactly."""
    noised = process.alpha(t) ** 2 * covariance + process.sigma(t) ** 2 * jnp.eye(len(mean))
    score = -jnp.linalg.solve(noised, x - process.alpha(t) * mean)
    return convert(process, t, x, score, "score", prediction.value)


def denoiser(mean=MEAN, covariance=COVARIANCE, prediction="eps"):
    numbers = (jnp.asarray(a, jnp.float32) for a in (mean, covariance))
    return gs.bind(gaussian, PROCESS, *numbers, gs.Static(prediction))


def linear(matrix, x):
    return matrix @ x


OPERATOR = gs.bind(linear, jnp.asarray(MATRIX, jnp.float32))
Y = jnp.asarray(OBSERVED, jnp.float32)


@jax.jit
def along(function):
    return jax.vmap(function)(TIMES, POINTS)


def exact(mean, covariance):
    """The denoiser of the posterior itself."""
    _, means, covariances = posterior([1.0], [mean], [covariance], MATRIX, OBSERVED, SCALE)
    return denoiser(means[0], covariances[0])


@pytest.mark.parametrize("prediction", ["eps", pytest.param("x0", marks=SLOW), pytest.param("velocity", marks=SLOW)])
def test_the_guided_field_of_a_gaussian_is_its_posteriors_and_without_the_covariance_it_is_not(prediction):
    want = np.asarray(along(exact(MEAN, COVARIANCE)))

    def eps(moment):
        options = {"moment": moment, "prediction": prediction}
        guided = measured(denoiser(prediction=prediction), PROCESS, OPERATOR, Y, SCALE, TEMPLATE, **options)
        assert guided.forwards == 1
        return np.asarray(along(gs.bind(_as_eps, guided, gs.Static(prediction))))

    np.testing.assert_allclose(eps("tweedie"), want, rtol=2e-3, atol=2e-3)
    # The broken line: x_0 taken as known.
    assert np.abs(eps("point") - want).max() > 0.1


def _as_eps(guided, prediction, t, x):
    return convert(PROCESS, t, x, guided(t, x), prediction.value, "eps")


def test_one_variance_is_enough_for_an_isotropic_prior():
    prior = MEAN, 0.7 * np.eye(3)
    options = {"moment": "isotropic", "data_variance": 0.7}
    guided = measured(denoiser(*prior), PROCESS, OPERATOR, Y, SCALE, TEMPLATE, **options)
    np.testing.assert_allclose(along(guided), along(exact(*prior)), rtol=2e-3, atol=2e-3)


def test_the_operator_sees_the_datas_own_units():
    """In a frame the prior is that of y = (x - shift) / scale, and nothing else is said of it."""
    frame = {"shift": jnp.array([1.0, 2.0, -1.0]), "scale": jnp.array([2.0, 0.5, 3.0])}
    shift, scale = (np.asarray(frame[part]) for part in ("shift", "scale"))
    inside = (MEAN - shift) / scale, COVARIANCE / np.outer(scale, scale)
    guided = measured(denoiser(*inside), PROCESS, OPERATOR, Y, SCALE, TEMPLATE, frame=frame)
    _, means, covariances = posterior([1.0], [MEAN], [COVARIANCE], MATRIX, OBSERVED, SCALE)
    want = denoiser((means[0] - shift) / scale, covariances[0] / np.outer(scale, scale))
    np.testing.assert_allclose(along(guided), along(want), rtol=2e-3, atol=2e-3)


WEIGHTS, MEANS = [0.5, 0.3, 0.2], np.array([[-1.0, 0.0], [1.0, 1.0], [0.5, -1.0]])
VARIANCES = np.array([[0.3, 0.2], [0.3, 0.3], [0.2, 0.3]])
THREE = mixture(WEIGHTS, MEANS, VARIANCES)


def predicted_noise(score, t, x):
    return -PROCESS.sigma(t) * score(1 - t, x)


DENOISE = gs.bind(predicted_noise, paths.noised(THREE, PROCESS).score)


@jax.jit
def many(sampler):
    return jax.vmap(lambda key: gs.draw(key, sampler).position)(jax.random.split(jax.random.key(1), 4000))


def of_mixture(matrix, observed, scale):
    """Mean and covariance of the mixture's posterior."""
    return moments(*posterior(WEIGHTS, MEANS, [np.diag(v) for v in VARIANCES], matrix, observed, scale))


@pytest.mark.slow
def test_the_biases_for_a_mixture_are_those_documented():
    """y = x_1 + x_2 / 2 + noise: bias of the mean, and standard deviation of what A sees (the posterior's is .32)."""
    matrix, observed = np.array([[1.0, 0.5]]), np.array([0.8])
    mean, covariance = of_mixture(matrix, observed, 0.3)
    seen = float(np.sqrt((matrix @ covariance @ matrix.T)[0, 0]))
    operator, y = gs.bind(linear, jnp.asarray(matrix, jnp.float32)), jnp.asarray(observed, jnp.float32)
    grid = uniform_log_snr(PROCESS, 200)

    def measure(sampler):
        x = np.asarray(many(sampler))
        return np.abs(x.mean(0) - mean).max(), (x @ matrix[0]).std() / seen

    def guided(moment):
        return measured(DENOISE, PROCESS, operator, y, 0.3, THREE.template, moment=moment)

    found = {m: measure(ancestral(guided(m), PROCESS, grid, THREE.template)) for m in ("tweedie", "isotropic", "point")}
    found |= {z: measure(dps(DENOISE, PROCESS, grid, THREE.template, operator, y, step_size=z)) for z in (1.0, 0.1)}
    assert found["tweedie"][0] < 0.08 and abs(found["tweedie"][1] - 1) < 0.06, found
    assert found["isotropic"][0] < 0.12 and abs(found["isotropic"][1] - 1) < 0.1, found
    # Too sure of y where A sees; a step of fixed length has no law, and too long a one diverges.
    assert found["point"][1] < 0.75, found
    assert found[0.1][1] < 0.6 and found[1.0][0] > 0.5, found


@pytest.mark.slow
def test_replacement_is_biased_and_resampling_brings_it_nearer():
    mean, _ = of_mixture(np.array([[1.0, 0.0]]), np.array([0.2]), 1e-3)
    known, mask, grid = jnp.array([0.2, 0.0]), jnp.array([1.0, 0.0]), uniform_log_snr(PROCESS, 100)
    errors = []
    for repeats in (1, 5, 20):
        x = np.asarray(many(replacement(DENOISE, PROCESS, grid, THREE.template, known, mask, repeats=repeats)))
        np.testing.assert_array_equal(x[:, 0], np.float32(0.2))
        errors.append(abs(x[:, 1].mean() - mean[1]))
    # The standard error of a mean is 0.016.
    assert errors[0] > 0.25 and errors[0] > errors[1] + 0.05 > errors[2] + 0.1, errors
    assert errors[2] < 0.15, errors


CONTRACTS = ("type", "leaves", "state", "info", "callbacks", "counts", "grad")


def one_network(t, x):
    """A denoiser of its own name, so that its calls can be counted."""
    return PROCESS.sigma(t) / (0.25 * PROCESS.alpha(t) ** 2 + PROCESS.sigma(t) ** 2) * x


SAMPLERS = {
    "dps": lambda grid: dps(gs.bind(one_network), PROCESS, grid, TEMPLATE, OPERATOR, Y),
    "replacement": lambda grid: replacement(
        gs.bind(one_network), PROCESS, grid, TEMPLATE, jnp.ones(3), jnp.array([1.0, 0.0, 1.0]), repeats=3
    ),
    "measured": lambda grid: unipc(
        measured(gs.bind(one_network), PROCESS, OPERATOR, Y, SCALE, TEMPLATE), PROCESS, grid, TEMPLATE
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_they_keep_the_contracts(name):
    sampler = SAMPLERS[name](uniform_log_snr(PROCESS, 3))
    held = check_sampler(sampler, template=TEMPLATE, networks=(one_network,), contracts=CONTRACTS)
    assert held["counts"] == "held"


def test_known_coordinates_are_kept_and_every_pass_is_counted():
    draw = jax.jit(lambda sampler: gs.draw(jax.random.key(0), sampler))(SAMPLERS["replacement"](uniform_log_snr(PROCESS, 3)))
    np.testing.assert_array_equal(draw.position[jnp.array([0, 2])], np.ones(2, np.float32))
    assert draw.position[1] != 0 and draw.info.forwards == 3 * 3


def test_what_is_not_known_may_be_anything():
    known, mask = jnp.array([1.0, jnp.nan, 1.0]), jnp.array([True, False, True])
    unknown = replacement(gs.bind(one_network), PROCESS, uniform_log_snr(PROCESS, 3), TEMPLATE, known, mask, repeats=3)
    sampler = SAMPLERS["replacement"](uniform_log_snr(PROCESS, 3))
    draw = jax.jit(lambda sampler: gs.draw(jax.random.key(0), sampler).position)
    np.testing.assert_array_equal(draw(unknown), draw(sampler))


@pytest.mark.slow
def test_a_clean_last_step_and_a_residual_of_zero_are_finite():
    for name, make in SAMPLERS.items():
        draw = gs.draw(jax.random.key(0), make(jnp.array([0.9, 0.5, 0.0, 0.0])))
        assert np.isfinite(draw.position).all(), name
    everything = gs.bind(linear, jnp.zeros((2, 3)))
    still = dps(gs.bind(one_network), PROCESS, uniform_log_snr(PROCESS, 3), TEMPLATE, everything, jnp.zeros(2))
    assert np.isfinite(gs.draw(jax.random.key(0), still).position).all()


@pytest.mark.slow
def test_a_fitted_model_takes_observations_draw_by_draw():
    network = mlp(TEMPLATE, width=8, depth=1)
    model = diffusion_model(
        network, PROCESS, template=TEMPLATE, num_steps=3, guidance=measured_guidance(OPERATOR, SCALE, TEMPLATE)
    )
    params = jax.jit(model.init)(jax.random.key(0), POINTS)[0]
    observations = jnp.array([[0.0, 0.0], [3.0, -3.0]])
    draws = gs.sample(jax.random.key(1), conditional(model, params), 2, each=observations, progress=False)
    near, far = np.asarray(draws.position[0]) @ MATRIX.T
    assert far[0] > near[0] + 1 and far[1] < near[1] - 1
    assert draws.ledger.sample.forwards == 2 * int(model.sampler(params, observations[0]).num_steps or 0)


GIVEN = (gs.bind(one_network), PROCESS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: measured(*GIVEN, OPERATOR, Y, 0.0, TEMPLATE), "measured got scale=0.0; expected one number, the positive"),
        (lambda: measured_guidance(OPERATOR, jnp.ones(2), TEMPLATE), r"measured_guidance got scale=\[1\. 1\.\]; expected one"),
        (
            lambda: measured_guidance(gs.bind(linear, jnp.eye(2)), 0.1, TEMPLATE),
            "measured_guidance got an operator that cannot take an event: dot_general",
        ),
        (lambda: measured_guidance(jnp.fft.fft, 0.1, TEMPLATE), r"measured_guidance got complex .*: stack \.real and \.imag"),
        (
            lambda: dps(*GIVEN, jnp.array([1.0, 0.1]), TEMPLATE, jnp.fft.fft, jnp.zeros(3)),
            r"dps got complex .*: stack \.real and \.imag",
        ),
        (
            lambda: replacement(*GIVEN, jnp.array([1.0, 0.1]), TEMPLATE, jnp.zeros(3), 2.0),
            "replacement got a mask of other numbers; expected 1 where",
        ),
        (lambda: measured(*GIVEN, OPERATOR, jnp.zeros(3), 0.1, TEMPLATE), r"measured got y of shape \(3,\); expected \(2,\)"),
        (lambda: dps(*GIVEN, jnp.array([1.0, 0.1]), TEMPLATE, OPERATOR, Y, step_size=-1.0), "dps got step_size=-1.0"),
        (
            lambda: replacement(*GIVEN, jnp.array([1.0, 0.1]), TEMPLATE, jnp.zeros(3), 1.0, repeats=0),
            "replacement got repeats=0",
        ),
        (
            lambda: replacement(*GIVEN, jnp.array([1.0, 0.1]), TEMPLATE, jnp.zeros(2), 1.0),
            "replacement got known or mask unlike an event",
        ),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
