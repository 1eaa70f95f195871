"""Random walk and independence chains: what they refuse, what they cost, and that they are blackjax's."""

import dataclasses

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gensamp as gs
from gensamp.pushforward import inverse_transform, realnvp
from gensamp.testing import check_sampler

chain = jax.jit(gs.chain, static_argnums=2)


def bowl(x):
    return -0.5 * jnp.sum(x**2)


@pytest.fixture
def target():
    return gs.Target.from_log_density(bowl, jnp.zeros(2))


@pytest.fixture
def normal():
    """Exact draws from the target, with their density."""
    return inverse_transform(jax.scipy.special.ndtri, jnp.zeros(2), gs.bind(bowl))


@pytest.fixture(scope="module")
def flow():
    model = realnvp(jnp.zeros(2), num_layers=2, width=8, depth=1)
    params, _ = model.init(jax.random.key(1), jnp.array([[-2.0, -2.0], [2.0, 2.0]]))
    return model.sampler(params)


class TestRandomWalk:
    def test_arguments_are_checked(self, target):
        with pytest.raises(ValueError, match="random_walk got step_size -1"):
            gs.mcmc.random_walk(target, -1.0)
        with pytest.raises(ValueError, match=r"shape \[3\]; expected \[2\]"):
            gs.mcmc.random_walk(target, 1.0, inverse_mass_matrix=jnp.ones(3))
        with pytest.raises(ValueError, match="random_walk needs target"):
            gs.mcmc.random_walk(gs.Target.from_data(jnp.ones((3, 2))), 1.0)

    def test_events_of_any_tree(self):
        target = gs.Target.from_log_density(
            lambda x: -jnp.sum(x["a"] ** 2) - jnp.sum(x["b"] ** 2), {"a": jnp.zeros(()), "b": jnp.zeros((2, 2))}
        )
        draws = chain(jax.random.key(0), gs.mcmc.random_walk(target, 0.5, inverse_mass_matrix=jnp.eye(5)), 3)
        assert draws.position["b"].shape == (3, 2, 2)
        assert draws.info.densities.tolist() == [1, 1, 1] and draws.info.gradients.tolist() == [0, 0, 0]

    def test_without_a_metric_it_is_blackjax(self, target):
        sampler = gs.mcmc.random_walk(target, 0.8)
        theirs = blackjax.additive_step_random_walk(bowl, blackjax.mcmc.random_walk.normal(jnp.full(2, 0.8)))
        x = jnp.array([0.5, -1.0])
        ours, raw = sampler.init(jax.random.key(0), x), theirs.init(x)
        step, raw_step = jax.jit(sampler.step), jax.jit(theirs.step)
        for i in range(20):
            ours, info = step(jax.random.key(i), ours, jnp.int32(i))
            raw, raw_info = raw_step(jax.random.key(i), raw)
            np.testing.assert_allclose(ours.position, raw.position, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(info.acceptance, raw_info.acceptance_rate, rtol=1e-4)

    def test_proposals_have_the_covariance_of_the_metric(self):
        flat = gs.Target.from_log_density(lambda x: 0.0 * jnp.sum(x), jnp.zeros(2))
        metric = np.array([[1.0, 1.6], [1.6, 4.0]])
        sampler = gs.mcmc.random_walk(flat, 0.5, inverse_mass_matrix=metric)
        moves = jnp.diff(chain(jax.random.key(0), sampler, 20_000).position, axis=0)
        np.testing.assert_allclose(jnp.cov(moves.T), 0.25 * metric, rtol=0.05)

    @pytest.mark.slow
    def test_tune_finds_its_step_size(self, target):
        # Efficiency is flat between these (Roberts and Rosenthal 2001, section 4).
        tuned = gs.tune(
            jax.random.key(0),
            gs.mcmc.random_walk,
            target,
            step_size=50.0,
            target_acceptance=0.234,
            num_steps=400,
            progress=False,
        )
        assert 0.1 < float(chain(jax.random.key(1), tuned.sampler, 2000).info.acceptance.mean()) < 0.45

    def test_proposals_that_are_not_finite_are_rejected_and_a_bad_start_is_marked(self):
        half = gs.Target.from_log_density(lambda x: jnp.log(x[0]) - x[0], jnp.zeros(1))
        good = chain(jax.random.key(0), gs.mcmc.random_walk(half, 1.0, start=lambda key: jnp.ones(1)), 200)
        assert bool((good.position > 0).all()) and not bool(good.info.diverged.any())
        bad = chain(jax.random.key(0), gs.mcmc.random_walk(half, 0.01, start=lambda key: -jnp.ones(1)), 3)
        assert bool(bad.info.diverged.all())


class TestIndependence:
    def test_a_proposal_that_is_the_target_is_always_accepted(self, target, normal):
        draws = chain(jax.random.key(0), gs.mcmc.independence(target, normal), 50)
        np.testing.assert_allclose(draws.info.acceptance, 1.0, rtol=1e-6)
        assert len(np.unique(draws.position[:, 0])) == 50
        assert draws.info.densities.tolist() == [1] * 50 and draws.info.forwards.tolist() == [0] * 50

    def test_it_is_blackjax(self, target, flow):
        sampler = gs.mcmc.independence(target, flow)
        x = jnp.array([0.5, -1.0])
        ours, raw, moved = sampler.init(jax.random.key(0), x), blackjax.mcmc.random_walk.init(x, bowl), 0

        @jax.jit
        def raw_step(key, raw):
            # The first half of a step's key is the proposal's; blackjax gets the other and a proposal that is drawn already.
            drawn = gs.draw(jax.random.split(key)[0], flow).position
            theirs = blackjax.irmh(bowl, lambda _: drawn, lambda _, end: flow.log_density(end.position))
            return theirs.step(jax.random.split(key)[1], raw)

        step = jax.jit(sampler.step)
        for i in range(10):
            ours, info = step(jax.random.key(i), ours, jnp.int32(i))
            raw, raw_info = raw_step(jax.random.key(i), raw)
            np.testing.assert_allclose(sampler.position(ours), raw.position, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(info.acceptance, raw_info.acceptance_rate, rtol=1e-4)
            moved += int(raw_info.is_accepted)
        assert 0 < moved < 10

    def test_a_flow_as_proposal_keeps_the_contracts_and_its_forwards_are_counted(self, target, flow):
        couplings = flow.step.args[0]
        sampler = gs.mcmc.independence(target, flow)
        held = check_sampler(
            sampler, template=target.template, target=target, networks=(couplings.forward, couplings.inverse),
            contracts=("type", "leaves", "state", "x64", "info", "retrace", "vmap", "retarget", "counts"),
        )  # fmt: skip
        assert set(held.values()) == {"held"}
        assert chain(jax.random.key(0), sampler, 2).info.forwards.tolist() == [2, 2]

    def test_the_forwards_of_a_density_can_be_said(self, target, flow):
        sampler = gs.mcmc.independence(target, flow, density_forwards=7)
        assert chain(jax.random.key(0), sampler, 2).info.forwards.tolist() == [8, 8]
        with pytest.raises(ValueError, match="density_forwards -1; expected a count"):
            gs.mcmc.independence(target, flow, density_forwards=-1)

    def test_it_starts_at_a_draw_of_the_proposal(self, target, flow):
        key = jax.random.key(3)
        np.testing.assert_array_equal(gs.mcmc.independence(target, flow).start(key), gs.draw(key, flow).position)
        given = gs.mcmc.independence(target, flow, start=lambda key: jnp.ones(2))
        assert given.start(key).tolist() == [1.0, 1.0]

    def test_a_place_the_proposal_never_reaches_is_marked(self, target):
        inside = gs.bind(lambda x: jnp.where(((x > 0) & (x < 1)).all(), 0.0, -jnp.inf))
        box = inverse_transform(lambda u: u, jnp.zeros(2), inside)
        outside = gs.mcmc.independence(target, box, start=lambda key: jnp.full(2, 3.0))
        draws = chain(jax.random.key(0), outside, 3)
        assert bool(draws.info.diverged.all()) and draws.position.tolist() == [[3.0, 3.0]] * 3

    def test_proposals_it_cannot_use_are_refused_by_name(self, target, normal):
        with pytest.raises(ValueError, match="independence got a proposal without log_density"):
            gs.mcmc.independence(target, dataclasses.replace(normal, log_density=None))
        with pytest.raises(ValueError, match="independence got a proposal without end"):
            gs.mcmc.independence(target, gs.mcmc.mala(target, 0.1))
        with pytest.raises(TypeError, match="Sampler"):
            gs.mcmc.independence(target, bowl)
        with pytest.raises(ValueError, match=r"proposal that draws .*expected events of the target"):
            gs.mcmc.independence(target, inverse_transform(jax.scipy.special.ndtri, jnp.zeros(3), gs.bind(bowl)))
        with pytest.raises(ValueError, match="independence needs target"):
            gs.mcmc.independence(gs.Target.from_data(jnp.ones((3, 2))), normal)
