"""Targets that are formulas: density, exact draws and truth must tell of one law, each checked against the others.

Three statements tie them together. Stein: for exact draws E[score] = 0 and E[x * score] = -1 per coordinate. Quadrature: the
density integrates to one and has the moments that the truth states. Change of variables: log p(Q(u)) = -log |det dQ/du|.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from gensamp import targets

FORMULAS = {
    "gmm40": targets.gmm40,
    "gmm40_d50": functools.partial(targets.gmm40, dim=50),
    "funnel": targets.funnel,
    "banana": targets.banana,
    "ill_conditioned_gaussian": targets.ill_conditioned_gaussian,
    "two_moons": targets.two_moons,
}
KEYS, DRAWS = 10, 4_000


@jax.jit
def _statistics(target, keys, stretch):
    """For each key, over exact draws stretched by a factor: Stein's statistics and the truth's, as z [keys, statistics]."""
    quantiles = [q for q, _ in target.truth.quantiles.values()]
    probabilities = list(target.truth.quantiles)

    def of(x):
        score = target.score(x)
        below = [(x <= q) - p for p, q in zip(probabilities, quantiles, strict=True)]
        mean, variance = target.truth.mean[0], target.truth.variance[0]
        return jnp.concatenate([score, x * score + 1, (x - mean) / jnp.sqrt(variance), *below])

    def lane(key):
        x = stretch * jax.vmap(target.exact)(jax.random.split(key, DRAWS))
        each = jax.vmap(of)(x)
        return each.mean(0) / each.std(0) * jnp.sqrt(DRAWS)

    return jax.lax.map(lane, keys)


@functools.partial(jax.jit, static_argnums=1)
def _draws(exact, count):
    return jax.vmap(exact)(jax.random.split(jax.random.key(0), count))


@pytest.mark.parametrize("name", FORMULAS)
def test_exact_draws_have_the_density_and_the_truth(name):
    """The planted mistake: draws ten per cent too wide."""
    target = FORMULAS[name]()
    keys = jax.random.split(jax.random.key(11), KEYS)
    intact = np.abs(np.asarray(_statistics(target, keys, jnp.float32(1))))
    broken = np.abs(np.asarray(_statistics(target, keys, jnp.float32(1.1))))
    threshold = norm.isf(1e-2 / (2 * intact.shape[1]))
    assert (intact.max(1) <= threshold).sum() >= 9, intact.max(1)
    assert (broken.max(1) > threshold).sum() >= 9, broken.max(1)


def _grid(target):
    """Points and weights of a product trapezoidal rule over all but 1e-12 of a 2-D target."""
    mean, scale = np.asarray(target.truth.mean[0]), np.sqrt(np.asarray(target.truth.variance[0]))
    reach, nodes = {"banana": (np.array([8.0, 30.0]), (401, 3001)), "gmm40": (np.array([2.5, 2.5]), (401, 401))}.get(
        target.name, (np.array([3.5, 4.0]), (301, 301))
    )
    axes = [np.linspace(m - r * s, m + r * s, n) for m, r, s, n in zip(mean, reach, scale, nodes, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    return jnp.asarray(points), (axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0])


@jax.jit
def _densities(target, points):
    return jnp.exp(jax.lax.map(target.log_density, points, batch_size=20_000))


@pytest.mark.parametrize("name", ["banana", "gmm40", "two_moons"])
def test_density_integrates_to_the_truth(name):
    with jax.enable_x64(True):
        target = FORMULAS[name]()
        points, cell = _grid(target)
        mass = np.asarray(_densities(target, points)) * cell
        points, truth = np.asarray(points), target.truth
        mean = mass @ points
        variance = mass @ (points - mean) ** 2
        np.testing.assert_allclose(mass.sum(), 1, atol=1e-8)
        np.testing.assert_allclose(mean, truth.mean[0], atol=1e-6 * np.sqrt(variance).max())
        np.testing.assert_allclose(variance, truth.variance[0], rtol=1e-6)
        for p, (quantile, error) in truth.quantiles.items():
            assert error == 0
            for j in range(2):
                column = np.unique(points[:, j])
                share = np.cumsum(np.bincount(np.searchsorted(column, points[:, j]), mass))
                # A sum up to a node of a smooth density, less half the node, is its distribution function there.
                smooth = share - np.bincount(np.searchsorted(column, points[:, j]), mass) / 2
                assert abs(np.interp(quantile[j], column, smooth) - p) < 2e-3

        # The planted mistake: a normal without its constant.
        assert abs(mass.sum() * np.sqrt(2 * np.pi) - 1) > 0.1


def test_funnel_marginal_quantiles_by_direct_quadrature():
    truth = targets.funnel().truth
    v = np.linspace(-30, 30, 4001)
    for p, (quantile, _) in truth.quantiles.items():
        assert abs(norm.cdf(float(quantile[0]), scale=3) - p) < 1e-6
        inner = np.sum(norm.pdf(v, scale=3) * norm.cdf(float(quantile[5]), scale=np.exp(v / 2))) * (v[1] - v[0])
        assert abs(inner - p) < 1e-6


def test_banana_has_the_published_second_moments():
    draws = np.asarray(_draws(targets.banana().exact, 200_000), float)
    for values, expected in (((draws**2).mean(0), [100, 19]), ((draws**2).var(0), [20000, 4600.9])):
        np.testing.assert_allclose(values, expected, rtol=0.06)


@pytest.mark.parametrize("name", ["banana", "funnel", "ill_conditioned_gaussian"])
def test_quantile_transform_carries_uniforms_to_the_density(name):
    with jax.enable_x64(True):
        target = FORMULAS[name](**({} if name == "banana" else {"dim": 4}))
        u = jax.random.uniform(jax.random.key(2), (50, *target.template.shape), minval=1e-3, maxval=1 - 1e-3)

        @jax.jit
        @jax.vmap
        def gap(u):
            _, log_volume = jnp.linalg.slogdet(jax.jacfwd(target.truth.quantile)(u))
            return target.log_density(target.truth.quantile(u)) + log_volume

        np.testing.assert_allclose(gap(u), np.zeros(50), atol=1e-8)


def test_two_moons_density_is_the_integral_over_the_arcs():
    with jax.enable_x64(True):
        nodes, weights = np.polynomial.legendre.leggauss(500)
        angle = (nodes + 1) * np.pi / 2
        arcs = np.concatenate([np.c_[np.cos(angle), np.sin(angle)], np.c_[1 - np.cos(angle), 0.5 - np.sin(angle)]])
        x = np.random.default_rng(0).uniform([-1.3, -0.8], [2.3, 1.3], (100, 2))
        for noise in (0.05, 0.1):
            squares = ((x[:, None] - arcs) ** 2).sum(-1) / noise**2
            joint = -0.5 * squares + np.log(np.tile(weights, 2) / 4 / (2 * np.pi * noise**2))
            expected = np.logaddexp.reduce(joint, axis=1)
            got = jnp.log(_densities(targets.two_moons(noise=noise), jnp.asarray(x)))
            np.testing.assert_allclose(got, expected, atol=1e-6)


def test_two_moons_data_are_draws_of_it_and_always_the_same():
    first, second = targets.two_moons(), targets.two_moons()
    assert first.data.shape == (10_000, 2) and bool((first.data == second.data).all())
    error = np.abs(np.asarray(first.data).mean(0) - first.truth.mean[0]) / np.sqrt(np.asarray(first.truth.variance[0]) / 10_000)
    assert error.max() < 4


def test_gmm40_ships_its_means_and_modes():
    for dim in (2, 50):
        target = targets.gmm40(dim)
        centres, weights, radius = target.truth.modes
        assert centres.shape == (40, dim) and np.abs(centres).max() <= 40
        np.testing.assert_allclose(weights, np.full(40, 1 / 40), rtol=1e-6)
        draws = np.asarray(_draws(target.exact, 2_000))
        distance = np.linalg.norm(draws[:, None] - np.asarray(centres), axis=2).min(1)
        # A draw may also lie near a neighbour's centre, so the share is at least 99 %.
        assert (distance <= radius[0]).mean() > 0.985
    np.testing.assert_allclose(targets.gmm40().truth.modes[0][0], targets.gmm40(2).truth.modes[0][0])


@pytest.mark.parametrize("name", [*FORMULAS, "eight_schools", "digits"])
@pytest.mark.parametrize("x64", [False, True])
def test_dtype_is_jax_default_or_the_one_asked_for(name, x64):
    with jax.enable_x64(x64):
        asked = [(None, jnp.float64 if x64 else jnp.float32), (jnp.float32, jnp.float32)]
        for dtype, expected in asked:
            target = targets.make(name, dtype=dtype)
            assert {a.dtype for a in jax.tree.leaves(target.template)} == {jnp.dtype(expected)}
            if target.log_density is not None:
                found = [target.log_density, target.score, target.truth.quantile]
                u = jax.ShapeDtypeStruct((sum(a.size for a in jax.tree.leaves(target.template)),), expected)
                inputs = [target.template, target.template, u]
                outputs = [jax.eval_shape(f, x) for f, x in zip(found, inputs, strict=True) if f is not None]
                outputs.append(jax.eval_shape(target.exact, jax.random.key(0)))
                assert {a.dtype for a in jax.tree.leaves(outputs)} == {jnp.dtype(expected)}


def test_float64_without_x64_is_refused():
    with pytest.raises(ValueError, match="jax_enable_x64"):
        targets.banana(dtype=jnp.float64)


@pytest.mark.parametrize("name", FORMULAS)
def test_rebuilding_a_target_does_not_retrace(name):
    count = []

    @jax.jit
    def score(function, x):
        count.append(1)
        return function(x)

    for _ in range(2):
        target = FORMULAS[name]()
        score(target.score, jnp.zeros(target.template.shape))
    assert len(count) == 1


def test_every_name_makes_its_target():
    assert set(targets.names()) >= {*FORMULAS, "eight_schools", "digits"}
    assert [targets.make(name).name for name in targets.names()] == list(targets.names())
    assert targets.make("two-moons").name == "two_moons" and targets.make("gmm40", dim=50).template.shape == (50,)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: targets.make("bananna"), "did you mean 'banana'"),
        (lambda: targets.make("eight-school"), "did you mean 'eight_schools'"),
        (lambda: targets.gmm40(3), "expected one of"),
        (lambda: targets.funnel(1), "at least 2"),
        (lambda: targets.ill_conditioned_gaussian(5, condition_number=0.5), "expected"),
        (lambda: targets.two_moons(noise=0.001), "at least 0.05"),
        (lambda: targets.mixture([1.0], [[0.0]], [[1.0, 1.0]]), "expected"),
        (lambda: targets.mixture([1.0], [[0.0]], [[-1.0]]), "not positive"),
    ],
)
def test_bad_input_is_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()
