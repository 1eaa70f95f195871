"""Devices: one mesh axis over which independent draws are spread.

Draws share nothing, so a mesh is one axis named "draws" of type Auto, every chain's numbers are split along it, and the step is
mapped by `jax.shard_map` with no collective. `check_vma=False` because several blackjax kernels fail that check; nothing here
is replicated across the axis but the inputs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

__all__ = ["AXIS", "mesh", "per_device", "put"]

AXIS = "draws"


def mesh(devices: int | Sequence[Any] | None = None) -> Mesh:
    """A mesh over local devices for `sample(..., mesh=)` and `fit(..., mesh=)`.

    Args:
        devices: how many of this process's devices, or which ones; all of them by default.

    Raises:
        TypeError, ValueError: neither a number of devices that there are, nor a list of different ones.
    """
    local = jax.local_devices()
    if devices is None:
        devices = local
    elif isinstance(devices, int | np.integer) and not isinstance(devices, bool):
        if not 1 <= devices <= len(local):
            raise ValueError(f"mesh got devices={devices}; expected between 1 and the {len(local)} local devices")
        devices = local[:devices]
    elif not isinstance(devices, Sequence) or not all(isinstance(device, jax.Device) for device in devices):
        raise TypeError(f"mesh got devices={devices!r}; expected a number, or a list of some of jax.local_devices()")
    elif not 0 < len(set(devices)) == len(devices):
        raise ValueError(f"mesh got devices={devices!r}; expected at least one, and each once")
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def per_device(function: Callable, mesh: Mesh, *, split_in: Sequence[P], split_out) -> Callable:
    """`function` run on each device over its own slice of the draws, with no communication."""
    return jax.shard_map(function, mesh=mesh, in_specs=tuple(split_in), out_specs=split_out, check_vma=False)


def put(tree, mesh: Mesh, spec: P):
    """`tree` on the mesh's devices: the same placement each time, so that a resumed or repeated call finds its program."""
    return jax.device_put(tree, NamedSharding(mesh, spec))
