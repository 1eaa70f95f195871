"""The learned maps, and the samplers that a learned score drives."""

from gensamp.core import Truth
from gensamp.registry.entry import Entry, FitOptions
from gensamp.registry.parts import DENOISING, cell, denoiser

__all__ = ["ENTRIES"]


def _build_inverse_transform(target, budget):
    from gensamp.pushforward import inverse_transform

    assert isinstance(target.truth, Truth)
    return inverse_transform(target.truth.quantile, target.template)


def _build_realnvp(target, budget):
    from gensamp.pushforward import realnvp

    return realnvp(target.template, dequantise=cell(target), **_FLOW[budget])


def _build_realnvp_reverse_kl(target, budget):
    from gensamp.pushforward import realnvp

    return realnvp(target.template, target=target, anneal=_LIKELIHOOD[budget].num_steps // 2, **_FLOW[budget])


def _build_vae(target, budget):
    from gensamp.nets import Event
    from gensamp.pushforward import vae

    latent_dim = max(2, min(Event.of(target.template).size, 16))
    return vae(target.template, latent_dim=latent_dim, dequantise=cell(target), **({"width": 16} if budget == "tiny" else {}))


def _build_ddpm(target, budget):
    from gensamp import noise
    from gensamp.pushforward import ddpm

    steps = {"tiny": 8, "small": 100, "full": 1000}[budget]
    return ddpm(denoiser(target, budget), noise.cosine(), template=target.template, num_steps=steps)


def _build_ddim(target, budget):
    from gensamp import noise
    from gensamp.pushforward import ddim

    steps = {"tiny": 4, "small": 50, "full": 100}[budget]
    return ddim(denoiser(target, budget), noise.cosine(), template=target.template, num_steps=steps)


def _build_score_langevin(target, budget):
    from gensamp import noise
    from gensamp.hybrid import score_langevin

    levels = {"num_levels": 4, "steps_per_level": 2} if budget == "tiny" else {}
    return score_langevin(denoiser(target, budget), noise.cosine(), template=target.template, **levels)


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
ENTRIES = (
    Entry(
        "score_langevin", "Annealed Langevin, learned scores", "hybrid", "model", _build_score_langevin,
        needs=("events",), training=DENOISING, default=True,
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
        "ddpm", "Diffusion, ancestral", "pushforward", "model", _build_ddpm, needs=("events",), training=DENOISING,
        default=True,
    ),
    Entry(
        "ddim", "Diffusion, DDIM", "pushforward", "model", _build_ddim, needs=("events",), training=DENOISING, default=True,
    ),
)  # fmt: skip
