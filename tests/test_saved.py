"""Fitted models in a file: back as they were, in another process and of another year, and nothing in the file is executed."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gensamp as gs
from gensamp.core import Ledger
from gensamp.nets import mlp, unet
from gensamp.noise import cosine, vp_linear
from gensamp.pushforward import ddpm, diffusion_model, dpm_solver_pp, realnvp
from gensamp.pushforward.diffusion import label_guidance
from gensamp.saved import Recipe, load, recipe, save
from gensamp.targets import funnel
from gensamp.training import Fitted

KEPT = Path(__file__).parent / "data" / "fitted_version_1.npz"
PAIR = jax.ShapeDtypeStruct((2,), jnp.float32)
IMAGE = jax.ShapeDtypeStruct((4, 4, 1), jnp.float32)
# What the model in KEPT drew from key 7 when it was written.
WAS_DRAWN = (0.74609125, 0.48460662)


def small():
    return recipe(ddpm, recipe(mlp, PAIR, width=4, depth=1), recipe(cosine), template=PAIR, num_steps=3)


def started(made, events=None):
    """Parameters of a model, random and not fitted."""
    batch = None if events is None else jnp.asarray(events, jnp.float32)
    return jax.jit(made.build().init)(jax.random.key(0), batch)[0]


def empty(made, batch):
    """Parameters of a model in their shapes: zeros."""
    shapes = jax.eval_shape(made.build().init, jax.random.key(0), batch)[0]
    return jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)


def drawn(model, params):
    return np.asarray(jax.jit(lambda sampler: gs.draw(jax.random.key(7), sampler).position)(model.sampler(params)))


def edited(path, change):
    """The file at `path` with its configuration changed in place."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    configuration = json.loads(arrays["configuration"].tobytes())
    change(configuration)
    arrays["configuration"] = np.frombuffer(json.dumps(configuration).encode(), np.uint8)
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def test_a_file_of_version_1_loads_and_draws_what_it_drew():
    saved = load(KEPT)
    assert saved.fitted.ending == "finished" and saved.fitted.ledger.fit.forwards == 480 and saved.version == "0.1.0"
    assert saved.fitted.history["loss"].shape == (30,) and saved.fitted.ema is saved.params
    draw = jax.jit(lambda sampler: gs.draw(jax.random.key(7), sampler).position)(saved.sampler())
    np.testing.assert_allclose(draw, WAS_DRAWN, rtol=1e-4)


@pytest.mark.slow
def test_another_process_draws_the_same(tmp_path):
    made = recipe(
        diffusion_model, recipe(unet, IMAGE, width=8, multipliers=(1, 2), compute=jnp.bfloat16), recipe(vp_linear, beta_max=15),
        template=IMAGE, solver=dpm_solver_pp, order=2, eta=0.5, grid=jnp.linspace(1, 0, 4),
    )  # fmt: skip
    params = started(made, np.random.default_rng(0).normal(size=(4, 4, 4, 1)))
    save(tmp_path / "model.npz", params, made)
    code = (
        "import sys, jax, numpy as np, gensamp as gs; from gensamp.saved import load; "
        "draws = gs.sample(jax.random.key(1), load(sys.argv[1]).sampler(), 2, progress=False); "
        "np.save(sys.argv[2], np.asarray(draws.position))"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "model.npz", tmp_path / "draws.npy"], check=True)
    here = gs.sample(jax.random.key(1), made.build().sampler(params), 2, progress=False).position
    np.testing.assert_allclose(np.load(tmp_path / "draws.npy"), here, rtol=1e-4, atol=1e-5)


def test_a_fit_comes_back_as_it_was(tmp_path):
    made, path = small(), tmp_path / "model.npz"
    data = np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32)
    fitted = gs.fit(jax.random.key(0), made.build(), data, num_steps=3, batch_size=8, ema=0.9, progress=False)
    save(path, fitted, made)
    saved = load(path)
    assert isinstance(saved.recipe, Recipe) and isinstance(saved.fitted, Fitted)
    assert saved.fitted.ledger == fitted.ledger and saved.fitted.message == fitted.message
    for name in ("params", "ema", "state", "history"):
        one, other = getattr(saved.fitted, name), getattr(fitted, name)
        assert jax.tree.structure(one) == jax.tree.structure(other)
        jax.tree.map(np.testing.assert_array_equal, one, other)
    np.testing.assert_array_equal(drawn(saved.model, saved.params), drawn(made.build(), fitted.ema))
    # Written again, what was loaded is the same file but for the times within the archive.
    save(tmp_path / "again.npz", saved.fitted, saved.recipe)
    with np.load(path) as one, np.load(tmp_path / "again.npz") as other:
        assert one.files == other.files and all(np.array_equal(one[name], other[name]) for name in one.files)


def test_every_kind_of_leaf_and_node_comes_back(tmp_path):
    tree = {
        "half": jnp.asarray([1.5, -2.25], jnp.bfloat16), "key": jax.random.key(3), "whole": jnp.arange(3),
        "nodes": [(), (1, 2.5, None, True, "text"), {"inner": [np.zeros((2, 0))]}], "scalar": jnp.float32(0.1),
    }  # fmt: skip
    save(tmp_path / "tree", tree)
    found = load(tmp_path / "tree")
    assert found.model is None and found.recipe is None
    assert jax.tree.structure(found.params) == jax.tree.structure(tree)
    assert found.params["half"].dtype == jnp.bfloat16 and found.params["nodes"][1] == (1, 2.5, None, True, "text")
    for name in ("half", "whole", "scalar"):
        np.testing.assert_array_equal(found.params[name], tree[name])
    np.testing.assert_array_equal(jax.random.normal(found.params["key"]), jax.random.normal(tree["key"]))
    with pytest.raises(ValueError, match="parameters without a recipe; pass their model"):
        found.sampler()
    save(tmp_path / "tree", started(small(), np.eye(2)))
    model = small().build()
    assert load(tmp_path / "tree", model=model).sampler().num_steps == 3


def test_a_recipe_holds_targets_and_the_defaults_of_today(tmp_path):
    made = recipe(realnvp, PAIR, target=recipe(funnel, dim=2, dtype=np.float32), width=4, num_layers=2)
    assert made.build().loss is not None and "depth" in made.options
    save(tmp_path / "model", started(made), made)
    again = load(tmp_path / "model").recipe
    assert again.options.keys() == made.options.keys() and again.function is realnvp


def test_what_cannot_be_written_down_is_refused_before_a_fit():
    with pytest.raises(ValueError, match="a recipe got <lambda>, which is no public function"):
        recipe(lambda: None)
    with pytest.raises(ValueError, match="a recipe got system"):
        recipe(__import__("os").system, "true")
    with pytest.raises(TypeError, match=r"recipe/0 is a Network, which cannot be written down; .* recipes of networks"):
        recipe(ddpm, mlp(PAIR), recipe(cosine), template=PAIR)
    with pytest.raises(TypeError, match=r"ddpm cannot be called so: .* 'noise'"):
        recipe(ddpm, recipe(mlp, PAIR), template=PAIR)


def test_a_save_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "model"
    save(path, {"a": jnp.zeros(2)})
    with pytest.raises(TypeError, match="params/a is a object, which cannot be written down"):
        save(path, {"a": object()})
    with pytest.raises(TypeError, match="params/a is an array of Python objects"):
        save(path, {"a": np.asarray([None])})
    with pytest.raises(TypeError, match=r"recipe is Model; expected what gs.recipe"):
        save(path, {}, small().build())
    assert load(path).params["a"].shape == (2,) and [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_recipe_of_another_model_is_refused_before_anything_is_written(tmp_path):
    path = tmp_path / "model"
    wide = recipe(ddpm, recipe(mlp, PAIR, width=8, depth=1), recipe(cosine), template=PAIR, num_steps=3)
    for other, match in ((wide, r"whose network/\S+ has shape"), (recipe(realnvp, PAIR), "with the entries .*network")):
        with pytest.raises(ValueError, match=f"do not belong together: .*{match}"):
            save(path, empty(small(), jnp.eye(2)), other)
    with pytest.raises(TypeError, match="recipe makes a Network; expected a recipe of the model"):
        save(path, empty(small(), jnp.eye(2)), recipe(mlp, PAIR))
    assert not path.exists()


def test_conditional_guided_and_many_models_are_saved_with_their_recipes(tmp_path):
    network = recipe(mlp, PAIR, width=4, depth=1, num_classes=3)
    batch = (jnp.eye(2), jnp.zeros(2, jnp.int32))
    for guidance in (None, recipe(label_guidance, 2), recipe(label_guidance, 2, strength=None)):
        made = recipe(diffusion_model, network, recipe(cosine), template=PAIR, conditional=True, guidance=guidance)
        save(tmp_path / "model", empty(made, batch), made)
        with pytest.raises(ValueError, match="do not belong together"):
            save(tmp_path / "other", empty(small(), jnp.eye(2)), made)
    many = jax.tree.map(lambda a: np.stack([a, a]), empty(small(), jnp.eye(2)))
    save(tmp_path / "model", Fitted(many, None, (), {"loss": np.zeros((2, 3))}, Ledger(), "finished", ""), small())


def test_files_that_ask_for_more_than_public_functions_are_refused(tmp_path):
    path = tmp_path / "model"

    def refuses(change, match):
        path.write_bytes(KEPT.read_bytes())
        edited(path, change)
        with pytest.raises(ValueError, match=rf"^\S+model.*[ (]{match}"):
            load(path)

    for name in (
        "os.system",
        "posix.system",
        "builtins.eval",
        "targets.posteriors.from_numpyro",
        "nets.adapters.jax",
    ):
        refuses(lambda held, name=name: held["recipe"].update(make=name), f"asks for '{name}', which is no public function")
    refuses(lambda held: held["fitted"]["params"].update(dict={"a": {"pickle": "x"}}), "an entry .*pickle.* does not know")
    refuses(lambda held: held.update(version=2), "has version 2 of its format, .* reads up to 1")
    refuses(lambda held: held.update(version="1"), "has version '1' of its format; expected an integer")
    refuses(lambda held: held.update(format="something"), "is of the format 'something'")
    for name in ("version", "fitted", "recipe"):
        refuses(lambda held, name=name: held.pop(name), f"it has no entry '{name}'")
    refuses(lambda held: held["fitted"].pop("ema"), "it has no entry 'ema'")
    refuses(lambda held: held["fitted"]["ledger"]["fit"].update(tokens=1), "unexpected keyword argument 'tokens'")
    refuses(lambda held: held["recipe"]["options"].update(temperature=1), "unexpected keyword argument 'temperature'")
    lost = {"array": "recipe/lost", "dtype": "float32"}
    refuses(lambda held: held["recipe"]["options"].update(template=lost), "it has no entry 'recipe/lost'")


def test_damaged_files_are_refused_and_pickles_never_opened(tmp_path):
    path = tmp_path / "model"
    with pytest.raises(FileNotFoundError):
        load(path)
    for content in (b"", b"nothing of the kind", KEPT.read_bytes()[:2000]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"no file that gs.save wrote, or it is damaged"):
            load(path)
    with open(path, "wb") as file:
        np.savez(file, configuration=np.frombuffer(b"{}", np.uint8), trap=np.asarray([Trap()], object))
    with pytest.raises(ValueError, match=r"no file that gs.save wrote"):
        load(path)
    assert not Trap.sprung


def test_no_damaged_byte_gives_another_error(tmp_path):
    path, whole = tmp_path / "model", KEPT.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole), 100):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x20]) + whole[place + 1 :])
        try:
            load(path)
        except ValueError as error:
            assert str(error).startswith(str(path))


class Trap:
    sprung = False

    def __reduce__(self):
        return (spring, ())


def spring():
    Trap.sprung = True


def test_float64_is_not_cut_to_float32_in_silence(tmp_path):
    with jax.enable_x64(True):
        save(tmp_path / "model", {"a": jnp.ones(2, jnp.float64) / 3})
        np.testing.assert_array_equal(load(tmp_path / "model").params["a"], np.ones(2) / 3)
    with pytest.raises(ValueError, match=r"holds float64 \(params/a\)"):
        load(tmp_path / "model")
