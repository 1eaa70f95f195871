"""Data on a lattice (grey levels): noise that makes a density of them, and the bits a model spends on a coordinate.

A density fitted to values on a lattice has no finite best fit: it can pile up on the values. Uniform noise within one cell of
width D around each value mends that, and by Jensen's inequality (Theis, van den Oord and Bethge 2016, "A note on the
evaluation of generative models", section 3.1)

    E_u log q(x + D u) + d log D <= log P(x),        u ~ U(-1/2, 1/2)^d,

so that -(E log q + d log D) / (d log 2) is an upper bound of the bits per dimension of a code for the values themselves, to be
held against models that give P(x) directly. Without a cell (D = 0) the number is the differential one, -E log q / (d log 2),
which depends on the units of the data.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gensamp.core import PyTree
from gensamp.nets.event import Event

__all__ = ["Lattice", "bits_per_dimension", "dequantised", "in_bits"]

_LANE = 64
# Of a cell: how far a value of the lattice may be rounded, in half precision say.
_ROUNDING = 0.1


@dataclass(frozen=True)
class Lattice:
    """`levels` values, an integer of at least two, equally spaced from `low` to `high`, finite numbers and both included.

    Raises:
        ValueError: levels is no integer or below two, an end is no finite number, or low is not below high.
    """

    low: Any
    high: Any
    levels: Any

    def __post_init__(self) -> None:
        ends, whole = (self.low, self.high), _is(self.levels, int | np.integer)
        finite = all(_is(end, int | float | np.integer | np.floating) and math.isfinite(end) for end in ends)
        if not finite or not whole or self.levels < 2 or not self.low < self.high:
            raise ValueError(
                f"Lattice got low={self.low!r}, high={self.high!r}, levels={self.levels!r}; expected finite numbers low < high "
                "and an integer of at least 2 levels"
            )

    @property
    def cell(self) -> float:
        """Distance between two values."""
        return (self.high - self.low) / (self.levels - 1)

    def check(self, name: str, data: PyTree) -> None:
        """Raises ValueError if data hold a value off the lattice by over a tenth of a cell. Data that are traced pass."""
        for a in jax.tree.leaves(data):
            if isinstance(a, jax.core.Tracer):
                continue
            values = np.asarray(a, float).reshape(-1)
            nearest = self.low + self.cell * np.clip(np.round((values - self.low) / self.cell), 0, self.levels - 1)
            off = np.abs(values - nearest) > _ROUNDING * self.cell
            if off.any():
                raise ValueError(
                    f"{name} got data with the value {values[off][0]:g}; expected only the {self.levels} values of its lattice "
                    f"from {self.low} to {self.high} in steps of {self.cell:g}: change the lattice or the data"
                )


def bits_per_dimension(
    key: jax.Array, log_density: Any, events: PyTree, *, cell: float | int = 0.0, repeats: int = 1
) -> tuple[float, float]:
    """Bits per dimension of events under a log density, and its standard error over the events.

    Args:
        key: of the noise within cells.
        log_density: (x) -> scalar, such as `sampler.log_density`: of a density, or of a law on the lattice itself.
        events: held-out events, a tree of arrays with a leading axis.
        cell: for a density, the width of a cell of the lattice; 0 for a law on the lattice, or for data on none.
        repeats: draws of the noise per event.

    Returns:
        (bits, standard error); one density per event and repeat.

    Raises:
        ValueError: there is no density, cell is negative, or repeats is not positive.
    """
    if log_density is None:
        raise ValueError("bits_per_dimension got log_density=None; expected a sampler.log_density (a VAE has only a bound)")
    if cell < 0 or repeats < 1:
        raise ValueError(f"bits_per_dimension got cell={cell}, repeats={repeats}; expected cell >= 0 and at least 1 repeat")
    log_density = log_density if isinstance(log_density, jax.tree_util.Partial) else jax.tree_util.Partial(log_density)
    event = Event.of(jax.tree.map(lambda a: a[0], events))
    width = jnp.asarray(cell, event.dtype)
    nll = np.mean([_nll(jax.random.fold_in(key, i), log_density, events, width) for i in range(repeats)], axis=0)
    bits = np.asarray(in_bits(nll, event.size, width))
    return float(bits.mean()), float(bits.std() / np.sqrt(len(bits)))


def dequantised(key: jax.Array, x: jax.Array, cell: Any) -> jax.Array:
    """x of any shape with uniform noise in the cell around each value; consumes `key`."""
    return x + cell * jax.random.uniform(key, x.shape, x.dtype, minval=-0.5, maxval=0.5)


def in_bits(nll: Any, size: int, cell: Any = 0.0) -> jax.Array:
    """Nats per event of `size` coordinates as bits per dimension, on a lattice of this cell (0 for none)."""
    nll = jnp.asarray(nll)
    cell = jnp.asarray(cell, nll.dtype)
    log_cell = jnp.where(cell > 0, jnp.log(jnp.where(cell > 0, cell, 1)), 0)
    return (nll / size - log_cell) / jnp.log(2.0).astype(nll.dtype)


def _is(value, kinds) -> bool:
    """A bool is an int to Python, and none here."""
    return isinstance(value, kinds) and not isinstance(value, bool)


@jax.jit
def _nll(key, log_density, events, cell):
    """Nats of each event [events], a lane at a time."""
    event = Event.of(jax.tree.map(lambda a: a[0], events))

    def one(at):
        index, x = at
        return -log_density(event.unflatten(dequantised(jax.random.fold_in(key, index), event.flatten(x), cell)))

    count = len(jax.tree.leaves(events)[0])
    return jax.lax.map(one, (jnp.arange(count), events), batch_size=min(_LANE, count))
