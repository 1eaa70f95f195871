"""Glow's invertible network for images (Kingma and Dhariwal 2018, "Glow", table 1 and figure 2).

From an image towards noise, at each scale: squeeze 2 x 2 pixels into four times the channels, then K steps of

    actnorm          h <- (h - m) exp(-s)         one m and s per channel, set so that the first batch has mean 0 and spread 1
    1 x 1            h <- W h                     W = P L (U + diag(sign exp(w))), P and the signs fixed: log |det W| = sum w
    coupling         h_b <- h_b exp(a) + b        (a, b) = net(h_a), half of the channels moving the other half

and half of the channels leave as noise, standardised by a function of those that stay; the rest go on to the next scale. The
steps of a scale share one shape and are scanned. W starts as a random rotation. An event that is no image is one pixel with d
channels: the same layers without neighbours.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from gensamp.core import Static, bind
from gensamp.nets.convolution import Convolution
from gensamp.nets.couplings import Bijection
from gensamp.nets.monotone import Affine
from gensamp.nets.sizes import check_sizes

__all__ = ["image_couplings"]

_SMALLEST_SPREAD = 1e-2
"""A channel that hardly varies in the first batch must not be blown up to unit spread."""


def image_couplings(
    shape: tuple[int, int, int],
    *,
    num_squeezes: int = 2,
    num_steps: int = 4,
    width: int = 32,
    seed: int = 0,
    dtype: Any = None,
) -> Bijection:
    """Glow's layers over images [h, w, c], flattened to vectors [h * w * c].

    Args:
        shape: (h, w, c). num_squeezes: scales, each beginning with a squeeze; 0 for one scale without. Both sides must be
            divisible by 2 ** num_squeezes.
        num_steps: K, steps per scale. width: hidden channels of each conditioner.
        seed: of the fixed permutations and first rotations (part of the architecture, not of a run).
        dtype: of the parameters; JAX's default float if None.

    Raises:
        ValueError: a number is not positive, or the sides do not divide.
    """
    check_sizes("image_couplings", shape=(shape, 1), num_squeezes=(num_squeezes, 0), num_steps=(num_steps, 1), width=(width, 1))
    if shape[0] % 2**num_squeezes or shape[1] % 2**num_squeezes:
        raise ValueError(
            f"image_couplings got an image of {shape[0]} x {shape[1]} and num_squeezes={num_squeezes}; expected sides "
            f"divisible by {2**num_squeezes}: pass fewer"
        )
    scales, (height, across, channels) = [], shape
    for level in range(max(num_squeezes, 1)):
        if num_squeezes:
            height, across, channels = height // 2, across // 2, 4 * channels
        last = level >= num_squeezes - 1
        seeds = tuple(seed + 1000 * level + step for step in range(num_steps))
        scales.append(_Scale(height, across, channels, width, bool(num_squeezes), last, seeds))
        channels = channels if last else channels // 2
    glow = Static(_Glow(tuple(shape), tuple(scales)))
    dtype = jnp.dtype(jnp.result_type(float) if dtype is None else dtype)
    return Bijection(bind(_init, glow, Static(dtype)), bind(_to_image, glow), bind(_to_noise, glow), bind(_adapt, glow))


@dataclass(frozen=True)
class _Scale:
    """One scale after its squeeze: the shape there, whether it squeezes, whether all channels leave, a seed for each step."""

    height: int
    across: int
    channels: int
    width: int
    squeezes: bool
    last: bool
    seeds: tuple[int, ...]

    @property
    def kept(self) -> int:
        """Channels that a coupling keeps."""
        return self.channels // 2

    @property
    def coupling(self) -> "_Conditioner":
        return _Conditioner(2 * (self.channels - self.kept), self.width)

    @property
    def prior(self) -> "_Conditioner":
        """What standardises the half that leaves, given the half that stays."""
        return self.coupling


@dataclass(frozen=True)
class _Glow:
    shape: tuple[int, int, int]
    scales: tuple[_Scale, ...]


class _Conditioner(nn.Module):
    features: int
    width: int

    @nn.compact
    def __call__(self, h):
        # Of a single channel nothing is kept: a constant then stands for it.
        h = h if h.shape[-1] else jnp.ones((*h.shape[:2], 1), h.dtype)
        precision = {"dtype": h.dtype, "param_dtype": h.dtype}
        if h.shape[:2] == (1, 1):
            h = nn.silu(nn.Dense(self.width, **precision)(h))
            h = nn.silu(nn.Dense(self.width, **precision)(h))
            return nn.Dense(self.features, kernel_init=nn.initializers.zeros, **precision)(h)
        h = nn.silu(Convolution(self.width)(h))
        h = nn.silu(nn.Dense(self.width, **precision)(h))
        return Convolution(self.features, zero=True)(h)


def _init(glow, dtype, key):
    keys = jax.random.split(key, len(glow.value.scales))
    return [_init_scale(scale, dtype.value, k) for scale, k in zip(glow.value.scales, keys, strict=True)]


def _init_scale(scale: _Scale, dtype, key):
    channels, number = scale.channels, len(scale.seeds)
    example = jnp.zeros((scale.height, scale.across, scale.kept), dtype)
    factors = [_rotation(channels, seed) for seed in scale.seeds]
    lower, upper, diagonal = (jnp.asarray(np.stack([f[i] for f in factors]), dtype) for i in (2, 3, 4))
    steps = {
        "shift": jnp.zeros((number, channels), dtype), "log_scale": jnp.zeros((number, channels), dtype),
        "lower": lower, "upper": upper, "log_diagonal": diagonal,
        "coupling": jax.vmap(lambda k: scale.coupling.init(k, example)["params"])(jax.random.split(key, number)),
    }  # fmt: skip
    prior = () if scale.last else scale.prior.init(jax.random.fold_in(key, 1), example)["params"]
    return {"steps": steps, "prior": prior}


def _rotation(channels: int, seed: int):
    """A random rotation as P L U: the order P gives rows, the signs of U's diagonal, L, U, and the diagonal's logarithm."""
    from scipy.linalg import lu

    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(channels, channels)))[0]
    permutation, lower, upper = lu(rotation)  # pyright: ignore[reportAssignmentType]
    diagonal = np.diag(upper)
    return permutation.argmax(1), np.sign(diagonal), lower, upper, np.log(np.abs(diagonal))


def _fixed(scale: _Scale):
    """P and the signs of each step [steps, channels], which are not trained."""
    factors = [_rotation(scale.channels, seed) for seed in scale.seeds]
    order, sign = (np.stack([f[i] for f in factors]) for i in (0, 1))
    return {"order": jnp.asarray(order), "back": jnp.asarray(order.argsort(1)), "sign": jnp.asarray(sign)}


def _triangles(fixed, weights):
    lower = jnp.tril(weights["lower"], -1) + jnp.eye(weights["lower"].shape[0], dtype=weights["lower"].dtype)
    diagonal = fixed["sign"].astype(lower.dtype) * jnp.exp(weights["log_diagonal"])
    return lower, jnp.triu(weights["upper"], 1) + jnp.diag(diagonal)


def _moved(net, weights, kept, given, towards_noise):
    """`given` [h, w, m] scaled and shifted as a function of `kept`, and the log Jacobian."""
    raw = net.apply({"params": weights}, kept)
    raw = jnp.moveaxis(raw.reshape(*raw.shape[:2], 2, -1), 2, 0).reshape(2, -1)
    move = Affine().inverse if towards_noise else Affine().forward
    out, logs = move(raw, given.reshape(-1))
    return out.reshape(given.shape), logs.sum()


def _step_to_noise(scale, fixed, weights, h):
    pixels = scale.height * scale.across
    h = (h - weights["shift"][None, None]) * jnp.exp(-weights["log_scale"])[None, None]
    lower, upper = _triangles(fixed, weights)
    h = h @ (lower @ upper)[fixed["order"]].T
    kept, given = h[..., : scale.kept], h[..., scale.kept :]
    given, logs = _moved(scale.coupling, weights["coupling"], kept, given, True)
    logs = logs + pixels * (weights["log_diagonal"].sum() - weights["log_scale"].sum())
    return jnp.concatenate([kept, given], axis=-1), logs


def _step_to_image(scale, fixed, weights, h):
    pixels = scale.height * scale.across
    kept, given = h[..., : scale.kept], h[..., scale.kept :]
    given, logs = _moved(scale.coupling, weights["coupling"], kept, given, False)
    h = jnp.concatenate([kept, given], axis=-1)
    lower, upper = _triangles(fixed, weights)
    columns = h.reshape(pixels, -1)[:, fixed["back"]].T
    columns = solve_triangular(lower, columns, lower=True, unit_diagonal=True)
    h = solve_triangular(upper, columns).T.reshape(h.shape)
    h = h * jnp.exp(weights["log_scale"])[None, None] + weights["shift"][None, None]
    return h, logs - pixels * (weights["log_diagonal"].sum() - weights["log_scale"].sum())


def _to_noise(glow, params, x: Float[Array, " d"]):
    h, total, gone = x.reshape(glow.value.shape), jnp.zeros((), x.dtype), []
    for scale, weights in zip(glow.value.scales, params, strict=True):
        h = _squeeze(h) if scale.squeezes else h

        def step(carry, at, scale=scale):
            fixed, weights = at
            h, logs = _step_to_noise(scale, fixed, weights, carry[0])
            return (h, carry[1] + logs), None

        (h, total), _ = jax.lax.scan(step, (h, total), (_fixed(scale), weights["steps"]))
        if not scale.last:
            h, leaving = h[..., : scale.kept], h[..., scale.kept :]
            leaving, logs = _moved(scale.prior, weights["prior"], h, leaving, True)
            total = total + logs
            gone.append(leaving.reshape(-1))
    return jnp.concatenate([*gone, h.reshape(-1)]), total


def _to_image(glow, params, z: Float[Array, " d"]):
    total, at = jnp.zeros((), z.dtype), z.size
    h = None
    for scale, weights in zip(reversed(glow.value.scales), reversed(params), strict=True):
        channels = scale.channels if h is None else scale.channels - scale.kept
        size = scale.height * scale.across * channels
        arriving, at = z[at - size : at].reshape(scale.height, scale.across, channels), at - size
        if h is None:
            h = arriving
        else:
            arriving, logs = _moved(scale.prior, weights["prior"], h, arriving, False)
            h, total = jnp.concatenate([h, arriving], axis=-1), total + logs

        def step(carry, at, scale=scale):
            fixed, weights = at
            h, logs = _step_to_image(scale, fixed, weights, carry[0])
            return (h, carry[1] + logs), None

        (h, total), _ = jax.lax.scan(step, (h, total), (_fixed(scale), weights["steps"]), reverse=True)
        h = _unsqueeze(h) if scale.squeezes else h
    return jnp.reshape(h, -1), total  # pyright: ignore[reportArgumentType, reportCallIssue]


def _adapt(glow, params, batch: Float[Array, "events d"]):
    """Shifts and scales of every actnorm from a batch of images [events, d], each from what the ones before it let through."""
    h, adapted = batch.reshape(-1, *glow.value.shape), []
    for scale, weights in zip(glow.value.scales, params, strict=True):
        h = jax.vmap(_squeeze)(h) if scale.squeezes else h

        def step(h, at, scale=scale):
            fixed, weights = at
            spread = jnp.maximum(h.std((0, 1, 2)), _SMALLEST_SPREAD)
            weights = {**weights, "shift": h.mean((0, 1, 2)), "log_scale": jnp.log(spread)}
            return jax.vmap(lambda one: _step_to_noise(scale, fixed, weights, one)[0])(h), weights

        h, steps = jax.lax.scan(step, h, (_fixed(scale), weights["steps"]))
        h = h if scale.last else h[..., : scale.kept]
        adapted.append({**weights, "steps": steps})
    return adapted


def _squeeze(h):
    height, across, channels = h.shape
    h = h.reshape(height // 2, 2, across // 2, 2, channels)
    return h.transpose(0, 2, 1, 3, 4).reshape(height // 2, across // 2, 4 * channels)


def _unsqueeze(h):
    height, across, channels = h.shape
    h = h.reshape(height, across, 2, 2, channels // 4)
    return h.transpose(0, 2, 1, 3, 4).reshape(2 * height, 2 * across, channels // 4)
