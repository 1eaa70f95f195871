"""Diffusion models: the loss, the time grids, and one file per solver family."""

from gensamp.pushforward.diffusion.ancestral import ancestral, ddpm
from gensamp.pushforward.diffusion.ddim import ddim, ddim_sampler
from gensamp.pushforward.diffusion.grids import uniform_log_snr, uniform_time
from gensamp.pushforward.diffusion.losses import denoiser

__all__ = ["ancestral", "ddim", "ddim_sampler", "ddpm", "denoiser", "uniform_log_snr", "uniform_time"]
