"""Where exact draws of a target come from, and the floors measured with them.

A `Judge` holds two independent sets of exact draws of one target: a reference, against which everything is measured, and a
pool, whose subsets play the part of a perfect sampler and give each statistic its floor. In this order they come from

    target.exact                      fresh draws for both,
    truth.reference and target.data   held-out events for the reference, the training events as the pool,
    truth.reference                   one random half each,
    target.data                       one random half each (the caller has not held anything out).

Coordinates are centred by the median and scaled by the interquartile range of the exact draws, so that none of them
dominates a distance; an array event (an image, a lattice) has one scale. A target with a constrain (a posterior) is judged in
the user's
space: draws, and exact draws too, are mapped there first; reference draws may be given there already.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from gensamp.core import Target, check_key
from gensamp.evaluate.chains import coordinate_names
from gensamp.evaluate.distances import Distance, Floor, mean_distances, normalised, sliced_wasserstein
from gensamp.evaluate.equivalent import Yard

__all__ = ["Judge", "Moments"]

_SLICED_REFERENCE = 4096


class Moments(NamedTuple):
    """Unscaled mean, sd and standard error of the mean, each [d]; the sd of an array event is one for all its coordinates."""

    mean: np.ndarray
    sd: np.ndarray
    error: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, groups: np.ndarray) -> "Moments":
        """Of independent draws [n, d]; coordinates of the same group share their sd."""
        variance = np.bincount(groups, x.var(0)) / np.bincount(groups)
        return cls(x.mean(0), np.sqrt(variance)[groups], x.std(0) / np.sqrt(len(x)))


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
    """Exact draws of one target and what was learned from them; make one with `Judge.of`.

    reference [m, d] and pool [p, d]: scaled coordinates. names: of the d coordinates. source: where the exact draws come from.
    moments: of all exact draws; reference_moments: of the target's reference draws if those are others, or None. yard: the
    reference's share in every equivalent sample size. num_draws: the most draws that can be judged beside a floor, since
    subsets of the pool must stay nearly independent. replicates: sets of exact draws behind each floor.
    """

    target: Target
    names: tuple[str, ...]
    source: str
    centre: np.ndarray
    scale: np.ndarray
    reference: np.ndarray
    pool: np.ndarray
    moments: "Moments"
    reference_moments: "Moments | None"
    yard: Yard
    num_draws: int
    replicates: int
    floors: dict = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls, key: jax.Array, target: Target, *, num_draws: int = 2_000, num_reference: int = 16_384, replicates: int = 16
    ) -> "Judge":
        """A judge of draws from `target`.

        Args:
            key: consumed for exact draws and for random halves.
            num_draws: draws that will be judged at a time; fewer where fewer exact draws exist.
            num_reference: reference draws wanted, if the target has an exact sampler.
            replicates: sets of exact draws behind each floor.

        Raises:
            ValueError: the target has neither exact draws, nor reference draws, nor data.
        """
        check_key(key)
        reference, pool, source = _exact_draws(key, target, num_reference, 4 * num_draws)
        names, grouped = coordinate_names(reference, lead=1), _groups(reference)
        reference = _matrix(reference)
        if pool is None:
            rows = np.asarray(jax.random.permutation(jax.random.fold_in(key, 1), len(reference)))
            reference, pool = reference[rows[: len(rows) // 2]], reference[rows[len(rows) // 2 :]]
        else:
            pool = _matrix(pool)
        everything = np.concatenate([reference, pool])
        centre, scale = _centre_and_scale(everything, grouped)
        known = target.truth.reference if target.exact is not None and target.truth is not None else None
        others = None if known is None else Moments.of(_matrix(_in_user_space(target, known)), grouped)
        scaled = (reference - centre[None, :]) / scale[None, :]
        return cls(
            target, names, source, centre, scale, scaled, (pool - centre[None, :]) / scale[None, :],
            Moments.of(everything, grouped), others, Yard(scaled), min(num_draws, len(pool) // 3), replicates,
        )  # fmt: skip

    def coordinates(self, position: Any) -> np.ndarray:
        """Events [n, ...event] of the target as unscaled coordinates [n, d] in the space that is judged."""
        return _matrix(_in_user_space(self.target, position))

    def scaled(self, coordinates: np.ndarray) -> np.ndarray:
        """Unscaled coordinates [n, d] as the distances see them."""
        return (coordinates - self.centre[None, :]) / self.scale[None, :]

    def energy(self, x: np.ndarray, weight: np.ndarray | None = None) -> Distance:
        """The squared energy distance of scaled draws [n, d] to the reference, beside its floor."""
        return Distance(self._energy(x, weight), self._floor("energy", len(x)))

    def sliced(self, x: np.ndarray, weight: np.ndarray | None = None) -> Distance:
        """The sliced Wasserstein-2 distance of scaled draws [n, d] to the reference, beside its floor."""
        return Distance(self._sliced(x, weight), self._floor("sliced", len(x)))

    def _energy(self, x, weight=None) -> float:
        p = normalised(weight, len(x))
        within = mean_distances(x, x, p) @ p
        return float(max(2.0 * mean_distances(x, self.reference, normalised(None, len(self.reference))) @ p - within
                         - self.yard.to_itself.mean(), 0.0))  # fmt: skip

    def _sliced(self, x, weight=None) -> float:
        return sliced_wasserstein(x, self.reference[:_SLICED_REFERENCE], x_weight=weight)

    def _floor(self, statistic: str, n: int) -> Floor:
        if n > self.num_draws:
            raise ValueError(f"{n} draws for {len(self.pool)} exact ones; expected at most {self.num_draws}: judge fewer draws")
        if (statistic, n) not in self.floors:
            measure = {"energy": self._energy, "sliced": self._sliced}[statistic]
            rng = np.random.default_rng(n)
            values = [measure(rng.choice(self.pool, n, replace=False)) for _ in range(self.replicates)]
            # Subsets of one finite pool overlap: their spread is short by the finite-population factor.
            sd = np.std(values, ddof=1) / np.sqrt(1.0 - n / len(self.pool))
            self.floors[statistic, n] = Floor(float(np.mean(values)), float(sd), self.replicates)
        return self.floors[statistic, n]


def _exact_draws(key, target, num_reference, num_pool) -> tuple[Any, Any, str]:
    """(reference, pool or None, source), trees with a leading axis in the space in which they are compared."""
    known = target.truth.reference if target.truth is not None else None
    if target.exact is not None:
        keys = jax.random.split(jax.random.fold_in(key, 0), num_reference + num_pool)
        draws = _in_user_space(target, jax.tree.map(np.asarray, jax.jit(jax.vmap(target.exact))(keys)))
        first, second = (jax.tree.map(lambda a: a[part], draws) for part in (slice(num_reference), slice(num_reference, None)))  # noqa: B023
        return first, second, "exact sampler"
    if known is not None and target.data is not None:
        return _in_user_space(target, known), _in_user_space(target, target.data), "held-out data"
    if known is not None:
        source = target.truth.source if target.truth is not None else ""
        return _in_user_space(target, known), None, source or "reference draws"
    if target.data is not None:
        return _in_user_space(target, target.data), None, "the data themselves"
    raise ValueError(
        f"target '{target.name}' has no exact sampler, no reference draws and no data to be judged against; "
        "give it exact=, or truth=Truth(reference=...)"
    )


def _in_user_space(target: Target, events: Any) -> Any:
    """Events through target.constrain, as the quantities that the reference names if it does; reference draws as they are."""
    known = target.truth.reference if target.truth is not None else None
    named = known is not None and not _like_events(known, target.template)
    if named and target.constrain is None:
        raise ValueError(
            f"the reference draws of '{target.name}' do not look like its events; give the target a constrain that maps to them"
        )
    if target.constrain is None or (named and events is known):
        return events
    mapped = _constrain(target.constrain, events)
    if known is None or not named:
        return mapped
    if missing := sorted(set(known) - set(mapped)):
        raise ValueError(
            f"constrain of '{target.name}' gives {sorted(mapped)}; expected {missing} too, as in the reference draws"
        )
    return {name: mapped[name] for name in known}


@jax.jit
def _constrain(constrain, events):
    return jax.vmap(constrain)(events)


def _like_events(tree, template) -> bool:
    if jax.tree.structure(tree) != jax.tree.structure(template):
        return False
    return all(a.shape[1:] == b.shape for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(template), strict=True))


def _matrix(tree: Any) -> np.ndarray:
    leaves = [np.asarray(a, np.float64) for a in jax.tree.leaves(tree)]
    return np.concatenate([a.reshape(len(a), -1) for a in leaves], axis=1)


def _groups(tree: Any) -> np.ndarray:
    """[d]: which coordinates share a scale; those of an array event do, those of a vector do not."""
    groups, used = [], 0
    for leaf in jax.tree.leaves(tree):
        size = int(np.prod(leaf.shape[1:]))
        shared = leaf.ndim > 2
        groups.append(np.full(size, used) if shared else used + np.arange(size))
        used += 1 if shared else size
    return np.concatenate(groups)


def _centre_and_scale(x: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, centre, high = np.quantile(x, [0.25, 0.5, 0.75], axis=0)
    scale = np.empty(x.shape[1])
    for group in np.unique(groups):
        members = groups == group
        if members.sum() > 1:
            centre[members], scale[members] = x[:, members].mean(0), x[:, members].std()
        else:
            scale[members] = (high - low)[members] / 1.349
    return centre, np.where(scale > 0, scale, 1.0)
