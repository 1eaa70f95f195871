"""Export to ArviZ: each group against what it must hold, leave-one-out against quadrature, and ArviZ's plots of the tree."""

import json
import sys
import warnings
from importlib.metadata import version

import arviz_base
import arviz_stats
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray
from scipy import stats

import gensamp as gs
from gensamp import targets
from gensamp.targets import schools

Y, SIGMA = np.asarray(schools.EFFECTS), np.asarray(schools.STANDARD_ERRORS)
SCHOOLS = list("ABCDEFGH")


def release(package):
    return tuple(int(part) for part in version(package).split(".")[:2])


def by_hand(position, *, extra=(), log_weight=None, lead=None):
    """Draws made elsewhere, as `sample` would return them."""
    lead = lead or jax.tree.leaves(position)[0].shape[:2]
    info = gs.Info(0, 0, 0, np.full(lead, 0.9, np.float32), np.zeros(lead, bool), extra)
    return gs.Draws(jax.tree.map(np.asarray, position), log_weight, info, gs.Ledger(), "finished", "", 0)


@pytest.fixture(scope="module")
def posterior():
    return targets.eight_schools()


@pytest.fixture(scope="module")
def run(posterior):
    """A warm-up that was kept, and the run that went on from it."""
    sampler = gs.mcmc.nuts(posterior, 0.4, report=True)
    options = {"num_chains": 4, "effort": "quick", "progress": False}
    warmup = gs.sample(jax.random.key(0), sampler, 40, **options)
    return warmup, gs.sample(
        jax.random.key(1), sampler, 120, initial=jax.tree.map(lambda a: a[:, -1], warmup.position), **options
    )


@pytest.fixture(scope="module")
def tree(posterior, run):
    warmup, draws = run
    return gs.to_arviz(
        draws, posterior, warmup=warmup, log_density=True, posterior_predictive=30, prior=400, key=jax.random.key(2),
        coords={"schools": SCHOOLS},
    )  # fmt: skip


@pytest.fixture(scope="module")
def exact(posterior):
    """Independent draws from eight schools, as four chains of a thousand."""
    keys = jax.random.split(jax.random.key(3), (4, 1000))
    return by_hand(jax.jit(jax.vmap(jax.vmap(posterior.exact)))(keys))


def test_groups_have_the_dimensions_of_the_model(tree):
    assert isinstance(tree, xarray.DataTree)
    assert set(tree.children) == {
        "posterior", "sample_stats", "warmup_posterior", "warmup_sample_stats", "log_likelihood", "posterior_predictive",
        "prior", "prior_predictive", "observed_data",
    }  # fmt: skip
    shapes = {"mu": (), "tau": (), "theta_trans": ("schools",), "theta": ("schools",)}
    for group, sizes in (("posterior", (4, 120)), ("warmup_posterior", (4, 40)), ("prior", (1, 400))):
        assert {name: a.dims for name, a in tree[group].data_vars.items()} == {
            name: ("chain", "draw", *dims) for name, dims in shapes.items()
        }
        assert tuple(tree[group].sizes[dim] for dim in ("chain", "draw", "schools")) == (*sizes, 8)
    for group, sizes in (("log_likelihood", (4, 120)), ("posterior_predictive", (4, 30)), ("prior_predictive", (1, 400))):
        assert tree[group]["y"].dims == ("chain", "draw", "schools") and tree[group]["y"].shape == (*sizes, 8)
    assert tree["observed_data"]["y"].dims == ("schools",)
    assert tree["posterior"].coords["schools"].values.tolist() == SCHOOLS


def test_quantities_are_those_of_the_user(tree, posterior, run):
    for name, values in gs.named(posterior, run[1].position).items():
        np.testing.assert_array_equal(tree["posterior"][name], values)
    np.testing.assert_array_equal(tree["warmup_posterior"]["mu"], run[0].position["mu"])
    np.testing.assert_allclose(tree["posterior"]["tau"], np.exp(run[1].position["tau"]), rtol=1e-5)


def test_statistics_have_arviz_names(tree, posterior, run):
    info = run[1].info
    assert set(tree["sample_stats"].data_vars) == {"acceptance_rate", "diverging", "energy", "n_steps", "lp"}
    for name, values in (
        ("acceptance_rate", info.acceptance), ("diverging", info.diverged), ("energy", info.extra["energy"]),
        ("n_steps", info.extra["num_steps"]),
    ):  # fmt: skip
        np.testing.assert_array_equal(tree["sample_stats"][name], values)
    np.testing.assert_allclose(
        tree["sample_stats"]["lp"], jax.vmap(jax.vmap(posterior.log_density))(run[1].position), rtol=1e-5
    )
    assert tree["warmup_sample_stats"]["energy"].shape == (4, 40)


def test_attributes_say_where_the_draws_are_from(tree, run):
    assert tree.attrs["inference_library"] == "gensamp" and tree.attrs["inference_library_version"] == gs.__version__
    assert tree.attrs["ending"] == "finished" and tree.attrs["message"] == "" and tree.attrs["notes"] == ""
    ledger = run[1].ledger
    assert json.loads(tree.attrs["ledger"])["sample"]["gradients"] == ledger.sample.gradients > 0
    assert tree["posterior"].attrs["sampling_time"] == ledger.sample.wall_seconds


def test_log_likelihood_is_that_of_each_observation(tree):
    expected = stats.norm.logpdf(Y, tree["posterior"]["theta"].values, SIGMA)
    np.testing.assert_allclose(tree["log_likelihood"]["y"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(tree["observed_data"]["y"], Y.astype(np.float32))


def test_leave_one_out_is_that_of_quadrature(posterior, exact):
    """elpd_loo = sum_i log p(y_i | y without i), each a ratio of two integrals over (mu, log tau)."""
    mu, log_tau = np.meshgrid(np.linspace(-25, 35, 401), np.linspace(-15, 6, 601), indexing="ij")
    prior = stats.norm.logpdf(mu, 0, 5) + stats.halfcauchy.logpdf(np.exp(log_tau), scale=5) + log_tau
    each = [stats.norm.logpdf(y, mu, np.hypot(sigma, np.exp(log_tau))) for y, sigma in zip(Y, SIGMA, strict=True)]
    evidence = np.log(np.exp(prior + sum(each)).sum())
    expected = [evidence - np.log(np.exp(prior + sum(each) - one).sum()) for one in each]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pareto k, which eight observations bring about
        loo = arviz_stats.loo(gs.to_arviz(exact, posterior), pointwise=True)
    # Over ten sets of exact draws the sum was off by .054 at most, and one school by .044; the fit without leaving out, by .9.
    np.testing.assert_allclose(np.asarray(loo.elpd_i), expected, atol=0.1)
    np.testing.assert_allclose(loo.elpd, sum(expected), atol=0.1)
    assert 0.3 < loo.p < 3


def test_predictions_are_the_law_of_the_data_given_the_draw_beside_them(posterior, exact):
    draws = by_hand(jax.tree.map(lambda a: a[:, :500], exact.position))
    tree = gs.to_arviz(draws, posterior, posterior_predictive=250, prior=2000, key=jax.random.key(4), log_likelihood=False)
    predicted = tree["posterior_predictive"]["y"]
    assert "log_likelihood" not in tree.children
    assert predicted.coords["draw"].values.tolist() == list(range(0, 500, 2))
    aligned = tree["posterior"]["theta"].sel(draw=predicted.coords["draw"])
    for theta, y in ((aligned, predicted), (tree["prior"]["theta"], tree["prior_predictive"]["y"])):
        residual = ((y - theta) / SIGMA).values.ravel()  # 8,000 and 16,000 standard normals
        assert stats.kstest(residual, "norm").pvalue > 1e-4
        assert len(np.unique(residual)) > 0.99 * len(residual)
    assert stats.kstest(tree["prior"]["mu"].values.ravel(), stats.norm(0, 5).cdf).pvalue > 1e-4
    assert stats.kstest(tree["prior"]["tau"].values.ravel(), stats.halfcauchy(0, 5).cdf).pvalue > 1e-4


def test_predictions_depend_on_nothing_but_the_key_and_the_draw(posterior, exact):
    draws = by_hand(jax.tree.map(lambda a: a[:2, :10], exact.position))
    few, all_, other = (
        gs.to_arviz(draws, posterior, posterior_predictive=n, key=jax.random.key(k))["posterior_predictive"]["y"]
        for n, k in ((5, 0), (10, 0), (10, 1))
    )
    np.testing.assert_array_equal(few, all_.sel(draw=few.coords["draw"]))
    assert not np.isclose(all_, other).any()


def test_without_a_target_the_coordinates_keep_their_names():
    position = {"a": np.zeros((2, 5)), "b": {"c": np.zeros((2, 5, 3))}}
    tree = gs.to_arviz(by_hand(position), dims={"b.c": ["place"]}, coords={"place": ["x", "y", "z"]})
    assert set(tree.children) == {"posterior", "sample_stats"}
    assert tree["posterior"]["a"].dims == ("chain", "draw") and tree["posterior"]["b.c"].dims == ("chain", "draw", "place")
    assert tree["posterior"].coords["place"].values.tolist() == ["x", "y", "z"]
    assert gs.to_arviz(by_hand(np.zeros((2, 5, 3))))["posterior"]["x"].dims == ("chain", "draw", "x_dim_0")


def test_a_plain_target_with_constraints_is_named_by_them():
    target = gs.Target.from_log_density(
        lambda x: -x["rate"], {"rate": jnp.zeros(())}, constraints={"rate": dist.constraints.positive}
    )
    position = jax.tree.map(lambda a: np.full((2, 5), np.log(3.0), a.dtype), target.template)
    tree = gs.to_arviz(by_hand(position), target, log_density=True)
    np.testing.assert_allclose(tree["posterior"]["rate"], 3.0, rtol=1e-6)
    np.testing.assert_allclose(tree["sample_stats"]["lp"], np.log(3.0) - 3.0, rtol=1e-6)
    assert "log_likelihood" not in tree.children


def start(key):
    return jnp.zeros(3)


def init(key, z):
    return z


def move(key, state, index):
    return state + jax.random.normal(key, state.shape), gs.Info.of(acceptance=0.5, extra={"tally": jnp.full(2, 7)})


def particles(state):
    return state[:, None] * jnp.ones((1, 2))


POPULATION = {"start": gs.bind(start), "init": gs.bind(init), "step": gs.bind(move), "position": gs.bind(particles)}


def test_walkers_are_chains_that_know_their_run():
    sampler = gs.Sampler(**POPULATION, traits=gs.Traits(population=3))
    draws = gs.sample(jax.random.key(0), sampler, 6, num_chains=2, progress=False)
    tree = gs.to_arviz(draws)
    assert tree["posterior"]["x"].shape == (6, 6, 2) and draws.info.acceptance.shape == (2, 6)
    assert tree["sample_stats"]["acceptance_rate"].shape == (6, 6) and tree["sample_stats"]["tally"].shape == (6, 6, 2)
    for group in ("posterior", "sample_stats"):
        assert tree[group].coords["run"].values.tolist() == [0, 0, 0, 1, 1, 1]
        assert tree[group].coords["walker"].values.tolist() == [0, 1, 2, 0, 1, 2]
    with pytest.raises(ValueError, match=r"dimensions are {'x': \['walker'\]}"):
        gs.to_arviz(draws, dims={"x": ["walker"]})


def test_particles_are_draws_and_runs_are_chains():
    sampler = gs.Sampler(**POPULATION, log_weight=gs.bind(init, None), num_steps=2, traits=gs.Traits(population=3))
    draws = gs.sample(jax.random.key(0), sampler, 4, progress=False)
    tree = gs.to_arviz(draws)
    assert tree["posterior"]["x"].shape == (4, 3, 2) and draws.info.acceptance.shape == (4,)
    np.testing.assert_array_equal(tree["sample_stats"]["log_weight"], draws.log_weight)
    assert tree["sample_stats"]["diverging"].shape == (4, 3)
    np.testing.assert_array_equal(tree["sample_stats"]["tally"], 14)
    np.testing.assert_allclose(tree["sample_stats"]["acceptance_rate"], 0.5)


def grid(counts, rate_scale):
    """Scopes, two plates of which sites use one or both, a factor, a vector-valued site and whole-number data."""
    rows, columns = numpyro.plate("rows", 3, dim=-2), numpyro.plate("columns", 4, dim=-1)
    with numpyro.handlers.scope(prefix="hyper"):
        scale = numpyro.sample("scale", dist.HalfNormal(rate_scale))
    with rows:
        level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    with columns:
        pair = numpyro.sample("pair", dist.Normal(jnp.zeros((4, 2)), 1.0).to_event(1))
    numpyro.factor("lean", -scale)
    with rows, columns:
        numpyro.sample("counts", dist.Poisson(jnp.exp(level + scale * pair[None, :, 0])), obs=counts)


def test_sites_of_any_shape_get_the_plates_they_stand_in():
    counts = np.arange(12).reshape(3, 4)
    target = gs.Target.from_numpyro(grid, counts, 1.0)
    position = jax.tree.map(lambda a: np.zeros((2, 5, *a.shape), a.dtype), target.template)
    tree = gs.to_arviz(by_hand(position), target, posterior_predictive=5, prior=6, key=jax.random.key(0))
    assert {name: a.dims[2:] for name, a in tree["posterior"].data_vars.items()} == {
        "hyper.scale": (), "level": ("rows", "level_dim_0"), "pair": ("columns", "pair_dim_0"),
    }  # fmt: skip
    assert set(tree["prior"].data_vars) == set(tree["posterior"].data_vars)
    for group in ("observed_data", "posterior_predictive", "prior_predictive"):
        assert set(tree[group].data_vars) == {"counts"} and tree[group]["counts"].dims[-2:] == ("rows", "columns")
        assert np.issubdtype(tree[group]["counts"].dtype, np.integer)
    assert set(tree["log_likelihood"].data_vars) == {"counts", "lean"}
    np.testing.assert_allclose(tree["log_likelihood"]["counts"][0, 0], stats.poisson.logpmf(counts, 1.0), rtol=1e-5)
    named = gs.to_arviz(by_hand(position), target, dims={"pair": ["columns", "side"]}, coords={"side": ["left", "right"]})
    assert named["posterior"]["pair"].dims == ("chain", "draw", "columns", "side")


@pytest.mark.parametrize("stored", [False, True])
def test_a_tree_survives_the_disk(tmp_path, stored):
    target = targets.banana()
    store = tmp_path / "run.zarr" if stored else None
    sampler = gs.mcmc.random_walk(target, 0.5)
    tree = gs.to_arviz(gs.sample(jax.random.key(0), sampler, 10, store=store, progress=False), target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr on its own format
        tree.to_zarr(tmp_path / "tree.zarr")
        again = xarray.open_datatree(tmp_path / "tree.zarr", engine="zarr")
    assert again.identical(tree)


def test_draws_of_another_target_are_refused(exact):
    with pytest.raises(ValueError, match=r"draws have events of shapes .* target 'banana' have .*; give the target they were"):
        gs.to_arviz(exact, targets.banana())
    with pytest.raises(ValueError, match="warmup have events of shapes"):
        gs.to_arviz(exact, targets.eight_schools(), warmup=by_hand(np.zeros((4, 5, 2))))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"prior": np.int64(2)}, "prior with the target 'banana'"),
        (
            {"log_likelihood": True},
            "log_likelihood with the target 'banana', which is of no numpyro model; expected one made",
        ),
        ({"posterior_predictive": 3, "prior": 2}, "posterior_predictive and prior with the target 'banana'"),
        ({"target": None, "prior": 2}, "prior with no target"),
        ({"target": None, "log_density": True}, "log_density=True and no target; give the target"),
        ({"posterior_predictive": True}, "posterior_predictive=True; expected a number of draws"),
        ({"posterior_predictive": 9}, "posterior_predictive=9 for 5 draws per chain; expected at most those"),
        ({"prior": -1}, "prior=-1; expected a number of draws"),
        ({"warmup": by_hand(np.zeros((2, 5, 2)))}, "warmup has 2 chains and the draws have 4"),
        ({"dims": {"z": ["place"]}}, r"dims names \['z'\], which are not in the draws"),
        ({"coords": {"place": [1]}}, r"coords names \['place'\], which are no dimensions"),
        ({"dims": {"x": ["chain"]}}, r"dimensions are {'x': \['chain'\]}, and ArviZ reserves \['chain', 'draw'\]"),
    ],
)
def test_what_cannot_be_given_is_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        gs.to_arviz(by_hand(np.zeros((4, 5, 2))), **({"target": targets.banana()} | options))


def test_a_model_needs_a_key_data_and_a_proper_prior_for_what_they_give(posterior, exact):
    with pytest.raises(TypeError, match="expected one typed key"):
        gs.to_arviz(exact, posterior, prior=3)

    def free():
        numpyro.sample("a", dist.Normal(0.0, 1.0))

    def flat(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ())), 1.0), obs=y)

    draws = by_hand({"a": np.zeros((2, 5), np.float32)})
    assert set(gs.to_arviz(draws, gs.Target.from_numpyro(free)).children) == {"posterior", "sample_stats"}
    with pytest.raises(ValueError, match="log_likelihood with the target 'free', which observes nothing"):
        gs.to_arviz(draws, gs.Target.from_numpyro(free), log_likelihood=True)
    with pytest.raises(ValueError, match=r"the prior of 'flat' has no draws: its sites \['a'\] have improper priors"):
        gs.to_arviz(draws, gs.Target.from_numpyro(flat, 1.0), prior=2, key=jax.random.key(0))


def test_what_are_no_draws_is_refused():
    with pytest.raises(TypeError, match="to_arviz got ndarray as draws; expected the Draws that sample returned"):
        gs.to_arviz(np.zeros((4, 5)))
    with pytest.raises(TypeError, match="to_arviz got ndarray as warmup"):
        gs.to_arviz(by_hand(np.zeros((4, 5))), warmup=np.zeros((4, 5)))
    with pytest.raises(TypeError, match="to_arviz got str as its target"):
        gs.to_arviz(by_hand(np.zeros((4, 5))), "banana")
    for nothing in (np.zeros((4, 0)), None):
        with pytest.raises(ValueError, match=r"draws hold nothing \(no draw was recorded\)"):
            gs.to_arviz(by_hand(nothing, lead=(4, 0)))
    with pytest.raises(ValueError, match=r"quantities are named \['draw'\], which ArviZ reserves"):
        gs.to_arviz(by_hand({"draw": np.zeros((4, 5))}))


def test_a_plate_named_as_the_axes_of_draws_swaps_nothing():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("chain", 3):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    draws, target = by_hand({"mu": np.zeros((2, 5), np.float32)}), gs.Target.from_numpyro(model, np.zeros(3))
    with pytest.raises(ValueError, match=r"dimensions are {'y': \['chain'\]}, .*; give them other names by dims="):
        gs.to_arviz(draws, target)
    assert gs.to_arviz(draws, target, dims={"y": ["site"]})["log_likelihood"]["y"].dims == ("chain", "draw", "site")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dims": {"x": "school"}}, r"dims has 'school' for 'x'; expected a list of names"),
        ({"dims": {"x": [3]}}, r"dims has \[3\] for 'x'"),
        ({"dims": [("x", ["a"])]}, r"to_arviz got list as dims; expected a dict {quantity: \[names\]}"),
        ({"coords": ["obs"]}, r"to_arviz got list as coords; expected a dict {dimension: labels}"),
    ],
)
def test_labels_of_another_kind_are_named(options, sentence):
    with pytest.raises(TypeError, match=sentence):
        gs.to_arviz(by_hand(np.zeros((4, 5, 2))), **options)


@pytest.mark.parametrize("names", [("a/b", "a.b"), ("", "x"), (".", "a")], ids=["slash", "nothing", "only a dot"])
def test_names_that_clash_are_refused(names):
    position = {name: np.full((4, 5), number, np.float32) for number, name in enumerate(names)}
    with pytest.raises(ValueError, match=r"both named|which is no name"):
        gs.to_arviz(by_hand(position))
    nested = {"a.b": np.zeros((4, 5)), "a": {"b": np.ones((4, 5))}}
    with pytest.raises(ValueError, match=r"both named 'a\.b'; rename them"):
        gs.to_arviz(by_hand(nested))
    apart = {"a": np.zeros((4, 5)), "a.b": np.ones((4, 5))}
    assert set(gs.to_arviz(by_hand(apart))["posterior"].data_vars) == {"a", "a.b"}


def test_without_arviz_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz_base", None)
    with pytest.raises(ModuleNotFoundError, match="pip install 'gensamp\\[arviz\\]'"):
        gs.to_arviz(by_hand(np.zeros((4, 5))))


@pytest.mark.skipif(
    release("matplotlib") >= (3, 11) and arviz_base.__version__.startswith("0."),
    reason="the last arviz-plots for Python 3.11 does not load beside matplotlib 3.11",
)
@pytest.mark.parametrize("kind", ["trace", "rank", "energy", "pair"])
def test_arviz_plots_the_tree(tree, kind, tmp_path):
    import arviz_plots
    from PIL import Image

    plot = getattr(arviz_plots, f"plot_{kind}")
    collection = plot(tree, backend="matplotlib", **({} if kind == "energy" else {"var_names": ["mu", "tau"]}))
    collection.savefig(tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) > 100 and (pixels < 200).mean() > 0.005
