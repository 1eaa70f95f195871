"""Figures the samplers along a path must reach: log Z within the printed error, and the modes that chains do not find.

All from a base that covers the target and from what the tuning finds; only the many-well's population is chosen by its size.
"""

import math

import jax
import numpy as np
import pytest

import gensamp as gs
from gensamp.evaluate import mode_coverage
from gensamp.evaluate.evidence import bridge, log_evidence, stepping_stone, thermodynamic

pytestmark = pytest.mark.slow

MANY_WELL = 164.695675


def sweeps(target, step_size):
    """Slice sampling along the axes, which has no step size: what the funnel's ends of different width ask for."""
    del step_size
    return gs.mcmc.slice_sampling(target, 6.0)


GRADIENTS = {"kernel": gs.mcmc.hmc}
SLICES = {"kernel": sweeps, "adapt_metric": False}

# name: target, scale of the base, its log Z, moves, particles and moves of SMC, levels of AIS per level of its pilot.
CASES = {
    "banana": (gs.targets.banana, 10.0, 0.0, GRADIENTS, (2000, 3), 20),
    "gmm40": (gs.targets.gmm40, 30.0, 0.0, GRADIENTS, (2000, 3), 20),
    "many_well": (gs.targets.many_well, 1.5, MANY_WELL, GRADIENTS, (4000, 5), 30),
    "funnel": (gs.targets.funnel, 5.0, 0.0, SLICES, (1000, 10), 20),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    make, scale, truth, moves, population, refine = CASES[request.param]
    target = make()
    base = gs.mcmc.normal_base(target.template, scale=scale)
    return target, base, gs.paths.geometric(base, target), truth, moves, population, refine


def assert_within(found, truth, most):
    """Off by no more than chance allows, and with an error small enough to say something."""
    assert abs(found.value - truth) < 3 * found.error < 3 * most, str(found)


def kernel_alone(moves):
    return {name: value for name, value in moves.items() if name == "kernel"}


def test_adaptive_smc(case):
    _, _, path, truth, moves, (number, repeats), _ = case
    options = kernel_alone(moves) | ({} if moves is GRADIENTS else {"metric": "none"})
    sampler = gs.mcmc.adaptive_smc(path, num_particles=number, num_moves=repeats, **options)
    assert_within(log_evidence(gs.sample(jax.random.key(0), sampler, 16)), truth, 0.1)


def test_annealed_importance_sampling(case):
    _, _, path, truth, moves, _, refine = case
    pilot = gs.mcmc.tune_levels(jax.random.key(1), path, **moves)
    fine = gs.mcmc.tune_levels(jax.random.key(1), path, num_levels=refine * len(pilot.levels), **moves)
    draws = gs.sample(jax.random.key(2), gs.mcmc.ais(path, **fine.arguments, **kernel_alone(moves)), 1000)
    assert_within(log_evidence(draws), truth, 0.3)


def test_tempering(case):
    _, _, path, truth, moves, _, _ = case
    tuned = gs.mcmc.tune_schedule(jax.random.key(3), path, **moves)
    sampler = gs.mcmc.parallel_tempering(path, report=True, **tuned.arguments, **kernel_alone(moves))
    draws = gs.sample(jax.random.key(4), sampler, 3000, num_chains=16, warmup=500)
    ratios = draws.info.extra["log_ratios"]
    for estimate in (stepping_stone, bridge):
        assert_within(estimate(ratios), truth, 0.15)
    # With few levels the integral says little, and says so.
    assert_within(thermodynamic(ratios), truth, math.inf)


def test_thermodynamic_integration_with_many_levels():
    target = gs.targets.banana()
    path = gs.paths.geometric(gs.mcmc.normal_base(target.template, scale=10.0), target)
    tuned = gs.mcmc.tune_schedule(jax.random.key(3), path, num_replicas=24)
    sampler = gs.mcmc.parallel_tempering(path, report=True, **tuned.arguments)
    draws = gs.sample(jax.random.key(4), sampler, 2000, num_chains=16, warmup=300)
    assert_within(thermodynamic(draws.info.extra["log_ratios"]), 0.0, 0.1)


@pytest.mark.parametrize(
    ("name", "num_live", "max_points", "most"),
    [
        ("banana", 500, 10_000, 0.05),
        ("gmm40", 500, 10_000, 0.05),
        ("funnel", 1000, 60_000, 0.15),
        ("many_well", 500, 30_000, 0.5),
    ],
)
def test_nested_sampling(name, num_live, max_points, most):
    make, scale, truth, *_ = CASES[name]
    target = make()
    prior = gs.mcmc.normal_base(target.template, scale=scale)
    draws = gs.sample(jax.random.key(5), gs.mcmc.nested(target, prior, num_live=num_live, max_points=max_points), 8)
    assert not draws.info.diverged.any()
    assert_within(log_evidence(draws), truth, most)


def test_the_many_well_to_three_hundredths():
    """Mean absolute error of log Z over twenty runs, each within 1e8 gradients."""
    target = gs.targets.many_well()
    path = gs.paths.geometric(gs.mcmc.normal_base(target.template), target)
    sampler = gs.mcmc.adaptive_smc(
        path, num_particles=320_000, num_ancestors=16_000, kernel_options={"num_integration_steps": 5}
    )
    gaps = []
    for seed in range(20):
        draws = gs.sample(jax.random.key(100 + seed), sampler, 1)
        assert draws.ledger.sample.gradients <= 1e8
        gaps.append(abs(log_evidence(draws).value - MANY_WELL))
    assert np.mean(gaps) <= 0.03


def test_tempering_finds_the_modes_that_nuts_does_not():
    """GMM40 in two dimensions, from the same starts and with no more gradients, tuning included."""
    target = gs.targets.gmm40()
    centres, weights, radius = target.truth.modes
    base = gs.mcmc.normal_base(target.template, scale=30.0)
    path = gs.paths.geometric(base, target)
    starts = np.asarray(jax.vmap(base.exact)(jax.random.split(jax.random.key(9), 16)))
    tuned = gs.mcmc.tune_schedule(jax.random.key(0), path)
    sampler = gs.mcmc.parallel_tempering(path, **tuned.arguments)
    draws = gs.sample(jax.random.key(1), sampler, 4000, num_chains=16, warmup=500, initial=starts)
    spent = tuned.bill.gradients + draws.info.gradients

    position = np.asarray(draws.position)
    coverage = mode_coverage(position.reshape(-1, 2), centres, weights, radius)
    nearest = np.linalg.norm(position[:, :, None] - np.asarray(centres)[None, None], axis=-1).argmin(-1)
    share = np.stack([np.bincount(chain, minlength=40) for chain in nearest]) / 4000
    z = (share.mean(0) - 1 / 40) / (share.std(0, ddof=1) / math.sqrt(16))
    assert coverage.found == 40
    # Forty checks at one in a thousand, of Student's t with 15 degrees of freedom.
    assert abs(z).max() < 5.5

    nuts = gs.mcmc.nuts(target, 0.9)
    price = gs.sample(jax.random.key(2), nuts, 200, num_chains=16, initial=starts).info.gradients / 200
    other = gs.sample(jax.random.key(3), nuts, int(spent / price), num_chains=16, initial=starts)
    assert other.info.gradients > 0.8 * spent
    stuck = mode_coverage(np.asarray(other.position).reshape(-1, 2), centres, weights, radius)
    assert stuck.found < 40 and stuck.weight_error > 10 * coverage.weight_error
