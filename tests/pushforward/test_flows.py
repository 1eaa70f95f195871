"""Flows: what their maps invert to, what a direction costs, what they refuse. Laws are tested elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gensamp as gs
from gensamp.nets.couplings import affine_couplings, spline_couplings
from gensamp.nets.image_couplings import image_couplings
from gensamp.nets.masked import masked_layers
from gensamp.nets.monotone import Affine, Spline
from gensamp.pushforward.flows import glow, iaf, maf, neural_spline, realnvp
from gensamp.pushforward.flows.masked_autoregressive import slow_inverse, turned
from gensamp.pushforward.lattice import Lattice, bits_per_dimension, in_bits
from gensamp.testing import Tally, instrument

TREE = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
EVENTS = {"a": 5 + jnp.arange(48.0).reshape(16, 3), "b": jax.random.normal(jax.random.key(0), (16, 2, 2))}
SIZE = 4


def marked(names, fast):
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in names]


def maps(size, dtype):
    sizes = {"num_layers": 3, "width": 8, "depth": 1, "dtype": dtype}
    return {
        "affine couplings": affine_couplings(size, **sizes),
        "spline couplings": spline_couplings(size, num_bins=5, **sizes),
        "masked": turned(slow_inverse(masked_layers(size, Affine(), **sizes), size)),
        "inverse": slow_inverse(masked_layers(size, Affine(), **sizes), size),
        "masked splines": turned(slow_inverse(masked_layers(size, Spline(5), **sizes), size)),
    }


def models(template):
    sizes = {"num_layers": 2, "width": 8, "depth": 1}
    return {
        "realnvp": realnvp(template, **sizes),
        "maf": maf(template, **sizes),
        "iaf": iaf(template, **sizes),
        "spline coupling": neural_spline(template, num_bins=4, **sizes),
        "spline autoregressive": neural_spline(template, form="autoregressive", num_bins=4, **sizes),
    }


IMAGES = {
    "two scales": ((4, 4, 1), 2),
    "one scale of colour": ((2, 2, 3), 1),
    "no squeeze": ((2, 3, 2), 0),
    "a vector": ((1, 1, 3), 0),
    "a number": ((1, 1, 1), 0),
}


@pytest.mark.parametrize("name", marked(IMAGES, ("two scales",)))
def test_glow_inverts_knows_its_jacobian_and_adapts_to_its_batch(name):
    shape, num_squeezes = IMAGES[name]
    size = int(np.prod(shape))

    @jax.jit
    def everything(key):
        layers = image_couplings(shape, num_squeezes=num_squeezes, num_steps=2, width=4, dtype=jnp.float64)
        params = layers.init(key)
        batch = 3 + 2 * jax.random.normal(key, (256, size), jnp.float64)
        noise = jax.vmap(lambda y: layers.inverse(layers.adapt(params, batch), y)[0])(batch)
        params = jax.tree.map(lambda a: a + 0.2 * jax.random.normal(key, a.shape, a.dtype), params)
        y = batch[0]
        z, log_inverse = layers.inverse(params, y)
        jacobian = jax.jacfwd(lambda y: layers.inverse(params, y)[0])(y)
        return y, log_inverse, jnp.linalg.slogdet(jacobian)[1], *layers.forward(params, z), noise

    with jax.enable_x64(True):
        y, log_inverse, want, back, log_forward, noise = jax.tree.map(np.asarray, everything(jax.random.key(0)))
    np.testing.assert_allclose(back, y, atol=1e-10)
    np.testing.assert_allclose(log_inverse, want, atol=1e-9)
    np.testing.assert_allclose(log_forward, -log_inverse, atol=1e-9)
    assert abs(float(want)) > 1e-3
    # A fresh map only turns and scales: each channel of the noise is standard.
    assert abs(noise.mean()) < 0.1 and noise.std() == pytest.approx(1, abs=0.1)


@pytest.mark.slow
def test_glow_learns_images_on_a_lattice():
    events = jnp.asarray(np.random.default_rng(0).integers(0, 5, (32, 4, 4, 1)) / 4, jnp.float32).at[:, 0].set(0.0)
    model = glow(events[0], num_steps=2, width=4, dequantise=0.25)
    params, _ = jax.jit(model.init)(jax.random.key(0), events)
    # A row that never varies has the spread of the noise within its cell.
    assert all(np.exp(np.abs(scale["steps"]["log_scale"])).max() < 20 for scale in params["couplings"])
    gradient, (_, metrics) = jax.jit(jax.grad(model.loss, has_aux=True))(params, (), jax.random.key(1), events)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    # As many bits as five equal grey levels, fewer for the constant row.
    assert 1.0 < metrics["bits_per_dim"] < 3.5


def there_and_back(bijection, key, z):
    params = bijection.init(key)
    # Off the identity that every map starts at.
    params = jax.tree.map(lambda a: a + 0.3 * jax.random.normal(key, a.shape, a.dtype), params)
    y, log_jacobian = bijection.forward(params, z)
    jacobian = jax.jacfwd(lambda z: bijection.forward(params, z)[0])(z)
    return y, log_jacobian, bijection.inverse(params, y), jnp.linalg.slogdet(jacobian)[1]


def parameters(model, events, size=0.3):
    """Parameters off the identity that maps start at, without compiling an initialisation."""
    shapes, _ = jax.eval_shape(model.init, jax.random.key(0), events)
    random = np.random.default_rng(1)
    return jax.tree.map(lambda a: jnp.asarray(size * random.normal(size=a.shape), a.dtype), shapes)


@pytest.mark.parametrize("name", marked(maps(SIZE, jnp.float32), ("spline couplings", "masked")))
def test_a_map_inverts_and_knows_its_jacobian(name):
    with jax.enable_x64(True):
        # The second lies beyond the splines.
        z = jnp.array([0.3, -9.0, 3.99, 1.1], jnp.float64)
        out = jax.jit(there_and_back)(maps(SIZE, jnp.float64)[name], jax.random.key(1), z)
    y, log_jacobian, (back, log_inverse), want = out
    assert y.dtype == jnp.float64 and np.abs(y - z).max() > 0.1 and abs(float(log_jacobian)) > 1e-3
    np.testing.assert_allclose(back, z, atol=1e-12)
    np.testing.assert_allclose(log_jacobian, want, atol=1e-10)
    np.testing.assert_allclose(log_inverse, -log_jacobian, atol=1e-10)


@pytest.mark.parametrize("name", ["spline couplings", "inverse"])
def test_a_map_inverts_in_float32_and_starts_as_the_identity_up_to_order(name):
    z, bijection = jnp.array([-9.0, 3.999, 0.0, 5.0]), maps(SIZE, jnp.float32)[name]

    @jax.jit
    def both(bijection, params, z):
        y, log_jacobian = bijection.forward(params, z)
        return y, log_jacobian, *bijection.inverse(params, y)

    params = bijection.init(jax.random.key(0))
    y, log_jacobian, *_ = both(bijection, params, z)
    np.testing.assert_allclose(np.sort(y), np.sort(z), atol=1e-5)
    assert float(log_jacobian) == pytest.approx(0, abs=1e-5)
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda a: jnp.asarray(0.5 * random.normal(size=a.shape), jnp.float32), params)
    y, log_jacobian, back, log_inverse = both(bijection, params, z)
    assert y.dtype == jnp.float32 and np.abs(np.sort(y) - np.sort(z)).max() > 0.05
    np.testing.assert_allclose(back, z, atol=2e-4)
    np.testing.assert_allclose(log_inverse, -log_jacobian, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "draw", "density"),
    [("maf", 7, 1), ("iaf", 1, 7), pytest.param("spline coupling", 1, 1, marks=pytest.mark.slow)],
)
def test_a_draw_and_a_density_cost_what_they_say(name, draw, density):
    model = models(TREE)[name]
    sampler, tally = model.sampler(parameters(model, EVENTS)), Tally()
    passes = {f.func for f in partials(sampler) if f.func.__module__.startswith("gensamp.nets")}
    counted, found = instrument(sampler, tally, networks=passes)
    assert found

    @jax.jit
    def draw_and_density(sampler, key, times):
        out = gs.draw(key, sampler)
        log_q = jax.lax.fori_loop(0, times, lambda i, _: sampler.log_density(out.position), jnp.zeros(()))
        return out.info.forwards, log_q

    forwards, _ = draw_and_density(counted, jax.random.key(2), 0)
    assert tally.take()["forwards"] == forwards == draw
    _, log_q = draw_and_density(counted, jax.random.key(2), 1)
    assert tally.take()["forwards"] == draw + density and np.isfinite(log_q)
    assert density == model.forwards


def partials(tree):
    for node in jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, jax.tree_util.Partial)):
        if isinstance(node, jax.tree_util.Partial):
            yield node
            yield from partials((node.args, node.keywords))


@pytest.mark.parametrize("name", marked(["maf", "spline coupling"], ("maf",)))
def test_a_model_learns_from_data_and_reports_bits(name):
    model = models(TREE)[name]
    params, _ = jax.jit(model.init)(jax.random.key(1), EVENTS)
    np.testing.assert_allclose(params["shift"][:3], EVENTS["a"].mean(0), rtol=1e-5)
    loss, (_, metrics) = jax.jit(model.loss)(params, (), jax.random.key(2), EVENTS)
    assert metrics["nll"] == loss and np.isfinite(loss)
    assert metrics["bits_per_dim"] == pytest.approx(float(loss) / 7 / np.log(2), rel=1e-5)


def log_normal(x):
    return -0.5 * jnp.sum(x**2)


# The path gradient evaluates the density of a draw too, where that costs one pass.
@pytest.mark.parametrize(("make", "forwards"), [(iaf, 5), (maf, 5 * (3 + 1))], ids=["iaf", "maf"])
def test_reverse_kl_counts_and_weighs(make, forwards):
    target = gs.Target.from_log_density(log_normal, jnp.zeros(3))
    model = make(jnp.zeros(3), target=target, num_layers=2, width=8, num_draws=5, weighted=True)
    params = parameters(model, None)

    @jax.jit
    def learn_and_draw(params):
        gradient, (_, metrics) = jax.grad(model.loss, has_aux=True)(params, jnp.float32(0), jax.random.key(2), None)
        sampler = model.sampler(params)
        out = gs.draw(jax.random.key(3), sampler)
        return gradient, metrics["gradients"], out, log_normal(out.position) - sampler.log_density(out.position)

    gradient, count, out, log_weight = learn_and_draw(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert model.forwards == forwards and count == 5 and out.info.densities == 1
    np.testing.assert_allclose(out.log_weight, log_weight, atol=1e-4)


def test_bits_per_dimension_is_that_of_the_lattice():
    # A uniform density over [0, 4)^3 on a lattice of 16 values spends four bits on each coordinate.
    events = jnp.asarray(np.random.default_rng(0).integers(0, 16, (50, 3)) / 4, jnp.float32)
    bits, error = bits_per_dimension(jax.random.key(0), lambda x: -3 * jnp.log(4.0), events, cell=0.25)
    assert (bits, error) == (pytest.approx(4.0, abs=1e-5), pytest.approx(0.0, abs=1e-6))
    assert float(in_bits(3 * np.log(4.0), 3)) == pytest.approx(2.0, abs=1e-5)
    assert Lattice(0.0, 3.75, 16).cell == 0.25


def test_bad_input_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="num_layers=0"):
        maf(jnp.zeros(2), num_layers=0)
    with pytest.raises(ValueError, match="width=0"):
        iaf(jnp.zeros(2), width=0)
    with pytest.raises(ValueError, match="num_bins=1"):
        neural_spline(jnp.zeros(2), num_bins=1)
    with pytest.raises(ValueError, match="maf got no data"):
        maf(jnp.zeros(2)).init(jax.random.key(0), None)
    with pytest.raises(ValueError, match="iaf got weighted=True without a target"):
        iaf(jnp.zeros(2), weighted=True)
    with pytest.raises(ValueError, match="sides divisible by 4"):
        glow(jnp.zeros((6, 4, 1)), num_squeezes=2)
    with pytest.raises(ValueError, match="levels=1"):
        Lattice(0.0, 1.0, 1)
    for low, high, levels in ((0, 9, 2.5), (0, np.inf, 10), ("0", "9", 10), (0, 9, True), (False, True, 2), (np.nan, 1, 2)):
        with pytest.raises(ValueError, match="expected finite numbers low < high and an integer of at least 2 levels"):
            Lattice(low, high, levels)
    with pytest.raises(ValueError, match="log_density=None"):
        bits_per_dimension(jax.random.key(0), None, jnp.zeros((2, 2)))
    with pytest.raises(ValueError, match="cell=-1"):
        bits_per_dimension(jax.random.key(0), jnp.sum, jnp.zeros((2, 2)), cell=-1)
