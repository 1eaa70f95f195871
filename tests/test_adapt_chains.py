"""Adaptation of many chains together (ChEES, MEADS), metrics of low rank, and starts from a normal approximation."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

import gensamp as gs
from gensamp import adapt_chees, adapt_meads, adapt_windows
from gensamp.adapt_metric import METRICS, learner
from gensamp.adapt_starts import _laws, start_chains
from gensamp.testing import Tally, check_law, instrument

SIZE = 10
SCALES = np.logspace(-1, 1.5, SIZE)
KERNELS = {"chees": gs.mcmc.dynamic_hmc, "meads": gs.mcmc.ghmc}
STEPS = {"chees": 500, "meads": 1000}
SMALL = {"num_chains": 8, "num_steps": 20, "progress": False}


def log_normal(precision, x):
    return -0.5 * x @ precision @ x


def normal(covariance, name="normal"):
    density = gs.bind(log_normal, jnp.asarray(np.linalg.inv(covariance), jnp.float32))
    zero = np.zeros(len(covariance), np.float32)
    truth = gs.Truth(mean=(zero, zero), variance=(np.diag(covariance).astype(np.float32), zero))
    return gs.Target.from_log_density(density, jnp.zeros(len(covariance)), name=name, truth=truth)


def pairs(correlation):
    """Unit variances, neighbours two by two correlated."""
    return np.kron(np.eye(SIZE // 2), [[1.0, correlation], [correlation, 1.0]])


def whitened(covariance, matrix):
    """Eigenvalues of a covariance in the coordinates of a metric: all 1 if it is that covariance."""
    matrix = np.diag(matrix) if np.ndim(matrix) == 1 else np.asarray(matrix, np.float64)
    return np.linalg.eigvals(np.linalg.solve(matrix, covariance)).real


@pytest.fixture(scope="module", params=["chees", "meads"])
def tuned(request):
    method = request.param
    kernel, target = KERNELS[method], normal(np.diag(SCALES**2))
    return method, target, gs.tune(jax.random.key(0), kernel, target, method=method, num_steps=STEPS[method], progress=False)


def test_the_tuned_sampler_draws_from_the_target(tuned):
    method, target, found = tuned
    np.testing.assert_allclose(np.sqrt(found.inverse_mass_matrix), SCALES, rtol=0.2)
    steps = {"chees": 100, "meads": 800}[method]
    draws = gs.sample(jax.random.key(1), found.sampler, steps, initial=found.initial, progress=False)
    assert draws.position.shape == (64, steps, SIZE)
    assert check_law(draws.position, target).verdict == "passed"
    np.testing.assert_allclose(draws.info.acceptance.mean(), found.acceptance.mean(), atol=0.03)


def test_the_sampler_is_made_of_what_was_found(tuned):
    method, target, found = tuned
    assert set(found.settings) == {"chees": {"trajectory_length"}, "meads": {"alpha", "delta"}}[method]
    again = KERNELS[method](target, found.step_size, inverse_mass_matrix=found.inverse_mass_matrix, **found.settings)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(again), jax.tree.leaves(found.sampler))


def test_tuning_again_compiles_nothing(tuned, caplog):
    """Other numbers and another name: the same program, in both stages."""
    method, _, _ = tuned
    options = {"chees": {"target_acceptance": 0.8, "step_size": 0.2}, "meads": {}}[method]
    other = normal(np.diag(SCALES), name="other")
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        gs.tune(jax.random.key(3), KERNELS[method], other, method=method, num_steps=STEPS[method], progress=False, **options)
    messages = [record.getMessage() for record in caplog.records]
    assert [m for m in messages if "Compiling jit(advance)" in m or "Compiling jit(begin)" in m] == []


def test_chees_finds_the_best_length_of_a_normal_law():
    """Where steps are short, E sin^2(u T) of a law of scale 1 is greatest at tan 2 T = 2 T."""
    best = brentq(lambda t: np.sin(2 * t) - 2 * t * np.cos(2 * t), 2.0, 2.5)
    target = normal(np.eye(SIZE))
    tune = {"method": "chees", "num_steps": 500, "progress": False, "target_acceptance": 0.98}
    lengths = [
        float(gs.tune(jax.random.key(k), gs.mcmc.dynamic_hmc, target, **tune).settings["trajectory_length"]) for k in range(3)
    ]
    assert best == pytest.approx(2.2467, abs=1e-3)
    np.testing.assert_allclose(lengths, best, rtol=0.2)


def backwards(target, step_size, **options):
    """dynamic_hmc with one line changed: the velocity at the end of a path is that of the path turned round."""
    sampler = gs.mcmc.dynamic_hmc(target, step_size, **options)
    step = gs.bind(turned_step, sampler.step) if options.get("report_path") else sampler.step
    return gs.Sampler(start=sampler.start, init=sampler.init, step=step, position=sampler.position)


def turned_step(step, key, state, index):
    state, info = step(key, state, index)
    info.extra["velocity"] = jax.tree.map(jnp.negative, info.extra["velocity"])
    return state, info


@pytest.mark.slow
def test_chees_with_the_velocity_turned_round_runs_away_from_the_best_length():
    tuned = gs.tune(jax.random.key(0), backwards, normal(np.eye(SIZE)), method="chees", target_acceptance=0.98, progress=False)
    assert tuned.settings["trajectory_length"] < 0.5


def test_a_path_of_chees_is_longer_where_variances_cannot_mend_the_metric():
    correlation = 0.95
    tuned = gs.tune(
        jax.random.key(0), gs.mcmc.dynamic_hmc, normal(pairs(correlation)), method="chees", num_steps=500, progress=False
    )
    length = tuned.settings["trajectory_length"] / np.sqrt(1 + correlation)
    # Steps of this size shift the best length a little: the path is rounded up to whole steps.
    assert 1.5 < length < 3


def test_meads_reads_step_and_damping_off_the_eigenvalues():
    """Known in closed form: tr S^2 / tr S of the gradients' and of the positions' second moments, in units of variances."""
    correlation = 0.9
    forces, places = np.array([1 / (1 - correlation), 1 / (1 + correlation)]), np.array([1 - correlation, 1 + correlation])
    step_size, damping = (factor / np.sqrt((s**2).sum() / s.sum()) for factor, s in ((0.5, forces), (1.0, places)))
    tune = {"method": "meads", "num_steps": STEPS["meads"], "progress": False}
    tuned = gs.tune(jax.random.key(0), gs.mcmc.ghmc, normal(pairs(correlation)), **tune)
    assert tuned.step_size == pytest.approx(step_size, rel=0.1)
    alpha = 1 - np.exp(-2 * step_size * damping)
    assert tuned.settings["alpha"] == pytest.approx(alpha, rel=0.1)
    assert tuned.settings["delta"] == tuned.settings["alpha"] / 2


@pytest.mark.filterwarnings("ignore:tune left out chains")
@pytest.mark.parametrize(
    ("method", "metric"),
    [("chees", "diagonal"), ("windows", "low_rank"), pytest.param("meads", "diagonal", marks=pytest.mark.slow)],
    ids=lambda a: a,
)
def test_bills_are_exact(method, metric):
    """Counted by the density itself, which also serves to stand every chain at its start, once a stage."""
    tally = Tally()
    target = normal(np.eye(2))
    counting, _ = instrument(target, tally, log_density=target.log_density)
    kernel = KERNELS.get(method, gs.mcmc.mala)
    bill = gs.tune(jax.random.key(0), kernel, counting, method=method, metric=metric, **SMALL).ledger.tune
    counts = tally.take()
    assert counts["densities"] == counts["forwards"] == bill.densities == bill.forwards == 0
    stages = (counts["gradients"] - bill.gradients) / 8
    assert stages in (2, 3, 4, 5)
    if method == "meads":
        assert bill.gradients == 6 * (20 + 50 * (stages - 1))
    if method == "windows":
        teaching = (adapt_windows.windows(20)[:, 0] == adapt_windows.TEACH).sum()
        assert bill.gradients == 8 * (20 + teaching + 50 * (stages - 1))


@pytest.mark.parametrize("how", ["laplace", "pathfinder"])
def test_starts_are_overdispersed_and_billed(how):
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    covariance = directions * np.array([0.01, 0.1, 1, 20]) @ directions.T
    tally = Tally()
    target = normal(covariance)
    counting, _ = instrument(target, tally, log_density=target.log_density)
    positions, metric, bill = start_chains(jax.random.key(0), counting, 32, how=how)
    assert tally.take() == {"gradients": bill.gradients, "densities": 0, "forwards": 0}
    assert bill.wall_seconds > 0
    rows = np.linalg.solve(np.linalg.cholesky(covariance), np.asarray(positions).T).T
    assert np.abs(rows.mean(0)).max() < 2 / np.sqrt(32) * 4
    if how == "laplace":
        np.testing.assert_allclose(rows.std(), 2, rtol=0.25)
        np.testing.assert_allclose(whitened(covariance, metric), 1, rtol=0.02)
    else:
        assert 1.4 < rows.std() < 4
        assert (whitened(covariance, metric) > 0.02).all() and (whitened(covariance, metric) < 50).all()


def test_the_law_of_a_pathfinder_point_looks_downhill():
    """On a law of unit scale one pair of points knows the curvature, and the mean is the mode, wherever the point."""
    positions = np.repeat(np.array([[[10.0, -9.0]]]), 21, 1)
    positions[0, -1] = [6.0, -5.4]
    law = _laws(jax.random.split(jax.random.key(0), 1), positions, 3.0 - positions)
    along = np.array([10.0, -9.0]) / np.hypot(10, 9)
    np.testing.assert_allclose(law.mean[0, -1] @ along, np.array([3.0, 3.0]) @ along, atol=1e-6)
    assert law.mean.dtype == np.float64


@pytest.mark.slow
@pytest.mark.parametrize("starts", ["laplace", "pathfinder"])
def test_tune_begins_with_the_approximation(starts):
    """Scales 4 orders of magnitude apart, in a tenth of the steps."""
    target = normal(np.diag(np.logspace(-4, 4, SIZE)))
    tuned = gs.tune(
        jax.random.key(0), gs.mcmc.nuts, target, starts=starts, num_steps=100, num_chains=8, metric="dense", progress=False
    )
    draws = gs.sample(jax.random.key(1), tuned.sampler, 200, initial=tuned.initial, progress=False)
    assert check_law(draws.position, target).verdict == "passed"


class TestMetrics:
    """Sixty draws in a hundred dimensions, of variances that differ and three strong directions besides."""

    @pytest.fixture(scope="class")
    def found(self):
        rng = np.random.default_rng(0)
        scales, directions = np.logspace(-1, 1, 100), np.linalg.qr(rng.standard_normal((100, 3)))[0]
        inner = np.eye(100) + directions * np.array([99.0, 29.0, -0.98]) @ directions.T
        covariance = scales[:, None] * inner * scales
        draws = rng.multivariate_normal(np.zeros(100), covariance, 60)
        rows = [jnp.asarray(a, jnp.float32) for a in (draws, -draws @ np.linalg.inv(covariance))]

        def condition(metric):
            rule = learner(metric)
            state = rule.init(jnp.eye(100) if rule.dense else jnp.ones(100))
            values = whitened(
                covariance, jax.jit(lambda s, r: rule.renew(rule.observe(s, *r)))(state, rows).inverse_mass_matrix
            )
            return values.max() / values.min()

        return {metric: condition(metric) for metric in METRICS}

    def test_low_rank_needs_fewer_draws_than_dimensions(self, found):
        assert found["low_rank"] < 40
        assert found["diagonal"] > 50 * found["low_rank"] and found["dense"] > 50 * found["low_rank"]


@pytest.mark.parametrize("method", KERNELS)
def test_adaptation_can_be_put_where_it_stood(method):
    target = normal(np.eye(2))
    sampler = adaptation(method, target, schedule=adapt_windows.windows(20))
    assert sampler.traits.population == 8
    draws = gs.chain(jax.random.key(0), sampler, 20)
    last = jax.tree.map(lambda a: a[-1], draws.position)
    assert {len(a) for a in jax.tree.leaves(last)} == {8}
    again = sampler.position(sampler.init(jax.random.key(1), last))
    for name in last.keys() - {"acceptance", "moved", "diverged"}:
        np.testing.assert_allclose(again[name], last[name], rtol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("method", ["windows", *KERNELS])
def test_dtypes_follow_the_target(method, metric):
    for dtype in (jnp.float32, jnp.float64):
        with jax.enable_x64(dtype == jnp.float64):
            target = gs.Target.from_log_density(bowl, jnp.zeros(2, dtype))
            sampler = adaptation(method, target, schedule=adapt_windows.windows(20), metric=metric)
            draws = jax.eval_shape(lambda sampler=sampler: gs.chain(jax.random.key(0), sampler, 3))
            assert {a.dtype for a in jax.tree.leaves(draws.position)} == {jnp.dtype(dtype)}


def adaptation(method, target, **options):
    if method == "windows":
        return adapt_windows.adaptation(gs.mcmc.mala, target, **options)
    module = {"chees": adapt_chees, "meads": adapt_meads}[method]
    return module.adaptation(KERNELS[method], target, num_chains=8, **options)


def bowl(x):
    return -0.5 * jnp.sum(x**2)


def anything(target, step_size, **options):
    """A kernel that takes every keyword and is none of those that chees and meads tune."""
    return gs.mcmc.nuts(target, step_size, inverse_mass_matrix=options.get("inverse_mass_matrix"))


@pytest.mark.parametrize(
    ("kernel", "options", "message"),
    [
        (gs.mcmc.nuts, {"method": "chees"}, "nuts takes no trajectory_length and no report_path; pass gs.mcmc.dynamic_hmc"),
        (gs.mcmc.dynamic_hmc, {"method": "meads"}, "dynamic_hmc takes no alpha and no delta; pass gs.mcmc.ghmc"),
        (gs.mcmc.nuts, {"method": "newton"}, "method is 'newton'; expected one of 'windows', 'chees', 'meads'"),
        (gs.mcmc.ghmc, {"method": "meads", "target_acceptance": 0.8}, "leave target_acceptance out"),
        (gs.mcmc.ghmc, {"method": "meads", "num_chains": 10}, "10; method='meads' deals chains into 4 equal folds"),
        (gs.mcmc.dynamic_hmc, {"method": "chees", "num_chains": 4}, "num_chains is 4; expected an integer of at least 8"),
        (gs.mcmc.dynamic_hmc, {"method": "chees", "mesh": object()}, "chains that adapt together stay on one"),
        (gs.mcmc.nuts, {"starts": "mode"}, "starts is 'mode'; expected None, 'laplace' or 'pathfinder'"),
        (anything, {"method": "meads"}, "state is not a GHMCState; expected gs.mcmc.ghmc"),
    ],
)
def test_bad_combinations_are_named_before_anything_is_compiled(kernel, options, message):
    with pytest.raises(ValueError, match=message):
        gs.tune(jax.random.key(0), kernel, normal(np.eye(2)), progress=False, **options)


@pytest.mark.slow
@pytest.mark.parametrize("method", KERNELS)
def test_a_hierarchical_posterior_comes_out_right(method):
    target = gs.targets.eight_schools()
    tuned = gs.tune(jax.random.key(0), KERNELS[method], target, method=method, progress=False)
    steps = {"chees": 200, "meads": 2000}[method]
    draws = gs.sample(jax.random.key(1), tuned.sampler, steps, initial=tuned.initial, progress=False)
    assert check_law(draws.position, target).verdict == "passed"
