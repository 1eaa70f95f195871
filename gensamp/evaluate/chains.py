"""Has the chain arrived, and how much is a correlated draw worth: ESS and rank R-hat, per coordinate.

Bulk and tail effective sample size and the rank-normalised split R-hat of Vehtari, Gelman, Simpson, Carpenter and Buerkner
(2021), computed by ArviZ. They belong to the first row of the design's table: samplers without end, whose draws are
correlated. Independent draws of a learned map need none of them; `evaluate.equivalent_sample_size` puts both on one scale.

Positions are trees of arrays [chain, draw, ...event]; results are trees like one event.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

__all__ = ["Chains", "coordinate_names", "diagnose", "diagnose_coordinates", "ess_bulk", "ess_tail", "ess_weights", "rhat"]

FEWEST_DRAWS = 8


@dataclass(frozen=True)
class Chains:
    """The three diagnostics of every coordinate, flattened to [coordinates] in the order of `names`; NaN where undefined."""

    names: tuple[str, ...]
    ess_bulk: np.ndarray
    ess_tail: np.ndarray
    rhat: np.ndarray

    def worst(self) -> dict[str, tuple[str, float]]:
        """The least ESS and the largest R-hat with the coordinate they belong to; NaN counts as worst."""
        return {
            "ess_bulk": self._extreme(np.where(np.isnan(self.ess_bulk), -np.inf, self.ess_bulk).argmin(), self.ess_bulk),
            "ess_tail": self._extreme(np.where(np.isnan(self.ess_tail), -np.inf, self.ess_tail).argmin(), self.ess_tail),
            "rhat": self._extreme(np.where(np.isnan(self.rhat), np.inf, self.rhat).argmax(), self.rhat),
        }

    def _extreme(self, index, values) -> tuple[str, float]:
        return self.names[int(index)], float(values[int(index)])


def diagnose(position: Any) -> Chains:
    """All three diagnostics of a tree of positions [chain, draw, ...event].

    Raises:
        ValueError: fewer than eight draws per chain, or leaves that do not share [chain, draw].
    """
    _check(position)
    leaves = jax.tree.leaves(position)
    flat = np.concatenate([np.asarray(a, np.float64).reshape(*a.shape[:2], -1) for a in leaves], axis=2)
    return diagnose_coordinates(flat, coordinate_names(position, lead=2))


def diagnose_coordinates(flat: np.ndarray, names: tuple[str, ...]) -> Chains:
    """All three diagnostics of coordinates [chain, draw, coordinates] that have names already."""
    return Chains(names, _ess(flat, "bulk"), _ess(flat, "tail"), _rhat(flat))


def ess_bulk(position: Any) -> Any:
    """Effective sample size of the centre of the law, from rank-normalised draws.

    Args:
        position: tree of arrays [chain, draw, ...event].

    Returns:
        A tree like one event, over all chains together. NaN for a coordinate that is not finite or in which a chain never
        moved.
    """
    return _each_leaf(position, lambda a: _ess(a, "bulk"))


def ess_tail(position: Any) -> Any:
    """Effective sample size of the 5% and 95% quantiles, the smaller of the two; see `ess_bulk`."""
    return _each_leaf(position, lambda a: _ess(a, "tail"))


def rhat(position: Any) -> Any:
    """Rank-normalised split R-hat: 1 when the chains agree; above 1.01 they have not mixed. See `ess_bulk`."""
    return _each_leaf(position, _rhat)


def ess_weights(log_weight: Any) -> float:
    """Kish's effective sample size (sum w)^2 / sum w^2 of log weights of any shape."""
    log_weight = np.ravel(np.asarray(log_weight, np.float64))
    weight = np.exp(log_weight - log_weight.max())
    return float(weight.sum() ** 2 / (weight**2).sum())


def coordinate_names(tree: Any, lead: int = 0) -> tuple[str, ...]:
    """A name for each coordinate of an event: x[0], theta[3], image[0,2,0]; `lead` axes of each leaf are not the event's."""
    names = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        stem = ".".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path) or "x"
        shape = tuple(leaf.shape[lead:])
        names += [f"{stem}[{','.join(map(str, i))}]" if shape else stem for i in np.ndindex(*shape)]
    return tuple(names)


def _each_leaf(position: Any, diagnostic: Callable) -> Any:
    _check(position)
    return jax.tree.map(
        lambda a: diagnostic(np.asarray(a, np.float64).reshape(*a.shape[:2], -1)).reshape(a.shape[2:]), position
    )


def _check(position: Any) -> None:
    shapes = [tuple(np.shape(a)) for a in jax.tree.leaves(position)]
    if not shapes or any(len(s) < 2 or s[:2] != shapes[0][:2] for s in shapes) or shapes[0][1] < FEWEST_DRAWS:
        raise ValueError(
            f"position has shapes {shapes}; expected leading axes [chain, draw] shared by all leaves, "
            f"with at least {FEWEST_DRAWS} draws per chain"
        )


def _usable(flat: np.ndarray) -> np.ndarray:
    # ArviZ gives a coordinate that never moves the full ESS, which would crown a chain that rejects everything.
    return np.isfinite(flat).all((0, 1)) & (np.ptp(flat, axis=1) > 0).all(0)


def _ess(flat: np.ndarray, method: str) -> np.ndarray:
    from arviz_stats.base import array_stats

    out = np.full(flat.shape[2], np.nan)
    usable = _usable(flat)
    if usable.any():
        prob = (0.05, 0.95) if method == "tail" else None
        out[usable] = array_stats.ess(flat[..., usable], chain_axis=0, draw_axis=1, method=method, prob=prob)
    return out


def _rhat(flat: np.ndarray) -> np.ndarray:
    from arviz_stats.base import array_stats

    out = np.full(flat.shape[2], np.nan)
    usable = _usable(flat)
    if usable.any():
        out[usable] = array_stats.rhat(flat[..., usable], chain_axis=0, draw_axis=1)
    return out
