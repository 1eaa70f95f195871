"""Learned maps from noise to draws, and the one map that needs no learning."""

from gensamp.pushforward.autoregressive import causal_transformer, made, pixelcnn
from gensamp.pushforward.conditional import conditional
from gensamp.pushforward.diffusion import (
    adaptive,
    ancestral,
    ddim,
    ddim_sampler,
    ddpm,
    deis,
    diffusion_model,
    dpm_solver,
    dpm_solver_pp,
    euler,
    exponential_sde,
    heun,
    karras,
    lms,
    trailing,
    uniform_log_snr,
    uniform_time,
    unipc,
)
from gensamp.pushforward.diffusion_elbo import diffusion_elbo
from gensamp.pushforward.diffusion_hierarchy import diffusion_hierarchy
from gensamp.pushforward.flow_matching import flow_matching
from gensamp.pushforward.flows import glow, iaf, maf, neural_spline, realnvp
from gensamp.pushforward.gan import gan, gan_optimizer
from gensamp.pushforward.hierarchical_vae import geometric_shares, hierarchical_vae, prefix, rates
from gensamp.pushforward.inverse_transform import inverse_transform
from gensamp.pushforward.ladder import ladder
from gensamp.pushforward.lattice import Lattice, bits_per_dimension
from gensamp.pushforward.likelihoods import discretised_logistic, gaussian
from gensamp.pushforward.vae import vae

__all__ = [
    "Lattice", "adaptive", "ancestral", "bits_per_dimension", "causal_transformer", "conditional", "ddim", "ddim_sampler",
    "ddpm", "deis", "diffusion_elbo", "diffusion_hierarchy", "diffusion_model", "discretised_logistic", "dpm_solver",
    "dpm_solver_pp", "euler", "exponential_sde", "flow_matching", "gan", "gan_optimizer", "gaussian", "geometric_shares",
    "glow", "heun", "hierarchical_vae", "iaf", "inverse_transform", "karras", "ladder", "lms", "made", "maf", "neural_spline",
    "pixelcnn", "prefix", "rates", "realnvp", "trailing", "uniform_log_snr", "uniform_time", "unipc", "vae",
]  # fmt: skip
