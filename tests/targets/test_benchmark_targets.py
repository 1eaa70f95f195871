"""The multimodal, physical and Bayesian targets of the benchmarks: density, exact draws and truth tell of one law.

For exact draws E[score] = 0 and E[x score] = -1 per coordinate (Stein), the truth's moments and quantiles are theirs, and
the density integrates to the stated normaliser. Targets without exact draws are held to their definition and symmetries.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gensamp import targets

WITH_DRAWS = {
    "gmm9": targets.gmm9,
    "gmm25": targets.gmm25,
    "bimodal": targets.bimodal,
    "mos10": targets.mos10,
    "mos10_d50": functools.partial(targets.mos10, dim=50),
    "many_well": targets.many_well,
    "rosenbrock": targets.rosenbrock,
    "funnel_d20": functools.partial(targets.funnel, dim=20),
    "brownian": targets.brownian,
}
KEYS, DRAWS = 10, 2_000
# The slow ones differ from a quick one in a number only.
LAWS = [pytest.param(name, marks=[pytest.mark.slow] * (name in {"gmm25", "mos10_d50", "funnel_d20"})) for name in WITH_DRAWS]


@jax.jit
def _statistics(target, keys, stretch):
    """For each key, over exact draws stretched by a factor: Stein's statistics and the truth's, as z [keys, statistics]."""
    quantiles = [(p, q) for p, (q, _) in target.truth.quantiles.items()]

    def of(x):
        score = target.score(x)
        known = [(x <= q) - p for p, q in quantiles]
        if target.truth.variance is not None:
            known.append((x - target.truth.mean[0]) / jnp.sqrt(target.truth.variance[0]))
        return jnp.concatenate([score, x * score + 1, *known])

    def lane(key):
        x = stretch * jax.vmap(target.exact)(jax.random.split(key, DRAWS))
        each = jax.vmap(of)(x)
        return each.mean(0) / each.std(0) * jnp.sqrt(DRAWS)

    return jax.lax.map(lane, keys)


@pytest.mark.parametrize("name", LAWS)
def test_exact_draws_have_the_density_and_the_truth(name):
    """The planted mistake: draws ten per cent too wide."""
    target = WITH_DRAWS[name]()
    keys = jax.random.split(jax.random.key(12), KEYS)
    intact = np.abs(np.asarray(_statistics(target, keys, jnp.float32(1))))
    broken = np.abs(np.asarray(_statistics(target, keys, jnp.float32(1.1))))
    threshold = stats.norm.isf(1e-2 / (2 * intact.shape[1]))
    assert (intact.max(1) <= threshold).sum() >= 9, intact.max(1)
    assert (broken.max(1) > threshold).sum() >= 9, broken.max(1)


@functools.partial(jax.jit, static_argnums=1)
def _second_moments(exact, count):
    x = jax.vmap(exact)(jax.random.split(jax.random.key(4), count))
    return (x**2).mean(0), (x**2).var(0)


@pytest.mark.parametrize("name", ["banana", "rosenbrock", "brownian", "many_well", "gmm9", "ill_conditioned_gaussian"])
def test_second_moments_are_those_of_the_draws(name):
    truth = targets.make(name).truth
    square, spread = (np.asarray(a, float) for a in truth.second_moment)
    np.testing.assert_allclose(square, np.asarray(truth.variance[0]) + np.asarray(truth.mean[0]) ** 2, rtol=1e-4)
    mean, variance = (np.asarray(a, float) for a in _second_moments(targets.make(name).exact, 10_000))
    assert np.abs((mean - square) / np.sqrt(spread / 10_000)).max() < stats.norm.isf(1e-3 / (2 * square.size))
    # The spread of x^2 has a heavy-tailed estimate: a guard against a wrong formula, no more.
    np.testing.assert_allclose(variance, spread, rtol=0.4)


def test_second_moments_are_the_published_ones():
    for name, expected in (("banana", ([100, 19], [20000, 4600.9])), ("rosenbrock", ([2, 10.1], [6, 668.02]))):
        square, spread = targets.make(name).truth.second_moment
        chosen = np.array([0, -1])
        np.testing.assert_allclose(np.asarray(square)[chosen], expected[0], rtol=1e-6)
        np.testing.assert_allclose(np.asarray(spread)[chosen], expected[1], rtol=1e-6)


@jax.jit
def _densities(target, points):
    return jnp.exp(jax.lax.map(target.log_density, points, batch_size=20_000))


@pytest.mark.parametrize(
    ("target", "reach", "nodes", "tolerance"),
    [
        (targets.gmm9, 9.0, 301, 1e-8),
        (targets.gmm25, 14.0, 401, 1e-8),
        (functools.partial(targets.bimodal, dim=2), 10.0, 301, 1e-8),
        (functools.partial(targets.many_well, pairs=1), 9.0, 601, 1e-8),
    ],
)
def test_density_integrates_to_its_normaliser(target, reach, nodes, tolerance):
    """The planted mistake: a normal without its constant."""
    with jax.enable_x64(True):
        target = target()
        line = np.linspace(-reach, reach, nodes)
        points = jnp.asarray(np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2))
        mass = float(np.asarray(_densities(target, points)).sum()) * (line[1] - line[0]) ** 2
        gap = math.log(mass) - target.truth.log_normaliser[0]
        assert abs(gap) < tolerance < abs(gap + 0.5 * math.log(2 * math.pi))


def test_rosenbrock_transform_carries_uniforms_to_the_density():
    with jax.enable_x64(True):
        target = targets.rosenbrock(2)
        u = jax.random.uniform(jax.random.key(2), (50, 4), minval=1e-3, maxval=1 - 1e-3)

        @jax.jit
        @jax.vmap
        def gap(u):
            _, log_volume = jnp.linalg.slogdet(jax.jacfwd(target.truth.quantile)(u))
            return target.log_density(target.truth.quantile(u)) + log_volume

        np.testing.assert_allclose(gap(u), np.zeros(50), atol=1e-8)


def test_many_well_has_the_published_normaliser():
    assert abs(targets.many_well().truth.log_normaliser[0] - 164.695675) < 1e-6


def test_students_are_products_of_t_distributions():
    for dim in (2, 50):
        with jax.enable_x64(True):
            target = targets.mos10(dim)
            x = np.random.default_rng(0).uniform(-30, 30, (50, dim))
            centres = np.asarray(target.truth.modes[0])
            joint = stats.t.logpdf(x[:, None, :] - centres, 2).sum(-1)
            got = jax.jit(jax.vmap(target.log_density))(jnp.asarray(x))
            np.testing.assert_allclose(got, np.logaddexp.reduce(joint, axis=1) - np.log(10), rtol=1e-10)
            assert centres.shape == (10, dim) and np.abs(centres).max() <= 10


def test_brownian_density_is_the_models_and_its_evidence_an_independent_integral():
    """With dense matrices instead of their eigenvectors, and the path integrated out by Bayes' formula."""
    with jax.enable_x64(True):
        target = targets.brownian()
        y, seen = (np.asarray(a) for a in target.log_density.args)
        time = np.arange(1.0, 31.0)
        kernel = np.minimum(time[:, None], time)
        rng = np.random.default_rng(3)
        for log_a, log_b in rng.normal(-2, 0.7, (5, 2)):
            a2, b2 = np.exp(2 * log_a), np.exp(2 * log_b)
            path = rng.normal(0, 0.5, 30)
            got = float(target.log_density(jnp.asarray([log_a, log_b, *path])))
            prior = stats.norm.logpdf([log_a, log_b], 0, 2).sum()
            jumps = stats.norm.logpdf(np.diff(path, prepend=0), 0, np.exp(log_a)).sum()
            np.testing.assert_allclose(got, prior + jumps + stats.norm.logpdf(y, path[seen], np.exp(log_b)).sum(), rtol=1e-10)
            cross = a2 * kernel[:, seen]
            spread = cross[seen] + b2 * np.eye(20)
            mean = cross @ np.linalg.solve(spread, y)
            law = stats.multivariate_normal(mean, a2 * kernel - cross @ np.linalg.solve(spread, cross.T), allow_singular=True)
            evidence = prior + stats.multivariate_normal(np.zeros(20), spread).logpdf(y)
            np.testing.assert_allclose(got - law.logpdf(path), evidence, rtol=1e-6)

        line_a, line_b = np.arange(-6.0, 2.0, 0.2), np.arange(-16.0, 2.0, 0.2)
        mass = 0.0
        for log_a in line_a:
            for log_b in line_b:
                spread = np.exp(2 * log_a) * kernel[np.ix_(seen, seen)] + np.exp(2 * log_b) * np.eye(20)
                log_volume = np.linalg.slogdet(2 * np.pi * spread)[1]
                exponent = -0.5 * (y @ np.linalg.solve(spread, y) + log_volume) + stats.norm.logpdf([log_a, log_b], 0, 2).sum()
                mass += np.exp(exponent) * 0.04
        np.testing.assert_allclose(np.log(mass), target.truth.log_normaliser[0], atol=1e-4)


def test_brownian_speaks_of_scales_and_locations():
    named = targets.brownian().constrain(jnp.arange(32.0) / 32)
    assert {k: a.shape for k, a in named.items()} == {
        "innovation_noise_scale": (), "observation_noise_scale": (), "locs": (30,)
    }  # fmt: skip
    np.testing.assert_allclose(named["observation_noise_scale"], np.exp(1 / 32), rtol=1e-6)


def test_phi4_is_its_action_and_keeps_the_symmetries_of_the_lattice():
    with jax.enable_x64(True):
        target = targets.phi4(5, m2=-1.5, lam=0.7)
        phi = np.random.default_rng(0).normal(size=(5, 5))
        action = 0.0
        for i in range(5):
            for j in range(5):
                around = phi[(i + 1) % 5, j] + phi[i - 1, j] + phi[i, (j + 1) % 5] + phi[i, j - 1]
                action += phi[i, j] * (4 * phi[i, j] - around) - 1.5 * phi[i, j] ** 2 + 0.7 * phi[i, j] ** 4
        log_density = jax.jit(target.log_density)
        np.testing.assert_allclose(log_density(jnp.asarray(phi)), -action, rtol=1e-12)
        for twin in (-phi, np.roll(phi, 2, 0), phi.T, phi[::-1]):
            np.testing.assert_allclose(log_density(jnp.asarray(twin)), -action, rtol=1e-12)
        assert float(target.constrain(jnp.asarray(phi))["magnetisation"]) == pytest.approx(phi.mean())
    assert targets.phi4().template.shape == (14, 14)
    with pytest.raises(ValueError, match="positive"):
        targets.phi4(lam=0)


def test_lj13_is_its_energy_and_does_not_see_rotations_or_names():
    with jax.enable_x64(True):
        target = targets.lj13()
        rng = np.random.default_rng(0)
        x = rng.normal(size=(13, 3))
        energy = 0.0
        for i in range(13):
            for j in range(13):
                if i != j:
                    r = np.linalg.norm(x[i] - x[j])
                    energy += 0.5 * (r**-12 - 2 * r**-6)
        centre = x.mean(0)
        energy += 0.5 * ((x - centre) ** 2).sum() + 6.5 * (centre**2).sum()
        log_density, score = jax.jit(target.log_density), jax.jit(target.score)
        np.testing.assert_allclose(log_density(jnp.asarray(x)), -energy, rtol=1e-10)
        rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        for twin in (x @ rotation, x[rng.permutation(13)], -x):
            np.testing.assert_allclose(log_density(jnp.asarray(twin)), -energy, rtol=1e-10)
        # Two atoms rest at distance one of each other.
        pair = np.r_[[[0.0, 0, 0], [1.0, 0, 0]], 1e4 * rng.normal(size=(11, 3))]
        np.testing.assert_allclose((np.asarray(score(jnp.asarray(pair))) + pair)[:2], 0, atol=1e-9)


def test_lgcp_is_a_gaussian_process_under_poisson_counts():
    with jax.enable_x64(True):
        target = targets.lgcp()
        counts = np.asarray(target.log_density.args[0])
        assert counts.sum() == 126
        mean = math.log(126) - 1.91 / 2
        x = np.random.default_rng(0).normal(mean, 1, 1600)
        i, j = np.divmod(np.arange(1600), 40)
        distance = np.hypot(i[:, None] - i, j[:, None] - j)
        covariance = 1.91 * np.exp(-distance * 33 / 40)
        log_volume = np.linalg.slogdet(2 * np.pi * covariance)[1]
        prior = -0.5 * (log_volume + (x - mean) @ np.linalg.solve(covariance, x - mean))
        expected = prior + (counts * x - np.exp(x) / 1600).sum()
        np.testing.assert_allclose(jax.jit(target.log_density)(jnp.asarray(x)), expected, rtol=1e-10)
        assert target.constrain(jnp.asarray(x))["log_intensity"].shape == (40, 40)


def test_saplings_are_counted_where_they_stand():
    import os

    path = os.path.join(os.environ.get("GENSAMP_DATA", ""), "targets", "pines.csv")
    if not os.path.isfile(path):
        pytest.skip("pines.csv is not in GENSAMP_DATA")
    points = np.genfromtxt(path, delimiter=",", skip_header=1)[:, 1:]
    counts, _, _ = np.histogram2d(*points.T, bins=40, range=[[0, 1], [0, 1]])
    np.testing.assert_array_equal(counts.ravel(), np.asarray(targets.lgcp().log_density.args[0]))


def test_student_locations_are_those_of_the_benchmark():
    import os

    path = os.path.join(os.environ.get("GENSAMP_DATA", ""), "targets", "gmm40_mos_means.npz")
    if not os.path.isfile(path):
        pytest.skip("gmm40_mos_means.npz is not in GENSAMP_DATA")
    with np.load(path) as stored:
        for dim in (2, 50):
            np.testing.assert_array_equal(targets.mos10(dim).truth.modes[0], stored[f"mos10_legacy_threefry_d{dim}"])


@pytest.mark.parametrize("name", sorted({*WITH_DRAWS, "phi4", "lj13", "lgcp", "sparse_logistic"}))
def test_dtype_is_the_one_asked_for(name):
    with jax.enable_x64(True):
        target = targets.make(name, dtype=jnp.float32)
        functions = [target.log_density, target.score] + ([target.constrain] if target.constrain is not None else [])
        outputs = [jax.eval_shape(f, target.template) for f in functions]
        if target.exact is not None:
            outputs.append(jax.eval_shape(target.exact, jax.random.key(0)))
        assert {a.dtype for a in jax.tree.leaves((target.template, outputs))} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("name", ["mos10", "many_well", "brownian", "phi4", "lj13", "sparse_logistic"])
def test_rebuilding_a_target_does_not_retrace(name):
    count = []

    @jax.jit
    def evaluate(function, x):
        count.append(1)
        return function(x)

    for _ in range(2):
        target = targets.make(name)
        evaluate(target.log_density, jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), target.template))
    assert len(count) == 1


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: targets.mos10(3), "expected one of"),
        (lambda: targets.bimodal(0), "at least 1"),
        (lambda: targets.many_well(0), "at least 1"),
        (lambda: targets.rosenbrock(0), "at least 1"),
        (lambda: targets.phi4(1), "at least 2"),
    ],
)
def test_bad_input_is_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()
