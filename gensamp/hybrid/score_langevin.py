"""Annealed Langevin dynamics on learned scores: the statistician's chain, driven by a network (Song and Ermon 2019).

The network is trained as a denoiser, exactly as for `pushforward.ddpm`, and its score at noise level sigma_i is
-eps_hat / sigma_i. A draw starts from noise and makes a few Langevin steps on each level of a falling sequence,

    x <- x + e_i score_i(x) + sqrt(2 e_i) xi,    e_i = step_size sigma_i^2          (their Algorithm 1, whose alpha_i is 2 e_i)

so that every level has the same ratio of drift to noise. At the end the noise of the last level is removed by Tweedie's formula
(Jolicoeur-Martineau et al. 2021), at no cost. The paper's process is `noise.ve`; any other does, the levels being laws of
alpha_i x_0 + sigma_i eps. Row "annealed Langevin" of the table with row "diffusion"'s training: one set of parameters draws in
both ways, which shows that Langevin dynamics and the reversed diffusion are two samplers of one family.
"""

from typing import Any, Literal

import jax
from jax.tree_util import Partial

from gensamp.core import Model, Network, Sampler, Static, bind, scalar
from gensamp.mcmc import annealed_langevin
from gensamp.nets.event import Event
from gensamp.noise import Noise, eps_to_score
from gensamp.paths import learned
from gensamp.pushforward.diffusion.grids import uniform_time
from gensamp.pushforward.diffusion.guidance import Guidance, steered, with_dropout
from gensamp.pushforward.diffusion.guided import charged
from gensamp.pushforward.diffusion.losses import denoising_init, denoising_loss
from gensamp.pushforward.diffusion.weightings import Weighting
from gensamp.pushforward.frame import frame_of, leave

__all__ = ["score_langevin"]


def score_langevin(
    network: Network,
    noise: Noise,
    *,
    template: Any,
    num_levels: int = 20,
    steps_per_level: int = 10,
    step_size: Any = 0.3,
    prediction: Literal["eps", "v"] = "v",
    weighting: Weighting | str = "uniform",
    conditional: bool = False,
    guidance: Guidance | None = None,
) -> Model:
    """A score network with annealed Langevin sampling.

    Args:
        network, noise, template, prediction, conditional: as for `pushforward.ddpm`, whose parameters it can use, and the
            other way round.
        num_levels: noise levels, equally spaced in time from the prior to `noise.t_min`: scales in geometric progression for
            `noise.ve`, as in the paper.
        steps_per_level: Langevin steps on each.
        weighting: as for `pushforward.diffusion_model`; `ncsn` trains at the levels alone.
        step_size: e_i / sigma_i^2, a leaf. Discretisation inflates the variance of a level by a factor 1 / (1 - step_size / 2).
        guidance: None, or what steers the draws, as for `pushforward.diffusion_model`. At a strength other than 1 the guided
            field is the score of no law, see `guidance`: more steps per level then come no nearer to one.

    Returns:
        Model; one forward per event in a loss, one per Langevin step of a draw, or what the guidance makes of it.

    Raises:
        ValueError: a number is not positive, or step_size is not below 2, where the dynamics diverges.
    """
    if num_levels < 2 or steps_per_level < 1:
        raise ValueError(
            f"score_langevin got num_levels={num_levels}, steps_per_level={steps_per_level}; expected 2, 1 or more"
        )
    if not isinstance(step_size, jax.core.Tracer) and not 0 < float(step_size) < 2:
        raise ValueError(f"score_langevin got step_size={step_size}; expected a number in (0, 2), such as 0.3")
    event = Event.of(template)
    return Model(
        init=denoising_init(network, conditional),
        loss=with_dropout(
            guidance, denoising_loss(network, noise, template, conditional, prediction, weighting), conditional
        ),
        sampler=bind(
            _sampler, network, noise, uniform_time(num_levels - 1, end=noise.t_min), scalar(step_size, event.template), event,
            Static(steps_per_level), Static(prediction), guidance,
        ),
    )  # fmt: skip


def _sampler(network, noise, times, step_size, event, steps_per_level, prediction, guidance, params, *condition) -> Sampler:
    frame = frame_of(params, event.template, network)
    denoise = steered(guidance, network, noise, params, condition, prediction.value, "eps")
    path = learned(bind(_score, noise, denoise), noise, event.template)
    sigma = jax.vmap(noise.sigma)(times)
    inner = annealed_langevin(
        path,
        levels=1 - times,
        step_sizes=step_size * sigma**2,
        steps_per_level=steps_per_level.value,
        denoise=sigma[-1] ** 2,
    )
    step = charged(inner.step, denoise)
    position = bind(_position, inner.position, noise.alpha(times[-1]), frame)
    return Sampler(inner.start, inner.init, step, position, num_steps=inner.num_steps, traits=inner.traits)


def _score(noise, denoise, t, x):
    return eps_to_score(noise, t, x, denoise(t, x))


def _position(inner: Partial, alpha, frame, state):
    """Tweedie's guess is alpha x_0; take it out of the process's scale, then out of the frame."""
    return leave(frame, jax.tree.map(lambda a: a / alpha.astype(a.dtype), inner(state)))
