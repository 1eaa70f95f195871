"""Levels, step sizes and metrics for the samplers along a path, from one small run of adaptive SMC along it.

Adaptive SMC spends a population to find where the levels must lie; `ais`, `smc`, `waste_free_smc` and `parallel_tempering` take
levels as given, so that their draws stay unbiased. `tune_levels` hands what the one found to the others. Between the levels of
the pilot everything is interpolated, each being an equal stretch of the path: log p_s / p_t is nearly normal across it, with
variance -log(target_ess).
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from gensamp.clock import compile_clock
from gensamp.core import Bill, Path, check_key, draw
from gensamp.mcmc.hamiltonian import hmc
from gensamp.mcmc.smc import read_count
from gensamp.mcmc.smc_adaptive import adaptive_smc

__all__ = ["TunedLevels", "tune_levels"]

TARGET_ESS = 0.9


@dataclass(frozen=True, eq=False)
class TunedLevels:
    """What `tune_levels` found.

    levels, step_sizes: [L]. inverse_mass_matrices: [L, d], or None. acceptances: of the pilot's own levels. barrier: an
    estimate of the path's communication barrier (see `tune_schedule`). bill: what it cost.
    """

    levels: np.ndarray
    step_sizes: np.ndarray
    inverse_mass_matrices: np.ndarray | None
    acceptances: np.ndarray
    barrier: float
    bill: Bill

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of a sampler along the path that it chose."""
        return {
            "levels": self.levels, "step_sizes": self.step_sizes, "inverse_mass_matrices": self.inverse_mass_matrices,
        }  # fmt: skip


def tune_levels(
    key: jax.Array,
    path: Path,
    *,
    num_levels: int | None = None,
    from_base: bool = False,
    kernel: Callable = hmc,
    kernel_options: Mapping[str, Any] | None = None,
    num_moves: int = 1,
    num_particles: int = 512,
    target_acceptance: float = 0.8,
    adapt_metric: bool = True,
) -> TunedLevels:
    """Find levels, step sizes and metrics along a path.

    Args:
        key: a typed key.
        path: as for `adaptive_smc`.
        num_levels: L; None takes the pilot's own number, at which a population keeps nine tenths of itself per level (for `ais`
            many times as many).
        from_base: whether the first level is 0, the base, as `parallel_tempering` has it.
        kernel, kernel_options, num_moves, num_particles, target_acceptance: as for `adaptive_smc`.
        adapt_metric: whether the kernel takes an `inverse_mass_matrix`; it then is the particles' variances.

    Returns:
        TunedLevels.

    Raises:
        ValueError: the pilot found no way to t = 1, or as for `adaptive_smc`.
    """
    check_key(key)
    if num_levels is not None:
        read_count(num_levels, 1 + from_base, "tune_levels", "num_levels")
    sampler = adaptive_smc(
        path, num_particles=num_particles, num_moves=num_moves, kernel=kernel, kernel_options=kernel_options,
        target_ess=TARGET_ESS, target_acceptance=target_acceptance, metric="diagonal" if adapt_metric else "none", report=True,
    )  # fmt: skip
    began = time.perf_counter()
    with compile_clock() as clock:
        info = jax.device_get(_draw(key, sampler).info)
    if info.diverged:
        raise ValueError(
            "tune_levels found no way along the path: its particles lost all weight or it ran out of levels; use a wider base, "
            "or check that the target's density is finite where the base draws"
        )
    number = int(info.extra["num_levels"])
    found = {name: np.asarray(value, np.float64)[:number] for name, value in info.extra.items() if name != "num_levels"}
    num_levels = number + from_base if num_levels is None else num_levels
    wanted = np.linspace(0, number, num_levels) if from_base else np.linspace(0, number, num_levels + 1)[1:]
    own = np.arange(1, number + 1)
    metrics = None
    if adapt_metric:
        columns = np.log(found["inverse_mass_matrices"]).T
        metrics = np.exp(np.stack([np.interp(wanted, own, column) for column in columns], axis=1))
    return TunedLevels(
        levels=np.interp(wanted, np.arange(number + 1), np.concatenate([[0.0], found["levels"]])),
        step_sizes=np.exp(np.interp(wanted, own, np.log(found["step_sizes"]))),
        inverse_mass_matrices=metrics,
        acceptances=found["acceptances"],
        # A swap across one of its levels is rejected with probability erf(sqrt(variance) / 2).
        barrier=number * math.erf(math.sqrt(-math.log(TARGET_ESS)) / 2),
        bill=Bill(
            int(info.gradients), int(info.densities), int(info.forwards), time.perf_counter() - began, clock.seconds
        ),
    )  # fmt: skip


_draw = jax.jit(draw)
