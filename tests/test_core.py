"""The nouns: what they refuse, what they cost, and that they are pytrees with their arrays as leaves."""

import functools
import statistics
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chains_by_hand import autoregression, convolution
from jax.tree_util import Partial

import gensamp as gs
from gensamp import core

KEY = jax.random.key(0)


def quadratic(scale, x):
    return -0.5 * jnp.sum((x / scale) ** 2)


def test_a_target_from_a_function_has_its_gradient_as_score():
    target = gs.Target.from_log_density(Partial(quadratic, 2.0), jnp.zeros(3))
    np.testing.assert_allclose(target.score(jnp.ones(3)), -0.25 * np.ones(3))
    assert target.template == jax.ShapeDtypeStruct((3,), jnp.float32)
    assert target.name == "quadratic"


def test_a_target_with_a_dict_template_is_an_argument_of_jit():
    target = gs.Target.from_log_density(lambda x: -(x["a"] ** 2) - jnp.sum(x["b"] ** 2), {"a": 0.0, "b": np.zeros(2)})
    value = jax.jit(lambda target: target.log_density({"a": jnp.float32(2.0), "b": jnp.zeros(2)}))(target)
    assert value == -4.0
    assert jax.tree.map(lambda leaf: leaf, target).template == target.template


@pytest.mark.parametrize(
    ("log_density", "got"),
    [(lambda x: x, r"float32\[3\]"), (lambda x: jnp.sum(x > 0), "int32"), (lambda x: (jnp.sum(x), x), "float32")],
    ids=["vector", "integer", "tuple"],
)
def test_a_log_density_that_is_no_number_is_refused(log_density, got):
    with pytest.raises(TypeError, match=f"log_density returned .*{got}.*expected one real number"):
        gs.Target.from_log_density(log_density, jnp.zeros(3))


@pytest.mark.parametrize("template", [jnp.arange(3), {}, None], ids=["integers", "empty", "nothing"])
def test_a_template_that_is_no_event_is_refused(template):
    with pytest.raises(TypeError, match="expected floating-point arrays"):
        gs.Target.from_log_density(lambda x: 0.0, template)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("abc", "template holds a str; expected floating-point"), (jnp.zeros(0), "without coordinates"),
        (gs.targets.banana(), "template is a Target; expected one event; pass target.template"),
    ],
)  # fmt: skip
def test_what_is_no_template_is_named(template, message):
    with pytest.raises(TypeError, match=message):
        core.as_template(template)


@pytest.mark.parametrize(
    ("known", "error", "message"),
    [
        ({"exat": lambda key: jnp.zeros(3)}, TypeError, "no field exat; did you mean exact"),
        ({"exact": 3}, TypeError, "exact is int; expected a function"), ({"truth": 3}, TypeError, "truth is int; expected"),
        ({"exact": lambda key: jnp.zeros(4)}, ValueError, r"exact makes float32\[4\] of a key; expected one event"),
        ({"exact": lambda key: key + 1}, ValueError, "exact cannot be traced at a key"),
        ({"score": lambda x: x[:2]}, ValueError, r"score makes float32\[2\] of an event"),
        ({"name": 3}, TypeError, "name is 3; expected a string"),
    ],
)  # fmt: skip
def test_what_is_known_beside_a_density_is_of_its_kind(known, error, message):
    with pytest.raises(error, match=message):
        gs.Target.from_log_density(lambda x: -jnp.sum(x**2), jnp.zeros(3), **known)


@pytest.mark.parametrize(
    ("log_density", "message"),
    [
        (lambda x: x["mu"], "cannot be traced at one event"),
        (lambda x: np.sum(np.asarray(x)), "expected functions of jax.numpy"),
    ],
    ids=["raises", "NumPy"],
)
def test_a_density_that_raises_keeps_its_cause(log_density, message):
    with pytest.raises(TypeError, match=message) as raised:
        gs.Target.from_log_density(log_density, jnp.zeros(3))
    assert raised.value.__cause__ is not None


def test_a_noun_given_as_a_key_is_named_and_not_printed():
    for given in (gs.targets.banana(), autoregression()):
        with pytest.raises(TypeError, match=f"key is {type(given).__name__}; expected one typed key"):
            core.check_key(given)


def test_data_that_are_no_events_are_refused():
    with pytest.raises(ValueError, match="share a leading axis"):
        gs.Target.from_data({"a": np.zeros((3, 2)), "b": np.zeros((4, 2))})
    with pytest.raises(ValueError, match="not finite"):
        gs.Target.from_data(np.array([[1.0], [np.nan]]))
    assert gs.Target.from_data(np.zeros((5, 2))).template.shape == (2,)


def test_require_says_who_needs_what_and_what_to_do():
    target = gs.Target.from_data(np.zeros((5, 2)), name="faces")
    with pytest.raises(ValueError, match=r"mala needs target\.log_density, and target 'faces' has none; fit a learned map"):
        core.require(target, "log_density", "mala")


@pytest.mark.parametrize(
    "function", [Partial(quadratic, 1.0), functools.partial(quadratic, 1.0), "text".count], ids=["Partial", "partial", "method"]
)
def test_bind_refuses_functions_that_hide_their_arrays(function):
    with pytest.raises(TypeError, match="expected a plain function"):
        core.bind(function)


def test_scalars_of_any_kind_are_one_cache_key():
    template = jax.ShapeDtypeStruct((3,), jnp.float32)
    values = (1, 1.0, np.float64(1), jnp.float32(1), jnp.asarray(1.0))
    avals = {str(jax.typeof(core.scalar(value, template))) for value in values}
    assert avals == {"float32[]"}


def test_draw_is_reverse_differentiable_and_sums_its_info():
    def spread(rho):
        return jnp.sum(gs.draw(KEY, autoregression(rho, num_steps=4)).position ** 2)

    step = 1e-3
    numeric = (spread(0.5 + step) - spread(0.5 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(spread)(0.5), numeric, rtol=1e-2)
    info = gs.draw(KEY, autoregression(num_steps=4)).info
    assert info.gradients == 4 and info.acceptance == 1.0


def test_pmap_of_draw_works_all_the_same():
    devices = jax.local_device_count()
    keys = jax.random.split(KEY, devices)
    mapped = jax.pmap(gs.draw, in_axes=(0, None))(keys, convolution()).position
    np.testing.assert_allclose(mapped, jax.vmap(gs.draw, in_axes=(0, None))(keys, convolution()).position, atol=1e-5)


def test_verbs_refuse_samplers_of_the_other_kind():
    with pytest.raises(ValueError, match="no end"):
        gs.draw(KEY, autoregression())
    with pytest.raises(ValueError, match="finite"):
        gs.chain(KEY, autoregression(num_steps=3), 5)
    with pytest.raises(TypeError, match="draw got Target; expected draw"):
        gs.draw(KEY, gs.targets.banana())
    for num_draws in (-4, 4.5, "4"):
        with pytest.raises(ValueError, match=f"chain got num_draws {num_draws!r}"):
            gs.chain(KEY, autoregression(), num_draws)
    with pytest.raises(TypeError, match="typed key"):
        gs.draw(jax.random.PRNGKey(0), autoregression(num_steps=3))


@pytest.mark.parametrize("devices", [[], True, ["cpu"], 2 * jax.local_devices()[:1]])
def test_mesh_refuses_what_is_no_list_of_devices(devices):
    with pytest.raises((TypeError, ValueError), match="mesh got devices="):
        gs.parallel.mesh(devices)


def test_exact_draws_beside_data_are_like_the_data():
    with pytest.raises(ValueError, match="exact makes"):
        gs.Target.from_data(np.zeros((5, 2), np.float32), exact=lambda key: jnp.zeros(3))


def test_mesh_refuses_more_devices_than_there_are():
    with pytest.raises(ValueError, match="expected between 1 and the"):
        gs.parallel.mesh(10_000)


def test_the_face_names_what_it_offers_and_nothing_else():
    assert gs.sample is not None and gs.mcmc.mala is not None
    assert {"sample", "mcmc", "Target"} <= set(dir(gs))
    with pytest.raises(AttributeError, match="no attribute 'smaple'"):
        _ = gs.smaple


def test_import_costs_little_more_than_jax():
    """Median of 10 fresh processes each, interleaved: at most 1.3 x `import jax`."""
    seconds = {"jax": [], "gensamp": []}
    for _ in range(10):
        for module, times in seconds.items():
            code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
            times.append(float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout))
    assert statistics.median(seconds["gensamp"]) <= 1.3 * statistics.median(seconds["jax"])


def test_networks_and_models_of_plain_functions_are_arguments_of_jit():
    network = gs.Network(lambda key: jnp.ones(2), lambda params, x: params * x)
    applied = jax.jit(lambda network, x: network.apply(network.init(None), x))(network, jnp.arange(2.0))
    np.testing.assert_array_equal(applied, [0, 1])
    model = gs.Model(lambda key, batch: (jnp.zeros(()), ()), lambda *_: (jnp.ones(()), ((), {})), lambda params: None)
    assert jax.jit(lambda model: model.loss(0, (), None, None)[0])(model) == 1
    # What is bound already stays as it is, and so does what JAX puts in place of a leaf.
    inner = gs.bind(jnp.multiply, jnp.ones(2))
    assert gs.Network(inner, None).init is inner and gs.Network(inner, None).apply is None
    held = jax.tree.structure(gs.Network(inner, 3)).unflatten(["a", "b"])
    assert held.init.args == ("a",) and held.apply == "b"
