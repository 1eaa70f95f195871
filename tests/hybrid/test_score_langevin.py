"""Annealed Langevin on a score network that is exact by construction: data N(shift, scale^2) in the frame of their batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gensamp as gs
from gensamp import noise
from gensamp.hybrid import score_langevin
from gensamp.pushforward import classifier_guidance, conditional, ddpm, label_guidance

TEMPLATE = jnp.zeros(2)


def no_params(key):
    return {"unused": jnp.zeros(())}


def exact(process, params, x, t):
    """The best denoiser of a standard normal; x comes divided by sqrt(alpha^2 + sigma^2)."""
    return x * process.sigma(t) * jax.lax.rsqrt(process.alpha(t) ** 2 + process.sigma(t) ** 2)


def zero(params, x, t):
    """The same denoiser for networks that predict v."""
    return jnp.zeros_like(x)


@pytest.mark.parametrize(
    ("process", "prediction"),
    [(noise.cosine(), "eps"), (noise.ve(), "eps"), (noise.ve(), "v"), (noise.vp_linear(), "v")],
    ids=["cosine-eps", "ve-eps", "ve-v", "vp_linear-v"],
)
def test_it_draws_the_data_and_shares_parameters_with_ddpm(process, prediction):
    network = gs.Network(gs.bind(no_params), gs.bind(exact, process) if prediction == "eps" else gs.bind(zero))
    events = jnp.array([[3.0, -1.0]]) + jnp.array([[2.0, 0.1]]) * jax.random.normal(jax.random.key(0), (4096, 2))
    # A process that explodes starts 50 times too wide and has to shrink on the way.
    steps = 10 if process.alpha(1.0) < 1 else 50
    chain = score_langevin(network, process, template=TEMPLATE, steps_per_level=steps, prediction=prediction)
    models = [chain, ddpm(network, process, template=TEMPLATE, prediction=prediction)]
    params, _ = models[0].init(jax.random.key(1), events)
    for model in models:
        keys = jax.random.split(jax.random.key(2), 2000)
        sampler = model.sampler(params)
        draws = jax.jit(jax.vmap(gs.draw, in_axes=(0, None)))(keys, sampler)
        standard = (np.asarray(draws.position) - np.array([3.0, -1.0])) / np.array([2.0, 0.1])
        np.testing.assert_allclose(standard.mean(0), 0, atol=0.12)
        # Langevin steps of 0.3 sigma^2 inflate the variance of a level by up to 18 %; the standard error is 3 %.
        np.testing.assert_allclose(standard.var(0), 1.0, atol=0.2)
        assert np.all(draws.info.forwards == sampler.num_steps) and not draws.info.gradients.any()


def test_step_size_is_a_leaf_and_bad_input_is_refused():
    process = noise.cosine()
    network = gs.Network(gs.bind(no_params), gs.bind(exact, process))
    draw = jax.jit(lambda key, sampler: gs.draw(key, sampler).position)
    for step_size in (0.1, 0.2):
        model = score_langevin(network, process, template=TEMPLATE, num_levels=4, steps_per_level=2, step_size=step_size)
        params, _ = model.init(jax.random.key(1), jnp.eye(2))
        assert np.isfinite(draw(jax.random.key(0), model.sampler(params))).all()
    assert draw._cache_size() == 1
    with pytest.raises(ValueError, match=r"step_size=2\.5"):
        score_langevin(network, process, template=TEMPLATE, step_size=2.5)
    with pytest.raises(ValueError, match="num_levels=1"):
        score_langevin(network, process, template=TEMPLATE, num_levels=1)


def towards_its_class(centres, params, x, t, label):
    """eps, off by what moves the draws to a centre: 0 for the condition that stands for none."""
    return x - centres[label]


def leaning(t, x, condition):
    return -0.5 * jnp.sum((x - condition) ** 2)


def test_guidance_steers_its_score_draw_by_draw():
    process, centres = noise.cosine(), jnp.array([[0.5, 0.0], [0.0, 0.5], [0.0, 0.0]])
    network = gs.Network(gs.bind(no_params), gs.bind(towards_its_class, centres))
    options = {"template": TEMPLATE, "num_levels": 3, "steps_per_level": 2, "conditional": True}
    params = {"network": no_params(None), "shift": jnp.zeros(2), "scale": jnp.ones(2)}
    guided = score_langevin(network, process, guidance=label_guidance(2, strength=None), **options)
    plain = score_langevin(network, process, **options)

    def run(model, each):
        return gs.sample(jax.random.key(3), conditional(model, params), 4, each=each, progress=False)

    labels = jnp.array([0, 1, 0, 1])
    steered = run(guided, (labels, jnp.array([1.0, 1.0, 0.0, 0.0])))
    told, untold = run(plain, labels), run(plain, jnp.full(4, 2))
    np.testing.assert_allclose(steered.position[0, :2], told.position[0, :2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(steered.position[0, 2:], untold.position[0, 2:], rtol=1e-4, atol=1e-5)
    assert steered.ledger.sample.forwards == 2 * told.ledger.sample.forwards == 2 * 4 * 6
    assert np.abs(told.position - untold.position).max() > 0.1


def test_a_classifier_steers_its_score_and_its_gradients_are_counted():
    process = noise.cosine()
    network = gs.Network(gs.bind(no_params), gs.bind(exact, process))
    options = {"template": TEMPLATE, "num_levels": 3, "steps_per_level": 2, "prediction": "eps"}
    params = {"network": no_params(None), "shift": jnp.zeros(2), "scale": jnp.ones(2)}
    model = score_langevin(network, process, guidance=classifier_guidance(gs.bind(leaning)), **options)
    draw = jax.jit(gs.draw)
    pulled = draw(jax.random.key(4), model.sampler(params, jnp.full(2, 3.0)))
    plain = draw(jax.random.key(4), score_langevin(network, process, **options).sampler(params))
    assert (pulled.position > plain.position).all()
    assert pulled.info.forwards == pulled.info.gradients == plain.info.forwards == 6
