"""Progressive distillation: a student that makes in one DDIM step what its teacher makes in two (Salimans and Ho 2022).

With the student's n steps on the times 1, 1 - 1/n, ..., 0, and z' after two of the teacher's DDIM steps of half that length
from z_t, the student at time t is to guess the x_0 whose one step from z_t to s = t - 1/n lands there as well,

    x_0 = (z' - (sigma_s / sigma_t) z_t) / (alpha_s - (sigma_s / sigma_t) alpha_t)                    (their algorithm 2)

with weight SNR + 1, which is weight one on v (section 4). The student then becomes the teacher of the next stage with half the
steps. All stages are one loss: the state counts its own steps and keeps the teacher, which is replaced every `stage_steps`.
Without a teacher given, stage 0 trains one, on data. Where the student learns each stage exactly, its draws at n steps are
those of the first teacher's DDIM at all its steps.

Rows "diffusion" and "GAN, consistency, distilled" of the table: start Gaussian, few learned deterministic steps.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gensamp.core import Model, Network, Static, bind
from gensamp.nets.event import Event
from gensamp.noise import FLOOR, Noise, diffuse
from gensamp.predictions import combine
from gensamp.pushforward.diffusion.ancestral import model_clip
from gensamp.pushforward.diffusion.ddim import ddim_sampler
from gensamp.pushforward.diffusion.distillation import check_teacher, student_params
from gensamp.pushforward.diffusion.grids import uniform_time
from gensamp.pushforward.diffusion.losses import check_parts, denoiser, split_condition
from gensamp.pushforward.frame import enter, frame_of

__all__ = ["progressive"]


def progressive(
    network: Network,
    noise: Noise,
    *,
    template: Any,
    num_steps: int = 1,
    teacher_steps: int = 32,
    stage_steps: int = 1000,
    teacher: Any = None,
    clip: Any = None,
    conditional: bool = False,
) -> Model:
    """A diffusion model of few steps, distilled by halving.

    Args:
        network, noise, template, clip, conditional: as for `ddpm`; the network predicts v.
        num_steps: steps of a draw in the end.
        teacher_steps: DDIM steps of the first teacher; num_steps times a power of two, the number of halvings.
        stage_steps: optimizer steps per halving. `fit` must take them for every halving, and as many again for the teacher
            where none is given. To let the learning rate fall in every stage, as in the paper, fit one halving at a time:
            `progressive(..., teacher=fitted.params, teacher_steps=2 * n, num_steps=n)`.
        teacher: the params of a fitted diffusion model of the same network and noise that predicts v; the student starts as
            its copy.

    Returns:
        Model; one forward per event in a loss and two of the teacher, counted as they come; one per step of a draw.

    Raises:
        TypeError: the network or the process is none.
        ValueError: the numbers are not positive, teacher_steps is not num_steps times a power of two, or the teacher is none.
    """
    check_parts(network, noise)
    if min(num_steps, stage_steps) < 1:
        raise ValueError(f"progressive got num_steps={num_steps}, stage_steps={stage_steps}; expected at least 1")
    halvings = (max(teacher_steps // num_steps, 1)).bit_length() - 1
    if halvings < 1 or num_steps << halvings != teacher_steps:
        raise ValueError(
            f"progressive got teacher_steps={teacher_steps} for num_steps={num_steps}; expected num_steps times 2, 4, 8, ..."
        )
    event, teacher = Event.of(template), check_teacher("progressive", teacher)
    plan = Static((conditional, teacher_steps, stage_steps, halvings, 0 if teacher is None else 1))
    return Model(
        init=bind(_init, network, teacher, Static(conditional)),
        loss=bind(_loss, network, noise, event, plan),
        sampler=bind(_sampler, network, noise, uniform_time(num_steps), event, model_clip(clip, event.template)),
    )


def _init(network, teacher, conditional, key, batch):
    params = student_params(network, teacher, conditional, key, batch)
    return params, {"step": jnp.int32(0), "teacher": params["network"]}


def _loss(network, noise, event, plan, params, state, key, batch):
    conditional, teacher_steps, stage_steps, halvings, first = plan.value
    x, condition = split_condition(conditional, batch)
    event.check(x)
    frame = jax.lax.stop_gradient({"shift": params["shift"], "scale": params["scale"]})
    size = len(jax.tree.leaves(x)[0])
    stage = jnp.minimum(state["step"] // stage_steps + first, halvings)
    # The student of the stage before, as it is when a stage begins.
    begins = (state["step"] > 0) & (state["step"] % stage_steps == 0) & (state["step"] // stage_steps + first <= halvings)
    teacher = jax.tree.map(
        lambda new, old: jnp.where(begins, new, old), jax.lax.stop_gradient(params["network"]), state["teacher"]
    )
    steps = (teacher_steps // 2 ** jnp.arange(halvings + 1))[stage].astype(event.dtype)
    key_time, key_noise = jax.random.split(key)
    spread = jnp.mod(jax.random.uniform(key_time, (), event.dtype) + jnp.arange(size, dtype=event.dtype) / size, 1)
    times = jnp.where(stage > 0, (jnp.floor(steps * spread) + 1) / steps, noise.t_min + (1 - noise.t_min) * spread)

    def one(key, t, x, *condition):
        x0 = enter(frame, x)
        noisy = diffuse(noise, t, x0, event.normal(key))

        def taught():
            guess = denoiser(network, noise, {"network": teacher}, condition, "v", "x0")
            return _target(guess, noise, steps, t, noisy)

        target = jax.lax.stop_gradient(jax.lax.cond(stage > 0, taught, lambda: x0))
        guess = denoiser(network, noise, params, condition, "v", "x0")(t, noisy)
        error = jnp.square(event.flatten(guess) - event.flatten(target)).mean()
        return (1 + jnp.exp(noise.log_snr(t))) * error

    error = jax.vmap(one)(jax.random.split(key_noise, size), times, x, *condition).mean()
    counted = {"distillation_error": error, "stage": stage, "forwards": jnp.where(stage > 0, 2 * size, 0)}
    return error, ({"step": state["step"] + 1, "teacher": teacher}, counted)


def _target(guess, noise, steps, t, noisy):
    """The x_0 that takes one step of DDIM to where two of the teacher's half steps lead."""
    half, end = jnp.maximum(t - 0.5 / steps, 0), jnp.maximum(t - 1 / steps, 0)
    landed = _ddim(guess, noise, half, end, _ddim(guess, noise, t, half, noisy))
    kept = noise.sigma(end) / noise.sigma(t)
    share = 1 / (noise.alpha(end) - kept * noise.alpha(t))
    return combine(share, landed, -share * kept, noisy)


def _ddim(guess, noise, t, s, x):
    kept = noise.sigma(s) / jnp.maximum(noise.sigma(t), FLOOR)
    return combine(noise.alpha(s) - kept * noise.alpha(t), guess(t, x), kept, x)


def _sampler(network, noise, grid, event, clip, params, *condition):
    frame = frame_of(params, event.template, network)
    return ddim_sampler(
        denoiser(network, noise, params, condition, "v", "x0"), noise, grid, event.template, prediction="x0", clip=clip,
        data_variance=1.0, frame=frame,
    )  # fmt: skip
