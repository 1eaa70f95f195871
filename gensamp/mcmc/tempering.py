"""Parallel tempering: replicas at every level of a path, which move where they are and exchange places.

At levels 0 = t_0 < ... < t_N = 1 stand replicas x_0, ..., x_N with law prod_i p_{t_i}. One step is

    explore    each replica moves by a kernel that leaves p_{t_i} invariant; the one at t_0 is drawn afresh from the base
    swap       neighbours (i, i + 1) exchange places with probability min(1, exp(f_i + b_i)),
               f_i = log p_{t_{i+1}}(x_i) - log p_{t_i}(x_i),    b_i = log p_{t_i}(x_{i+1}) - log p_{t_{i+1}}(x_{i+1})

for all even i at even steps and all odd i at odd ones. That deterministic turn makes the index process non-reversible: a
replica on its way up goes on up until a swap fails, and round trips between the base and the target do not become rarer as
replicas are added (Syed, Bouchard-Cote, Deligiannidis and Doucet 2022; even-odd swaps in turn are Okabe et al. 2001). With a
random turn the process is reversible, diffuses, and is worse by a factor of order N.

The draw is the replica at t = 1. Row two of the table by its path, row one by its form: no end, every state is a draw.
`gensamp.mcmc.tempering_schedule` finds the levels.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gensamp.core import Info, Path, PyTree, Sampler, Static, bind, require
from gensamp.mcmc.arguments import strong
from gensamp.mcmc.hamiltonian import hmc
from gensamp.mcmc.levels import (
    Mover,
    densities_per_point,
    holds_base,
    measure,
    read_levels,
    read_metrics,
    read_mover,
    read_per_level,
    value_at,
)
from gensamp.mcmc.smc import read_count

__all__ = ["TemperingState", "parallel_tempering", "round_trips"]


class TemperingState(NamedTuple):
    """position: [replica, ...], from the base's side to the target's. labels: [replica], which replica stands at each level.

    It caches no density: every replica is initialised anew at its level before it moves. Labels begin in random order; only
    their exchange means anything.
    """

    position: Any
    labels: Any


def parallel_tempering(
    path: Path,
    *,
    levels: Any,
    step_sizes: Any,
    kernel: Callable = hmc,
    kernel_options: Mapping[str, Any] | None = None,
    inverse_mass_matrices: Any = None,
    num_moves: int = 1,
    swap: str = "nonreversible",
    start: Any = None,
    report: bool = False,
) -> Sampler:
    """Parallel tempering along a path.

    Args:
        path: with a log_density, and a base with exact draws. Where the base is the law at t = 0 (every path but a tempered
            one), that replica is drawn afresh at every step.
        levels: [replica] times that rise from 0 to 1, at least two. Leaves. See `tune_schedule`.
        step_sizes: [replica], or one number; the first is not used where that replica is drawn afresh. Leaves.
        kernel, kernel_options, inverse_mass_matrices: as for `ais`.
        num_moves: moves per step and replica. Static.
        swap: "nonreversible" (even and odd pairs in turn) or "reversible" (a fair coin decides).
        start: (key) -> position of the replica at t = 1; None is a draw from the base, as all other replicas are.
        report: Info.extra carries rejections [replica - 1] (1 - swap probability, of all pairs), acceptances [replica] of the
            moves, labels [replica] (see `round_trips`) and log_ratios [replica - 1, 2], f_i and b_i (see `stepping_stone`).

    Returns:
        A Sampler without end. One step costs, per replica, num_moves steps of the kernel and its init (none for the replica
        drawn afresh) and one density (three where the path is neither geometric nor tempered).

    Raises:
        ValueError: levels do not rise from 0 to 1, or as for `ais`.

    Source: Geyer 1991; Syed et al. 2022.
    """
    by = "parallel_tempering"
    template = path.base.template
    mover = read_mover(path, kernel, kernel_options, by)
    levels = read_levels(levels, template, by)
    if levels.size < 2 or (not isinstance(levels, jax.core.Tracer) and levels[0] != 0):
        raise ValueError(f"{by} got levels {levels}; expected at least two, from exactly 0 (the base) to 1")
    if swap not in ("nonreversible", "reversible"):
        raise ValueError(f"{by} got swap {swap!r}; expected 'nonreversible' or 'reversible'")
    exact = require(path.base, "exact", by)
    if start is not None and not callable(start):
        raise TypeError(f"{by} got a start of type {type(start).__name__}; expected a function (key) -> position")
    start = exact if start is None else start
    fixed = (read_count(num_moves, 1, by, "num_moves"), swap == "nonreversible", holds_base(path), report)
    return Sampler(
        start=start if isinstance(start, jax.tree_util.Partial) else jax.tree_util.Partial(start),
        init=bind(_init, exact, levels),
        step=bind(
            _step, mover, exact, levels, read_per_level(step_sizes, levels, by, "step_sizes"),
            read_metrics(inverse_mass_matrices, levels, template, by), Static(fixed),
        ),
        position=bind(_position),
    )  # fmt: skip


def round_trips(labels: Any) -> int:
    """How many times replicas went from the base to the target and back.

    Args:
        labels: [step, replica], from Info.extra of a sampler made with report=True.
    """
    import numpy as np

    place = np.argsort(np.asarray(labels), axis=1)
    last = place.shape[1] - 1
    trips = 0
    for visits in place.T:
        ends = visits[(visits == 0) | (visits == last)]
        turns = ends[np.flatnonzero(np.diff(ends, prepend=-1))]
        trips += max(0, (len(turns) - int(len(turns) > 0 and turns[0] == last) - 1) // 2)
    return trips


def _init(exact, levels, key, position):
    key_position, key_labels = jax.random.split(key)
    others = jax.vmap(exact)(jax.random.split(key_position, levels.size - 1))
    replicas = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), others, position)
    labels = jax.random.permutation(key_labels, jnp.arange(levels.size, dtype=jnp.int32))
    return strong(TemperingState(replicas, labels))


def _step(mover: Mover, exact, levels, step_sizes, metrics, fixed, key, state, index):
    num_moves, in_turn, afresh, report = fixed.value
    key_moves, key_base, key_turn, key_swaps = jax.random.split(key, 4)
    rule = (mover, exact if afresh else None, levels, step_sizes, metrics, num_moves)
    position, info = _explore(*rule, key_moves, key_base, state.position, index)
    log_ratios = _log_ratios(mover, levels, position)
    # A pair of which one density is not finite does not exchange.
    sums = log_ratios.sum(1)
    probability = jnp.where(jnp.isfinite(sums), jnp.exp(jnp.minimum(sums, 0)), 0)
    pairs = jnp.arange(levels.size - 1, dtype=jnp.int32)
    turn = index % 2 if in_turn else jax.random.bernoulli(key_turn).astype(jnp.int32)
    uniform = jax.random.uniform(key_swaps, probability.shape, probability.dtype)
    swapped = ((pairs % 2) == turn) & (uniform < probability)
    order = exchanged(swapped)
    extra = ()
    if report:
        acceptances = info.acceptance.astype(levels.dtype)
        acceptances = jnp.concatenate([jnp.ones((levels.size - acceptances.size,), levels.dtype), acceptances])
        extra = {
            "rejections": 1 - probability, "acceptances": acceptances, "labels": state.labels[order], "log_ratios": log_ratios,
        }  # fmt: skip
    densities = levels.size if densities_per_point(mover.log_density) else 3 * levels.size - 2
    spent = Info.of(
        gradients=info.gradients.sum(), densities=info.densities.sum() + densities, forwards=info.forwards.sum(),
        acceptance=info.acceptance.mean(), diverged=info.diverged[-1], extra=extra,
    )  # fmt: skip
    return strong(TemperingState(jax.tree.map(lambda a: a[order], position), state.labels[order])), spent


def exchanged(swapped: jax.Array) -> jax.Array:
    """The order [replica] of replicas after swaps [replica - 1] of disjoint pairs."""
    up = jnp.concatenate([swapped, jnp.zeros((1,), bool)]).astype(jnp.int32)
    down = jnp.concatenate([jnp.zeros((1,), bool), swapped]).astype(jnp.int32)
    return jnp.arange(up.size, dtype=jnp.int32) + up - down


def _explore(mover, exact, levels, step_sizes, metrics, num_moves, key, key_base, position, index) -> tuple[PyTree, Info]:
    """Every replica moved, and the Info [replica] of those that a kernel moved."""
    first = 0 if exact is None else 1

    def move(t, step_size, metric, key, position):
        position, _, info = mover(t, step_size, metric, key, position, num_moves, index)
        return position, info

    keys = jax.random.split(key, levels.size - first)
    levels, step_sizes, metrics, moving = jax.tree.map(lambda a: a[first:], (levels, step_sizes, metrics, position))
    moved, info = jax.vmap(move)(levels, step_sizes, metrics, keys, moving)
    if exact is not None:
        moved = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), exact(key_base), moved)
    return moved, info


def _log_ratios(mover, levels, position) -> jax.Array:
    """f_i and b_i [replica - 1, 2]."""
    at = jax.vmap(value_at, in_axes=(None, 0, 0, 0))
    measured = jax.vmap(measure, in_axes=(None, 0))(mover.log_density, position)
    lower, upper = ((measured, position), (measured, position))
    lower, upper = jax.tree.map(lambda a: a[:-1], lower), jax.tree.map(lambda a: a[1:], upper)
    own = at(mover.log_density, measured, levels, position)
    forward = at(mover.log_density, lower[0], levels[1:], lower[1]) - own[:-1]
    backward = at(mover.log_density, upper[0], levels[:-1], upper[1]) - own[1:]
    return jnp.stack([forward, backward], axis=1)


def _position(state):
    return jax.tree.map(lambda a: a[-1], state.position)
