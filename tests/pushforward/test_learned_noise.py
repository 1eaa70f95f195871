"""The learned noise schedule: what it may not change, what it is for, and the bound it is trained on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gensamp as gs
from gensamp import noise
from gensamp.nets import mlp
from gensamp.pushforward import conditional, ddim_sampler
from gensamp.pushforward.learned_noise import learned_noise, variational_diffusion

EVENTS = 3 + jax.random.normal(jax.random.key(0), (256, 2)) * jnp.array([[2.0, 0.1]])
BENT = {"ends": jnp.array([-8.0, 4.0]), "raw": jax.random.normal(jax.random.key(1), (35,))}


def test_a_schedule_is_a_variance_preserving_process_that_loses_signal_from_end_to_end():
    straight = {**BENT, "raw": jnp.zeros(35)}
    t = jnp.linspace(0, 1, 41)

    @jax.jit
    def seen(schedule):
        process = learned_noise(schedule)
        x = noise.diffuse(process, 0.3, jnp.ones(2), jnp.ones(2))
        again = noise.eps_to_x0(process, 0.3, x, jnp.ones(2))
        return *(jax.vmap(f)(t) for f in (process.log_snr, process.alpha, process.sigma)), again

    for schedule in (BENT, straight):
        log_snr, alpha, sigma, again = seen(schedule)
        np.testing.assert_allclose(again, 1, rtol=1e-4)
        assert np.all(np.diff(log_snr) < 0) and log_snr[0] == pytest.approx(8, abs=0.01)
        assert log_snr[-1] == pytest.approx(-4, abs=0.01)
        np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-5)
    np.testing.assert_allclose(log_snr, 8 - 12 * t, atol=0.01)


def smooth(params, x, t):
    """Without the fast waves that networks see time by, so that differences are slopes."""
    return params * jnp.tanh(x) * (1 + t)


def some_weight(key):
    return jnp.float32(0.4)


def test_the_gradient_is_the_bounds_for_the_ends_and_the_squares_for_the_rest():
    model = variational_diffusion(gs.Network(gs.bind(some_weight), gs.bind(smooth)), template=EVENTS[0])
    params, state = jax.jit(model.init)(jax.random.key(0), EVENTS)
    params["schedule"] = {**params["schedule"], "raw": 0.3 * BENT["raw"]}

    def pieces(params, key):
        loss, (_, metrics) = model.loss(params, state, key, EVENTS)
        # mean of squares = spread^2 + mean^2, through metrics that nothing was done to.
        return loss, metrics["spread"] ** 2 + metrics["diffusion"] ** 2

    @jax.jit
    def slopes(params, key):
        return jax.grad(lambda p: pieces(p, key)[0])(params), pieces(params, key)

    key = jax.random.key(3)
    found, (loss, squares) = slopes(params, key)
    raw = params["schedule"]["raw"]
    direction = jax.random.normal(jax.random.key(8), raw.shape)
    step = 0.004
    moved = [{**params, "schedule": {**params["schedule"], "raw": raw + s * direction}} for s in (step, -step)]
    ahead, behind = (slopes(p, key)[1] for p in moved)
    want = float(ahead[1] - behind[1]) / (2 * step)
    assert float(jnp.vdot(found["schedule"]["raw"], direction)) == pytest.approx(want, rel=0.03)
    # The loss itself is the bound, not the square.
    step = 0.05
    shift = jnp.array([1.0, -0.5])
    moved = [
        {**params, "schedule": {**params["schedule"], "ends": params["schedule"]["ends"] + s * shift}} for s in (step, -step)
    ]
    ahead, behind = (slopes(p, key)[1] for p in moved)
    want = float(ahead[0] - behind[0]) / (2 * step)
    assert float(jnp.vdot(found["schedule"]["ends"], shift)) == pytest.approx(want, rel=0.02, abs=1e-3)
    assert np.isfinite(loss) and squares > 0


def test_a_draw_follows_the_schedule_and_conditions_are_leaves():
    template = jnp.zeros(2)
    network = mlp(template, width=8, depth=1, num_classes=3)
    model = variational_diffusion(network, template=template, solver=ddim_sampler, num_steps=5, conditional=True)
    batch = (EVENTS, jnp.arange(256) % 3)
    params, _ = jax.jit(model.init)(jax.random.key(0), batch)
    params["network"] = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(3), a.shape), params["network"])
    draw = jax.jit(lambda key, sampler: gs.draw(key, sampler))
    out = [draw(jax.random.key(1), conditional(model, params)(jnp.int32(label))) for label in range(2)]
    bent = draw(jax.random.key(1), conditional(model, {**params, "schedule": BENT})(jnp.int32(0)))
    assert draw._cache_size() == 1 and out[0].info.forwards == 5
    assert not np.allclose(out[0].position, out[1].position) and not np.allclose(out[0].position, bent.position)


def test_ends_that_do_not_rise_are_refused():
    with pytest.raises(ValueError, match=r"ends=\(3, -3\)"):
        variational_diffusion(mlp(EVENTS[0], width=8, depth=1), template=EVENTS[0], ends=(3, -3))


@pytest.mark.slow
def test_fitted_it_draws_the_data_and_its_bound_is_near_the_truth():
    model = variational_diffusion(mlp(EVENTS[0], width=64, depth=2), template=EVENTS[0], num_steps=20)
    events = 3 + jax.random.normal(jax.random.key(0), (4096, 2)) * jnp.array([[2.0, 0.1]])
    fitted = gs.fit(
        jax.random.key(0), model, events, optimizer=optax.adam(optax.cosine_decay_schedule(2e-3, 1500)), num_steps=1500,
        batch_size=256, progress=False,
    )  # fmt: skip
    entropy = 0.5 * (1 + np.log(2 * np.pi)) + 0.5 * np.log(2.0 * 0.1)
    bound = fitted.history["loss"][-200:].mean()
    assert entropy - 0.01 < bound < entropy + 0.1
    # The schedule has made the estimate quieter than it was before.
    draws = gs.sample(jax.random.key(1), model.sampler(fitted.params), 2000, progress=False).position[0]
    np.testing.assert_allclose(draws.mean(0), [3, 3], atol=0.15)
    np.testing.assert_allclose(draws.std(0), [2.0, 0.1], rtol=0.1)
