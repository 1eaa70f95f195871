"""Do few-step models draw the law of their teacher, and is the loss that claims to be a bound one? Each with its twin.

On a correlated Gaussian the consistency function, the reflowed velocity and the progressive student are known matrices, so the
samplers are judged on exact ones; what training finds is judged on a network of such matrices, in the slow tier.
"""

from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from linear_flows import (
    EIGENVALUES,
    EVENTS,
    PROCESS,
    VECTORS,
    ddim_map,
    exact_consistency,
    exact_v,
    framed,
    independent_velocity,
    linear_network,
    matrices,
    straight_velocity,
)
from statistical.test_pushforward_laws import KEYS, assert_fails, assert_passes, gaussian, run

import gensamp as gs
from gensamp import noise, paths
from gensamp.pushforward import uniform_log_snr
from gensamp.pushforward.diffusion.consistency import consistency
from gensamp.pushforward.diffusion.losses import denoising_loss
from gensamp.pushforward.diffusion.progressive import progressive
from gensamp.pushforward.diffusion_elbo import diffusion_elbo
from gensamp.pushforward.learned_noise import learned_noise, variational_diffusion
from gensamp.pushforward.reflow import reflow
from gensamp.targets.mixture import mixture

CONSISTENCY = import_module("gensamp.pushforward.diffusion.consistency")
PROGRESSIVE = import_module("gensamp.pushforward.diffusion.progressive")
WEIGHTINGS = import_module("gensamp.pushforward.diffusion.weightings")
TEMPLATE = jax.ShapeDtypeStruct((2,), jnp.float32)
# In the directions of the eigenvectors, since the checks are of one coordinate at a time and its own two hide the correlation.
TARGET = gaussian(np.zeros(2), np.diag(EIGENVALUES))


def test_consistency_sampling_has_the_law_and_without_fresh_noise_has_not(monkeypatch):
    network, params = linear_network(129), framed(matrices(exact_consistency, 129))
    sampler = consistency(network, PROCESS, template=TEMPLATE, num_steps=3).sampler(params)
    assert_passes(run(sampler, 1000)[0] @ VECTORS, TARGET)
    # The broken line: a guess taken down to a lower level without the noise of that level.
    monkeypatch.setattr(CONSISTENCY, "root", jnp.zeros_like)
    assert_fails(run(sampler, 1000)[0] @ VECTORS, TARGET)


def test_one_step_of_the_reflowed_velocity_has_the_law_and_of_the_first_flow_has_not():
    model = reflow(linear_network(65), template=TEMPLATE)
    assert_passes(run(model.sampler(framed(matrices(straight_velocity, 65))), 1000)[0] @ VECTORS, TARGET)
    # The broken line: the velocity of independent pairs and not of coupled ones.
    assert_fails(run(model.sampler(framed(matrices(independent_velocity, 65))), 1000)[0] @ VECTORS, TARGET)


THREE = mixture([0.5, 0.3, 0.2], [[-1.0, 0.0], [1.0, 1.0], [0.5, -1.0]], [[0.3, 0.2], [0.3, 0.3], [0.2, 0.3]])
# Between two times at which some of everything is left.
BETWEEN = noise.cosine(-6.0, 3.0)
PLAIN = {"network": (), "shift": jnp.zeros(2), "scale": jnp.ones(2)}


def no_weights(key):
    return ()


def shrunk_v(score, process, factor, params, x, t):
    """v of a denoiser that is not the best one: its guess of x_0 is a factor too small."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    clean = factor * (x + sigma**2 * score(1 - t, x)) / alpha
    return (alpha * x - clean) / sigma


NETWORK = gs.Network(gs.bind(no_weights), gs.bind(shrunk_v, paths.noised(THREE, BETWEEN).score, BETWEEN, jnp.float32(0.9)))


LEVELS = 1599
"""Of the discrete bound, which lies above the continuous one by about 6 / LEVELS nats per coordinate."""


def event_of(key):
    """An event, and the key of all that is done to it."""
    key_event, key_noise = jax.random.split(key)
    return THREE.exact(key_event), key_noise


@jax.jit
def bounds(keys):
    """The diffusion's part of the discrete bound, nats per coordinate, [key, event]."""
    grid = uniform_log_snr(BETWEEN, LEVELS)

    def one(key):
        event, key_noise = event_of(key)
        return diffusion_elbo(NETWORK, BETWEEN, grid, PLAIN, key_noise, event)["diffusion"] / 2

    return jax.lax.map(jax.vmap(one), keys)


def losses(keys, weightings, copies=400):
    """The weighted losses of the same events, {weighting: [key, event]}: of batches of one event each, many times over."""

    def one(key):
        event, key_noise = event_of(key)
        batch = jnp.broadcast_to(event, (copies, *event.shape))
        made = {name: denoising_loss(NETWORK, BETWEEN, TEMPLATE, False, "v", name) for name in weightings}
        return {name: loss(PLAIN, (), jax.random.fold_in(key_noise, 1), batch)[0] for name, loss in made.items()}

    return jax.jit(lambda keys: jax.lax.map(jax.vmap(one), keys))(keys)


def standard_errors(keys, bound, *weightings):
    """How far each weighted loss is from the bound, in standard errors, and these in nats per coordinate, for ten keys."""
    out = {}
    for name, found in losses(keys, weightings).items():
        # One event has one bound, so that which events were drawn adds nothing to the error.
        gap = np.asarray(found - bound, float)
        error = gap.std(1) / np.sqrt(gap.shape[1])
        out[name] = gap.mean(1) / error, error
    return out


def test_the_elbo_weighted_loss_is_the_bound_and_no_other_is(monkeypatch):
    keys = jax.random.split(jax.random.key(3), (KEYS, 256))
    bound = bounds(keys)
    found = standard_errors(keys, bound, "elbo", "uniform", "sigmoid", "min_snr", "edm")
    assert (found["elbo"][1] <= 0.01).all(), found
    for name, (z, _) in found.items():
        far = (np.abs(z) > 4).sum()
        assert far <= 1 if name == "elbo" else far >= KEYS - 1, (name, z)
    # The broken line: the slope of log SNR, which weighs eps, on the error of x_0.
    whole = WEIGHTINGS._elbo_weight
    monkeypatch.setattr(WEIGHTINGS, "_elbo_weight", lambda process, t: whole(process, t) / jnp.exp(process.log_snr(t)))
    z, _ = standard_errors(keys, bound, "elbo")["elbo"]
    assert (np.abs(z) > 4).sum() >= KEYS - 1, z


def exact_at_place(score, low, high, params, x, place):
    """v of the best denoiser of THREE at gamma = low + (high - low) place, from the score at a line of log SNR."""
    gamma = low + (high - low) * place
    alpha, sigma = jnp.sqrt(jax.nn.sigmoid(-gamma)), jnp.sqrt(jax.nn.sigmoid(gamma))
    clean = (x + sigma**2 * score(1 - place, x)) / alpha
    return (alpha * x - clean) / sigma


def scheduled():
    """A variational diffusion with the exact denoiser of THREE and nothing but its schedule to learn."""
    straight = learned_noise({"ends": jnp.array([-4.0, 4.0]), "raw": jnp.zeros(35)})
    score = paths.noised(THREE, straight).score
    network = gs.Network(gs.bind(no_weights), gs.bind(exact_at_place, score, jnp.float32(-4.0), jnp.float32(4.0)))
    model = variational_diffusion(network, template=TEMPLATE, ends=(-4.0, 4.0))
    params = {**PLAIN, "schedule": {"ends": jnp.array([-4.0, 4.0]), "raw": jnp.zeros(35)}}
    return model, params


def learn(steps=300):
    """The spline's parameters that the loss's own gradient leads to, from a straight line, and the metrics with both."""
    model, params = scheduled()
    optimizer = optax.adam(0.02)

    def events(key):
        return jax.vmap(THREE.exact)(jax.random.split(key, 256))

    def loss(raw, key):
        key_event, key_loss = jax.random.split(key)
        given = {**params, "schedule": {**params["schedule"], "raw": raw}}
        return model.loss(given, (), key_loss, events(key_event))

    @jax.jit
    def whole(key):
        def step(carry, key):
            raw, state = carry
            gradient = jax.grad(lambda raw: loss(raw, key)[0])(raw)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(raw, updates), state), None

        start = params["schedule"]["raw"]
        (raw, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), jax.random.split(key, steps))

        def judged(raw):
            metrics = jax.lax.map(lambda key: loss(raw, key)[1][1], jax.random.split(jax.random.key(77), 200))
            return metrics["diffusion"], metrics["spread"] ** 2

        return judged(start), judged(raw)

    return jax.tree.map(lambda a: np.asarray(a, float), whole(jax.random.key(5)))


@pytest.mark.slow
def test_the_learned_schedule_keeps_the_bound_and_lowers_its_variance(monkeypatch):
    (before, spread_before), (after, spread_after) = learn()
    z = (after.mean() - before.mean()) / np.hypot(before.std(), after.std()) * np.sqrt(before.size)
    assert abs(z) < 4, z
    assert spread_after.mean() < 0.8 * spread_before.mean(), (spread_before.mean(), spread_after.mean())
    # The broken line: a straight schedule's ends pulled in, which is another bound.
    model, params = scheduled()
    keys = jax.random.split(jax.random.key(78), 200)

    @jax.jit
    def parts(params):
        def one(key):
            key_event, key_loss = jax.random.split(key)
            events = jax.vmap(THREE.exact)(jax.random.split(key_event, 256))
            return model.loss(params, (), key_loss, events)[1][1]["diffusion"]

        return jax.lax.map(one, keys)

    other = np.asarray(parts({**params, "schedule": {**params["schedule"], "ends": jnp.array([-3.0, 4.0])}}), float)
    assert abs(other.mean() - before.mean()) > 4 * np.hypot(before.std(), other.std()) / np.sqrt(before.size)


SEEDS = jax.random.split(jax.random.key(11), KEYS)
OPTIMIZERS = {steps: optax.adam(optax.cosine_decay_schedule(0.03, steps)) for steps in (1500, 2500)}


def fitted_draws(model, num_draws=1000, steps=1500):
    """Draws [key, 1, draw, 2] of ten fits, each with its own key, in the directions of the eigenvectors."""
    # Two models that differ only in a line that was changed are one model to the cache of compiled programs.
    jax.clear_caches()
    fitted = gs.fit(SEEDS, model, EVENTS, optimizer=OPTIMIZERS[steps], num_steps=steps, batch_size=256, progress=False)

    def draws(params, key):
        sampler = model.sampler(params)
        return jax.vmap(lambda key: gs.draw(key, sampler).position)(jax.random.split(key, num_draws))[None]

    return np.asarray(jax.jit(jax.vmap(draws))(fitted.params, jax.random.split(jax.random.key(12), KEYS))) @ VECTORS


def linear_consistency(steps, **options):
    return consistency(
        linear_network(9), PROCESS, template=TEMPLATE, levels=(10, 160), train_steps=steps, distance="squared", **options
    )


@pytest.mark.slow
def test_consistency_training_finds_the_law_and_with_two_noises_the_mean(monkeypatch):
    model = linear_consistency(2500)
    assert_passes(fitted_draws(model, 500, 2500), TARGET)
    # The broken line: the nearer event gets another noise, and the pair no longer lies on one path.
    whole, calls = CONSISTENCY.diffuse, []

    def diffuse(process, t, x0, eps):
        calls.append(0)
        return whole(process, t, x0, eps if len(calls) % 2 else jax.tree.map(jnp.negative, eps))

    monkeypatch.setattr(CONSISTENCY, "diffuse", diffuse)
    assert_fails(fitted_draws(model, 500, 2500), TARGET)


@pytest.mark.slow
def test_consistency_distillation_finds_the_law_and_from_the_nearer_level_has_not(monkeypatch):
    model = linear_consistency(1500, teacher=framed(matrices(exact_v, 9)))
    assert_passes(fitted_draws(model), TARGET)
    # The broken line: the teacher's step leads nowhere, and the target is the function at the same noisy event.
    monkeypatch.setattr(CONSISTENCY, "_heun", lambda clean, process, low, high, t_low, t_high, noisy: noisy)
    assert_fails(fitted_draws(model), TARGET)


@pytest.mark.slow
def test_a_progressive_student_has_the_law_of_its_teachers_steps_and_of_half_of_them_has_not(monkeypatch):
    law = gaussian(np.zeros(2), VECTORS.T @ ddim_map(8) @ ddim_map(8).T @ VECTORS)
    model = progressive(
        linear_network(9), PROCESS, template=TEMPLATE, teacher_steps=8, stage_steps=500, teacher=framed(matrices(exact_v, 9))
    )
    assert_passes(fitted_draws(model), law)
    # The broken line: the second of the teacher's half steps goes nowhere.
    whole, calls = PROGRESSIVE._ddim, []

    def ddim(guess, process, t, s, x):
        calls.append(0)
        return whole(guess, process, t, s, x) if len(calls) % 2 else x

    monkeypatch.setattr(PROGRESSIVE, "_ddim", ddim)
    assert_fails(fitted_draws(model), law)
