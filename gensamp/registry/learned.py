"""The learned maps, and the samplers that a learned score drives."""

import math

import jax
import numpy as np

from gensamp.core import Truth
from gensamp.registry.entry import Entry, FitOptions

__all__ = ["ENTRIES"]


def _build_inverse_transform(target, budget):
    from gensamp.pushforward import inverse_transform

    assert isinstance(target.truth, Truth)
    return inverse_transform(target.truth.quantile, target.template)


def _build_realnvp(target, budget):
    from gensamp.pushforward import realnvp

    return realnvp(target.template, dequantise=_cell(target), **_FLOW[budget])


def _build_realnvp_reverse_kl(target, budget):
    from gensamp.pushforward import realnvp

    return realnvp(target.template, target=target, anneal=_LIKELIHOOD[budget].num_steps // 2, **_FLOW[budget])


def _build_vae(target, budget):
    from gensamp.nets import Event
    from gensamp.pushforward import vae

    latent_dim = max(2, min(Event.of(target.template).size, 16))
    return vae(target.template, latent_dim=latent_dim, dequantise=_cell(target), **({"width": 16} if budget == "tiny" else {}))


def _build_ddpm(target, budget):
    from gensamp import noise
    from gensamp.pushforward import ddpm

    steps = {"tiny": 8, "small": 100, "full": 1000}[budget]
    return ddpm(_denoiser(target, budget), noise.cosine(), template=target.template, num_steps=steps)


def _build_ddim(target, budget):
    from gensamp import noise
    from gensamp.pushforward import ddim

    steps = {"tiny": 4, "small": 50, "full": 100}[budget]
    return ddim(_denoiser(target, budget), noise.cosine(), template=target.template, num_steps=steps)


def _build_score_langevin(target, budget):
    from gensamp import noise
    from gensamp.hybrid import score_langevin

    levels = {"num_levels": 4, "steps_per_level": 2} if budget == "tiny" else {}
    return score_langevin(_denoiser(target, budget), noise.cosine(), template=target.template, **levels)


def _denoiser(target, budget):
    """A residual perceptron; for images a U-Net, unless they are so small that a perceptron learns them better in the time."""
    from gensamp import nets

    shapes = [leaf.shape for leaf in jax.tree.leaves(target.template)]
    halves = len(shapes) == 1 and len(shapes[0]) == 3 and shapes[0][0] % 2 == 0 and shapes[0][1] % 2 == 0
    size = sum(math.prod(shape) for shape in shapes)
    if halves and (budget != "small" or size > 256):
        return nets.unet(target.template, width={"tiny": 8, "small": 24, "full": 48}[budget])
    depth, width = {"tiny": (1, 16), "small": (3, 128 if size <= 16 else 256), "full": (4, 256)}[budget]
    return nets.mlp(target.template, width=width, depth=depth)


def _cell(target) -> float:
    """The width of a cell of data on a lattice (grey levels); 0 for data that are on none."""
    values = _lattice(target)
    return 0.0 if values is None else float(np.diff(values).min())


def _lattice(target) -> np.ndarray | None:
    leaves = jax.tree.leaves(target.data)
    if len(leaves) != 1:
        return None
    values = np.unique(np.asarray(leaves[0]))
    return values if 2 <= len(values) <= 256 < np.size(leaves[0]) else None


_FLOW = {
    "tiny": {"num_layers": 2, "width": 16},
    "small": {"num_layers": 8, "width": 64},
    "full": {"num_layers": 16, "width": 128},
}
_LIKELIHOOD = {
    "tiny": FitOptions(20, 32),
    "small": FitOptions(3_000, 128),
    "full": FitOptions(20_000, 256, ema=0.999),
}
_DENOISING = {
    "tiny": FitOptions(20, 32),
    "small": FitOptions(3_000, 128, ema=0.995),
    "full": FitOptions(30_000, 256, ema=0.999),
}

ENTRIES = (
    Entry(
        "score_langevin", "Annealed Langevin, learned scores", "hybrid", "model", _build_score_langevin,
        needs=("events",), training=_DENOISING, default=True,
    ),
    Entry(
        "inverse_transform", "Inverse transform", "pushforward", "sampler", _build_inverse_transform, needs=("quantile",),
        default=True,
    ),
    Entry(
        "realnvp", "RealNVP, likelihood", "pushforward", "model", _build_realnvp, needs=("events",), training=_LIKELIHOOD,
        default=True,
    ),
    Entry(
        "realnvp_reverse_kl", "RealNVP, reverse KL", "pushforward", "model", _build_realnvp_reverse_kl, training=_LIKELIHOOD,
        default=True,
    ),
    Entry("vae", "Gaussian VAE", "pushforward", "model", _build_vae, needs=("events",), training=_LIKELIHOOD, default=True),
    Entry(
        "ddpm", "Diffusion, ancestral", "pushforward", "model", _build_ddpm, needs=("events",), training=_DENOISING,
        default=True,
    ),
    Entry(
        "ddim", "Diffusion, DDIM", "pushforward", "model", _build_ddim, needs=("events",), training=_DENOISING, default=True,
    ),
)  # fmt: skip
