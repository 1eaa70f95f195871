"""Somebody else's network, data and density go through fit, sample and compare without touching the registry."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import gensamp as gs
from gensamp import registry


class Equinox(eqx.Module):
    """Predicts the noise in one event at time t."""

    mlp: eqx.nn.MLP

    def __init__(self, key):
        self.mlp = eqx.nn.MLP(3, 2, width_size=32, depth=2, key=key)

    def __call__(self, x, t):
        return self.mlp(jnp.concatenate([x, t[None]]))


class Nnx(nnx.Module):
    """The same as a Flax NNX module."""

    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(3, 32, rngs=rngs), nnx.Linear(32, 2, rngs=rngs)

    def __call__(self, x, t):
        return self.last(nnx.silu(self.first(jnp.concatenate([x, t[None]]))))


def ring(x):
    """A density nobody here has seen: a ring of radius 2, unnormalised."""
    return -8.0 * (jnp.sqrt(jnp.sum(x**2) + 1e-6) - 2.0) ** 2


def test_somebody_elses_network_data_and_density():
    before = registry.entries()
    points = np.random.default_rng(0).normal([1.0, -1.0], [0.5, 2.0], size=(600, 2)).astype(np.float32)
    mine = gs.Target.from_data(points, name="my points")
    options = {"template": mine.template, "num_steps": 10, "prediction": "eps"}
    models = {
        "equinox": gs.pushforward.ddpm(gs.nets.from_equinox(Equinox), gs.noise.cosine(), **options),
        "nnx": gs.pushforward.ddpm(gs.nets.from_nnx(Nnx), gs.noise.cosine(), **options),
    }
    for model in models.values():
        fitted = gs.fit(jax.random.key(0), model, points, num_steps=100)
        draws = gs.sample(jax.random.key(1), model.sampler(fitted.params), 200)
        assert draws.position.shape == (1, 200, 2) and draws.nonfinite == 0
        assert fitted.history["loss"][-20:].mean() < fitted.history["loss"][:20].mean()
    by_data = gs.compare(jax.random.key(2), mine, models, "tiny")
    assert [row.name for row in by_data.done] == ["equinox", "nnx"]

    density = gs.Target.from_log_density(ring, np.zeros(2))
    chains = {"my mala": gs.mcmc.mala(density, step_size=0.05)}
    by_density = gs.compare(
        jax.random.key(3), density, chains | {"flow": gs.pushforward.realnvp(density.template, target=density)}, "tiny"
    )
    assert [row.name for row in by_density.done] == ["my mala", "flow"]
    assert "NUTS run" in by_density.judge.source
    assert registry.entries() is before
