"""Continuous flows with their likelihood, and diffusions solved as an SDE to a tolerance."""

from gensamp.registry.entry import Entry
from gensamp.registry.parts import DENOISING, denoiser

__all__ = ["ENTRIES"]


def _build_continuous_flow(target, budget):
    from gensamp.pushforward.continuous_flow import continuous_flow

    steps = {"tiny": 3, "small": 25, "full": 50}[budget]
    return continuous_flow(denoiser(target, budget), template=target.template, num_steps=steps)


def _build_adaptive_sde(target, budget):
    from gensamp import noise
    from gensamp.pushforward.diffusion import diffusion_model
    from gensamp.pushforward.diffusion.adaptive_sde import adaptive_sde

    tolerance = {"tiny": 0.5, "small": 0.05, "full": 0.01}[budget]
    network = denoiser(target, budget)
    return diffusion_model(
        network, noise.cosine(), template=target.template, solver=adaptive_sde, rtol=tolerance, atol=tolerance
    )  # fmt: skip


def _entry(name, title, build):
    return Entry(name, title, "pushforward", "model", build, needs=("events",), training=DENOISING)


ENTRIES = (
    _entry("continuous_flow", "Continuous flow by flow matching", _build_continuous_flow),
    _entry("adaptive_sde", "Diffusion, adaptive SDE", _build_adaptive_sde),
)
