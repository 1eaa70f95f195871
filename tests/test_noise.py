"""Noise processes: schedules against their formulas, conversions against each other, and both ends of time."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gensamp import noise as noising
from gensamp.core import scalar

PROCESSES = {
    "vp_linear": noising.vp_linear, "cosine": noising.cosine, "ve": noising.ve, "sub_vp": noising.sub_vp, "edm": noising.edm,
    "rectified_flow": noising.rectified_flow,
}  # fmt: skip
CONVERSIONS = {
    ("eps", "x0"): noising.eps_to_x0,
    ("x0", "eps"): noising.x0_to_eps,
    ("eps", "score"): noising.eps_to_score,
    ("score", "eps"): noising.score_to_eps,
    ("eps", "v"): noising.eps_to_v,
    ("v", "eps"): noising.v_to_eps,
    ("v", "x0"): noising.v_to_x0,
    ("x0", "v"): noising.x0_to_v,
    ("score", "x0"): noising.score_to_x0,
    ("x0", "score"): noising.x0_to_score,
}


def _event(dtype):
    """Clean event, noise, as a tree of two leaves of different rank."""
    rng = np.random.default_rng(3)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    return {"a": draw(4), "b": draw(2, 3)}, {"a": draw(4), "b": draw(2, 3)}


def _known(process, t, x0, eps):
    """All four quantities, each from its definition."""
    alpha, sigma = (np.float64(f(t)) for f in (process.alpha, process.sigma))

    def of(formula):
        return jax.tree.map(lambda a, b: jnp.asarray(formula(np.float64(a), np.float64(b)), a.dtype), x0, eps)

    return {
        "x": of(lambda a, b: alpha * a + sigma * b),
        "x0": x0,
        "eps": eps,
        "v": of(lambda a, b: alpha * b - sigma * a),
        "score": of(lambda a, b: -b / sigma),
    }


def _distance(a, b):
    gaps = jax.tree.map(lambda x, y: float(jnp.max(jnp.abs(x - y)) / (1 + jnp.max(jnp.abs(y)))), a, b)
    return max(jax.tree.leaves(gaps))


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("x64", [False, True])
def test_every_conversion_agrees_with_the_definitions(name, x64):
    with jax.enable_x64(x64):
        dtype, tolerance = (jnp.float64, 1e-9) if x64 else (jnp.float32, 2e-3)
        process = PROCESSES[name]()
        for t in (0.05, 0.3, 0.7, 0.95):
            t = jnp.asarray(t, dtype)
            known = _known(process, t, *_event(dtype))
            for (source, wanted), convert in CONVERSIONS.items():
                got = convert(process, t, known["x"], known[source])
                assert all(a.dtype == dtype for a in jax.tree.leaves(got))
                assert _distance(got, known[wanted]) < tolerance, (source, wanted, float(t))


def test_a_flow_velocity_taken_for_v_is_caught():
    """The usual mistake: alpha' x_0 + sigma' eps is not v, although both are called so."""
    process, t = noising.cosine(), jnp.float32(0.8)
    x0, eps = _event(jnp.float32)
    known = _known(process, t, x0, eps)
    rates = [jax.grad(f)(t) for f in (process.alpha, process.sigma)]
    velocity = jax.tree.map(lambda a, b: rates[0] * a + rates[1] * b, x0, eps)
    assert _distance(noising.v_to_x0(process, t, known["x"], velocity), x0) > 0.1


@pytest.mark.parametrize("process", [make() for make in PROCESSES.values()], ids=PROCESSES)
def test_conversions_are_finite_at_both_ends(process):
    x0, eps = _event(jnp.float32)
    for t, convert in itertools.product((0.0, 1.0), CONVERSIONS.values()):
        got = convert(process, jnp.float32(t), x0, eps)
        assert all(bool(jnp.isfinite(a).all()) for a in jax.tree.leaves(got)), (t, convert.__name__)
        assert jnp.isfinite(process.log_snr(t))


@pytest.mark.parametrize("process", [make() for make in PROCESSES.values()], ids=PROCESSES)
def test_eps_and_score_are_inverse_to_each_other_even_at_the_ends(process):
    x0, eps = _event(jnp.float32)
    for t in (0.0, 1.0):
        back = noising.score_to_eps(process, t, x0, noising.eps_to_score(process, t, x0, eps))
        assert _distance(back, eps) < 1e-5


def test_noise_without_a_level_has_a_finite_derivative():
    """A root's gradient is infinite at zero, and times of a grid end there."""
    for make in PROCESSES.values():
        assert np.isfinite(jax.grad(make().sigma)(0.0))


@pytest.mark.parametrize("name", PROCESSES)
def test_signal_falls_and_noise_rises(name):
    process = PROCESSES[name]()
    t = jnp.linspace(0, 1, 101)
    alpha, sigma, log_snr = (jax.vmap(f)(t) for f in (process.alpha, process.sigma, process.log_snr))
    assert (jnp.diff(alpha) <= 0).all() and (jnp.diff(sigma) > 0).all() and (jnp.diff(log_snr) < 0).all()
    if name in ("vp_linear", "cosine"):
        np.testing.assert_allclose(alpha**2 + sigma**2, np.ones(101), atol=2e-6)


def test_schedules_are_those_of_the_papers():
    with jax.enable_x64(True):
        t = 0.37
        rate = 0.1 * t + 19.9 * t**2 / 2
        vp, ve, cosine = noising.vp_linear(), noising.ve(0.01, 50.0), noising.cosine(-20.0, 20.0)
        np.testing.assert_allclose([vp.alpha(t), vp.sigma(t)], [np.exp(-rate / 2), np.sqrt(1 - np.exp(-rate))], rtol=1e-12)
        np.testing.assert_allclose([ve.alpha(t), ve.sigma(t)], [1, 0.01 * 5000**t], rtol=1e-12)
        sub_vp, edm, straight = noising.sub_vp(), noising.edm(0.02, 8.0), noising.rectified_flow()
        np.testing.assert_allclose([sub_vp.alpha(t), sub_vp.sigma(t)], [np.exp(-rate / 2), 1 - np.exp(-rate)], rtol=1e-12)
        np.testing.assert_allclose([edm.alpha(t), edm.sigma(t), edm.t_min], [1, 8 * t, 0.0025], rtol=1e-12)
        np.testing.assert_allclose([straight.alpha(t), straight.sigma(t)], [1 - t, t], rtol=1e-12)
        b = np.arctan(np.exp(-10))
        a = np.arctan(np.exp(10)) - b
        np.testing.assert_allclose(cosine.log_snr(t), -2 * np.log(np.tan(a * t + b)), rtol=1e-10)
        np.testing.assert_allclose([cosine.log_snr(0.0), cosine.log_snr(1.0)], [20, -20], rtol=1e-10)


def test_alpha_of_a_cosine_keeps_its_sign_and_digits_in_float32():
    assert abs(float(noising.cosine().log_snr(jnp.float32(1))) + 10) < 1e-3


@pytest.mark.parametrize("name", PROCESSES)
def test_schedules_keep_the_dtype_of_t(name):
    with jax.enable_x64(True):
        process = PROCESSES[name]()
        for dtype in (jnp.float32, jnp.float64):
            assert process.alpha(jnp.asarray(0.5, dtype)).dtype == process.sigma(jnp.asarray(0.5, dtype)).dtype == dtype


@jax.jit
def _draws(exact):
    return jax.vmap(exact)(jax.random.split(jax.random.key(0), 2_000))


@jax.jit
def _share_inside(scale, log_density, draws):
    """Mean of x^2 / sigma^2 and of the score identity x * score = -1, which hold only if draws and density have one scale."""
    score = jax.vmap(jax.grad(log_density))(draws)
    return jnp.mean(draws**2) / scale**2, jnp.mean(draws * score)


@pytest.mark.parametrize("name", PROCESSES)
def test_prior_has_the_scale_of_the_last_time(name):
    process = PROCESSES[name]()
    prior = noising.prior(process, jnp.zeros(50))
    draws = _draws(prior.exact)
    scale = float(process.sigma(1.0))
    second, stein = _share_inside(scale, prior.log_density, draws)
    bound = 4 * np.sqrt(2 / draws.size)
    assert abs(second - 1) < bound and abs(stein + 1) < bound
    assert abs(float(jnp.exp(prior.log_density(jnp.zeros(50)) / 50)) - 1 / (scale * np.sqrt(2 * np.pi))) < 1e-3 / scale
    wrong, _ = _share_inside(scale, prior.log_density, draws * 1.05)
    assert abs(wrong - 1) > bound


def test_variance_exploding_prior_is_not_standard_normal():
    draws = _draws(noising.prior(noising.ve(0.01, 50.0), jnp.zeros(50)).exact)
    assert 45 < float(draws.std()) < 55


def test_prior_of_a_tree_draws_each_leaf_independently():
    prior = noising.prior(noising.cosine(), {"a": jnp.zeros(3), "b": jnp.zeros(3)})
    draw = prior.exact(jax.random.key(0))
    assert float(jnp.abs(draw["a"] - draw["b"]).max()) > 1e-3
    expected = jax.scipy.stats.norm.logpdf(jnp.stack([draw["a"], draw["b"]]), scale=prior.log_density.args[0]).sum()
    np.testing.assert_allclose(prior.log_density(draw), expected, rtol=1e-5)


def test_diffuse_is_the_formula():
    x0, eps = _event(jnp.float32)
    process, t = noising.vp_linear(), jnp.float32(0.4)
    assert _distance(noising.diffuse(process, t, x0, eps), _known(process, t, x0, eps)["x"]) < 1e-6


def test_new_schedule_parameters_do_not_retrace():
    count = []

    @jax.jit
    def half(process):
        count.append(1)
        return process.sigma(scalar(0.5, jnp.zeros(1)))

    values = [half(noising.vp_linear(0.1, b)) for b in (5.0, 20, np.float64(10))]
    assert len(count) == 1 and len({float(v) for v in values}) == 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: noising.vp_linear(2.0, 1.0),
        lambda: noising.vp_linear(0.0, 0.0),
        lambda: noising.cosine(5.0, -5.0),
        lambda: noising.ve(0.0, 1.0),
        lambda: noising.sub_vp(2.0, 1.0),
        lambda: noising.edm(1.0, 0.5),
        lambda: noising.ve(float("nan"), 1.0),
    ],
)
def test_bad_parameters_are_refused(make):
    with pytest.raises(ValueError, match="expected"):
        make()
