"""What a network is told besides its input: one condition, such as a class label, or none.

Denoisers, and what guides them, take it as a last argument that may be left out: apply(params, x, t), apply(params, x, t, c).
One that needs it and gets none, and one that would not look at it, say so.
"""

from typing import Any

__all__ = ["MissingCondition", "told"]


class MissingCondition(ValueError):
    """What needs a condition got none."""


def told(condition: tuple[Any, ...], name: str, *, wanted: bool = True) -> Any:
    """The condition, or None where none is wanted.

    Args:
        condition: what was given: () or (condition,). name: of who asks. wanted: whether it was built to look at one.

    Raises:
        MissingCondition: it is wanted, and none was given.
        ValueError: it is given, and nobody would look at it.
    """
    if wanted and not condition:
        raise MissingCondition(
            f"{name} got no condition; expected one, such as a label: model.sampler(params, label), or "
            "conditional(model, params) for sample(each=labels)"
        )
    if not wanted and condition:
        raise ValueError(f"{name} got a condition, and was built without classes, so it would not see it; give num_classes=")
    return condition[0] if wanted else None
