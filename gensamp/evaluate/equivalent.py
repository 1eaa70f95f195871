"""How many independent exact draws would leave the same error: the one number that compares a chain with a learned map.

For n independent draws of P the energy distance's V-statistic against P itself has the expectation E|X - X'| / n, exactly and
for every law. Read backwards, draws that leave the error e are worth

    n_eq = E|Y - Y'| / e,        e = D_V^2(draws, reference) - E|Y - Y'| / m,

where the second term takes away what the m reference draws themselves contribute. Correlation and bias both enter e: for an
unbiased chain n_eq is an ESS for the whole law, and for a biased map it stops growing with the number of draws.

Uncertainty has two sources. The reference is finite: for the draws at hand e has the standard error sd(2 a - 2 b) / sqrt(m)
with a_j, b_j the mean distances of reference point j to the draws and to the reference. And one set of draws is lucky or
unlucky: under independence n e is a weighted sum of chi-squares, matched by a gamma law (Satterthwaite). Both widen the
interval. Where e is not above twice its standard error only a lower bound is known, and `resolved` is False.
"""

from dataclasses import dataclass

import numpy as np

from gensamp.evaluate.distances import mean_distances, normalised, spread

__all__ = ["EquivalentSize", "Yard", "equivalent_sample_size"]

_LEVEL = 0.95
_SUBSET = 1500


@dataclass(frozen=True)
class EquivalentSize:
    """`value` draws (a lower bound unless `resolved`), its 95% interval, and the error e with its standard error."""

    value: float
    low: float
    high: float
    resolved: bool
    error: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.value:,.0f}" if self.resolved else f">={self.value:,.0f}"


class Yard:
    """What a reference [m, d] adds to every comparison with it, computed once: its spread, b_j and its null law's shape."""

    def __init__(self, reference: np.ndarray):
        m = len(reference)
        if np.ndim(reference) != 2 or m < 10:
            raise ValueError(f"reference has shape {np.shape(reference)}; expected [m, d] with at least 10 draws")
        self.reference = np.asarray(reference)
        self.to_itself = mean_distances(reference, reference, normalised(None, m))
        self.spread = float(self.to_itself.mean() * m / (m - 1))
        self.gamma_shape = _gamma_shape(self.reference[:_SUBSET])

    def errors(self, x: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """D_V^2 to P without the reference's share, and its standard error given x: [k] for k sets of weights [n, k]."""
        m = len(self.reference)
        a = mean_distances(self.reference, x, weights)
        distance = 2.0 * a.mean(0) - self.to_itself.mean() - (mean_distances(x, x, weights) * weights).sum(0)
        return distance - self.spread / m, np.std(2.0 * (a - self.to_itself[:, None]), axis=0) / np.sqrt(m)

    def error(self, x: np.ndarray, weight: np.ndarray | None = None) -> tuple[float, float]:
        """`errors` for one set of weights [n], equal ones for None."""
        error, sd = self.errors(x, normalised(weight, len(x))[:, None])
        return float(error[0]), float(sd[0])

    def equivalent(self, x: np.ndarray, weight: np.ndarray | None = None) -> EquivalentSize:
        """The equivalent sample size of draws x [n, d]."""
        from scipy.stats import gamma

        error, sd = self.error(x, weight)
        unlucky = gamma.ppf([(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], self.gamma_shape, scale=1.0 / self.gamma_shape)
        low = self.spread / (max(error, 0.0) + 2.0 * sd)
        resolved = error > 2.0 * sd
        high = self.spread / (error - 2.0 * sd) * unlucky[1] if resolved else np.inf
        return EquivalentSize(self.spread / error if resolved else low, low * unlucky[0], high, bool(resolved), error, sd)


def equivalent_sample_size(x: np.ndarray, reference: np.ndarray, *, weight: np.ndarray | None = None) -> EquivalentSize:
    """How many independent draws of the reference's law leave the error that the draws x leave.

    Args:
        x: [n, d] draws, correlated, biased or weighted as they come; weight: [n] or None.
        reference: [m, d] independent exact draws. Sizes up to about m / 4 can be resolved.

    Raises:
        ValueError: shapes that do not match, or a reference of fewer than 10 draws.
    """
    if np.ndim(x) != 2 or np.shape(x)[1] != np.shape(reference)[1]:
        raise ValueError(f"draws have shape {np.shape(x)} for a reference of {np.shape(reference)}; expected [n, d] and [m, d]")
    return Yard(reference).equivalent(x, weight)


def _gamma_shape(y: np.ndarray) -> float:
    """(sum lambda)^2 / (2 sum lambda^2) over eigenvalues of the distance-induced kernel: mean^2 / variance of the null law."""
    from scipy.spatial.distance import cdist

    distances = cdist(y, y)
    centred = distances - distances.mean(0)[None, :] - distances.mean(1)[:, None] + distances.mean()
    # The diagonal is -E|X-X'| plus fluctuations and would count as lambda^2: it is left out.
    n = len(y)
    squares = ((centred**2).sum() - (np.diag(centred) ** 2).sum()) / (n * (n - 1))
    return float(spread(y) ** 2 / (2.0 * squares))
