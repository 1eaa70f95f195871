"""What a learned map is made of and drawn with: a wrong part is named in one sentence, before anything is compiled."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gensamp as gs
from gensamp.pushforward import hierarchical_vae, ladder
from gensamp.pushforward.diffusion.losses import check_parts
from gensamp.pushforward.frame import fit_frame
from gensamp.training import Fitted

TEMPLATE = jnp.zeros(2)
NETWORK = gs.nets.mlp(TEMPLATE, width=4)


def fitted_like(model):
    """Parameters of a model, as shapes: no sampler that is only made needs more."""
    return jax.eval_shape(lambda key: model.init(key, jnp.zeros((4, 2)))[0], jax.random.key(0))


@pytest.mark.parametrize(
    ("network", "process", "message"),
    [
        (NETWORK, "cosine", "noise is 'cosine'; expected a Noise"), (None, gs.noise.cosine(), "network is NoneType; expected"),
        (gs.noise.cosine(), NETWORK, "network is Noise; expected a Network"),
    ],
)  # fmt: skip
def test_a_wrong_network_or_noise_is_named(network, process, message):
    with pytest.raises(TypeError, match=message):
        check_parts(network, process)


def test_a_few_step_models_network_is_one():
    process, weights = gs.noise.cosine(), jnp.zeros((2, 2))
    for make, given in (("consistency", (process,)), ("progressive", (process,)), ("variational_diffusion", ())):
        # As users have it: the tests' own check of annotations would be first.
        build = inspect.unwrap(getattr(gs.pushforward, make))
        with pytest.raises(TypeError, match="network is ArrayImpl; expected a Network"):
            build(weights, *given, template=TEMPLATE)


def families(width):
    """One model of every learned family, as wide as told."""
    network, process, likeness = gs.nets.mlp(TEMPLATE, width=width, depth=1), gs.noise.cosine(), {"template": TEMPLATE}
    generator, critic = gs.nets.generator(TEMPLATE, 16, width=width, depth=1), gs.nets.critic(TEMPLATE, width=4, depth=1)
    return {
        "ddpm": gs.pushforward.ddpm(network, process, **likeness),
        "ddim": gs.pushforward.ddim(network, process, **likeness),
        "diffusion_model": gs.pushforward.diffusion_model(network, process, **likeness),
        "variational_diffusion": gs.pushforward.variational_diffusion(network, **likeness),
        "flow_matching": gs.pushforward.flow_matching(network, **likeness),
        "consistency": gs.pushforward.consistency(network, process, **likeness),
        "progressive": gs.pushforward.progressive(network, process, **likeness),
        "score_langevin": gs.hybrid.score_langevin(network, process, **likeness),
        "realnvp": gs.pushforward.realnvp(TEMPLATE, num_layers=2, width=width),
        "vae": gs.pushforward.vae(TEMPLATE, width=width),
        "importance_weighted": gs.pushforward.vae(TEMPLATE, width=width, num_importance=3),
        "ladder": hierarchical_vae(ladder(TEMPLATE, num_groups=2, width=width)),
        "gan": gs.pushforward.gan(TEMPLATE, generator=generator, critic=critic),
        "made": gs.pushforward.made(TEMPLATE, width=width, depth=1),
        "pixelcnn": gs.pushforward.pixelcnn(TEMPLATE, width=width, depth=1),
        "causal_transformer": gs.pushforward.causal_transformer(TEMPLATE, width=width, depth=1, num_heads=2),
    }  # fmt: skip


MODELS, WIDER = families(4), families(8)


@pytest.mark.parametrize("name", MODELS)
def test_what_are_no_parameters_of_the_model_is_named(name):
    model = MODELS[name]
    params = fitted_like(model)
    whole = Fitted(params, None, (), {}, gs.core.Ledger(), "finished", "")
    with pytest.raises(TypeError, match=r"got Fitted as its parameters; expected model.sampler\(fitted.params\)"):
        model.sampler(whole)
    with pytest.raises(TypeError, match="got NoneType as its parameters; expected the params of a fit"):
        model.sampler(None)
    with pytest.raises(TypeError, match=r"with the entries \['weights'\]; expected"):
        model.sampler({"weights": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"got parameters whose [\w/]+ has shape \[[\d, ]+\]; expected \[[\d, ]+\]: those of"):
        model.sampler(fitted_like(WIDER[name]))
    assert jax.eval_shape(model.sampler, params).num_steps is not None


@pytest.mark.parametrize("name", MODELS)
def test_parameters_for_other_events_are_named(name):
    model = MODELS[name]
    params = fitted_like(model)
    frame = params.get("frame", params)
    moved = {**frame, "shift": jax.ShapeDtypeStruct((3,), jnp.float32)}
    with pytest.raises(ValueError, match=r"parameters (with a|whose) [\w/]*shift (of shapes|has shape) \[3\]; expected"):
        model.sampler({**params, "frame": moved} if "frame" in params else moved)


def test_a_network_of_another_make_is_named():
    model, deeper = (
        gs.pushforward.ddpm(gs.nets.mlp(TEMPLATE, width=4, depth=n), gs.noise.cosine(), template=TEMPLATE) for n in (1, 2)
    )
    with pytest.raises(
        ValueError, match=r"got parameters without network/Dense_\d/bias; expected those of a fit of this model"
    ):
        deeper.sampler(fitted_like(model))
    with pytest.raises(ValueError, match=r"with network/Dense_\d/bias, which this model does not have; expected"):
        model.sampler(fitted_like(deeper))
    with pytest.raises(TypeError, match="with a frame of ArrayImpl; expected shift and scale"):
        gs.pushforward.vae(TEMPLATE).sampler(fitted_like(gs.pushforward.vae(TEMPLATE)) | {"frame": jnp.zeros(2)})


def one_for_two(params, x, t):
    return x[:1]


def listed(params, x, t):
    return [x]


NARROW = ("ddpm", "flow_matching", "consistency", "progressive", "reflow", "variational_diffusion")


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize(("apply", "got"), [(one_for_two, r"float32\[1\]"), (listed, r"\['float32\[2\]'\]")])
def test_a_network_that_does_not_return_what_is_like_x_is_named(name, apply, got):
    network, process = gs.Network(NETWORK.init, gs.bind(apply)), gs.noise.cosine()
    given = (network,) if name in ("flow_matching", "reflow", "variational_diffusion") else (network, process)
    model = getattr(gs.pushforward, name)(*given, template=TEMPLATE)
    events = jnp.zeros((4, 2))

    def loss(key):
        batch = (events, events) if name == "reflow" else events
        return model.loss(*model.init(key, batch), key, batch)

    with pytest.raises(ValueError, match=rf"the network returned {got}; expected float32\[2\], like x"):
        jax.eval_shape(loss, jax.random.key(0))
    params, _ = jax.eval_shape(model.init, jax.random.key(0), (events, events) if name == "reflow" else events)
    with pytest.raises(ValueError, match=r"expected .*, like x"):
        jax.eval_shape(lambda params, key: gs.draw(key, model.sampler(params)).position, params, jax.random.key(0))


def test_a_target_is_no_template():
    with pytest.raises(TypeError, match=r"template is a Target; expected one event; pass target\.template"):
        gs.pushforward.realnvp(gs.targets.banana())


def test_a_frame_tells_a_constant_from_a_small_spread():
    random = np.random.default_rng(0).normal(size=1000)
    columns = [np.full(1000, 0.1), np.full(1000, 12345.678), np.zeros(1000), 1e-30 * random, 1e25 * random, 3 + 2 * random]
    batch = jnp.asarray(np.stack(columns, axis=1), jnp.float32)
    frame = jax.jit(fit_frame)({"vectors": batch, "images": batch[:, :2, None], "numbers": batch[:, 3]})
    want = [1, 1, 1, 1e-30 * random.std(), 1e25 * random.std(), 2 * random.std()]
    np.testing.assert_allclose(frame["scale"]["vectors"], want, rtol=1e-5)
    np.testing.assert_allclose(frame["scale"]["images"], batch[:, :2].std(), rtol=1e-5)
    np.testing.assert_allclose(frame["scale"]["numbers"], 1e-30 * random.std(), rtol=1e-5)
    # Where nothing vanishes it is the standard deviation, bit for bit.
    assert frame["scale"]["vectors"][5] == jax.jit(jnp.std)(batch[:, 5])
    assert frame["scale"]["vectors"].dtype == jnp.float32
