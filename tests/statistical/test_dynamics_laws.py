"""Do chains driven by a gradient have their target's law, and does one changed line show? Ten keys as lanes of one program."""

import dataclasses
import importlib

import blackjax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.mcmc.integrators import isokinetic_velocity_verlet
from blackjax.mcmc.metrics import gaussian_euclidean
from planar_laws import (
    COVARIANCE,
    IDENTITY,
    METRIC,
    assert_fails,
    assert_passes,
    bent_gaussian,
    correlated_gaussian,
    gaussian_truth,
    run,
)

import gensamp as gs

HMC = blackjax.hmc.build_kernel()
GHMC = blackjax.ghmc.build_kernel()
MCLMC = blackjax.mclmc.build_kernel(isokinetic_velocity_verlet)
MAMS = blackjax.adjusted_mclmc.build_kernel(isokinetic_velocity_verlet)
UNDERDAMPED = importlib.import_module("gensamp.mcmc.underdamped")
# A dense metric and the same number of draws on both laws: each sampler is compiled once.
ON_GAUSSIAN, ON_BANANA = {"inverse_mass_matrix": METRIC}, {"inverse_mass_matrix": IDENTITY}
TRAVEL = importlib.import_module("gensamp.mcmc.malt")._travel


@pytest.fixture(scope="module")
def gaussian():
    return correlated_gaussian()


@pytest.fixture(scope="module")
def banana():
    return bent_gaussian()


def broken(monkeypatch, sampler, name, line):
    """The sampler with the helper `name` of its module, which is one line of its step, replaced by another."""
    step = sampler.step.func
    monkeypatch.setattr(importlib.import_module(step.__module__), name, line)
    # A function of its own, so that no program compiled for the intact sampler is taken for this one.
    return dataclasses.replace(sampler, step=gs.bind(lambda *arguments: step(*arguments), *sampler.step.args))


class TestBarker:
    def test_correlated_gaussian(self, gaussian):
        assert_passes(run(gs.mcmc.barker(gaussian, 1.2, **ON_GAUSSIAN), 5000), gaussian)

    def test_banana(self, banana):
        assert_passes(run(gs.mcmc.barker(banana, 0.8, **ON_BANANA), 5000), banana)

    def test_taking_the_proposal_for_a_symmetric_one_fails(self, gaussian, monkeypatch):
        sampler = gs.mcmc.barker(gaussian, 1.2, **ON_GAUSSIAN)
        twin = broken(monkeypatch, sampler, "_correction", lambda move, slope, slope_there: 0.0)
        assert_fails(run(twin, 1500), gaussian)


class TestDynamicHMC:
    def test_correlated_gaussian(self, gaussian):
        assert_passes(run(gs.mcmc.dynamic_hmc(gaussian, 0.9, **ON_GAUSSIAN), 1500), gaussian)

    def test_banana(self, banana):
        assert_passes(run(gs.mcmc.dynamic_hmc(banana, 0.35, trajectory_length=4.0, **ON_BANANA), 1500), banana)

    def test_without_the_accept_step_fails(self, gaussian, monkeypatch):
        sampler = gs.mcmc.dynamic_hmc(gaussian, 0.9, **ON_GAUSSIAN)
        assert_fails(run(broken(monkeypatch, sampler, "_HMC", accept_everything), 600), gaussian)

    @pytest.mark.slow
    def test_momentum_of_another_metric_fails(self, gaussian, monkeypatch):
        sampler = gs.mcmc.dynamic_hmc(gaussian, 0.9, **ON_GAUSSIAN)
        assert_fails(run(broken(monkeypatch, sampler, "_HMC", two_metrics), 600), gaussian)


def accept_everything(key, state, *arguments):
    """blackjax's kernel, and the end of the path whatever its energy."""
    state, info = HMC(key, state, *arguments)
    return state._replace(**{name: getattr(info.proposal, name) for name in state._fields}), info


def two_metrics(key, state, log_density, step_size, metric, count):
    """blackjax's kernel with the momentum of the identity metric."""
    identity = gaussian_euclidean(jnp.ones_like(state.position))
    return HMC(key, state, log_density, step_size, metric._replace(sample_momentum=identity.sample_momentum), count)


class TestGHMC:
    """The slice drifts slowly on the Gaussian: what it remembers is then what a twin gets wrong."""

    slow_slice = ON_GAUSSIAN | {"alpha": 0.5, "delta": 0.02}

    def test_correlated_gaussian(self, gaussian):
        assert_passes(run(gs.mcmc.ghmc(gaussian, 1.3, **self.slow_slice), 6000), gaussian)

    def test_banana(self, banana):
        assert_passes(run(gs.mcmc.ghmc(banana, 0.5, alpha=0.5, **ON_BANANA), 6000), banana)

    def test_keeping_the_momentum_of_a_rejected_step_fails(self, banana, monkeypatch):
        sampler = gs.mcmc.ghmc(banana, 0.5, alpha=0.5, **ON_BANANA)
        assert_fails(run(broken(monkeypatch, sampler, "_GHMC", without_the_turn), 6000), banana)

    @pytest.mark.slow
    def test_keeping_the_slice_of_an_accepted_step_fails(self, gaussian, monkeypatch):
        sampler = gs.mcmc.ghmc(gaussian, 1.3, **self.slow_slice)
        assert_fails(run(broken(monkeypatch, sampler, "_GHMC", without_the_ratio), 2500), gaussian)


def without_the_turn(key, state, *arguments):
    """blackjax's kernel, with the momentum of a rejected step as it was."""
    after, info = GHMC(key, state, *arguments)
    return after._replace(momentum=jnp.where(info.is_accepted, 1, -1) * after.momentum), info


def without_the_ratio(key, state, log_density, step_size, metric, alpha, delta):
    """blackjax's kernel, with a slice that drifts and is never divided by the ratio."""
    after, info = GHMC(key, state, log_density, step_size, metric, alpha, delta)
    return after._replace(slice=(state.slice + 1 + delta) % 2 - 1), info


class TestMALT:
    def test_correlated_gaussian(self, gaussian):
        assert_passes(run(gs.mcmc.malt(gaussian, 1.2, **ON_GAUSSIAN), 1500), gaussian)

    def test_banana(self, banana):
        assert_passes(run(gs.mcmc.malt(banana, 0.4, **ON_BANANA), 1500), banana)

    def test_counting_the_energy_of_friction_and_noise_fails(self, gaussian, monkeypatch):
        sampler = gs.mcmc.malt(gaussian, 1.2, **ON_GAUSSIAN)
        assert_fails(run(broken(monkeypatch, sampler, "_travel", with_the_heat), 600), gaussian)

    @pytest.mark.slow
    def test_without_the_accept_step_fails(self, gaussian, monkeypatch):
        sampler = gs.mcmc.malt(gaussian, 1.2, **ON_GAUSSIAN)
        assert_fails(run(broken(monkeypatch, sampler, "static_binomial_sampling", take_it), 600), gaussian)


def with_the_heat(log_density, metric, step_size, damping, count, key, begin):
    """`malt._travel`, with all the kinetic energy that the path gained, friction and noise included."""
    end, _ = TRAVEL(log_density, metric, step_size, damping, count, key, begin)
    return end, metric.kinetic_energy(end.momentum) - metric.kinetic_energy(begin.momentum)


def take_it(key, log_ratio, state, proposal):
    """The proposal, whatever its energy."""
    return proposal, (True, jnp.minimum(jnp.exp(log_ratio), 1), None)


class TestUnderdamped:
    step_size = 0.9

    def test_positions_of_a_gaussian_are_exact_at_a_long_step(self, gaussian):
        assert_passes(run(gs.mcmc.underdamped(gaussian, self.step_size, **ON_GAUSSIAN), 6000), gaussian)

    def test_without_a_metric_too(self, gaussian):
        """The smallest standard deviation is 0.56: this step is nearly as long as is stable."""
        assert_passes(run(gs.mcmc.underdamped(gaussian, 1.0, friction=2.0, **ON_BANANA), 6000), gaussian)

    def test_friction_at_the_end_fails_by_the_bias_that_it_should_have(self, gaussian):
        sampler = gs.mcmc.underdamped(gaussian, self.step_size, **ON_GAUSSIAN)
        twin = run(dataclasses.replace(sampler, step=gs.bind(friction_last, *sampler.step.args)), 1500)
        assert_fails(twin, gaussian)
        biased = np.diag(COVARIANCE) / (1 - self.step_size**2 / 4)
        assert_passes(twin, dataclasses.replace(gaussian, truth=gaussian_truth(biased)))

    @pytest.mark.slow
    def test_noise_of_the_first_order_fails(self, gaussian, monkeypatch):
        sampler = gs.mcmc.underdamped(gaussian, self.step_size, **ON_GAUSSIAN)
        assert_fails(run(broken(monkeypatch, sampler, "_rub", euler_noise), 1500), gaussian)

    def test_banana(self, banana):
        """Its bias at this step is smaller than the errors of so many draws."""
        assert_passes(run(gs.mcmc.underdamped(banana, 0.15, **ON_BANANA), 6000), banana)


def friction_last(score, step_size, friction, inverse_mass_matrix, key, state, index):
    """`underdamped._step` with its line O below the second B."""
    del index
    kick, drift = UNDERDAMPED._half_steps(gaussian_euclidean(inverse_mass_matrix), step_size)
    position, velocity, slope = state
    velocity = kick(velocity, slope)
    position = drift(position, velocity)
    position = drift(position, velocity)
    slope = score(position)
    velocity = kick(velocity, slope)
    velocity = UNDERDAMPED._rub(friction, step_size, velocity, UNDERDAMPED._noise(key, position))
    return UNDERDAMPED.UnderdampedState(position, velocity, slope), gs.Info.of(gradients=1)


def euler_noise(friction, step_size, velocity, noise):
    """O with noise sqrt(2 gamma eps), which belongs to kept = 1 - gamma eps and to short steps."""
    return jnp.exp(-friction * step_size) * velocity + jnp.sqrt(2 * friction * step_size) * noise


class TestMCLMC:
    """Biased, but at this step by less than the errors of so many draws."""

    step_size = 0.3

    @pytest.mark.parametrize("integrator", ["leapfrog", pytest.param("minimal_norm", marks=pytest.mark.slow)])
    def test_correlated_gaussian(self, gaussian, integrator):
        sampler = gs.mcmc.mclmc(gaussian, self.step_size, **ON_GAUSSIAN, integrator=integrator)
        assert_passes(run(sampler, 6000), gaussian)

    def test_banana(self, banana):
        assert_passes(run(gs.mcmc.mclmc(banana, 0.15, **ON_BANANA), 6000), banana)

    def test_a_turn_by_the_number_of_coordinates_fails(self, gaussian, monkeypatch):
        sampler = gs.mcmc.mclmc(gaussian, self.step_size, **ON_GAUSSIAN)
        assert_fails(run(broken(monkeypatch, sampler, "_MCLMC", {"leapfrog": turn_too_little}), 1500), gaussian)

    def test_a_long_step_shows_its_bias(self, gaussian):
        assert_fails(run(gs.mcmc.mclmc(gaussian, 1.5, **ON_GAUSSIAN), 6000), gaussian)


def turn_too_little(key, state, log_density, *arguments):
    """blackjax's kernel with the force divided by d in place of d - 1 (d = 2)."""
    return MCLMC(key, state, lambda x: log_density(x) / 2, *arguments)


class TestMAMS:
    step_size = 1.8

    @pytest.mark.parametrize("integrator", ["leapfrog", pytest.param("minimal_norm", marks=pytest.mark.slow)])
    def test_correlated_gaussian(self, gaussian, integrator):
        sampler = gs.mcmc.mams(gaussian, self.step_size, **ON_GAUSSIAN, integrator=integrator)
        assert_passes(run(sampler, 1500), gaussian)

    def test_banana(self, banana):
        assert_passes(run(gs.mcmc.mams(banana, 0.35, trajectory_length=6.0, **ON_BANANA), 1500), banana)

    def test_with_noise_along_the_path(self, gaussian):
        sampler = gs.mcmc.mams(gaussian, self.step_size, **ON_GAUSSIAN, decoherence_length=2.0)
        assert_passes(run(sampler, 1500), gaussian)

    def test_without_the_accept_step_fails(self, gaussian, monkeypatch):
        sampler = gs.mcmc.mams(gaussian, self.step_size, **ON_GAUSSIAN)
        assert_fails(run(broken(monkeypatch, sampler, "_MAMS", {"leapfrog": take_the_end}), 1200), gaussian)

    @pytest.mark.slow
    def test_accepting_by_the_density_alone_fails(self, gaussian, monkeypatch):
        sampler = gs.mcmc.mams(gaussian, self.step_size, **ON_GAUSSIAN)
        assert_fails(run(broken(monkeypatch, sampler, "_MAMS", {"leapfrog": WITHOUT_WORK}), 1200), gaussian)


def take_the_end(key, state, *arguments):
    """blackjax's kernel, and the end of the path whatever its energy."""
    state, info = MAMS(key, state, *arguments)
    return state._replace(**{name: getattr(info.proposal, name) for name in state._fields}), info


def without_work(logdensity_fn, inverse_mass_matrix):
    """The leapfrog, silent about the kinetic energy that a turn gains."""
    leapfrog = isokinetic_velocity_verlet(logdensity_fn, inverse_mass_matrix)

    def step(state, step_size):
        state, gained = leapfrog(state, step_size)
        return state, jnp.zeros_like(gained)

    return step


WITHOUT_WORK = blackjax.adjusted_mclmc.build_kernel(without_work)
