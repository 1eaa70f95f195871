"""Learned maps from latent variables: GANs, variations of the VAE, hierarchical VAEs."""

import math
from functools import partial

import jax

from gensamp.registry.entry import Entry, FitOptions
from gensamp.registry.parts import cell, denoiser

__all__ = ["ENTRIES"]


def _build_gan(target, budget):
    return _gan(target, budget, "nonsaturating")


def _build_wgan(target, budget):
    return _gan(target, budget, "wasserstein")


def _build_hinge_gan(target, budget):
    return _gan(target, budget, "hinge")


def _gan(target, budget, objective):
    from gensamp import nets
    from gensamp.nets.critic import critic, generator
    from gensamp.pushforward.gan import gan

    event = nets.Event.of(target.template)
    image = len(event.shapes) == 1 and len(event.shapes[0]) == 3 and all(side % 4 == 0 for side in event.shapes[0][:2])
    options = {"tiny": {"width": 16, "depth": 1}, "small": {"width": 128}, "full": {"width": 512}}[budget]
    if image and (budget != "small" or event.size > 256):
        options = {"width": {"tiny": 4, "small": 16, "full": 64}[budget], "multipliers": (1, 2)}
    latent_dim = max(2, min(event.size, 64))
    return gan(
        target.template, objective=objective, latent_dim=latent_dim, critic=critic(target.template, **options),
        generator=generator(target.template, latent_dim, **options),
    )  # fmt: skip


def _build_iwae(target, budget):
    return _vae(target, budget, num_importance={"tiny": 2, "small": 8, "full": 32}[budget])


def _build_vae_predicted(target, budget):
    return _vae(target, budget, variance="predicted")


def _vae(target, budget, **options):
    from gensamp.pushforward import vae

    width = {"tiny": 16, "small": 256, "full": 512}[budget]
    return vae(target.template, latent_dim=_latents(target, 16), width=width, dequantise=cell(target), **options)


def _build_hierarchical_vae(target, budget):
    from gensamp.pushforward.hierarchical_vae import hierarchical_vae
    from gensamp.pushforward.ladder import ladder

    num_groups, width = {"tiny": (2, 16), "small": (4, 128), "full": (8, 512)}[budget]
    hierarchy = ladder(target.template, num_groups=num_groups, latent_dim=_latents(target, 8), width=width)
    return hierarchical_vae(hierarchy, dequantise=cell(target))


def _build_diffusion_hierarchy(target, budget):
    from gensamp import noise
    from gensamp.pushforward import uniform_log_snr
    from gensamp.pushforward.diffusion_hierarchy import diffusion_hierarchy
    from gensamp.pushforward.hierarchical_vae import hierarchical_vae

    process = noise.cosine()
    grid = uniform_log_snr(process, {"tiny": 4, "small": 16, "full": 64}[budget])
    hierarchy = diffusion_hierarchy(denoiser(target, budget), process, grid, template=target.template)
    return hierarchical_vae(hierarchy, dequantise=cell(target))


def _latents(target, most: int) -> int:
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(target.template))
    return max(2, min(size, most))


def _two_players(rate, critic_steps):
    from gensamp.pushforward.gan import gan_optimizer

    return gan_optimizer(generator_rate=rate, critic_rate=rate, critic_steps=critic_steps)


_GAME = {
    "tiny": FitOptions(20, 32, ema=0.9, optimizer=partial(_two_players, 1e-3, 1)),
    "small": FitOptions(5_000, 128, ema=0.995, optimizer=partial(_two_players, 1e-3, 1)),
    "full": FitOptions(50_000, 256, ema=0.999, optimizer=partial(_two_players, 3e-4, 1)),
}
_EARTH_MOVING = {
    "tiny": FitOptions(20, 32, ema=0.9, optimizer=partial(_two_players, 1e-3, 2)),
    "small": FitOptions(8_000, 128, ema=0.995, optimizer=partial(_two_players, 1e-3, 2)),
    "full": FitOptions(100_000, 256, ema=0.999, optimizer=partial(_two_players, 3e-4, 5)),
}
_BOUND = {
    "tiny": FitOptions(20, 32),
    "small": FitOptions(3_000, 128),
    "full": FitOptions(20_000, 256, ema=0.999),
}
# The whole grid at every event: as many forwards as groups.
_PATH = {
    "tiny": FitOptions(20, 32),
    "small": FitOptions(1_000, 64, ema=0.99),
    "full": FitOptions(10_000, 128, ema=0.999),
}

ENTRIES = (
    Entry(
        "gan", "GAN, non-saturating with R1", "pushforward", "model", _build_gan, needs=("events",), training=_GAME,
    ),
    Entry(
        "wgan", "GAN, Wasserstein with gradient penalty", "pushforward", "model", _build_wgan, needs=("events",),
        training=_EARTH_MOVING,
    ),
    Entry("hinge_gan", "GAN, hinge", "pushforward", "model", _build_hinge_gan, needs=("events",), training=_GAME),
    Entry(
        "iwae", "VAE, importance-weighted bound", "pushforward", "model", _build_iwae, needs=("events",), training=_BOUND,
    ),
    Entry(
        "vae_predicted", "VAE, predicted variance", "pushforward", "model", _build_vae_predicted, needs=("events",),
        training=_BOUND,
    ),
    Entry(
        "hierarchical_vae", "Hierarchical VAE", "pushforward", "model", _build_hierarchical_vae, needs=("events",),
        training=_BOUND,
    ),
    Entry(
        "diffusion_hierarchy", "Diffusion as a hierarchical VAE", "pushforward", "model", _build_diffusion_hierarchy,
        needs=("events",), training=_PATH,
    ),
)  # fmt: skip
