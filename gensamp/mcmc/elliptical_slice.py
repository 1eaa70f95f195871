"""Elliptical slice sampling: a slice along an ellipse that a Gaussian leaves invariant.

For a target p(x) = N(x; m, C) L(x), draw nu ~ N(m, C); the points

    m + (x - m) cos theta + (nu - m) sin theta

have the Gaussian's law for every theta, so a slice under L alone is drawn from: theta is uniform, and shrinks towards 0, where
x is, until L is above its level (Murray, Adams and MacKay 2010, figure 2). There is no step size, and nothing is rejected. L is
what remains of the target when the Gaussian is divided out, so that any target can be given any Gaussian: one that is near the
target's law mixes at once; one that is narrower sticks in the tails, where L grows without bound.

Row one of the table: no end, every state is a draw. The proposal is blackjax's.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.mcmc.elliptical_slice import EllipSliceState, elliptical_proposal
from blackjax.util import generate_gaussian_noise
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import solve_triangular

from gensamp.core import Info, Sampler, Target, bind, scalar
from gensamp.mcmc.arguments import dimension, read_log_density, read_start, strong

__all__ = ["elliptical_slice"]


def elliptical_slice(target: Target, mean: Any, covariance: Any, *, start: Any = None) -> Sampler:
    """Elliptical slice sampling, the Gaussian N(mean, covariance) being divided out of the target.

    Args:
        target: needs `log_density`, that of the whole target, Gaussian included; no gradient is taken.
        mean: like one event; 0 is the origin.
        covariance: [d] variances or [d, d] over the flattened event.
        start: (key) -> position; None is a draw of N(mean, covariance).

    Returns:
        A Sampler without end; at least one density per step, as many as points were tried, and one in init. Info counts them.
        acceptance is 1; diverged marks a chain that stands where the log density is not finite.

    Raises:
        ValueError: the target has no log_density, the mean or the covariance does not fit the event, or the covariance is not
            positive definite.
    """
    log_density = read_log_density(target, "elliptical_slice")
    centre = _read_mean(mean, target.template)
    root = _read_root(covariance, target.template)
    likelihood = bind(_log_likelihood, log_density, centre, root)
    return Sampler(
        start=bind(_draw, centre, root) if start is None else read_start(start, target.template),
        init=bind(_init, likelihood),
        step=bind(_step, likelihood, centre, root),
        position=bind(_position),
    )


def _init(likelihood, key, position):
    del key
    return strong(EllipSliceState(position, likelihood(position)))


def _step(likelihood, centre, root, key, state, index):
    del index
    position, level = state
    dtypes = jax.tree.map(lambda a: a.dtype, position)

    def event(x):
        # Under 64-bit mode blackjax's angle is float64 whatever the position is.
        return jax.tree.map(lambda a, dtype: a.astype(dtype), x, dtypes)

    origin = _point(position, centre)

    def above(x):
        """+inf at the current point itself, which is in every slice.

        There the shrinking must end. In exact arithmetic it ends before, but what is computed there may be a rounding error
        below a level that came from another program, and then the loop would never end.
        """
        x = event(x)
        pairs = zip(*map(jax.tree.leaves, (x, origin)), strict=True)
        back = jnp.stack([((a == b) | jnp.isnan(b)).all() for a, b in pairs]).all()
        return jnp.where(back, jnp.inf, likelihood(x))

    moved, info = elliptical_proposal(above, lambda key, _: _draw(centre, root, key), ravel_pytree(centre)[0])(key, state)
    stayed = moved.logdensity == jnp.inf
    position = jax.tree.map(lambda new, old: jnp.where(stayed, old, new), event(moved.position), position)
    level = jnp.where(stayed, level, moved.logdensity)
    return strong(EllipSliceState(position, level)), Info.of(densities=info.subiter, diverged=~jnp.isfinite(level))


def _position(state):
    return state.position


def _point(position, centre):
    """The ellipse at theta = 0, rounded as the ellipse is."""
    return jax.tree.map(lambda x, m: (x - m) + m, position, centre)


def _log_likelihood(log_density, centre, root, x):
    """log L; -inf, and so outside of every slice, where the density is not a number."""
    value = log_density(x) - _log_prior(centre, root, x)
    return jnp.where(jnp.isfinite(value), value, -jnp.inf)


def _log_prior(centre, root, x):
    """log N(x; mean, covariance) up to a constant."""
    gap = ravel_pytree(x)[0] - ravel_pytree(centre)[0]
    white = gap / root if root.ndim == 1 else solve_triangular(root, gap, lower=True)
    return -0.5 * jnp.square(white).sum()


def _draw(centre, root, key):
    return generate_gaussian_noise(key, centre, ravel_pytree(centre)[0], root)


def _read_mean(mean, template):
    if jax.tree.structure(mean) == jax.tree.structure(0) and jnp.shape(mean) == ():
        return jax.tree.map(lambda a: jnp.full(a.shape, mean, a.dtype), template)
    shapes = [[jnp.shape(a) for a in jax.tree.leaves(tree)] for tree in (mean, template)]
    if jax.tree.structure(mean) != jax.tree.structure(template) or shapes[0] != shapes[1]:
        raise ValueError(
            f"elliptical_slice got a mean of shapes {shapes[0]}; expected one event of the target, {shapes[1]}, or one number"
        )
    return jax.tree.map(lambda a, like: jnp.asarray(a, like.dtype), mean, template)


def _read_root(covariance, template) -> jax.Array:
    """Standard deviations [d], or the lower Cholesky factor [d, d]."""
    size = dimension(template)
    if jnp.shape(covariance) not in ((size,), (size, size)):
        raise ValueError(
            f"elliptical_slice got a covariance of shape {list(jnp.shape(covariance))}; expected variances [{size}] or a "
            f"covariance [{size}, {size}] over the flattened event, leaves in jax.tree order"
        )
    covariance = jnp.asarray(covariance, scalar(0, template).dtype)
    root = jnp.sqrt(covariance) if covariance.ndim == 1 else jnp.linalg.cholesky(covariance)
    diagonal = root if covariance.ndim == 1 else jnp.diagonal(root)
    if not isinstance(root, jax.core.Tracer) and not (np.isfinite(root).all() and (np.asarray(diagonal) > 0).all()):
        raise ValueError("elliptical_slice got a covariance that is not positive definite; pass variances or a covariance")
    return root
