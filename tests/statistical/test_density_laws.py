"""Do maps with an exact density draw from that density, and does one changed line show? Ten keys each, as lanes of one program.

The law on trial is the model's own, off the identity it starts at: its moments and quantiles come from the density by
quadrature on a grid, so that a draw and a density that disagree are found out. Noise within the cells of a lattice is held
against a closed form, through the loss of a flow whose law is still N(0, 1).
"""

import dataclasses
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gensamp as gs
from gensamp.pushforward.autoregressive import causal_transformer, made, pixelcnn
from gensamp.pushforward.flows import iaf, maf, neural_spline
from gensamp.testing import check_laws, power

KEYS = 10
PROBABILITIES = (0.1, 0.5, 0.9)
DRAWS = 2000
TEMPLATE = jax.ShapeDtypeStruct((2,), jnp.float32)
EVENTS = jax.random.normal(jax.random.key(0), (64, 2))
LATTICE = import_module("gensamp.pushforward.lattice")
FLOW = import_module("gensamp.pushforward.flows.flow")
MASKED = import_module("gensamp.nets.masked")
SIZES = {"num_layers": 2, "width": 8, "depth": 1}
FLOWS = {
    "maf": maf(TEMPLATE, **SIZES),
    "iaf": iaf(TEMPLATE, **SIZES),
    "spline coupling": neural_spline(TEMPLATE, num_bins=4, **SIZES),
    "spline autoregressive": neural_spline(TEMPLATE, form="autoregressive", num_bins=4, **SIZES),
}
WRITERS = {
    "made": made(TEMPLATE, num_components=3, width=8, depth=1),
    "pixelcnn": pixelcnn(TEMPLATE, num_components=3, width=4, depth=1),
    "causal transformer": causal_transformer(TEMPLATE, num_components=3, width=8, depth=1, num_heads=2),
}
LINE = np.linspace(-14, 14, 561)
HALF = (LINE[1] - LINE[0]) / 2


FRAME = {"shift": jnp.array([0.2, -0.4]), "scale": jnp.array([1.5, 0.8])}


def disturbed(model, frame=FRAME, size=0.5):
    """Parameters off the start, without compiling an initialisation."""
    shapes, _ = jax.eval_shape(model.init, jax.random.key(0), EVENTS)
    random = np.random.default_rng(4)
    params = jax.tree.map(lambda a: jnp.asarray(size * random.normal(size=a.shape), a.dtype), shapes)
    return {**params, "frame": frame} if "frame" in params else params


def law_of(model, params):
    """The Target whose truth is the model's density, integrated on the grid; and the integral."""
    grid = jnp.asarray(np.stack(np.meshgrid(LINE, LINE, indexing="ij"), axis=-1).reshape(-1, 2), jnp.float32)
    log_q = jax.jit(jax.vmap(model.log_density, in_axes=(None, 0)))(params, grid)
    mass = np.exp(np.asarray(log_q, float)).reshape(len(LINE), -1) * (2 * HALF) ** 2
    total = mass.sum()
    margins = [mass.sum(1) / total, mass.sum(0) / total]
    mean = np.array([m @ LINE for m in margins])
    variance = np.array([m @ (LINE - c) ** 2 for m, c in zip(margins, mean, strict=True)])
    quantiles = {p: (np.array([np.interp(p, m.cumsum(), LINE + HALF) for m in margins]), 0.0) for p in PROBABILITIES}
    truth = gs.Truth(mean=(mean, 0.0), variance=(variance, 0.0), quantiles=quantiles)
    return gs.Target(template=TEMPLATE, truth=truth, name="its own"), total


@jax.jit
def _run(sampler, keys):
    return jax.vmap(jax.vmap(jax.vmap(lambda key: gs.draw(key, sampler).position)))(keys)


def run(sampler, num_draws=DRAWS):
    """Positions [key, 1, draw, 2], ten keys side by side."""
    return np.asarray(_run(sampler, jax.random.split(jax.random.key(2024), (KEYS, 1, num_draws))))


def assert_passes(positions, target):
    checks = check_laws(positions, target, probabilities=PROBABILITIES)
    assert power(checks)["passed"] >= KEYS - 1, "\n".join(map(str, checks))


def assert_fails(positions, target):
    checks = check_laws(positions, target, probabilities=PROBABILITIES)
    assert power(checks)["failed"] >= KEYS - 1, "\n".join(map(str, checks))


def widened(scale, start, key):
    return scale * start(key)


SLOW_FLOWS, SLOW_WRITERS = ("iaf", "spline autoregressive"), ("pixelcnn",)


def named(models, slow):
    return [pytest.param(name, marks=pytest.mark.slow if name in slow else ()) for name in models]


@pytest.mark.parametrize("name", named(FLOWS, SLOW_FLOWS))
def test_a_flow_draws_from_its_density_and_another_prior_scale_does_not(name):
    model = FLOWS[name]
    params = disturbed(model)
    target, total = law_of(model, params)
    assert total == pytest.approx(1, abs=5e-3)
    sampler = model.sampler(params)
    for scale, holds in ((1.0, assert_passes), (1.25, assert_fails)):
        holds(run(dataclasses.replace(sampler, start=gs.bind(widened, jnp.float32(scale), sampler.start))), target)


def without_the_past(step, key, state, index):
    """The broken line: a site written given nothing, in place of the sites before it."""
    x, memory = state
    (written, memory), info = step(key, (jnp.zeros_like(x), memory), index)
    return (x.at[index].set(written[index]), memory), info


def forgetful(step, key, state, index):
    """The broken line: a step that does not keep the keys and values it has made."""
    (x, _), info = step(key, state, index)
    return (x, state[1]), info


@pytest.mark.parametrize("name", named(WRITERS, SLOW_WRITERS))
def test_an_autoregressive_model_draws_from_its_density_and_without_the_past_does_not(name):
    model = WRITERS[name]
    # A convolution of four channels makes little of one pixel: that it is ignored shows in larger weights and more draws.
    size, num_draws = (0.8, 4 * DRAWS) if name == "pixelcnn" else (0.5, DRAWS)
    params = disturbed(model, size=size)
    target, total = law_of(model, params)
    assert total == pytest.approx(1, abs=5e-3)
    sampler = model.sampler(params)
    assert_passes(run(sampler, num_draws), target)
    broken = forgetful if name == "causal transformer" else without_the_past
    assert_fails(run(dataclasses.replace(sampler, step=gs.bind(broken, sampler.step)), num_draws), target)


def test_a_mask_that_lets_a_coordinate_see_itself_gives_no_density(monkeypatch):
    model = WRITERS["made"]
    whole = MASKED._mask
    # The broken line: an output that sees the hidden units of its own degree.
    monkeypatch.setattr(MASKED, "_mask", lambda inputs, features, strict: whole(inputs, features, False))
    assert abs(law_of(model, disturbed(model))[1] - 1) > 0.02


def log_likelihood_units(cell, events):
    """(loss - closed form) / standard error for ten keys, of a flow N(0, 1) on events of one coordinate and noise in cells."""
    model = maf(jax.ShapeDtypeStruct((1,), jnp.float32), num_layers=1, width=2, depth=1, dequantise=cell)
    params, _ = model.init(jax.random.key(0), events)
    params = {**params, "shift": jnp.zeros(1), "log_scale": jnp.zeros(1)}
    loss = jax.jit(jax.vmap(lambda key: model.loss(params, (), key, events)[1][1]["bits_per_dim"]))
    bits = np.asarray(loss(jax.random.split(jax.random.key(3), KEYS)), float)
    x = np.asarray(events, float)[:, 0]
    want = (0.5 * (np.mean(x**2) + cell**2 / 12) + 0.5 * np.log(2 * np.pi)) / np.log(2) - np.log2(cell)
    # x u + u^2 / 2 for u uniform in a cell: its variance given x, over the events.
    variance = np.mean(x**2) * cell**2 / 12 + cell**4 * (1 / 80 - 1 / 144) / 4
    return (bits - want) / (np.sqrt(variance / len(x)) / np.log(2) + 1e-6)


@pytest.mark.parametrize("broken", ["one-sided", "too wide", "no cell"])
def test_dequantisation_is_centred_in_the_cell_and_counted(broken, monkeypatch):
    events = jnp.asarray(np.random.default_rng(0).integers(-4, 5, (2000, 1)) / 2, jnp.float32)
    assert (np.abs(log_likelihood_units(0.5, events)) < 4).sum() >= KEYS - 1
    if broken == "no cell":
        monkeypatch.setattr(FLOW, "in_bits", lambda nll, size, cell: LATTICE.in_bits(nll, size))
    else:
        low, high = {"one-sided": (0.0, 1.0), "too wide": (-1.0, 1.0)}[broken]
        monkeypatch.setattr(
            FLOW, "dequantised", lambda key, x, cell: x + cell * jax.random.uniform(key, x.shape, x.dtype, low, high)
        )
    assert (np.abs(log_likelihood_units(0.5, events)) > 4).sum() >= KEYS - 1


def log_tilted(precision, x):
    """N((1, -2), [[1, 1.2], [1.2, 4]]) times exp(3)."""
    deviation = x - jnp.array([1.0, -2.0])
    return 3.0 + 0.5 * jnp.linalg.slogdet(precision / (2 * jnp.pi))[1] - 0.5 * deviation @ precision @ deviation


# At the default rate of 1e-3 a frame of shift 0 and scale 1 cannot reach its place in so few steps.
RATE = optax.adam(optax.cosine_decay_schedule(1e-2, 800))


@pytest.mark.slow
@pytest.mark.parametrize("make", [iaf, maf, neural_spline], ids=["iaf", "maf", "spline coupling"])
def test_reverse_kl_reaches_a_gaussian_and_its_normaliser(make):
    precision = jnp.asarray(np.linalg.inv([[1.0, 1.2], [1.2, 4.0]]), jnp.float32)
    target = gs.Target.from_log_density(gs.bind(log_tilted, precision), jnp.zeros(2))
    model = make(jnp.zeros(2), target=target, num_layers=2, width=16, depth=1, num_draws=64)
    fitted = gs.fit(jax.random.key(0), model, None, optimizer=RATE, num_steps=800, progress=False)
    # The least reverse KL is -log Z; from above, up to what the family cannot do.
    assert -3.02 < fitted.history["metrics"]["reverse_kl"][-50:].mean() < -2.95
    assert fitted.history["metrics"]["log_normaliser"][-50:].mean() == pytest.approx(3.0, abs=0.05)


def test_a_law_on_a_lattice_adds_up_and_is_drawn():
    lattice = (-1.0, 1.0, 5)
    models = {
        "made": made(TEMPLATE, num_components=2, width=8, depth=1, lattice=lattice),
        "pixelcnn": pixelcnn(TEMPLATE, num_components=2, width=4, depth=1, lattice=lattice),
    }
    line = np.linspace(-1, 1, 5)
    values = jnp.asarray(np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2), jnp.float32)
    for name, model in models.items():
        params = disturbed(model, {"shift": jnp.zeros(2), "scale": jnp.ones(2)})
        mass = np.exp(jax.jit(jax.vmap(lambda x, p=params, m=model: m.log_density(p, x)))(values)).astype(float)
        assert mass.sum() == pytest.approx(1, abs=1e-5), name
        draws = np.rint(run(model.sampler(params))[:, 0] * 2 + 2).astype(int)
        counts = np.stack([np.bincount(d[:, 0] * 5 + d[:, 1], minlength=25) for d in draws])
        # Pearson's statistic over cells with enough expected draws; the 99.99 % point of chi-square(24) is 58.6.
        keep = DRAWS * mass > 5
        statistic = ((counts - DRAWS * mass)[:, keep] ** 2 / (DRAWS * mass)[keep]).sum(1)
        assert (statistic < 58.6).sum() >= KEYS - 1, name
