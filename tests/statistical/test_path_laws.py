"""Do the samplers along a path have the target's law and its normaliser, and does one changed line show?

Ten keys each, as lanes of one program. The target has two modes of unequal weight and width and log Z = 2; the base is a wide
normal. Weights are part of what is checked: draws by `check_laws`, log Z by its own standard error.
"""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gensamp as gs
from gensamp.mcmc import levels as along
from gensamp.mcmc.importance import AisState
from gensamp.testing import check_laws, power

# By name, for `gs.mcmc.smc` is the function.
population = importlib.import_module("gensamp.mcmc.smc")
adaptive = importlib.import_module("gensamp.mcmc.smc_adaptive")
nesting = importlib.import_module("gensamp.mcmc.nested")
tempering = importlib.import_module("gensamp.mcmc.tempering")

KEYS = 10
LOG_Z = 2.0
MIXTURE = gs.targets.mixture([0.3, 0.7], [[-2.0, 0.0], [2.0, 1.0]], [[0.5, 1.0], [1.0, 0.3]])


def log_unnormalised(log_density, x):
    return LOG_Z + log_density(x)


TARGET = dataclasses.replace(MIXTURE, log_density=gs.bind(log_unnormalised, MIXTURE.log_density))
BASE = gs.mcmc.normal_base(TARGET.template, scale=3.0)
PATH = gs.paths.geometric(BASE, TARGET)


@jax.jit(static_argnums=2)
def lanes(key, sampler, runs):
    """Draws [key, run, ...]."""
    keys = jax.random.split(key, (KEYS, runs))
    return jax.vmap(jax.vmap(lambda k: gs.draw(k, sampler)))(keys)


def outcome(sampler, runs):
    """Positions [key, run or 1, draw, 2] and log weights."""
    drawn = lanes(jax.random.key(11), sampler, runs)
    position, weight = np.asarray(drawn.position), np.asarray(drawn.log_weight, float)
    return (position, weight) if weight.ndim == 3 else (position[:, None], weight[:, None])


def z_of_log_z(weight):
    """[key]: how many standard errors the estimate of log Z is off; runs (or independent draws) are the unit."""
    units = np.exp(weight - LOG_Z)
    units = units[:, 0] if units.shape[1] == 1 else units.mean(2)
    return (units.mean(1) - 1) / (units.std(1) / np.sqrt(units.shape[1]))


def verdicts(position, weight):
    checks = check_laws(position, TARGET, log_weight=weight)
    z = z_of_log_z(weight)
    return power(checks), int((abs(z) < 3.29).sum()), "\n".join([*map(str, checks), f"z of log Z: {z.round(2)}"])


def assert_right(position, weight):
    counts, normalised, report = verdicts(position, weight)
    assert counts["passed"] >= KEYS - 1 and normalised >= KEYS - 1, report


def assert_law_fails(position, weight):
    counts, _, report = verdicts(position, weight)
    assert counts["failed"] >= KEYS - 1, report


def broken(sampler, step):
    return dataclasses.replace(sampler, step=gs.bind(step, *sampler.step.args))


LEVELS = jnp.linspace(0, 1, 7)[1:] ** 2


class TestAis:
    sampler = gs.mcmc.ais(PATH, levels=LEVELS, step_sizes=0.4, kernel=gs.mcmc.mala, num_moves=2)

    def test_law(self):
        assert_right(*outcome(self.sampler, 3000))

    def test_weighing_after_the_move_fails(self):
        assert_law_fails(*outcome(broken(self.sampler, weigh_after_the_move), 3000))


def weigh_after_the_move(mover, levels, step_sizes, metrics, num_moves, key, state, index):
    """`importance._step` with one line changed: the ratio is taken where the event has moved to."""
    t = levels[index]
    position, _, info = mover(t, step_sizes[index], None, key, state.position, num_moves.value, index)
    before = jnp.where(index == 0, BASE.log_density(position), mover.log_density(levels[index - 1], position))
    change = along.log_ratio(mover.log_density(t, position), before)
    measured = along.measure(mover.log_density, position)
    log_density = along.value_at(mover.log_density, measured, t, position)
    return AisState(position, state.log_weight + change, log_density, measured), info


class TestSmc:
    sampler = gs.mcmc.smc(
        PATH, num_particles=24, levels=LEVELS, step_sizes=0.4, kernel=gs.mcmc.mala, num_moves=2, ess_threshold=0.7
    )

    def test_law(self):
        assert_right(*outcome(self.sampler, 200))

    def test_moving_in_the_state_of_the_level_before_fails(self):
        assert_law_fails(*outcome(broken(self.sampler, move_without_retargeting), 200))

    def test_resampling_without_resetting_the_weights_fails(self):
        assert_law_fails(*outcome(broken(self.sampler, keep_the_weights), 200))


def move_without_retargeting(mover, levels, step_sizes, metrics, scheme, num_moves, threshold, key, state, index):
    """`smc._step` with one line changed: the state that moves is initialised at the level before."""
    return smc_step(mover, levels, step_sizes, scheme, threshold, key, state, index, levels[jnp.maximum(index - 1, 0)], True)


def keep_the_weights(mover, levels, step_sizes, metrics, scheme, num_moves, threshold, key, state, index):
    """`smc._step` with one line changed: resampled particles keep the weights by which they were drawn."""
    return smc_step(mover, levels, step_sizes, scheme, threshold, key, state, index, levels[index], False)


def smc_step(mover, levels, step_sizes, scheme, threshold, key, state, index, stands_at, reset):
    """`smc._step` of two moves written out; intact with stands_at = levels[index] and reset = True."""
    key_ancestors, key_moves = jax.random.split(key)
    log_weight = population.weighed(mover, levels[index], state)
    number = log_weight.size
    poor = population.effective(log_weight) < threshold
    chosen = jnp.where(poor, population.ancestors(scheme, key_ancestors, log_weight, number), jnp.arange(number))
    spread = log_weight[chosen] + population.log_mean(log_weight) - population.log_mean(log_weight[chosen])
    log_weight = jnp.where(poor, population.log_mean(log_weight) if reset else spread, log_weight)
    position = jax.tree.map(lambda a: a[chosen], state.position)

    def move(key, position):
        sampler = mover.sampler(levels[index], step_sizes[index], None, position)
        state = mover.sampler(stands_at, step_sizes[index], None, position).init(key, position)
        for i in range(2):
            state, info = sampler.step(jax.random.fold_in(key, i), state, jnp.int32(i))
        return sampler.position(state), info

    position, info = jax.vmap(move)(jax.random.split(key_moves, number), position)
    return population.stand(mover, levels[index], position, log_weight), population._populated(info)


class TestWasteFreeSmc:
    sampler = gs.mcmc.waste_free_smc(
        PATH, num_particles=40, num_ancestors=8, levels=LEVELS, step_sizes=0.4, kernel=gs.mcmc.mala
    )

    def test_law(self):
        assert_right(*outcome(self.sampler, 250))

    def test_ancestors_drawn_without_weights_fail(self):
        mover, levels, step_sizes, metrics, _, number = self.sampler.step.args
        broken = (mover, levels, step_sizes, metrics, gs.Static("unweighted"), number)
        population.SCHEMES["unweighted"] = draw_without_weights
        try:
            drawn = outcome(dataclasses.replace(self.sampler, step=gs.bind(population._waste_free_step, *broken)), 250)
        finally:
            del population.SCHEMES["unweighted"]
        assert_law_fails(*drawn)


def draw_without_weights(key, weights, number):
    """A resampling scheme with one line changed: it does not look at the weights."""
    return jax.random.randint(key, (number,), 0, weights.size)


class TestAdaptiveSmc:
    def sampler(self, **moves):
        options = {"num_integration_steps": 3}
        return gs.mcmc.adaptive_smc(PATH, num_particles=64, target_ess=0.7, kernel_options=options, **moves)

    @pytest.mark.parametrize("moves", [{"num_moves": 2}, {"num_ancestors": 16}], ids=["last", "waste_free"])
    def test_law(self, moves):
        """Its normaliser is biased by order 1/N: with 64 particles less than the error of 150 runs."""
        assert_right(*outcome(self.sampler(**moves), 150))

    def test_weighing_by_half_of_the_step_fails(self):
        assert_law_fails(*outcome(broken(self.sampler(num_moves=2), weigh_by_half), 150))


def weigh_by_half(*arguments):
    """`smc_adaptive._step` with one line changed, in the function it weighs by."""
    intact, adaptive.weighed = adaptive.weighed, weigh_too_little
    try:
        return adaptive._step(*arguments)
    finally:
        adaptive.weighed = intact


def weigh_too_little(mover, t, state):
    """`smc.weighed` with one line changed: half of the step to the next level is left out of the weights."""
    here = jax.vmap(along.value_at, in_axes=(None, 0, None, 0))(mover.log_density, state.measured, t, state.position)
    return state.log_weight + along.log_ratio(here, state.log_density) / 2


@jax.jit(static_argnums=2)
def chains(key, sampler, length):
    """Positions [key, chain, draw, 2]."""
    keys = jax.random.split(key, (KEYS, 4))
    return jax.vmap(jax.vmap(lambda k: gs.chain(k, sampler, length).position))(keys)


class TestParallelTempering:
    def sampler(self, swap="nonreversible"):
        levels = jnp.array([0.0, 0.1, 0.3, 1.0])
        sizes = jnp.array([1.0, 1.0, 0.8, 0.4])
        return gs.mcmc.parallel_tempering(PATH, levels=levels, step_sizes=sizes, kernel=gs.mcmc.mala, swap=swap)

    def checks(self, sampler):
        position = np.asarray(chains(jax.random.key(12), sampler, 2100))[:, :, 100:]
        return check_laws(position, MIXTURE)

    @pytest.mark.parametrize("swap", ["nonreversible", "reversible"])
    def test_law(self, swap):
        checks = self.checks(self.sampler(swap))
        assert power(checks)["passed"] >= KEYS - 1, "\n".join(map(str, checks))

    def test_swapping_by_one_density_fails(self):
        checks = self.checks(broken(self.sampler(), swap_by_one_density))
        assert power(checks)["failed"] >= KEYS - 1, "\n".join(map(str, checks))

    def test_swapping_by_the_wrong_sign_fails(self):
        checks = self.checks(broken(self.sampler(), swap_by_the_wrong_sign))
        assert power(checks)["failed"] >= KEYS - 1, "\n".join(map(str, checks))


def swap_by_one_density(*arguments):
    """`tempering._step` with one line changed: the replica above is taken for granted."""
    return step_with_ratios(arguments, jnp.array([1.0, 0.0]))


def swap_by_the_wrong_sign(*arguments):
    """`tempering._step` with one line changed: the ratio of the swap is upside down."""
    return step_with_ratios(arguments, jnp.array([-1.0, -1.0]))


def step_with_ratios(arguments, factors):
    intact = tempering._log_ratios
    tempering._log_ratios = lambda *inner: intact(*inner) * factors[None, :]
    try:
        return tempering._step(*arguments)
    finally:
        tempering._log_ratios = intact


@pytest.mark.slow
class TestNested:
    sampler = gs.mcmc.nested(TARGET, BASE, num_live=40, max_points=400, num_delete=4, num_inner_steps=4)

    def test_law(self):
        assert_right(*outcome(self.sampler, 120))

    def test_replacing_without_the_constraint_fails(self):
        assert_law_fails(*outcome(broken(self.sampler, replace_anywhere), 120))


def replace_anywhere(*arguments):
    """`nested._step` with one line changed: a new point need not be likelier than the one it replaces."""
    intact = nesting._along
    nesting._along = lambda make, threshold, factor: intact(make, threshold - 5, factor)
    try:
        return nesting._step(*arguments)
    finally:
        nesting._along = intact
