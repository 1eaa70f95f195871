"""Consistency models: one network that sends every point of an ODE's path to its end (Song, Dhariwal, Chen and Sutskever 2023).

In the coordinates y = x / alpha, with noise level s = sigma / alpha between s_min and s_max, the probability-flow ODE from any
level ends at s_min, and the consistency function f(s, y) is where. It is the identity at s_min by construction,

    f(s, y) = y / ((s - s_min)^2 + 1) - (s - s_min) / sqrt(s^2 + 1) F(x / r, t)            (their equation 5, sigma_data = 1)

with F in the place of v: at s_min = 0 this is the guess of x_0 of a network that predicts v, which is why a student can start
as its teacher's copy. Trained on neighbouring levels s_i < s_{i+1} of Karras's grid, by

    E w_i d(f(s_{i+1}, y_{i+1}), stop_gradient f(s_i, y_i)),    w_i = 1 / (s_{i+1} - s_i)

where y_i is a step of the teacher's ODE from y_{i+1} (distillation, algorithm 2), or the same event with the same noise at the
lower level (training, algorithm 3: no teacher). As improved by Song and Dhariwal (2023): d is the pseudo-Huber distance
sqrt(|a - b|^2 + c^2) - c with c = 0.00054 sqrt(size), the number of levels doubles from `levels[0]` to `levels[1]` while it is
trained, levels are log-normal, and the target is the student itself. The target may also be its moving average, which is then
kept in Model.state, as in the first paper.

One step draws f(s_max, s_max z); more steps noise the guess to a lower level and map again (algorithm 1). Row "GAN,
consistency, distilled" of the table: start Gaussian, one learned step, or a few.
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from gensamp.core import Info, Model, Network, Sampler, Static, bind
from gensamp.nets.event import Event
from gensamp.noise import FLOOR, Noise, diffuse, root
from gensamp.predictions import combine
from gensamp.pushforward.diffusion.ancestral import model_clip
from gensamp.pushforward.diffusion.distillation import check_teacher, student_params
from gensamp.pushforward.diffusion.grids import karras, times_of_log_snr
from gensamp.pushforward.diffusion.losses import asked, check_parts, denoiser, split_condition
from gensamp.pushforward.diffusion.solver import guess, known, pose, reverse
from gensamp.pushforward.diffusion.weightings import log_normal_levels
from gensamp.pushforward.frame import enter, frame_of

__all__ = ["consistency", "consistency_function", "consistency_sampler"]

RHO = 7.0
# Song and Dhariwal's -1.1 and 2 for data of standard deviation 0.5; the frame's is 1.
LOG_LEVEL = (-1.1 + math.log(2.0), 2.0)


def consistency(
    network: Network,
    noise: Noise,
    *,
    template: Any,
    num_steps: int = 1,
    teacher: Any = None,
    levels: tuple[int, int] = (10, 1280),
    train_steps: int = 3000,
    target_decay: float = 0.0,
    distance: Literal["huber", "squared"] = "huber",
    grid: Any = None,
    clip: Any = None,
    conditional: bool = False,
) -> Model:
    """A consistency model: trained on data alone, or distilled from a teacher where one is given.

    Args:
        network, noise, template, clip, conditional: as for `ddpm`; the process must leave some signal at t = 1.
        num_steps: steps of a draw, one forward each, at the upper levels of Karras's grid; ignored when a grid is given.
        teacher: the params of a fitted diffusion model of the same network and noise that predicts v. The student starts as
            its copy and learns from Heun steps of its ODE.
        levels: steps between noise levels at the start and at the end of the training; the number doubles on the way.
        train_steps: optimizer steps over which it does; what `fit` is told.
        target_decay: mu, of the moving average of the student's weights that gives the targets; 0: the student itself.
        distance: "huber", or "squared" as in the first paper.
        grid: [num_steps + 1] times, the last one not used.

    Returns:
        Model; two forwards per event in a loss, four with a teacher; one per step of a draw.

    Raises:
        TypeError: the network or the process is none.
        ValueError: a number is out of range, the process leaves no signal, or the teacher is none.
    """
    check_parts(network, noise)
    if min(num_steps, train_steps) < 1 or not 1 <= levels[0] <= levels[1]:
        raise ValueError(
            f"consistency got num_steps={num_steps}, train_steps={train_steps}, levels={levels}; expected positive numbers, "
            "and levels that do not fall"
        )
    if not 0 <= target_decay < 1 or distance not in ("huber", "squared"):
        raise ValueError(
            f"consistency got target_decay={target_decay}, distance={distance!r}; expected a decay in [0, 1), and 'huber' or "
            "'squared'"
        )
    event, teacher = Event.of(template), check_teacher("consistency", teacher)
    _check_signal(noise)
    grid = karras(noise, num_steps, rho=RHO, clean=False) if grid is None else jnp.asarray(grid)
    plan = Static((conditional, levels, train_steps, target_decay, distance))
    return Model(
        init=bind(_init, network, teacher, plan),
        loss=bind(_loss, network, noise, event, teacher, plan),
        sampler=bind(_model_sampler, network, noise, grid, event, model_clip(clip, event.template)),
        forwards=2 if teacher is None else 4,
    )


def consistency_function(network: Network, noise: Noise, weights: Any, condition: tuple = ()) -> Any:
    """(t, x) -> f, the clean end of the path through x at time t, in the frame's coordinates: a bound function, one forward."""
    return bind(_function, network, noise, weights, condition)


def consistency_sampler(
    function: Any, noise: Noise, grid: Any, template: Any, *, clip: Any = None, data_variance: Any = 0.0, frame: Any = None
) -> Sampler:
    """Multistep consistency sampling with any consistency function, learned or exact.

    Args:
        function: (t, x) -> where the path through x at time t ends, as `consistency_function` makes it.
        noise: the process. grid: [num_steps + 1] times; the function is asked at all but the last, which is not used.
        template, clip, data_variance, frame: as for `ancestral`.

    Returns:
        A finite Sampler of num_steps steps, one forward each; deterministic given its start for one step.

    Raises:
        ValueError: the process leaves no signal at t = 1, or as for `ancestral`.
    """
    _check_signal(noise)
    return reverse(pose("consistency_sampler", function, noise, grid, template, "x0", clip, data_variance, frame), _step)


def _check_signal(noise):
    signal = known(noise.alpha(1.0))
    if signal is not None and signal < FLOOR:
        raise ValueError(
            "consistency got a process that leaves no signal at t = 1, where x / alpha has no end; expected one that does, "
            "such as noise.cosine(), noise.ve() or noise.edm()"
        )


def _step(problem, key, x, index):
    noise, last = problem.noise, problem.times.size - 2
    clean, _ = guess(problem, problem.times[index], x)
    then = problem.times[index + 1]
    alpha, sigma = noise.alpha(then), noise.sigma(then)
    # The guess itself has the noise of the smallest level.
    floor = jnp.exp(-noise.log_snr(noise.t_min) / 2).astype(alpha.dtype)
    fresh = root(jnp.maximum(sigma**2 - (alpha * floor) ** 2, 0))
    alpha, fresh = (jnp.where(index == last, a, b) for a, b in ((1.0, alpha), (0.0, fresh)))
    return combine(alpha, clean, fresh, problem.event.normal(key)), Info.of(forwards=1)


def _init(network, teacher, plan, key, batch):
    conditional, _, _, target_decay, _ = plan.value
    params = student_params(network, teacher, Static(conditional), key, batch)
    return params, {"step": jnp.int32(0), "target": params["network"] if target_decay else ()}


def _loss(network, noise, event, teacher, plan, params, state, key, batch):
    conditional, (fewest, most), train_steps, target_decay, distance = plan.value
    x, condition = split_condition(conditional, batch)
    event.check(x)
    frame = jax.lax.stop_gradient({"shift": params["shift"], "scale": params["scale"]})
    size = len(jax.tree.leaves(x)[0])
    target = state["target"]
    if target_decay:
        rate = jnp.where(state["step"] > 0, 1 - target_decay, 1).astype(event.dtype)
        target = jax.tree.map(
            lambda old, new: old + rate.astype(old.dtype) * (jax.lax.stop_gradient(new) - old), target, params["network"]
        )
    doublings = int(math.log2(most / fewest))
    stage = jnp.minimum(state["step"] // max(train_steps // (doublings + 1), 1), doublings)
    count = jnp.minimum(fewest * 2 ** stage.astype(event.dtype), most)

    key_time, key_noise = jax.random.split(key)
    spread = jnp.mod(jax.random.uniform(key_time, (), event.dtype) + jnp.arange(size, dtype=event.dtype) / size, 1)
    low, high = _neighbours(noise, spread, count)
    times = [times_of_log_snr(noise, -2 * jnp.log(level), 1.0, noise.t_min) for level in (low, high)]

    def one(key, low, high, t_low, t_high, x, *condition):
        eps, x0 = event.normal(key), enter(frame, x)
        noisy = diffuse(noise, t_high, x0, eps)
        if teacher is None:
            nearer = diffuse(noise, t_low, x0, eps)
        else:
            clean = denoiser(network, noise, teacher, condition, "v", "x0")
            nearer = _heun(clean, noise, low, high, t_low, t_high, noisy)
        weights = target if target_decay else params["network"]
        wanted = jax.lax.stop_gradient(consistency_function(network, noise, weights, condition)(t_low, nearer))
        found = consistency_function(network, noise, params["network"], condition)(t_high, noisy)
        square = jnp.square(event.flatten(found) - event.flatten(wanted)).sum()
        if distance == "squared":
            return square / (high - low)
        c = 0.00054 * math.sqrt(event.size)
        return (jnp.sqrt(square + c**2) - c) / (high - low)

    errors = jax.vmap(one)(jax.random.split(key_noise, size), low, high, *times, x, *condition)
    metrics = {"consistency_error": errors.mean(), "levels": count}
    return errors.mean(), ({"step": state["step"] + 1, "target": target}, metrics)


def _neighbours(noise, spread, count):
    """Log-normal neighbours (s_i, s_{i+1}) of Karras's grid of `count` steps: i has the probability of what lies between."""
    first, last = (jnp.exp(-noise.log_snr(jnp.asarray(t, spread.dtype)) / (2 * RHO)) for t in (noise.t_min, 1.0))
    warped = jnp.exp(log_normal_levels(noise, spread, *LOG_LEVEL) / RHO)
    index = jnp.clip(jnp.floor(count * (warped - first) / (last - first)), 0, count - 1)
    return tuple((first + (last - first) * i / count) ** RHO for i in (index, index + 1))


def _heun(clean, noise, low, high, t_low, t_high, noisy):
    """One Heun step of the ODE dy/ds = (y - clean) / s from level `high` to `low`, in and out as x = alpha y."""
    alpha_low = noise.alpha(t_low)
    y = combine(1 / noise.alpha(t_high), noisy)
    slope = combine(1 / high, y, -1 / high, clean(t_high, noisy))
    ahead = combine(jnp.ones_like(low), y, low - high, slope)
    slope_ahead = combine(1 / low, ahead, -1 / low, clean(t_low, combine(alpha_low, ahead)))
    return combine(alpha_low, y, alpha_low * (low - high) / 2, slope, alpha_low * (low - high) / 2, slope_ahead)


def _function(network, noise, weights, condition, t, x):
    alpha, sigma = noise.alpha(t), noise.sigma(t)
    level, smallest = (jnp.exp(-noise.log_snr(time) / 2) for time in (t, jnp.asarray(noise.t_min, jnp.result_type(t))))
    gap, r = level - smallest, jax.lax.rsqrt(alpha**2 + sigma**2)
    found = asked(network, weights, combine(r, x), t, condition)
    return combine(1 / (alpha * (gap**2 + 1)), x, -gap * jax.lax.rsqrt(level**2 + 1), found)


def _model_sampler(network, noise, grid, event, clip, params, *condition):
    frame = frame_of(params, event.template, network)
    return consistency_sampler(
        consistency_function(network, noise, params["network"], condition), noise, grid, event.template, clip=clip,
        data_variance=1.0, frame=frame,
    )  # fmt: skip
