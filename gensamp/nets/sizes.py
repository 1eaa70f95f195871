"""The sizes of a network, checked: what is no integer would build, and fail deep inside of a library when it is trained."""

from typing import Any

import numpy as np

__all__ = ["check_sizes"]


def check_sizes(by: str, **sizes: tuple[Any, int]) -> None:
    """Raises ValueError unless every size is an integer, or a tuple of integers, of at least so much.

    Args:
        by: of who got them. sizes: by name, each with the least it may be: check_sizes("mlp", width=(width, 2)).
    """
    for name, (value, least) in sizes.items():
        several = isinstance(value, tuple | list)
        if not all(_is_size(one, least) for one in (value if several else (value,))):
            expected = "integers" if several else "an integer"
            raise ValueError(f"{by} got {name}={value!r}; expected {expected} of at least {least}")


def _is_size(value: Any, least: int) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= least
