"""What students of a diffusion model share: they start as copies of their teacher, in its frame, and the teacher is frozen.

A teacher is the parameters that `fit` found for `diffusion_model` (or `ddpm`, `ddim`) with the same network and process and the
prediction "v": {"network", "shift", "scale"}. It is a leaf of the student's Model, so another teacher compiles nothing.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gensamp.core import Network, Static
from gensamp.pushforward.diffusion.losses import denoising_init

__all__ = ["check_teacher", "student_params"]


def check_teacher(name: str, teacher: Any) -> Any:
    """The teacher as arrays, or None.

    Raises:
        ValueError: it is not the parameters of a diffusion model.
    """
    if teacher is None:
        return None
    if not isinstance(teacher, dict) or not {"network", "shift", "scale"} <= set(teacher):
        got = sorted(teacher) if isinstance(teacher, dict) else type(teacher).__name__
        raise ValueError(
            f"{name} got a teacher of {got}; expected the params of a fitted diffusion model: network, shift, scale"
        )
    return jax.tree.map(jnp.asarray, {part: teacher[part] for part in ("network", "shift", "scale")})


def student_params(network: Network, teacher: Any, conditional: Static, key: jax.Array, batch: Any) -> Any:
    """The teacher's parameters, or fresh ones in the frame of the batch."""
    if teacher is not None:
        return teacher
    return denoising_init(network, conditional.value)(key, batch)[0]
