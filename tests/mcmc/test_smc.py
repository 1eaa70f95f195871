"""SMC samplers: costs, resampling, adaptation, the shape of populations, and what they refuse. Laws are in
tests/statistical."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gensamp as gs


def log_shifted(x):
    """N(1, 1) in both coordinates, times e^2 over its normaliser: log Z = 2."""
    return 2.0 - 0.5 * jnp.sum((x - 1) ** 2) - jnp.log(2 * jnp.pi)


TARGET = gs.Target.from_log_density(log_shifted, jnp.zeros(2))
BASE = gs.mcmc.normal_base(TARGET.template, scale=2.0)
PATH = gs.paths.geometric(BASE, TARGET)
LEVELS = jnp.linspace(0, 1, 5)[1:]
FIXED = {"levels": LEVELS, "step_sizes": 0.5, "kernel": gs.mcmc.mala}

draw = jax.jit(gs.draw)


def log_z(log_weight):
    weight = np.asarray(log_weight, float)
    return float(np.log(np.mean(np.exp(weight))))


def relative_spread(log_weight):
    weight = np.asarray(log_weight, float)
    return np.ptp(weight)


def test_costs_of_a_population():
    info = draw(jax.random.key(0), gs.mcmc.smc(PATH, num_particles=10, num_moves=2, **FIXED)).info
    assert (int(info.gradients), int(info.densities)) == (4 * 10 * 3, 4 * 10)
    info = draw(jax.random.key(0), gs.mcmc.waste_free_smc(PATH, num_particles=12, num_ancestors=3, **FIXED)).info
    assert (int(info.gradients), int(info.densities)) == (4 * 3 * 4, 4 * 12)


def test_the_threshold_decides_when_to_resample():
    """Never: weights are those of annealed importance sampling. Always: they are all alike."""
    never, always = (
        draw(jax.random.key(0), gs.mcmc.smc(PATH, num_particles=200, ess_threshold=threshold, **FIXED)) for threshold in (0, 2)
    )
    assert relative_spread(never.log_weight) > 0.1
    assert relative_spread(always.log_weight) < 1e-6
    assert abs(log_z(never.log_weight) - 2) < 0.5 > abs(log_z(always.log_weight) - 2)


@pytest.mark.parametrize("resampling", ["stratified", "residual", "multinomial"])
def test_every_scheme_draws_by_weight(resampling):
    from gensamp.mcmc.smc import ancestors

    log_weight = jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4])) + 7
    keys = jax.random.split(jax.random.key(0), 2_000)
    chosen = jax.vmap(partial(ancestors, gs.Static(resampling), log_weight=log_weight, number=4))(keys)
    np.testing.assert_allclose(np.bincount(np.ravel(chosen)) / 8_000, [0.1, 0.2, 0.3, 0.4], atol=0.02)


def test_a_population_without_any_weight_says_so():
    nowhere = gs.Target.from_log_density(lambda x: jnp.sum(x) * 0 - jnp.inf, jnp.zeros(2))
    path = gs.paths.geometric(BASE, nowhere)
    for sampler in (gs.mcmc.smc(path, num_particles=8, **FIXED), gs.mcmc.adaptive_smc(path, num_particles=8, max_levels=4)):
        drawn = draw(jax.random.key(0), sampler)
        assert bool(drawn.info.diverged)
        assert np.isneginf(drawn.log_weight).all()
        assert np.isfinite(drawn.position).all()


def test_populations_come_out_as_run_and_particle():
    draws = gs.sample(jax.random.key(0), gs.mcmc.smc(PATH, num_particles=16, **FIXED), 3)
    assert draws.position.shape == (3, 16, 2)
    assert draws.log_weight.shape == (3, 16)
    assert draws.info.gradients.shape == (3,)


class TestAdaptive:
    @pytest.fixture(scope="class")
    def reported(self):
        sampler = gs.mcmc.adaptive_smc(PATH, num_particles=512, report=True, max_levels=64)
        return draw(jax.random.key(0), sampler)

    def test_levels_rise_to_the_target_and_steps_meet_their_acceptance(self, reported):
        extra = jax.device_get(reported.info.extra)
        number = int(extra["num_levels"])
        assert 2 <= number < 30
        assert (np.diff(extra["levels"][:number]) > 0).all() and extra["levels"][number - 1] == 1
        assert not reported.info.diverged
        assert abs(log_z(reported.log_weight) - 2) < 0.3
        np.testing.assert_allclose(extra["inverse_mass_matrices"][number - 1], 1.0, atol=0.3)

    def test_cost_grows_by_level(self, reported):
        number = int(reported.info.extra["num_levels"])
        assert int(reported.info.gradients) == 512 * number * 11
        assert int(reported.info.densities) == 512 * number

    def test_what_it_reports_runs_other_samplers(self, reported):
        extra = jax.tree.map(lambda a: a[: int(reported.info.extra["num_levels"])], _rows(reported.info.extra))
        schedule = {"levels": extra["levels"], "step_sizes": extra["step_sizes"]}
        metrics = extra["inverse_mass_matrices"]
        draws = gs.sample(jax.random.key(1), gs.mcmc.ais(PATH, **schedule, inverse_mass_matrices=metrics), 500)
        assert abs(log_z(draws.log_weight) - 2) < 0.2

    def test_wider_bases_take_more_levels(self):
        numbers = []
        for scale in (2.0, 50.0):
            path = gs.paths.geometric(gs.mcmc.normal_base(TARGET.template, scale=scale), TARGET)
            drawn = draw(jax.random.key(0), gs.mcmc.adaptive_smc(path, num_particles=512, report=True, max_levels=64))
            numbers.append(int(drawn.info.extra["num_levels"]))
            assert abs(log_z(drawn.log_weight) - 2) < 0.4
        assert numbers[1] > numbers[0] + 5

    def test_too_few_levels_are_bridged_and_flagged(self):
        path = gs.paths.geometric(gs.mcmc.normal_base(TARGET.template, scale=50.0), TARGET)
        drawn = draw(jax.random.key(0), gs.mcmc.adaptive_smc(path, num_particles=2048, max_levels=2))
        assert bool(drawn.info.diverged)
        assert abs(log_z(drawn.log_weight) - 2) < 1

    @pytest.mark.parametrize("metric", ["dense", "none"])
    def test_metrics(self, metric):
        drawn = draw(jax.random.key(0), gs.mcmc.adaptive_smc(PATH, num_particles=256, metric=metric))
        assert abs(log_z(drawn.log_weight) - 2) < 0.4


class TestTuneLevels:
    @pytest.fixture(scope="class")
    def tuned(self):
        return gs.mcmc.tune_levels(jax.random.key(0), PATH, kernel=gs.mcmc.mala)

    def test_levels_step_sizes_and_metrics(self, tuned):
        assert tuned.levels[-1] == 1 and (np.diff(tuned.levels) > 0).all() and tuned.levels[0] > 0
        assert tuned.step_sizes.shape == tuned.levels.shape and tuned.inverse_mass_matrices.shape == (len(tuned.levels), 2)
        # The last law is N(1, I), the first nearly the base, of variance 4.
        np.testing.assert_allclose(tuned.inverse_mass_matrices[-1], 1, atol=0.3)
        assert (tuned.inverse_mass_matrices[0] > 1.5).all()

    def test_a_finer_schedule_lies_between(self, tuned):
        fine = gs.mcmc.tune_levels(
            jax.random.key(0), PATH, kernel=gs.mcmc.mala, num_levels=3 * len(tuned.levels) + 1, from_base=True
        )
        assert fine.levels[0] == 0
        np.testing.assert_allclose(fine.levels[3::3], tuned.levels)
        draws = gs.sample(jax.random.key(1), gs.mcmc.ais(PATH, kernel=gs.mcmc.mala, **fine.arguments), 400)
        assert abs(log_z(draws.log_weight) - 2) < 0.2

    def test_the_bill_is_that_of_the_pilot(self, tuned):
        assert tuned.bill.gradients == 512 * len(tuned.levels) * 2
        assert tuned.bill.wall_seconds >= tuned.bill.compile_seconds >= 0

    def test_what_cannot_be_is_refused(self):
        with pytest.raises(ValueError, match="num_levels 1; expected an integer of at least 2"):
            gs.mcmc.tune_levels(jax.random.key(0), PATH, num_levels=1, from_base=True)


def _rows(extra):
    return {name: value for name, value in extra.items() if name != "num_levels"}


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (gs.mcmc.smc, {"num_particles": 1}, "smc got num_particles 1; expected an integer of at least 2"),
        (gs.mcmc.smc, {"num_moves": 0}, "num_moves 0; expected an integer of at least 1"),
        (gs.mcmc.smc, {"resampling": "even"}, "resampling 'even'; expected one of systematic, stratified, residual, multin"),
        (gs.mcmc.smc, {"levels": jnp.ones(0)}, "expected \\[levels\\], at least one"),
        (gs.mcmc.smc, {"path": dataclasses.replace(PATH, log_density=None)}, "smc weighs by the path's log_density"),
        (gs.mcmc.waste_free_smc, {"num_ancestors": 5}, "num_ancestors 5 for 8 particles; expected a divisor below it"),
        (gs.mcmc.waste_free_smc, {"num_ancestors": 8}, "at least two states"),
    ],
)
def test_what_cannot_work_is_refused(make, change, message):
    options = {"path": PATH, "num_particles": 8, **FIXED} | ({"num_ancestors": 2} if make is gs.mcmc.waste_free_smc else {})
    with pytest.raises(ValueError, match=message):
        make(**(options | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_ess": 1.0}, "adaptive_smc got target_ess 1.0; expected a share between 0 and 1"),
        ({"target_acceptance": 0.0}, "target_acceptance 0.0"),
        ({"spread": 0.5}, "spread 0.5; expected a factor of at least 1"),
        ({"metric": "low-rank"}, "metric 'low-rank'; expected 'diagonal', 'dense' or 'none'"),
        ({"num_ancestors": 3}, "num_ancestors 3 for 8 particles"),
        ({"max_levels": 0}, "max_levels 0"),
    ],
)
def test_what_cannot_be_adapted_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        gs.mcmc.adaptive_smc(PATH, **({"num_particles": 8} | change))
