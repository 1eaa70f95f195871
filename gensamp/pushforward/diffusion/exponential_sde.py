"""Exponential Euler-Maruyama on the reversed SDE: SEEDS-1 (Gonzalez et al. 2023), the SDE's counterpart of DPM-Solver-1.

With lam = log(alpha / sigma), h = lam_s - lam_t and noise eta, the SDE with the diffusion's marginals is, given eps, linear:

    x_s = (alpha_s / alpha_t) x_t - (1 + eta) sigma_s (e^h - 1) eps + sigma_s sqrt(eta (e^{2h} - 1)) z,    z ~ N(0, I)

(their equation 15 at eta = 1; eta = 0 is DDIM). The noise is the SDE's own, exactly integrated; the ancestral sampler and
`dpm_solver_pp(order=1, eta=1)` instead hold x_0 fixed within a step. Row "diffusion" of the table.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gensamp.core import Info, Sampler, scalar
from gensamp.noise import FLOOR, Noise, root
from gensamp.predictions import Prediction, combine
from gensamp.pushforward.diffusion.solver import first_order, guess, level, pose, reverse

__all__ = ["exponential_sde"]


def exponential_sde(
    denoise: Any,
    noise: Noise,
    grid: Any,
    template: Any,
    *,
    eta: Any = 1.0,
    prediction: Prediction = "eps",
    clip: Any = None,
    data_variance: Any = 0.0,
    frame: Any = None,
) -> Sampler:
    """The exponential integrator of the reversed SDE, for any denoiser.

    Args:
        eta: 1 for the reversed SDE itself, 0 for its ODE, any positive number between and beyond; a leaf.
        denoise, noise, grid, template, prediction, clip, data_variance, frame: as for `ancestral`.

    Returns:
        A finite Sampler of as many steps as the grid has, one forward each.

    Raises:
        ValueError: eta is negative, the grid starts where no signal is left, or as for `ancestral`.
    """
    if not isinstance(eta, jax.core.Tracer) and not float(eta) >= 0:
        raise ValueError(f"exponential_sde got eta={eta}; expected 1 (the SDE), 0 (the ODE) or another positive number")
    problem = pose("exponential_sde", denoise, noise, grid, template, prediction, clip, data_variance, frame, needs_signal=True)
    return reverse(problem, _step, scalar(eta, problem.event.template))


def _step(problem, eta, key, x, index):
    now, then = level(problem, index), level(problem, index + 1)
    x0, eps = guess(problem, now.t, x)
    kept = then.alpha / jnp.maximum(now.alpha, FLOOR)
    # sigma_s e^h, without the exponential of a difference of logarithms.
    grown = kept * now.sigma
    fresh = root(jnp.maximum(eta * (grown**2 - then.sigma**2), 0))
    moved = combine(kept, x, -(1 + eta) * (grown - then.sigma), eps, fresh, problem.event.normal(key))
    return jax.tree.map(lambda a, b: jnp.where(then.clean, a, b), first_order(then, x0, eps), moved), Info.of(forwards=1)
