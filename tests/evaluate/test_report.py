"""evaluate: floors that let exact draws pass and a bias fail, the user's space, weights, and draws that are not finite."""

import json
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gensamp.core import Info, Target, Truth
from gensamp.evaluate.distances import Floor
from gensamp.evaluate.judge import Judge
from gensamp.evaluate.report import evaluate

KEYS = range(10)
N = 800


@dataclass(frozen=True)
class Given:
    """What evaluate reads of Draws."""

    position: Any
    info: Info
    log_weight: Any = None


def given(position, chains=False, log_weight=None):
    shape = jax.tree.leaves(position)[0].shape[:2]
    counts = 0 if chains else np.zeros(shape, np.int32)
    return Given(position, Info(counts, counts, counts, np.ones(shape), np.zeros(shape, bool)), log_weight)


def normal_density(x):
    return -0.5 * jnp.sum(x**2)


def normal_exact(key):
    return jax.random.normal(key, (3,))


@pytest.fixture(scope="module")
def target():
    return Target.from_log_density(normal_density, jnp.zeros(3), name="normal", exact=normal_exact)


@pytest.fixture(scope="module")
def judge(target):
    return Judge.of(jax.random.key(0), target, num_draws=N, num_reference=8_192)


def exact_draws(seed, n=N):
    return np.random.default_rng(seed + 1_000).normal(size=(1, n, 3)).astype(np.float32)


def verdicts(target, judge, shift=0.0):
    return [evaluate(given(exact_draws(seed) + np.float32(shift)), target, judge=judge).verdict for seed in KEYS]


def test_exact_draws_are_indistinguishable_and_a_bias_is_not(target, judge):
    assert verdicts(target, judge).count("indistinguishable") >= 9
    assert verdicts(target, judge, shift=0.2).count("distinguishable") >= 9


def test_twin_without_the_floor_condemns_exact_draws(target, judge, monkeypatch):
    """One line changed: the floor left out. A distance is never zero, so every exact sampler would be called wrong."""
    monkeypatch.setattr(Judge, "_floor", lambda self, statistic, n: Floor(0.0, 0.0, 0))
    assert verdicts(target, judge).count("distinguishable") >= 9


def test_twin_with_the_floor_of_another_size_condemns_exact_draws(target, judge, monkeypatch):
    """One line changed: the floor of more draws than are judged, as published tables have it."""
    right = Judge._floor
    monkeypatch.setattr(Judge, "_floor", lambda self, statistic, n: right(self, statistic, N))
    found = [evaluate(given(exact_draws(seed, N // 8)), target, judge=judge).verdict for seed in KEYS]
    assert found.count("distinguishable") >= 9


def test_report_of_independent_draws(target, judge):
    report = evaluate(given(exact_draws(0)), target, judge=judge)
    assert report.chains is None and report.num_draws == report.judged == N and report.source == "exact sampler"
    assert report.equivalent.low < N < report.equivalent.high
    assert abs(report.mean.z) < 4.5 and abs(report.mean.bias) < 0.2
    held = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert held["energy"]["verdict"] == report.energy.verdict and held["energy"]["floor"]["replicates"] == 16


def test_report_of_a_chain(target, judge):
    noise = np.random.default_rng(1).normal(size=(4, 1_500, 3))
    x = noise.copy()
    for i in range(1, 1_500):
        x[:, i] = 0.95 * x[:, i - 1] + np.sqrt(1 - 0.95**2) * noise[:, i]
    report = evaluate(given(x.astype(np.float32), chains=True), target, judge=judge)
    assert report.chains.names == ("x[0]", "x[1]", "x[2]") and report.chains.ess_bulk.max() < 500
    assert report.equivalent.value < 2_000 and report.judged == N
    # An array alone is a chain when it has several, and independent draws when it has one.
    assert evaluate(x.astype(np.float32), target, judge=judge).chains is not None
    assert evaluate(x[:1].astype(np.float32), target, judge=judge).chains is None


def test_weighted_draws(target, judge):
    x = 1.5 * exact_draws(2)
    log_weight = -0.5 * np.sum(x**2, axis=2) * (1 - 1 / 1.5**2)
    report = evaluate(given(x, log_weight=log_weight), target, judge=judge)
    assert report.ess_weights < N
    assert report.energy.value < 0.3 * evaluate(given(x), target, judge=judge).energy.value
    assert report.equivalent.low < report.ess_weights < report.equivalent.high


def test_draws_that_are_not_finite_cost_the_verdict(target, judge):
    x = exact_draws(3)
    x[0, 7, 1] = np.nan
    report = evaluate(given(x), target, judge=judge)
    assert report.nonfinite == 1 and report.verdict == "distinguishable" and np.isfinite(report.energy.value)
    report = evaluate(given(np.full_like(x, np.inf)), target, judge=judge)
    assert report.nonfinite == N and report.energy is None and report.verdict == "distinguishable"
    assert report.notes == (
        "800 of 800 draws are not finite and left out of every statistic",
        "there are no distances, errors or n_eq, which need at least 2 draws that are finite",
    )


def test_a_number_that_is_missing_is_accounted_for_in_a_sentence(target):
    judge = Judge.of(jax.random.key(0), target, num_draws=28, num_reference=100)
    x = np.random.default_rng(7).normal(size=(4, 50, 3)).astype(np.float32)
    assert evaluate(given(x, chains=True), target, judge=judge).notes == ()
    short = evaluate(given(x[:, :7], chains=True), target, judge=judge)
    assert short.chains is None
    assert short.notes == ("there are no ESS and R-hat, which need at least 8 draws per chain, and got 7",)
    stuck = x.copy()
    stuck[2, :, :2] = 1.0
    assert evaluate(given(stuck, chains=True), target, judge=judge).notes == (
        "ESS and R-hat of x[0] and 1 more are NaN, since a chain never moved there",
    )
    x[1, 3, 0] = np.nan
    broken = evaluate(given(x, chains=True), target, judge=judge)
    assert np.isnan(broken.chains.ess_bulk[0]) and np.isfinite(broken.energy.value)
    assert broken.notes == (
        "1 of 200 draws is not finite and left out of every statistic, and ESS and R-hat of the coordinates they touch are NaN",
    )
    assert broken.as_dict()["notes"] == list(broken.notes)


def test_positions_of_another_shape_are_refused(target, judge):
    with pytest.raises(ValueError, match=r"expected \[chain, draw"):
        evaluate(np.zeros((4, 100, 2)), target, judge=judge)


def test_nothing_to_judge_by_is_refused():
    target = Target.from_log_density(normal_density, jnp.zeros(3))
    with pytest.raises(ValueError, match="no exact sampler"):
        evaluate(np.zeros((4, 100, 3)), target)


def log_normal_space(x):
    return {"mu": x[0], "sigma": jnp.exp(x[1]), "both": x[0] + x[1]}


def two_normals(key):
    return jax.random.normal(key, (2,))


def test_reference_draws_by_name_are_compared_in_the_users_space():
    rng = np.random.default_rng(4)
    reference = rng.normal(size=(4_000, 2))
    named = {"mu": reference[:, 0], "sigma": np.exp(reference[:, 1])}
    target = Target.from_log_density(normal_density, jnp.zeros(2), constrain=log_normal_space, truth=Truth(reference=named))
    judge = Judge.of(jax.random.key(0), target, num_draws=500)
    assert judge.names == ("mu", "sigma") and judge.source == "reference draws" and len(judge.reference) == 2_000
    x = rng.normal(size=(1, 500, 2)).astype(np.float32)
    report = evaluate(given(x), target, judge=judge)
    assert report.verdict == "indistinguishable" and report.mean.name in ("mu", "sigma")
    assert evaluate(given(x * 1.3), target, judge=judge).verdict == "distinguishable"


def test_exact_draws_go_through_constrain_and_reference_draws_check_them():
    events = jnp.asarray(np.random.default_rng(5).normal(size=(3_000, 2)), jnp.float32)
    target = Target.from_log_density(
        normal_density, jnp.zeros(2), exact=two_normals, constrain=log_normal_space, truth=Truth(reference=events)
    )
    report = evaluate(given(np.asarray(events[None, :900])), target)
    assert report.source == "exact sampler" and report.mean.name in ("mu", "sigma", "both")
    assert abs(report.reference_mean.z) < 4.5
    bare = replace(target, constrain=None, truth=Truth(reference={"mu": events[:, 0]}), exact=None)
    with pytest.raises(ValueError, match="constrain"):
        Judge.of(jax.random.key(0), bare)


def test_data_judge_data():
    rng = np.random.default_rng(6)
    images = rng.normal(size=(900, 4, 4, 1)).astype(np.float32)
    target = Target.from_data(images[:600], truth=Truth(reference=jnp.asarray(images[600:])))
    judge = Judge.of(jax.random.key(0), target)
    assert judge.source == "held-out data" and judge.num_draws == 200 and len(set(judge.scale)) == 1
    assert (
        evaluate(given(rng.normal(size=(1, 200, 4, 4, 1)).astype(np.float32)), target, judge=judge).verdict
        == "indistinguishable"
    )
