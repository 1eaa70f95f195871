"""Paths: closed forms at and between the ends, exact scores against differentiation and quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gensamp import noise as noising
from gensamp import paths, targets
from gensamp.core import Target, bind
from gensamp.targets.mixture import Mixture, mixture_log_density

PROCESSES = {"vp_linear": noising.vp_linear, "cosine": noising.cosine, "ve": noising.ve}


def _small(dtype=None):
    """Three components of different widths in two dimensions."""
    means, variances = [[-2.0, 0.5], [1.0, 1.5], [2.5, -1.0]], [[0.3, 0.5], [1.0, 0.2], [0.4, 0.8]]
    return targets.mixture([0.2, 0.5, 0.3], means, variances, dtype=dtype)


def _normal(mean, scale, size=2):
    make = noising.prior(noising.ve(1e-3, scale), jnp.zeros(size))
    return targets.mixture([1.0], np.full((1, size), mean), np.full((1, size), scale**2)) if mean else make


@jax.jit
def _draws(exact):
    return jax.vmap(exact)(jax.random.split(jax.random.key(0), 20_000))


@jax.jit
def _both_scores(path, times, x):
    """The path's score and the gradient of its density, each [times, draws, dim]."""
    automatic = jax.grad(path.log_density, argnums=1)
    return tuple(jax.vmap(lambda t, f=f: jax.vmap(lambda y: f(t, y))(x))(times) for f in (path.score, automatic))


@pytest.mark.parametrize("process", PROCESSES)
def test_noised_score_is_the_gradient_of_the_noised_density(process):
    with jax.enable_x64(True):
        for target in (_small(), targets.gmm40(), targets.two_moons()):
            path = paths.noised(target, PROCESSES[process]())
            x = 3 * jax.random.normal(jax.random.key(0), (20, 2))
            closed, automatic = _both_scores(path, jnp.asarray([0.0, 0.4, 0.9, 1.0]), x)
            np.testing.assert_allclose(closed, automatic, rtol=1e-8, atol=1e-8)


def _convolved(target, process, t, x):
    """log p_t(x) = log of the integral of p(x_0) N(x; alpha x_0, sigma^2), by the trapezoidal rule in x_0."""
    alpha, sigma = process.alpha(1 - t), process.sigma(1 - t)
    axis = jnp.linspace(-7.0, 7.0, 201)
    grid = jnp.stack(jnp.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    clean = jax.vmap(target.log_density)(grid)

    def at(point):
        kernel = jax.scipy.stats.norm.logpdf(point[None, :], alpha * grid, sigma).sum(1)
        return jax.nn.logsumexp(clean + kernel) + 2 * jnp.log(axis[1] - axis[0])

    return jax.lax.map(at, x)


def test_noised_density_is_the_convolution():
    with jax.enable_x64(True):
        target, process = _small(), noising.cosine()
        path = paths.noised(target, process)
        x = 1.5 * jax.random.normal(jax.random.key(1), (10, 2))
        for t in (0.2, 0.6):
            expected = _convolved(target, process, t, x)
            got = jax.vmap(path.log_density, (None, 0))(t, x)
            np.testing.assert_allclose(got, expected, atol=1e-6)

            (components,) = target.log_density.args
            alpha, sigma = process.alpha(1 - t), process.sigma(1 - t)
            forgot_to_square = Mixture(
                components.log_weights, alpha * components.means, alpha * components.variances + sigma**2
            )
            wrong = jax.vmap(mixture_log_density, (None, 0))(forgot_to_square, x)
            assert np.abs(wrong - expected).max() > 1e-2


def test_noised_path_ends_at_the_target_and_starts_at_its_base():
    target = _small()
    x = jnp.asarray([0.3, -0.2])
    path = paths.noised(target, noising.vp_linear())
    np.testing.assert_allclose(path.log_density(1.0, x), target.log_density(x), rtol=1e-5)
    np.testing.assert_allclose(path.log_density(0.0, x), path.base.log_density(x), rtol=1e-5)
    np.testing.assert_allclose(path.score(0.0, x), path.base.score(x), rtol=1e-5)
    draws = _draws(path.base.exact)
    assert abs(float(draws.std()) - 1) < 0.02 and path.forwards == 0


def _everything(path, t, x):
    return path.log_density(t, x), path.score(t, x), path.base.exact(jax.random.key(0))


@pytest.mark.parametrize("x64", [False, True])
def test_paths_keep_the_dtype_of_the_event(x64):
    with jax.enable_x64(x64):
        for dtype in (jnp.float32, jnp.float64) if x64 else (jnp.float32,):
            target = _small(dtype)
            base = targets.mixture([1.0], np.zeros((1, 2)), np.full((1, 2), 9.0), dtype=dtype)
            x = jnp.zeros(2, dtype)
            for path in (
                paths.geometric(base, target),
                paths.tempered(target, base, smallest=0.1),
                paths.noised(target, noising.cosine()),
            ):
                for t in (0.5, jnp.asarray(0.5, jnp.float32)):
                    found = jax.eval_shape(_everything, path, t, x)
                    assert {a.dtype for a in found} == {jnp.dtype(dtype)}


def test_geometric_mean_of_two_normals_is_normal():
    """Precisions add: (1 - t) / s_0^2 + t / s_1^2, so at t = 0.5 the score is linear with their average."""
    base, target = _normal(0.0, 3.0), _normal(1.0, 0.5)
    path = paths.geometric(base, target)
    x = jnp.asarray([0.7, -1.2])
    precision = 0.5 / 9 + 0.5 / 0.25
    np.testing.assert_allclose(path.score(0.5, x), -(precision * x - 0.5 / 0.25), rtol=1e-5)
    np.testing.assert_allclose(*_both_scores(path, jnp.asarray([0.0, 0.3, 1.0]), x[None, :]), rtol=1e-4)
    for t, end in ((0.0, base), (1.0, target)):
        np.testing.assert_allclose(path.log_density(t, x), end.log_density(x), rtol=1e-5)


def _half_line(x):
    return jnp.where(x[0] > 0, -jnp.sum(x**2), -jnp.inf)


def test_geometric_path_ignores_an_impossible_target_at_its_start():
    path = paths.geometric(_normal(0.0, 1.0, 1), Target.from_log_density(_half_line, jnp.zeros(1)))
    outside = -jnp.ones(1)
    assert jnp.isfinite(path.log_density(0.0, outside)) and path.log_density(0.5, outside) == -jnp.inf
    assert bool(jnp.isfinite(path.score(0.0, outside)).all())


def test_tempered_path_raises_the_target_to_a_power():
    target, base = _small(), _normal(0.0, 5.0)
    x = jnp.asarray([0.4, 0.1])
    path = paths.tempered(target, base, smallest=0.01)
    for t, beta in ((0.0, 0.01), (0.5, 0.1), (1.0, 1.0)):
        np.testing.assert_allclose(path.log_density(t, x), beta * target.log_density(x), rtol=1e-4)
        np.testing.assert_allclose(path.score(t, x), beta * target.score(x), rtol=1e-4)
    linear = paths.tempered(target, base)
    np.testing.assert_allclose(linear.log_density(0.25, x), 0.25 * target.log_density(x), rtol=1e-5)
    assert float(linear.log_density(0.0, x)) == 0 and not linear.score(0.0, x).any()


def _exact_score(path, t, x):
    return path.score(1 - t, x)


def _reports_time(t, x):
    return jnp.full_like(x, t)


def test_learned_path_runs_against_the_time_of_the_noise():
    target, process = _small(), noising.vp_linear()
    exact = paths.noised(target, process)
    path = paths.learned(bind(_exact_score, exact), process, target.template)
    x = jnp.asarray([0.3, -0.5])
    for t in (0.0, 0.5, 0.9):
        np.testing.assert_allclose(path.score(t, x), exact.score(t, x), rtol=1e-4)
    assert path.forwards == 1 and path.log_density is None
    clock = paths.learned(_reports_time, process, target.template)
    np.testing.assert_allclose([clock.score(t, x)[0] for t in (0.0, 0.75, 1.0)], [1, 0.25, process.t_min], rtol=1e-6)


def test_learned_path_starts_from_the_prior_of_its_noise():
    path = paths.learned(_reports_time, noising.ve(0.01, 50.0), jnp.zeros(3))
    draws = _draws(path.base.exact)
    assert 45 < float(draws.std()) < 55


def test_new_parameters_do_not_retrace():
    count = []

    @jax.jit
    def at(path, x):
        count.append(1)
        return path.score(0.5, x)

    for scale in (1.0, 2.0):
        moved = targets.mixture([0.5, 0.5], np.full((2, 2), scale), np.ones((2, 2)))
        at(paths.noised(moved, noising.cosine(-10.0, 10.0 + scale)), jnp.zeros(2))
    assert len(count) == 1


def _wrong_shape(t, x):
    return x[:1]


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: paths.noised(targets.banana(), noising.cosine()), ValueError, "not a Gaussian mixture"),
        (lambda: paths.geometric(targets.digits(), _small()), ValueError, "needs target.exact"),
        (lambda: paths.geometric(_small(), targets.funnel()), ValueError, "expected the same"),
        (lambda: paths.tempered(_small(), _normal(0.0, 1.0), smallest=2.0), ValueError, "inverse temperature"),
        (
            lambda: paths.tempered(_small(), _normal(0.0, 1.0), smallest="x"),
            ValueError,
            "got smallest='x'; expected an inverse",
        ),
        (lambda: paths.noised(_small(), "cosine"), TypeError, "got 'cosine' as its noise; expected a Noise, such as"),
        (lambda: paths.learned(_wrong_shape, noising.cosine(), jnp.zeros(2)), TypeError, "expected an event"),
    ],
)
def test_bad_input_is_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()
