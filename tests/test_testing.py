"""The tests that samplers are put to can fail: each check has draws, or a sampler, broken in one place that it must catch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from gensamp.core import Info, Sampler, Target, Traits, Truth, bind
from gensamp.testing import ContractError, check_law, check_laws, check_sampler, power

NORMAL = {0.1: -1.2815516, 0.5: 0.0, 0.9: 1.2815516}


def _log_density(scale, x):
    return -0.5 * jnp.sum((x / scale) ** 2)


def _score(log_density, x):
    return jax.grad(log_density)(x)


def _exact(scale, key):
    return scale * jax.random.normal(key, scale.shape, scale.dtype)


def gaussian(size=3, **known) -> Target:
    return Target.from_log_density(bind(_log_density, jnp.ones(size)), jnp.zeros(size), name="gaussian", **known)


def closed_form(size=3) -> Target:
    quantiles = {p: (jnp.full(size, q), 0.0) for p, q in NORMAL.items()}
    return gaussian(size, truth=Truth(mean=(jnp.zeros(size), 0.0), variance=(jnp.ones(size), 0.0), quantiles=quantiles))


def autoregressive(rng, correlation=0.9, keys=10, chains=4, draws=2000, size=3):
    """Chains of N(0, I) with correlation `correlation` between neighbours, started in equilibrium: [key, chain, draw, size]."""
    noise = rng.normal(size=(keys, chains, draws, size))
    x = np.empty_like(noise)
    x[:, :, 0] = noise[:, :, 0]
    for i in range(1, draws):
        x[:, :, i] = correlation * x[:, :, i - 1] + np.sqrt(1 - correlation**2) * noise[:, :, i]
    return x


class TestCheckLaw:
    @pytest.mark.parametrize("target", [closed_form(), gaussian(exact=bind(_exact, jnp.ones(3)))], ids=["closed", "exact"])
    def test_intact_draws_pass_and_scaled_or_shifted_ones_fail(self, target):
        x = np.random.default_rng(0).normal(size=(10, 1, 2000, 3))
        assert power(check_laws(x, target))["passed"] == 10
        assert power(check_laws(1.12 * x, target))["failed"] >= 9
        assert power(check_laws(x + 0.12, target))["failed"] >= 9

    def test_a_shape_with_the_right_moments_fails_by_its_quantiles(self):
        rng = np.random.default_rng(1)
        x = rng.uniform(-np.sqrt(3), np.sqrt(3), size=(10, 1, 4000, 3))
        checks = check_laws(x, closed_form())
        assert power(checks)["failed"] >= 9
        assert all("quantile" in check.where for check in checks)

    def test_the_false_alarm_rate_is_what_was_asked_for(self):
        x = np.random.default_rng(2).normal(size=(400, 1, 1000, 3))
        passed = power(check_laws(x, closed_form(), significance=0.05))["passed"]
        assert 400 * 0.92 <= passed < 400

    def test_correlated_chains_pass_and_without_the_ess_they_would_fail(self):
        x = autoregressive(np.random.default_rng(3))
        assert power(check_laws(x, closed_form()))["passed"] >= 9
        assert power(check_laws(x, closed_form(), independent=True))["failed"] >= 9

    def test_too_few_effective_draws_are_undecided(self):
        x = autoregressive(np.random.default_rng(4), correlation=0.995, draws=500)
        assert power(check_laws(x, closed_form()))["passed"] == 0
        few = np.random.default_rng(5).normal(size=(1, 40, 3))
        check = check_law(few, closed_form())
        assert check.verdict == "undecided" and not check.passed and "ESS 40" in str(check)

    def test_chains_in_two_modes_do_not_pass(self):
        rng = np.random.default_rng(6)
        x = rng.normal(size=(4, 1000, 3)) + np.array([-5.0, -5.0, 5.0, 5.0])[:, None, None]
        assert not check_law(x, closed_form()).passed

    def test_a_frozen_chain_does_not_pass(self):
        assert not check_law(np.full((4, 500, 3), 0.3), closed_form()).passed
        x = autoregressive(np.random.default_rng(7), keys=1)[0]
        x[0] = x[0, :1]
        assert not check_law(x, closed_form()).passed

    def test_draws_that_are_not_finite_fail_and_say_where(self):
        x = np.random.default_rng(8).normal(size=(1, 500, 3))
        x[0, 7, 2] = np.nan
        check = check_law(x, closed_form())
        assert check.verdict == "failed" and "x[2], which is not finite" in check.where

    def test_heavy_tails_leave_moments_out_and_keep_quantiles(self):
        target = Target.from_log_density(_cauchy, jnp.zeros(1), exact=_cauchy_draw)
        x = np.random.default_rng(9).standard_cauchy(size=(10, 1, 2000, 1))
        checks = check_laws(x, target)
        assert power(checks)["passed"] == 10
        assert set(checks[0].left_out) == {"mean of x[0]", "variance of x[0]"}
        assert power(check_laws(1.3 * x, target))["failed"] >= 9

    def test_weights_are_used(self):
        rng = np.random.default_rng(10)
        x = 1.5 * rng.normal(size=(10, 1, 4000, 2))
        log_weight = -0.5 * (x**2).sum(-1) + 0.5 * ((x / 1.5) ** 2).sum(-1)
        assert power(check_laws(x, closed_form(2), log_weight=log_weight))["passed"] >= 9
        assert power(check_laws(x, closed_form(2)))["failed"] >= 9
        runs = log_weight.reshape(10, 400, 10), x.reshape(10, 400, 10, 2)
        assert power(check_laws(runs[1], closed_form(2), log_weight=runs[0]))["passed"] >= 9

    def test_the_error_of_the_truth_counts(self):
        target = gaussian(truth=Truth(mean=(jnp.full(3, 0.15), jnp.full(3, 0.1))))
        sure = gaussian(truth=Truth(mean=(jnp.full(3, 0.15), 0.0)))
        x = np.random.default_rng(11).normal(size=(10, 1, 20_000, 3))
        assert power(check_laws(x, target))["passed"] == 10
        assert power(check_laws(x, sure))["failed"] == 10

    def test_reference_draws_serve_as_truth_in_a_tree(self):
        rng = np.random.default_rng(12)
        template = {"a": jnp.zeros(()), "b": jnp.zeros((2, 2))}
        reference = {"a": jnp.asarray(rng.normal(size=5000)), "b": jnp.asarray(rng.normal(size=(5000, 2, 2)))}
        target = Target(template=template, truth=Truth(reference=reference), name="tree")
        x = {"a": rng.normal(size=(10, 1, 5000)), "b": rng.normal(size=(10, 1, 5000, 2, 2))}
        checks = check_laws(x, target)
        assert power(checks)["passed"] >= 9
        assert "mean of ['b'][0, 1]" in checks[0].z
        assert power(check_laws(x | {"a": x["a"] + 0.2}, target))["failed"] >= 9

    def test_bad_input_is_one_sentence(self):
        with pytest.raises(ValueError, match="neither a truth nor exact draws"):
            check_law(np.zeros((1, 200, 3)), gaussian())
        with pytest.raises(ValueError, match=r"draws have shape \[200, 3\]; expected \[chain, draw, 3\]"):
            check_law(np.zeros((200, 3)), closed_form())
        with pytest.raises(ValueError, match="log_weight has shape"):
            check_law(np.zeros((1, 200, 3)), closed_form(), log_weight=np.zeros(200))


def _cauchy(x):
    return -jnp.sum(jnp.log1p(x**2))


def _cauchy_draw(key):
    return jax.random.cauchy(key, (1,))


# A chain written by hand: Langevin with a cached score. Each function below it is the same with one line changed.


def _start(template, key):
    return jax.random.normal(key, template.shape, template.dtype)


def _init(score, key, position):
    return {"x": position, "score": score(position)}


def _move(step_size, key, state):
    noise = jax.random.normal(key, state["x"].shape, state["x"].dtype)
    return state["x"] + step_size * state["score"] + jnp.sqrt(2 * step_size) * noise


def _step(score, step_size, key, state, index):
    x = _move(step_size, key, state)
    return {"x": x, "score": score(x)}, Info.of(gradients=1)


def _position(state):
    return state["x"]


def _stale(score, step_size, key, state, index):
    return {"x": _move(step_size, key, state), "score": state["score"]}, Info.of(gradients=0)


def _twice(score, step_size, key, state, index):
    x = _move(step_size, key, state)
    return {"x": x, "score": (score(x) + score(1.0 * x)) / 2}, Info.of(gradients=1)


def _silent(score, step_size, key, state, index):
    return _step(score, step_size, key, state, index)[0], Info.of()


def _narrow(score, step_size, key, state, index):
    state, info = _step(score, step_size, key, state, index)
    return state | {"x": state["x"].astype(jnp.float16)}, info


def _wide(score, step_size, key, state, index):
    state, info = _step(score, step_size, key, state, index)
    return state | {"x": state["x"] + 0 * jax.random.normal(key, (3,))}, info


def _keyless(score, step_size, key, state, index):
    return _step(score, step_size, jax.random.key(0), state, index)


def _origin(template, key):
    return jnp.zeros(template.shape, template.dtype)


def _numpy(score, step_size, key, state, index):
    state, info = _step(score, step_size, key, state, index)
    return state | {"x": state["x"] + np.float32(np.random.normal())}, info


def _hosted(score, step_size, key, state, index):
    state, info = _step(score, step_size, key, state, index)
    jax.debug.callback(len, "")
    return state, info


def _surest(score, step_size, key, state, index):
    return _step(score, step_size, key, state, index)[0], Info.of(gradients=1, acceptance=2.0)


def _plain_info(score, step_size, key, state, index):
    return _step(score, step_size, key, state, index)[0], dataclasses.replace(Info.of(gradients=1), acceptance=jnp.int32(1))


def _no_info(score, step_size, key, state, index):
    return _step(score, step_size, key, state, index)[0], ()


@jax.custom_batching.custom_vmap
def _itself(x):
    return x


@_itself.def_vmap
def _mean_of_all(size, batched, x):
    return 0.9 * x + 0.1 * x.mean(0, keepdims=True), True


def _crowd(score, step_size, key, state, index):
    state, info = _step(score, step_size, key, state, index)
    return {"x": _itself(state["x"]), "score": score(_itself(state["x"]))}, info


def _counting_init(score, key, position):
    return {**_init(score, key, position), "count": jnp.int32(0)}


def _counting(score, step_size, key, state, index):
    after, info = _step(score, step_size, key, state, index)
    return {**after, "count": state["count"] + 1}, info


def _weak_init(score, key, position):
    return {**_init(score, key, position), "scale": jnp.asarray(0.5)}


def _weak(score, step_size, key, state, index):
    after, info = _step(score, step_size, key, state, index)
    return {**after, "scale": jnp.float32(0.5)}, info


TARGET = gaussian()


def by_hand(*, start=_start, init=_init, step=_step, step_size=0.1):
    score = bind(_score, TARGET.log_density)
    return Sampler(
        start=bind(start, jnp.zeros(3)), init=bind(init, score),
        step=bind(step, score, jnp.float32(step_size) if isinstance(step_size, float) else step_size), position=bind(_position),
        traits=Traits(law="approximate"),
    )  # fmt: skip


def _hidden_in_closure():
    sampler = by_hand()
    metric = jnp.ones(3)
    return dataclasses.replace(sampler, position=Partial(lambda state: state["x"] * metric))


def _hidden_in_functools():
    return dataclasses.replace(by_hand(), position=Partial(functools.partial(_scaled, jnp.ones(3))))


def _hidden_in_a_partial_of_a_partial():
    return dataclasses.replace(by_hand(), position=Partial(Partial(_scaled, jnp.ones(3))))


def _scaled(scale, state):
    return scale * state["x"]


class _Holder:
    def __init__(self):
        self.scale = jnp.ones(3)

    def position(self, state):
        return self.scale * state["x"]


def _hidden_in_a_method():
    return dataclasses.replace(by_hand(), position=Partial(_Holder().position))


BROKEN = {
    "a function that is no pytree": ("type", lambda: dataclasses.replace(by_hand(), position=_position)),
    "no step at all": ("type", lambda: dataclasses.replace(by_hand(), num_steps=0)),
    "an array in a closure": ("leaves", _hidden_in_closure),
    "an array in a functools.partial": ("leaves", _hidden_in_functools),
    "an array in a Partial of a Partial": ("leaves", _hidden_in_a_partial_of_a_partial),
    "an array in a bound method": ("leaves", _hidden_in_a_method),
    "a Python number for a leaf": ("leaves", lambda: by_hand(step_size=1)),
    "a weakly typed leaf": ("leaves", lambda: by_hand(step_size=jnp.asarray(0.1))),
    "a state that changes its dtype": ("state", lambda: by_hand(step=_narrow)),
    "a state that changes its weak type": ("state", lambda: by_hand(init=_weak_init, step=_weak)),
    "a state that loses a part": ("state", lambda: by_hand(init=_counting_init)),
    "noise of the default dtype": ("x64", lambda: by_hand(step=_wide)),
    "an acceptance above one": ("info", lambda: by_hand(step=_surest)),
    "an acceptance that is an integer": ("info", lambda: by_hand(step=_plain_info)),
    "no Info": ("info", lambda: by_hand(step=_no_info)),
    "a callback": ("callbacks", lambda: by_hand(step=_hosted)),
    "NumPy's random numbers": ("determinism", lambda: by_hand(step=_numpy)),
    "a key that is not used": ("determinism", lambda: by_hand(start=_origin, step=_keyless)),
    "draws that see each other": ("vmap", lambda: by_hand(step=_crowd)),
    "an index in the state": ("index", lambda: by_hand(init=_counting_init, step=_counting)),
    "a cache that a step leaves stale": ("retarget", lambda: by_hand(step=_stale)),
    "a gradient too many": ("counts", lambda: by_hand(step=_twice)),
    "a gradient kept quiet": ("counts", lambda: by_hand(step=_silent)),
}


class TestCheckSampler:
    def test_an_intact_sampler_keeps_every_contract(self):
        held = check_sampler(by_hand(), template=jnp.zeros(3), target=TARGET, remake=lambda: by_hand(step_size=0.2))
        assert {name for name, verdict in held.items() if verdict == "held"} == set(held) - {"grad"}

    @pytest.mark.parametrize("what", BROKEN)
    def test_a_broken_sampler_is_caught_by_the_contract_it_breaks(self, what):
        contract, make = BROKEN[what]
        with pytest.raises(ContractError) as caught:
            check_sampler(make(), template=jnp.zeros(3), target=TARGET)
        assert caught.value.contract == contract, caught.value
        assert "\n" not in str(caught.value)

    def test_a_sampler_that_is_another_program_when_built_again_is_caught(self):
        def rebuilt():
            return dataclasses.replace(by_hand(), position=Partial(lambda state: state["x"]))

        with pytest.raises(ContractError, match="retrace: the sampler built again is another program"):
            check_sampler(rebuilt(), remake=rebuilt, contracts=("retrace",))

    def test_a_position_unlike_the_template_is_caught(self):
        with pytest.raises(ContractError, match=r"differs from the template: leaf x was float32\[4\] and is float32\[3\]"):
            check_sampler(by_hand(), template=jnp.zeros(4), contracts=("state",))

    @pytest.mark.parametrize(("power", "breaks"), [(2.0, False), (0.5, True)])
    def test_a_finite_sampler_is_differentiated(self, power, breaks):
        sampler = Sampler(
            start=bind(_start, jnp.zeros(3)), init=bind(_finite_init), position=bind(_position), num_steps=2,
            step=bind(_finite_step, jnp.float32(power), jnp.zeros(3)),
        )  # fmt: skip
        if breaks:
            with pytest.raises(ContractError, match="grad: the derivative of a draw in its leaves is not finite"):
                check_sampler(sampler)
        else:
            assert check_sampler(sampler)["grad"] == "held"

    def test_an_unknown_contract_is_refused(self):
        with pytest.raises(ValueError, match="there is no contract 'grads'; expected some of type, leaves"):
            check_sampler(by_hand(), skip=("grads",))


def _finite_init(key, position):
    return {"x": position}


def _finite_step(exponent, zero, key, state, index):
    # The derivative of zero to the power 1/2 is infinite.
    return {"x": state["x"] + jnp.power(zero * exponent, exponent)}, Info.of()
