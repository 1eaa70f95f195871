"""Where to put the levels of parallel tempering: equal rejection, found from the communication barrier.

With r_i the rejection rate of the swap between levels i - 1 and i, the barrier up to level k is

    Lambda(t_k) = r_1 + ... + r_k,    Lambda = Lambda(1)

to second order in the spacing, whatever the levels (Syed, Bouchard-Cote, Deligiannidis and Doucet 2022). It belongs to the
path, not to the schedule. Levels with equal increments of Lambda have equal rejection rates, and the highest round trip rate
of the non-reversible scheme,

    tau = 1 / (2 + 2 sum_i r_i / (1 - r_i)),    which tends to 1 / (2 + 2 Lambda) from below

as replicas are added. `tune_schedule` iterates, as they do: run, estimate Lambda(t) by monotone interpolation, place the levels
anew, each round twice as long as the last. Step sizes and metrics per level start from `tune_levels`, which also gives the
first levels, and step sizes follow each replica's acceptance from round to round.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gensamp.clock import compile_clock
from gensamp.core import Bill, Path, PyTree, begin, check_key
from gensamp.mcmc.hamiltonian import hmc
from gensamp.mcmc.level_schedule import tune_levels
from gensamp.mcmc.tempering import parallel_tempering, round_trips

__all__ = ["Barrier", "TunedSchedule", "communication_barrier", "tune_schedule"]

STEPS = 50
# A rejection rate of 1 would say nothing about where the barrier lies within the pair.
MOST = 0.999


@dataclass(frozen=True, eq=False)
class Barrier:
    """The communication barrier of a path, known at some levels. levels, cumulative: [replica], Lambda(t) at each."""

    levels: np.ndarray
    cumulative: np.ndarray

    @property
    def total(self) -> float:
        """Lambda: the rejections summed over the path."""
        return float(self.cumulative[-1])

    @property
    def best_rate(self) -> float:
        """Round trips per step that no schedule exceeds, 1 / (2 + 2 Lambda)."""
        return 1 / (2 + 2 * self.total)

    def at(self, t: Any) -> np.ndarray:
        """Lambda(t), by monotone cubic interpolation (Fritsch and Carlson 1980)."""
        return self._interpolated()(np.asarray(t, float))

    def local(self, t: Any) -> np.ndarray:
        """The local barrier, dLambda / dt."""
        return self._interpolated().derivative()(np.asarray(t, float))

    def schedule(self, num_replicas: int) -> np.ndarray:
        """Levels [num_replicas] with equal increments of Lambda."""
        wanted = np.linspace(0, self.total, num_replicas)
        low, high = np.full(num_replicas, self.levels[0]), np.full(num_replicas, self.levels[-1])
        # Sixty halvings exhaust float64; Lambda(t) may be flat, where its inverse is no function.
        for _ in range(60):
            middle = (low + high) / 2
            below = self.at(middle) < wanted
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return np.concatenate([self.levels[:1], high[1:-1], self.levels[-1:]])

    def _interpolated(self):
        from scipy.interpolate import PchipInterpolator

        keep = np.concatenate([[True], np.diff(self.levels) > 0])
        return PchipInterpolator(self.levels[keep], self.cumulative[keep])


@dataclass(frozen=True, eq=False)
class TunedSchedule:
    """What `tune_schedule` found.

    levels, step_sizes: [replica]. inverse_mass_matrices: [replica, d]. barrier: Barrier. rejections: [replica - 1] of the last
    round, acceptances: [replica]. round_trip_rate: of the last round, per step, all replicas together; barrier.best_rate is its
    bound. position: [replica, ...], where the replicas stood at the end. bill: what it cost.
    """

    levels: jax.Array
    step_sizes: jax.Array
    inverse_mass_matrices: jax.Array | None
    barrier: Barrier
    rejections: np.ndarray
    acceptances: np.ndarray
    round_trip_rate: float
    position: PyTree
    bill: Bill

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `parallel_tempering` that it chose."""
        return {
            "levels": self.levels, "step_sizes": self.step_sizes, "inverse_mass_matrices": self.inverse_mass_matrices,
        }  # fmt: skip


def communication_barrier(levels: Any, rejections: Any) -> Barrier:
    """The barrier of a path from rejection rates measured at some levels.

    Args:
        levels: [replica], rising. rejections: [replica - 1], mean rejection rates of neighbouring pairs, or [..., replica - 1]
            to be averaged (Info.extra["rejections"] of a run).

    Raises:
        ValueError: shapes do not fit, or rates outside [0, 1].

    Source: Syed et al. 2022.
    """
    levels, rates = np.asarray(levels, float), np.asarray(rejections, float)
    rates = rates.reshape(-1, rates.shape[-1]).mean(0) if rates.ndim else rates
    if levels.ndim != 1 or rates.shape != (levels.size - 1,) or (np.diff(levels) < 0).any():
        raise ValueError(
            f"communication_barrier got levels {list(levels.shape)} and rejections {list(rates.shape)}; expected rising levels "
            "[replica] and [replica - 1]"
        )
    if not ((rates >= 0) & (rates <= 1)).all():
        raise ValueError(f"communication_barrier got rejections {rates}; expected rates in [0, 1]")
    return Barrier(levels, np.concatenate([[0.0], np.cumsum(np.minimum(rates, MOST))]))


def tune_schedule(
    key: jax.Array,
    path: Path,
    *,
    num_replicas: int | None = None,
    kernel: Callable = hmc,
    kernel_options: Mapping[str, Any] | None = None,
    num_moves: int = 1,
    num_rounds: int = 5,
    target_acceptance: float = 0.8,
    adapt_metric: bool = True,
) -> TunedSchedule:
    """Find levels, step sizes and metrics for `parallel_tempering`.

    Args:
        key: a typed key.
        path: as for `parallel_tempering`.
        num_replicas: static; None takes twice the pilot's barrier and one, at least 4 (Syed et al. 2022 on how many replicas to
            run where all of them share one device).
        kernel, kernel_options, num_moves: as they will be used.
        num_rounds: rounds of 50, 100, 200, ... steps; the rates reported are the last one's.
        target_acceptance: of the moves of each replica.
        adapt_metric: whether the kernel takes an `inverse_mass_matrix`, from the pilot's variances; otherwise step sizes alone.

    Returns:
        TunedSchedule.

    Raises:
        ValueError: an argument is out of range, or as for `parallel_tempering`.
    """
    check_key(key)
    for name, value, least in (("num_rounds", num_rounds, 1), ("num_replicas", num_replicas or 2, 2)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"tune_schedule got {name} {value!r}; expected an integer of at least {least}")
    if not 0 < target_acceptance < 1:
        raise ValueError(f"tune_schedule got target_acceptance {target_acceptance}; expected a share between 0 and 1")
    moves = {"kernel": kernel, "kernel_options": kernel_options, "num_moves": num_moves}
    began = time.perf_counter()
    with compile_clock() as clock:
        levels, log_steps, metrics, bill = _pilot(jax.random.fold_in(key, 0), path, num_replicas, moves, adapt_metric)
        following = levels
        for number in range(num_rounds):
            log_steps, metrics = _between(following, levels, log_steps), _between(following, levels, metrics)
            levels = following
            sampler = parallel_tempering(
                path, levels=levels, step_sizes=np.exp(log_steps), inverse_mass_matrices=_exp(metrics), report=True, **moves
            )
            lane = jax.random.fold_in(key, 1 + number)
            if number == 0:
                state = _begin(lane, sampler)
            state, extra, spent = _run(lane, sampler, state, STEPS * 2**number)
            bill += spent
            barrier = communication_barrier(levels, extra["rejections"])
            following = barrier.schedule(len(levels))
            log_steps = log_steps + extra["acceptances"].mean(0) - target_acceptance
    bill += Bill(wall_seconds=time.perf_counter() - began, compile_seconds=clock.seconds)
    levels, log_steps = (jnp.asarray(a, sampler.step.args[2].dtype) for a in (levels, log_steps))
    return TunedSchedule(
        levels=levels, step_sizes=jnp.exp(log_steps), inverse_mass_matrices=sampler.step.args[4], barrier=barrier,
        rejections=extra["rejections"].mean(0), acceptances=extra["acceptances"].mean(0),
        round_trip_rate=round_trips(extra["labels"]) / len(extra["labels"]), position=state.position, bill=bill,
    )  # fmt: skip


def _pilot(key, path, num_replicas, moves, adapt_metric):
    """Levels [replica], log step sizes, log metrics (or None) and the bill, from `tune_levels`."""
    found = tune_levels(key, path, num_levels=num_replicas, from_base=True, adapt_metric=adapt_metric, **moves)
    levels, log_steps = found.levels, np.log(found.step_sizes)
    metrics = None if found.inverse_mass_matrices is None else np.log(found.inverse_mass_matrices)
    if num_replicas is None:
        rows = np.linspace(0, len(levels) - 1, max(4, math.ceil(2 * found.barrier) + 1))
        levels, log_steps, metrics = (_between(rows, np.arange(len(levels)), a) for a in (levels, log_steps, metrics))
    # The seconds are counted by the caller's clock.
    return levels, log_steps, metrics, dataclasses.replace(found.bill, wall_seconds=0.0, compile_seconds=0.0)


def _run(key, sampler, state, num_steps: int):
    """The state after `num_steps` steps (a multiple of STEPS), what they reported [step, ...], and their bill."""
    extras, bill = [], Bill()
    for first in range(0, num_steps, STEPS):
        state, info = _advance(key, sampler, state, np.int32(first))
        info = jax.device_get(info)
        bill += Bill(*(int(np.sum(counts, dtype=np.int64)) for counts in (info.gradients, info.densities, info.forwards)))
        extras.append(info.extra)
    return state, jax.tree.map(lambda *parts: np.concatenate(parts), *extras), bill


@jax.jit
def _advance(key, sampler, state, first):
    def body(state, index):
        return sampler.step(jax.random.fold_in(key, index + 1), state, index)

    return jax.lax.scan(body, state, first + jnp.arange(STEPS, dtype=jnp.int32))


_begin = jax.jit(begin)


def _between(wanted, levels, values):
    """Values at other levels, by linear interpolation of each column."""
    if values is None or values.ndim == 1:
        return None if values is None else np.interp(wanted, levels, values)
    return np.stack([np.interp(wanted, levels, column) for column in values.T], 1)


def _exp(values):
    return None if values is None else np.exp(values)
