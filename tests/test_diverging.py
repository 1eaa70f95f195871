"""auto where steps diverge: draws that do so too often become warm-up, once, and the run starts again with shorter steps."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gensamp as gs
from gensamp.clock import compile_clock
from gensamp.cross_chain import bold


def scaled():
    return gs.Target.from_log_density(lambda x: -0.5 * jnp.sum((x / jnp.array([1e-3, 1.0, 50.0])) ** 2), jnp.zeros(3))


def log_neck(x):
    """The first coordinate is normal and the logarithm of the others' scale."""
    return -0.5 * x[0] ** 2 - 0.5 * jnp.sum((x[1:] * jnp.exp(-0.7 * x[0])) ** 2) - 0.7 * x[0] * (x.shape[0] - 1)


def test_draws_that_diverge_too_often_become_warm_up(monkeypatch):
    key, target, rule = jax.random.key(0), scaled(), gs.Until(ess=1, rhat=10.0)
    monkeypatch.setattr("gensamp.automatic.bold", lambda acceptance, diverged: False)
    plain = gs.auto(key, target, rule)
    patient, unmet = gs.Until(ess=1e9, minimum=100), "all 120 draws were made"
    with pytest.warns(UserWarning, match=unmet):
        gs.auto(key, target, patient, most_draws=120)
    looks = []
    monkeypatch.setattr("gensamp.automatic.bold", lambda acceptance, diverged: looks.append(acceptance.shape) or True)
    with compile_clock() as clock, pytest.warns(UserWarning, match=unmet):
        again = gs.auto(key, target, patient, most_draws=120)
    assert looks == [(8, 100)], "one run is given away, and no more"
    assert clock.count == 0 and again.position.shape[1] == 120
    assert any("first 100 draws per chain diverged" in note for note in again.notes)
    assert again.ledger.tune.gradients == plain.ledger.tune.gradients + plain.ledger.sample.gradients
    assert again.info.acceptance.mean() > plain.info.acceptance.mean()
    monkeypatch.setattr("gensamp.automatic.bold", lambda *_: signal.raise_signal(signal.SIGINT) is None)
    with pytest.warns(UserWarning, match="interrupted after 100 of"):
        stopped = gs.auto(key, target, patient)
    assert stopped.ending == "interrupted" and stopped.position.shape[1] == 100


@pytest.mark.parametrize(("most", "restarts"), [(256, True), (2, False)])
def test_paths_that_are_cut_anyway_are_not_made_of_shorter_steps(most, restarts, monkeypatch):
    monkeypatch.setattr("gensamp.automatic.MOST_LEAPFROGS", most)
    monkeypatch.setattr("gensamp.automatic.bold", lambda *_: True)
    with pytest.warns(UserWarning, match="all 120 draws were made"):
        draws = gs.auto(jax.random.key(0), scaled(), gs.Until(ess=1e9), most_draws=120)
    assert any("became warm-up" in note for note in draws.notes) == restarts


def test_steps_too_long_for_a_neck_are_met_in_the_draws():
    neck = gs.Target.from_log_density(log_neck, jnp.zeros(6))
    runs = [gs.auto(jax.random.key(seed), neck) for seed in range(8)]
    assert any("became warm-up" in note for run in runs for note in run.notes)
    assert {run.ending for run in runs} == {"converged"}


@pytest.mark.parametrize(
    ("accepted", "divergences", "is_bold"),
    [(0.8, 3, True), (0.8, 2, False), (0.97, 3, False), (np.nan, 3, True)],
)
def test_only_several_divergences_of_long_steps_are_bold(accepted, divergences, is_bold):
    diverged = np.arange(800).reshape(8, 100) < divergences
    assert bold(np.full((8, 100), accepted), diverged) == is_bold
    assert not bold(np.full((8, 1000), accepted), np.arange(8000).reshape(8, 1000) < divergences)
