"""Targets of statistical physics: a field on a lattice, and a cluster of atoms. No exact draws, no known log normaliser.

| target | energy, the density being exp(-energy) | dim |
|---|---|---|
| phi4 | sum over sites of phi (4 phi - four neighbours) + m2 phi^2 + lam phi^4, periodic | 14 x 14 |
| lj13 | (1/2) sum over i != j of (r^-12 - 2 r^-6) + (1/2) sum of |x_i|^2 | 13 x 3 |

What is known comes from their symmetries: both are even, so means are zero and medians too.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gensamp.core import Target, Truth, bind
from gensamp.targets.mixture import float_dtype

__all__ = ["lj13", "phi4"]


def phi4(size: int = 14, *, m2: float | int = -4.75, lam: float | int = 5.1, dtype: Any = None) -> Target:
    """A scalar field with a quartic self-interaction on a periodic square lattice, near its phase transition.

    The field and its negative have one density, and at these constants it is mostly of one sign: two modes, joined by a thin
    neck. A sampler that stays in one is found out by the mean field.

    Args:
        size: sites along one side, at least 2.
        m2, lam: bare mass squared and coupling; lam positive.
        dtype: of events; jax's default float if None.

    Returns:
        Target: events [size, size]; `constrain` gives the field and its mean, the magnetisation.

    Raises:
        ValueError: size below 2, or lam not positive, for which there is no density.

    Source: Albergo, Kanwar and Shanahan 2019, "Flow-based generative models for Markov chain Monte Carlo in lattice field
    theory", equation 11, in lattice units.
    """
    if size < 2 or not lam > 0:
        raise ValueError(f"phi4 got size={size}, lam={lam}; expected at least 2 and a positive number")
    dtype = float_dtype(dtype)
    return Target.from_log_density(
        bind(_phi4_log_density, jnp.asarray(m2, dtype), jnp.asarray(lam, dtype)),
        jax.ShapeDtypeStruct((size, size), dtype),
        name="phi4" if size == 14 else f"phi4_{size}x{size}",
        constrain=bind(_phi4_constrain),
        truth=_even((size, size), dtype),
    )


def lj13(*, dtype: Any = None) -> Target:
    """Thirteen atoms with Lennard-Jones forces, held together by a harmonic trap: an icosahedron and its melts.

    The trap is about the origin, and (1/2) sum |x_i|^2 = (1/2) sum |x_i - centre|^2 + (13/2) |centre|^2: shapes have the law
    of the usual target, which is held about its own centre and so has no density over all 39 coordinates, and the centre of
    mass is an independent N(0, I / 13).

    Returns:
        Target: events [13, 3]; `constrain` gives the atoms, their centre and the distances between them, sorted, [78].

    Source: Koehler, Klein and Noe 2020, "Equivariant flows", section 6, with the trap about the origin.
    """
    dtype = float_dtype(dtype)
    return Target.from_log_density(
        _lj13_log_density,
        jax.ShapeDtypeStruct((13, 3), dtype),
        name="lj13",
        constrain=bind(_lj13_constrain),
        truth=_even((13, 3), dtype),
    )


def _even(shape: tuple[int, ...], dtype: Any) -> Truth:
    zeros = jnp.zeros(shape, dtype)
    return Truth(mean=(zeros, 0.0), quantiles={0.5: (zeros, 0.0)}, source="the density is even")


def _phi4_log_density(m2: Array, lam: Array, phi: Float[Array, "size size"]) -> Array:
    # Each bond counted once from either end: the sum over four neighbours is twice the sum over two.
    ahead = jnp.roll(phi, 1, 0) + jnp.roll(phi, 1, 1)
    square = phi**2
    return -jnp.sum((4 + m2) * square - 2 * phi * ahead + lam * square**2)


def _phi4_constrain(phi):
    return {"phi": phi, "magnetisation": jnp.mean(phi)}


_FIRST, _SECOND = np.triu_indices(13, 1)


def _lj13_log_density(x: Float[Array, "13 3"]) -> Array:
    inverse = 1 / jnp.sum((x[_FIRST] - x[_SECOND]) ** 2, axis=1) ** 3
    return -jnp.sum(inverse * (inverse - 2)) - 0.5 * jnp.sum(x**2)


def _lj13_constrain(x):
    distances = jnp.sqrt(jnp.sum((x[_FIRST] - x[_SECOND]) ** 2, axis=1))
    return {"atoms": x, "centre": jnp.mean(x, axis=0), "distances": jnp.sort(distances)}
