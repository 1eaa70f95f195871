"""Coupling layers: an invertible map R^d -> R^d with a triangular Jacobian (Dinh et al. 2017, equations 4-9).

One layer keeps the coordinates of a mask b and moves the others by an increasing map tau of one number each, whose parameters
are a function of the kept ones,

    y = b z + (1 - b) tau(z; net(b z)),    log |dy/dz| = sum of (1 - b) log tau'(z),

so the inverse costs what the forward map costs and the net is never inverted. tau is affine in RealNVP and a rational-quadratic
spline in neural spline flows (`monotone.py`). Layers share one shape and are stacked along a leading axis and scanned, so the
compilation does not grow with their number. The nets end in zeros: the map starts as the identity.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass
from jaxtyping import Array, Float

from gensamp.core import Static, bind
from gensamp.nets.monotone import Affine, Monotone, Spline
from gensamp.nets.sizes import check_sizes

__all__ = ["Bijection", "affine_couplings", "spline_couplings"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class Bijection:
    """An invertible map of vectors as functions.

    init: (key) -> params. forward: (params, z [d]) -> (y [d], log |dy/dz|). inverse: (params, y [d]) -> (z [d], log |dz/dy|).
    adapt: (params, batch of y [events, d]) -> params, an initialisation that looks at data, or None. forward_passes,
    inverse_passes: what a direction costs, in passes through all layers.
    """

    init: Any
    forward: Any
    inverse: Any
    adapt: Any = None
    forward_passes: int = dataclasses.field(default=1, metadata={"static": True})
    inverse_passes: int = dataclasses.field(default=1, metadata={"static": True})


def affine_couplings(
    size: int, *, num_layers: int = 8, width: int = 64, depth: int = 2, seed: int = 0, dtype: Any = None
) -> Bijection:
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
    return _couplings("affine_couplings", Affine(), size, num_layers, width, depth, seed, dtype)


def spline_couplings(
    size: int,
    *,
    num_bins: int = 8,
    bound: float | int = 4.0,
    num_layers: int = 4,
    width: int = 64,
    depth: int = 2,
    seed: int = 0,
    dtype: Any = None,
) -> Bijection:
    """A stack of rational-quadratic spline couplings over vectors [size] (Durkan et al. 2019).

    Args:
        num_bins: bins of each spline. bound: the splines live on [-bound, bound] and are the identity outside.
        size, num_layers, width, depth, seed, dtype: as for `affine_couplings`; with d = 1 the splines are still free.

    Raises:
        ValueError: a number is not positive, or there are fewer than two bins.
    """
    return _couplings("spline_couplings", Spline(num_bins, bound), size, num_layers, width, depth, seed, dtype)


def _couplings(name, monotone, size, num_layers, width, depth, seed, dtype) -> Bijection:
    check_sizes(name, size=(size, 1), num_layers=(num_layers, 1), width=(width, 1), depth=(depth, 1))
    net = Static(_Conditioner(size, monotone, width, depth))
    masks = Static(_halves(size, num_layers, seed))
    dtype = jnp.dtype(jnp.result_type(float) if dtype is None else dtype)
    return Bijection(bind(_init, net, masks, Static(dtype)), bind(_forward, net, masks), bind(_inverse, net, masks))


class _Conditioner(nn.Module):
    size: int
    monotone: Monotone
    width: int
    depth: int

    @nn.compact
    def __call__(self, kept):
        h, precision = kept, {"dtype": kept.dtype, "param_dtype": kept.dtype}
        for _ in range(self.depth):
            h = nn.silu(nn.Dense(self.width, **precision)(h))
        shape = (self.monotone.num_raw, self.size)
        return nn.Dense(shape[0] * shape[1], kernel_init=nn.initializers.zeros, **precision)(h).reshape(shape)


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
    return _through(net, masks, params, z, net.value.monotone.forward, reverse=False)


def _inverse(net, masks, params, y: Float[Array, " d"]):
    return _through(net, masks, params, y, net.value.monotone.inverse, reverse=True)


def _through(net, masks, params, x, move, reverse):
    def layer(carry, at):
        x, total = carry
        mask, weights = at
        moved, log_derivative = move(net.value.apply({"params": weights}, jnp.where(mask, x, 0)), x)
        return (jnp.where(mask, x, moved), total + jnp.where(mask, 0, log_derivative).sum()), None

    return jax.lax.scan(layer, (x, jnp.zeros((), x.dtype)), (jnp.array(masks.value), params), reverse=reverse)[0]
