"""Autoregressive models: what each output sees, what a draw costs, what the cache saves. Laws are tested elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gensamp as gs
from gensamp.nets.causal import causal_decoder
from gensamp.nets.masked import masked_convolution, masked_mlp
from gensamp.pushforward.autoregressive import causal_transformer, made, pixelcnn
from gensamp.pushforward.autoregressive.mixtures import Mixture
from gensamp.pushforward.lattice import Lattice, bits_per_dimension

TREE = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
IMAGE = jnp.zeros((4, 4, 2))
GREYS = (-1.0, 1.0, 5)


def parameters(make, *arguments, size=0.5, dtype=None):
    """Random parameters of the shapes that an initialisation has, without compiling it."""
    shapes = jax.eval_shape(make, *arguments)
    random = np.random.default_rng(1)
    return jax.tree.map(lambda a: jnp.asarray(size * random.normal(size=a.shape), dtype or a.dtype), shapes)


def dependence(function, size):
    """[outputs, inputs]: whether an output changes with an input."""
    jacobian = jax.jit(jax.jacfwd(function))(0.3 * jnp.ones(size))
    return np.abs(jacobian).sum(-2) > 0


@pytest.mark.parametrize("width", [3, 16])
def test_masked_outputs_see_what_comes_before_and_all_of_it(width):
    network = masked_mlp(5, 2, width=width)
    params = jax.tree.map(jnp.abs, parameters(network.init, jax.random.key(0)))
    sees = dependence(lambda x: network.apply(params, x).T, 5)
    assert not np.triu(sees).any()
    # Few hidden units leave out some of the past, never all of the last input.
    assert np.array_equal(sees, np.tri(5, k=-1, dtype=bool)) if width == 16 else sees[4, 3]


def test_masked_convolution_sees_every_pixel_before():
    network = masked_convolution((4, 5, 2), 3, width=4, depth=3)
    params = jax.tree.map(jnp.abs, parameters(network.init, jax.random.key(0), size=0.3))
    sees = dependence(lambda x: network.apply(params, x.reshape(4, 5, 2)).reshape(20, 3), 40)
    want = np.repeat(np.tri(20, k=-1, dtype=bool), 2, axis=1)
    assert np.array_equal(sees, want)


@pytest.mark.parametrize("shape", [(4, 5, 2), (1, 7, 1), (5, 1, 1)])
def test_a_masked_convolution_row_by_row_is_the_one_at_once(shape):
    network = masked_convolution(shape, 3, width=4, depth=2)
    params = parameters(network.init, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), shape)

    @jax.jit
    def both(params, x):
        def one(held, r):
            # What is still to be written does not matter, nor does the last pixel of a row for what is held of it.
            written = jnp.where(jnp.arange(shape[0])[:, None, None] < r, x, 9.0)
            out, _ = network.row(params, held, x, r)
            _, held = network.row(params, held, written.at[r, :-1].set(x[r, :-1]), r)
            return held, out

        return network.apply(params, x), jax.lax.scan(one, network.empty(), jnp.arange(shape[0]))[1]

    at_once, row_by_row = both(params, x)
    np.testing.assert_allclose(at_once, row_by_row, atol=1e-5)


def test_a_decoder_token_by_token_is_the_decoder_at_once():
    decoder = causal_decoder(6, 2, 3, width=8, depth=2, num_heads=2)
    params = parameters(decoder.init, jax.random.key(0))
    tokens = jax.random.normal(jax.random.key(1), (6, 2))

    @jax.jit
    def both(params, tokens):
        at_once, _ = decoder.decode(params, decoder.empty(), tokens, 0)

        def one(cache, at):
            out, cache = decoder.decode(params, cache, at[1][None], at[0])
            return cache, out[0]

        return at_once, jax.lax.scan(one, decoder.empty(), (jnp.arange(6), tokens))[1]

    at_once, one_by_one = both(params, tokens)
    np.testing.assert_allclose(at_once, one_by_one, atol=1e-5)
    sees = dependence(lambda x: decoder.decode(params, decoder.empty(), x.reshape(6, 2), 0)[0], 12)
    assert np.array_equal(sees, np.repeat(np.tri(6, dtype=bool), 2, axis=1))


def flops(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("lattice", [None, GREYS])
def test_the_cache_gives_the_same_draws_for_a_fraction_of_the_work(lattice):
    template = jnp.zeros((6, 6, 1))
    models = [causal_transformer(template, width=16, depth=1, lattice=lattice, cache=cache) for cache in (True, False)]
    events = jnp.round(jax.random.uniform(jax.random.key(0), (4, 6, 6, 1), minval=-2.0, maxval=2.0)) / 2
    params = parameters(lambda key: models[0].init(key, events)[0], jax.random.key(0))
    params["frame"] = {"shift": jnp.float32(0), "scale": jnp.float32(1)}
    samplers = [model.sampler(params) for model in models]
    keys = jax.random.split(jax.random.key(3), 8)
    draws = [jax.jit(jax.vmap(gs.draw, in_axes=(0, None)))(keys, sampler) for sampler in samplers]
    np.testing.assert_allclose(draws[0].position, draws[1].position, atol=1e-3)
    assert np.std(draws[0].position) > 0.1
    # One call for each pixel either way; a call with the cache reads one pixel of the 36.
    assert all((draw.info.forwards == 36).all() for draw in draws)
    if lattice is None:
        key = keys[0]
        states = [sampler.init(key, sampler.start(key)) for sampler in samplers]
        cost = [flops(sampler.step, key, state, jnp.int32(5)) for sampler, state in zip(samplers, states, strict=True)]
        assert cost[0] < cost[1] / 10


def test_a_pixel_is_drawn_at_the_price_of_a_row():
    template = jnp.zeros((8, 6, 1))
    model = pixelcnn(template, width=8, depth=2)
    params = parameters(lambda key: model.init(key, jnp.ones((4, *template.shape)))[0], jax.random.key(0))
    params["frame"] = {"shift": jnp.float32(0), "scale": jnp.float32(1)}
    sampler, key = model.sampler(params), jax.random.key(1)
    whole = flops(sampler.log_density, template)
    assert flops(sampler.step, key, sampler.init(key, sampler.start(key)), jnp.int32(5)) < whole / 5


def test_pixels_drawn_are_those_that_their_laws_give():
    """The same keys through the whole network, pixel after pixel, and through its rows."""
    shape = (3, 4, 2)
    model = pixelcnn(jnp.zeros(shape), width=8, depth=2, num_components=2, lattice=GREYS)
    params = parameters(lambda key: model.init(key, jnp.ones((4, *shape)))[0], jax.random.key(0))
    params["frame"] = {"shift": jnp.float32(0), "scale": jnp.float32(1)}
    law = Mixture(2, 2, "logistic", 5)
    network = masked_convolution(shape, law.num_raw, width=8, depth=2)
    sampler, key = model.sampler(params), jax.random.key(1)

    @jax.jit
    def whole(params, state, key, index):
        raw = network.apply(params, state.reshape(shape)).reshape(12, -1)[index]
        return state.at[index].set(law.draw(key, raw))

    x, state, step = jnp.zeros((12, 2)), sampler.init(key, sampler.start(key)), jax.jit(sampler.step)
    for index in range(12):
        key = jax.random.fold_in(key, index)
        x = whole(params["network"], x, key, index)
        state, _ = step(key, state, jnp.int32(index))
    np.testing.assert_allclose(state[0], x, atol=1e-6)
    assert np.std(x) > 0.1


def test_a_draw_starts_empty_and_writes_one_site_a_step():
    for make, template, sites in ((made, TREE, 7), (pixelcnn, IMAGE, 16)):
        model = make(template, width=8, depth=1, num_components=2)
        events = jax.tree.map(lambda a: jnp.ones((4, *a.shape)), template)
        sampler = model.sampler(parameters(lambda key, m=model, e=events: m.init(key, e)[0], jax.random.key(0)))
        assert sampler.num_steps == sites
        key = jax.random.key(1)
        x, memory = sampler.init(key, sampler.start(key))
        assert x.shape[0] == sites and not x.any()
        (x, _), info = jax.jit(sampler.step)(key, (x, memory), jnp.int32(3))
        assert info.forwards == 1 and np.array_equal(np.abs(x).sum(1) > 0, np.arange(sites) == 3)


def test_mixture_draws_and_masses_agree_at_the_ends():
    law = Mixture(2, kernel="logistic", levels=4)
    raw = jnp.asarray(np.random.default_rng(0).normal(size=law.num_raw), jnp.float32)
    values = jnp.linspace(-1, 1, 4)
    mass = np.exp(jax.jit(jax.vmap(lambda x: law.log_density(raw, x[None])))(values))
    assert mass.sum() == pytest.approx(1, abs=1e-6)
    draws = jax.jit(jax.vmap(lambda key: law.draw(key, raw)))(jax.random.split(jax.random.key(0), 20_000))
    share = np.bincount(np.rint((np.asarray(draws)[:, 0] + 1) * 1.5).astype(int), minlength=4) / 20_000
    np.testing.assert_allclose(share, mass, atol=5 * np.sqrt(0.25 / 20_000))


@pytest.mark.parametrize("kernel", ["gaussian", "logistic"])
def test_mixture_channels_hang_together_and_the_density_integrates_to_one(kernel):
    law = Mixture(2, channels=2, kernel=kernel)
    raw = jnp.asarray(np.random.default_rng(0).normal(size=law.num_raw), jnp.float32)
    line = np.linspace(-25, 25, 501)
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    log_density = jax.jit(jax.vmap(law.log_density, in_axes=(None, 0)))(raw, jnp.asarray(grid, jnp.float32))
    density = np.exp(np.asarray(log_density, float))
    assert density.sum() * 0.01 == pytest.approx(1, abs=2e-3)
    draws = np.asarray(jax.jit(jax.vmap(lambda key: law.draw(key, raw)))(jax.random.split(jax.random.key(0), 20_000)))
    weight = density / density.sum()
    mean = weight @ grid
    covariance = np.einsum("n,ni,nj->ij", weight, grid - mean, grid - mean)
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=0.08 * np.trace(covariance))
    assert abs(covariance[0, 1]) > 0.05


def test_a_mass_is_finite_where_a_component_gives_almost_none():
    law = Mixture(1, kernel="logistic", levels=256)
    raw = jnp.array([0.0, 0.9, -9.0])
    logs, gradient = jax.jit(jax.vmap(jax.value_and_grad(law.log_density), in_axes=(None, 0)))(raw, jnp.array([[-1.0], [-0.5]]))
    assert np.isfinite(logs).all() and np.isfinite(gradient).all() and (logs < -100).all()


def test_bits_of_an_untrained_model_are_near_those_of_its_lattice():
    model = made(TREE, num_components=8, width=8, depth=1, lattice=GREYS)
    events = jax.tree.map(lambda a: jnp.asarray(np.random.default_rng(0).integers(-2, 3, (16, *a.shape)) / 2), TREE)
    params, _ = jax.jit(model.init)(jax.random.key(0), events)
    loss, (_, metrics) = jax.jit(model.loss)(params, (), jax.random.key(1), events)
    bits, error = bits_per_dimension(jax.random.key(2), model.sampler(params).log_density, events)
    assert bits == pytest.approx(float(metrics["bits_per_dim"]), rel=1e-4) and error < 0.2
    assert metrics["nll"] == loss and bits == pytest.approx(np.log2(5), abs=0.4)


@pytest.mark.parametrize("make", [made, pixelcnn, causal_transformer])
def test_draws_on_a_lattice_of_whole_numbers_are_whole_numbers(make):
    template = jnp.zeros((2, 2, 1))
    model = make(template, width=8, depth=1, lattice=(0, 255, 256))
    params = parameters(lambda key: model.init(key, jnp.zeros((4, *template.shape)))[0], jax.random.key(0))
    params["frame"] = {"shift": jnp.float32(127.5), "scale": jnp.float32(127.5)}
    sampler = model.sampler(params)
    # Every grey level as the state of a finished draw, off by what rounding leaves of it.
    states = jnp.linspace(-1, 1, 256).reshape(64, 4, 1)
    drawn = np.asarray(jax.jit(jax.vmap(lambda x: sampler.position((x, ()))))(states))
    assert np.array_equal(drawn.reshape(-1), np.arange(256))


def test_draws_on_a_lattice_of_fractions_do_not_pass_its_ends():
    model = made(jnp.zeros(2), width=8, depth=1, lattice=(-1, 1, 256))
    sampler = model.sampler(parameters(lambda key: model.init(key, jnp.ones((4, 2)))[0], jax.random.key(0)))
    drawn = jax.jit(sampler.position)((jnp.array([[-1.0], [1.0]]), ()))
    assert drawn.tolist() == [-1, 1]


def test_values_off_the_lattice_are_refused():
    model, values = made(jnp.zeros(3), lattice=(0, 9, 10), width=8), np.arange(384, dtype=np.float32).reshape(128, 3) % 10
    for shift, value in ((100, "100"), (0.5, "0.5"), (-1, "-1")):
        with pytest.raises(
            ValueError, match=f"made got data with the value {value}; expected only the 10 values of its lattice"
        ):
            gs.fit(jax.random.key(0), model, values + np.float32(shift))
    # Rounded values, as of half precision, are those of the lattice.
    Lattice(-1, 1, 256).check("made", np.linspace(-1, 1, 256).astype(np.float16))
    jax.eval_shape(model.init, jax.random.key(0), values + 0.5)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, bool])
def test_events_that_are_no_floats_are_refused_and_labels_are_not(dtype):
    events = np.ones((128, 3), dtype)
    with pytest.raises(ValueError, match=f"have events of dtype {np.dtype(dtype)}; expected floating-point numbers: convert"):
        gs.fit(jax.random.key(0), made(jnp.zeros(3), width=8), events)
    vae = gs.pushforward.vae(jnp.zeros(3), width=8, num_classes=2)
    with pytest.raises(ValueError, match="conditions stay as they are"):
        gs.fit(jax.random.key(0), vae, (events, np.zeros(128, int)))
    jax.eval_shape(vae.init, jax.random.key(0), (events.astype(np.float32), np.zeros(128, int)))


def test_bad_input_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"levels=10\.0; expected finite numbers low < high and an integer"):
        made(TREE, lattice=(0.0, 9.0, 10.0))
    with pytest.raises(ValueError, match="lattice='grey'"):
        made(TREE, lattice="grey")
    with pytest.raises(ValueError, match="leave it out"):
        pixelcnn(IMAGE, lattice=GREYS, dequantise=0.5)
    with pytest.raises(ValueError, match="heads divide"):
        causal_transformer(IMAGE, width=10, num_heads=4)
    with pytest.raises(ValueError, match="num_components=0"):
        made(TREE, num_components=0)
    with pytest.raises(ValueError, match="width=0"):
        pixelcnn(IMAGE, width=0)
    with pytest.raises(ValueError, match="made got no data"):
        made(TREE).init(jax.random.key(0), None)
    with pytest.raises(ValueError, match="levels=1"):
        Mixture(2, kernel="logistic", levels=1)
