"""Diffusion models: the loss, the time grids, and one file per solver family."""

from gensamp.pushforward.diffusion.adaptive import adaptive
from gensamp.pushforward.diffusion.ancestral import ancestral, ddpm
from gensamp.pushforward.diffusion.ddim import ddim, ddim_sampler
from gensamp.pushforward.diffusion.deis import deis
from gensamp.pushforward.diffusion.dpm_solver import dpm_solver
from gensamp.pushforward.diffusion.dpm_solver_pp import dpm_solver_pp
from gensamp.pushforward.diffusion.euler import euler
from gensamp.pushforward.diffusion.exponential_sde import exponential_sde
from gensamp.pushforward.diffusion.grids import karras, trailing, uniform_log_snr, uniform_time
from gensamp.pushforward.diffusion.heun import heun
from gensamp.pushforward.diffusion.lms import lms
from gensamp.pushforward.diffusion.losses import denoiser
from gensamp.pushforward.diffusion.model import diffusion_model
from gensamp.pushforward.diffusion.unipc import unipc

__all__ = [
    "adaptive", "ancestral", "ddim", "ddim_sampler", "ddpm", "deis", "denoiser", "diffusion_model", "dpm_solver",
    "dpm_solver_pp", "euler", "exponential_sde", "heun", "karras", "lms", "trailing", "uniform_log_snr", "uniform_time",
    "unipc",
]  # fmt: skip
