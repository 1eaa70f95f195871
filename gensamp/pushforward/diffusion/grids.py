"""Time grids for diffusion samplers: decreasing times [num_steps + 1], the first being where a sampler starts.

A grid is a leaf of its sampler, so any grid of one length runs in one program. Samplers ask for the denoiser at every time but
the last. With the last time 0 and sigma(0) = 0 the last step returns the denoiser's guess of the clean event; with a last time
whose sigma is positive the draw keeps that much noise. Repeated times are harmless: a step of no length does nothing.

    uniform_time      equal steps of t                                            (Ho, Jain and Abbeel 2020)
    trailing          the same, rounded to a discrete process's own times         (Lin et al. 2024, section 3.3)
    uniform_log_snr   equal steps of log(alpha / sigma): multistep solvers' own   (Lu et al. 2022, section 3.4)
    karras            equal steps of (sigma / alpha)^(1/rho), finer towards data  (Karras et al. 2022, equation 5)

    graded            any grid with its first step divided: for multistep solvers that start from the middle of a diffusion
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gensamp.nets.sizes import check_sizes
from gensamp.noise import Noise

__all__ = ["graded", "karras", "times_of_log_snr", "trailing", "uniform_log_snr", "uniform_time"]

# Shares of the first step, as powers of the number of steps N, by the order of the method. The first step is of first order, so
# it must be of length h N^(-1/2) for an error of h^3, and h / N for h^4; the second one is of second order.
_GRADES = {3: (0.5,), 4: (1.0, 0.5)}


def uniform_time(num_steps: int, *, start: float = 1.0, end: float = 0.0) -> Float[Array, " times"]:
    """Equal steps of time from `start` to `end`; the grid of Ho, Jain and Abbeel (2020)."""
    _check(num_steps)
    return jnp.linspace(start, end, num_steps + 1)


def trailing(num_steps: int, *, train_steps: int = 1000) -> Float[Array, " times"]:
    """Times of a process of `train_steps` discrete steps, from its very last one down to 0.

    Args:
        num_steps: steps; the grid has one time more.
        train_steps: how many steps divide [0, 1] where the network was trained.

    Returns:
        Multiples of 1 / train_steps; the first is 1, where nothing but noise is left, which "leading" spacings never reach.

    Raises:
        ValueError: there are more steps than the process has.

    Source: Lin, Liu, Li and Yang 2024, "Common diffusion noise schedules and sample steps are flawed", section 3.3.
    """
    _check(num_steps)
    if num_steps > train_steps:
        raise ValueError(f"trailing got num_steps={num_steps} of train_steps={train_steps}; expected no more than those")
    return jnp.round(jnp.linspace(train_steps, 0, num_steps + 1)) / train_steps


def uniform_log_snr(noise: Noise, num_steps: int, *, start: float = 1.0, end: float | None = None) -> Float[Array, " times"]:
    """Equal steps of log(alpha^2 / sigma^2) from `start` to `end`; the grid of Lu et al. (2022, section 3.4).

    Args:
        noise: its log-SNR must decrease in time. It is inverted by bisection, so no closed form is asked for.
        num_steps: steps; the grid has one time more.
        end: `noise.t_min` by default. It must leave some noise: log-SNR is infinite without.
    """
    _check(num_steps)
    end = noise.t_min if end is None else end
    wanted = jnp.linspace(noise.log_snr(start), noise.log_snr(end), num_steps + 1)
    return times_of_log_snr(noise, wanted, start, end).at[0].set(start).at[-1].set(end)


def karras(
    noise: Noise, num_steps: int, *, rho: float = 7.0, start: float = 1.0, end: float | None = None, clean: bool = True
) -> Float[Array, " times"]:
    """Equal steps of (sigma / alpha)^(1 / rho) from `start` to `end`, and then 0.

    Args:
        noise: its log-SNR must decrease in time; sigma / alpha is Karras et al.'s sigma for any process.
        num_steps: steps; the grid has one time more.
        rho: how much finer steps are towards the data; 1 is equal steps of sigma.
        end: `noise.t_min` by default; it must leave some noise.
        clean: the last time is 0, as in the paper, and `end` the one before; else, or where `end` is 0 itself, `end` is the
            last.

    Raises:
        ValueError: num_steps is not positive, or rho is not.

    Source: Karras et al. 2022, equation 5. It is sigma that rho warps, not t.
    """
    _check(num_steps)
    if not rho > 0:
        raise ValueError(f"karras got rho={rho}; expected a positive number, such as 7")
    end = noise.t_min if end is None else end
    clean = clean and end > 0
    if clean and num_steps == 1:
        return jnp.asarray([start, 0.0])
    first, last = (jnp.exp(-noise.log_snr(t) / (2 * rho)) for t in (start, end))
    warped = jnp.linspace(first, last, num_steps if clean else num_steps + 1)
    times = times_of_log_snr(noise, -2 * rho * jnp.log(warped), start, end).at[0].set(start).at[-1].set(end)
    return jnp.append(times, jnp.zeros(1, times.dtype)) if clean else times


def graded(grid: Float[Array, " times"], order: int = 3) -> Float[Array, " more_times"]:
    """A grid with its first step divided, unevenly, for a multistep solver of that order.

    A multistep solver knows nothing before its first step, which is of first order: an error of h^2, made once, which no later
    step mends. Short steps where the order is low keep the order of the whole. From t = 1, where hardly any signal is left,
    there is nothing to mend, as neither the guess of x_0 nor that of eps moves within the first step, and a grid is best left
    as it is. From the middle of a diffusion (an image to be varied, a guess to be improved) it makes a factor of three at 24
    steps, and of ten at 96. In between, from alpha / sigma = 0.05, it costs a tenth of the accuracy at 24 steps and pays at
    200.

    Args:
        grid: [num_steps + 1].
        order: of the solver; up to 2, and for a grid of a single step, nothing changes.

    Returns:
        The grid with one more time (order 3) or two (order 4), so a solver makes as many more steps.

    Raises:
        ValueError: the order is not from 1 to 4, or the grid is not a vector of at least two times.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"graded got order={order}; expected 1, 2, 3 or 4")
    grid = jnp.asarray(grid)
    if grid.ndim != 1 or grid.size < 2:
        raise ValueError(f"graded got a grid of shape {grid.shape}; expected [num_steps + 1] times")
    num_steps = grid.size - 1
    if num_steps == 1 or order not in _GRADES:
        return grid
    shares = jnp.asarray([num_steps**-power for power in _GRADES[order]], grid.dtype)
    return jnp.concatenate([grid[:1], grid[0] + (grid[1] - grid[0]) * shares, grid[1:]])


def times_of_log_snr(noise: Noise, wanted: Float[Array, " times"], start: float, end: float) -> Float[Array, " times"]:
    """The times in [end, start] at which log(alpha^2 / sigma^2) is `wanted`, by bisection to the last bit of their dtype."""
    return _bisect(noise, wanted, jnp.asarray(start, wanted.dtype), jnp.asarray(end, wanted.dtype))


# Compiled once for each process and length: grids are made outside of compiled programs, over and over.
@jax.jit
def _bisect(noise, wanted, start, end):
    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        noisier = jax.vmap(noise.log_snr)(middle) < wanted
        return jnp.where(noisier, low, middle), jnp.where(noisier, middle, high)

    bounds = jnp.full_like(wanted, end), jnp.full_like(wanted, start)
    low, high = jax.lax.fori_loop(0, jnp.finfo(wanted.dtype).nmant + 6, halve, bounds)
    return (low + high) / 2


def _check(num_steps: Any) -> None:
    check_sizes("a grid", num_steps=(num_steps, 1))
