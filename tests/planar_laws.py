"""Two laws in the plane whose truth is known, ten keys of chains on them, and what passing and failing means."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

import gensamp as gs
from gensamp.testing import check_laws, power

KEYS = 10
CHAINS = 4
COVARIANCE = np.array([[1.0, 1.6], [1.6, 4.0]])
METRIC = jnp.asarray(COVARIANCE, jnp.float32)
IDENTITY = jnp.eye(2)
PROBABILITIES = (0.1, 0.5, 0.9)


def gaussian_truth(variance):
    """The law N(0, variance) in every coordinate, as far as the checks ask."""
    scale = np.sqrt(variance)
    quantiles = {p: (scale * float(norm.ppf(p)), 0.0) for p in PROBABILITIES}
    return gs.Truth(mean=(np.zeros_like(scale), 0.0), variance=(variance, 0.0), quantiles=quantiles, source="closed form")


def correlated_gaussian() -> gs.Target:
    """N(0, COVARIANCE), with correlation 0.8."""
    density = gs.bind(_log_bent, jnp.asarray(np.linalg.inv(COVARIANCE), jnp.float32), jnp.float32(0.0))
    return gs.Target.from_log_density(density, jnp.zeros(2), truth=gaussian_truth(np.diag(COVARIANCE)), name="gaussian")


def bent_gaussian() -> gs.Target:
    """x0 ~ N(0, 1), x1 ~ N((x0^2 - 1) / 2, 1 / 4): Var x1 = Var(x0^2) / 4 + 1 / 4; its quantiles come from exact draws."""
    density = gs.bind(_log_bent, jnp.diag(jnp.array([1.0, 4.0])), jnp.float32(0.5))
    truth = gs.Truth(mean=(np.zeros(2), 0.0), variance=(np.array([1.0, 0.75]), 0.0), source="closed form")
    return gs.Target.from_log_density(density, jnp.zeros(2), exact=_draw_banana, truth=truth, name="banana")


def run(sampler, num_draws, warmup=100):
    """Positions [key, chain, draw, 2] after warm-up."""
    keys = jax.random.split(jax.random.key(2024), (KEYS, CHAINS))
    return np.asarray(_chains(keys, sampler, warmup + num_draws))[:, :, warmup:]


def assert_passes(positions, target):
    """At least nine keys of ten have the target's law."""
    counts, report = _verdicts(positions, target)
    assert counts["passed"] >= KEYS - 1, report


def assert_fails(positions, target):
    """At least nine keys of ten show that they do not."""
    counts, report = _verdicts(positions, target)
    assert counts["failed"] >= KEYS - 1, report


def _verdicts(positions, target):
    checks = check_laws(positions, target, probabilities=PROBABILITIES)
    return power(checks), "\n".join(map(str, checks))


@jax.jit(static_argnums=2)
def _chains(keys, sampler, length):
    return jax.vmap(jax.vmap(lambda key: gs.chain(key, sampler, length).position))(keys)


def _log_bent(precision, bend, x):
    # One function for both laws, so that a sampler is compiled once for the two.
    y = jnp.stack([x[0], x[1] - bend * (x[0] ** 2 - 1)])
    return -0.5 * y @ precision @ y


def _draw_banana(key):
    x, noise = jax.random.normal(key, (2,))
    return jnp.stack([x, 0.5 * (x**2 - 1) + 0.5 * noise])
