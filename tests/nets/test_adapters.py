"""Somebody else's module acts through a Network as it acts by itself, and its arrays are the trainable leaves."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gensamp.nets import from_equinox, from_linen, from_nnx

KEY = jax.random.key(3)
X, T = jnp.array([0.5, -1.0]), jnp.array(0.25)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, t):
        return nn.Dense(2)(nn.tanh(nn.Dense(8)(jnp.append(x, t))))


class LinenStatistics(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=True)(x)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 8, rngs=rngs)
        self.rest = nnx.List([nnx.Linear(8, 2, rngs=rngs)])

    def __call__(self, x, t):
        return self.rest[0](nnx.tanh(self.first(jnp.append(x, t))))


class NnxStatistics(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(2, rngs=rngs)

    def __call__(self, x):
        return self.norm(x)


class Equinox(eqx.Module):
    layers: eqx.nn.MLP
    gain: float = 2.0

    def __init__(self, key):
        self.layers = eqx.nn.MLP(3, 2, 8, 1, activation=jnp.tanh, key=key)

    def __call__(self, x, t):
        return self.gain * self.layers(jnp.append(x, t))


class EquinoxTable(eqx.Module):
    table: jax.Array

    def __init__(self, key):
        self.table = jax.random.randint(key, (3,), 0, 9)


def native(name):
    """The module's own output for the parameters that KEY gives it."""
    if name == "linen":
        return Linen().apply(Linen().init(KEY, X, T), X, T)
    return Nnx(nnx.Rngs(KEY))(X, T) if name == "nnx" else Equinox(KEY)(X, T)


MAKE = {"linen": lambda: from_linen(Linen(), X, T), "nnx": lambda: from_nnx(Nnx), "equinox": lambda: from_equinox(Equinox)}


@pytest.mark.parametrize("name", MAKE)
def test_a_network_acts_like_its_module(name):
    network = MAKE[name]()
    params = jax.jit(network.init)(KEY)
    np.testing.assert_allclose(network.apply(params, X, T), native(name), rtol=1e-6)
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(params))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 3 * 8 + 8 + 8 * 2 + 2


@pytest.mark.parametrize("name", MAKE)
def test_its_parameters_train_and_a_second_one_does_not_retrace(name):
    optimizer = optax.adam(0.1)

    @jax.jit
    def step(network, params, state):
        loss, gradient = jax.value_and_grad(lambda p: jnp.square(network.apply(p, X, T) - 3.0).sum())(params)
        updates, state = optimizer.update(gradient, state)
        return loss, optax.apply_updates(params, updates), state

    network, losses = MAKE[name](), []
    params = network.init(KEY)
    state = optimizer.init(params)
    for _ in range(3):
        loss, params, state = step(MAKE[name](), params, state)
        losses.append(float(loss))
    assert losses[2] < losses[1] < losses[0]
    assert step._cache_size() == 1


def test_modules_that_keep_statistics_are_refused():
    with pytest.raises(TypeError, match="batch_stats"):
        from_linen(LinenStatistics(), X)
    with pytest.raises(TypeError, match=r"not nnx\.Param"):
        from_nnx(NnxStatistics)
    with pytest.raises(TypeError, match="int32"):
        from_equinox(EquinoxTable)


def test_a_module_in_place_of_its_class_is_refused_and_the_other_way_round():
    with pytest.raises(TypeError, match="from_nnx got an instance of NnxStatistics; expected its class, or a function"):
        from_nnx(NnxStatistics(nnx.Rngs(0)))
    with pytest.raises(TypeError, match="from_equinox got an instance of Equinox; expected its class, or a function"):
        from_equinox(Equinox(KEY))
    with pytest.raises(TypeError, match="from_linen got the class LinenStatistics; expected an instance"):
        from_linen(LinenStatistics, X)
