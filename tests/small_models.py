"""Small models whose fits are known: what the tests of training share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gensamp.core import Model, bind

KEY = jax.random.key(0)
DATA = np.random.default_rng(1).normal(size=(500, 2)) @ np.array([[1.0, 0.5], [0.0, 0.3]]) + np.array([1.0, -2.0])
SGD = optax.sgd(0.05)
OPTIONS: dict = {"batch_size": 64, "ema": 0.9, "validation": 0.2}


# A Gaussian of unknown mean, whose best parameters are known: the mean of the data.
def init_mean(key, batch):
    return {"mean": 0.1 * jax.random.normal(key, (2,)), "offset": 0.0}, ()


def loss_mean(params, state, key, batch):
    residual = batch - (params["mean"] + params["offset"])[None]
    noise = jax.random.normal(key, batch.shape)
    loss = jnp.square(residual + 0.1 * noise).sum(-1).mean()
    return loss, (state, {"rmse": jnp.sqrt(loss)})


def gaussian() -> Model:
    return Model(bind(init_mean), bind(loss_mean), sampler=None)


# Each event is one of 100 names, and a parameter moves only if its name was seen: which events were trained on can be read off.
def init_seen(key, batch):
    return jnp.zeros(100), jnp.int32(0)


def loss_seen(params, state, key, batch):
    return -params[batch["name"]].mean(), (state + 1, {"forwards": jnp.int32(3), "gradients": state})


def seen() -> Model:
    return Model(bind(init_seen), bind(loss_seen), sampler=None, forwards=2)


# Learns from a density; the loss is no number from the step on at which the state has counted to `limit`.
def init_density(limit, key, batch):
    return jnp.full(3, 2.0), (jnp.int32(0), key)


def loss_density(limit, params, state, key, batch):
    count, own = state
    loss = jnp.square(params + 0.01 * jax.random.normal(own, (3,))).sum()
    return jnp.where(count >= limit, jnp.nan, loss), ((count + 1, jax.random.fold_in(own, count)), {"densities": 7})


def density(limit=10_000) -> Model:
    return Model(bind(init_density, jnp.int32(limit)), bind(loss_density, jnp.int32(limit)), sampler=None, forwards=5)


def same(a, b) -> bool:
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y), equal_nan=True), a, b))
