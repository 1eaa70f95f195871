"""Nested sampling: points, costs, what it says of its error, and what it refuses. Its law is in tests/statistical."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gensamp as gs

SCALE = 4.0


def log_normal(x):
    """N(0, I) in two dimensions times e^3 over its normaliser: log Z = 3."""
    return 3.0 - 0.5 * jnp.sum(x**2) - math.log(2 * math.pi)


TARGET = gs.Target.from_log_density(log_normal, jnp.zeros(2))
PRIOR = gs.mcmc.normal_base(TARGET.template, scale=SCALE)
# KL(N(0, I) || N(0, SCALE^2 I)) in two dimensions.
INFORMATION = 2 * (math.log(SCALE) - 0.5 + 0.5 / SCALE**2)

draw = jax.jit(gs.draw)


@pytest.fixture(scope="module")
def runs():
    sampler = gs.mcmc.nested(TARGET, PRIOR, num_live=100, max_points=1200, num_inner_steps=5, report=True)
    return gs.sample(jax.random.key(0), sampler, 40)


def log_z(log_weight):
    weight = np.asarray(log_weight, float)
    return np.log(np.exp(weight).mean(-1))


def test_the_error_it_states_is_the_spread_of_its_runs(runs):
    found = log_z(runs.log_weight)
    stated = runs.info.extra["log_z_error"]
    np.testing.assert_allclose(stated.mean(), math.sqrt(INFORMATION / 100), rtol=0.1)
    np.testing.assert_allclose(found.std(), stated.mean(), rtol=0.4)
    assert abs(found.mean() - 3) < 4 * found.std() / math.sqrt(40)


def test_the_information_is_that_of_the_posterior(runs):
    np.testing.assert_allclose(runs.info.extra["information"].mean(), INFORMATION, rtol=0.1)


def test_rows_not_used_have_no_weight(runs):
    used = np.isfinite(runs.log_weight).sum(1)
    np.testing.assert_array_equal(used, runs.info.extra["num_points"])
    assert (used < 1200).all() and not runs.info.diverged.any()
    assert np.isfinite(runs.position).all()
    # Dead points come in order of likelihood, round by round, and the last hundred are the live ones.
    likelihood = np.asarray(jax.vmap(jax.vmap(lambda x: log_normal(x) - PRIOR.log_density(x)))(runs.position))
    rounds = likelihood[0, : used[0] - 100].reshape(-1, 10).max(1)
    assert (np.diff(rounds) > 0).all()


def test_a_buffer_too_small_says_so_and_still_estimates():
    drawn = draw(jax.random.key(0), gs.mcmc.nested(TARGET, PRIOR, num_live=100, max_points=200, num_inner_steps=5))
    assert bool(drawn.info.diverged)
    assert abs(log_z(drawn.log_weight) - 3) < 1


def test_a_run_that_did_not_reach_the_target_is_warned_of():
    with pytest.warns(UserWarning, match="2 of 2 populations did not reach the target"):
        draws = gs.sample(jax.random.key(0), gs.mcmc.nested(TARGET, PRIOR, num_live=20, max_points=40, num_inner_steps=2), 2)
    assert "did not reach" in draws.message and draws.ending == "finished"


def test_a_target_without_mass_has_no_evidence():
    nowhere = gs.Target.from_log_density(lambda x: jnp.sum(x) * 0 - jnp.inf, jnp.zeros(2))
    drawn = draw(jax.random.key(0), gs.mcmc.nested(nowhere, PRIOR, num_live=20, max_points=60))
    assert bool(drawn.info.diverged)
    assert np.isneginf(drawn.log_weight).all()


def test_events_may_be_trees():
    target = gs.Target.from_log_density(lambda x: -0.5 * (x["a"] ** 2 + jnp.sum(x["b"] ** 2)), {"a": 0.0, "b": jnp.zeros(2)})
    prior = gs.mcmc.normal_base(target.template, scale=2.0)
    drawn = draw(jax.random.key(0), gs.mcmc.nested(target, prior, num_live=200, max_points=2000, num_inner_steps=5))
    assert drawn.position["b"].shape == (2000, 2)
    assert abs(log_z(drawn.log_weight) - 1.5 * math.log(2 * math.pi)) < 0.4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_live": 2}, "num_live 2; expected an integer of at least 4"),
        ({"num_delete": 15}, "num_delete 15 of 20 live points; expected at most half"),
        ({"max_points": 20}, "max_points 20; expected an integer of at least 22"),
        ({"num_inner_steps": 0}, "num_inner_steps 0"),
        ({"remaining": 1.0}, "remaining 1.0; expected a share"),
        ({"prior": gs.mcmc.normal_base(jnp.zeros(3))}, "expected the same"),
        ({"prior": TARGET}, "nested needs target.exact"),
    ],
)
def test_what_cannot_work_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        gs.mcmc.nested(**({"target": TARGET, "prior": PRIOR, "num_live": 20, "max_points": 100} | change))
