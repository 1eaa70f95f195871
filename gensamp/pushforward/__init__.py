"""Learned maps from noise to draws, and the one map that needs no learning."""

from gensamp.pushforward.autoregressive import causal_transformer, made, pixelcnn
from gensamp.pushforward.conditional import conditional, labelled
from gensamp.pushforward.continuous_flow import continuous_flow
from gensamp.pushforward.diffusion import (
    adaptive,
    adaptive_sde,
    ancestral,
    autoguidance,
    autoguided,
    classifier_free,
    classifier_guidance,
    classifier_guided,
    consistency,
    consistency_function,
    consistency_sampler,
    ddim,
    ddim_sampler,
    ddpm,
    deis,
    diffusion_model,
    dpm_solver,
    dpm_solver_pp,
    dps,
    euler,
    exponential_sde,
    graded,
    heun,
    karras,
    label_guidance,
    lms,
    measured,
    measured_guidance,
    ode_likelihood,
    ode_log_density,
    ode_log_density_estimate,
    progressive,
    replacement,
    trailing,
    uniform_log_snr,
    uniform_time,
    unipc,
    weightings,
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
from gensamp.pushforward.learned_noise import learned_noise, variational_diffusion
from gensamp.pushforward.likelihoods import discretised_logistic, gaussian
from gensamp.pushforward.reflow import coupled, coupled_draws, reflow
from gensamp.pushforward.vae import vae

__all__ = [
    "Lattice", "adaptive", "adaptive_sde", "ancestral", "autoguidance", "autoguided", "bits_per_dimension",
    "causal_transformer", "classifier_free", "classifier_guidance", "classifier_guided", "conditional", "consistency",
    "consistency_function", "consistency_sampler", "continuous_flow", "coupled", "coupled_draws", "ddim", "ddim_sampler",
    "ddpm", "deis", "diffusion_elbo", "diffusion_hierarchy", "diffusion_model", "discretised_logistic", "dpm_solver",
    "dpm_solver_pp", "dps", "euler", "exponential_sde", "flow_matching", "gan", "gan_optimizer", "gaussian",
    "geometric_shares", "glow", "graded", "heun", "hierarchical_vae", "iaf", "inverse_transform", "karras",
    "label_guidance", "labelled", "ladder", "learned_noise", "lms", "made", "maf", "measured", "measured_guidance",
    "neural_spline", "ode_likelihood", "ode_log_density", "ode_log_density_estimate", "pixelcnn", "prefix", "progressive",
    "rates", "realnvp", "reflow", "replacement", "trailing", "uniform_log_snr", "uniform_time", "unipc", "vae",
    "variational_diffusion", "weightings",
]  # fmt: skip
