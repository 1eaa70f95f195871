"""auto: right draws without a decision, a stop when they are good enough, and plain words about what is wrong."""

import os
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from arviz_stats.base import array_stats
from numpyro import distributions as dist
from scipy.stats import norm
from scipy.stats import t as student_t

import gensamp as gs
from gensamp.clock import compile_clock
from gensamp.remarks import coarse
from gensamp.testing import check_laws, power

SCALES = np.array([1e-3, 1.0, 50.0])
CORRELATION = np.array([[1.0, 0.8, 0.0], [0.8, 1.0, 0.5], [0.0, 0.5, 1.0]])
COVARIANCE = CORRELATION * SCALES[:, None] * SCALES
CENTRE = np.array([0.5, -3.0, 200.0])


def log_gaussian(precision, x):
    gap = x - jnp.asarray(CENTRE, x.dtype)
    return -0.5 * gap @ precision @ gap


def badly_scaled():
    precision = jnp.asarray(np.linalg.inv(COVARIANCE), jnp.float32)
    truth = gs.Truth(mean=(CENTRE, 0.0), variance=(SCALES**2, 0.0), source="closed form")
    return gs.Target.from_log_density(gs.bind(log_gaussian, precision), jnp.zeros(3), truth=truth)


def test_a_badly_scaled_gaussian_is_drawn_from_correctly_for_nearly_every_key():
    target = badly_scaled()
    runs = [gs.auto(jax.random.key(seed), target) for seed in range(10)]
    assert {run.ending for run in runs} == {"converged"}
    length = min(run.position.shape[1] for run in runs)
    checks = check_laws(np.stack([run.position[:, :length] for run in runs]), target)
    assert power(checks)["passed"] >= 9, "\n".join(map(str, checks))


def test_the_rule_is_met_on_coordinates_and_on_named_quantities():
    def model(y):
        centre = numpyro.sample("centre", dist.Normal(0.0, 10.0))
        spread = numpyro.sample("spread", dist.HalfNormal(5.0))
        numpyro.deterministic("ratio", centre / spread)
        numpyro.sample("y", dist.Normal(centre, spread), obs=y)

    target = gs.Target.from_numpyro(model, np.array([1.0, 2.5, 0.3, 1.8], np.float32))
    draws = gs.auto(jax.random.key(0), target, gs.Until(ess=1000, rhat=1.02))
    assert draws.ending == "converged" and set(draws.position) == {"centre", "spread"}
    named = gs.named(target, draws.position)
    assert set(named) == {"centre", "spread", "ratio"} and (named["spread"] > 0).all()
    for values in named.values():
        assert array_stats.ess(values[..., None], chain_axis=0, draw_axis=1, method="bulk").min() >= 1000
        assert array_stats.rhat(values[..., None], chain_axis=0, draw_axis=1).max() <= 1.02
    assert draws.notes[0].startswith("HMC with jittered paths and a dense metric, 8 chains")
    assert draws.ledger.tune.gradients > 0 and draws.ledger.sample.gradients > 0


def test_the_same_key_gives_the_same_draws_and_compiles_nothing_again():
    target = badly_scaled()
    first = gs.auto(jax.random.key(3), target)
    with compile_clock() as clock:
        again = gs.auto(jax.random.key(3), target)
    np.testing.assert_array_equal(first.position, again.position)
    assert clock.count == 0


def test_chains_spread_over_devices_and_two_large_programs_make_them():
    with compile_clock() as clock:
        # Chains that do not divide evenly are padded.
        draws = gs.auto(jax.random.key(3), badly_scaled(), mesh=gs.parallel.mesh(3))
    assert draws.ending == "converged" and draws.position.shape[0] == 8
    deviation = draws.position.reshape(-1, 3).mean(0) - CENTRE
    assert np.all(np.abs(deviation) <= 0.2 * SCALES)
    assert sorted(name for name in clock.programs if "begin" in name or "advance" in name) == ["jit(advance)", "jit(begin)"]


def test_long_events_get_variances_for_a_metric():
    draws = gs.auto(jax.random.key(0), gs.targets.ill_conditioned_gaussian(300), gs.Until(ess=100, rhat=1.1))
    assert draws.ending == "converged" and "a diagonal metric" in draws.notes[0]


def test_an_improper_posterior_is_named():
    target = gs.Target.from_log_density(lambda x: -0.5 * x[0] ** 2 + 0 * x[1], jnp.zeros(2))
    with pytest.warns(UserWarning, match="improper"):
        draws = gs.auto(jax.random.key(0), target, most_draws=200)
    assert draws.ending == "finished" and any("improper" in note for note in draws.notes)


def test_collinear_predictors_without_a_prior_are_named():
    x = np.random.default_rng(0).normal(size=20).astype(np.float32)

    def model(predictors, y):
        slopes = numpyro.sample("slopes", dist.ImproperUniform(dist.constraints.real_vector, (), (2,)))
        spread = numpyro.sample("spread", dist.HalfNormal(1.0))
        numpyro.sample("y", dist.Normal(predictors @ slopes, spread), obs=y)

    y = x + 0.1 * np.random.default_rng(1).normal(size=20).astype(np.float32)
    target = gs.Target.from_numpyro(model, np.stack([x, x], 1), y)
    with pytest.warns(UserWarning, match="improper"):
        draws = gs.auto(jax.random.key(0), target, most_draws=500)
    assert draws.ending == "finished" and any("improper" in note for note in draws.notes)


def test_a_density_that_is_the_same_everywhere_is_named_though_chains_agree():
    with pytest.warns(UserWarning, match="improper"):
        gs.auto(jax.random.key(0), gs.Target.from_log_density(lambda x: 0 * x[0], jnp.zeros(1)), most_draws=2000)


def test_modes_far_apart_are_noticed():
    def log_density(x):
        return jnp.logaddexp(-0.5 * jnp.sum((x - 20) ** 2), -0.5 * jnp.sum((x + 20) ** 2))

    with pytest.warns(UserWarning, match="did not agree"):
        draws = gs.auto(jax.random.key(0), gs.Target.from_log_density(log_density, jnp.zeros(2)), most_draws=200)
    assert draws.ending == "finished"
    signs = np.sign(draws.position[:, :, 0].mean(1))
    assert set(signs) == {-1.0, 1.0}, "chains let down on their own sit in both modes"


def test_a_chain_that_is_stuck_is_named():
    """One chain starts in a spike of the same height, ten thousand times narrower than where the others are."""

    def log_density(x):
        return jnp.logaddexp(-0.5 * jnp.sum(x**2), -0.5 * jnp.sum(((x - 30) / 1e-4) ** 2))

    target = gs.Target.from_log_density(log_density, jnp.zeros(1))
    initial = np.linspace(-1, 1, 16, dtype=np.float32)[:, None]
    initial[5] = 30
    draws = gs.auto(jax.random.key(0), target, initial=initial)
    assert any("a chain was stuck in warm-up" in note for note in draws.notes[1:])
    assert abs(draws.position).max() < 10


def test_a_mode_that_chains_were_moved_from_is_warned_of():
    def log_density(x):
        return jnp.logaddexp(-0.5 * ((x[0] - 8) / 0.2) ** 2 - jnp.log(0.2), -0.5 * ((x[0] + 8) / 2) ** 2 - jnp.log(2.0))

    initial = np.array([8, 8.1, 7.9, 8, -8, -7, -9, -6], np.float32)[:, None]
    with pytest.warns(UserWarning, match="its weight is missing|did not agree"):
        gs.auto(jax.random.key(0), gs.Target.from_log_density(log_density, jnp.zeros(1)), initial=initial, most_draws=2000)


def test_a_bound_that_is_only_in_the_density_is_noticed_by_divergences():
    target = gs.Target.from_log_density(lambda x: jnp.where(x[0] > 0, -2 * x[0], -jnp.inf), jnp.zeros(1))
    with pytest.warns(UserWarning, match="or the density ends at a bound; .*constraints="):
        gs.auto(jax.random.key(0), target, most_draws=2000)


def test_heavy_tails_are_noticed_by_the_energy():
    target = gs.Target.from_log_density(lambda x: -0.7 * jnp.sum(jnp.log1p(x**2)), jnp.zeros(5))
    with pytest.warns(UserWarning, match="E-BFMI below 0.3"):
        draws = gs.auto(jax.random.key(0), target, most_draws=1000)
    assert draws.info.extra["energy"].shape == draws.position.shape[:2]


def test_numbers_too_far_apart_for_the_density_are_named():
    def log_density(x):
        return -0.5 * x["height"] ** 2 - 0.5 * ((x["when"] - 1.7e9) / 10) ** 2

    target = gs.Target.from_log_density(log_density, {"height": jnp.zeros(()), "when": jnp.zeros(())})
    with pytest.warns(UserWarning, match="when hardly vary beside their size.*use float64"):
        gs.auto(jax.random.key(0), target, most_draws=200)


def test_only_coordinates_of_a_few_numbers_are_coarse():
    unit = np.random.default_rng(0).normal(size=(4, 100, 2)).astype(np.float32)
    position = {"fine": unit, "far": 1e4 + 0.1 * unit, "few": np.float32(1e4) + np.float32(1e-3) * unit, "none": unit[:, :, :0]}
    assert coarse(position) == ["few"]


def test_data_outside_of_a_support_are_named_by_numpyro():
    def model(y):
        numpyro.sample("y", dist.Poisson(jnp.exp(numpyro.sample("a", dist.Normal(0, 1)))), obs=y)

    with pytest.raises(ValueError, match=r"no feasible start .*numpyro says: observed values lie outside of the support of y"):
        gs.auto(jax.random.key(0), gs.Target.from_numpyro(model, -np.arange(5)))


def test_half_precision_is_refused():
    with pytest.raises(ValueError, match="auto got events of float16; expected float32 or float64"):
        gs.auto(jax.random.key(0), gs.Target.from_log_density(lambda x: -(x @ x), jnp.zeros(2, jnp.float16)))


def test_events_of_float32_are_drawn_as_such_in_double_precision():
    with jax.enable_x64(True):
        target = gs.Target.from_log_density(lambda x: -0.5 * (x @ x), jnp.zeros(2, jnp.float32))
        draws = gs.auto(jax.random.key(0), target)
    assert draws.ending == "converged"
    assert draws.position.dtype == np.float32


def test_a_site_without_a_coordinate_keeps_its_value():
    def model():
        numpyro.sample("share", dist.Dirichlet(jnp.ones(1)))
        numpyro.sample("mean", dist.Normal(0, 1))

    target = gs.Target.from_numpyro(model)
    draws = gs.auto(jax.random.key(0), target, gs.Until(ess=50, rhat=1.1))
    assert draws.ending == "converged" and (gs.named(target, draws.position)["share"] == 1).all()


def test_starts_that_are_not_feasible_are_named():
    nowhere = gs.Target.from_log_density(lambda x: jnp.where(x[0] > 5, -x[0], -jnp.inf), jnp.zeros(1))
    with pytest.raises(ValueError, match=r"no feasible start for 8 of 8 chains in 100 tries each: .*initial="):
        gs.auto(jax.random.key(0), nowhere)
    with pytest.warns(UserWarning, match="the density ends at a bound"):
        draws = gs.auto(jax.random.key(0), nowhere, gs.Until(ess=50, rhat=1.2), initial=np.full((16, 1), 6.0, np.float32))
    assert draws.ending == "converged" and draws.position.min() > 5


def test_a_gradient_that_is_not_finite_is_named():
    target = gs.Target.from_log_density(lambda x: -jnp.sum(x**2) + 0 * jnp.sqrt(x[1] - x[1]), jnp.zeros(3))
    with pytest.raises(ValueError, match=r"its gradient is not, in coordinates \[1\]; look for a where, sqrt"):
        gs.auto(jax.random.key(0), target)


def test_bad_arguments_are_refused_before_anything_compiles():
    target, key = badly_scaled(), jax.random.key(0)
    only_data = gs.Target.from_data(np.zeros((3, 2), np.float32))
    with compile_clock() as clock:
        with pytest.raises(ValueError, match="auto got num_chains 2; expected an integer of at least 4"):
            gs.auto(key, target, num_chains=2)
        with pytest.raises(TypeError, match="key is 0; expected one typed key"):
            gs.auto(0, target)
        with pytest.raises(ValueError, match=r"auto needs target\.log_density"):
            gs.auto(key, only_data)
        with pytest.raises(ValueError, match=r"positions have shapes \[16, 2\]; expected a leading axis"):
            gs.auto(key, target, initial=np.zeros((16, 2), np.float32))
        with pytest.raises(ValueError, match="auto got 3 initial positions; expected one for each of at least 4 chains"):
            gs.auto(key, target, initial=np.zeros((3, 3), np.float32))
    assert clock.count == 0


POSTERIORS = (
    "arK-arK", "diamonds-diamonds", "eight_schools-eight_schools_noncentered", "garch-garch11", "gp_pois_regr-gp_regr",
    "hudson_lynx_hare-lotka_volterra", "kidiq-kidscore_interaction", "low_dim_gauss_mix-low_dim_gauss_mix", "nes2000-nes",
    "sblrc-blr",
)  # fmt: skip
FAST = {
    ("eight_schools-eight_schools_noncentered", False), ("kidiq-kidscore_interaction", False),
    ("kidiq-kidscore_interaction", True),
}  # fmt: skip


@pytest.mark.skipif(
    not os.path.isdir(os.path.join(os.environ.get("GENSAMP_DATA", ""), "posteriordb", "draws")),
    reason="the posteriors of posteriordb are not in GENSAMP_DATA",
)
@pytest.mark.parametrize(
    ("name", "double"),
    [
        pytest.param(n, x, id=f"{n}-{'float64' if x else 'float32'}", marks=() if (n, x) in FAST else pytest.mark.slow)
        for n in POSTERIORS
        for x in (False, True)
    ],
)
def test_posteriors_agree_with_the_reference_draws(name, double):
    """ESS of every mean at least 5,000; bias of means and quantiles at most 0.05 posterior sd; |z| at most 4.

    At an ESS of 5,000 the error of a 10 % quantile alone is 0.024 sd, and the reference's 0.017: longer runs are compared, by
    far longer ones, because some of the reference's own quantiles lie 0.04 sd off. Where the law is known the bias is measured
    against it.
    """
    ess = 40_000 if (name, double) in FAST else 160_000
    with jax.enable_x64(double), warnings.catch_warnings():
        warnings.simplefilter("error")
        target = gs.targets.posteriordb(name, reference=False)
        draws = gs.auto(jax.random.key(0), target, gs.Until(ess=ess), most_draws=200_000)
        named = gs.named(target, draws.position)
    assert draws.ending == "converged"
    law = diamonds_law() if name == "diamonds-diamonds" else {}
    for site, reference in gs.targets.reference_draws(name).items():
        ours, theirs = (np.asarray(a, np.float64).reshape(*np.shape(a)[:2], -1) for a in (named[site], reference))
        assert array_stats.ess(ours, chain_axis=0, draw_axis=1, method="mean").min() >= 5_000
        sd = theirs.std((0, 1))
        for statistic in ("mean", 0.1, 0.5, 0.9):
            gap, error = difference(ours, theirs, statistic)
            assert (np.abs(gap) <= 4 * error).all(), f"{site}, {statistic}: z {np.max(np.abs(gap) / error):.2f}"
            bias = value(ours, statistic) - law[site][statistic] if site in law else gap
            assert (np.abs(bias) <= 0.05 * sd).all(), f"{site}, {statistic}: bias {np.max(np.abs(bias) / sd):.3f} sd"


def value(draws, statistic):
    """The mean or a quantile of draws [chain, draw, quantity]."""
    return draws.mean((0, 1)) if statistic == "mean" else np.quantile(draws, statistic, (0, 1))


def difference(ours, theirs, statistic):
    """The gap between a mean or quantile of two sets of draws [chain, draw, quantity], and its standard error."""
    gap = value(ours, statistic) - value(theirs, statistic)
    if statistic == "mean":
        errors = [a.std((0, 1)) / np.sqrt(array_stats.ess(a, chain_axis=0, draw_axis=1, method="mean")) for a in (ours, theirs)]
    else:
        errors = [array_stats.mcse(a, chain_axis=0, draw_axis=1, method="quantile", prob=statistic) for a in (ours, theirs)]
    return gap, np.hypot(*errors)


def diamonds_law():
    """Mean and quantiles of the coefficients of the diamonds regression: {"b": {statistic: [coefficient]}}.

    The predictors are centred, so the level (of which the prior says nothing where the data put it) falls out, and given
    the noise's scale the coefficients are normal: what is left is one integral, over that scale.
    """
    with jax.enable_x64(True):
        _, (features, events) = gs.targets.posteriordb_model("diamonds-diamonds")
        features, events = np.asarray(features), np.asarray(events)
    strength, basis = np.linalg.eigh(features.T @ features)
    along = basis.T @ features.T @ (events - events.mean())
    total, size = np.sum((events - events.mean()) ** 2), len(events)
    guess = np.sqrt((total - np.sum(along**2 / strength)) / size)
    sigmas = guess * np.linspace(1 - 8 / np.sqrt(2 * size), 1 + 8 / np.sqrt(2 * size), 201)[:, None]
    precision = strength / sigmas**2 + 1
    log_weight = (
        (np.sum((along / sigmas**2) ** 2 / precision - np.log(precision), axis=1) - total / sigmas[:, 0] ** 2) / 2
        - (size - 1) * np.log(sigmas[:, 0]) + student_t.logpdf(sigmas[:, 0] / 10, 3)
    )  # fmt: skip
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    centres, widths = along / sigmas**2 / precision @ basis.T, np.sqrt((1 / precision) @ basis.T**2)
    mean = weight @ centres
    reach = np.sqrt(weight @ (widths**2 + centres**2) - mean**2)
    grid = mean + reach * np.linspace(-4, 4, 1601)[:, None]
    below = np.einsum("s,sgc->gc", weight, norm.cdf((grid - centres[:, None]) / widths[:, None]))
    quantiles = {q: np.array([np.interp(q, *pair) for pair in zip(below.T, grid.T, strict=True)]) for q in (0.1, 0.5, 0.9)}
    return {"b": {"mean": mean, **quantiles}}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"until": 400}, "until=400; expected a rule"), ({"until": "ess"}, "until='ess'; expected a rule"),
        ({"until": gs.Until}, "until=the class Until itself"), ({"most_draws": 0}, "most_draws 0; expected an integer"),
        ({"most_draws": 1e4}, "most_draws 10000.0; expected"), ({"most_draws": "many"}, "most_draws 'many'; expected"),
        ({"num_chains": 2}, "num_chains 2; expected an integer of at least 4"), ({"initial": 0.0}, r"initial of float64\[\]"),
        ({"initial": np.full((16, 2), np.nan)}, "of which 16 are not finite"),
        ({"initial": np.zeros((16, 3))}, r"initial whose positions have shapes \[16, 3\]"),
        ({"initial": np.zeros((4, 2)), "num_chains": 16}, "4 initial positions for 16 chains"),
    ],
)  # fmt: skip
def test_bad_input_is_named_before_anything_runs(changed, message, monkeypatch):
    monkeypatch.setattr("gensamp.automatic.flat_target", None)
    with pytest.raises((TypeError, ValueError), match=f"auto got .*{message}"):
        gs.auto(jax.random.key(0), gs.targets.banana(), **changed)
