"""Diffusion models: the loss, the time grids, and one file per solver family."""

from gensamp.pushforward.diffusion.adaptive import adaptive
from gensamp.pushforward.diffusion.adaptive_sde import adaptive_sde
from gensamp.pushforward.diffusion.ancestral import ancestral, ddpm
from gensamp.pushforward.diffusion.consistency import consistency, consistency_function, consistency_sampler
from gensamp.pushforward.diffusion.ddim import ddim, ddim_sampler
from gensamp.pushforward.diffusion.deis import deis
from gensamp.pushforward.diffusion.dpm_solver import dpm_solver
from gensamp.pushforward.diffusion.dpm_solver_pp import dpm_solver_pp
from gensamp.pushforward.diffusion.euler import euler
from gensamp.pushforward.diffusion.exponential_sde import exponential_sde
from gensamp.pushforward.diffusion.grids import graded, karras, trailing, uniform_log_snr, uniform_time
from gensamp.pushforward.diffusion.guidance import (
    autoguidance,
    autoguided,
    classifier_free,
    classifier_guidance,
    classifier_guided,
    label_guidance,
)
from gensamp.pushforward.diffusion.heun import heun
from gensamp.pushforward.diffusion.inpainting import replacement
from gensamp.pushforward.diffusion.inverse import dps, measured, measured_guidance
from gensamp.pushforward.diffusion.likelihood import ode_likelihood, ode_log_density, ode_log_density_estimate
from gensamp.pushforward.diffusion.lms import lms
from gensamp.pushforward.diffusion.losses import denoiser
from gensamp.pushforward.diffusion.model import diffusion_model
from gensamp.pushforward.diffusion.progressive import progressive
from gensamp.pushforward.diffusion.unipc import unipc

__all__ = [
    "adaptive", "adaptive_sde", "ancestral", "autoguidance", "autoguided", "classifier_free", "classifier_guidance",
    "classifier_guided", "consistency", "consistency_function", "consistency_sampler", "ddim", "ddim_sampler", "ddpm",
    "deis", "denoiser", "diffusion_model", "dpm_solver", "dpm_solver_pp", "dps", "euler", "exponential_sde", "graded",
    "heun", "karras", "label_guidance", "lms", "measured", "measured_guidance", "ode_likelihood", "ode_log_density",
    "ode_log_density_estimate", "progressive", "replacement", "trailing", "uniform_log_snr", "uniform_time", "unipc",
]  # fmt: skip
