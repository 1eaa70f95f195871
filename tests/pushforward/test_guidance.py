"""Guidance: the guided field against closed forms, in every prediction; its cost under every solver; labels per draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gensamp as gs
from gensamp import noise, paths
from gensamp.nets import mlp
from gensamp.predictions import PREDICTIONS, convert
from gensamp.pushforward import conditional, ddim, ddpm, uniform_time
from gensamp.pushforward.diffusion import (
    adaptive,
    ancestral,
    ddim_sampler,
    deis,
    diffusion_model,
    dpm_solver,
    dpm_solver_pp,
    euler,
    exponential_sde,
    guidance,
    heun,
    lms,
    uniform_log_snr,
    unipc,
)
from gensamp.pushforward.diffusion.guidance import (
    autoguidance,
    autoguided,
    classifier_free,
    classifier_guidance,
    classifier_guided,
    label_guidance,
    with_dropout,
)
from gensamp.targets.mixture import mixture
from gensamp.testing import check_sampler

PROCESS = noise.cosine()
TIMES = np.linspace(0.05, 0.95, 7, dtype=np.float32)
POINTS = np.asarray(jax.random.normal(jax.random.key(1), (7, 2)))
SLOW = pytest.mark.slow
TEMPLATE = jax.ShapeDtypeStruct((2,), jnp.float32)


def label(weights, means, variances):
    """The noised path of some components of the mixture."""
    return paths.noised(mixture(weights, means, variances), PROCESS)


EVERYTHING = label([0.5, 0.3, 0.2], [[-1.0, 0.0], [1.0, 1.0], [0.5, -1.0]], [[0.3, 0.2], [0.3, 0.3], [0.2, 0.3]])
LABELLED = label([0.3, 0.2], [[1.0, 1.0], [0.5, -1.0]], [[0.3, 0.3], [0.2, 0.3]])


def predicted(score, prediction, t, x):
    return convert(PROCESS, t, x, score(1 - t, x), "score", prediction.value)


def denoiser(path, prediction="eps"):
    return gs.bind(predicted, path.score, gs.Static(prediction))


def log_classifier(labelled, everything, t, x):
    """log p(label | x_t), without its constant: the exact classifier."""
    return labelled(1 - t, x) - everything(1 - t, x)


CLASSIFIER = gs.bind(log_classifier, LABELLED.log_density, EVERYTHING.log_density)


@jax.jit
def along(function):
    """A function of (t, x) at seven times and points."""
    return jax.vmap(function)(jnp.asarray(TIMES), jnp.asarray(POINTS))


def scores(guided, prediction="eps"):
    return np.asarray(along(gs.bind(as_score, guided, gs.Static(prediction))))


def as_score(guided, prediction, t, x):
    return convert(PROCESS, t, x, guided(t, x), prediction.value, "score")


@pytest.fixture(scope="module")
def exact():
    """Scores with the label and without, at the seven points."""
    return scores(denoiser(LABELLED)), scores(denoiser(EVERYTHING))


@pytest.mark.parametrize("prediction", [p if p == "velocity" else pytest.param(p, marks=SLOW) for p in PREDICTIONS])
def test_the_guided_score_is_the_closed_form_in_every_prediction(prediction, exact):
    wanted, free = exact
    pair = denoiser(LABELLED, prediction), denoiser(EVERYTHING, prediction)
    for strength in (0.0, 1.0, 2.5):
        want = free + strength * (wanted - free)
        by_labels = classifier_free(*pair, PROCESS, strength=strength, prediction=prediction)
        by_classifier = classifier_guided(pair[1], CLASSIFIER, PROCESS, strength=strength, prediction=prediction)
        for guided in (by_labels, by_classifier):
            np.testing.assert_allclose(scores(guided, prediction), want, rtol=2e-3, atol=2e-3)
        if strength in (0.0, 1.0):
            np.testing.assert_array_equal(along(by_labels), along(pair[1 - int(strength)]))


def test_a_guided_gaussian_has_the_precision_of_the_closed_form():
    """p(x_t) p(c | x_t)^w is Gaussian again: precisions and precision-weighted means combine as the weights say."""
    strength = 3.0
    given, free = label([1.0], [[1.0, 0.0]], [[0.2, 0.5]]), label([1.0], [[0.0, 0.0]], [[1.0, 1.0]])
    alpha, sigma = (np.asarray(jax.vmap(f)(TIMES))[:, None] for f in (PROCESS.alpha, PROCESS.sigma))
    precisions = [1 / (alpha**2 * np.array(v) + sigma**2) for v in ([0.2, 0.5], [1.0, 1.0])]
    precision = strength * precisions[0] + (1 - strength) * precisions[1]
    mean = strength * precisions[0] * alpha * np.array([1.0, 0.0]) / precision
    guided = classifier_free(denoiser(given), denoiser(free), PROCESS, strength=strength)
    np.testing.assert_allclose(scores(guided), precision * (mean - POINTS), rtol=1e-3, atol=1e-3)


def test_an_interval_guides_inside_of_it_only(exact):
    wanted, free = exact
    level = np.exp(-np.asarray(jax.vmap(PROCESS.log_snr)(TIMES)) / 2)
    inside = ((level >= 0.3) & (level <= 2.0))[:, None]
    assert 2 <= inside.sum() <= 5
    options = {"strength": 2.0, "interval": (0.3, 2.0)}
    pair = denoiser(LABELLED), denoiser(EVERYTHING)
    guided = free + np.where(inside, 2.0, 1.0) * (wanted - free)
    np.testing.assert_allclose(scores(classifier_free(*pair, PROCESS, **options)), guided, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(scores(autoguided(*pair, PROCESS, **options)), guided, rtol=1e-3, atol=1e-3)
    by_classifier = free + np.where(inside, 2.0, 0.0) * (wanted - free)
    np.testing.assert_allclose(
        scores(classifier_guided(pair[1], CLASSIFIER, PROCESS, **options)), by_classifier, rtol=1e-3, atol=1e-3
    )


@pytest.mark.slow
def test_rescaling_brings_a_share_of_the_spread_back():
    def v(rescale):
        pair = denoiser(LABELLED, "v"), denoiser(EVERYTHING, "v")
        return np.asarray(along(classifier_free(*pair, PROCESS, strength=4.0, rescale=rescale, prediction="v")))

    plain, half, whole = v(None), v(0.5), v(1.0)
    spread = np.asarray(along(denoiser(LABELLED, "v"))).std(1, keepdims=True)
    np.testing.assert_allclose(whole.std(1, keepdims=True), spread, rtol=1e-3)
    np.testing.assert_allclose(half, (plain + whole) / 2, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(v(0.0), plain, rtol=1e-5)
    # The same whatever is predicted.
    pair = denoiser(LABELLED, "x0"), denoiser(EVERYTHING, "x0")
    guided = classifier_free(*pair, PROCESS, strength=4.0, rescale=1.0, prediction="x0")
    again = along(gs.bind(_as_v, guided))
    np.testing.assert_allclose(again, whole, rtol=1e-2, atol=1e-3)


def _as_v(guided, t, x):
    return convert(PROCESS, t, x, guided(t, x), "x0", "v")


SOLVERS = {
    "unipc": (unipc, {}), "heun": (heun, {}), "adaptive": (adaptive, {}), "ancestral": (ancestral, {}),
    "ddim": (ddim_sampler, {}), "euler": (euler, {}), "lms": (lms, {}), "deis": (deis, {}), "dpm_solver": (dpm_solver, {}),
    "dpm_solver_pp": (dpm_solver_pp, {}), "exponential_sde": (exponential_sde, {}),
}  # fmt: skip


def one_network(t, x):
    """A denoiser of its own name, so that its calls can be counted: the exact eps of data from N(0, 1/4)."""
    return PROCESS.sigma(t) / (0.25 * PROCESS.alpha(t) ** 2 + PROCESS.sigma(t) ** 2) * x


def other_network(t, x):
    return PROCESS.sigma(t) * x


def log_likelihood(t, x):
    return -0.1 * jnp.sum((x - PROCESS.alpha(t)) ** 2)


@pytest.mark.parametrize("name", [n if n == "heun" else pytest.param(n, marks=SLOW) for n in SOLVERS])
def test_every_solver_takes_a_guided_denoiser_and_counts_what_it_costs(name):
    solver, options = SOLVERS[name]
    guided = classifier_free(gs.bind(one_network), gs.bind(other_network), PROCESS, strength=1.5, interval=(0.1, 10.0))
    # Guidance of guidance: three forwards and a gradient a call.
    guided = autoguided(guided, gs.bind(one_network), PROCESS)
    guided = classifier_guided(guided, gs.bind(log_likelihood), PROCESS)
    assert (guided.forwards, guided.gradients) == (3, 1)
    sampler = solver(guided, PROCESS, uniform_log_snr(PROCESS, 3), jnp.zeros(2), **options)
    classifier = gs.Target(template=TEMPLATE, log_density=gs.bind(log_likelihood))
    held = check_sampler(
        sampler, template=jnp.zeros(2), target=classifier, networks=(one_network, other_network),
        contracts=("leaves", "state", "counts"),
    )  # fmt: skip
    assert held["counts"] == "held"


def test_labels_and_strengths_per_draw_are_one_program():
    network = mlp(TEMPLATE, width=8, depth=1, num_classes=4)

    def model(**options):
        return diffusion_model(
            network, PROCESS, template=TEMPLATE, solver=ddim_sampler, num_steps=3, conditional=True,
            guidance=label_guidance(3, **options),
        )  # fmt: skip

    each = model(strength=None)
    params = jax.jit(each.init)(jax.random.key(0), (jnp.asarray(POINTS), jnp.zeros(7, jnp.int32)))[0]
    params = jax.tree.map(lambda a: a + 0.3 * jax.random.normal(jax.random.key(3), a.shape, a.dtype), params)
    labels, strengths = jnp.arange(6) % 3, jnp.array([0.0, 0.0, 0.0, 1.0, 1.0, 2.5])
    draws = gs.sample(jax.random.key(2), conditional(each, params), 6, each=(labels, strengths), progress=False)
    assert draws.ledger.sample.forwards == 6 * 3 * 2

    @jax.jit
    def one(sampler, index):
        return gs.draw(jax.random.fold_in(jax.random.key(2), index), sampler)

    # Strength is a leaf: one program for all.
    for index, (strength, condition) in enumerate(zip(strengths, labels, strict=True)):
        alone = one(model(strength=float(strength)).sampler(params, condition), index)
        np.testing.assert_allclose(draws.position[0, index], alone.position, rtol=1e-4, atol=1e-5)
        assert alone.info.forwards == 6
    assert one._cache_size() == 1


@pytest.mark.slow
def test_strengths_of_zero_and_one_are_the_plain_models():
    network = mlp(TEMPLATE, width=8, depth=1, num_classes=4)
    options = {"template": TEMPLATE, "solver": ddim_sampler, "num_steps": 3, "conditional": True}
    plain = diffusion_model(network, PROCESS, **options)
    params = n_init(network, 0)
    draw = jax.jit(lambda sampler: gs.draw(jax.random.key(2), sampler))
    for strength, condition, alone in ((0.0, 1, 3), (1.0, 1, 1)):
        guided = diffusion_model(network, PROCESS, guidance=label_guidance(3, strength=strength), **options)
        one, other = draw(guided.sampler(params, jnp.int32(condition))), draw(plain.sampler(params, jnp.int32(alone)))
        np.testing.assert_allclose(one.position, other.position, rtol=1e-4, atol=1e-5)
        assert one.info.forwards == 2 * other.info.forwards == 6


@pytest.mark.parametrize("build", [ddpm, ddim], ids=["ddpm", "ddim"])
def test_ddpm_and_ddim_are_steered_as_a_diffusion_model_is(build):
    network = mlp(TEMPLATE, width=8, depth=1, num_classes=4)
    options = {"template": TEMPLATE, "num_steps": 3, "conditional": True, "guidance": label_guidance(3, strength=None)}
    params, labels, strengths = n_init(network, 0), jnp.arange(4) % 3, jnp.array([0.0, 1.0, 1.0, 2.5])
    solver = ancestral if build is ddpm else ddim_sampler
    same = diffusion_model(network, PROCESS, solver=solver, grid=uniform_time(3), **options)
    runs = [
        gs.sample(jax.random.key(2), conditional(model, params), 4, each=(labels, strengths), progress=False)
        for model in (build(network, PROCESS, **options), same)
    ]
    # One takes eps from the network and the other x_0, and at t = 1 either is the other divided by little.
    np.testing.assert_allclose(*(run.position for run in runs), rtol=1e-3, atol=1e-3)
    assert [run.ledger.sample.forwards for run in runs] == [4 * 3 * 2] * 2
    with pytest.raises(ValueError, match="got a model that is not conditional; build the model with conditional=True"):
        build(network, PROCESS, template=TEMPLATE, guidance=label_guidance(3))
    with pytest.raises(TypeError, match="guidance"):
        build(network, PROCESS, template=TEMPLATE, guidance=2.0)


def test_training_shows_the_null_condition_as_often_as_asked():
    loss = with_dropout(label_guidance(9, dropout=0.25), gs.bind(_echo), True)
    x, labels = jnp.zeros((4000, 2)), jnp.arange(4000) % 9
    seen = np.asarray(loss({}, (), jax.random.key(0), (x, labels))[1])
    kept = seen != 9
    np.testing.assert_array_equal(seen[kept], labels[kept])
    assert abs(1 - kept.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)


def _echo(params, state, key, batch):
    return batch


@pytest.mark.slow
def test_autoguidance_and_a_classifier_guide_a_fitted_model():
    network, small = (mlp(TEMPLATE, width=width, depth=1) for width in (8, 4))
    options = {"template": TEMPLATE, "solver": ddim_sampler, "num_steps": 3}
    params, worse = (n_init(n, i) for i, n in enumerate((network, small)))
    draw = jax.jit(lambda sampler: gs.draw(jax.random.key(5), sampler))

    def make(guidance):
        return diffusion_model(network, PROCESS, guidance=guidance, **options).sampler

    plain = draw(make(None)(params)).position
    one = draw(make(autoguidance(small, worse, strength=1.0))(params))
    np.testing.assert_allclose(one.position, plain, rtol=1e-5, atol=1e-6)
    assert one.info.forwards == 6
    two = draw(make(autoguidance(small, worse, strength=2.0))(params)).position
    assert not np.allclose(two, plain, atol=1e-3)
    with pytest.raises(ValueError, match="autoguidance got a worse model whose frame has another shift"):
        make(autoguidance(small, {**worse, "shift": worse["shift"] + 1}))(params)

    # A Gaussian likelihood pulls the draw towards its condition.
    pulled = draw(make(classifier_guidance(gs.bind(_towards), strength=1.0))(params, jnp.full(2, 2.0)))
    assert (pulled.position > plain).all() and pulled.info.forwards == 3 and pulled.info.gradients == 3


def n_init(network, index):
    """A model's parameters with a last layer that is not zero, all in one frame."""
    weights = jax.jit(network.init)(jax.random.key(index))
    weights = jax.tree.map(lambda a: a + 0.2 * jax.random.normal(jax.random.key(7), a.shape, a.dtype), weights)
    return {"network": weights, "shift": jnp.zeros(2), "scale": jnp.ones(2)}


def _towards(t, x, condition):
    return -0.5 * jnp.sum((PROCESS.alpha(t) * x - condition) ** 2)


PAIR = (gs.bind(one_network), gs.bind(other_network), PROCESS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: classifier_free(*PAIR, interval=(2.0, 1.0)), r"classifier_free got interval=\(2.0, 1.0\); expected"),
        (lambda: classifier_free(*PAIR, rescale=2.0), "classifier_free got rescale=2.0; expected a share"),
        (lambda: autoguided(*PAIR, interval=(1.0,)), "autoguided got interval"),
        (lambda: classifier_guided(*PAIR, interval=(-1, 1)), "classifier_guided got interval"),
        (lambda: guidance._setting("label_guidance", 1.0, 2.0), r"label_guidance got interval=2.0; expected \(lowest, highest"),
        (lambda: label_guidance(3, dropout=1.0), "label_guidance got dropout=1.0; expected a probability"),
        (lambda: with_dropout(label_guidance(3), None, False), "label_guidance got a model that is not conditional"),
        (lambda: classifier_free(*PAIR, rescale=0.5)(0.5, jnp.zeros(1)), "rescale got events of one coordinate"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
