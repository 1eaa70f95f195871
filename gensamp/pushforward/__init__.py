"""Learned maps from noise to draws, and the one map that needs no learning."""

from gensamp.pushforward.conditional import conditional
from gensamp.pushforward.diffusion import ancestral, ddim, ddim_sampler, ddpm, uniform_log_snr, uniform_time
from gensamp.pushforward.flows import realnvp
from gensamp.pushforward.inverse_transform import inverse_transform
from gensamp.pushforward.vae import vae

__all__ = [
    "ancestral", "conditional", "ddim", "ddim_sampler", "ddpm", "inverse_transform", "realnvp", "uniform_log_snr",
    "uniform_time", "vae",
]  # fmt: skip
