"""Sizes that no chain can walk with are refused when it is built, whichever constructor they are given to."""

import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import gensamp as gs
from gensamp import mcmc, paths

TARGET = gs.Target.from_log_density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(2))
PATH = paths.geometric(mcmc.normal_base(jnp.zeros(2), scale=2.0), TARGET)
ALONG = {"levels": jnp.array([0.5, 1.0]), "step_sizes": 0.1}
WHOLE = {"levels": jnp.array([0.0, 1.0]), "step_sizes": 0.1}


def batch_density(x, batch):
    return -0.5 * jnp.sum((x[None] - batch) ** 2) * 50 / len(batch)


BATCHES = gs.Target(template=TARGET.template, minibatch_log_density=Partial(batch_density), data=np.zeros((50, 2), np.float32))
COVARIANCE = np.array([[1.0, 0.5], [0.5, 2.0]])
SIZES = [
    *[(make, (TARGET,), {}, "step_size") for make in (mcmc.random_walk, mcmc.mala, mcmc.ula, mcmc.barker, mcmc.hmc, mcmc.nuts)],
    *[
        (make, (TARGET,), {"step_size": 0.1}, name)
        for make, names in {
            mcmc.hmc: ["num_integration_steps"],
            mcmc.dynamic_hmc: ["step_size", "trajectory_length", "max_num_steps"],
            mcmc.ghmc: ["step_size", "alpha", "delta"],
            mcmc.malt: ["step_size", "trajectory_length", "damping", "max_num_steps"],
            mcmc.mclmc: ["step_size", "decoherence_length"],
            mcmc.mams: ["step_size", "trajectory_length", "decoherence_length", "max_num_steps"],
            mcmc.underdamped: ["step_size", "friction"],
        }.items()
        for name in names
    ],
    (mcmc.slice_sampling, (TARGET,), {}, "width"), (mcmc.hit_and_run, (TARGET,), {}, "width"),
    (mcmc.stretch, (TARGET,), {"num_walkers": 8}, "scale"),
    (mcmc.sgld, (BATCHES,), {"batch_size": 5}, "step_size"), (mcmc.sghmc, (BATCHES,), {"batch_size": 5}, "step_size"),
    (mcmc.sghmc, (BATCHES,), {"step_size": 0.01, "batch_size": 5}, "friction"),
    *[(mcmc.polynomial_decay, (), {"first": 0.1}, name) for name in ("first", "delay", "power")],
    (mcmc.annealed_langevin, (PATH,), ALONG | {"steps_per_level": 2}, "step_sizes"),
    (mcmc.ais, (PATH,), ALONG, "step_sizes"), (mcmc.smc, (PATH,), ALONG | {"num_particles": 10}, "step_sizes"),
    (mcmc.waste_free_smc, (PATH,), ALONG | {"num_particles": 10, "num_ancestors": 5}, "step_sizes"),
    (mcmc.parallel_tempering, (PATH,), WHOLE, "step_sizes"), (mcmc.adaptive_smc, (PATH,), {"num_particles": 10}, "step_size"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "given", "options", "name"), SIZES, ids=[f"{row[0].__name__}-{row[3]}" for row in SIZES])
def test_a_size_that_is_not_positive_is_refused(make, given, options, name):
    for value in (-1.0, 0.0, float("nan"), jnp.float32(-1.0), -1, 0, jnp.int32(-1)):
        with pytest.raises(
            ValueError, match=f"{make.__name__} got (a )?{name}|{make.__name__} got .*{name} that are not finite"
        ):
            make(*given, **options | {name: value})


@pytest.mark.parametrize("value", [1e-60, 1e60])
def test_a_step_size_is_judged_in_the_dtype_it_is_used_in(value):
    with pytest.raises(ValueError, match=r"mala got step_size 1e.*; expected a positive finite number in float32"):
        mcmc.mala(TARGET, value)
    wide = gs.Target.from_log_density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(2))
    assert jax.eval_shape(lambda step: mcmc.mala(wide, step), 0.1).num_steps is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mcmc.hmc(TARGET, 0.1, num_integration_steps="a"), "hmc got num_integration_steps 'a'; expected one integer"),
        (lambda: mcmc.malt(TARGET, 0.1, max_num_steps=None), "malt got max_num_steps None; expected one integer"),
        (lambda: mcmc.slice_sampling(TARGET, "wide"), "slice_sampling got width 'wide'; expected positive finite numbers"),
        (
            lambda: mcmc.ais(PATH, **ALONG, kernel_options={"num_integration_steps": jnp.int32(0)}),
            "hmc got num_integration_steps 0; expected at least 1",
        ),
        (lambda: mcmc.ais(PATH, **ALONG | {"step_sizes": None}), "ais got step_sizes None; expected positive numbers"),
        (lambda: mcmc.smc(PATH, **ALONG, num_particles=9, ess_threshold=float("nan")), "smc got ess_threshold nan; expected"),
        (lambda: mcmc.adaptive_smc(PATH, num_particles=9, ess_threshold=-1.0), "adaptive_smc got ess_threshold -1.0; expected"),
        (
            lambda: mcmc.annealed_langevin(PATH, **ALONG, steps_per_level=1, denoise=-0.1),
            "annealed_langevin got denoise -0.1; expected the variance of the noise that is left",
        ),
        (
            lambda: mcmc.sgld(BATCHES, lambda index: -0.1, batch_size=5),
            r"sgld \(from its schedule, at step 0\) got step_size -0.1",
        ),
        (
            lambda: jax.eval_shape(lambda step: mcmc.sghmc(BATCHES, step, batch_size=5, friction=-1.0), 0.1),
            "sghmc got friction -1.0; expected a finite number that is positive",
        ),
    ],
)  # fmt: skip
def test_what_no_run_can_use_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("make", [mcmc.nuts, mcmc.ula, mcmc.random_walk, lambda *a, **b: mcmc.stretch(TARGET, 6, **b)])
@pytest.mark.parametrize(
    ("start", "error", "message"),
    [
        (lambda key: jnp.zeros(3), ValueError, r"start makes float32\[3\]; expected float32\[2\]"),
        (lambda key: jnp.zeros(2, int), ValueError, r"start makes int32\[2\]; expected float32\[2\]"),
        (lambda key: {"x": jnp.zeros(2)}, ValueError, r"start makes {x: float32\[2\]}; expected float32\[2\]"),
        (lambda: jnp.zeros(2), TypeError, "start cannot be traced at a key: TypeError: .* takes 0 positional arguments"),
    ],
)
def test_a_start_makes_one_position_of_the_target(make, start, error, message):
    with pytest.raises(error, match=message):
        make(TARGET, 0.1, start=start)


def test_lists_are_arrays_to_levels_and_metrics():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lists = mcmc.ais(PATH, levels=[0.5, 1], step_sizes=[0.3, 0.2], inverse_mass_matrices=[1.0, 2.0])
        arrays = mcmc.ais(
            PATH, levels=np.array([0.5, 1]), step_sizes=np.array([0.3, 0.2]), inverse_mass_matrices=np.array([1.0, 2.0])
        )
        metric = mcmc.mala(TARGET, 0.1, inverse_mass_matrix=[1.0, 2.0]).step.args
        with pytest.raises(ValueError, match=r"ais got levels of shape \[\]; expected \[levels\], at least one"):
            mcmc.ais(PATH, levels=1.0, step_sizes=0.3)
        with pytest.raises(ValueError, match=r"mala got a step_size of shape \[2\]; expected one number"):
            mcmc.mala(TARGET, [0.1, 0.2])
    assert any(np.array_equal(a, [1.0, 2.0]) for a in jax.tree.leaves(metric))
    for a, b in zip(jax.tree.leaves(lists), jax.tree.leaves(arrays), strict=True):
        np.testing.assert_array_equal(a, b)


TREE = gs.Target.from_log_density(
    lambda x: -0.5 * (x["one"] @ x["one"] + x["two"] ** 2),
    {"one": jnp.zeros(1, jnp.float32), "two": jnp.zeros((), jnp.float32)},
)


@pytest.mark.parametrize("target", [TARGET, TREE])
@pytest.mark.parametrize(
    "make",
    [
        mcmc.hmc,
        mcmc.dynamic_hmc,
        mcmc.mala,
        mcmc.ula,
        mcmc.barker,
        mcmc.random_walk,
        mcmc.ghmc,
        mcmc.malt,
        mcmc.underdamped,
        mcmc.mams,
    ],
)
def test_a_covariance_keeps_events_of_float32_as_they_are_in_double_precision(make, target):
    """The same draws, as float32, as where float32 is all there is."""

    def drawn():
        return gs.chain(jax.random.key(0), make(target, 0.3, inverse_mass_matrix=COVARIANCE), 5).position

    expected = drawn()
    with jax.enable_x64(True):
        found = drawn()
    chex.assert_trees_all_equal_dtypes(found, target.template)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)
