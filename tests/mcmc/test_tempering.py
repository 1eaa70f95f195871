"""Parallel tempering: swaps, costs, round trips, the barrier and the schedule it gives, and what is refused. Its law is in
tests/statistical."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gensamp as gs
from gensamp.mcmc.tempering import exchanged

BASE = gs.mcmc.normal_base(jnp.zeros(2), scale=3.0)
TARGET = gs.targets.mixture([0.3, 0.7], [[-3.0, 0.0], [3.0, 1.0]], [[0.5, 1.0], [1.0, 0.3]])
PATH = gs.paths.geometric(BASE, TARGET)
LEVELS = jnp.array([0.0, 0.05, 0.2, 0.5, 1.0])
FIXED = {"levels": LEVELS, "step_sizes": 0.5, "kernel": gs.mcmc.mala}


@jax.jit(static_argnums=2)
def run(key, sampler, length):
    return gs.chain(key, sampler, length)


@pytest.fixture(scope="module")
def reported():
    """A chain of 400 steps that reports."""
    return run(jax.random.key(0), gs.mcmc.parallel_tempering(PATH, report=True, **FIXED), 400)


def test_costs(reported):
    """Four of five replicas move by one gradient and an init; the geometric path costs one density each."""
    assert (np.asarray(reported.info.gradients) == 8).all() and (np.asarray(reported.info.densities) == 5).all()


def test_a_family_without_formula_costs_three_densities_and_swaps_alike(reported):
    family = dataclasses.replace(PATH, log_density=gs.bind(lambda f, t, x: f(t, x), PATH.log_density))
    other = run(jax.random.key(0), gs.mcmc.parallel_tempering(family, report=True, **FIXED), 400)
    assert (np.asarray(other.info.densities) == 3 * 5 - 2).all()
    np.testing.assert_allclose(other.info.extra["log_ratios"][:5], reported.info.extra["log_ratios"][:5], rtol=1e-3, atol=1e-4)


def test_pairs_exchange_in_turn(reported):
    """Between two steps only the pairs of one parity have exchanged labels: the odd ones after an odd step."""
    labels = np.asarray(reported.info.extra["labels"])
    assert (np.sort(labels, axis=1) == np.arange(5)).all()
    for index in range(1, len(labels)):
        moved = labels[index] != labels[index - 1]
        pairs = [(i, i + 1) for i in range(index % 2, 4, 2)]
        assert all(moved[a] == moved[b] for a, b in pairs)
        assert not any(moved[i] for i in range(5) if i not in np.ravel(pairs))


def test_reversible_swaps_take_either_turn():
    sampler = gs.mcmc.parallel_tempering(PATH, report=True, swap="reversible", **FIXED)
    labels = np.asarray(run(jax.random.key(0), sampler, 200).info.extra["labels"])
    even = (labels[1:, 0] != labels[:-1, 0]).mean()
    odd = (labels[1:, 1] != labels[:-1, 1]) & (labels[1:, 0] == labels[:-1, 0])
    assert 0.2 < even < 0.5 and odd.mean() > 0.1
    both = ((labels[1:] != labels[:-1]).sum(1) > 0).astype(int)
    assert (np.diff(both.cumsum()) <= 1).all()


def test_exchanges_are_made_of_pairs():
    np.testing.assert_array_equal(exchanged(jnp.array([True, False, False, True])), [1, 0, 2, 4, 3])


def test_rejections_are_those_of_the_log_ratios(reported):
    extra = jax.device_get(reported.info.extra)
    expected = 1 - np.minimum(1, np.exp(extra["log_ratios"].sum(2)))
    np.testing.assert_allclose(extra["rejections"], expected, atol=1e-5)
    assert (extra["acceptances"][:, 0] == 1).all()


def test_round_trips_are_counted_from_base_to_target_and_back():
    one = [[0, 1, 2], [1, 0, 2], [1, 2, 0], [2, 1, 0], [2, 0, 1], [0, 2, 1], [0, 1, 2], [1, 0, 2], [1, 2, 0]]
    # Replicas 0 and 1 go from the base to the target and come back. The way of 0 back up is half a trip, as is that of 2 down.
    assert gs.mcmc.round_trips(np.array(one)) == 2
    assert gs.mcmc.round_trips(np.array(one)[:5]) == 0


def test_nonreversible_swaps_make_more_round_trips():
    levels = jnp.linspace(0, 1, 12) ** 2
    trips = [
        gs.mcmc.round_trips(
            run(
                jax.random.key(1),
                gs.mcmc.parallel_tempering(PATH, levels=levels, step_sizes=0.5, kernel=gs.mcmc.mala, swap=swap, report=True),
                1500,
            ).info.extra["labels"]
        )
        for swap in ("nonreversible", "reversible")
    ]
    assert trips[0] > 1.5 * trips[1] > 0


def test_a_tempered_path_keeps_its_first_replica():
    """Its base is no member of the family, so the replica at t = 0 moves like any other."""
    path = gs.paths.tempered(TARGET, BASE, smallest=0.05)
    drawn = run(jax.random.key(0), gs.mcmc.parallel_tempering(path, **FIXED), 3)
    assert (np.asarray(drawn.info.gradients) == 10).all()


class TestBarrier:
    barrier = gs.mcmc.communication_barrier([0.0, 0.1, 0.4, 1.0], [[0.3, 0.2, 0.1], [0.5, 0.2, 0.1]])

    def test_total_and_rate(self):
        np.testing.assert_allclose(self.barrier.total, 0.7)
        np.testing.assert_allclose(self.barrier.best_rate, 1 / 3.4)
        np.testing.assert_allclose(self.barrier.at(self.barrier.levels), [0, 0.4, 0.6, 0.7], atol=1e-12)

    def test_the_local_barrier_integrates_to_it(self):
        t = np.linspace(0, 1, 2001)
        local = self.barrier.local(t)
        assert (local >= -1e-12).all()
        np.testing.assert_allclose(np.trapezoid(local, t), 0.7, rtol=1e-3)

    def test_schedules_have_equal_increments(self):
        levels = self.barrier.schedule(8)
        assert levels[0] == 0 and levels[-1] == 1 and (np.diff(levels) > 0).all()
        np.testing.assert_allclose(np.diff(self.barrier.at(levels)), 0.1, atol=1e-6)

    @pytest.mark.parametrize(
        ("levels", "rejections", "message"),
        [
            ([0.0, 1.0], [0.1, 0.2], "expected rising levels"),
            ([0.0, 1.0, 0.5], [0.1, 0.2], "expected rising levels"),
            ([0.0, 0.5, 1.0], [0.1, 1.2], "expected rates in \\[0, 1\\]"),
        ],
    )
    def test_what_is_no_barrier_is_refused(self, levels, rejections, message):
        with pytest.raises(ValueError, match=message):
            gs.mcmc.communication_barrier(levels, rejections)


class TestSchedule:
    @pytest.fixture(scope="class")
    def tuned(self):
        return gs.mcmc.tune_schedule(jax.random.key(0), PATH, kernel=gs.mcmc.mala, num_replicas=6, num_rounds=5)

    def test_rejections_become_equal(self, tuned):
        assert tuned.rejections.max() - tuned.rejections.min() < 0.15
        np.testing.assert_allclose(tuned.rejections.sum(), tuned.barrier.total, rtol=1e-6)

    def test_step_sizes_follow_the_acceptance(self, tuned):
        assert (abs(tuned.acceptances[1:] - 0.8) < 0.15).all()
        assert (np.diff(tuned.levels) > 0).all()

    def test_the_round_trip_rate_is_near_and_below_its_bound(self, tuned):
        assert 0.3 * tuned.barrier.best_rate < tuned.round_trip_rate < 1.1 * tuned.barrier.best_rate

    def test_the_bill_counts_pilot_and_rounds(self, tuned):
        rounds = 50 * (2**5 - 1)
        assert tuned.bill.gradients > rounds * 2 * 5 and tuned.bill.densities > rounds * 6
        assert (tuned.bill.gradients - rounds * 2 * 5) % (2 * 512) == 0
        assert tuned.bill.wall_seconds > tuned.bill.compile_seconds > 0

    def test_it_runs(self, tuned):
        drawn = run(jax.random.key(3), gs.mcmc.parallel_tempering(PATH, kernel=gs.mcmc.mala, **tuned.arguments), 2000)
        share = float((drawn.position[200:, 0] > 0).mean())
        assert abs(share - 0.7) < 0.15

    @pytest.mark.slow
    def test_the_number_of_replicas_follows_the_barrier(self):
        tuned = gs.mcmc.tune_schedule(jax.random.key(0), PATH, kernel=gs.mcmc.mala)
        assert abs(len(tuned.levels) - (2 * tuned.barrier.total + 1)) <= 3

    def test_a_path_that_leads_nowhere_is_refused(self):
        nowhere = gs.Target.from_log_density(lambda x: jnp.sum(x) * 0 - jnp.inf, jnp.zeros(2))
        with pytest.raises(ValueError, match="found no way along the path"):
            gs.mcmc.tune_schedule(jax.random.key(0), gs.paths.geometric(BASE, nowhere), kernel=gs.mcmc.mala)

    @pytest.mark.parametrize("change", [{"num_rounds": 0}, {"num_replicas": 1}, {"target_acceptance": 1.5}])
    def test_arguments_out_of_range_are_refused(self, change):
        with pytest.raises(ValueError, match=f"tune_schedule got {next(iter(change))}"):
            gs.mcmc.tune_schedule(jax.random.key(0), PATH, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": jnp.linspace(0.1, 1, 5)}, "expected at least two, from exactly 0"),
        ({"levels": jnp.linspace(0, 0.9, 5)}, "end at 1, the target"),
        ({"swap": "even"}, "swap 'even'; expected 'nonreversible' or 'reversible'"),
        ({"num_moves": 0}, "num_moves 0"),
        ({"step_sizes": jnp.ones(3)}, "step_sizes of shape \\[3\\]"),
        ({"path": dataclasses.replace(PATH, log_density=None)}, "this path has none"),
    ],
)
def test_what_cannot_work_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        gs.mcmc.parallel_tempering(**({"path": PATH} | FIXED | change))
