"""Figures the samplers along a path must reach: log Z within the printed error, and the modes that chains do not find.

All from a base that covers the target and from what the tuning finds; only the many-well's population is chosen by its size.
"""

import math
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

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


class Case(NamedTuple):
    """scale: of the base. log_z: the truth. kernel: arguments that choose the moves; smooth: whether they take a metric.

    particles, repeats: of SMC, and its moves per level. refine: levels of AIS per level of its pilot. steps: of each
    tempered chain.
    """

    make: Any
    scale: float
    log_z: float = 0.0
    kernel: Any = MappingProxyType({"kernel": gs.mcmc.hmc})
    smooth: bool = True
    particles: int = 2000
    repeats: int = 3
    refine: int = 20
    steps: int = 3000

    def path(self):
        target = self.make()
        return gs.paths.geometric(gs.mcmc.normal_base(target.template, scale=self.scale), target)

    @property
    def tuning(self):
        return {**self.kernel, "adapt_metric": self.smooth}


# Where a long path would come back to where it began in a normal law of many dimensions.
SHORT = MappingProxyType({"kernel": gs.mcmc.hmc, "kernel_options": {"num_integration_steps": 3}})
SLICES = MappingProxyType({"kernel": sweeps})
CASES = {
    "banana": Case(gs.targets.banana, 10.0),
    "gmm40": Case(gs.targets.gmm40, 30.0),
    "gmm40_d50": Case(partial(gs.targets.gmm40, 50), 100.0, kernel=SHORT, refine=100, steps=8000),
    "many_well": Case(gs.targets.many_well, 1.5, MANY_WELL, particles=4000, repeats=5, refine=30),
    "funnel": Case(gs.targets.funnel, 10.0, kernel=SLICES, smooth=False, particles=1000, repeats=10),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return CASES[request.param]


def assert_within(found, truth, most):
    """Off by no more than chance allows, and with an error small enough to say something."""
    assert abs(found.value - truth) < 3 * found.error < 3 * most, str(found)


def test_adaptive_smc(case):
    sampler = gs.mcmc.adaptive_smc(
        case.path(), num_particles=case.particles, num_moves=case.repeats, metric="diagonal" if case.smooth else "none",
        **case.kernel,
    )  # fmt: skip
    assert_within(log_evidence(gs.sample(jax.random.key(0), sampler, 16)), case.log_z, 0.1)


def test_annealed_importance_sampling(case):
    path = case.path()
    pilot = gs.mcmc.tune_levels(jax.random.key(1), path, **case.tuning)
    fine = gs.mcmc.tune_levels(jax.random.key(1), path, num_levels=case.refine * len(pilot.levels), **case.tuning)
    draws = gs.sample(jax.random.key(2), gs.mcmc.ais(path, **fine.arguments, **case.kernel), 1000)
    assert_within(log_evidence(draws), case.log_z, 0.3)


def test_tempering(case):
    path = case.path()
    tuned = gs.mcmc.tune_schedule(jax.random.key(3), path, **case.tuning)
    sampler = gs.mcmc.parallel_tempering(path, report=True, **tuned.arguments, **case.kernel)
    draws = gs.sample(jax.random.key(4), sampler, case.steps, num_chains=16, warmup=case.steps // 5)
    ratios = draws.info.extra["log_ratios"]
    for estimate in (stepping_stone, bridge):
        assert_within(estimate(ratios), case.log_z, 0.15)
    # With few levels the integral says little, and says so.
    assert_within(thermodynamic(ratios), case.log_z, math.inf)


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
    case = CASES[name]
    target = case.make()
    prior = gs.mcmc.normal_base(target.template, scale=case.scale)
    draws = gs.sample(jax.random.key(5), gs.mcmc.nested(target, prior, num_live=num_live, max_points=max_points), 8)
    assert not draws.info.diverged.any()
    assert_within(log_evidence(draws), case.log_z, most)


# A billion gradients, half an hour of one core.
@pytest.mark.timeout(7200)
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
