"""Densities on constrained spaces: bounds, simplices, ordered vectors and the other supports that numpyro has names for.

With z unconstrained and x(z) the bijection that belongs to a constraint, the target lives on z and has the density

    log_density(z) = log f(x(z)) + log |dx/dz|,    constrain(z) = x(z) by name.

`Target.from_log_density(f, template, constraints=...)` is the way in. Bounds are data: others of the same shapes recompile
nothing.

Source: Carpenter et al. 2017, "Stan: A probabilistic programming language", section 2.7, for the change of variables; numpyro's
bijections.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial, keystr, tree_leaves_with_path

from gensamp.core import PyTree, Static, bind

__all__ = ["bounded", "by_name", "from_names"]


def bounded(log_density: Any, template: PyTree, constraints: Any, known: Mapping[str, Any]) -> tuple[Any, PyTree, dict]:
    """What a target on unconstrained coordinates is made of, from a density on the constrained space.

    Args:
        log_density: (x) -> scalar, a pytree function of a constrained event.
        template: shapes and dtypes of one constrained event.
        constraints: one numpyro constraint for every array of the event, or a dict from names of the event's entries to
            constraints; entries without one are real.
        known: further fields of the target, on the constrained space.

    Returns:
        log density and template on unconstrained coordinates, and the other fields: exact and minibatch_log_density
        transformed, constrain applied to x(z), truth as it is (the log normaliser is that of both spaces; moments are of z).

    Raises:
        TypeError: a constraint is no numpyro constraint, or a dict came for an event that is no dict.
        ValueError: a name that the event has not, a shape that the constraint cannot take, a discrete constraint, bounds that
            in the event's dtype are not finite or leave nothing between them, constraints that leave no coordinate free, or a
            score.
    """
    from numpyro.distributions import biject_to

    if known.get("score") is not None:
        raise ValueError("score= came with constraints=; leave it out: it is the gradient on unconstrained coordinates")
    leaves, structure = jax.tree.flatten(template)
    supports, free = [], []
    for leaf, wanted in zip(leaves, _by_leaf(template, constraints), strict=True):
        try:
            # Bounds become arrays of the event's dtype, so that 0, 0.0 and array(0.) are one program.
            support = jax.tree.map(lambda a, leaf=leaf: jnp.asarray(a, leaf.dtype), wanted)
            shape = biject_to(support).inverse_shape(leaf.shape)
            back = biject_to(support).forward_shape(shape)
        except (NotImplementedError, ValueError) as error:
            raise ValueError(f"no array of shape {list(leaf.shape)} can be constrained by {wanted!r}: {error}") from error
        if back != leaf.shape:
            raise ValueError(
                f"no array of shape {list(leaf.shape)} can be constrained by {wanted!r}, which makes one of {list(back)}; give "
                "bounds of the event's shape, or one for all"
            )
        _check_bounds(wanted, leaf.dtype)
        supports.append(support)
        free.append(jax.ShapeDtypeStruct(shape, leaf.dtype))
    if not any(0 not in a.shape for a in free):
        shapes = [list(a.shape) for a in leaves]
        raise ValueError(f"constraints leave no coordinate of an event of shapes {shapes} free; expected at least one to draw")
    layout = (Static(structure), supports)
    functions = {"exact": _exact, "minibatch_log_density": _minibatch_log_density, "constrain": _constrain}
    given = {field: value for field, value in known.items() if value is not None}
    moved = {
        field: bind(functions[field], value if isinstance(value, Partial) else Partial(value), *layout)
        for field, value in given.items()
        if field in functions
    }
    fields = {**given, "constrain": bind(by_name, *layout), **moved}
    return bind(_log_density, log_density, *layout), jax.tree.unflatten(structure, free), fields


def by_name(structure: Static, supports: list, z: PyTree) -> dict[str, Any]:
    """The constrained event as a dict: itself if it is one, else {"x": array}, or "x[0]", "x.a", ... for its parts."""
    x, _ = _transform(structure, supports, z)
    return x if isinstance(x, dict) else {f"x{keystr(path)}": leaf for path, leaf in tree_leaves_with_path(x)}


def from_names(structure: Static, supports: list, named: Mapping[str, Any]) -> PyTree:
    """The unconstrained event of a named constrained one."""
    from numpyro.distributions import biject_to

    shape = jax.tree.unflatten(structure.value, [0] * structure.value.num_leaves)
    labels = shape if isinstance(shape, dict) else [f"x{keystr(path)}" for path, _ in tree_leaves_with_path(shape)]
    leaves = jax.tree.leaves(
        {label: named[label] for label in labels} if isinstance(shape, dict) else [named[k] for k in labels]
    )
    return jax.tree.unflatten(structure.value, [biject_to(s).inv(x) for s, x in zip(supports, leaves, strict=True)])


def _by_leaf(template: PyTree, constraints: Any) -> list:
    """One constraint for each leaf of the event."""
    from numpyro.distributions.constraints import Constraint, real

    if not isinstance(constraints, dict):
        constraints, entries = {"": constraints}, {"": template}
    elif isinstance(template, dict):
        entries = template
    else:
        raise TypeError(f"constraints is a dict, and the event is {type(template).__name__}; expected one numpyro constraint")
    unknown = sorted(map(str, set(constraints) - set(entries)))
    if unknown:
        raise ValueError(f"constraints got names {unknown} that the event has not; expected among {sorted(map(str, entries))}")
    wrong = sorted({type(c).__name__ for c in constraints.values() if not isinstance(c, Constraint)})
    if wrong:
        raise TypeError(
            f"constraints got {wrong}; expected numpyro constraints, such as numpyro.distributions.constraints.positive"
        )
    discrete = [c for c in constraints.values() if c.is_discrete]
    if discrete:
        raise ValueError(
            f"constraints got {discrete}, which are discrete and leave no gradient; sum such coordinates out first"
        )
    boxes = {label: _Box(constraints.get(label, real)) for label in entries}
    chosen = {label: jax.tree.map(lambda _, box=boxes[label]: box, tree) for label, tree in entries.items()}
    return [box.constraint for box in jax.tree.leaves(chosen, is_leaf=lambda a: isinstance(a, _Box))]


def _check_bounds(constraint: Any, dtype: Any) -> None:
    """Raises ValueError unless the bounds, as they will be used, are finite with room between them."""
    inner = getattr(constraint, "base_constraint", constraint)
    given = [getattr(inner, f"{end}_bound", None) for end in ("lower", "upper")]
    if any(isinstance(a, jax.core.Tracer) for a in given):
        return
    with np.errstate(over="ignore"):
        low, high = used = [None if a is None else np.asarray(a).astype(dtype) for a in given]
    if not all(np.isfinite(a).all() for a in used if a is not None):
        raise ValueError(f"constraints got {constraint!r}; expected finite bounds in {dtype}, and constraints.real for none")
    if low is not None and high is not None and not np.all(low < high):
        raise ValueError(
            f"constraints got an interval from {given[0]} to {given[1]}; expected a lower bound below the upper one in {dtype}"
        )


class _Box:
    """Hides a constraint, itself a pytree, from the flattening of the event's tree."""

    def __init__(self, constraint):
        self.constraint = constraint


def _transform(structure: Static, supports: list, z: PyTree) -> tuple[PyTree, jax.Array]:
    """x(z) and log |dx/dz|."""
    from numpyro.distributions import biject_to

    values, volumes = [], []
    for support, free in zip(supports, jax.tree.leaves(z), strict=True):
        transform = biject_to(support)
        value = transform(free)
        values.append(value)
        volumes.append(jnp.sum(transform.log_abs_det_jacobian(free, value)))
    return jax.tree.unflatten(structure.value, values), sum(volumes[1:], start=volumes[0])


def _log_density(log_density, structure, supports, z):
    x, volume = _transform(structure, supports, z)
    return log_density(x) + volume


def _minibatch_log_density(log_density, structure, supports, z, batch):
    x, volume = _transform(structure, supports, z)
    return log_density(x, batch) + volume


def _exact(exact, structure, supports, key):
    from numpyro.distributions import biject_to

    leaves = zip(supports, jax.tree.leaves(exact(key)), strict=True)
    return jax.tree.unflatten(structure.value, [biject_to(support).inv(x) for support, x in leaves])


def _constrain(constrain, structure, supports, z):
    return constrain(_transform(structure, supports, z)[0])
