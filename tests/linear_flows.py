"""A correlated Gaussian in the plane, on which every field of a diffusion is a matrix times x, and a network of such matrices.

The covariance has eigenvalues 1.8 and 0.2 and ones on its diagonal, so that its frame is the identity.
"""

import jax
import jax.numpy as jnp
import numpy as np

import gensamp as gs
from gensamp import noise

COVARIANCE = np.array([[1.0, 0.8], [0.8, 1.0]])
EIGENVALUES, VECTORS = np.linalg.eigh(COVARIANCE)
PROCESS = noise.cosine(-6.0, 6.0)
EVENTS = jnp.asarray(np.random.default_rng(0).normal(size=(4096, 2)) @ np.linalg.cholesky(COVARIANCE).T, jnp.float32)


def linear_network(knots):
    """apply(params [knots, 2, 2], x, t) = A(t) x, with A interpolated between equally spaced times."""
    return gs.Network(gs.bind(_zeros, gs.Static(knots)), gs.bind(_apply))


def framed(matrices):
    """Parameters of a model over `linear_network`, in the identity frame."""
    return {"network": matrices, "shift": jnp.zeros(2), "scale": jnp.ones(2)}


def matrices(factor, knots):
    """[knots, 2, 2]: the matrices with eigenvalues factor(t, eigenvalues) at the knots."""
    found = [VECTORS @ np.diag(factor(t, EIGENVALUES)) @ VECTORS.T for t in np.linspace(0, 1, knots)]
    return jnp.asarray(np.stack(found), jnp.float32)


def levels(t):
    """alpha and sigma of the cosine process, in double precision."""
    first, last = np.arctan(np.exp(-3.0)), np.arctan(np.exp(3.0))
    angle = first + (last - first) * t
    return np.cos(angle), np.sin(angle)


def exact_v(t, variance):
    """v of the best denoiser: (alpha x - x_0) / sigma."""
    alpha, sigma = levels(t)
    return (alpha - alpha * variance / (alpha**2 * variance + sigma**2)) / sigma


def exact_end(t, variance):
    """Where the ODE takes y = x / alpha at time t, at the smallest level."""
    level, smallest = (np.divide(*levels(s)[::-1]) for s in (t, 0.0))
    return np.sqrt((variance + smallest**2) / (variance + level**2))


def exact_consistency(t, variance):
    """F of the consistency function that ends there."""
    alpha, sigma = levels(max(t, 1e-6))
    level, smallest = sigma / alpha, np.divide(*levels(0.0)[::-1])
    gap = level - smallest
    return (1 / (gap**2 + 1) - exact_end(max(t, 1e-6), variance)) / alpha / (gap / np.sqrt(level**2 + 1))


def ddim_map(num_steps):
    """The matrix of `num_steps` equal DDIM steps with the best denoiser, from noise at t = 1 to t = 0."""
    factor = np.ones(2)
    for t, s in zip(np.linspace(1, 0, num_steps + 1)[:-1], np.linspace(1, 0, num_steps + 1)[1:], strict=True):
        (alpha, sigma), (alpha_then, sigma_then) = levels(t), levels(s)
        clean = alpha * EIGENVALUES / (alpha**2 * EIGENVALUES + sigma**2)
        factor = factor * (alpha_then * clean + sigma_then / sigma * (1 - alpha * clean))
    return VECTORS @ np.diag(factor) @ VECTORS.T


def independent_velocity(t, variance):
    """The velocity of the flow fitted to independent pairs, for an input divided by r."""
    return (t - (1 - t) * variance) / (t**2 + (1 - t) ** 2 * variance) * np.hypot(t, 1 - t)


def straight_velocity(t, variance):
    """The velocity of the flow fitted to its pairs (z, variance^(1/2) z), likewise."""
    return (1 - np.sqrt(variance)) / ((1 - t) * np.sqrt(variance) + t) * np.hypot(t, 1 - t)


@jax.jit
def mapped(sampler, starts):
    """Where a deterministic sampler takes each of the starts [n, 2]."""

    def one(z):
        state = sampler.init(jax.random.key(0), z)

        def body(state, index):
            return sampler.step(jax.random.key(1), state, index)[0], None

        state, _ = jax.lax.scan(body, state, jnp.arange(sampler.num_steps, dtype=jnp.int32))
        return sampler.position(state)

    return jax.vmap(one)(starts)


def _zeros(knots, key):
    del key
    return jnp.zeros((knots.value, 2, 2))


def _apply(params, x, t):
    knots = params.shape[0]
    near = jnp.maximum(1 - jnp.abs(t * (knots - 1) - jnp.arange(knots)), 0).astype(params.dtype)
    return jnp.einsum("k,kij,j->i", near, params, x)
