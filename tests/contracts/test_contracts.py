"""Every entry of the registry keeps the contracts of its type; nothing here names a sampler that works."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gensamp import registry
from gensamp.core import Model, Target, Truth, bind
from gensamp.testing import CONTRACTS, Tally, check_sampler, instrument

NAMES = [entry.name for entry in registry.entries()]
SLOW = ("grad", "shard_map")
# Twice as long to compile as any other; what they share with others is held there.
LONG = ("adaptive_sde", "variational_diffusion")

# What a dependency cannot do, by entry.
EXEMPT = {"nuts": ("x64",)}  # blackjax's trajectory mixes float32 with Python floats, which are float64 under 64-bit mode


def _log_density(scale, x):
    return -0.5 * jnp.sum((x / scale) ** 2)


def _minibatch_log_density(scale, centre, x, batch):
    """The density again, with an error that is zero on average over the data."""
    return -0.5 * jnp.sum((x / scale) ** 2) + jnp.sum(x * (batch.mean(0) - centre))


def _exact(scale, key):
    return scale * jax.random.normal(key, scale.shape, scale.dtype)


def _quantile(scale, u):
    return scale * jax.scipy.special.ndtri(u).reshape(scale.shape)


def everything(shape, dtype) -> Target:
    """A Gaussian with all that any sampler may ask for: a density, also of batches, exact draws, data, a quantile function."""
    scale = jnp.linspace(1.0, 2.0, int(jnp.prod(jnp.asarray(shape)))).reshape(shape).astype(dtype)
    data = jnp.asarray(np.asarray(scale) * np.random.default_rng(7).normal(size=(64, *shape)), dtype)
    return Target.from_log_density(
        bind(_log_density, scale), jax.ShapeDtypeStruct(shape, dtype), name="everything", exact=bind(_exact, scale),
        data=data, truth=Truth(quantile=bind(_quantile, scale)),
        minibatch_log_density=bind(_minibatch_log_density, scale, data.mean(0)),
    )  # fmt: skip


def networks_of(tree):
    """The functions of gensamp's networks among the Partials of a sampler."""
    found = set()
    for node in jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, jax.tree_util.Partial)):
        if isinstance(node, jax.tree_util.Partial):
            if node.func.__module__.startswith("gensamp.nets"):
                found.add(node.func)
            else:
                found |= networks_of((node.args, node.keywords))
    return found


def _stirred(leaf):
    noise = np.random.default_rng(leaf.size).normal(0.0, 0.05, leaf.shape)
    return jnp.asarray(np.asarray(leaf) + noise.astype(leaf.dtype))


def hold(name, shape, dtype, contracts):
    entry = registry.find(name)
    target = everything(shape, dtype)
    assert entry.applicable(target), f"give `everything` what {name} needs: {entry.reason(target)}"
    made = entry.make(target, "tiny")
    params = None
    if isinstance(made, Model):
        batch = target.data if "events" in entry.needs else None
        params, _ = jax.jit(made.init)(jax.random.key(1), batch)
        # Last layers start at zero, which would hide what comes before them.
        params = jax.tree.map(_stirred, params)

    def remake():
        again = registry.find(name).make(everything(shape, dtype), "tiny")
        return again.sampler(params) if isinstance(again, Model) else again

    sampler = remake()
    return check_sampler(
        sampler, template=target.template, target=target, networks=tuple(networks_of(sampler)), remake=remake,
        contracts=contracts, skip=EXEMPT.get(name, ()),
    )  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in NAMES])
def test_keeps_contracts(name):
    held = hold(name, (3,), jnp.float32, [c for c in CONTRACTS if c not in SLOW])
    assert held["vmap"] == held["retrace"] == held["state"] == "held"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_keeps_slow_contracts(name):
    held = hold(name, (3,), jnp.float32, SLOW)
    assert held["shard_map"] == "held"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_keeps_contracts_in_float64(name):
    with jax.enable_x64(True):
        assert hold(name, (3,), jnp.float64, [c for c in CONTRACTS if c not in SLOW])["state"] == "held"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_keeps_contracts_on_images(name):
    assert hold(name, (4, 4, 1), jnp.float32, CONTRACTS)["state"] == "held"


LEARNED = [entry.name for entry in registry.entries() if entry.makes == "model" and "events" in entry.needs]
LATENT = ("vae", "iwae", "hierarchical_vae", "gan", "wgan")


@pytest.mark.parametrize("name", [name if name in LATENT else pytest.param(name, marks=pytest.mark.slow) for name in LEARNED])
def test_a_loss_calls_its_networks_as_often_as_it_says(name):
    target = everything((3,), jnp.float32)
    model, batch = registry.find(name).make(target, "tiny"), target.data[:8]
    params, state = jax.jit(model.init)(jax.random.key(1), batch)
    tally = Tally()
    counted, _ = instrument(
        model.loss, tally, networks=[f for f in networks_of(model.loss) if not f.__name__.endswith(("_init", "_empty"))]
    )
    _, (_, metrics) = jax.jit(counted)(params, state, jax.random.key(2), batch)
    assert tally.take()["forwards"] == 8 * model.forwards + int(metrics.get("forwards", 0))


@pytest.mark.parametrize("name", NAMES)
def test_a_target_without_what_it_needs_is_refused_with_the_reason(name):
    entry = registry.find(name)
    bare = Target(template=jax.ShapeDtypeStruct((3,), jnp.float32), name="bare")
    assert not entry.applicable(bare)
    assert "'bare'" in entry.reason(bare)
    with pytest.raises(ValueError, match=f"{name} cannot be made: target 'bare' has n"):
        entry.make(bare)


def test_entries_are_distinct_and_say_who_they_are():
    assert len(set(NAMES)) == len(NAMES)
    assert {entry.half for entry in registry.entries()} == {"mcmc", "pushforward", "hybrid"}
    for entry in registry.entries():
        if entry.makes == "model":
            assert [set(entry.fit_options(budget).as_keywords()) for budget in registry.BUDGETS]
        else:
            with pytest.raises(ValueError, match="is not fitted"):
                entry.fit_options("small")


@pytest.mark.parametrize(("wrong", "nearest"), [("nut", "nuts"), ("real-nvp", "realnvp"), ("DDPM", "ddpm"), ("malla", "mala")])
def test_an_unknown_name_is_answered_with_the_nearest(wrong, nearest):
    with pytest.raises(ValueError, match=f"no sampler is called '{wrong}'; did you mean '{nearest}'"):
        registry.find(wrong)


def test_an_unknown_budget_is_refused():
    with pytest.raises(ValueError, match="budget is 'huge'; expected one of tiny, small, full"):
        registry.find("vae").make(everything((3,), jnp.float32), "huge")
    with pytest.raises(ValueError, match="budget is 'huge'"):
        registry.find("vae").fit_options("huge")


def test_listing_entries_imports_no_network_library():
    code = "import sys, gensamp.registry as r; r.entries(); print({'flax', 'numpyro', 'blackjax'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert out.stdout.strip() == "set()"
