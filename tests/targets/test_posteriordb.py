"""Posteriors of the public database: each model against the reference draws of its Stan program, and against literal
transcriptions of the programs that are easiest to get wrong."""

import json
import os
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gensamp import targets

NAMES = targets.posteriordb_names()


def _draws_file(name):
    return os.path.join(os.environ.get("GENSAMP_DATA", ""), "posteriordb", "draws", f"{name}.json.zip")


needs_data = pytest.mark.skipif(
    not all(os.path.isfile(_draws_file(name)) for name in NAMES), reason="posteriordb is not in GENSAMP_DATA"
)


@jax.jit
def _at_reference(target):
    """At every reference draw: what `constrain` gives, and x and score centred for Stein's identities [draws, coordinates]."""
    events = target.truth.reference

    def of(x):
        return target.constrain(x), target.score(x)

    named, score = jax.lax.map(of, events, batch_size=500)
    flat = [jnp.concatenate([a.reshape(len(a), -1) for a in jax.tree.leaves(tree)], axis=1) for tree in (events, score)]
    return named, *flat


def _stein(x, score):
    """Greatest |z| of E[score] = 0 and E[(x - E x) score] = -1, and the number of statistics."""
    x = x - x.mean(0)
    each = np.concatenate([score, x * score + 1], axis=1)
    return np.abs(each.mean(0) / each.std(0) * np.sqrt(len(each))).max(), each.shape[1]


@needs_data
@pytest.mark.parametrize("name", NAMES)
def test_reference_draws_have_the_density_of_the_model(name):
    """The planted mistake: a density raised to the power 0.9, which moves no mode and only widens the law."""
    with jax.enable_x64(True):
        target = targets.posteriordb(name)
        named, x, score = (jax.tree.map(np.asarray, a) for a in _at_reference(target))
        reference = targets.reference_draws(name)
        assert set(reference) <= set(named), (set(reference), set(named))
        for site, values in reference.items():
            np.testing.assert_allclose(named[site], values.reshape(-1, *values.shape[2:]), rtol=1e-9, atol=1e-9)
        assert np.isfinite(score).all()
        intact, count = _stein(x, score)
        broken, _ = _stein(x, 0.9 * score)
        # The draws are thinned Markov chains, nearly independent: a fifth more error than independent ones is allowed.
        threshold = 1.2 * stats.norm.isf(1e-3 / (2 * count * len(NAMES)))
        assert intact <= threshold < broken, (intact, threshold, broken)


@needs_data
def test_a_uniform_prior_on_beta1_of_garch_would_be_another_posterior():
    """The planted mistake: Uniform(0, 1 - alpha1), as the bounds of the Stan program suggest, divides by 1 - alpha1."""
    with jax.enable_x64(True):
        target = targets.posteriordb("garch-garch11")
        _, x, score = (jax.tree.map(np.asarray, a) for a in _at_reference(target))
        column = sorted(target.template).index("alpha1")
        tilted = score.copy()
        tilted[:, column] += 1 / (1 + np.exp(-x[:, column]))  # d/dz of -log(1 - sigmoid(z))
        threshold = 1.2 * stats.norm.isf(1e-3 / 16)
        assert _stein(x, score)[0] <= threshold < _stein(x, tilted)[0]


def _data(name):
    with zipfile.ZipFile(os.path.join(os.environ["GENSAMP_DATA"], "posteriordb", "data", f"{name}.json.zip")) as archive:
        return {k: np.asarray(v, float) for k, v in json.loads(archive.read(archive.namelist()[0])).items()}


def _ark(p):
    data, y = _data("arK"), _data("arK")["y"]
    out = stats.norm.logpdf([p["alpha"], *p["beta"]], 0, 10).sum() + stats.cauchy.logpdf(p["sigma"], 0, 2.5)
    for t in range(int(data["K"]), int(data["T"])):
        mean = p["alpha"]
        for k in range(1, int(data["K"]) + 1):
            mean += p["beta"][k - 1] * y[t - k]
        out += stats.norm.logpdf(y[t], mean, p["sigma"])
    return out + np.log(p["sigma"])


def _garch(p):
    data = _data("garch")
    y, sigma = data["y"], [data["sigma1"]]
    for t in range(1, len(y)):
        sigma.append(np.sqrt(p["alpha0"] + p["alpha1"] * (y[t - 1] - p["mu"]) ** 2 + p["beta1"] * sigma[t - 1] ** 2))
    a, b, top = p["alpha1"], p["beta1"], 1 - p["alpha1"]
    jacobian = np.log(p["alpha0"]) + np.log(a * (1 - a)) + np.log(b * (top - b) / top)
    return stats.norm.logpdf(y, p["mu"], sigma).sum() + jacobian


def _gp(p):
    data = _data("gp_pois_regr")
    gap = data["x"][:, None] - data["x"]
    covariance = p["alpha"] ** 2 * np.exp(-0.5 * (gap / p["rho"]) ** 2) + p["sigma"] * np.eye(len(gap))
    prior = stats.gamma.logpdf(p["rho"], 25, scale=1 / 4) + stats.norm.logpdf(p["alpha"], 0, 2) + stats.norm.logpdf(p["sigma"])
    jacobian = np.log(p["rho"] * p["alpha"] * p["sigma"])
    return stats.multivariate_normal.logpdf(data["y"], np.zeros(len(gap)), covariance) + prior + jacobian


def _mixture(p):
    y = _data("low_dim_gauss_mix")["y"]
    parts = [
        np.log(w) + stats.norm.logpdf(y, m, s)
        for w, m, s in zip((p["theta"], 1 - p["theta"]), p["mu"], p["sigma"], strict=True)
    ]
    prior = stats.norm.logpdf([*p["mu"], *p["sigma"]], 0, 2).sum() + stats.beta.logpdf(p["theta"], 5, 5)
    jacobian = np.log(p["mu"][1] - p["mu"][0]) + np.log(p["sigma"]).sum() + np.log(p["theta"] * (1 - p["theta"]))
    return np.logaddexp(*parts).sum() + prior + jacobian


@needs_data
@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("arK-arK", _ark),
        ("garch-garch11", _garch),
        ("gp_pois_regr-gp_regr", _gp),
        ("low_dim_gauss_mix-low_dim_gauss_mix", _mixture),
    ],
)
def test_density_is_the_stan_program_up_to_a_constant(name, oracle):
    with jax.enable_x64(True):
        target = targets.posteriordb(name)
        chosen = jax.tree.map(lambda a: a[:: len(a) // 5], target.truth.reference)
        # Wider than the posterior, where terms that hardly vary there would show.
        wide = jax.tree.map(lambda a: a + 3 * (a - a.mean(0, keepdims=True)), chosen)
        got = np.asarray(jax.jit(jax.vmap(target.log_density))(wide))
        named = jax.tree.map(np.asarray, jax.jit(jax.vmap(target.constrain))(wide))
        expected = np.asarray([oracle({k: v[i] for k, v in named.items()}) for i in range(len(got))])
        np.testing.assert_allclose(got - got[0], expected - expected[0], rtol=1e-8, atol=1e-8)


@needs_data
def test_hares_and_lynxes_are_solved_to_a_tenth_of_the_tolerance_of_stan():
    from scipy.integrate import solve_ivp

    from gensamp.targets.posteriordb_models import solve_lotka_volterra

    draws = targets.reference_draws("hudson_lynx_hare-lotka_volterra")
    theta, z_init = (draws[k].reshape(-1, draws[k].shape[-1]) for k in ("theta", "z_init"))
    chosen = np.r_[:10_000:500, theta.argmax(0), theta.argmin(0), z_init.argmax(0), z_init.argmin(0)]
    theta, log_z = theta[chosen], np.log(z_init[chosen])

    def tight(parameters, start):
        alpha, beta, gamma, delta = parameters

        def rate(_, x):
            return alpha - beta * np.exp(x[1]), delta * np.exp(x[0]) - gamma

        return solve_ivp(rate, (0, 20), start, "DOP853", np.arange(1, 21), rtol=1e-11, atol=1e-12).y.T

    expected = np.stack([tight(*pair) for pair in zip(theta, log_z, strict=True)])
    with jax.enable_x64(True):
        errors = {}
        for steps in (5, 10):
            solve = jax.jit(jax.vmap(lambda t, z, steps=steps: solve_lotka_volterra(t, z, 20, steps)))
            errors[steps] = np.abs(np.asarray(solve(jnp.asarray(theta), jnp.asarray(log_z))) - expected).max()
    assert errors[5] < 1.5e-6, errors
    assert 3.7 < np.log2(errors[5] / errors[10]) < 4.3, errors


@needs_data
def test_events_keep_the_dtype_asked_for_and_read_no_draws_unless_wanted():
    with jax.enable_x64(True):
        target = targets.posteriordb("hudson_lynx_hare-lotka_volterra", reference=False, dtype=jnp.float32)
        assert target.truth is None and target.name == "hudson_lynx_hare-lotka_volterra"
        assert {a.dtype for a in jax.tree.leaves(target.template)} == {jnp.dtype(jnp.float32)}
        out = jax.eval_shape(lambda x: (target.log_density(x), target.score(x), target.constrain(x)), target.template)
        assert {a.dtype for a in jax.tree.leaves(out)} == {jnp.dtype(jnp.float32)}


@needs_data
def test_unconstrain_inverts_constrain_and_names_what_is_missing():
    target = targets.posteriordb("garch-garch11", reference=False)
    events = {name: jnp.linspace(-1.0, 1.5, 7) + k for k, name in enumerate(target.template)}
    back = targets.unconstrain(target, jax.vmap(target.constrain)(events))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), back, events)
    with pytest.raises(ValueError, match=r"no values of \['mu'\]"):
        targets.unconstrain(target, {k: v for k, v in events.items() if k != "mu"})
    with pytest.raises(ValueError, match="expected one made by from_numpyro"):
        targets.unconstrain(targets.banana(), events)


@jax.jit
def _prior_stein(prior, keys):
    def lane(key):
        x = jax.vmap(prior.exact)(jax.random.split(key, 4_000))
        pairs = zip(*(jax.tree.leaves(tree) for tree in (x, jax.vmap(prior.score)(x))), strict=True)
        each = jnp.concatenate([a.reshape(len(a), -1) for x, score in pairs for a in (score, x * score + 1)], axis=1)
        return each.mean(0) / each.std(0) * jnp.sqrt(4_000)

    return jax.lax.map(lane, keys)


@needs_data
@pytest.mark.parametrize("name", ["low_dim_gauss_mix-low_dim_gauss_mix", "hudson_lynx_hare-lotka_volterra"])
def test_priors_draw_what_their_density_says(name):
    """Ordered means and truncated rates: the laws that numpyro does not draw in one line."""
    prior = targets.prior_of(targets.posteriordb(name, reference=False))
    z = np.abs(np.asarray(_prior_stein(prior, jax.random.split(jax.random.key(1), 10))))
    assert (z.max(1) <= stats.norm.isf(1e-2 / (2 * z.shape[1]))).sum() >= 9, z.max(1)


def test_unknown_posteriors_and_missing_files_are_named(monkeypatch, tmp_path):
    import pooch

    def refuse(url, *args, **kwargs):
        raise OSError(f"no route to {url}")

    monkeypatch.setenv("GENSAMP_DATA", str(tmp_path))
    monkeypatch.setattr(pooch, "retrieve", refuse)
    with pytest.raises(ValueError, match="did you mean 'garch-garch11'"):
        targets.posteriordb("garch11")
    with pytest.raises(FileNotFoundError, match=r"no route to https://raw.*stan-dev/posteriordb/.*set GENSAMP_DATA"):
        targets.posteriordb("garch-garch11")
    with pytest.raises(FileNotFoundError, match=r"set GENSAMP_DATA[^;]*$"):
        targets.reference_draws("garch-garch11", download=False)
    with pytest.raises(
        FileNotFoundError, match=r"set GENSAMP_DATA.*; or no posterior is called 'arK': did you mean 'arK-arK'\?"
    ):
        targets.reference_draws("arK")


@pytest.mark.parametrize("call", [targets.posteriordb, targets.reference_draws, targets.make])
@pytest.mark.parametrize("name", [None, 3])
def test_names_are_strings(call, name):
    with pytest.raises(TypeError, match=rf"got {type(name).__name__} as its name; expected a string, such as '"):
        call(name)


def test_downloads_are_checked_by_digest_and_used(monkeypatch, tmp_path):
    """The repository is played by a local function: what is asked for, and that what it hands over is read."""
    import pooch

    asked = []

    def retrieve(url, digest, file, folder):
        asked.append((url, digest))
        path = tmp_path / file
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("draws.json", json.dumps([{"mu[1]": [1.0, 2.0], "mu[2]": [3.0, 4.0]}]))
        return str(path)

    monkeypatch.setenv("GENSAMP_DATA", str(tmp_path / "nothing"))
    monkeypatch.setattr(pooch, "retrieve", retrieve)
    assert targets.reference_draws("arK-arK")["mu"].tolist() == [[[1.0, 3.0], [2.0, 4.0]]]
    ((url, digest),) = asked
    assert url.endswith("/reference_posteriors/draws/draws/arK-arK.json.zip") and len(digest) == 64


def test_sparse_logistic_is_its_formula():
    from gensamp.targets.sparse_logistic import simulate

    with jax.enable_x64(True):
        target = targets.sparse_logistic()
        X, y = simulate(1_000, 24)
        assert X.shape == (1_000, 25) and 0.6 < y.mean() < 0.8
        assert sum(a.size for a in jax.tree.leaves(target.template)) == 51
        rng = np.random.default_rng(1)
        z = {name: jnp.asarray(rng.normal(0, 0.5, a.shape)) for name, a in target.template.items()}
        u, local, overall = np.asarray(z["unscaled_weights"]), np.exp(z["local_scales"]), np.exp(z["global_scale"])
        logits = X @ (u * local * overall)
        expected = (
            stats.norm.logpdf(u).sum()
            + stats.gamma.logpdf(local, 0.5, scale=2).sum() + stats.gamma.logpdf(overall, 0.5, scale=2)
            + np.sum(z["local_scales"]) + z["global_scale"] + np.sum(y * logits - np.logaddexp(0, logits))
        )  # fmt: skip
        np.testing.assert_allclose(jax.jit(target.log_density)(z), expected, rtol=1e-10)
        np.testing.assert_allclose(target.constrain(z)["weights"], u * local * overall, rtol=1e-12)
    with pytest.raises(ValueError, match="at least 6"):
        targets.sparse_logistic(predictors=3)
