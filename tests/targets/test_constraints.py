"""Bounds given by numpyro constraints, starts, priors, and the errors of models that cannot be drawn from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from numpyro.distributions import constraints
from scipy import stats

import gensamp as gs
from gensamp import targets


def _gamma_and_beta(x):
    """Gamma(3, rate 2) and Beta(2, 5), unnormalised."""
    return 2 * jnp.log(x["rate"]) - 2 * x["rate"] + jnp.log(x["share"]) + 4 * jnp.log1p(-x["share"])


def _two():
    template = {"rate": jnp.zeros(()), "share": jnp.zeros(()), "free": jnp.zeros(2)}
    bounds = {"rate": constraints.positive, "share": constraints.unit_interval}

    def exact(key):
        a, b, c = jax.random.split(key, 3)
        return {
            "rate": jax.random.gamma(a, 3.0) / 2,
            "share": jax.random.beta(b, 2.0, 5.0),
            "free": jax.random.normal(c, (2,)),
        }

    def log_density(x):
        return _gamma_and_beta(x) - 0.5 * jnp.sum(x["free"] ** 2)

    return gs.Target.from_log_density(log_density, template, constraints=bounds, exact=exact)


@jax.jit
def _stein(target, keys, jacobian):
    """z of Stein's identities over exact draws of `_two`, [keys, statistics]; jacobian 0 leaves the volume out."""

    def density(z):
        x = target.constrain(z)
        volume = jnp.log(x["rate"]) + jnp.log(x["share"]) + jnp.log1p(-x["share"])
        return target.log_density(z) - (1 - jacobian) * volume

    def of(key):
        z = target.exact(key)
        pairs = zip(jax.tree.leaves(z), jax.tree.leaves(jax.grad(density)(z)), strict=True)
        return jnp.concatenate([jnp.ravel(a) for z, s in pairs for a in (s, z * s + 1)])

    def lane(key):
        each = jax.vmap(of)(jax.random.split(key, 4_000))
        return each.mean(0) / each.std(0) * jnp.sqrt(4_000)

    return jax.lax.map(lane, keys)


def test_exact_draws_of_a_bounded_density_have_it():
    """The planted mistake: the volume of the change of variables left out."""
    target, keys = _two(), jax.random.split(jax.random.key(3), 10)
    assert {k: a.shape for k, a in target.template.items()} == {"rate": (), "share": (), "free": (2,)}
    intact, broken = (np.abs(np.asarray(_stein(target, keys, jnp.float32(j)))).max(1) for j in (1, 0))
    threshold = stats.norm.isf(1e-2 / (2 * 8))
    assert (intact <= threshold).sum() >= 9, intact
    assert (broken > threshold).sum() >= 9, broken


@pytest.mark.parametrize(
    ("constraint", "shape", "free", "inside"),
    [
        (constraints.interval(-1.0, 3.0), (3,), (3,), lambda x: (x > -1).all() and (x < 3).all()),
        (constraints.greater_than(np.array([1.0, 5.0])), (2,), (2,), lambda x: (x > [1, 5]).all()),
        (constraints.simplex, (4,), (3,), lambda x: abs(x.sum() - 1) < 1e-5 and (x > 0).all()),
        (constraints.ordered_vector, (3,), (3,), lambda x: (np.diff(x) > 0).all()),
        (constraints.corr_cholesky, (3, 3), (3,), lambda x: np.allclose(np.diag(x @ x.T), 1)),
    ],
)
def test_one_constraint_serves_an_array_event(constraint, shape, free, inside):
    target = gs.Target.from_log_density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(shape), constraints=constraint, name="t")
    assert target.template.shape == free and target.name == "t"
    z = jnp.linspace(-0.9, 1.3, int(np.prod(free))).reshape(free)
    x = target.constrain(z)["x"]
    assert x.shape == shape and inside(np.asarray(x))
    back = targets.unconstrain(target, {"x": x[None]})
    np.testing.assert_allclose(back[0], z, atol=1e-4)
    assert np.isfinite(np.asarray(target.score(z))).all()


def test_bounded_density_integrates_to_the_same_evidence():
    with jax.enable_x64(True):
        target = gs.Target.from_log_density(
            lambda x: 2 * jnp.log(x) - 2 * x, jnp.zeros(()), constraints=constraints.positive, name="gamma"
        )
        z = jnp.linspace(-25, 5, 4_001)
        mass = jnp.exp(jax.vmap(target.log_density)(z)).sum() * (z[1] - z[0])
        np.testing.assert_allclose(mass, 2 / 2**3, rtol=1e-10)


def test_other_bounds_retrace_nothing():
    count = []

    def log_density(low, x):
        count.append(1)
        return -jnp.sum(x - low)

    @jax.jit
    def evaluate(target, z):
        return target.log_density(z)

    for low in (0.0, 1, np.float32(2)):
        function = Partial(log_density, jnp.float32(low))
        target = gs.Target.from_log_density(function, jnp.zeros(2), constraints=constraints.greater_than(low))
        made = len(count)
        np.testing.assert_allclose(evaluate(target, jnp.zeros(2)), -2.0, rtol=1e-6)
        assert low == 0 or len(count) == made


def test_what_the_user_constrains_to_is_of_the_bounded_event():
    def names(x):
        return {"twice": 2 * x}

    target = gs.Target.from_log_density(lambda x: -x, jnp.zeros(()), constraints=constraints.positive, constrain=names)
    np.testing.assert_allclose(target.constrain(jnp.float32(0.5))["twice"], 2 * np.exp(0.5), rtol=1e-6)


@pytest.mark.parametrize(
    ("bounds", "options", "error", "match"),
    [
        ({"rat": constraints.positive}, {}, ValueError, r"\['rat'\].*expected among \['free', 'rate'\]"),
        ({"rate": "positive"}, {}, TypeError, r"got \['str'\]; expected numpyro constraints"),
        ({"rate": constraints.boolean}, {}, ValueError, "discrete"),
        ({"rate": constraints.interval(1.0, 0.0)}, {}, ValueError, "interval from 1.0 to 0.0; expected a lower bound below"),
        ({"free": constraints.interval(jnp.zeros(2), jnp.array([1.0, 0.0]))}, {}, ValueError, "expected a lower bound below"),
        ({"free": constraints.independent(constraints.interval(1, 1), 1)}, {}, ValueError, "interval from 1 to 1"),
        ({"rate": constraints.interval(1e9, 1e9 + 1)}, {}, ValueError, "expected a lower bound below the upper one in float32"),
        ({"rate": constraints.interval(0.0, 1e-50)}, {}, ValueError, "expected a lower bound below the upper one in float32"),
        ({"rate": constraints.interval(0.0, np.inf)}, {}, ValueError, "expected finite bounds in float32"),
        ({"rate": constraints.greater_than(np.nan)}, {}, ValueError, "bound=nan.*expected finite bounds"),
        ({"rate": constraints.less_than(1e60)}, {}, ValueError, "expected finite bounds in float32"),
        ({"free": constraints.greater_than(jnp.array([0.0, -jnp.inf]))}, {}, ValueError, "expected finite bounds"),
        ({"rate": constraints.greater_than(jnp.zeros(2))}, {}, ValueError, r"shape \[\] can be .* makes one of \[2\]"),
        ({"rate": constraints.simplex}, {}, ValueError, "can be constrained by"),
        ({"rate": constraints.positive}, {"score": lambda x: x}, ValueError, "leave it out"),
    ],
)
def test_bad_constraints_are_refused(bounds, options, error, match):
    template = {"rate": jnp.zeros(()), "free": jnp.zeros(2)}
    with pytest.raises(error, match=match):
        gs.Target.from_log_density(lambda x: -x["rate"], template, constraints=bounds, **options)


def test_an_event_without_freedom_is_refused():
    with pytest.raises(ValueError, match=r"leave no coordinate of an event of shapes \[\[1\]\] free; expected at least one"):
        gs.Target.from_log_density(lambda x: jnp.sum(x), jnp.zeros(1), constraints=constraints.simplex)


def test_names_need_an_event_with_names():
    with pytest.raises(TypeError, match="expected one numpyro constraint"):
        gs.Target.from_log_density(lambda x: -x, jnp.zeros(()), constraints={"x": constraints.positive})


def _normal_mean(y, scale=2.0):
    import numpyro
    from numpyro import distributions as dist

    mu = numpyro.sample("mu", dist.Normal(0.0, scale))
    spread = numpyro.sample("spread", dist.LogNormal(0.0, 0.5))
    share = numpyro.sample("share", dist.Uniform(0.0, spread))
    numpyro.factor("tilt", -share)
    numpyro.sample("y", dist.Normal(mu, spread), obs=y)


@jax.jit
def _prior_statistics(target, keys, stretch):
    def of(key):
        z = target.exact(key)
        z = {**z, "mu": stretch * z["mu"]}
        score = target.score(z)
        return jnp.concatenate([jnp.stack([score[k], z[k] * score[k] + 1]) for k in z])

    def lane(key):
        each = jax.vmap(of)(jax.random.split(key, 4_000))
        return each.mean(0) / each.std(0) * jnp.sqrt(4_000)

    return jax.lax.map(lane, keys)


def test_prior_draws_have_the_prior_density_and_posterior_is_prior_times_likelihood():
    """The planted mistake: a mean drawn a tenth too wide."""
    y = np.array([0.3, -1.2, 2.0])
    posterior = targets.from_numpyro(_normal_mean, y)
    prior = targets.prior_of(_normal_mean, y)
    assert prior.template == posterior.template and prior.truth.log_normaliser == (0.0, 0.0)
    keys = jax.random.split(jax.random.key(8), 10)
    intact, broken = (np.abs(np.asarray(_prior_statistics(prior, keys, jnp.float32(s)))).max(1) for s in (1, 1.1))
    threshold = stats.norm.isf(1e-2 / (2 * 6))
    assert (intact <= threshold).sum() >= 9, intact
    assert (broken > threshold).sum() >= 9, broken
    z = prior.exact(jax.random.key(1))
    x = jax.tree.map(np.asarray, prior.constrain(z))
    expected = stats.norm.logpdf(y, x["mu"], x["spread"]).sum() - x["share"]
    np.testing.assert_allclose(posterior.log_density(z) - targets.prior_of(posterior).log_density(z), expected, rtol=1e-4)


def test_starts_are_functions_of_a_key_for_every_chain():
    posterior = targets.from_numpyro(_normal_mean, np.zeros(3))
    wide = targets.scattered_start(posterior, 5.0)
    drawn = jax.vmap(wide)(jax.random.split(jax.random.key(0), 500))
    assert all(np.abs(a).max() <= 5 and np.abs(a).max() > 4.5 for a in jax.tree.leaves(drawn))
    mu = jax.vmap(targets.prior_start(posterior))(jax.random.split(jax.random.key(0), 2_000))["mu"]
    assert abs(np.std(mu) / 2 - 1) < 0.1
    sampler = gs.mcmc.mala(posterior, step_size=0.1, start=targets.prior_start(posterior))
    assert np.isfinite(gs.sample(jax.random.key(0), sampler, 10).position["mu"]).all()


def _in_a_corner(x):
    return jnp.where(jnp.all(x > 1), -0.5 * jnp.sum(x**2), -jnp.inf)


def test_feasible_start_tries_again_where_the_density_is_zero():
    target = gs.Target.from_log_density(_in_a_corner, jnp.zeros(2))
    found = np.asarray(targets.feasible_start(jax.random.key(0), target, 8))
    assert found.shape == (8, 2) and (found > 1).all()
    # A start depends on its own chain only.
    np.testing.assert_array_equal(found[:3], targets.feasible_start(jax.random.key(0), target, 3))


@pytest.mark.parametrize(
    ("log_density", "seen"),
    [
        (lambda x: jnp.where(x[0] > 9, 0.0, -jnp.inf), "a log density of -inf 8 times"),
        (lambda x: jnp.sum(x) * jnp.nan, "NaN or .inf 8 times"),
        (lambda x: jnp.sqrt(jnp.sum(x * 0.0)), "a gradient that is not finite 8 times"),
    ],
)
def test_starts_that_are_never_feasible_are_named(log_density, seen):
    target = gs.Target.from_log_density(log_density, jnp.zeros(2), name="cliff")
    with pytest.raises(ValueError, match=f"'cliff' has no feasible start for 4 of 4 chains after 2 attempts.*{seen}.*start="):
        targets.feasible_start(jax.random.key(0), target, 4, attempts=2)


def _wrong_scale(y):
    import numpyro
    from numpyro import distributions as dist

    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mu, -1.0), obs=y)


def test_an_infeasible_model_is_explained_by_numpyro():
    target = targets.from_numpyro(_wrong_scale, np.zeros(2))
    with pytest.raises(ValueError, match="numpyro says: Normal distribution got invalid scale parameter"):
        targets.feasible_start(jax.random.key(0), target, 2, attempts=2)


def _flat(y=None):
    import numpyro
    from numpyro import distributions as dist

    mu = numpyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def _two_levels(y):
    import numpyro
    from numpyro import distributions as dist

    level = numpyro.sample("level", dist.ImproperUniform(constraints.real, (), ()))
    effect = numpyro.sample("effect", dist.ImproperUniform(constraints.real, (), ()))
    numpyro.sample("y", dist.Normal(level + effect, 1.0), obs=y)


def _flat_scale(y):
    import numpyro
    from numpyro import distributions as dist

    scale = numpyro.sample("scale", dist.ImproperUniform(constraints.positive, (), ()))
    numpyro.sample("y", dist.Normal(0.0, scale), obs=y)


def test_improper_priors_are_named_where_they_have_no_draws_and_posteriors_where_nothing_is_observed():
    with pytest.raises(ValueError, match=r"sites \['mu'\] have flat priors and nothing is observed"):
        targets.from_numpyro(_flat)
    with pytest.raises(ValueError, match=r"its sites \['mu'\] have improper priors"):
        targets.prior_of(_flat, np.zeros(2))
    assert targets.from_numpyro(_flat, np.zeros(2)).template["mu"].shape == ()


@pytest.mark.parametrize(
    ("model", "y", "expected"),
    [
        (_flat, [0.2, -0.4], []),
        (_normal_mean, [0.2], []),
        (_flat_scale, [0.5, -1.0], []),
        (_flat_scale, [0.5], ["scale+"]),
        (_two_levels, [0.2, -0.4], ["chain 0+", "chain 0-", "chain 1+", "chain 1-"]),
    ],
)
def test_endless_directions_tell_an_improper_posterior(model, y, expected):
    """One observation and a flat scale leave a density of 1 / scale: no integral. Two effects of which only the sum is seen
    leave a ridge, along which two chains have drifted apart."""
    target = targets.from_numpyro(model, np.asarray(y))
    apart = {name: jnp.zeros((2, *a.shape)) for name, a in target.template.items()}
    if model is _two_levels:
        apart = {"level": jnp.asarray([-50.0, 50.0]), "effect": jnp.asarray([50.0, -50.0])}
    assert sorted(targets.endless_directions(target, apart)) == expected


def test_a_cauchy_law_ends_in_every_direction():
    target = gs.Target.from_log_density(lambda x: -jnp.sum(jnp.log1p(x**2)), jnp.zeros(3))
    assert targets.endless_directions(target, jnp.ones((2, 3))) == []
