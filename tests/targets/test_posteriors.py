"""numpyro models as targets: against hand-written oracles, without retracing, and eight schools against what is known of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gensamp import targets
from gensamp.targets import schools

Y, SIGMA = np.asarray(schools.EFFECTS), np.asarray(schools.STANDARD_ERRORS)


def _oracle(position):
    """The log joint on unconstrained coordinates, written with scipy: four densities and the Jacobian of the logarithm."""
    mu, log_tau, theta_trans = (np.asarray(position[name], np.float64) for name in ("mu", "tau", "theta_trans"))
    tau = np.exp(log_tau)
    without_jacobian = (
        stats.norm.logpdf(mu, 0, 5)
        + stats.halfcauchy.logpdf(tau, scale=5)
        + stats.norm.logpdf(theta_trans).sum()
        + stats.norm.logpdf(Y, mu + tau * theta_trans, SIGMA).sum()
    )
    return without_jacobian + log_tau, without_jacobian


def _positions(n, dtype):
    rng = np.random.default_rng(0)
    shapes = {"mu": (n,), "tau": (n,), "theta_trans": (n, 8)}
    return {name: jnp.asarray(rng.normal(0, 2, shape), dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("x64", [False, True])
def test_eight_schools_log_density_is_the_joint_with_its_jacobian(x64):
    with jax.enable_x64(x64):
        target = targets.eight_schools()
        z = _positions(20, jnp.float64 if x64 else jnp.float32)
        got = np.asarray(jax.jit(jax.vmap(target.log_density))(z))
        oracle = [_oracle(jax.tree.map(lambda a, i=i: a[i], z)) for i in range(20)]
        expected, without_jacobian = np.asarray(oracle).T
        np.testing.assert_allclose(got, expected, rtol=1e-10 if x64 else 2e-5)
        assert np.abs(got - without_jacobian).max() > 1


def test_constrain_returns_the_model_quantities_and_the_deterministic_ones():
    z = jax.tree.map(lambda a: a[0], _positions(1, jnp.float32))
    named = targets.eight_schools().constrain(z)
    assert set(named) == {"mu", "tau", "theta_trans", "theta"}
    np.testing.assert_allclose(named["tau"], np.exp(z["tau"]), rtol=1e-6)
    np.testing.assert_allclose(named["theta"], z["mu"] + np.exp(z["tau"]) * z["theta_trans"], rtol=1e-5)


def test_truth_of_eight_schools_against_two_dimensional_quadrature():
    """An independent integral over (mu, log tau), with theta alone integrated by hand."""
    truth = targets.eight_schools().truth
    mu, log_tau = np.linspace(-30, 40, 701), np.linspace(-25, 7, 1601)
    m, s = np.meshgrid(mu, log_tau, indexing="ij")
    joint = stats.norm.logpdf(m, 0, 5) + stats.halfcauchy.logpdf(np.exp(s), scale=5) + s
    for y, sigma in zip(Y, SIGMA, strict=True):
        joint += stats.norm.logpdf(y, m, np.hypot(sigma, np.exp(s)))
    mass = np.exp(joint) * (mu[1] - mu[0]) * (log_tau[1] - log_tau[0])
    np.testing.assert_allclose(truth.log_normaliser[0], np.log(mass.sum()), atol=1e-6)
    mass /= mass.sum()
    for name, values in (("mu", m), ("tau", s)):
        mean = (mass * values).sum()
        np.testing.assert_allclose(truth.mean[0][name], mean, rtol=1e-5)
        np.testing.assert_allclose(truth.variance[0][name], (mass * (values - mean) ** 2).sum(), rtol=1e-4)
        for p, (quantile, _) in truth.quantiles.items():
            axis = 0 if name == "mu" else 1
            marginal = mass.sum(1 - axis)
            smooth = np.cumsum(marginal) - marginal / 2
            assert abs(np.interp(float(quantile[name]), mu if axis == 0 else log_tau, smooth) - p) < 1e-4


@jax.jit
def _stein(target, keys, stretch):
    """z of Stein's identities over exact draws whose theta_trans is stretched, [keys, statistics]."""

    def of(x):
        x = {**x, "theta_trans": stretch * x["theta_trans"]}
        score = target.score(x)
        centred = jax.tree.map(lambda a, m, v: (a - m) / jnp.sqrt(v), x, target.truth.mean[0], target.truth.variance[0])
        pairs = [(jnp.ravel(score[k]), jnp.ravel(x[k] * score[k] + 1), jnp.ravel(centred[k])) for k in x]
        return jnp.concatenate([a for pair in pairs for a in pair])

    def lane(key):
        each = jax.vmap(lambda k: of(target.exact(k)))(jax.random.split(key, 5_000))
        return each.mean(0) / each.std(0) * jnp.sqrt(5_000)

    return jax.lax.map(lane, keys)


def test_exact_draws_of_eight_schools_have_its_density():
    """The planted mistake: group effects ten per cent too wide."""
    target, keys = targets.eight_schools(), jax.random.split(jax.random.key(5), 10)
    intact, broken = (np.abs(np.asarray(_stein(target, keys, jnp.float32(s)))).max(1) for s in (1, 1.1))
    threshold = stats.norm.isf(1e-2 / (2 * 30))
    assert (intact <= threshold).sum() >= 9, intact
    assert (broken > threshold).sum() >= 9, broken


def test_quantile_transform_of_eight_schools_carries_uniforms_to_the_density():
    with jax.enable_x64(True):
        target = targets.eight_schools()
        u = jax.random.uniform(jax.random.key(2), (50, 10), minval=0.01, maxval=0.99)

        def flat(u):
            x = target.truth.quantile(u)
            return jnp.concatenate([x["tau"][None], x["mu"][None], x["theta_trans"]])

        @jax.jit
        @jax.vmap
        def gap(u):
            _, log_volume = jnp.linalg.slogdet(jax.jacfwd(flat)(u))
            return target.log_density(target.truth.quantile(u)) + log_volume - target.truth.log_normaliser[0]

        # The table is linear between its knots, so its slope is right to the first order only.
        np.testing.assert_allclose(gap(u), np.zeros(50), atol=2e-3)


def test_eight_schools_agrees_with_the_reference_draws():
    try:
        named = targets.reference_draws("eight_schools-eight_schools_noncentered", download=False)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert {name: a.shape for name, a in named.items()} == {"theta": (10, 1000, 8), "mu": (10, 1000), "tau": (10, 1000)}
    target = targets.eight_schools()
    reference = target.truth.reference
    assert jax.tree.map(lambda a: a.shape, reference) == {"mu": (10_000,), "tau": (10_000,), "theta_trans": (10_000, 8)}
    theta = jax.vmap(target.constrain)(reference)["theta"]
    np.testing.assert_allclose(theta, named["theta"].reshape(-1, 8), rtol=1e-3, atol=1e-3)
    for name, values in reference.items():
        values, spread = np.asarray(values, np.float64), np.sqrt(np.asarray(target.truth.variance[0][name]))
        z = (values.mean(0) - target.truth.mean[0][name]) / spread * 100
        # The draws are thinned Markov chains, nearly independent: a fifth more error than independent ones is allowed.
        assert np.abs(z).max() < 1.2 * stats.norm.isf(1e-3 / 20), (name, z)
        for p, (quantile, _) in target.truth.quantiles.items():
            z = ((values <= np.asarray(quantile[name])).mean(0) - p) / np.sqrt(p * (1 - p)) * 100
            assert np.abs(z).max() < 1.2 * stats.norm.isf(1e-3 / 60), (name, p, z)


def test_without_the_reference_files_eight_schools_still_knows_its_truth(monkeypatch, tmp_path):
    monkeypatch.setenv("GENSAMP_DATA", str(tmp_path))
    target = targets.eight_schools()
    assert target.truth.reference is None and target.truth.mean is not None and target.exact is not None
    with pytest.raises(FileNotFoundError, match="set GENSAMP_DATA"):
        targets.reference_draws("eight_schools-eight_schools_noncentered", download=False)


TRACES = []


def _regression(x, y, groups, scale=2.0, link="identity"):
    import numpyro
    from numpyro import distributions as dist

    TRACES.append(1)
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(3)))
    spread = numpyro.sample("spread", dist.HalfNormal(scale))
    with numpyro.plate("groups", groups):
        offset = numpyro.sample("offset", dist.Normal(0.0, scale))
    mean = numpyro.deterministic("mean", x @ weights + offset.sum())
    numpyro.sample("y", dist.Normal(mean if link == "identity" else jnp.exp(mean), spread), obs=y)


def _data(seed, n=7):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 3)), rng.normal(size=n)


@jax.jit
def _evaluate(target, z):
    """Log density, model quantities, and the log volume of stick breaking: the simplex' first two coordinates by its own."""
    simplex = jax.jacfwd(lambda w: target.constrain({**z, "weights": w})["weights"][:2])(z["weights"])
    return target.log_density(z), target.constrain(z), jnp.linalg.slogdet(simplex)[1]


def test_new_data_change_the_density_and_retrace_nothing():
    z = {"weights": jnp.asarray([0.3, -0.7]), "spread": jnp.asarray(0.2), "offset": jnp.asarray([0.1, -0.4])}
    for seed, scale in ((0, 2.0), (1, 2.0), (2, 3.0)):
        x, y = _data(seed)
        target = targets.from_numpyro(_regression, x, y, groups=2, scale=scale)
        assert {k: a.shape for k, a in target.template.items()} == {"weights": (2,), "spread": (), "offset": (2,)}
        made = len(TRACES)
        got, named, volume = _evaluate(target, z)
        assert seed == 0 or len(TRACES) == made, "new data of the same shape traced the model again"
        weights, spread = np.asarray(named["weights"], np.float64), np.exp(0.2)
        expected = (
            stats.dirichlet.logpdf(weights / weights.sum(), np.ones(3)) + volume
            + stats.halfnorm.logpdf(spread, scale=scale) + 0.2
            + stats.norm.logpdf([0.1, -0.4], 0, scale).sum()
            + stats.norm.logpdf(y, x @ weights + 0.1 - 0.4, spread).sum()
        )  # fmt: skip
        np.testing.assert_allclose(got, expected, rtol=2e-5)
        np.testing.assert_allclose(named["mean"], x @ weights - 0.3, rtol=1e-4, atol=1e-5)


def test_structure_is_static_and_data_are_leaves():
    x, y = _data(0)
    target = targets.from_numpyro(_regression, x, y, groups=2, scale=3.0, link="log")
    assert sorted(jnp.shape(a) for a in jax.tree.leaves(target.log_density)) == [(), (7,), (7, 3)]
    assert target.name == "_regression"
    assert targets.from_numpyro(_regression, x, y, groups=4).template["offset"].shape == (4,)


def _discrete():
    import numpyro
    from numpyro import distributions as dist

    numpyro.sample("k", dist.Bernoulli(0.5))


def _nothing(y):
    import numpyro
    from numpyro import distributions as dist

    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: targets.from_numpyro(_discrete), ValueError, r"discrete latent sites \['k'\]"),
        (lambda: targets.from_numpyro(_nothing, jnp.zeros(2)), ValueError, "no latent site"),
        (lambda: targets.from_numpyro(_nothing, {1, 2}), TypeError, "convert data to NumPy arrays"),
    ],
)
def test_bad_models_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()
