"""Log densities along the probability-flow ODE: against exact ones and quadrature, their error bar, and planted mistakes."""

import sys
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import t as student

import gensamp as gs
from gensamp import noise, paths
from gensamp.nets import mlp
from gensamp.predictions import convert
from gensamp.pushforward import bits_per_dimension, uniform_log_snr, uniform_time
from gensamp.pushforward.continuous_flow import continuous_flow
from gensamp.pushforward.diffusion import diffusion_model, heun
from gensamp.pushforward.diffusion.likelihood import ode_likelihood, ode_log_density, ode_log_density_estimate
from gensamp.targets.mixture import mixture

LIKELIHOOD = import_module("gensamp.pushforward.diffusion.likelihood")
LATTICE = import_module("gensamp.pushforward.lattice")
SLOW = pytest.mark.slow
THREE = mixture([0.5, 0.3, 0.2], [[-1.0, 0.0], [1.0, 1.0], [0.5, -1.0]], [[0.3, 0.2], [0.3, 0.3], [0.2, 0.3]])
# Process, prediction, steps of the grid: nodes crowd at the data for the straight line too.
PROBLEMS = {
    "vp_linear": (noise.vp_linear(), "eps", 20),
    "ve": (noise.ve(0.01, 20.0), "x0", 30),
    "rectified_flow": (noise.rectified_flow(), "velocity", 30),
    "cosine": (noise.cosine(), "v", 20),
}
SIDE = jnp.linspace(-4.5, 4.5, 41)
SQUARE = jnp.stack(jnp.meshgrid(SIDE, SIDE), -1).reshape(-1, 2)


def predicted(score, process, prediction, t, x):
    return convert(process, t, x, score(1 - t, x), "score", prediction.value)


def velocity_of_mixture(components, process, t, x):
    """alpha' E[x_0 | x] + sigma' E[eps | x], without a division by alpha, which is zero at the start of a straight line."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    variances = alpha**2 * components.variances + sigma**2
    residuals = (x[None, :] - alpha * components.means) / variances
    joint = components.log_weights - 0.5 * jnp.sum(residuals**2 * variances + jnp.log(variances), axis=1)
    share = jax.nn.softmax(joint)
    x0 = share @ (components.means + alpha * components.variances * residuals)
    return x0 * -1 + sigma * share @ residuals


def problem(name):
    """(denoise, process, grid, template) and the prediction of the mixture under noise."""
    process, prediction, steps = PROBLEMS[name]
    if prediction == "velocity":
        denoise = gs.bind(velocity_of_mixture, THREE.log_density.args[0], process)
        grid = jnp.append(1.0, uniform_log_snr(process, steps, start=0.98))
    else:
        denoise = gs.bind(predicted, paths.noised(THREE, process).score, process, gs.Static(prediction))
        grid = uniform_log_snr(process, steps)
    return (denoise, process, grid, THREE.template), {"prediction": prediction}


@jax.jit
def on_square(log_density):
    return jax.vmap(log_density)(SQUARE)


def integral(log_density):
    return np.exp(np.asarray(on_square(log_density), float)).sum() * float(SIDE[1] - SIDE[0]) ** 2


def gap(name, log_density):
    """Mean distance to the exact density at the end of the grid, in nats, under that density."""
    process = PROBLEMS[name][0]
    want = np.asarray(on_square(gs.bind(at_the_end, paths.noised(THREE, process).log_density, process)), float)
    return np.average(np.abs(np.asarray(on_square(log_density), float) - want), weights=np.exp(want))


def at_the_end(log_density, process, x):
    return log_density(jnp.asarray(1 - process.t_min, x.dtype), x)


@pytest.mark.parametrize("name", [n if n == "vp_linear" else pytest.param(n, marks=SLOW) for n in PROBLEMS])
def test_it_integrates_to_one_and_is_the_mixtures_and_a_wrong_prior_scale_shows(name, monkeypatch):
    given, options = problem(name)
    # What is left of the data at the first time has about the mixture's variance.
    density = ode_log_density(*given, data_variance=0.95, **options)
    assert abs(integral(density) - 1) < 2e-3
    assert gap(name, density) < 0.01
    # The broken line: the prior's scale a fifth too large. It still integrates to one, and is another law.
    whole = LIKELIHOOD.root
    monkeypatch.setattr(LIKELIHOOD, "root", lambda variance: 1.2 * whole(variance))
    on_square.clear_cache()
    assert gap(name, density) > 0.05
    on_square.clear_cache()


@pytest.mark.slow
def test_runge_kutta_is_of_fourth_order_in_its_steps():
    with jax.enable_x64(True):
        process = noise.vp_linear()
        three = mixture([0.6, 0.4], [[-1.0, 0.0], [1.0, 1.0]], [[0.3, 0.2], [0.3, 0.3]], dtype=jnp.float64)
        denoise = gs.bind(predicted, paths.noised(three, process).score, process, gs.Static("eps"))
        points = jax.random.normal(jax.random.key(0), (16, 2), jnp.float64)
        value = jax.jit(lambda f: jax.vmap(f)(points))
        found = {
            n: np.asarray(value(ode_log_density(denoise, process, uniform_log_snr(process, n), three.template)))
            for n in (20, 40, 320)
        }
        errors = [np.abs(found[n] - found[320]).mean() for n in (20, 40)]
        assert errors[1] < 1e-4 and np.log2(errors[0] / errors[1]) > 3.5, errors


@pytest.mark.slow
def test_a_tolerance_is_reached_without_calling_the_host():
    given, options = problem("vp_linear")
    grid = ode_log_density(*given, **options)
    points = SQUARE[::40]
    want = np.asarray(jax.jit(jax.vmap(grid))(points))
    solve = jax.jit(lambda f: jax.vmap(f)(points))
    errors = []
    for tolerance in (1e-2, 1e-4):
        found = solve(ode_log_density(*given, rtol=tolerance, atol=tolerance, **options))
        errors.append(np.abs(np.asarray(found) - want).mean())
    assert errors[1] < 2e-3 and errors[1] < errors[0]
    assert solve._cache_size() == 1
    bounded = ode_log_density(*given, rtol=1e-4, max_steps=2, **options)
    assert np.isnan(solve(bounded)).all()
    assert "callback" not in str(jax.make_jaxpr(bounded)(points[0]))


@pytest.mark.slow
def test_hutchinsons_error_bar_is_calibrated():
    dim, probes, keys = 6, 32, 400
    process = noise.vp_linear()
    means = jax.random.normal(jax.random.key(0), (3, dim))
    target = mixture([0.5, 0.3, 0.2], means, 0.2 + 0.3 * jax.random.uniform(jax.random.key(1), (3, dim)))
    denoise = gs.bind(predicted, paths.noised(target, process).score, process, gs.Static("eps"))
    given = denoise, process, uniform_log_snr(process, 12), target.template
    x = 0.5 * means[0] + 0.5 * means[1]
    exact = float(jax.jit(lambda f: f(x))(ode_log_density(*given)))
    estimate = ode_log_density_estimate(*given, num_probes=probes)
    each = jax.jit(lambda f, keys: jax.vmap(lambda key: f(key, x))(keys))
    found, error = map(np.asarray, each(estimate, jax.random.split(jax.random.key(2), keys)))
    assert (error > 0.01).all(), "an exact trace would prove nothing"
    z = (found - exact) / error
    # Student's interval of 90 % covers, and the mean is unbiased.
    covered = (np.abs(z) < student.ppf(0.95, probes - 1)).mean()
    assert abs(covered - 0.9) < 4 * np.sqrt(0.9 * 0.1 / keys), covered
    assert abs((found - exact).mean()) < 4 * found.std() / np.sqrt(keys)


def small_model(**options):
    """A continuous flow with random weights, in a frame of its own."""
    template = jax.ShapeDtypeStruct((2,), jnp.float32)
    model = continuous_flow(mlp(template, width=8, depth=1), template=template, num_steps=12, **options)
    params = jax.jit(model.init)(jax.random.key(0), jax.random.normal(jax.random.key(1), (50, 2)))[0]
    stirred = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(5), a.shape), params["network"])
    return model, {"network": stirred, "shift": jnp.array([0.5, -0.5]), "scale": jnp.array([0.7, 0.5])}


def test_a_fitted_flow_carries_its_density_in_the_datas_units(monkeypatch):
    model, params = small_model()
    density = model.sampler(params).log_density
    assert abs(integral(density) - 1) < 1e-2
    # The broken line: the volume of the frame left out.
    monkeypatch.setattr(LIKELIHOOD, "log_volume", lambda frame, template: 0.0)
    on_square.clear_cache()
    assert abs(integral(density) - 1) > 0.5
    on_square.clear_cache()


@pytest.mark.slow
def test_probes_of_one_key_make_a_density_and_other_solvers_carry_it():
    model, params = small_model(likelihood=ode_likelihood(num_probes=2, key=jax.random.key(3)), solver=heun)
    first, again = (model.sampler(params).log_density(SQUARE[800]) for _ in range(2))
    assert first == again == model.log_density(params, SQUARE[800])
    template = jax.ShapeDtypeStruct((2,), jnp.float32)
    other = diffusion_model(
        mlp(template, width=8, depth=1), noise.cosine(), template=template, likelihood=ode_likelihood(rtol=1e-4)
    )
    assert abs(integral(other.sampler(params).log_density) - 1) < 1e-2


def test_bits_per_dimension_bound_the_entropy_of_a_lattice_and_a_missing_cell_shows(monkeypatch):
    """A normal on a lattice of cell 1/2, whose entropy is a sum; the density is that of the smoothed law, by the ODE."""
    cell, process = 0.5, noise.vp_linear()
    values = np.arange(-12, 13) * cell
    weights = np.exp(-0.5 * values**2)
    weights /= weights.sum()
    entropy = -(weights * np.log2(weights)).sum()
    smoothed = mixture([1.0], [[0.0]], [[1 + cell**2 / 12]])
    denoise = gs.bind(predicted, paths.noised(smoothed, process).score, process, gs.Static("eps"))
    density = ode_log_density(denoise, process, uniform_log_snr(process, 10), smoothed.template, data_variance=1.0)
    events = jnp.asarray(np.random.default_rng(0).choice(values, (4000, 1), p=weights), jnp.float32)
    bits, error = bits_per_dimension(jax.random.key(0), density, events, cell=cell)
    assert -4 * error < bits - entropy < 0.02 + 4 * error
    # The broken line: the volume of the cell left out. The "bound" lies a whole bit below what any code can reach.
    whole = LATTICE.in_bits
    monkeypatch.setattr(LATTICE, "in_bits", lambda nll, size, cell: whole(nll, size))
    broken, error = bits_per_dimension(jax.random.key(0), density, events, cell=cell)
    assert broken - entropy < -0.9


def test_bad_arguments_are_refused(monkeypatch):
    (denoise, process, grid, template), _ = problem("vp_linear")
    with pytest.raises(ValueError, match="ode_log_density got rtol=0; expected a positive number"):
        ode_log_density(denoise, process, grid, template, rtol=0)
    with pytest.raises(ValueError, match="ode_log_density_estimate got num_probes=1; expected at least 2"):
        ode_log_density_estimate(denoise, process, grid, template, num_probes=1)
    with pytest.raises(ValueError, match="ode_likelihood got num_probes=2 and key=None"):
        ode_likelihood(num_probes=2)
    with pytest.raises(ValueError, match="ode_likelihood got a grid from"):
        ode_likelihood(grid=uniform_time(4, start=0.5))(denoise, process, grid, template, prediction="eps")
    with pytest.raises(ValueError, match="ode_log_density got a grid of shape"):
        ode_log_density(denoise, process, grid[:1], template)
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ImportError, match="a likelihood to a tolerance needs diffrax"):
        ode_likelihood(rtol=1e-3)
