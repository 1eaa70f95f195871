"""Annealed importance sampling: independent weighted draws, and an unbiased estimate of the normaliser.

Along levels 0 < t_1 < ... < t_L = 1 an event is weighed at where it stands, and only then moved:

    x_0 ~ base,    w = prod_i p_{t_i}(x_{i-1}) / p_{t_{i-1}}(x_{i-1}),    x_i ~ K_i(x_{i-1}, .),

with base for p_{t_0} and K_i a kernel that leaves p_{t_i} invariant. Then E[w f(x_L)] = Z E_target[f], whatever the kernels and
however badly they mix (Neal 2001). Taking the ratio after the move is the common mistake, and biased: x_i is
already drawn towards p_{t_i}.

Row two of the table: finite, made by hand, the last state is a weighted draw.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from gensamp.core import Info, Path, Sampler, Static, Traits, add_info, bind, scalar
from gensamp.mcmc.arguments import strong
from gensamp.mcmc.hamiltonian import hmc
from gensamp.mcmc.levels import (
    Mover,
    base_log_density,
    densities_per_point,
    log_ratio,
    measure,
    read_levels,
    read_metrics,
    read_mover,
    read_per_level,
    value_at,
)  # fmt: skip

__all__ = ["AisState", "ais"]


class AisState(NamedTuple):
    """position: like one event. log_weight: []. log_density: [], of the law it stands in. measured: see `levels.measure`."""

    position: Any
    log_weight: Any
    log_density: Any
    measured: Any


def ais(
    path: Path,
    *,
    levels: Any,
    step_sizes: Any,
    kernel: Callable = hmc,
    kernel_options: Mapping[str, Any] | None = None,
    inverse_mass_matrices: Any = None,
    num_moves: int = 1,
) -> Sampler:
    """Annealed importance sampling along a path.

    Args:
        path: with a log_density; its base has exact draws and a normalised density (or a truth that states its log normaliser).
            The base need not be the path's law at t = 0: the first weight is p_{t_1} / base.
        levels: [L] times that rise to 1. More levels, not longer moves, are what narrows the weights. Leaves.
        step_sizes: [L], or one number for all levels. Leaves.
        kernel: (target, step_size, **options) -> Sampler without end, such as `mala`, `hmc`, `random_walk`; a module-level
            function, made anew at each level. A fixed number of leapfrog steps may lead back to where it began at some level
            (see `hamiltonian`): fewer of them, or `dynamic_hmc`, then mix better.
        kernel_options: further arguments of the kernel: arrays are leaves, anything else is static.
        inverse_mass_matrices: [d] or [d, d] over the flattened event, alone or one per level [L, ...]; None leaves the
            kernel's own.
        num_moves: moves per level. Static.

    Returns:
        A finite Sampler of L steps. `log_weight` is such that logsumexp - log N over N draws estimates log Z. One step costs
        num_moves steps of the kernel and its init, and one density (two where the path is neither geometric nor tempered).

    Raises:
        ValueError: path or base lack a density, levels do not rise to 1, or shapes differ.
        TypeError: the path is no Path, or the kernel no function.

    Source: Neal 2001.
    """
    mover = read_mover(path, kernel, kernel_options, "ais")
    template = path.base.template
    if not isinstance(num_moves, int) or num_moves < 1:
        raise ValueError(f"ais got num_moves {num_moves!r}; expected an integer of at least 1")
    levels = read_levels(levels, template, "ais")
    return Sampler(
        start=path.base.exact,
        init=bind(_init, base_log_density(path.base, "ais"), mover),
        step=bind(
            _step, mover, levels, read_per_level(step_sizes, levels, "ais", "step_sizes"),
            read_metrics(inverse_mass_matrices, levels, template, "ais"), Static(num_moves),
        ),
        position=bind(_position),
        log_weight=bind(_log_weight),
        num_steps=levels.size,
        traits=Traits(law="asymptotic"),
    )  # fmt: skip


def _init(base, mover: Mover, key, position):
    del key
    zero = scalar(0.0, position)
    log_density = jnp.asarray(base(position), zero.dtype)
    return strong(AisState(position, zero, log_density, measure(mover.log_density, position)))


def _step(mover: Mover, levels, step_sizes, metrics, num_moves, key, state, index):
    t = levels[index]
    here = value_at(mover.log_density, state.measured, t, state.position)
    change = log_ratio(here, state.log_density)
    metric = None if metrics is None else metrics[index]
    position, _, info = mover(t, step_sizes[index], metric, key, state.position, num_moves.value, index)
    measured = measure(mover.log_density, position)
    log_density = value_at(mover.log_density, measured, t, position)
    cost = densities_per_point(mover.log_density)
    info = add_info(info, Info.of(densities=cost or 2, acceptance=0.0, diverged=~jnp.isfinite(change)))
    return strong(AisState(position, state.log_weight + change, log_density, measured)), info


def _position(state):
    return state.position


def _log_weight(state):
    return state.log_weight
