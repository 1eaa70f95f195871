"""Solving to a tolerance instead of on a grid: what the adaptive solvers and likelihoods share before diffrax does the work.

diffrax is an extra, `pip install gensamp[ode]`, imported when it is asked for. Of a grid only the two ends count. Row
"diffusion" of the table.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gensamp.pushforward.diffusion.solver import Problem, known, pose

__all__ = ["check_tolerances", "need_diffrax", "pose_ends"]


def need_diffrax(by: str, instead: str = "") -> Any:
    """The module diffrax, or an ImportError of one sentence, with what to do instead."""
    try:
        import diffrax
    except ImportError as error:
        raise ImportError(f"{by} needs diffrax, which is not installed; pip install 'gensamp[ode]'{instead}") from error
    return diffrax


def check_tolerances(by: str, rtol: Any, atol: Any, max_steps: int) -> None:
    """Raises ValueError unless all three are positive; what is traced is believed."""
    for label, value in (("rtol", rtol), ("atol", atol), ("max_steps", max_steps)):
        if not isinstance(value, jax.core.Tracer) and not float(value) > 0:
            raise ValueError(f"{by} got {label}={value}; expected a positive number")


def pose_ends(by: str, denoise: Any, noise: Any, grid: Any, *given: Any, needs_signal: bool = False) -> Problem:
    """`solver.pose` between the first and the last time of a grid; ValueError if it has no length."""
    times = known(grid)
    if times is not None and times.ndim == 1 and times.size > 1 and not times[0] > times[-1]:
        raise ValueError(f"{by} got the grid {times}; expected times that fall from the first to the last")
    ends = jnp.asarray(grid)[jnp.asarray([0, -1])] if jnp.ndim(grid) == 1 and jnp.size(grid) > 1 else grid
    return pose(by, denoise, noise, ends, *given, needs_signal=needs_signal)
