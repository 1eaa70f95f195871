"""Which modes were found, and are their weights right: the question a chain stuck in one mode answers wrongly with R-hat = 1.

A draw belongs to the nearest centre if it lies within that mode's radius, and otherwise to none. Reported are the modes found
(at least one draw within the radius), the total-variation error of the mode weights, 1/2 sum_k |share_k - weight_k| over the
assigned draws, the share of draws that belong to no mode, and what exact draws of the same number would give for the first
two.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Coverage", "mode_coverage"]


@dataclass(frozen=True)
class Coverage:
    """Modes found of how many, weight error in [0, 1], share outside all modes; `expected_*`: the same for exact draws."""

    found: int
    modes: int
    weight_error: float
    outside: float
    expected_found: float
    expected_weight_error: float


def mode_coverage(x: Any, centres: Any, weights: Any, radius: Any, *, weight: Any = None) -> Coverage:
    """Mode coverage of draws.

    Args:
        x: [n, ...event] draws; weight: [n] or None. centres: [modes, ...event]; weights: [modes], summing to one; radius:
        [modes].

    Raises:
        ValueError: shapes that do not match.
    """
    x, centres = np.asarray(x, np.float64), np.asarray(centres, np.float64)
    weights, radius = np.asarray(weights, np.float64), np.broadcast_to(np.asarray(radius, np.float64), (len(centres),))
    if x.ndim < 1 or x.shape[1:] != centres.shape[1:] or weights.shape != (len(centres),):
        raise ValueError(
            f"draws {x.shape}, centres {centres.shape}, weights {weights.shape}; expected [n, ...], [modes, ...], [modes]"
        )
    from scipy.spatial.distance import cdist

    p = np.full(len(x), 1.0 / len(x)) if weight is None else np.asarray(weight, np.float64) / np.sum(weight)
    distances = cdist(x.reshape(len(x), -1), centres.reshape(len(centres), -1))
    nearest = distances.argmin(1)
    inside = distances[np.arange(len(x)), nearest] <= radius[nearest]
    share = np.bincount(nearest[inside], p[inside], len(centres))
    found = np.bincount(nearest[inside & (p > 0)], minlength=len(centres)) > 0
    error = 0.5 * np.abs(share / share.sum() - weights).sum() if share.sum() > 0 else 1.0
    exact = np.random.default_rng(0).multinomial(len(x), weights / weights.sum(), size=200)
    return Coverage(
        int(found.sum()), len(centres), float(error), float(1.0 - share.sum()),
        float((exact > 0).sum(1).mean()), float(0.5 * np.abs(exact / len(x) - weights[None, :]).sum(1).mean()),
    )  # fmt: skip
