"""VAEs, flat and hierarchical: likelihoods, options of the bound, prefixes and rates. Laws are tested elsewhere."""

from functools import partial
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import gensamp as gs
from gensamp import nets, noise
from gensamp.nets.mlp import feedforward
from gensamp.pushforward import ddpm, uniform_time, vae
from gensamp.pushforward.diffusion_elbo import diffusion_elbo
from gensamp.pushforward.diffusion_hierarchy import diffusion_hierarchy
from gensamp.pushforward.hierarchical_vae import geometric_shares, hierarchical_vae, prefix, rates
from gensamp.pushforward.ladder import ladder
from gensamp.pushforward.lattice import Lattice
from gensamp.pushforward.likelihoods import discretised_logistic, gaussian
from gensamp.testing import check_sampler

TREE = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
EVENTS = {"a": 5 + jnp.arange(48.0).reshape(16, 3), "b": jax.random.normal(jax.random.key(0), (16, 2, 2))}
HIERARCHICAL = import_module("gensamp.pushforward.hierarchical_vae")
LATTICE = Lattice(-1.0, 1.0, 9)
DRAW = jax.jit(gs.draw)


def stirred(params, size=0.2):
    """Off the start, where last layers are zero; from shapes alone, random numbers about 0, or about 1 for a scale."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    keys = jax.random.split(jax.random.key(5), len(leaves))

    def move(key, path, a):
        start = a if isinstance(a, jax.Array) else float(path[-1] == jax.tree_util.DictKey("scale"))
        return start + size * jax.random.normal(key, a.shape, a.dtype)

    return jax.tree.unflatten(structure, [move(key, *leaf) for key, leaf in zip(keys, leaves, strict=True)])


@pytest.mark.parametrize("raw", [-8.0, 0.0, 4.0])
def test_a_discretised_logistic_law_sums_to_one(raw):
    law = discretised_logistic(jnp.zeros(2), LATTICE)
    frame = {"shift": jnp.array([0.3, -0.1]), "scale": jnp.array([0.5, 2.0])}
    outputs = jnp.array([1.5, -0.2, raw, raw + 1])
    grid = jnp.stack(jnp.meshgrid(*[jnp.linspace(-1, 1, 9)] * 2), axis=-1).reshape(-1, 2)
    log_p = jax.jit(jax.vmap(lambda x: law.log_prob({}, frame, outputs, x)))(grid)
    assert np.isfinite(log_p).all()
    assert float(jnp.exp(log_p).sum()) == pytest.approx(1, abs=1e-5)


def test_a_predicted_variance_is_a_normal_density():
    law = gaussian(TREE, variance="predicted")
    frame = {"shift": {"a": jnp.ones(3), "b": jnp.float32(2)}, "scale": {"a": jnp.array([1.0, 2, 3]), "b": jnp.float32(0.5)}}
    outputs = jnp.concatenate([jnp.linspace(-1, 1, 7), jnp.linspace(-2, 2, 7)])
    x = jax.tree.map(lambda a: a[0], EVENTS)
    scale = np.array([1, 2, 3, 0.5, 0.5, 0.5, 0.5])
    mean = np.array([1, 1, 1, 2, 2, 2, 2]) + scale * np.linspace(-1, 1, 7)
    spread = scale * (0.01 + np.log1p(np.exp(np.linspace(-2, 2, 7)) * (np.e - 1)))
    flat = np.concatenate([np.ravel(x["a"]), np.ravel(x["b"])])
    want = (-0.5 * ((flat - mean) / spread) ** 2 - np.log(spread) - 0.5 * np.log(2 * np.pi)).sum()
    assert float(law.log_prob({}, frame, outputs, x)) == pytest.approx(want, rel=1e-5)
    np.testing.assert_allclose(nets.Event.of(TREE).flatten(law.mean({}, frame, outputs)), mean, rtol=1e-5, atol=1e-6)


def test_a_vae_of_grey_levels_draws_grey_levels():
    events = jnp.round(4 * jnp.tanh(jax.random.normal(jax.random.key(0), (32, 3)))) / 4
    model = vae(events[0], latent_dim=2, width=8, likelihood=discretised_logistic(events[0], LATTICE))
    params, _ = jax.jit(model.init)(jax.random.key(1), events)
    loss, (_, metrics) = jax.jit(model.loss)(params, (), jax.random.key(2), events)
    assert np.isfinite(loss) and metrics["elbo"] < 0
    draws = jax.jit(jax.vmap(lambda key: gs.draw(key, model.sampler(params)).position))(jax.random.split(jax.random.key(3), 64))
    index = (np.asarray(draws) + 1) * 4
    np.testing.assert_allclose(index, np.round(index), atol=1e-5)
    assert index.min() >= 0 and index.max() <= 8


def test_free_bits_change_the_loss_and_not_the_bound():
    losses = {}
    for free in (0.0, 0.5):
        model = vae(TREE, latent_dim=2, width=8, free_bits=free)
        params, _ = jax.jit(model.init)(jax.random.key(1), EVENTS)
        # At its start the posterior is the prior: every coordinate is below its free bits.
        losses[free] = jax.jit(model.loss)(params, (), jax.random.key(2), EVENTS)
    assert losses[0.5][0] - losses[0.0][0] == pytest.approx(1.0, abs=1e-4)
    assert losses[0.5][1][1]["elbo"] == losses[0.0][1][1]["elbo"]


def test_rates_are_divergences_of_normals():
    from numpyro.distributions import Normal, kl_divergence

    mean, scale, prior_mean, prior_scale = jnp.exp(jax.random.normal(jax.random.key(0), (4, 5)))
    want = kl_divergence(Normal(mean, scale), Normal(prior_mean, prior_scale)).sum()
    assert float(HIERARCHICAL._divergence(mean, scale, prior_mean, prior_scale)) == pytest.approx(float(want), rel=1e-5)


def built(num_groups=3, **options):
    """A ladder over TREE with its Model and disturbed parameters."""
    hierarchy = ladder(TREE, num_groups=num_groups, latent_dim=2, width=8)
    model = hierarchical_vae(hierarchy, **options)
    params, _ = jax.jit(model.init)(jax.random.key(1), EVENTS)
    return hierarchy, model, params


def test_a_ladder_starts_at_its_prior_and_adds_up():
    hierarchy, model, params = built(free_bits=0.0)
    _, (_, metrics) = jax.jit(model.loss)(params, (), jax.random.key(2), EVENTS)
    assert [float(metrics[f"rate_{i}"]) for i in (1, 2, 3)] == pytest.approx([0, 0, 0], abs=1e-5)
    params = stirred(params)
    loss, (_, metrics) = jax.jit(model.loss)(params, (), jax.random.key(2), EVENTS)
    told = [float(metrics[f"rate_{i}"]) for i in (1, 2, 3)]
    assert min(told) > 1e-3 and sum(told) == pytest.approx(float(metrics["kl"]), rel=1e-5)
    assert float(loss) == pytest.approx(-float(metrics["elbo"]), rel=1e-6)
    assert float(metrics["elbo"]) == pytest.approx(float(metrics["reconstruction"] - metrics["kl"]), rel=1e-5)
    log_prob, own = jax.jit(partial(rates, hierarchy))(params, jax.random.key(0), jax.tree.map(lambda a: a[0], EVENTS))
    assert own.shape == (3,) and log_prob.shape == ()


@pytest.mark.parametrize("num_groups", [1, 2])
def test_hierarchies_of_few_groups_draw(num_groups):
    _, model, params = built(num_groups)
    out = DRAW(jax.random.key(2), model.sampler(stirred(params)))
    assert jax.tree.map(jnp.shape, out.position) == jax.tree.map(jnp.shape, TREE) and out.info.forwards == num_groups


def test_budgets_weigh_rates_by_their_share():
    _, plain, params = built()
    params = stirred(params)
    _, (_, metrics) = jax.jit(plain.loss)(params, (), jax.random.key(2), EVENTS)
    told = np.array([float(metrics[f"rate_{i}"]) for i in (1, 2, 3)])
    # The first group is asked to carry a tenth of what it carries, the second just what it does, the third ten times that.
    wanted = told / told.sum() * np.array([0.1, 1.0, 10.0])
    wanted = wanted / wanted.sum()
    r = told / told.sum() / wanted
    weights = np.where(r < 1, np.maximum(r, 0.1), np.clip(r / 2, 1, 2))
    assert weights.min() < 0.5 and weights.max() > 1.5
    model = hierarchical_vae(ladder(TREE, num_groups=3, latent_dim=2, width=8), shares=tuple(wanted))
    loss, (_, again) = jax.jit(model.loss)(params, (), jax.random.key(2), EVENTS)
    assert float(loss) == pytest.approx((weights * told).sum() - float(metrics["reconstruction"]), rel=1e-4)
    assert again["elbo"] == pytest.approx(float(metrics["elbo"]), rel=1e-6)
    shares = geometric_shares(4)
    assert sum(shares) == pytest.approx(1) and shares[0] < shares[-1]
    assert shares[-1] / shares[0] == pytest.approx(1010 / 11)


def test_prefixes_go_from_the_prior_to_the_posterior():
    hierarchy, model, params = built()
    params = stirred(params, 0.5)
    xs = jax.tree.map(lambda a: a[:2], EVENTS)
    key = jax.random.key(3)

    @jax.jit
    def decode(k, x):
        return gs.draw(key, prefix(hierarchy, params, x, k))

    one, other = ([decode(k, jax.tree.map(lambda a, i=i: a[i], xs)) for k in range(4)] for i in (0, 1))
    # Nothing is known of the event at k = 0: the draw is the prior's, whoever the event is.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), one[0].position, other[0].position)
    plain = DRAW(key, model.sampler(params)).position
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), one[0].position, plain)
    for k in (1, 2, 3):
        assert np.abs(one[k].position["b"] - other[k].position["b"]).max() > 1e-3
        assert np.abs(one[k].position["b"] - one[k - 1].position["b"]).max() > 1e-4
    assert decode._cache_size() == 1
    assert one[2].info.forwards == 2 * 2 + 1


def test_prefixes_of_many_events_run_in_one_program():
    hierarchy, _, params = built()
    draws = gs.sample(jax.random.key(0), Partial(_decoder, hierarchy, params), 16, each=EVENTS, progress=False)
    assert jax.tree.map(jnp.shape, draws.position) == {"a": (1, 16, 3), "b": (1, 16, 2, 2)}


def _decoder(hierarchy, params, x):
    return prefix(hierarchy, params, x, 2)


@pytest.mark.parametrize("k", [4, -2, 1.7])
def test_a_prefix_is_of_as_many_groups_as_there_are(k):
    hierarchy = ladder(jnp.zeros(2), num_groups=3)
    with pytest.raises(ValueError, match=f"prefix got num_posterior={k}; expected an integer from 0 to its 3 groups"):
        prefix(hierarchy, {}, jnp.zeros(2), k)


def test_a_prefix_takes_one_event():
    with pytest.raises(ValueError, match=r"prefix got x of shapes \[\(8, 2\)\]; expected one event, \[\(2,\)\]"):
        prefix(ladder(jnp.zeros(2)), {}, jnp.zeros((8, 2)), 1)
    with pytest.raises(TypeError, match="prefix got ArrayImpl; expected a Hierarchy"):
        prefix(jnp.zeros(2), {}, jnp.zeros(2), 1)


def test_a_diffusion_hierarchy_takes_the_parameters_of_a_ddpm():
    process, grid = noise.cosine(), uniform_time(4)
    network = nets.mlp(TREE, width=8, depth=1)
    params, _ = jax.jit(ddpm(network, process, template=TREE).init)(jax.random.key(0), EVENTS)
    params = stirred(params, 0.05)
    hierarchy = diffusion_hierarchy(network, process, grid, template=TREE)
    x = jax.tree.map(lambda a: a[0], EVENTS)
    log_prob, told = jax.jit(partial(rates, hierarchy))(params, jax.random.key(1), x)
    terms = jax.jit(partial(diffusion_elbo, network, process, grid))(params, jax.random.key(2), x)
    # The top group's KL is in closed form in both.
    assert told.shape == (5,) and float(told[0]) == pytest.approx(float(terms["prior"]), rel=1e-3)
    assert np.isfinite(log_prob) and terms["elbo"] == terms["reconstruction"] - terms["prior"] - terms["diffusion"]
    out = DRAW(jax.random.key(3), hierarchical_vae(hierarchy).sampler(params))
    assert out.info.forwards == 4 and jax.tree.map(jnp.shape, out.position) == jax.tree.map(jnp.shape, TREE)
    near = DRAW(jax.random.key(3), prefix(hierarchy, params, x, 5)).position
    # All groups from the posterior: the event with the little noise of the last one.
    jax.tree.map(lambda a, b, s: np.testing.assert_allclose(a, b, atol=0.1 * np.max(s)), near, x, params["scale"])


@pytest.mark.parametrize(
    "kind", ["prefix", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("logistic", "diffusion"))]
)
def test_samplers_that_no_entry_makes_keep_the_contracts(kind):
    template, events = jnp.zeros(3), EVENTS["a"] / 16 - 1

    def made():
        if kind == "logistic":
            model = vae(template, latent_dim=2, width=8, likelihood=discretised_logistic(template, LATTICE))
            return model.sampler(stirred(jax.eval_shape(model.init, jax.random.key(0), events)[0]))
        hierarchy = ladder(template, num_groups=2, latent_dim=2, width=8)
        if kind == "diffusion":
            network = nets.mlp(template, width=8, depth=1)
            hierarchy = diffusion_hierarchy(network, noise.cosine(), uniform_time(3), template=template)
        params = stirred(jax.eval_shape(hierarchy.init, jax.random.key(0), events)[0])
        return prefix(hierarchy, params, events[0], 1)

    networks = {"logistic": feedforward, "prefix": feedforward, "diffusion": nets.mlp}[kind]
    applied = networks(3, 3) if networks is feedforward else networks(template)
    skip = ("shard_map",)
    held = check_sampler(made(), template=template, networks=(applied.apply.func,), remake=made, skip=skip)
    assert held["counts"] == held["retrace"] == held["vmap"] == "held"


def test_float64_events_stay_float64():
    with jax.enable_x64(True):
        template = jax.ShapeDtypeStruct((3,), jnp.float64)
        events = jnp.round(jax.random.normal(jax.random.key(0), (8, 3), jnp.float64))
        diffusion = diffusion_hierarchy(nets.mlp(template, width=8), noise.cosine(), uniform_time(3), template=template)
        models = [
            vae(template, latent_dim=2, width=4, variance="predicted", num_importance=3),
            vae(template, latent_dim=2, width=4, likelihood=discretised_logistic(template, Lattice(-4.0, 4.0, 9))),
            hierarchical_vae(ladder(template, num_groups=2, latent_dim=2, width=8), shares=(1.0, 2.0)),
            hierarchical_vae(diffusion),
        ]
        for model in models:
            params, state = jax.eval_shape(model.init, jax.random.key(0), events)
            assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype("float64")}
            assert jax.eval_shape(model.loss, params, state, jax.random.key(1), events)[0].dtype == jnp.float64
            drawn = jax.eval_shape(
                lambda key, params, model=model: gs.draw(key, model.sampler(params)), jax.random.key(1), params
            )
            assert drawn.position.dtype == jnp.float64


def test_likelihoods_are_leaves_of_their_model():
    hierarchy = ladder(TREE, num_groups=2, latent_dim=2, width=8, likelihood=discretised_logistic(TREE, LATTICE))
    other = ladder(TREE, num_groups=2, latent_dim=2, width=8, likelihood=discretised_logistic(TREE, Lattice(-2.0, 2.0, 9)))
    assert jax.tree.structure(hierarchy) == jax.tree.structure(other)


def test_bad_input_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"free_bits=0\.5 with num_importance=2"):
        vae(jnp.zeros(2), num_importance=2, free_bits=0.5)
    with pytest.raises(ValueError, match="num_importance=0"):
        vae(jnp.zeros(2), num_importance=0)
    with pytest.raises(ValueError, match="vae got latent_dim=True; expected an integer of at least 1"):
        vae(jnp.zeros(2), latent_dim=True)
    for num_groups in (0, True):
        with pytest.raises(ValueError, match=f"ladder got num_groups={num_groups}; expected an integer of at least 1"):
            ladder(jnp.zeros(2), num_groups=num_groups)
    with pytest.raises(TypeError, match="hierarchical_vae got ArrayImpl; expected a Hierarchy, such as ladder"):
        hierarchical_vae(jnp.zeros(2))
    with pytest.raises(ValueError, match="expected 3 positive numbers"):
        hierarchical_vae(ladder(jnp.zeros(2), num_groups=3), shares=(1.0, 2.0))
    with pytest.raises(ValueError, match="free_bits=-1"):
        hierarchical_vae(ladder(jnp.zeros(2)), free_bits=-1)
    with pytest.raises(ValueError, match="a hierarchical VAE got no data"):
        ladder(jnp.zeros(2)).init(jax.random.key(0), None)
    network = nets.mlp(jnp.zeros(2), width=8)
    with pytest.raises(ValueError, match="both positive at the last: end at noise"):
        diffusion_hierarchy(network, noise.vp_linear(), uniform_time(4), template=jnp.zeros(2))
    with pytest.raises(ValueError, match="at least 2 times"):
        diffusion_hierarchy(network, noise.cosine(), jnp.zeros(1), template=jnp.zeros(2))


def test_a_ladder_asks_for_free_bits_and_a_fixed_encoder_or_shares_for_none():
    _, model, params = built()
    loss, (_, metrics) = jax.jit(model.loss)(params, (), jax.random.key(2), EVENTS)
    # At its start every group is at its prior, and costs what is free.
    assert float(loss) == pytest.approx(3 * 0.5 - float(metrics["elbo"]), rel=1e-5)
    diffusion = diffusion_hierarchy(nets.mlp(TREE, width=8), noise.cosine(), uniform_time(3), template=TREE)
    assert diffusion.free_bits == 0
    by_shares = hierarchical_vae(ladder(TREE, num_groups=3, latent_dim=2, width=8), shares=(1.0, 1.0, 1.0))
    cost, (_, metrics) = jax.jit(by_shares.loss)(params, (), jax.random.key(2), EVENTS)
    # No rate at all is no division by zero.
    assert float(cost) == pytest.approx(-float(metrics["elbo"]), rel=1e-5)


@pytest.mark.slow
def test_all_groups_of_a_ladder_are_in_use_and_without_free_bits_they_are_not():
    digits = gs.targets.digits()
    hierarchy = ladder(digits.template, num_groups=4, latent_dim=8, width=64)
    keys = jax.random.split(jax.random.key(0), 3)

    def smallest_rates(**options):
        model = hierarchical_vae(hierarchy, dequantise=0.125, **options)
        fitted = gs.fit(keys, model, digits.data, num_steps=1200, batch_size=64, progress=False)
        told = [fitted.history["metrics"][f"rate_{i}"][:, -100:].mean(1) for i in (1, 2, 3, 4)]
        return np.min(told, axis=0)

    assert (smallest_rates() > 0.4).all()
    assert (smallest_rates(free_bits=0.0) < 0.2).all()
