"""Where chains may begin: scattered over the unconstrained space, at draws from the prior, or wherever a function says.

A start is a pytree function (key) -> position, what every chain takes as `start=`. `feasible_start` draws one position per
chain and draws again where the density or its gradient is not finite, a bounded number of times; positions that one already
has, in the user's space, become events by `unconstrain`. `endless_directions` is for the run that went nowhere: it tells an
improper posterior from a hard one.

Sources: Carpenter et al. 2017 (Stan), scattered starts in (-2, 2); Hobert and Casella 1996, "The effect of improper priors on
Gibbs sampling", section 2, for a full conditional without a finite integral as the sign of an improper posterior.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial, keystr, tree_leaves_with_path

from gensamp.core import PyTree, Target, bind, check_key, require
from gensamp.targets.posteriors import model_complaint, prior_of

__all__ = ["endless_directions", "feasible_start", "prior_start", "scattered_start"]


def scattered_start(target: Target, radius: float = 2.0) -> Partial:
    """Uniform(-radius, radius) in every coordinate of the unconstrained space, independently for every chain.

    Raises:
        ValueError: the radius is not positive.
    """
    if not radius > 0:
        raise ValueError(f"scattered_start got radius={radius}; expected a positive number")
    origin = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), target.template)
    return bind(_scattered, origin, jnp.asarray(radius, jnp.result_type(*jax.tree.leaves(origin))))


def prior_start(target: Target) -> Partial:
    """A draw from the prior of a posterior made by `from_numpyro`.

    Raises:
        ValueError: the target is no such posterior, or a site has an improper prior.
    """
    return prior_of(target).exact


def feasible_start(
    key: jax.Array,
    target: Target,
    num: int,
    start: Callable | None = None,
    *,
    attempts: int = 100,
    evaluate: Callable | None = None,
) -> PyTree:
    """One position per chain where the log density and its gradient are finite.

    Args:
        key: a typed key, consumed. Attempt i of chain c uses fold_in(fold_in(key, c), i).
        target: with a log density.
        num: chains.
        start: (key) -> position; scattered if None.
        attempts: positions tried per chain, at most.
        evaluate: (positions [num, ...]) -> (log density [num], gradient [num, ...]), where such a program is at hand; else
            one is compiled.

    Returns:
        positions [num, ...], like one event with a leading axis of chains.

    Raises:
        ValueError: a chain found no such position; the message counts what was tried and how it failed.

    Cost: one gradient per chain and round, for all chains in every round; a good start takes one round.
    """
    check_key(key)
    log_density = require(target, "log_density", "feasible_start")
    start = scattered_start(target) if start is None else start if isinstance(start, Partial) else Partial(start)
    found, done = None, np.zeros(num, bool)
    failures = {"a log density of -inf": 0, "a log density that is NaN or +inf": 0, "a gradient that is not finite": 0}
    for attempt in range(attempts):
        tried = _draw(key, start, np.arange(num), attempt)
        value, gradient = jax.tree.map(np.asarray, _evaluate(log_density, tried) if evaluate is None else evaluate(tried))
        smooth = np.all([np.isfinite(g).reshape(num, -1).all(1) for g in jax.tree.leaves(gradient)], axis=0)
        good = np.isfinite(value) & smooth
        tried = jax.tree.map(np.asarray, tried)
        found = tried if found is None else _replace(found, tried, ~done & good)
        kinds = (value == -np.inf, np.isnan(value) | (value == np.inf), np.isfinite(value) & ~smooth)
        for name, kind in zip(failures, kinds, strict=True):
            failures[name] += int((kind & ~done).sum())
        done |= good
        if done.all():
            return jax.tree.map(jnp.asarray, found)
    seen = ", ".join(f"{name} {count} times" for name, count in failures.items() if count)
    complaint = model_complaint(target, jax.tree.map(lambda a: a[0], found))
    raise ValueError(
        f"target '{target.name}' has no feasible start for {num - done.sum()} of {num} chains after {attempts} attempts each "
        f"(seen: {seen}); give a start= with positive density and a finite gradient, such as gs.targets.prior_start(target), "
        f"or mend the model{complaint and f' (numpyro says: {complaint})'}"
    )


def endless_directions(target: Target, positions: PyTree, *, doublings: int = 40) -> list[str]:
    """The directions along which the density does not fall off fast enough to have an integral.

    Lines run from the mean position both ways along every coordinate, and along what tells each chain from that mean, as it
    is and rounded to simple ratios: chains of an improper posterior wander off along the very direction it does not end in, and
    rounding would lead a long line off a narrow ridge. A line is endless if the last doubling
    of its length that still gives a number lowers the density by less than half. That is a sign and no proof: tails that fall
    like 1 / t or slower have no integral, but a law may also be endless in directions that no line here follows. A density of
    zero ends a line, unless it comes where exponentials overflow.

    Args:
        target: with a log density.
        positions: [chains, ...], where chains ended.
        doublings: the longest line is 2^doublings times the spread of the positions.

    Returns:
        names such as "mu", "beta[2]" or "chain 3", each with "+" or "-"; empty if every line ends.

    Cost: 2 (d + 2 chains) (doublings + 1) log densities.
    """
    log_density = require(target, "log_density", "endless_directions")
    flat = np.asarray(jax.vmap(lambda x: ravel_pytree(x)[0])(positions))
    centre, spread = flat.mean(0), np.maximum(flat.std(0), 1.0)
    apart = {f"chain {c}": row for c, row in enumerate(flat - centre) if np.abs(row).max() > 0}
    labels = [*_labels(target.template), *apart, *apart]
    lines = np.stack([*np.diag(spread), *apart.values(), *map(_in_simple_ratios, apart.values())]).astype(flat.dtype)
    _, unravel = ravel_pytree(jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), target.template))
    lengths = (2.0 ** np.arange(doublings + 1)).astype(flat.dtype)
    overflow = np.log(np.finfo(flat.dtype).max)
    found = []
    for sign in "+-":
        ways = lines if sign == "+" else -lines
        values = np.asarray(_along(log_density, Partial(unravel), jnp.asarray(centre), jnp.asarray(ways), lengths), np.float64)
        for label, way, line in zip(labels, ways, values, strict=True):
            size = np.flatnonzero(~np.isfinite([*line, np.nan]))[0]
            zero = size < len(line) and line[size] == -np.inf and np.abs(centre + lengths[size] * way).max() < overflow
            if not zero and size > 1 and line[size - 1] - line[size - 2] > -np.log(2.0):
                found.append(label + sign)
    return list(dict.fromkeys(found))


def _in_simple_ratios(row):
    """A direction in 64ths of its largest coordinate: a line along a ridge of equal or opposite ones does not leave it."""
    return np.round(row / np.abs(row).max() * 64) * (np.abs(row).max() / 64)


def _scattered(origin, radius, key):
    flat, unravel = ravel_pytree(origin)
    return unravel(radius * jax.random.uniform(key, flat.shape, flat.dtype, -1.0, 1.0))


@jax.jit
def _draw(key, start, chains, attempt):
    return jax.vmap(lambda c: start(jax.random.fold_in(jax.random.fold_in(key, c), attempt)))(chains)


@jax.jit
def _evaluate(log_density, positions):
    return jax.vmap(jax.value_and_grad(log_density))(positions)


@jax.jit
def _along(log_density, unravel, centre, lines, lengths):
    def line(direction):
        return jax.vmap(lambda t: log_density(unravel(centre + t * direction)))(lengths)

    return jax.lax.map(line, lines, batch_size=64)


def _replace(old: PyTree, new: PyTree, rows: np.ndarray) -> PyTree:
    return jax.tree.map(lambda a, b: np.where(rows.reshape(-1, *[1] * (a.ndim - 1)), b, a), old, new)


def _labels(template: PyTree) -> list[str]:
    """A name for every coordinate of the flattened event."""
    labels = []
    for path, leaf in tree_leaves_with_path(template):
        site = keystr(path, simple=True, separator=".") or "x"
        labels += [site + (str(list(index)) if index else "") for index in np.ndindex(*leaf.shape)]
    return labels
