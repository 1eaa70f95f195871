"""SGLD and SGHMC: the size of the data is checked, and so is what else they are given; their steps are blackjax's."""

import dataclasses

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gensamp as gs

chain = jax.jit(gs.chain, static_argnums=2)

ROWS = 60
DATA = 2.0 + jax.random.normal(jax.random.key(0), (ROWS, 2))


def log_posterior(data, x):
    return -0.5e-5 * jnp.sum(x**2) - 0.5 * jnp.sum((data - x[None]) ** 2)


def log_batch(factor, x, batch):
    """The prior and `factor` / n times the batch's likelihood; a constant more than the posterior, which does not matter."""
    return 7.0 - 0.5e-5 * jnp.sum(x**2) - 0.5 * factor / len(batch) * jnp.sum((batch - x[None]) ** 2)


def posterior(factor=ROWS, data=DATA, **changes):
    target = gs.Target.from_log_density(
        gs.bind(log_posterior, jnp.asarray(DATA)), jnp.zeros(2), data=data, name="posterior",
        minibatch_log_density=gs.bind(log_batch, jnp.float32(factor)),
    )  # fmt: skip
    return dataclasses.replace(target, **changes)


BOTH = pytest.mark.parametrize("make", [gs.mcmc.sgld, gs.mcmc.sghmc])


@BOTH
class TestDataSize:
    # 15 divides the rows, 7 does not.
    @pytest.mark.parametrize("batch_size", [15, 7, 1])
    def test_a_batch_scaled_by_rows_over_batch_is_taken(self, make, batch_size):
        assert make(posterior(), 0.001, batch_size=batch_size).num_steps is None

    @pytest.mark.parametrize(("factor", "ratio"), [(15, r"0\.25"), (1, r"0\.0167"), (120, "2")])
    def test_another_factor_is_refused_and_the_ratio_named(self, make, factor, ratio):
        with pytest.raises(ValueError, match=rf"{make.__name__} got a minibatch.* is {ratio} times .*N / n = 4 times"):
            make(posterior(factor), 0.001, batch_size=15)

    def test_many_rows_are_checked_on_some_batches(self, make, monkeypatch):
        monkeypatch.setattr("gensamp.mcmc.sgmcmc.CHECKED", 8)
        assert make(posterior(), 0.001, batch_size=4).num_steps is None
        with pytest.raises(ValueError, match="N / n = 15 times"):
            make(posterior(4), 0.001, batch_size=4)

    def test_without_a_score_it_cannot_be_checked(self, make):
        assert make(posterior(1, log_density=None, score=None), 0.001, batch_size=15).num_steps is None

    def test_traced_targets_are_not_checked(self, make):
        def last(shift):
            sampler = make(posterior(data=DATA + shift), 0.001, batch_size=15)
            return chain(jax.random.key(0), sampler, 5).position[-1]

        assert bool(jnp.isfinite(jax.jit(jax.vmap(last))(jnp.arange(2.0))).all())

    @pytest.mark.parametrize("batch_size", [0, 61, -3])
    def test_a_batch_has_between_one_and_all_rows(self, make, batch_size):
        with pytest.raises(ValueError, match=f"batch_size {batch_size} for 60 rows; expected an integer from 1 to 60"):
            make(posterior(), 0.001, batch_size=batch_size)

    def test_data_must_have_rows_that_match(self, make):
        for data in (jnp.zeros((0, 2)), {"x": jnp.ones((3, 2)), "y": jnp.ones(4)}, jnp.ones(()), {}):
            with pytest.raises(ValueError, match="expected arrays that share a leading axis of at least one row"):
                make(posterior(data=data), 0.001, batch_size=1)

    def test_a_batch_density_of_another_kind_is_named(self, make):
        for wrong, said in (
            (lambda x: x.sum(), r"cannot be traced at one event and a batch of 4 rows: TypeError: .* 1 positional argument"),
            (
                lambda x, batch: (batch - x[None]).sum(1),
                r"returns float32\[4\] for one event and a batch of 4 rows; expected one",
            ),
        ):
            with pytest.raises(TypeError, match=f"{make.__name__} got a minibatch_log_density that {said}"):
                make(posterior(minibatch_log_density=wrong), 0.001, batch_size=4)

    def test_what_is_missing_is_named(self, make):
        with pytest.raises(ValueError, match=f"{make.__name__} needs target.data, and target 'posterior' has none"):
            make(posterior(data=None), 0.001, batch_size=1)
        with pytest.raises(ValueError, match=rf"{make.__name__} needs target\.minibatch_log_density"):
            make(posterior(minibatch_log_density=None), 0.001, batch_size=1)


@BOTH
def test_step_sizes_must_be_positive(make):
    with pytest.raises(ValueError, match=f"{make.__name__} got step_size -1"):
        make(posterior(), -1.0, batch_size=15)


def test_the_metric_must_fit():
    with pytest.raises(ValueError, match=r"shape \[3\]; expected \[2\]"):
        gs.mcmc.sgld(posterior(), 0.001, batch_size=15, inverse_mass_matrix=jnp.ones(3))


def test_friction_must_take_out_what_batches_bring():
    with pytest.raises(ValueError, match="friction 0"):
        gs.mcmc.sghmc(posterior(), 0.01, batch_size=15, friction=0.0)
    with pytest.raises(ValueError, match=r"gradient_noise -1"):
        gs.mcmc.sghmc(posterior(), 0.01, batch_size=15, gradient_noise=-1.0)
    with pytest.raises(ValueError, match="expected at most 2 friction / step_size"):
        gs.mcmc.sghmc(posterior(), 0.01, batch_size=15, friction=1.0, gradient_noise=300.0)


@BOTH
class TestBothKinds:
    def test_it_is_approximate_and_counts_gradients_of_batches(self, make):
        sampler = make(posterior(), 0.001, batch_size=15)
        draws = chain(jax.random.key(0), sampler, 4)
        assert sampler.traits.law == "approximate"
        assert draws.info.gradients.tolist() == [1] * 4 and draws.info.densities.tolist() == [0] * 4
        assert not bool(draws.info.diverged.any())

    def test_data_and_events_of_any_tree(self, make):
        data = {"x": np.ones((20, 3)), "y": np.arange(20)}

        def log_density(x, batch):
            error = batch["y"] - batch["x"] @ x["slope"] - x["level"]
            return -20 / len(error) * jnp.sum(error**2)

        template = {"level": jnp.zeros(()), "slope": jnp.zeros(3)}
        target = gs.Target(template=gs.core.as_template(template), minibatch_log_density=log_density, data=data)
        draws = chain(jax.random.key(0), make(target, 1e-5, batch_size=5), 3)
        assert draws.position["slope"].shape == (3, 3)

    def test_it_says_when_it_leaves_for_infinity(self, make):
        draws = chain(jax.random.key(0), make(posterior(), 3.0, batch_size=15), 300)
        assert not bool(draws.info.diverged[0]) and bool(draws.info.diverged[-1])

    def test_the_schedule_is_followed(self, make):
        """A step size that is zero from the third step on: there the position stays."""
        sampler = make(posterior(), lambda index: jnp.where(index < 3, 0.001, 0.0), batch_size=15)
        path = np.asarray(chain(jax.random.key(0), sampler, 6).position)
        assert (path[0] != path[2]).all() and (path[3:] == path[2]).all()

    def test_tune_refuses_what_accepts_everything(self, make):
        with pytest.raises(ValueError, match="accepts everything"):
            gs.tune(jax.random.key(0), lambda target, size, **_: make(target, size, batch_size=15), posterior())


def test_all_data_at_once_is_ula():
    target = posterior()
    sampler, ula = gs.mcmc.sgld(target, 0.003, batch_size=ROWS), gs.mcmc.ula(target, 0.003)
    one, other = (s.init(jax.random.key(0), jnp.ones(2)) for s in (sampler, ula))
    for i in range(3):
        one, _ = sampler.step(jax.random.key(i), one, jnp.int32(i))
        other, _ = ula.step(jax.random.split(jax.random.key(i))[1], other, jnp.int32(i))
        np.testing.assert_allclose(one.position, other.position, rtol=1e-5, atol=1e-5)


def test_sgld_is_blackjax():
    target = posterior()
    sampler, theirs = gs.mcmc.sgld(target, 0.003, batch_size=15), blackjax.sgld(jax.grad(target.minibatch_log_density))
    state, x = sampler.init(jax.random.key(0), jnp.ones(2)), jnp.ones(2)
    for i in range(3):
        key_batch, key_noise = jax.random.split(jax.random.key(i))
        batch = DATA[jax.random.randint(key_batch, (15,), 0, ROWS)]
        state, _ = sampler.step(jax.random.key(i), state, jnp.int32(i))
        x = theirs.step(key_noise, x, batch, 0.003)
        np.testing.assert_allclose(state.position, x, rtol=1e-5, atol=1e-5)


def test_sghmc_without_friction_or_noise_in_its_batches_keeps_the_energy():
    """With a -> 0 and all data it is a symplectic integrator; with the slope of the old position energy would grow 100-fold."""
    target = posterior()
    sampler = gs.mcmc.sghmc(target, 0.02, batch_size=ROWS, friction=1e-8)
    state = sampler.init(jax.random.key(0), jnp.ones(2))

    def energy(state):
        bottom = target.log_density(jnp.asarray(DATA).mean(0))
        return float(0.5 * jnp.sum(state.momentum**2) - target.log_density(state.position) + bottom)

    step, energies = jax.jit(sampler.step), []
    for i in range(200):
        state, _ = step(jax.random.key(i), state, jnp.int32(i))
        energies.append(energy(state))
    assert max(energies[-50:]) == pytest.approx(max(energies[:50]), rel=0.05)


def test_polynomial_decay_is_the_papers():
    """a (b + i)^-gamma with a = first b^gamma."""
    schedule = gs.mcmc.polynomial_decay(0.1, delay=10.0, power=0.55)
    sizes = np.array([float(schedule(jnp.int32(i))) for i in (0, 1, 50)])
    np.testing.assert_allclose(sizes, 0.1 * 10**0.55 * (10.0 + np.array([0, 1, 50])) ** -0.55, rtol=1e-5)
    assert len(jax.tree.leaves(schedule)) == 3
    with pytest.raises(ValueError, match="got delay 0"):
        gs.mcmc.polynomial_decay(0.1, delay=0)
