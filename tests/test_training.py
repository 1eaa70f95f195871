"""fit: what is learned, what is recorded, what it costs, and what it refuses."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_models import DATA, KEY, OPTIONS, SGD, density, gaussian, same, seen

from gensamp import descent, parallel, training
from gensamp.clock import compile_clock
from gensamp.core import Model, bind
from gensamp.fit_checks import check_arguments
from gensamp.training import fit


def test_finds_the_mean_of_the_data():
    fitted = fit(KEY, gaussian(), DATA, optimizer=SGD, num_steps=400, batch_size=100, ema=0.98, validation=0.1)
    found = fitted.ema["mean"] + fitted.ema["offset"]
    # 0.98 averages over about 50 steps of 100 events: what is left is the spread of the mean of the 450 that were trained on.
    assert np.all(np.abs(found - DATA.mean(0)) < 4 * DATA.std(0) / np.sqrt(450))
    assert fitted.ending == "finished" and fitted.message == ""
    history = fitted.history
    assert history["loss"].shape == history["metrics"]["rmse"].shape == (400,)
    assert np.allclose(history["metrics"]["rmse"] ** 2, history["loss"], rtol=1e-5)
    assert history["validation_step"].tolist() == list(range(20, 401, 20))
    assert history["validation"][-1] < 0.5 * history["loss"][0]
    assert fitted.params["mean"].dtype == jnp.float32


def test_compiles_once_for_all_lengths_data_and_keys():
    fit(KEY, gaussian(), DATA, num_steps=30, **OPTIONS)
    other_key, other_data = jax.random.key(5), DATA + 1
    with compile_clock() as clock:
        fit(other_key, gaussian(), other_data, num_steps=3000, **OPTIONS | {"ema": 0.99})
    assert clock.count == 0


def test_the_cut_into_chunks_does_not_matter(monkeypatch):
    whole = fit(KEY, gaussian(), DATA, num_steps=90, **OPTIONS)
    monkeypatch.setattr(training, "CHUNK_SECONDS", 0.0)
    chunks = []
    advance = descent.advance
    monkeypatch.setattr(descent, "advance", lambda *a, **k: chunks.append(a[7] - a[6]) or advance(*a, **k))
    cut = fit(KEY, gaussian(), DATA, num_steps=90, **OPTIONS)
    assert min(chunks) == 1 and len(chunks) > 10
    assert same((whole.params, whole.ema, whole.history), (cut.params, cut.ema, cut.history))


def test_default_rate_warms_up_and_falls_whatever_the_length():
    optimizer = descent.default_optimizer()
    for num_steps in (20, 400):
        params = jnp.zeros(1)
        state, rates = optimizer.init(params), []
        for _ in range(num_steps):
            updates, state = optimizer.update(jnp.ones(1), state, params, num_steps=jnp.float32(num_steps))
            rates.append(-float(updates[0]))  # Adam under a constant gradient moves by its rate
        peak = int(np.argmax(rates))
        assert 0 < rates[0] <= rates[peak] == pytest.approx(1e-3, rel=1e-3)
        assert peak + 1 == num_steps // 20
        assert np.all(np.diff(rates[peak:]) < 0) and rates[-1] < 1e-8


def test_average_is_that_of_the_iterates_without_its_zero_start():
    decay, steps = 0.8, 6
    iterates = [
        fit(KEY, gaussian(), DATA, optimizer=SGD, num_steps=n, batch_size=50).params["mean"] for n in range(1, steps + 1)
    ]
    weights = decay ** np.arange(steps)[::-1]
    expected = (weights[:, None] * np.stack(iterates)).sum(0) / weights.sum()
    fitted = fit(KEY, gaussian(), DATA, optimizer=SGD, num_steps=steps, batch_size=50, ema=decay)
    np.testing.assert_allclose(fitted.ema["mean"], expected, rtol=1e-5)


def test_held_out_events_are_never_trained_on():
    names = {"name": np.arange(100)}
    fitted = fit(KEY, seen(), names, optimizer=SGD, num_steps=300, batch_size=8, validation=0.13)
    untouched = np.flatnonzero(np.asarray(fitted.params) == 0)
    assert len(untouched) == 13 and not np.array_equal(untouched, np.arange(13))
    again = fit(KEY, seen(), names, optimizer=SGD, num_steps=300, batch_size=8, validation=0.13)
    assert same(fitted.params, again.params)
    # 13 events in batches of 8 and 5: the mean is over events, and an untrained name costs nothing.
    assert np.all(fitted.history["validation"] == 0)
    other = fit(jax.random.key(1), seen(), names, optimizer=SGD, num_steps=300, batch_size=8, validation=0.13)
    assert not np.array_equal(untouched, np.flatnonzero(np.asarray(other.params) == 0))


def test_validation_loss_is_the_mean_over_the_held_out_events():
    fitted = fit(KEY, plain(), DATA, optimizer=SGD, num_steps=1, batch_size=64, validation=0.3)
    order = np.asarray(descent.begin(plain(), jnp.asarray(DATA), KEY, setting=fitted_setting(150))[1])
    expected = np.square(DATA[order[:150]] - np.asarray(fitted.params)).sum(-1).mean()
    np.testing.assert_allclose(fitted.history["validation"], [expected], rtol=1e-5)


def init_plain(key, batch):
    return batch.mean(0), ()


def loss_plain(params, state, key, batch):
    return jnp.square(batch - params[None]).sum(-1).mean(), (state, {})


def plain() -> Model:
    return Model(bind(init_plain), bind(loss_plain), sampler=None)


def fitted_setting(held_out):
    return descent.Setting(SGD, 64, held_out, False, False, None)


def test_init_sees_all_events_but_those_held_out():
    fitted = fit(KEY, plain(), DATA, optimizer=optax.sgd(0.0), num_steps=1, validation=0.2)
    order = np.asarray(descent.begin(plain(), jnp.asarray(DATA), KEY, setting=fitted_setting(100))[1])
    np.testing.assert_allclose(fitted.params, DATA[order[100:]].mean(0), rtol=1e-5)


def test_many_seeds_are_each_as_alone():
    keys = jax.random.split(KEY, 3)
    together = fit(keys, gaussian(), DATA, num_steps=50, **OPTIONS)
    assert together.params["mean"].shape == (3, 2) and together.history["loss"].shape == (3, 50)
    assert together.history["validation"].shape == (3, 17) and together.history["validation_step"].shape == (17,)
    for seed, key in enumerate(keys):
        alone = fit(key, gaussian(), DATA, num_steps=50, **OPTIONS)
        mine = jax.tree.map(operator.itemgetter(seed), (together.params, together.ema, together.history["loss"]))
        yours = (alone.params, alone.ema, alone.history["loss"])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), mine, yours)
    assert together.ledger.fit.forwards == 3 * alone.ledger.fit.forwards


def test_the_bill():
    fitted = fit(KEY, seen(), {"name": np.arange(100)}, num_steps=10, batch_size=8, validation=0.2)
    bill = fitted.ledger.fit
    # 10 steps and 10 validations: 2 forwards per event, and the 3 per step that the model counts itself.
    assert bill.forwards == 10 * 8 * 2 + 10 * 20 * 2 + 10 * 3
    assert bill.gradients == sum(range(10))
    assert fitted.history["metrics"] == {} and fitted.state == 10
    assert 0 < bill.compile_seconds < bill.wall_seconds
    without_data = fit(KEY, density(), None, num_steps=10)
    assert (without_data.ledger.fit.forwards, without_data.ledger.fit.densities) == (50, 70)


def test_a_loss_that_is_not_finite_ends_it_at_the_last_finite_parameters():
    with pytest.warns(UserWarning, match="not finite, first at step 37 of 500"):
        failed = fit(KEY, density(37), None, optimizer=SGD, num_steps=500, ema=0.9)
    good = fit(KEY, density(), None, optimizer=SGD, num_steps=37, ema=0.9)
    assert failed.ending == "failed" and "lower the learning rate" in failed.message
    assert same((failed.params, failed.ema), (good.params, good.ema))
    assert len(failed.history["loss"]) == 38 and np.isnan(failed.history["loss"][-1])
    assert failed.ledger.fit.forwards == 38 * 5


def init_cliff(key, batch):
    return jax.random.bernoulli(key).astype(jnp.float32)[None] + 1, ()


def loss_cliff(params, state, key, batch):
    return jnp.where(params > 1.5, -jnp.log(params - 1.9999), params).sum(), (state, {})


def test_a_seed_that_fails_does_not_stop_the_others():
    keys = jax.random.split(KEY, 6)
    model = Model(bind(init_cliff), bind(loss_cliff), sampler=None)
    with pytest.warns(UserWarning, match="seeds .* of 6 met a loss or gradient"):
        fitted = fit(keys, model, None, optimizer=optax.sgd(-1e-5), num_steps=100)
    loss = fitted.history["loss"]
    failed = np.isnan(loss[:, -1])
    assert failed.any() and not failed.all() and fitted.ending == "failed"
    assert np.isfinite(np.asarray(fitted.params)).all() and np.isfinite(loss[~failed]).all()


def test_a_batch_spread_over_devices_learns_the_same():
    options = OPTIONS | {"num_steps": 60}
    alone = fit(KEY, gaussian(), DATA, **options)
    spread = fit(KEY, gaussian(), DATA, mesh=parallel.mesh(4), **options)
    compared = [(fitted.params, fitted.ema, fitted.history) for fitted in (alone, spread)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), *compared)
    with compile_clock() as clock:
        fit(KEY, gaussian(), DATA, mesh=parallel.mesh(4), **options)
    assert clock.count == 0
    setting = descent.Setting(SGD, 64, 0, False, False, parallel.mesh(4))
    data = jnp.asarray(DATA)
    carry, order = descent.begin(gaussian(), data, KEY, setting=setting)
    buffer = {"loss": jnp.zeros(8), "metrics": {"rmse": jnp.zeros(8)}}
    span = (np.int32(0), np.int32(8), np.float32(8), np.float32(0))
    program = descent.advance.lower(gaussian(), data, order, KEY, carry, buffer, *span, setting=setting).compile().as_text()
    assert "f32[16,2]" in program and "all-reduce" in program  # a quarter of the batch each, gradients summed


def test_conditions_ride_along_and_numpy_data_are_taken_as_they_are():
    pairs = (DATA, {"label": np.arange(500) % 3, "weight": DATA[:, 0]})
    model = Model(bind(init_pairs), bind(loss_pairs), sampler=None)
    fitted = fit(KEY, model, pairs, optimizer=optax.sgd(0.3), num_steps=300)
    expected = np.stack([DATA[np.arange(500) % 3 == label].mean(0) for label in range(3)])
    assert np.all(np.abs(fitted.params - expected) < 0.5)


def init_pairs(key, batch):
    return jnp.zeros((3, 2)), ()


def loss_pairs(params, state, key, batch):
    x, condition = batch
    return jnp.square(x - params[condition["label"]]).sum(-1).mean(), (state, {})


def test_progress_is_shown_when_asked_for_and_silent_outside_a_terminal(capsys):
    fit(KEY, gaussian(), DATA, num_steps=20, **OPTIONS)
    assert capsys.readouterr().err == ""
    fit(KEY, gaussian(), DATA, num_steps=20, progress=True, **OPTIONS)
    shown = capsys.readouterr().err
    assert "20/20" in shown and "loss=" in shown


def loss_vector(params, state, key, batch):
    return jnp.square(batch - params[None]).sum(-1), (state, {})


def loss_other_state(params, state, key, batch):
    return params.sum(), (jnp.zeros(3), {})


BAD = {
    "no data": (gaussian, None, {}, ValueError, r"cannot learn from no data \(data=None\)"),
    "batch": (gaussian, DATA, {"batch_size": 501}, ValueError, "batch_size is 501; expected at most the 500 events"),
    "batch of the rest": (gaussian, DATA, {"batch_size": 500, "validation": 0.1}, ValueError, "at most the 450 events"),
    "axes": (
        gaussian,
        (DATA, DATA[:7]),
        {},
        ValueError,
        r"shapes \[\[500, 2\], \[7, 2\]\]; expected arrays that share a leading",
    ),
    "no event": (gaussian, DATA[:0], {}, ValueError, "at least one event"),
    "scalar": (gaussian, np.float32(3), {}, ValueError, "at least one event"),
    "list": (gaussian, [[1.0, 2.0]], {}, TypeError, r"made of \['float'\]; expected NumPy or JAX arrays"),
    "NaN": (gaussian, np.full((200, 2), np.nan), {}, ValueError, "not finite; drop or impute"),
    "event": (gaussian, np.zeros((200, 3)), {}, ValueError, r"cannot learn from events of float32\[3\]: "),
    "steps": (gaussian, DATA, {"num_steps": 0}, ValueError, "num_steps is 0; expected an integer of at least 1"),
    "ema": (gaussian, DATA, {"ema": 1.0}, ValueError, "ema is 1.0; expected a decay between 0 and 1"),
    "validation": (gaussian, DATA, {"validation": 1.5}, ValueError, "validation is 1.5; expected the share"),
    "validation of nothing": (density, None, {"validation": 0.1}, ValueError, "validation= divides data, and data is None"),
    "resume": (gaussian, DATA, {"resume": True}, ValueError, "resume=True needs store="),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_before_compilation(case):
    make, data, options, error, message = BAD[case]
    model = make()
    with compile_clock() as clock, pytest.raises(error, match=message) as raised:
        fit(KEY, model, data, **options)
    assert clock.count == 0 and "\n" not in str(raised.value)


@pytest.mark.parametrize("optimizer", [optax.lbfgs(), optax.chain(optax.clip(1.0), optax.lbfgs())])
def test_an_optimizer_that_searches_along_a_line_is_refused(optimizer):
    with compile_clock() as clock, pytest.raises(TypeError, match="optimizer cannot take a step from the gradient") as raised:
        fit(KEY, gaussian(), DATA, optimizer=optimizer)
    assert clock.count == 0 and "\n" not in str(raised.value) and "value_fn" in str(raised.value)


def test_bad_meshes():
    with pytest.raises(ValueError, match="expected a multiple of the mesh's 3 devices"):
        fit(KEY, gaussian(), DATA, mesh=parallel.mesh(3), batch_size=64)
    with pytest.raises(ValueError, match="mesh= divides data, and data is None"):
        fit(KEY, density(), None, mesh=parallel.mesh(2))
    other = jax.sharding.Mesh(np.asarray(jax.devices()[:2]), ("rows",))
    with pytest.raises(ValueError, match=r"mesh has axes \('rows',\)"):
        fit(KEY, gaussian(), DATA, mesh=other)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"key": jax.random.PRNGKey(0)}, TypeError, "expected one typed key"),
        ({"key": 0}, TypeError, "expected one typed key"),
        ({"key": jax.random.split(KEY, (2, 2))}, TypeError, r"key has shape \[2, 2\]"),
        ({"key": jax.random.split(KEY, 3)[:0]}, ValueError, "non-empty array of keys"),
        ({"model": "ddpm"}, TypeError, "fit got str as its model"),
        ({"optimizer": 1e-3}, TypeError, "optimizer is 0.001; expected an optax transformation"),
        ({"num_steps": 10.0}, ValueError, "num_steps is 10.0"),
        ({"mesh": 2}, ValueError, "mesh is 2; expected a mesh"),
        ({"validation": "0.1"}, ValueError, "validation is '0.1'; expected the share"),
        ({"validation": None}, ValueError, "validation is None; expected the share"),
        ({"ema": np.float32(1.5)}, ValueError, "expected a decay between 0 and 1"),
        ({"data": np.full((20, 2), 1e300)}, ValueError, "beyond the range of float32"),
        ({"data": np.ones((20, 2), complex)}, TypeError, "dtype complex128; expected real numbers"),
        ({"data": np.full((20, 2), "a")}, TypeError, "dtype <U1; expected real numbers"),
        ({"data": [[1.0, 2.0]] * 20}, TypeError, "convert lists by np.asarray"),
    ],
)  # fmt: skip
def test_arguments_of_the_wrong_kind(changed, error, message):
    arguments = {"key": KEY, "model": gaussian(), "data": DATA, "optimizer": None, "num_steps": 10, "batch_size": 16}
    arguments |= {"ema": None, "validation": 0.0, "mesh": None} | changed
    with pytest.raises(error, match=message):
        check_arguments(**arguments)


def test_a_decay_of_any_floating_type_is_one():
    assert check_arguments(KEY, gaussian(), DATA, None, 10, 16, np.float32(0.9), 0, None).averaging


def test_a_model_whose_loss_is_no_number_or_changes_its_state():
    with pytest.raises(TypeError, match="expected a scalar loss and a dict of scalars"):
        fit(KEY, Model(bind(init_plain), bind(loss_vector), sampler=None), DATA)
    with pytest.raises(TypeError, match="expected the same shapes and dtypes"):
        fit(KEY, Model(bind(init_plain), bind(loss_other_state), sampler=None), DATA)


def test_events_of_another_shape_are_refused():
    """[n, 1] broadcasts to [n, 2]: without a check the fit would finish, and be wrong."""
    from gensamp import nets, noise, pushforward

    template = jnp.zeros(2)
    models = [
        pushforward.realnvp(template), pushforward.vae(template, latent_dim=2),
        pushforward.ddpm(nets.mlp(template), noise.cosine(), template=template),
    ]  # fmt: skip
    for model in models:
        with pytest.raises(ValueError, match=r"events of shapes \[\[1\]\]; expected \[\[2\]\]"):
            fit(KEY, model, np.zeros((300, 1), np.float32))
