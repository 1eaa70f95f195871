"""What a learned map is made of and drawn with: a wrong part is named in one sentence, before anything is compiled."""

import jax
import jax.numpy as jnp
import pytest

import gensamp as gs
from gensamp.pushforward.diffusion.losses import check_parts
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


@pytest.mark.parametrize(
    "model",
    [
        gs.pushforward.ddpm(NETWORK, gs.noise.cosine(), template=TEMPLATE),
        gs.pushforward.ddim(NETWORK, gs.noise.cosine(), template=TEMPLATE),
        gs.pushforward.diffusion_model(NETWORK, gs.noise.cosine(), template=TEMPLATE),
        gs.pushforward.realnvp(TEMPLATE, num_layers=2, width=4),
    ],
    ids=["ddpm", "ddim", "diffusion_model", "realnvp"],
)
def test_what_are_no_parameters_of_the_model_is_named(model):
    params = fitted_like(model)
    whole = Fitted(params, None, (), {}, gs.core.Ledger(), "finished", "")
    with pytest.raises(TypeError, match=r"got Fitted as its parameters; expected model.sampler\(fitted.params\)"):
        model.sampler(whole)
    with pytest.raises(TypeError, match="got NoneType as its parameters; expected the params of a fit"):
        model.sampler(None)
    with pytest.raises(TypeError, match=r"with the entries \['weights'\]; expected"):
        model.sampler({"weights": jnp.zeros(3)})
    other = params | {"shift": jax.ShapeDtypeStruct((3,), jnp.float32)}
    with pytest.raises(ValueError, match=r"parameters with a shift of shapes? \[3\]; expected"):
        model.sampler(other)
    assert jax.eval_shape(model.sampler, params).num_steps is not None


def test_a_target_is_no_template():
    with pytest.raises(TypeError, match=r"template is a Target; expected one event; pass target\.template"):
        gs.pushforward.realnvp(gs.targets.banana())
