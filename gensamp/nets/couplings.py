"""Affine coupling layers: an invertible map R^d -> R^d with a triangular Jacobian (Dinh et al. 2017, equations 4-9).

One layer keeps the coordinates of a mask b and moves the others by a function of the kept ones,

    y = b z + (1 - b) (z exp(s) + m),    (s, m) = net(b z),    log |dy/dz| = sum of (1 - b) s,

so the inverse costs what the forward map costs and the net is never inverted. Layers share one shape and are stacked along a
leading axis and scanned, so the compilation does not grow with their number. The log scale is bounded, s = c tanh(a / c), with
c = 2: an unbounded one overflows in the first steps of a fit far from its target. The nets end in zeros: the map starts as the
identity.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gensamp.core import Static, bind

__all__ = ["Couplings", "affine_couplings"]

_BOUND = 2.0


class Couplings(NamedTuple):
    """An invertible map as three functions; the map costs one forward of every layer in either direction.

    init: (key) -> params. forward: (params, z [d]) -> (y [d], log |dy/dz|). inverse: (params, y [d]) -> (z [d], log |dz/dy|).
    """

    init: jax.tree_util.Partial
    forward: jax.tree_util.Partial
    inverse: jax.tree_util.Partial


def affine_couplings(
    size: int, *, num_layers: int = 8, width: int = 64, depth: int = 2, seed: int = 0, dtype: Any = None
) -> Couplings:
    """A stack of affine couplings over vectors [size].

    Args:
        size: d. With d = 1 a layer can only be an affine map, which is all a coupling can do there.
        num_layers: layers; each pair of consecutive layers keeps complementary halves.
        width, depth: hidden units and hidden layers of each conditioner.
        seed: of the fixed random halves (part of the architecture, not of a run).
        dtype: of the parameters; JAX's default float if None.

    Raises:
        ValueError: a number is not positive.
    """
    if min(size, num_layers, width, depth) < 1:
        raise ValueError(
            f"affine_couplings got size={size}, num_layers={num_layers}, width={width}, depth={depth}; expected all positive"
        )
    net = Static(_Conditioner(size, width, depth))
    masks = Static(_halves(size, num_layers, seed))
    dtype = jnp.dtype(jnp.result_type(float) if dtype is None else dtype)
    return Couplings(bind(_init, net, masks, Static(dtype)), bind(_forward, net, masks), bind(_inverse, net, masks))


class _Conditioner(nn.Module):
    size: int
    width: int
    depth: int

    @nn.compact
    def __call__(self, kept):
        h, precision = kept, {"dtype": kept.dtype, "param_dtype": kept.dtype}
        for _ in range(self.depth):
            h = nn.silu(nn.Dense(self.width, **precision)(h))
        raw, move = jnp.split(nn.Dense(2 * self.size, kernel_init=nn.initializers.zeros, **precision)(h), 2)
        return _BOUND * jnp.tanh(raw / _BOUND), move


def _halves(size: int, num_layers: int, seed: int) -> tuple[tuple[bool, ...], ...]:
    """Kept coordinates per layer: a random half, then its complement, and again."""
    random, masks = np.random.default_rng(seed), []
    while len(masks) < num_layers:
        kept = np.zeros(size, bool)
        kept[random.permutation(size)[: size // 2]] = True
        masks += [tuple(kept.tolist()), tuple((~kept).tolist())]
    return tuple(masks[:num_layers])


def _init(net, masks, dtype, key):
    size = net.value.size
    keys = jax.random.split(key, len(masks.value))
    return jax.vmap(lambda k: net.value.init(k, jnp.zeros(size, dtype.value))["params"])(keys)


def _forward(net, masks, params, z: Float[Array, " d"]):
    def layer(carry, at):
        z, total = carry
        mask, weights = at
        log_scale, move = net.value.apply({"params": weights}, jnp.where(mask, z, 0))
        y = jnp.where(mask, z, z * jnp.exp(log_scale) + move)
        return (y, total + jnp.where(mask, 0, log_scale).sum()), None

    return jax.lax.scan(layer, (z, jnp.zeros((), z.dtype)), (jnp.array(masks.value), params))[0]


def _inverse(net, masks, params, y: Float[Array, " d"]):
    def layer(carry, at):
        y, total = carry
        mask, weights = at
        log_scale, move = net.value.apply({"params": weights}, jnp.where(mask, y, 0))
        z = jnp.where(mask, y, (y - move) * jnp.exp(-log_scale))
        return (z, total - jnp.where(mask, 0, log_scale).sum()), None

    return jax.lax.scan(layer, (y, jnp.zeros((), y.dtype)), (jnp.array(masks.value), params), reverse=True)[0]
