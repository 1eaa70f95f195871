"""What every chain takes - a step size, a metric, a start - read and checked before anything is compiled.

The checks of *values* apply to concrete numbers only: inside traced code (a sweep over step sizes, an adaptation) a factory
gets tracers, and then checks shapes alone.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.mcmc.metrics import Metric, gaussian_euclidean
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from gensamp.core import PyTree, Target, bind, require, scalar

__all__ = ["cast", "dimension", "euclidean", "read_log_density", "read_metric", "read_start", "read_step_size", "strong"]


def dimension(template: PyTree) -> int:
    """The number of coordinates of one event, all leaves together."""
    return sum(int(np.prod(a.shape)) for a in jax.tree.leaves(template))


def read_log_density(target: Target, by: str) -> Partial:
    """The log density, with +inf made NaN, which every kernel rejects.

    A path that overflows can end where rounding makes the log density +inf (inf - inf, with the wrong sign): accepted, the
    chain would never come back.

    Raises:
        ValueError: the target has none.
    """
    return bind(_below_infinity, require(target, "log_density", by))


def read_step_size(step_size: Any, template: PyTree, by: str, name: str = "step_size") -> jax.Array:
    """The step size as a scalar in the template's dtype.

    Raises:
        ValueError: it is not one number, or a concrete number that is not positive and finite in that dtype.
    """
    if isinstance(step_size, str) or step_size is None:
        raise ValueError(f"{by} got {name} {step_size!r}; expected a positive number")
    if np.shape(step_size) != ():
        raise ValueError(
            f"{by} got a {name} of shape {list(np.shape(step_size))}; expected one number; sweep over several with each= or "
            "vmap"
        )
    if _concrete(step_size):
        dtype = jnp.result_type(*(a.dtype for a in jax.tree.leaves(template)))
        # As it will be used: a positive number that the dtype rounds to zero moves nothing.
        with np.errstate(over="ignore"):
            used = np.asarray(step_size).astype(dtype)
        if not 0 < float(used) < float("inf"):
            raise ValueError(f"{by} got {name} {float(step_size)}; expected a positive finite number in {dtype}")
    return scalar(step_size, template)


def read_metric(inverse_mass_matrix: Any, template: PyTree, by: str) -> jax.Array:
    """The inverse mass matrix over the flattened event: [d] (a diagonal) or [d, d]; None is the identity.

    Raises:
        ValueError: another shape, or concrete values that are not positive definite.
    """
    size = dimension(template)
    if inverse_mass_matrix is None:
        return jnp.ones((size,), scalar(0, template).dtype)
    shape = np.shape(inverse_mass_matrix)
    if shape not in ((size,), (size, size)):
        raise ValueError(
            f"{by} got an inverse_mass_matrix of shape {list(shape)}; expected [{size}] (variances) or [{size}, {size}] (a "
            "covariance) over the flattened event, leaves in jax.tree order"
        )
    if _concrete(inverse_mass_matrix) and not _positive_definite(np.asarray(inverse_mass_matrix, np.float64)):
        raise ValueError(f"{by} got an inverse_mass_matrix that is not positive definite; pass variances or a covariance")
    return jnp.asarray(inverse_mass_matrix, scalar(0, template).dtype)


def read_start(start: Any, template: PyTree) -> Partial:
    """The start as a pytree function (key) -> z; None is Uniform(-2, 2) in every coordinate (Stan's default).

    Raises:
        TypeError: it is not a function of a key that can be traced.
        ValueError: what it makes is not one event of the template's shapes and dtypes (found by tracing).
    """
    if start is None:
        # jnp.zeros would be a program of its own, and compiled.
        return bind(_uniform, jax.tree.map(lambda a: jnp.asarray(np.zeros(a.shape, a.dtype)), template))
    if not callable(start):
        raise TypeError(
            f"start is {type(start).__name__}; expected a function (key) -> position: pass positions as sample(initial=)"
        )
    start = start if isinstance(start, Partial) else Partial(start)
    try:
        made = jax.eval_shape(start, jax.eval_shape(lambda: jax.random.key(0)))
    except Exception as error:
        kind = ValueError if isinstance(error, ValueError) else TypeError
        reason = next(iter(str(error).splitlines()), "")
        raise kind(f"start cannot be traced at a key: {type(error).__name__}: {reason}") from error
    got, expected = (jax.tree.map(lambda a: f"{a.dtype}{list(a.shape)}", tree) for tree in (made, template))
    if jax.tree.flatten(got) != jax.tree.flatten(expected):
        got, expected = (str(tree).replace("'", "") for tree in (got, expected))
        raise ValueError(f"start makes {got}; expected {expected}, one position of the target's shapes and dtypes")
    return start


def euclidean(inverse_mass_matrix: jax.Array) -> Metric:
    """blackjax's metric of the kinetic energy p' M^-1 p / 2, whose momenta have the dtypes of positions.

    blackjax inverts the root of a covariance against an identity of jax's default dtype, which makes float64 of float32 where
    `jax_enable_x64` is on.
    """
    metric = gaussian_euclidean(inverse_mass_matrix)

    def sample_momentum(rng_key, position):
        return cast(metric.sample_momentum(rng_key, position), position)

    def scale(position, element, *, inv, trans):
        return cast(metric.scale(position, element, inv=inv, trans=trans), element)

    return metric._replace(sample_momentum=sample_momentum, scale=scale)


def cast(new: PyTree, old: PyTree) -> PyTree:
    """A tree with the dtypes of one like it; blackjax mixes in the default ones."""
    return jax.tree.map(lambda a, b: jnp.asarray(a).astype(b.dtype), new, old)


def strong(state: PyTree) -> PyTree:
    """The same arrays with strong types: a weakly typed state would compile everything downstream twice."""
    return jax.tree.map(lambda a: jax.lax.convert_element_type(a, jnp.result_type(a)), state)


def _below_infinity(log_density, x):
    value = log_density(x)
    return jnp.where(value == jnp.inf, jnp.nan, value)


def _uniform(origin, key):
    flat, unravel = ravel_pytree(origin)
    return unravel(jax.random.uniform(key, flat.shape, flat.dtype, -2.0, 2.0))


def _concrete(value) -> bool:
    return not isinstance(value, jax.core.Tracer)


def _positive_definite(matrix) -> bool:
    if not np.isfinite(matrix).all():
        return False
    if matrix.ndim == 1:
        return bool((matrix > 0).all())
    symmetric = np.allclose(matrix, matrix.T, rtol=1e-4, atol=1e-6 * np.abs(matrix).max())
    return bool(symmetric and np.linalg.eigvalsh((matrix + matrix.T) / 2).min() > 0)
