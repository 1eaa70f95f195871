"""Solvers of the reversed diffusion: what they share, what they refuse, and that no grid, process or prediction gives NaN.

Their orders of convergence are measured in tests/oracles, their laws in tests/statistical.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import gensamp as gs
from gensamp import noise
from gensamp.nets import mlp
from gensamp.predictions import PREDICTIONS, convert
from gensamp.pushforward.diffusion import (
    ancestral,
    ddim_sampler,
    ddpm,
    deis,
    diffusion_model,
    dpm_solver,
    dpm_solver_pp,
    euler,
    exponential_sde,
    heun,
    karras,
    lms,
    trailing,
    uniform_log_snr,
    uniform_time,
    unipc,
)
from gensamp.pushforward.diffusion.grids import graded
from gensamp.pushforward.diffusion.multistep import exponential_moments, node_weights, phi, usable_nodes

PROCESSES = {
    "vp_linear": noise.vp_linear(), "cosine": noise.cosine(), "ve": noise.ve(), "sub_vp": noise.sub_vp(), "edm": noise.edm(),
    "rectified_flow": noise.rectified_flow(),
}  # fmt: skip
OTHERS = [name for name in PROCESSES if name != "vp_linear"]
# name: (solver, options, what it integrates).
SOLVERS = {
    "ancestral": (ancestral, {}, ""),
    "ddim": (ddim_sampler, {}, ""),
    "euler": (euler, {}, ""),
    "heun": (heun, {}, ""),
    "heun, churn": (heun, {"churn": 3.0}, ""),
    "lms 4": (lms, {"order": 4}, ""),
    "deis 3": (deis, {"order": 3}, "eps"),
    "deis 3, time": (deis, {"order": 3, "variable": "time"}, "eps"),
    "dpm_solver 2": (dpm_solver, {"order": 2}, "eps"),
    "dpm_solver 3": (dpm_solver, {"order": 3}, "eps"),
    "dpm_solver 2S": (dpm_solver, {"order": 2, "integrates": "x0"}, ""),
    "dpm_solver_pp 2M": (dpm_solver_pp, {"order": 2}, ""),
    "dpm_solver_pp 3M": (dpm_solver_pp, {"order": 3}, ""),
    "dpm_solver_pp SDE": (dpm_solver_pp, {"order": 2, "eta": 1.0}, ""),
    "exponential_sde": (exponential_sde, {}, "eps"),
    "unipc 2": (unipc, {"order": 2}, ""),
    "unipc 3": (unipc, {"order": 3}, ""),
}
STEPS = 6


def gaussian(noise, wanted, t, x):
    """The exact denoiser of data from N(0, 1/4), saying it in the way that is wanted."""
    alpha, sigma = noise.alpha(t), noise.sigma(t)
    x0 = 0.25 * alpha / (0.25 * alpha**2 + sigma**2) * x
    return x0 if wanted.value == "x0" else convert(noise, t, x, x0, "x0", wanted.value)


def exact(process, prediction="x0"):
    return gs.bind(gaussian, process, gs.Static(prediction))


def grids(process):
    return {
        "time": uniform_time(STEPS),
        "trailing": trailing(STEPS, train_steps=10),
        "log-SNR": uniform_log_snr(process, STEPS),
        "karras": karras(process, STEPS),
        "repeated": jnp.array([1.0, 1.0, 0.5, 0.5, 0.0, 0.0, 0.0]),
        "standing": jnp.zeros(STEPS + 1),
        "graded": graded(uniform_log_snr(process, STEPS - 2), order=4),
    }


def with_signal(grid):
    return jnp.minimum(grid, 0.999)


@pytest.mark.parametrize(
    ("name", "process_name"),
    [
        pytest.param(name, p, marks=[] if p == "vp_linear" and name != "deis 3, time" else pytest.mark.slow)
        for name in SOLVERS
        for p in PROCESSES
    ],
)
def test_no_grid_gives_nan_and_forwards_are_what_the_docstrings_say(name, process_name):
    solver, options, integrates = SOLVERS[name]
    process, made = PROCESSES[process_name], {}
    for label, grid in grids(process).items():
        grid = with_signal(grid) if integrates == "eps" and process_name == "rectified_flow" else grid
        made[label] = solver(exact(process), process, grid, jnp.zeros(4), prediction="x0", **options)
    draws = jax.jit(jax.vmap(lambda sampler: gs.draw(jax.random.key(0), sampler)))
    out = draws(jax.tree.map(lambda *leaves: np.stack(leaves), *made.values()))
    bad = [label for label, x in zip(made, out.position, strict=True) if not np.isfinite(x).all()]
    assert not bad, bad
    per_step = 2 if solver is heun else options["order"] if solver is dpm_solver else 1
    for (label, sampler), forwards in zip(made.items(), out.info.forwards, strict=True):
        assert sampler.num_steps == STEPS
        clean = sum(process.sigma(float(t)) < noise.FLOOR for t in sampler.step.args[0].times[1:])
        # A step to a time without noise costs one.
        assert forwards == per_step * sampler.num_steps - clean * (per_step - 1), label


def test_solvers_take_every_prediction_alike():
    process = PROCESSES["cosine"]
    grid = uniform_log_snr(process, STEPS)
    draw = jax.jit(lambda sampler: gs.draw(jax.random.key(0), sampler).position)
    for solver, options in ((unipc, {"order": 2}), (euler, {})):
        want = draw(solver(exact(process), process, grid, jnp.zeros(4), prediction="x0", **options))
        for prediction in PREDICTIONS:
            got = draw(solver(exact(process, prediction), process, grid, jnp.zeros(4), prediction=prediction, **options))
            np.testing.assert_allclose(got, want, rtol=5e-3, atol=5e-4, err_msg=prediction)


@pytest.mark.parametrize("name", ["ddim", "heun", "lms 4", "dpm_solver 3", "dpm_solver_pp 3M"])
def test_the_last_step_returns_the_guess_where_no_noise_is_left(name):
    solver, options, _ = SOLVERS[name]
    process = PROCESSES["vp_linear"]
    sampler = solver(exact(process), process, jnp.array([0.6, 0.3, 0.0]), jnp.zeros(4), prediction="x0", **options)
    x, last = jax.random.normal(jax.random.key(1), (4,)), sampler.num_steps - 1
    state = sampler.init(jax.random.key(0), x)
    got = sampler.position(jax.jit(sampler.step)(jax.random.key(0), state, jnp.int32(last))[0])
    np.testing.assert_allclose(got, exact(process)(jnp.float32(0.3), x), rtol=1e-5)


def test_equal_methods_agree():
    """First-order DPM-Solver++ is DDIM, its SDE the ancestral sampler; Euler on a straight process is DDIM."""
    x, key = jax.random.normal(jax.random.key(1), (4,)), jax.random.key(2)

    def steps(sampler):
        state = sampler.init(key, x)
        return [sampler.position(sampler.step(key, state, jnp.int32(i))[0]) for i in (1, 4)]

    process = PROCESSES["vp_linear"]
    given = (exact(process), process, uniform_log_snr(process, STEPS), jnp.zeros(4))
    pairs = [
        (dpm_solver_pp(*given, order=1, prediction="x0"), ddim_sampler(*given, prediction="x0")),
        (dpm_solver_pp(*given, order=1, eta=1.0, prediction="x0"), ancestral(*given, prediction="x0")),
        (exponential_sde(*given, eta=0.0, prediction="x0"), ddim_sampler(*given, prediction="x0")),
        (deis(*given, order=1, prediction="x0"), ddim_sampler(*given, prediction="x0")),
    ]
    for process in (PROCESSES["edm"], PROCESSES["rectified_flow"]):
        given = (exact(process), process, uniform_time(STEPS), jnp.zeros(4))
        pairs.append((euler(*given, prediction="x0"), ddim_sampler(*given, prediction="x0")))
    pairs.append((lms(*given, order=1, prediction="x0"), euler(*given, prediction="x0")))
    for one, other in pairs:
        for a, b in zip(jax.jit(steps)(one), jax.jit(steps)(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)


def test_deis_in_time_is_lms_where_time_is_sigma():
    process = PROCESSES["edm"]
    given = (exact(process), process, graded(karras(process, STEPS, start=0.02)), jnp.zeros(4))
    draw = jax.jit(lambda sampler: gs.draw(jax.random.key(0), sampler).position)
    got = draw(deis(*given, order=3, variable="time", prediction="x0"))
    np.testing.assert_allclose(got, draw(lms(*given, order=3, prediction="x0")), rtol=2e-3, atol=2e-4)


def test_churn_adds_the_noise_it_says_and_none_outside_its_range():
    process = noise.edm()
    grid = uniform_log_snr(process, 8)

    def spread(**options):
        sampler = heun(gs.bind(lambda t, x: x), process, grid, jnp.zeros(2000), prediction="x0", **options)
        x = jnp.zeros(2000)
        return np.std(jax.jit(sampler.step)(jax.random.key(0), x, jnp.int32(4))[0]), float(process.sigma(grid[4]))

    # The denoiser returns x itself, so the field is zero and the step is the churn alone.
    got, sigma = spread(churn=0.8, churn_noise=1.5)
    assert got == pytest.approx(1.5 * sigma * np.sqrt(1.1**2 - 1), rel=0.05)
    assert spread(churn=0.8, churn_range=(1e3, 1e4))[0] == 0 and spread()[0] == 0


@pytest.mark.parametrize("z", [-20.0, -3.0, -1.0, -0.99, -1e-3, 0.0, 1e-6, 0.5, 2.0, 8.0])
def test_phi_functions_are_the_integrals(z):
    with jax.enable_x64(True):
        u, w = np.polynomial.legendre.leggauss(60)
        u, w = (u + 1) / 2, w / 2
        want = [np.exp(z), *(np.sum(w * np.exp((1 - u) * z) * u ** (k - 1)) / np.prod(range(1, k)) for k in (1, 2, 3, 4))]
        np.testing.assert_allclose(phi(4, jnp.float64(z)), want, rtol=1e-11)


def test_multistep_weights_integrate_polynomials_exactly():
    with jax.enable_x64(True):
        h, rate = jnp.float64(0.7), 2.0
        nodes = jnp.array([0.0, -0.4, -1.3])
        moments = exponential_moments(3, h, rate)
        weights = node_weights(nodes, moments, usable_nodes(nodes))
        v, w = np.polynomial.legendre.leggauss(40)
        v, w = (v + 1) / 2 * 0.7, w / 2 * 0.7
        for power in range(3):
            want = np.sum(w * rate * np.exp(-rate * (0.7 - v)) * v**power)
            assert np.sum(weights * nodes**power) == pytest.approx(want, rel=1e-10, abs=1e-12)
        # A node that coincides with its neighbour, and all older ones, are left out.
        repeated = nodes.at[2].set(nodes[1])
        two = node_weights(repeated, moments, usable_nodes(repeated))
        assert two[2] == 0 and np.sum(two) == pytest.approx(float(moments[0]))
        assert np.sum(two * nodes) == pytest.approx(float(moments[1]))


def test_grids_are_what_they_say():
    process = noise.edm(0.01, 10.0)
    ramp = np.linspace(10 ** (1 / 7), 0.01 ** (1 / 7), 8) ** 7
    np.testing.assert_allclose(10 * karras(process, 8)[:-1], ramp, rtol=1e-3)
    assert karras(process, 8)[-1] == 0 and karras(process, 8, clean=False).shape == (9,)
    np.testing.assert_allclose(10 * karras(process, 4, rho=1.0, clean=False), np.linspace(10, 0.01, 5), rtol=1e-3)
    for other in PROCESSES.values():
        assert (np.diff(karras(other, 8)) < 0).all()
    np.testing.assert_allclose(trailing(3, train_steps=10), [1, 0.7, 0.3, 0], rtol=1e-6)
    grid = jnp.linspace(1.0, 0.2, 5)
    for order, first in ((1, []), (2, []), (3, [0.9]), (4, [0.95, 0.9])):
        want = [1, *first, 0.8, 0.6, 0.4, 0.2]
        np.testing.assert_allclose(graded(grid, order), want, rtol=1e-6)
        np.testing.assert_allclose(jax.jit(graded, static_argnums=1)(grid, order), want, rtol=1e-6)
    assert graded(grid[:2], 4).shape == (2,)


def test_a_model_draws_with_any_solver_from_the_parameters_of_ddpm():
    template = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
    events = {"a": 5 + jnp.arange(48.0).reshape(16, 3), "b": jax.random.normal(jax.random.key(0), (16, 2, 2))}
    network, process = mlp(template, width=8, depth=1), noise.cosine()
    params, _ = jax.jit(ddpm(network, process, template=template).init)(jax.random.key(0), events)
    params = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(3), a.shape), params)
    draw = jax.jit(lambda sampler: gs.draw(jax.random.key(1), sampler).position)
    model = diffusion_model(network, process, template=template, solver=dpm_solver_pp, num_steps=5, order=2, eta=0.0)
    one = draw(model.sampler(params))
    # Another eta and other parameters are leaves of the same program.
    noisy = diffusion_model(network, process, template=template, solver=dpm_solver_pp, num_steps=5, order=2, eta=1.0)
    assert np.abs(draw(noisy.sampler(params))["a"] - one["a"]).max() > 1e-3
    assert draw._cache_size() == 1
    clipped = diffusion_model(network, process, template=template, solver=unipc, num_steps=5, order=2, clip=(-0.1, 0.1))
    assert np.abs(draw(clipped.sampler(params))["a"]).max() < 0.5


ANY = (exact(PROCESSES["cosine"]), PROCESSES["cosine"], uniform_time(4), jnp.zeros(3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: unipc(*ANY, order=4), "unipc got order=4; expected 1, 2 or 3"),
        (lambda: lms(*ANY, order=0), "lms got order=0"),
        (lambda: deis(*ANY, order=5), "deis got order=5"),
        (lambda: graded(uniform_time(4), order=5), "graded got order=5; expected 1, 2, 3 or 4"),
        (lambda: graded(jnp.zeros(1)), r"graded got a grid of shape \(1,\)"),
        (lambda: dpm_solver_pp(*ANY, order=4), "dpm_solver_pp got order=4"),
        (lambda: dpm_solver_pp(*ANY, eta=-1.0), "dpm_solver_pp got eta=-1.0"),
        (lambda: exponential_sde(*ANY, eta=-1.0), "exponential_sde got eta=-1.0"),
        (lambda: dpm_solver(*ANY, order=1), "dpm_solver got order=1"),
        (lambda: heun(*ANY, churn=-1.0), "heun got churn=-1.0"),
        (lambda: heun(*ANY, churn_range=(2.0, 1.0)), "heun got churn_range"),
        (lambda: karras(PROCESSES["edm"], 4, rho=0.0), "karras got rho=0.0"),
        (lambda: trailing(11, train_steps=10), "trailing got num_steps=11 of train_steps=10"),
        (lambda: karras(PROCESSES["edm"], 0), "num_steps=0"),
        (lambda: diffusion_model(mlp(jnp.zeros(3)), PROCESSES["edm"], template=jnp.zeros(3), order=7), "unipc got order=7"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_text_among_a_denoisers_arrays_is_refused_by_name():
    worded = Partial(lambda process, prediction, t, x: x, PROCESSES["cosine"], "v")
    with pytest.raises(TypeError, match=r"heun got a denoiser that holds 'v', which is no array; bind it as Static\('v'\)"):
        heun(worded, *ANY[1:])


def test_a_grid_without_signal_is_refused_by_name_where_it_cannot_be_taken():
    process = PROCESSES["rectified_flow"]
    for (name, (solver, options, integrates)), prediction in itertools.product(SOLVERS.items(), PREDICTIONS):
        given = (exact(process, prediction), process, uniform_time(4), jnp.zeros(3))
        if integrates == "eps" or prediction in ("eps", "score"):
            with pytest.raises(ValueError, match=rf"{name.split()[0].strip(',')} got a grid from t = 1, where .* no signal"):
                solver(*given, prediction=prediction, **options)
        else:
            solver(*given, prediction=prediction, **options)
