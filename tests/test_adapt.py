"""tune: what it finds, what it bills, what it refuses, and how it treats chains that went wrong."""

import dataclasses
import logging
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.adaptation.window_adaptation import build_schedule

import gensamp as gs
from gensamp import runner
from gensamp.adapt_windows import adaptation

ISLAND = -1000.0
SCALES = np.array([0.1, 1.0, 20.0])


def log_gaussian(precision, x):
    return -0.5 * jnp.sum(precision * x["x"] ** 2)


def gaussian(name="gaussian", scales=SCALES):
    density = gs.bind(log_gaussian, jnp.asarray(1 / scales**2, jnp.float32))
    return gs.Target.from_log_density(density, {"x": jnp.zeros(3)}, name=name)


@pytest.fixture(scope="module")
def target():
    return gaussian()


@pytest.fixture(scope="module")
def tuned(target):
    return gs.tune(jax.random.key(0), gs.mcmc.mala, target, num_steps=1000, target_acceptance=0.6, step_size=0.1)


def test_metric_is_the_variance_and_step_size_meets_the_acceptance(tuned, target):
    np.testing.assert_allclose(np.log(tuned.inverse_mass_matrix), np.log(SCALES**2), atol=0.5)
    draws = gs.sample(jax.random.key(1), tuned.sampler, 1000, initial=tuned.initial)
    assert float(draws.info.acceptance.mean()) == pytest.approx(0.6, abs=0.07)
    assert tuned.initial["x"].shape == (4, 3)
    assert tuned.step_size.shape == ()


def test_bill_stands_under_tune_and_is_exact(tuned):
    assert tuned.ledger.tune.gradients == 4 * (1000 + 250)
    assert tuned.ledger.sample == tuned.ledger.fit == gs.Bill()
    assert tuned.ledger.tune.wall_seconds > 0


def test_a_step_that_diverges_somewhere_is_shortened_beyond_what_its_mean_acceptance_asks_for():
    """Banana's arms are narrow, and a mean over where chains are most of the time does not see them."""
    target = gs.targets.banana()
    for seed in range(3):
        tuned = gs.tune(jax.random.key(seed), gs.mcmc.nuts, target, num_steps=500, num_chains=8)
        draws = gs.sample(jax.random.key(10 + seed), tuned.sampler, 500, initial=tuned.initial)
        assert tuned.acceptance.mean() > 0.85
        assert draws.info.diverged.mean() < 0.01


def test_tuning_again_compiles_nothing(target, tuned, caplog):
    """Other numbers, another name and other data of the density: the same program."""
    other = gaussian(name="other", scales=SCALES / 2)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        gs.tune(jax.random.key(3), gs.mcmc.mala, other, num_steps=1000, target_acceptance=0.7, step_size=0.2)
    messages = [record.getMessage() for record in caplog.records]
    assert [m for m in messages if "Compiling jit(advance)" in m or "Compiling jit(begin)" in m] == []


def test_dense_metric_finds_a_correlation():
    covariance = np.array([[1.0, 0.95], [0.95, 1.0]])
    target = gs.Target.from_log_density(gs.bind(_log_correlated, jnp.asarray(np.linalg.inv(covariance))), jnp.zeros(2))
    tuned = gs.tune(jax.random.key(0), gs.mcmc.hmc, target, num_steps=500, metric="dense")
    metric = np.asarray(tuned.inverse_mass_matrix)
    assert metric.shape == (2, 2)
    assert metric[0, 1] / np.sqrt(metric[0, 0] * metric[1, 1]) == pytest.approx(0.95, abs=0.04)


def test_adaptation_is_a_sampler_that_can_be_put_where_it_stood(target):
    sampler = adaptation(gs.mcmc.mala, target, schedule=build_schedule(100))
    draws = gs.chain(jax.random.key(0), sampler, 100)
    assert draws.position["inverse_mass_matrix"].shape == (100, 3)
    last = jax.tree.map(lambda a: a[-1], draws.position)
    again = sampler.position(sampler.init(jax.random.key(1), last))
    for name in ("position", "step_size", "inverse_mass_matrix"):
        jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(again[name]), jax.tree.leaves(last[name]))
    renewed = jnp.any(jnp.diff(draws.position["inverse_mass_matrix"], axis=0) != 0, axis=1)
    assert renewed.sum() == build_schedule(100)[:, 1].sum()


def test_adaptation_works_in_double_precision():
    with jax.enable_x64(True):
        for dtype in (jnp.float32, jnp.float64):
            target = gs.Target.from_log_density(_bowl, jnp.zeros(2, dtype))
            draws = gs.chain(jax.random.key(0), adaptation(gs.mcmc.mala, target, schedule=build_schedule(30)), 30)
            assert {a.dtype for a in jax.tree.leaves(draws.position)} == {jnp.dtype(dtype)}


def test_chains_that_do_not_move_are_left_out_and_named(target):
    """An island of one point: a chain put there rejects everything."""
    half = gs.Target.from_log_density(_half, jnp.zeros(1))
    initial = jnp.array([[1.0], [1.5], [ISLAND], [0.5]])
    with pytest.warns(UserWarning, match=r"left out chains \[2\]"):
        tuned = gs.tune(jax.random.key(0), gs.mcmc.mala, half, num_steps=200, initial=initial)
    assert np.isfinite(tuned.step_size)
    assert tuned.step_size > 0.01
    assert tuned.initial[2] == ISLAND


def test_all_chains_stuck_is_an_error():
    half = gs.Target.from_log_density(_half, jnp.zeros(1))
    with pytest.raises(ValueError, match="every chain stuck"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gs.tune(jax.random.key(0), gs.mcmc.mala, half, num_steps=200, initial=jnp.full((4, 1), ISLAND))


def test_initial_says_how_many_chains(target):
    tuned = gs.tune(jax.random.key(0), gs.mcmc.mala, target, num_steps=20, initial={"x": jnp.ones((2, 3))})
    assert tuned.initial["x"].shape == (2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_acceptance": 1.0}, "between 0 and 1"),
        ({"metric": "full"}, "'diagonal', 'dense' or 'low_rank'"),
        ({"num_chains": 0}, "num_chains is 0"),
        ({"num_steps": 5}, "at least 20"),
        ({"step_size": -1.0}, "positive finite"),
    ],
)
def test_bad_arguments(target, options, message):
    with pytest.raises(ValueError, match=message):
        gs.tune(jax.random.key(0), gs.mcmc.nuts, target, **options)


def test_what_rejects_nothing_cannot_be_tuned(target):
    with pytest.raises(ValueError, match="accepts everything"):
        gs.tune(jax.random.key(0), gs.mcmc.ula, target)


def test_what_has_no_density_is_named():
    with pytest.raises(ValueError, match=r"nuts needs target\.log_density, and target 'points' has none"):
        gs.tune(jax.random.key(0), gs.mcmc.nuts, gs.Target.from_data(jnp.ones((3, 2)), name="points"))


def _bowl(x):
    return -0.5 * jnp.sum(x**2)


def _half(x):
    return jnp.where(x[0] > 0, jnp.log(jnp.abs(x[0])) - x[0], jnp.where(x[0] == ISLAND, 0.0, jnp.nan))


def _log_correlated(precision, x):
    return -0.5 * x @ precision @ x


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"initial": 0.0}, r"initial of shapes \[\]; expected positions"),
        ({"initial": {"a": np.zeros((4, 2))}}, "initial of shapes {'a': .*expected positions"),
        ({"initial": np.zeros((4, 3))}, r"initial of shapes \[4, 3\]"),
        ({"initial": np.zeros((4, 2)), "num_chains": 3}, r"for \[4\] chains and num_chains=3"),
        ({"initial": np.full((4, 2), np.nan)}, "not finite"),
        ({"target_acceptance": "0.8"}, "target_acceptance is '0.8'; expected a probability"),
        ({"make": lambda target, step_size: gs.mcmc.nuts(target, step_size)}, "takes no inverse_mass_matrix"),
    ],
)  # fmt: skip
def test_bad_input_is_named_before_anything_runs(changed, message):
    arguments = {"make": gs.mcmc.nuts, "target": gs.targets.banana()} | changed
    with pytest.raises(ValueError, match=message):
        gs.tune(jax.random.key(0), **arguments)


def test_a_tuning_that_is_interrupted_is_ctrl_c(monkeypatch):
    made = runner.sample

    def interrupted(*args, **keywords):
        ended = {"ending": "interrupted", "interrupted": True, "message": "interrupted after 3 of 20 draws"}
        return dataclasses.replace(made(*args, **keywords), **ended)

    monkeypatch.setattr(runner, "sample", interrupted)
    with pytest.raises(KeyboardInterrupt, match="tune was interrupted after 3"):
        gs.tune(jax.random.key(0), gs.mcmc.mala, gs.targets.banana(), num_steps=20)
