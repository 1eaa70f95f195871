"""Do the chains have their target's law, and does one changed line show? Ten keys each, as lanes of one program."""

import dataclasses

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.mcmc.hmc import HMCState
from blackjax.mcmc.metrics import gaussian_euclidean
from jax.scipy.stats import norm

import gensamp as gs
from gensamp.mcmc import langevin
from gensamp.mcmc.annealed import UlaState, langevin_move
from gensamp.testing import check_laws, power

KEYS = 10
CHAINS = 4
VARIANCES = np.array([1.0, 4.0])
CORRELATION = 0.8
COVARIANCE = np.array([[1.0, 1.6], [1.6, 4.0]])
PROBABILITIES = (0.1, 0.5, 0.9)

HMC = blackjax.hmc.build_kernel()


def gaussian_truth(variance):
    """The law N(0, variance) in every coordinate, as far as the checks ask."""
    scale = np.sqrt(variance)
    quantiles = {p: (scale * float(norm.ppf(p)), 0.0) for p in PROBABILITIES}
    return gs.Truth(mean=(np.zeros_like(scale), 0.0), variance=(variance, 0.0), quantiles=quantiles, source="closed form")


def log_gaussian(precision, x):
    return -0.5 * x @ precision @ x


def log_banana(x):
    return -0.5 * x[0] ** 2 - 0.5 * ((x[1] - 0.5 * (x[0] ** 2 - 1)) / 0.5) ** 2


def draw_banana(key):
    x, noise = jax.random.normal(key, (2,))
    return jnp.stack([x, 0.5 * (x**2 - 1) + 0.5 * noise])


@pytest.fixture(scope="module")
def gaussian():
    precision = jnp.asarray(np.linalg.inv(COVARIANCE), jnp.float32)
    density = gs.bind(log_gaussian, precision)
    return gs.Target.from_log_density(density, jnp.zeros(2), truth=gaussian_truth(VARIANCES), name="gaussian")


@pytest.fixture(scope="module")
def banana():
    # E x1 = 0 and Var x1 = 0.25 Var(x0^2) + 0.25 = 0.75; its quantiles come from exact draws.
    truth = gs.Truth(mean=(np.zeros(2), 0.0), variance=(np.array([1.0, 0.75]), 0.0), source="closed form")
    return gs.Target.from_log_density(log_banana, jnp.zeros(2), exact=draw_banana, truth=truth, name="banana")


def run(sampler, num_draws, warmup=100):
    """Positions [key, chain, draw, 2] after warm-up."""
    keys = jax.random.split(jax.random.key(2024), (KEYS, CHAINS))
    return np.asarray(_chains(keys, sampler, warmup + num_draws))[:, :, warmup:]


@jax.jit(static_argnums=2)
def _chains(keys, sampler, length):
    return jax.vmap(jax.vmap(lambda key: gs.chain(key, sampler, length).position))(keys)


@jax.jit
def _draws(keys, sampler):
    return jax.vmap(jax.vmap(lambda key: gs.draw(key, sampler).position))(keys)


def verdicts(positions, target):
    checks = check_laws(positions, target, probabilities=PROBABILITIES)
    return power(checks), "\n".join(map(str, checks))


def assert_passes(positions, target):
    counts, report = verdicts(positions, target)
    assert counts["passed"] >= KEYS - 1, report


def assert_fails(positions, target):
    counts, report = verdicts(positions, target)
    assert counts["failed"] >= KEYS - 1, report


METRIC = jnp.asarray(COVARIANCE, jnp.float32)


@pytest.mark.parametrize(
    ("make", "options", "num_draws"),
    [
        (gs.mcmc.mala, {"step_size": 0.5, "inverse_mass_matrix": METRIC}, 1500),
        (gs.mcmc.hmc, {"step_size": 0.4, "inverse_mass_matrix": METRIC, "num_integration_steps": 3}, 600),
        (gs.mcmc.nuts, {"step_size": 0.6}, 400),
    ],
    ids=["mala", "hmc", "nuts"],
)
def test_correlated_gaussian(gaussian, make, options, num_draws):
    assert_passes(run(make(gaussian, **options), num_draws), gaussian)


@pytest.mark.parametrize(
    ("make", "options", "num_draws"),
    [
        (gs.mcmc.mala, {"step_size": 0.15}, 6000),
        (gs.mcmc.hmc, {"step_size": 0.3, "num_integration_steps": 6}, 1500),
        (gs.mcmc.nuts, {"step_size": 0.4}, 1000),
    ],
    ids=["mala", "hmc", "nuts"],
)
def test_banana(banana, make, options, num_draws):
    assert_passes(run(make(banana, **options), num_draws), banana)


def test_ula_has_the_bias_it_should_have():
    """On N(0, s^2) with M^-1 = s^2 the chain is an autoregression: its variance is s^2 / (1 - eps / 2)."""
    scale, step_size = np.array([1.0, 2.0]), 0.5
    density = gs.bind(log_gaussian, jnp.diag(jnp.asarray(1 / scale**2, jnp.float32)))
    biased = gaussian_truth(scale**2 / (1 - step_size / 2))
    target = gs.Target.from_log_density(density, jnp.zeros(2), truth=gaussian_truth(scale**2))
    positions = run(gs.mcmc.ula(target, step_size, inverse_mass_matrix=scale**2), 1500)
    assert_passes(positions, dataclasses.replace(target, truth=biased))
    assert_fails(positions, target)


def test_mala_without_the_accept_step_fails(gaussian):
    sampler = gs.mcmc.mala(gaussian, 0.5, inverse_mass_matrix=METRIC)
    broken = dataclasses.replace(sampler, step=gs.bind(accept_everything, *sampler.step.args))
    assert_fails(run(broken, 1500), gaussian)


def accept_everything(log_density, step_size, inverse_mass_matrix, key, state, index):
    """`langevin._mala_step` with one line changed: the proposal is the next state."""
    del index
    state, info = langevin._KERNEL(key, state, log_density, jnp.sqrt(2 * step_size), inverse_mass_matrix, 1)
    state = HMCState(info.proposal.position, info.proposal.logdensity, info.proposal.logdensity_grad)
    return state, gs.Info.of(gradients=1, acceptance=info.acceptance_rate, diverged=info.is_divergent)


def test_hmc_with_two_metrics_fails(gaussian):
    sampler = gs.mcmc.hmc(gaussian, 0.4, inverse_mass_matrix=METRIC, num_integration_steps=3)
    log_density, step_size, metric, count, _ = sampler.step.args
    broken = dataclasses.replace(sampler, step=gs.bind(two_metrics, log_density, step_size, metric, count))
    assert_fails(run(broken, 600), gaussian)


def two_metrics(log_density, step_size, inverse_mass_matrix, count, key, state, index):
    """`hamiltonian._hmc_step` with one line changed: the momentum comes from the identity metric."""
    del index
    metric = gaussian_euclidean(inverse_mass_matrix)
    metric = metric._replace(sample_momentum=gaussian_euclidean(jnp.ones_like(state.position)).sample_momentum)
    state, info = HMC(key, state, log_density, step_size, metric, count)
    return state, gs.Info.of(gradients=count, acceptance=info.acceptance_rate, diverged=info.is_divergent)


class TestAnnealedLangevin:
    """On Gaussians of falling variance the draw is Gaussian, and its variance is a recursion."""

    levels = jnp.linspace(0, 1, 6)
    relative_step = 0.3

    @staticmethod
    def variance(t):
        return jnp.exp(2 * np.log(10.0) * (1 - t))

    @staticmethod
    def score(t, x):
        return -x / TestAnnealedLangevin.variance(t)

    def sampler(self):
        base = gs.Target(template=gs.core.as_template(jnp.zeros(2)), exact=gs.bind(draw_wide))
        path = gs.Path(base=base, log_density=None, score=gs.bind(TestAnnealedLangevin.score))
        sizes = self.relative_step * self.variance(self.levels)
        return gs.mcmc.annealed_langevin(path, levels=self.levels, step_sizes=sizes, steps_per_level=1)

    def law(self):
        """Per level the variance becomes (1 - eps / v)^2 variance + 2 eps."""
        variance = 100.0
        for v in np.asarray(self.variance(self.levels), float):
            variance = (1 - self.relative_step) ** 2 * variance + 2 * self.relative_step * v
        template = gs.core.as_template(jnp.zeros(2))
        return gs.Target(template=template, truth=gaussian_truth(np.full(2, variance)), name="end of the recursion")

    def draws(self, sampler):
        keys = jax.random.split(jax.random.key(5), (KEYS, 2000))
        return np.asarray(_draws(keys, sampler))[:, None]

    def test_law(self):
        assert_passes(self.draws(self.sampler()), self.law())

    def test_retargeted_without_initialising_the_state_fails(self):
        sampler = self.sampler()
        broken = dataclasses.replace(sampler, step=gs.bind(keep_the_old_score, *sampler.step.args))
        assert_fails(self.draws(broken), self.law())


def draw_wide(key):
    return 10.0 * jax.random.normal(key, (2,))


def keep_the_old_score(score, levels, step_sizes, identity, steps_per_level, forwards, key, state, index):
    """`annealed._step` with one line changed: the state that enters a level still holds the score of the level before."""
    level = index // steps_per_level.value
    position = langevin_move(key, state.position, state.score, step_sizes[level], identity)
    del forwards
    return UlaState(position, score(levels[level], position)), gs.Info.of(gradients=1)
