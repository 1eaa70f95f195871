"""How batches are made: in epochs, in parts, augmented; and what is said when one does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial
from small_models import DATA, KEY, SGD, density, gaussian, same

import gensamp as gs
from gensamp import augment, descent, memory, parallel, training
from gensamp.clock import compile_clock
from gensamp.core import Info, Model, Sampler, bind
from gensamp.fit_checks import check_arguments, check_augment
from gensamp.training import fit

NAMES = {"name": np.arange(100)}


# How often each of 100 names was in a batch is read off the parameters, which gradient ascent raises by one each time.
def init_counted(key, batch):
    return jnp.zeros(100), ()


def loss_counted(params, state, key, batch):
    return -params[batch["name"]].sum(), (state, {"smallest": batch["name"].min().astype(jnp.float32)})


def counted() -> Model:
    return Model(bind(init_counted), bind(loss_counted), sampler=None)


ONE_BY_ONE = optax.sgd(1.0)


def seen_after(num_steps, batch_size):
    """How often each of the 80 names that are not held out was seen, in order, and the smallest name of each batch."""
    fitted = fit(
        KEY,
        counted(),
        NAMES,
        optimizer=ONE_BY_ONE,
        num_steps=num_steps,
        batch_size=batch_size,
        batches="epochs",
        validation=0.2,
    )
    return np.sort(np.asarray(fitted.params)), fitted.history["metrics"]["smallest"]


def test_an_epoch_sees_every_event_once_and_the_next_in_another_order():
    for num_steps in (4, 28):
        times, smallest = seen_after(num_steps, 20)
        # What is held out is in no epoch.
        assert times.tolist() == [0] * 20 + [num_steps / 4] * 80
    assert len({tuple(row) for row in smallest.reshape(7, 4)}) == 7
    # 30 does not divide 80: 20 events of each order are left out, and not the same ones.
    assert seen_after(2, 30)[0].tolist() == [0] * 40 + [1] * 60
    assert (seen_after(40, 30)[0] > 0).sum() == 80


@pytest.mark.slow
def test_drawing_with_replacement_is_no_epoch(monkeypatch):
    # The broken line: rows drawn anew at each step.
    drawn = descent._rows
    monkeypatch.setattr(descent, "_rows", lambda *given: drawn(*given[:-1], given[-1]._replace(epochs=False)))
    jax.clear_caches()
    misses = []
    for seed in range(10):
        key = jax.random.key(seed)
        fitted = fit(key, counted(), NAMES, optimizer=ONE_BY_ONE, num_steps=5, batch_size=20, batches="epochs")
        misses.append((np.asarray(fitted.params) == 0).any())
    jax.clear_caches()
    assert sum(misses) >= 9


def test_epochs_are_the_same_however_they_are_cut_and_after_a_resume(tmp_path, monkeypatch):
    options = {"batch_size": 60, "batches": "epochs", "validation": 0.1, "augment": augment.dequantise(0.5), "accumulate": 2}
    whole = fit(KEY, gaussian(), DATA, optimizer=SGD, num_steps=50, **options)
    monkeypatch.setattr(training, "CHUNK_SECONDS", 0.0)
    cut = fit(KEY, gaussian(), DATA, optimizer=SGD, num_steps=50, **options)
    assert same((whole.params, whole.history["loss"]), (cut.params, cut.history["loss"]))
    store = tmp_path / "fit"
    fit(KEY, gaussian(), DATA, optimizer=SGD, num_steps=19, store=store, **options)
    resumed = fit(KEY, gaussian(), DATA, optimizer=SGD, num_steps=50, store=store, resume=True, **options)
    assert same((whole.params, whole.history["loss"]), (resumed.params, resumed.history["loss"]))
    with pytest.raises(ValueError, match="its accumulation, augmentation, batches differ"):
        fit(KEY, gaussian(), DATA, optimizer=SGD, num_steps=50, store=store, resume=True, batch_size=60, validation=0.1)


def init_regression(key, batch):
    return {"w": jax.random.normal(key, (2, 8)), "v": jnp.zeros(8)}, jnp.int32(0)


def loss_regression(params, state, key, batch):
    error = jnp.tanh(batch @ params["w"]) @ params["v"] - jnp.prod(batch, -1)
    return jnp.square(error).mean(), (state + 1, {"forwards": jnp.int32(len(batch)), "bias": error.mean()})


def regression() -> Model:
    return Model(bind(init_regression), bind(loss_regression), sampler=None, forwards=2)


def test_parts_give_the_gradient_of_the_whole_batch_in_one_program():
    options = {"num_steps": 60, "batch_size": 48, "ema": 0.9, "validation": 0.1}
    whole = fit(KEY, regression(), DATA, **options)
    with compile_clock() as clock:
        parts = fit(KEY, regression(), DATA, accumulate=4, **options)
    assert sum("advance" in name for name in clock.programs) == 1
    compared = [(fitted.params, fitted.ema, fitted.history["loss"]) for fitted in (whole, parts)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), *compared)
    np.testing.assert_allclose(whole.history["metrics"]["bias"], parts.history["metrics"]["bias"], rtol=1e-4, atol=1e-5)
    # A step is a step, whatever its parts: the bill is that of the whole batch, what a model counts itself included.
    assert whole.ledger.fit.forwards == parts.ledger.fit.forwards
    assert (whole.state, parts.state) == (60, 240)
    assert whole.history["validation"] == pytest.approx(parts.history["validation"], rel=1e-4)


@pytest.mark.slow
def test_a_sum_of_parts_in_place_of_their_mean_is_another_gradient(monkeypatch):
    options = {"optimizer": SGD, "num_steps": 20, "batch_size": 48}
    whole = fit(KEY, regression(), DATA, **options)
    right = descent._in_parts

    # The broken line: gradients added up and not averaged.
    def summed(part, carry, key, rows, augmentations, setting):
        state, gradient, row = right(part, carry, key, rows, augmentations, setting)
        return state, jax.tree.map(lambda a: a * setting.parts, gradient), row

    monkeypatch.setattr(descent, "_in_parts", summed)
    jax.clear_caches()
    wrong = fit(KEY, regression(), DATA, accumulate=4, **options)
    jax.clear_caches()
    assert np.abs(whole.history["loss"] - wrong.history["loss"]).max() > 1e-3


@pytest.mark.slow
def test_parts_lie_across_devices_too():
    options = {"num_steps": 30, "batch_size": 48, "accumulate": 3, "batches": "epochs"}
    alone = fit(KEY, regression(), DATA, **options)
    spread = fit(KEY, regression(), DATA, mesh=parallel.mesh(4), **options)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), alone.params, spread.params)
    keys = jax.random.split(KEY, 2)
    seeds = fit(keys, regression(), DATA, **options)
    first = fit(keys[0], regression(), DATA, **options)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, rtol=2e-5, atol=1e-6), seeds.params, first.params)


# The mean of what was trained on, and the largest condition that came with it.
def init_pair(key, batch):
    return jnp.zeros(2), ()


def loss_pair(params, state, key, batch):
    events, conditions = batch[0], batch[1]["near"]
    seen = {"events": jnp.abs(events - conditions).max(), "conditions": jnp.abs(conditions - jnp.round(conditions)).max()}
    return jnp.square(events - params[None]).sum(-1).mean(), (state, seen)


def test_events_are_augmented_and_conditions_and_what_is_held_out_are_not():
    events = np.arange(200.0).reshape(100, 2)
    model = Model(bind(init_pair), bind(loss_pair), sampler=None)
    options = {"optimizer": optax.sgd(0.0), "num_steps": 20, "batch_size": 40, "validation": 0.2}
    data = (events, {"near": events})
    plain = fit(KEY, model, data, **options)
    assert plain.history["metrics"]["events"].max() == 0
    noisy = fit(KEY, model, data, augment=augment.dequantise(0.5), **options)
    moved = noisy.history["metrics"]["events"]
    assert moved.min() > 0.15 and moved.max() <= 0.25 and len(set(moved.tolist())) > 10
    assert noisy.history["metrics"]["conditions"].max() == 0
    assert same(plain.history["validation"], noisy.history["validation"])
    # The same batches, and new amounts are no new program.
    with compile_clock() as clock:
        fit(KEY, model, data, augment=augment.dequantise(0.25), **options)
    assert not any("advance" in name for name in clock.programs)


def wrong_shape(key, event):
    return event[:1]


def fails(key, event):
    raise ValueError("no such axis")


BAD = {
    "parts": ({"accumulate": 3, "batch_size": 64}, ValueError, "accumulate is 3; expected a number of parts that divides"),
    "no parts": ({"accumulate": 0}, ValueError, "accumulate is 0; expected an integer of at least 1"),
    "shape": ({"augment": wrong_shape}, ValueError, r"augment turned an event of \['float32\[2\]'\] into \['float32\[1\]'\]"),
    "error": ({"augment": fails}, ValueError, "augment cannot be applied to an event: no such axis"),
    "mesh": ({"accumulate": 4, "mesh": 4, "batch_size": 24}, ValueError, "24 in 4 parts; expected a multiple of the mesh's 4"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case):
    options, error, message = BAD[case]
    options = options | ({"mesh": parallel.mesh(4)} if "mesh" in options else {})
    model = gaussian()
    with compile_clock() as clock, pytest.raises(error, match=message) as raised:
        fit(KEY, model, DATA, **options)
    assert clock.count == 0 and "\n" not in str(raised.value)


def test_two_parts_that_may_be_events_and_conditions_or_one_event_are_not_augmented():
    with pytest.raises(ValueError, match=r"two parts of float64\[2\] each, which may be .* into a dict, or leave augment out"):
        check_augment(augment.dequantise(0.5), (DATA, DATA))
    for pair in ((DATA, DATA[:, :1]), (DATA, DATA[:, 0] > 0), (DATA, {"near": DATA})):
        assert check_augment(augment.dequantise(0.5), pair) is not None


def test_arguments_of_the_wrong_kind():
    with pytest.raises(TypeError, match=r"augment is 0.5; expected a function \(key, event\) -> event"):
        check_augment(0.5, DATA)
    with pytest.raises(ValueError, match="batches is 'shuffled'; expected one of drawn, epochs"):
        check_arguments(KEY, gaussian(), DATA, None, 10, 16, None, 0.0, None, "shuffled")


def test_a_model_without_data_has_no_batches():
    for name, value in {"accumulate": 2, "batches": "epochs", "augment": augment.flip()}.items():
        with pytest.raises(ValueError, match=f"{name}= .* data, and data is None"):
            fit(KEY, density(), None, **{name: value})


LIMIT = 500_000


def out_of_memory(*args, **keywords):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123456 bytes.")


def test_a_batch_that_is_too_large_names_one_that_fits(monkeypatch):
    model, data = regression(), np.zeros((4096, 2), np.float32)
    measured, whole = {}, memory.fitting_size

    def noted(needs, *given):
        def measure(size):
            measured[size] = needs(size)
            return measured[size]

        return whole(measure, *given)

    class Failing:
        """The program as it is, for a machine of which another one has taken the memory."""

        lower = descent.advance.lower
        __call__ = staticmethod(out_of_memory)

    monkeypatch.setattr(memory, "fitting_size", noted)
    monkeypatch.setattr(descent, "advance", Failing())
    monkeypatch.setattr(memory, "room", lambda device: LIMIT)
    with pytest.raises(MemoryError, match=r"with 3000 events .*Out of memory allocating 123456 bytes\); batch_size=") as raised:
        fit(KEY, model, data, batch_size=3000)
    named = int(str(raised.value).split("batch_size=")[1].split()[0])
    parts = int(str(raised.value).split("accumulate=")[1].split(",")[0])
    assert named >= 1500 and measured[named] <= LIMIT
    assert 3000 % parts == 0 and 3000 // parts <= named
    monkeypatch.setattr(memory, "room", lambda device: 10)
    with pytest.raises(MemoryError, match="no smaller batch fits; take a smaller network"):
        fit(KEY, model, data, batch_size=2)
    # Any other error of the compiled program passes as it is.
    monkeypatch.setattr(
        Failing, "__call__", staticmethod(lambda *a, **k: (_ for _ in ()).throw(jax.errors.JaxRuntimeError("x")))
    )
    with pytest.raises(jax.errors.JaxRuntimeError, match="x"):
        fit(KEY, model, data, batch_size=64)


def test_the_size_that_is_named_is_the_largest_on_the_line():
    asked = []

    def needs(size):
        asked.append(size)
        return 1000 + 10 * size

    assert memory.fitting_size(needs, 1000, 1, 5000) == 400 and len(asked) <= 4
    assert memory.fitting_size(needs, 1000, 32, 5000) == 384
    assert memory.fitting_size(needs, 1000, 1, 900) is None
    # What should have fitted by this count did not: only the half of it is named.
    assert memory.fitting_size(needs, 1000, 1, 10**6) == 500
    assert memory.fitting_size(needs, 1000, 1, None) is None


def start(width, key):
    return jax.random.normal(key, width.shape)


def stand(key, z):
    return z


def heat(key, x, index):
    return jnp.tanh(jnp.outer(x, x)).sum(0) + jax.random.normal(key, x.shape), Info.of()


@pytest.mark.parametrize("num_steps", [3, pytest.param(None, marks=pytest.mark.slow)])
def test_draws_that_are_too_many_name_a_batch_that_fits(num_steps, monkeypatch):
    sampler = Sampler(bind(start, jnp.zeros(64)), bind(stand), bind(heat), Partial(lambda x: x), num_steps=num_steps)
    from gensamp import lanes

    name = "advance" if num_steps is None else "advance_finite"
    program = getattr(lanes, name)["full"]

    class Failing:
        lower = program.lower
        __call__ = staticmethod(out_of_memory)

    monkeypatch.setitem(getattr(lanes, name), "full", Failing())
    monkeypatch.setattr(memory, "room", lambda device: 3_000_000)
    count = {"num_chains": 512} if num_steps is None else {}
    with pytest.raises(MemoryError, match=r"with 512 draws side by side .*; batch=") as raised:
        gs.sample(KEY, sampler, 512, progress=False, **count)
    assert 64 <= int(str(raised.value).split("batch=")[1].split()[0]) < 512
