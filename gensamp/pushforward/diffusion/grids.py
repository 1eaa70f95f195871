"""Time grids for diffusion samplers: decreasing times [num_steps + 1], the first being where a sampler starts.

A grid is a leaf of its sampler, so any grid of one length runs in one program. Samplers ask for the denoiser at every time but
the last. With the last time 0 and sigma(0) = 0 the last step returns the denoiser's guess of the clean event; with a last time
whose sigma is positive the draw keeps that much noise. Repeated times are harmless: a step of no length does nothing.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gensamp.noise import Noise

__all__ = ["uniform_log_snr", "uniform_time"]


def uniform_time(num_steps: int, *, start: float = 1.0, end: float = 0.0) -> Float[Array, " times"]:
    """Equal steps of time from `start` to `end`; the grid of Ho, Jain and Abbeel (2020)."""
    _check(num_steps)
    return jnp.linspace(start, end, num_steps + 1)


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

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        noisier = jax.vmap(noise.log_snr)(middle) < wanted
        return jnp.where(noisier, low, middle), jnp.where(noisier, middle, high)

    bounds = jnp.full_like(wanted, end), jnp.full_like(wanted, start)
    low, high = jax.lax.fori_loop(0, jnp.finfo(wanted.dtype).nmant + 6, halve, bounds)
    times = (low + high) / 2
    return times.at[0].set(start).at[-1].set(end)


def _check(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"a grid got num_steps={num_steps}; expected at least 1")
