"""Increasing maps of one number, their parameters given by a network: what couplings and autoregressive layers are made of.

    Affine     y = x exp(s) + m,    s = c tanh(a / c) with c = 2: an unbounded s overflows in the first steps of a fit
    Spline     a rational-quadratic spline with K bins on [-B, B], the identity outside (Durkan et al. 2019, "Neural spline
               flows", equations 4-8): widths, heights and inner slopes are free, the slope at both ends is 1

Both are the identity where the raw parameters are zero. Raw parameters come as [num_raw, n] for n coordinates x [n]; `forward`
and `inverse` return the other side [n] and log |derivative| [n], and cost the same: a spline is inverted in closed form. They
are plain hashable values and ride in a `Static`.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["Affine", "Monotone", "Spline"]


@runtime_checkable
class Monotone(Protocol):
    """num_raw raw parameters per coordinate, and the map in both directions."""

    @property
    def num_raw(self) -> int: ...

    def forward(self, raw: Array, x: Array) -> tuple[Array, Array]: ...

    def inverse(self, raw: Array, y: Array) -> tuple[Array, Array]: ...


@dataclass(frozen=True)
class Affine:
    """Scale and shift; `bound` limits the log scale."""

    bound: float | int = 2.0

    @property
    def num_raw(self) -> int:
        """Log scale and shift."""
        return 2

    def forward(self, raw: Float[Array, "2 n"], x: Float[Array, " n"]) -> tuple[Array, Array]:
        """y [n] and log dy/dx [n]."""
        log_scale = self._log_scale(raw)
        return x * jnp.exp(log_scale) + raw[1], log_scale

    def inverse(self, raw: Float[Array, "2 n"], y: Float[Array, " n"]) -> tuple[Array, Array]:
        """x [n] and log dx/dy [n]."""
        log_scale = self._log_scale(raw)
        return (y - raw[1]) * jnp.exp(-log_scale), -log_scale

    def _log_scale(self, raw):
        return self.bound * jnp.tanh(raw[0] / self.bound)


@dataclass(frozen=True)
class Spline:
    """A rational-quadratic spline on [-bound, bound] with `num_bins` bins.

    smallest: least share of a bin in the interval, and least slope; without it a bin can close and its slope overflow.

    Raises:
        ValueError: a bin or less, no positive bound, or bins too many for their least share.
    """

    num_bins: int = 8
    bound: float | int = 4.0
    smallest: float | int = 1e-3

    def __post_init__(self) -> None:
        if self.num_bins < 2 or self.bound <= 0 or not 0 < self.smallest * self.num_bins < 1:
            raise ValueError(
                f"Spline got num_bins={self.num_bins}, bound={self.bound}, smallest={self.smallest}; expected at least 2 bins, "
                "a positive bound and num_bins * smallest below 1"
            )

    @property
    def num_raw(self) -> int:
        """Widths, heights and inner slopes."""
        return 3 * self.num_bins - 1

    def forward(self, raw: Float[Array, "raw n"], x: Float[Array, " n"]) -> tuple[Array, Array]:
        """y [n] and log dy/dx [n]."""
        inside, at = self._clipped(x)
        knots = self._knots(raw)
        left, width, low, height, slope, before, after = _bin(knots, knots[0], at)
        share = (at - left) / width
        mixed = share * (1 - share)
        bent = slope + (before + after - 2 * slope) * mixed
        y = low + height * (slope * share**2 + before * mixed) / bent
        log_derivative = _log_derivative(share, mixed, slope, before, after, bent)
        return jnp.where(inside, y, x), jnp.where(inside, log_derivative, 0)

    def inverse(self, raw: Float[Array, "raw n"], y: Float[Array, " n"]) -> tuple[Array, Array]:
        """x [n] and log dx/dy [n]."""
        inside, at = self._clipped(y)
        knots = self._knots(raw)
        left, width, low, height, slope, before, after = _bin(knots, knots[1], at)
        rise = at - low
        excess = rise * (before + after - 2 * slope)
        a = height * (slope - before) + excess
        b = height * before - excess
        c = -slope * rise
        # The form of the root that does not cancel, and is right for a = 0 as well (their equation 8).
        share = 2 * c / (-b - jnp.sqrt(jnp.maximum(b**2 - 4 * a * c, jnp.finfo(y.dtype).tiny)))
        mixed = share * (1 - share)
        bent = slope + (before + after - 2 * slope) * mixed
        log_derivative = _log_derivative(share, mixed, slope, before, after, bent)
        return jnp.where(inside, left + share * width, y), jnp.where(inside, -log_derivative, 0)

    def _clipped(self, value):
        """Whether a value lies within the spline, and one that does in its place, so that no branch is ever singular."""
        inside = jnp.abs(value) < self.bound
        return inside, jnp.where(inside, value, 0)

    def _knots(self, raw):
        """Positions of the knots [K + 1, n] on both axes, and slopes there [K + 1, n]."""
        widths, heights, slopes = raw[: self.num_bins], raw[self.num_bins : 2 * self.num_bins], raw[2 * self.num_bins :]
        # softplus(0 + offset) = 1 - smallest: no parameters, no bend.
        offset = math.log(math.expm1(1 - self.smallest))
        inner = self.smallest + jax.nn.softplus(slopes + offset)
        end = jnp.ones((1, raw.shape[1]), raw.dtype)
        return self._edges(widths), self._edges(heights), jnp.concatenate([end, inner, end])

    def _edges(self, raw):
        share = self.smallest + (1 - self.smallest * self.num_bins) * jax.nn.softmax(raw, axis=0)
        inner = self.bound * (2 * jnp.cumsum(share[:-1], axis=0) - 1)
        end = jnp.full((1, raw.shape[1]), self.bound, raw.dtype)
        return jnp.concatenate([-end, inner, end])


def _bin(knots, edges, value):
    """Left edge, width, lower edge, height, mean slope and the slopes at both ends of the bin that `value` [n] lies in."""
    across, up, slopes = knots
    index = (value[None] >= edges[1:-1]).sum(0)
    # A one-hot sum instead of a gather, whose gradient is a slow scatter.
    chosen = (jnp.arange(edges.shape[0] - 1)[:, None] == index[None]).astype(value.dtype)

    def pick(rows):
        return (rows * chosen).sum(0)

    width, height = pick(jnp.diff(across, axis=0)), pick(jnp.diff(up, axis=0))
    return pick(across[:-1]), width, pick(up[:-1]), height, height / width, pick(slopes[:-1]), pick(slopes[1:])


def _log_derivative(share, mixed, slope, before, after, bent):
    numerator = after * share**2 + 2 * slope * mixed + before * (1 - share) ** 2
    return 2 * jnp.log(slope) + jnp.log(numerator) - 2 * jnp.log(bent)
