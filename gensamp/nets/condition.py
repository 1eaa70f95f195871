"""What a network is told besides its input: one condition, such as a class label, or none.

Denoisers, and what guides them, take it as a last argument that may be left out: apply(params, x, t), apply(params, x, t, c).
One that needs it and gets none, and one that would not look at it, say so. Labels are integers in [0, num_classes): others are
refused where their values are known, and where they are not (inside a compiled program) they never pass for another class.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["MissingCondition", "check_labels", "told"]


class MissingCondition(ValueError):
    """What needs a condition got none."""


def told(condition: tuple[Any, ...], name: str, *, wanted: bool = True, num_classes: int | None = None) -> Any:
    """The condition as arrays, or None where none is wanted.

    Args:
        condition: what was given: () or (condition,). name: of who asks. wanted: whether it was built to look at one.
        num_classes: where the condition is a label, how many there are; a label below 0 whose value is not known yet becomes
            num_classes, which an embedding has nothing for, as any above.

    Raises:
        MissingCondition: it is wanted, and none was given.
        ValueError: it is given, and nobody would look at it; or it is no label of num_classes.
    """
    if wanted and not condition:
        raise MissingCondition(
            f"{name} got no condition; expected one, such as a label: model.sampler(params, label), or "
            "conditional(model, params) for sample(each=labels)"
        )
    if not wanted and condition:
        raise ValueError(f"{name} got a condition, and was built without classes, so it would not see it; give num_classes=")
    if not wanted:
        return None
    check_labels(condition, num_classes, name)
    seen = jax.tree.map(jnp.asarray, condition[0])
    # An index below zero would count from the last class.
    return seen if num_classes is None else jnp.where(seen < 0, num_classes, seen.astype(jnp.int32))


def check_labels(labels: Any, num_classes: int | None, name: str) -> None:
    """Raises ValueError unless all labels in a tree are integers in [0, num_classes), as far as their values are known.

    Args:
        labels: of any shape. num_classes: None if they are no labels, or nobody knows of how many. name: of who got them.
    """
    if num_classes is None:
        return
    for label in jax.tree.leaves(labels):
        dtype = jnp.result_type(label)
        if not (jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_)):
            raise ValueError(f"{name} got a label of dtype {dtype}; expected integers from 0 to {num_classes - 1}")
        if isinstance(label, jax.core.Tracer):
            continue
        values = np.asarray(label, int)
        low, high = values.min(initial=0), values.max(initial=0)
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"{name} got the label {low if low < 0 else high}; expected integers from 0 to {num_classes - 1}: number the "
                f"classes from 0, or build for more than num_classes={num_classes}"
            )
