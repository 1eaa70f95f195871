"""Runs that end before their time and go on to the same bits: Ctrl-C, kill -9, a longer run, a store of another run."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import chains_by_hand
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chains_by_hand import autoregression
from jax.tree_util import Partial

import gensamp as gs
from gensamp import lanes, loops, progress

KEY = jax.random.key(0)


def interrupting(function, call):
    """The function, in whose call of that number Ctrl-C is pressed."""
    calls = iter(range(1000))

    def pressed(*args, **kwargs):
        if next(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return function(*args, **kwargs)

    return pressed


def test_an_interrupt_in_the_last_block_is_told(monkeypatch):
    monkeypatch.setitem(lanes.advance, "full", interrupting(lanes.advance["full"], 0))
    draws = gs.sample(KEY, autoregression(), 10)
    assert draws.ending == "finished" and draws.interrupted
    assert not gs.sample(KEY, autoregression(), 10).interrupted


def test_interrupt_returns_what_there_is(monkeypatch):
    monkeypatch.setitem(lanes.advance, "full", interrupting(lanes.advance["full"], 2))
    monkeypatch.setattr(loops, "BLOCK_SECONDS", 0.0)
    with pytest.warns(UserWarning, match="interrupted after 15 of 100"):
        draws = gs.sample(KEY, autoregression(), 100, chunk=5)
    assert draws.ending == "interrupted"
    monkeypatch.undo()
    np.testing.assert_array_equal(draws.position, gs.sample(KEY, autoregression(), 15).position)


def test_an_interrupted_warmup_goes_on_where_it_stood(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="interrupted after 0 of 20"):
        patch.setitem(lanes.advance, "full", interrupting(lanes.advance["full"], 0))
        draws = gs.sample(KEY, autoregression(), 20, warmup=50, chunk=5, store=tmp_path / "run.zarr")
    assert draws.position.shape[1] == 0
    assert gs.store.load_checkpoint(tmp_path / "run.zarr.checkpoint")[1]["index"] == 5
    again = gs.sample(KEY, autoregression(), 20, warmup=50, chunk=5, store=tmp_path / "run.zarr", resume=True)
    np.testing.assert_array_equal(again.position[:], gs.sample(KEY, autoregression(), 20, warmup=50).position)


@pytest.mark.parametrize("place", ["a write", "a look", "the last block of warm-up", "a write of a finite sampler"])
def test_wherever_an_interrupt_comes_what_is_recorded_is_saved(place, tmp_path, monkeypatch):
    finite = place.endswith("finite sampler")
    sampler = autoregression(num_steps=7) if finite else autoregression()
    options = {"batch": 2} if finite else {"warmup": 20, "chunk": 10}
    rule = gs.Until(ess=1e9, rhat=None, minimum=30) if place == "a look" else None
    run = {"store": tmp_path / "run.zarr", **options}
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="interrupted after"):
        if place == "a look":
            patch.setattr(gs.Until, "met", interrupting(gs.Until.met, 1))
        elif "warm-up" in place:
            patch.setitem(lanes.advance, "full", interrupting(lanes.advance["full"], 1))
        else:
            patch.setattr(loops, "BLOCK_SECONDS", 0.0)
            patch.setattr(gs.store.DiskStore, "write", interrupting(gs.store.DiskStore.write, 1))
        cut = gs.sample(KEY, sampler, 90, until=rule, **run)
    saved = gs.store.load_checkpoint(tmp_path / "run.zarr.checkpoint")[1]
    assert int(saved["done"]) == cut.position.shape[1] < 90
    assert int(saved["index"]) == (0 if finite else 20 + cut.position.shape[1])
    again = gs.sample(KEY, sampler, 90, resume=True, **run)
    np.testing.assert_array_equal(again.position[:], gs.sample(KEY, sampler, 90, **options).position)


def test_warm_up_is_saved_as_it_goes(tmp_path, monkeypatch):
    saved, save = [], progress.save_checkpoint
    monkeypatch.setattr(progress, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "save_checkpoint", lambda path, step, tree: saved.append(step) or save(path, step, tree))
    gs.sample(KEY, autoregression(), 5, warmup=40, chunk=10, store=tmp_path / "run.zarr")
    assert saved[0] == 10


def test_adaptation_does_not_go_on_after_an_interrupt(monkeypatch):
    from gensamp.cross_chain import adapt_together

    target = gs.Target.from_log_density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(2))

    def kernel(target, step_size, *, inverse_mass_matrix):
        return gs.mcmc.mala(target, step_size, inverse_mass_matrix=inverse_mass_matrix)

    monkeypatch.setitem(lanes.advance, "full", interrupting(lanes.advance["full"], 0))
    with pytest.raises(KeyboardInterrupt, match="interrupted"):
        adapt_together(KEY, kernel, target, np.zeros((4, 2), np.float32), metric=np.ones(2), most_steps=50)


KILLED = """
    import sys, jax
    sys.path.insert(0, {tests!r})
    import chains_by_hand, gensamp
    sampler = chains_by_hand.{case}()
    gensamp.sample(jax.random.key(0), sampler, {draws}, batch=2, chunk={chunk}, store={store!r}, resume=True)
    print("finished", flush=True)
"""


@pytest.mark.parametrize(("case", "draws", "chunk"), [("slow_nuts", 900, 2), ("slow_diffusion", 12, 50)])
def test_a_killed_run_resumes_to_the_same_bits(case, draws, chunk, tmp_path):
    """kill -9 after the first checkpoint, resume in a new process, compare with a run that nobody killed."""

    def start():
        code = KILLED.format(
            tests=os.path.dirname(__file__), case=case, draws=draws, chunk=chunk, store=str(tmp_path / "run.zarr")
        )
        return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)

    killed = start()
    checkpoint = tmp_path / "run.zarr.checkpoint"
    deadline = time.monotonic() + 200
    while not (checkpoint.exists() and any(entry.name.isdigit() for entry in checkpoint.iterdir())):
        assert killed.poll() is None and time.monotonic() < deadline, "the run ended before its first checkpoint"
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    saved = gs.store.load_checkpoint(checkpoint)
    assert saved is not None and saved[1]["done"] + saved[1]["index"] > 0
    assert saved[1]["done"] < draws, "nothing was left to resume"
    assert "finished" in start().communicate(timeout=240)[0]

    import zarr

    resumed = zarr.open_group(tmp_path / "run.zarr", mode="r")["position"][:]
    whole = gs.sample(KEY, getattr(chains_by_hand, case)(), draws, batch=2, chunk=chunk)
    np.testing.assert_array_equal(resumed, whole.position)


def test_stored_draws_take_little_more_than_their_bytes(tmp_path):
    sampler = autoregression(shape=(32,))
    draws = gs.sample(KEY, sampler, 5_000, store=tmp_path / "run.zarr")
    stored = sum(entry.stat().st_size for entry in tmp_path.rglob("*") if entry.is_file())
    assert stored <= 1.2 * draws.position.nbytes
    np.testing.assert_array_equal(draws.position[:, -3:], gs.sample(KEY, sampler, 5_000).position[:, -3:])


def test_a_finished_run_can_be_made_longer(tmp_path):
    gs.sample(KEY, autoregression(), 30, store=tmp_path / "run.zarr")
    longer = gs.sample(KEY, autoregression(), 50, store=tmp_path / "run.zarr", resume=True)
    np.testing.assert_array_equal(longer.position[:], gs.sample(KEY, autoregression(), 50).position)
    assert longer.ledger.sample.gradients == 4 * 50


def test_a_store_of_another_run_is_refused_and_kept(tmp_path):
    path = tmp_path / "run.zarr"
    first = gs.sample(KEY, autoregression(), 20, store=path).position[:]
    with pytest.raises(FileExistsError, match="already holds a run"):
        gs.sample(KEY, autoregression(), 20, store=path)
    with pytest.raises(ValueError, match="is of another run: its key changed"):
        gs.sample(jax.random.key(1), autoregression(), 20, store=path, resume=True)
    with pytest.raises(ValueError, match="is of another run: its sampler changed"):
        gs.sample(KEY, autoregression(0.6), 20, store=path, resume=True)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "file").write_text("precious")
    with pytest.raises(ValueError, match="holds no run"):
        gs.sample(KEY, autoregression(), 20, store=tmp_path / "else")
    np.testing.assert_array_equal(gs.sample(KEY, autoregression(), 20, store=path, resume=True).position[:], first)


def test_a_finite_run_resumes_only_with_the_conditions_of_the_draws_it_has(tmp_path):
    """Labels repeat(arange(2), 2) are not repeat(arange(2), 1) made longer: that would silently mislabel the stored draws."""
    make, path = Partial(chains_by_hand.two_steps), tmp_path / "run.zarr"
    gs.sample(KEY, make, 2, each=np.float32([0.1, 0.9]), store=path)
    with pytest.raises(ValueError, match="each changed in the 2 rows"):
        gs.sample(KEY, make, 4, each=np.float32([0.1, 0.1, 0.9, 0.9]), store=path, resume=True)
    appended = np.float32([0.1, 0.9, 0.5, 0.5])
    longer = gs.sample(KEY, make, 4, each=appended, store=path, resume=True)
    np.testing.assert_allclose(longer.position[:], gs.sample(KEY, make, 4, each=appended).position, atol=1e-6)


def test_a_store_knows_densities_of_the_same_name_apart(tmp_path):
    def centred(at):
        def log_density(x):
            return -0.5 * jnp.sum((x - at) ** 2)

        return gs.mcmc.mala(gs.Target.from_log_density(log_density, jnp.zeros(2)), step_size=0.3)

    gs.sample(KEY, centred(0.0), 20, store=tmp_path / "run.zarr")
    with pytest.raises(ValueError, match="its sampler changed"):
        gs.sample(KEY, centred(100.0), 30, store=tmp_path / "run.zarr", resume=True)
    assert gs.sample(KEY, centred(0.0), 30, store=tmp_path / "run.zarr", resume=True).position.shape == (4, 30, 2)


def test_a_start_that_fails_leaves_no_store_behind(tmp_path):
    target = gs.Target.from_log_density(lambda x: jnp.sum(jnp.log(x)) - jnp.sum(x), jnp.zeros(2))
    sampler = gs.mcmc.mala(target, step_size=0.1)
    with pytest.raises(ValueError, match="start where"):
        gs.sample(KEY, sampler, 5, initial=-np.ones((2, 2)), store=tmp_path / "run.zarr")
    assert gs.sample(KEY, sampler, 5, initial=np.ones((2, 2)), store=tmp_path / "run.zarr").ending == "finished"


def test_a_run_that_converged_with_its_last_draw_says_so_again(tmp_path):
    run = {"until": gs.Until(ess=10, rhat=None, minimum=100), "store": tmp_path / "run.zarr"}
    assert [gs.sample(KEY, autoregression(), 100, resume=again, **run).ending for again in (False, True)] == ["converged"] * 2


def test_a_resumed_run_that_fails_at_once_raises(tmp_path, monkeypatch):
    def failing(*args, **kwargs):
        raise RuntimeError("the device is gone")

    gs.sample(KEY, autoregression(), 10, store=tmp_path / "run.zarr")
    monkeypatch.setitem(lanes.begin, "full", failing)
    with pytest.raises(RuntimeError, match="the device is gone"):
        gs.sample(KEY, autoregression(), 20, store=tmp_path / "run.zarr", resume=True)


def test_a_converged_run_stays_as_it_is_when_run_again(tmp_path):
    options = {"until": gs.Until(ess=50, rhat=1.1), "store": tmp_path / "run.zarr", "resume": True}
    first = gs.sample(KEY, autoregression(), 5_000, **options)
    again = gs.sample(KEY, autoregression(), 5_000, **options)
    assert first.ending == again.ending == "converged"
    assert first.position.shape == again.position.shape
    with pytest.warns(UserWarning, match="before Until"):
        gs.sample(KEY, autoregression(0.999), 100, until=gs.Until())
