"""What multistep solvers share: a polynomial through remembered values, integrated exactly.

A multistep method replaces a function known at the nodes v_0 .. v_{p-1} by the polynomial through its values there, and takes
the integral that the step asks for exactly:

    integral f(v) dmu(v)  ~  sum_j w_j f(v_j),    w_j = integral L_j(v) dmu(v),    L_j Lagrange's polynomials.

So a method is its nodes and the moments M_k = integral v^k dmu(v). Exponential integrators (Lu et al. 2022; Zhang and Chen
2023) have dmu = e^{z v / h} dv in log-SNR, whose moments are the functions phi_k(z) = sum_j z^j / (j + k)!.

Two things decide whether a method has the order it is named for. Exact weights: with the quadratic term of the third-order
multistep DPM-Solver++ at half its size, as widely used code has it, it is of second order. And the start, when fewer than p
values are known: a first step of first order leaves an error of h^2, once, which no later step mends. From t = 1, where hardly
any signal is left, that error is nearly nothing and a grid is taken as it is, at one forward for each of its steps; for a start
with signal `grids.graded` divides the first step of a grid.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gensamp.noise import FLOOR
from gensamp.pushforward.diffusion.solver import Level, Problem

__all__ = ["exponential_moments", "half_log_snr", "landed", "node_weights", "pairs", "past_times", "phi", "usable_nodes"]


def phi(order: int, z: Any) -> jax.Array:
    """phi_0(z), ..., phi_order(z), [order + 1], to full precision for z of any sign, zero included.

    phi_0 = exp(z), phi_{k+1} = (phi_k - 1 / k!) / z upwards loses all digits near zero; there the last one is summed as a
    series, and phi_k = z phi_{k+1} + 1 / k! leads down.
    """
    near = jnp.abs(z) < 1
    small, large = jnp.where(near, z, 0), jnp.where(near, 1, z)
    # Horner's scheme; 18 terms are enough for float64 below one.
    series = jnp.zeros_like(small)
    for j in reversed(range(18)):
        series = 1 / math.factorial(j + order) + small * series
    up, down = [jnp.exp(large)], [series]
    for k in range(order):
        up.append((up[-1] - 1 / math.factorial(k)) / large)
    for k in reversed(range(order)):
        down.append(small * down[-1] + 1 / math.factorial(k))
    return jnp.where(near, jnp.stack(down[::-1]), jnp.stack(up))


def exponential_moments(order: int, h: Any, rate: Any) -> jax.Array:
    """integral_0^h rate e^{-rate (h - v)} v^k dv for k < order, [order]: h^k k! (rate h) phi_{k+1}(-rate h)."""
    functions = phi(order, -rate * h)[1:]
    return jnp.stack([h**k * math.factorial(k) * rate * h * functions[k] for k in range(order)])


def past_times(problem: Problem, index: Any, size: int) -> jax.Array:
    """The grid's times number index, index - 1, ..., [size]; before the start of the grid, its first time."""
    return problem.times[jnp.maximum(index - jnp.arange(size, dtype=jnp.int32), 0)]


def half_log_snr(problem: Problem, times: jax.Array) -> jax.Array:
    """lam = log(alpha / sigma) at each of the times."""
    return jax.vmap(problem.noise.log_snr)(times) / 2


def usable_nodes(times: jax.Array) -> jax.Array:
    """How many leading nodes can be used: those before the first whose time coincides with its neighbour's.

    Nodes from before the start of a grid stand at its first time, so they coincide.
    """
    return 1 + jnp.sum(jnp.cumprod((times[1:] != times[:-1]).astype(jnp.int32)))


def node_weights(nodes: jax.Array, moments: jax.Array, usable: jax.Array, *, pair: Any = None) -> jax.Array:
    """The weights w_j of the values at the nodes, zero for those that cannot be used.

    In Newton's form, w_j = sum_{k >= j} N_k / prod_{i <= k, i != j} (n_j - n_i) with N_k = integral prod_{i < k} (v - n_i) dmu.

    Args:
        nodes: [p]. moments: M_0 .. M_{p-1}, [p].
        usable: how many leading nodes the polynomial goes through, see `usable_nodes`.
        pair: M_1 where two nodes are usable, for methods that are defined so.

    Returns:
        [p].
    """
    size = nodes.size
    if pair is not None and size > 1:
        moments = moments.at[1].set(jnp.where(usable == 2, pair, moments[1]))
    polynomial, integrals = jnp.zeros_like(moments).at[0].set(1), [moments[0]]
    for k in range(1, size):
        polynomial = jnp.roll(polynomial, 1) - nodes[k - 1] * polynomial
        integrals.append(jnp.sum(polynomial * moments))
    order = np.arange(size)
    gaps = nodes[:, None] - nodes[None, :]
    gaps = jnp.where(gaps == 0, 1, gaps)
    # [j, k, i]
    inside = (order[None, None, :] <= order[None, :, None]) & (order[None, None, :] != order[:, None, None])
    products = jnp.prod(jnp.where(inside, gaps[:, None, :], 1), axis=2)
    taken = (order[None, :] >= order[:, None]) & (order[None, :] < usable)
    return jnp.sum(jnp.where(taken, jnp.stack(integrals)[None, :] / products, 0), axis=1)


def landed(now: Level, then: Level, kept: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Coefficients of x and of guesses of x_0 [p]: those given, or where no noise is left those of `first_order`.

    There alpha_s x_0 + sigma_s eps is written with eps = (x - alpha_t x_0) / sigma_t: an event less to go through.
    """
    share = then.sigma / jnp.maximum(now.sigma, FLOOR)
    last = jnp.zeros_like(weights).at[0].set(then.alpha - share * now.alpha)
    return jnp.where(then.clean, share, kept), jnp.where(then.clean, last, weights)


def pairs(coefficients: jax.Array, events: Sequence[Any]) -> list[Any]:
    """Scalars and events by turns, as `combine` takes them."""
    return [part for i, event in enumerate(events) for part in (coefficients[i], event)]
