"""Fits that were interrupted, killed, stored and resumed."""

import os
import runpy
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_models import DATA, KEY, OPTIONS, SGD, density, gaussian, same

from gensamp import descent, training
from gensamp.clock import compile_clock
from gensamp.fit_checks import check_arguments, differing, identity
from gensamp.interrupt import interruptible
from gensamp.store import load_checkpoint
from gensamp.training import fit


def interrupting(monkeypatch, calls: int):
    advance, made = descent.advance, []

    def then_interrupt(*args, **keywords):
        made.append(1)
        out = advance(*args, **keywords)
        if len(made) == calls:
            signal.raise_signal(signal.SIGINT)
        return out

    monkeypatch.setattr(descent, "advance", then_interrupt)


def test_interrupt_returns_what_there_is_and_resume_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    options = OPTIONS | {"num_steps": 2000}
    whole = fit(KEY, gaussian(), DATA, **options)
    with monkeypatch.context() as patch:
        interrupting(patch, calls=3)
        with pytest.warns(UserWarning, match="interrupted after"):
            part = fit(KEY, gaussian(), DATA, store=tmp_path / "fit", **options)
    assert part.ending == "interrupted" and 0 < len(part.history["loss"]) < 2000
    assert np.isfinite(np.asarray(part.ema["mean"])).all()
    saved = load_checkpoint(tmp_path / "fit")
    assert saved is not None and saved[0] == len(part.history["loss"])
    with compile_clock() as clock:
        resumed = fit(KEY, gaussian(), DATA, store=tmp_path / "fit", resume=True, **options)
    assert {"begin", "advance", "validate", "averaged"}.isdisjoint(name[4:-1] for name in clock.programs)
    assert same((whole.params, whole.ema, whole.history), (resumed.params, resumed.ema, resumed.history))
    assert resumed.ending == "finished" and resumed.ledger.fit.forwards == whole.ledger.fit.forwards
    assert resumed.ledger.fit.wall_seconds > saved[1]["wall_seconds"] > 0
    finished = fit(KEY, gaussian(), DATA, store=tmp_path / "fit", resume=True, **options)
    assert same((whole.params, whole.history), (finished.params, finished.history))


def test_a_second_interrupt_raises():
    with pytest.raises(KeyboardInterrupt), interruptible() as interrupted:
        signal.raise_signal(signal.SIGINT)
        assert interrupted.is_set()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_own_optimizer_lets_a_finished_fit_be_extended(tmp_path):
    options = {"optimizer": SGD, "batch_size": 16}
    whole = fit(KEY, density(), None, num_steps=60, **options)
    fit(KEY, density(), None, num_steps=25, store=tmp_path / "fit", **options)
    longer = fit(KEY, density(), None, num_steps=60, store=tmp_path / "fit", resume=True, **options)
    assert same((whole.params, whole.history), (longer.params, longer.history))
    assert same(jax.random.key_data(whole.state[1]), jax.random.key_data(longer.state[1]))
    with pytest.raises(ValueError, match="holds 60 steps and num_steps is 25"):
        fit(KEY, density(), None, num_steps=25, store=tmp_path / "fit", resume=True, **options)


@pytest.mark.parametrize(("first", "then"), [(optax.adam(0.1), optax.lion(0.1)), (SGD, optax.adam(0.1))])
def test_a_store_of_another_optimizer_is_refused_before_compilation(tmp_path, first, then):
    options = {"num_steps": 2, "store": tmp_path / "fit"}
    fit(KEY, density(), None, optimizer=first, **options)
    with compile_clock() as clock, pytest.raises(ValueError, match="another fit: its optimizer differs; choose"):
        fit(KEY, density(), None, optimizer=then, resume=True, **options)
    assert clock.count == 0


def test_the_same_optimizer_at_another_rate_is_the_same_fit_and_so_is_one_stored_before_optimizers_were_told_apart():
    params, setting = jnp.zeros(3), check_arguments(KEY, density(), None, SGD, 2, 128, None, 0.0, None)

    def named(optimizer, num_steps=None):
        return identity(KEY, density(), None, None, setting._replace(optimizer=optimizer), None, num_steps, params)

    assert differing(named(optax.adam(0.1)), named(optax.adam(0.2))) == []
    # The same numbers with another meaning.
    assert differing(named(optax.sgd(0.1, momentum=0.9)), named(optax.rmsprop(0.1))) == ["optimizer"]
    before = named(SGD) | {"optimizer": "own"}
    assert differing(before, named(optax.adam(0.1))) == []
    assert differing(before, named(SGD, 2)) == ["number of steps", "optimizer"]


SCRIPT = """
    import os, signal, sys
    import jax, jax.numpy as jnp, numpy as np
    from gensamp import descent, training
    from gensamp.core import Model, bind

    def init(key, batch):
        return {"w": jax.random.normal(key, (2, 4)), "v": jnp.zeros(4)}, ()

    def loss(params, state, key, batch):
        hidden = jnp.tanh(batch @ params["w"]) @ params["v"]
        return jnp.square(hidden - batch.sum(-1) - 0.1 * jax.random.normal(key, hidden.shape)).mean(), (state, {})

    def run(**options):
        data = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
        model = Model(bind(init), bind(loss), sampler=None)
        return training.fit(jax.random.key(3), model, data, num_steps=3000, batch_size=32, ema=0.99, validation=0.1, **options)

    if __name__ == "__main__":
        training.SAVE_SECONDS, training.CHUNK_SECONDS = 0.0, 0.0
        advance, calls = descent.advance, []

        def killing(*args, **keywords):
            calls.append(1)
            if len(calls) == 12:
                os.kill(os.getpid(), signal.SIGKILL)
            return advance(*args, **keywords)

        descent.advance = killing
        run(store=sys.argv[1])
"""


def test_killed_and_resumed_gives_the_same_bits(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    here = os.path.dirname(os.path.dirname(os.path.abspath(training.__file__)))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])}
    killed = subprocess.run([sys.executable, script, tmp_path / "fit"], env=environment, capture_output=True, timeout=200)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    run = runpy.run_path(str(script))["run"]
    whole, resumed = run(), run(store=tmp_path / "fit", resume=True)
    assert same((whole.params, whole.ema, whole.history), (resumed.params, resumed.ema, resumed.history))
    assert resumed.ending == "finished"


def test_a_store_that_belongs_to_another_fit_is_refused_before_compilation(tmp_path):
    store = tmp_path / "fit"
    options = OPTIONS | {"num_steps": 10}
    fit(KEY, gaussian(), DATA, store=store, **options)
    other_key, other_model = jax.random.key(9), density()
    with compile_clock() as clock:
        with pytest.raises(FileExistsError, match="pass resume=True"):
            fit(KEY, gaussian(), DATA, store=store, **options)
        with pytest.raises(ValueError, match=r"another fit: its data, key differ"):
            fit(other_key, gaussian(), DATA + 1, store=store, resume=True, **options)
        with pytest.raises(ValueError, match=r"its number of steps differ"):
            fit(KEY, gaussian(), DATA, store=store, resume=True, **options | {"num_steps": 20})
        with pytest.raises(ValueError, match=r"its data, events held out, model differ"):
            fit(KEY, other_model, None, store=store, resume=True, **options | {"validation": 0.0})
    assert clock.count == 0


def test_a_checkpoint_that_cannot_be_written_does_not_cost_the_training(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    whole = fit(KEY, gaussian(), DATA, num_steps=40, batch_size=16)
    monkeypatch.setattr(training, "save_checkpoint", full)
    with pytest.warns(UserWarning, match="No space left"):
        kept = fit(KEY, gaussian(), DATA, num_steps=40, batch_size=16, store=tmp_path / "fit")
    assert kept.ending == "failed" and same((whole.params, whole.history), (kept.params, kept.history))
    assert kept.message.startswith("fit failed after 40 of 40 steps") and "OSError" in kept.message
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    with pytest.warns(UserWarning, match="No space left"):
        early = fit(KEY, gaussian(), DATA, num_steps=400, batch_size=16, store=tmp_path / "early")
    assert early.ending == "failed" and len(early.history["loss"]) == 16 and np.isfinite(early.history["loss"]).all()


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ("", "store is ''; expected the path of a folder"), (3, "store is 3; expected the path"), (True, "store is True"),
        ("a\0b", "where nothing can be written"),
        ("file", "is a file; expected the path of a folder"), ("file/fit", "where nothing can be written"),
        ("run.zarr", "run.zarr holds zarr.json and no fit"), ("others", "others holds letter.txt and no fit"),
    ],
)  # fmt: skip
def test_a_store_that_cannot_be_one_is_refused_before_the_training(store, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("text")
    for folder, name in (("run.zarr", "zarr.json"), ("others", "letter.txt")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text("{}")
    monkeypatch.setattr(descent, "begin", None)
    with pytest.raises((TypeError, ValueError), match=message):
        fit(KEY, gaussian(), DATA, store=store)


def test_orbax_that_is_missing_is_said_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    monkeypatch.setattr(descent, "begin", None)
    with pytest.raises(ImportError, match=r"needs orbax-checkpoint, which is not installed; pip install 'gensamp\[store\]'"):
        fit(KEY, gaussian(), DATA, store=tmp_path / "fit")
