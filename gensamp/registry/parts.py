"""What builders of learned maps share: a network for a denoiser, the lattice that data stand on, how long denoisers train."""

import math

import jax
import numpy as np

from gensamp.registry.entry import FitOptions

__all__ = ["DENOISING", "cell", "denoiser", "lattice"]

DENOISING = {
    "tiny": FitOptions(20, 32),
    "small": FitOptions(3_000, 128, ema=0.995),
    "full": FitOptions(30_000, 256, ema=0.999),
}


def denoiser(target, budget):
    """A residual perceptron; for images a U-Net, unless they are so small that a perceptron learns them better in the time."""
    from gensamp import nets

    shapes = [leaf.shape for leaf in jax.tree.leaves(target.template)]
    halves = len(shapes) == 1 and len(shapes[0]) == 3 and shapes[0][0] % 2 == 0 and shapes[0][1] % 2 == 0
    size = sum(math.prod(shape) for shape in shapes)
    if halves and (budget != "small" or size > 256):
        return nets.unet(target.template, width={"tiny": 8, "small": 24, "full": 48}[budget])
    depth, width = {"tiny": (1, 16), "small": (3, 128 if size <= 16 else 256), "full": (4, 256)}[budget]
    return nets.mlp(target.template, width=width, depth=depth)


def cell(target) -> float:
    """The width of a cell of data on a lattice (grey levels); 0 for data that are on none."""
    values = lattice(target)
    return 0.0 if values is None else float(np.diff(values).min())


def lattice(target) -> np.ndarray | None:
    """The values that data take, sorted, where they are few (grey levels); None for data on no lattice."""
    leaves = jax.tree.leaves(target.data)
    if len(leaves) != 1:
        return None
    values = np.unique(np.asarray(leaves[0]))
    return values if 2 <= len(values) <= 256 < np.size(leaves[0]) else None
