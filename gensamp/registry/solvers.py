"""Diffusion models by the solver that draws from them, all trained alike, and flow matching."""

from gensamp.registry.entry import Entry
from gensamp.registry.parts import DENOISING, denoiser

__all__ = ["ENTRIES"]

_STEPS = {"tiny": 4, "small": 50, "full": 100}


def _build(target, budget, solver, forwards=1, **options):
    """`forwards` a step costs; a solver that asks more of each gets fewer."""
    from gensamp import noise
    from gensamp.pushforward.diffusion import diffusion_model

    steps = max(_STEPS[budget] // forwards, 2)
    network = denoiser(target, budget)
    return diffusion_model(
        network, noise.cosine(), template=target.template, solver=solver, num_steps=steps, **options
    )  # fmt: skip


def _build_euler(target, budget):
    from gensamp.pushforward.diffusion import euler

    return _build(target, budget, euler)


def _build_heun(target, budget):
    from gensamp.pushforward.diffusion import heun

    return _build(target, budget, heun, 2)


def _build_lms(target, budget):
    from gensamp.pushforward.diffusion import lms

    return _build(target, budget, lms, order=4)


def _build_deis(target, budget):
    from gensamp.pushforward.diffusion import deis

    return _build(target, budget, deis, order=3)


def _build_dpm_solver(target, budget):
    from gensamp.pushforward.diffusion import dpm_solver

    return _build(target, budget, dpm_solver, 3, order=3)


def _build_dpm_solver_pp(target, budget):
    from gensamp.pushforward.diffusion import dpm_solver_pp

    return _build(target, budget, dpm_solver_pp, order=3)


def _build_dpm_solver_pp_sde(target, budget):
    from gensamp.pushforward.diffusion import dpm_solver_pp

    return _build(target, budget, dpm_solver_pp, order=2, eta=1.0)


def _build_exponential_sde(target, budget):
    from gensamp.pushforward.diffusion import exponential_sde

    return _build(target, budget, exponential_sde)


def _build_unipc(target, budget):
    from gensamp.pushforward.diffusion import unipc

    return _build(target, budget, unipc, order=3)


def _build_flow_matching(target, budget):
    from gensamp.pushforward.flow_matching import flow_matching

    return flow_matching(denoiser(target, budget), template=target.template, num_steps=max(_STEPS[budget] // 2, 2))


def _entry(name, title, build):
    return Entry(name, title, "pushforward", "model", build, needs=("events",), training=DENOISING)


ENTRIES = (
    _entry("euler", "Diffusion, Euler", _build_euler),
    _entry("heun", "Diffusion, Heun", _build_heun),
    _entry("lms", "Diffusion, Adams-Bashforth 4", _build_lms),
    _entry("deis", "Diffusion, DEIS 3", _build_deis),
    _entry("dpm_solver", "Diffusion, DPM-Solver 3", _build_dpm_solver),
    _entry("dpm_solver_pp", "Diffusion, DPM-Solver++ 3M", _build_dpm_solver_pp),
    _entry("dpm_solver_pp_sde", "Diffusion, DPM-Solver++ 2M SDE", _build_dpm_solver_pp_sde),
    _entry("exponential_sde", "Diffusion, exponential SDE", _build_exponential_sde),
    _entry("flow_matching", "Flow matching, Heun", _build_flow_matching),
    _entry("unipc", "Diffusion, UniPC 3", _build_unipc),
)
