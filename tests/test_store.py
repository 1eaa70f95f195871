"""What a store takes for its own run, and what it refuses: stale checkpoints, broken files, names that clash."""

import dataclasses
import os
import shutil
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from chains_by_hand import autoregression
from jax.tree_util import Partial

import gensamp as gs
from gensamp.clock import compile_clock
from gensamp.fingerprint import fingerprint

KEY = jax.random.key(0)
DATA = np.zeros(3, np.float32)


def slope(x):
    return 2.0 * x


def through_globals(x):
    return jnp.sum(slope(x) - DATA)


def even(n):
    return n == 0 or odd(n - 1)


def odd(n):
    return even(n - 1)


def test_a_density_is_known_by_the_globals_it_names(monkeypatch):
    before = fingerprint(through_globals)
    assert fingerprint(through_globals) == before
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[__name__], "DATA", np.ones(3, np.float32))
        assert fingerprint(through_globals) != before
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[__name__], "slope", lambda x: 3.0 * x)
        assert fingerprint(through_globals) != before
    assert fingerprint(through_globals) == before
    assert fingerprint(even) == fingerprint(even) != fingerprint(odd)


def test_containers_are_known_by_their_elements():
    def density(data):
        return lambda x: -jnp.sum((x - data["y"]) ** 2)

    rows = [{"y": np.zeros(3000)} for _ in range(3)]
    rows[2]["y"][1500] = 1.0
    same, again, other = (fingerprint(density(row)) for row in rows)
    assert same == again != other


def test_models_of_one_name_are_told_apart():
    def made(scale):
        def model(y=None):
            numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0, scale)), 1), obs=y)

        return gs.Target.from_numpyro(model, jnp.ones(3))

    def bodies():
        def model(y=None):
            numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Cauchy(0, 1)), 1), obs=y)

        return gs.Target.from_numpyro(model, jnp.ones(3))

    assert fingerprint(made(1.0)) == fingerprint(made(1.0))
    assert len({fingerprint(target) for target in (made(1.0), made(2.0), bodies())}) == 3


def test_the_digest_is_the_same_in_every_process():
    code = """
        import jax.numpy as jnp, numpyro.distributions as dist, gensamp as gs
        from gensamp.fingerprint import fingerprint

        def density(x, kinds=frozenset({"one", "two", "three"})):
            return jnp.sum(x) if "one" in kinds and "x" in {"x", "y", "z"} else 0.0

        target = gs.Target.from_log_density(density, jnp.zeros(2))
        print(fingerprint((gs.mcmc.mala(target, 0.1), dist.Normal(jnp.zeros(2), 1.0), gs.pushforward.realnvp(jnp.zeros(2)))))
    """
    digests = {
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)], env=jax_environment(seed), capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1 and len(digests.pop()) == 17


def jax_environment(seed):
    return os.environ | {"PYTHONHASHSEED": seed, "JAX_PLATFORMS": "cpu"}


def run(path, draws=20, key=KEY, **options):
    return gs.sample(key, autoregression(), draws, store=path, **options)


def test_a_checkpoint_is_never_taken_for_another_run(tmp_path):
    path = tmp_path / "run.zarr"
    run(path)
    shutil.copytree(path, tmp_path / "kept")
    shutil.rmtree(path)
    for options in ({}, {"resume": True}, {"key": jax.random.key(1)}):
        with compile_clock() as clock, pytest.raises(FileExistsError, match="is gone and its checkpoint"):
            run(path, 30, **options)
        assert clock.count == 0
    shutil.rmtree(f"{path}.checkpoint")
    run(path, key=jax.random.key(1))
    shutil.rmtree(path)
    shutil.copytree(tmp_path / "kept", path)
    with pytest.raises(ValueError, match="is not of the run"):
        run(path, 30, resume=True)


def lose_position(path):
    shutil.rmtree(path / "position")


def lose_chunks(path):
    shutil.rmtree(path / "position" / "c")


def lose_a_statistic(path):
    shutil.rmtree(path / "acceptance")


@pytest.mark.parametrize("lose", [lose_position, lose_chunks, lose_a_statistic])
def test_draws_that_are_missing_are_refused_and_not_made_up(lose, tmp_path):
    run(tmp_path / "run.zarr")
    lose(tmp_path / "run.zarr")
    with pytest.raises(ValueError, match=r"lacks some of the 20 draws .*, in its array '(position|acceptance)'"):
        run(tmp_path / "run.zarr", 30, resume=True)


@pytest.mark.parametrize("broken", ["zarr.json", "position/zarr.json"])
def test_a_damaged_store_is_named_as_such(broken, tmp_path):
    run(tmp_path / "run.zarr")
    (tmp_path / "run.zarr" / broken).write_text("{")
    with pytest.raises(ValueError, match=r"is damaged.*remove it to start anew") as caught:
        run(tmp_path / "run.zarr", 30, resume=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["position", "acceptance"])
def test_a_truncated_chunk_is_named_with_its_array_and_draws(name, tmp_path):
    path = tmp_path / "run.zarr"
    run(path)
    (chunk,) = (entry for entry in (path / name / "c").rglob("*") if entry.is_file())
    chunk.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"its array '{name}' cannot be read from draw 0 to 19 .*start anew") as caught:
        run(path, 30, resume=True)
    assert "\n" not in str(caught.value)


def truncate(folder):
    for entry in folder.rglob("*"):
        if entry.is_file():
            entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2])


def test_the_checkpoint_before_a_damaged_one_is_taken(tmp_path):
    path, checkpoint = tmp_path / "run.zarr", tmp_path / "run.zarr.checkpoint"
    run(path)
    run(path, 40, resume=True)
    _, second = sorted(checkpoint.iterdir(), key=lambda entry: int(entry.name))
    truncate(second)
    assert gs.store.load_checkpoint(checkpoint)[1]["done"] == 20
    again = run(path, 30, resume=True)
    np.testing.assert_array_equal(again.position[:], gs.sample(KEY, autoregression(), 30).position)
    assert gs.store.load_checkpoint(checkpoint)[1]["done"] == 30
    for entry in checkpoint.iterdir():
        truncate(entry)
    with pytest.raises(ValueError, match=r"is damaged.*remove it to start anew") as caught:
        run(path, 50, resume=True)
    assert "\n" not in str(caught.value)


def test_paths_that_cannot_be_written_are_refused_and_left_as_they_are(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "run.zarr", "/proc/run.zarr", "a\0b"):
        with compile_clock() as clock, pytest.raises(ValueError, match=r"nothing can be written|expected the path"):
            run(path)
        assert clock.count == 0
    with pytest.raises(ValueError, match="expected the path of a folder"):
        run(tmp_path / "file")
    gs.store.check_writable(tmp_path / "new" / "folder")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize("missing", ["zarr", "orbax"])
def test_a_missing_package_is_named_before_any_work(missing, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with compile_clock() as clock, pytest.raises(ModuleNotFoundError, match=r"pip install 'gensamp\[store\]'"):
        run(tmp_path / "run.zarr")
    assert clock.count == 0 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"a/b": jnp.zeros(2), "a": {"b": jnp.zeros(2)}}, "share a place"),
        ({"a": jnp.zeros(2), "a/b": jnp.zeros(2)}, "share a place"),
        ({".": jnp.zeros(2)}, "no store can hold"),
        (jnp.zeros(2, jnp.bfloat16), "cannot be stored"),
    ],
)
def test_events_that_a_store_cannot_hold_are_refused(template, message, tmp_path):
    def log_density(x):
        return -sum(jnp.sum(a**2) for a in jax.tree.leaves(x))

    sampler = gs.mcmc.random_walk(gs.Target.from_log_density(log_density, template), 0.1)
    with compile_clock() as clock, pytest.raises(ValueError, match=message):
        gs.sample(KEY, sampler, 5, store=tmp_path / "run.zarr")
    assert clock.count == 0 and not list(tmp_path.iterdir())


def test_a_report_that_a_store_cannot_hold_is_refused(tmp_path):
    sampler = autoregression()
    step = Partial(lambda key, state, index: (state, gs.Info.of(extra=jnp.bfloat16(1))))
    with pytest.raises(ValueError, match="reports numbers of bfloat16, which cannot be stored"):
        gs.sample(KEY, dataclasses.replace(sampler, step=step), 5, store=tmp_path / "run.zarr")
    assert not list(tmp_path.iterdir())


def test_a_digest_of_a_maker_knows_what_it_closes_over(tmp_path):
    def made(shift):
        return Partial(lambda rho: autoregression(rho + shift))

    gs.sample(KEY, made(0.0), 5, each=np.float32([0.1, 0.2]), store=tmp_path / "run.zarr")
    with pytest.raises(ValueError, match="its sampler changed"):
        gs.sample(KEY, made(0.1), 9, each=np.float32([0.1, 0.2]), store=tmp_path / "run.zarr", resume=True)
