"""What all solvers of a reversed diffusion share: the problem they are given, its start, its bounds, its last step.

A denoiser, learned or exact, says at each time what the noised event x_t = alpha x_0 + sigma eps is made of, in any of the five
ways of `predictions`; a solver walks down a time grid with it. Every solver takes the same arguments, so grids, processes and
predictions combine freely, and grid and process are leaves: one compiled program per solver.

    solver(denoise, noise, grid, template, *, prediction="eps", clip=None, data_variance=0.0, frame=None) -> Sampler

The last step. **A step to a time without noise (sigma < `noise.FLOOR`) returns the denoiser's guess of the clean event**, at
one forward, whatever the solver's order: there the log-SNR is infinite and no polynomial in it reaches. A step of no length
does nothing, and a node of a multistep method that coincides with its neighbour is left out, together with all older ones. So
no grid gives 0 / 0.

Refused by name, before anything is compiled: a grid that starts where no signal is left (alpha = 0: a rectified flow at t = 1)
together with a denoiser that predicts eps or the score, which say nothing of x_0 there, or with a solver that itself
integrates eps against d(sigma / alpha), which is infinite there.

Row "diffusion" of the table: start N(0, sigma_1^2), as many steps as the grid has, the last state is the draw.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from gensamp.core import Sampler, Static, Traits, bind, scalar
from gensamp.nets.event import Event
from gensamp.noise import FLOOR, Noise, root, x0_to_eps
from gensamp.predictions import check_prediction, combine, rates, to_eps, to_x0
from gensamp.pushforward.diffusion.guided import charged
from gensamp.pushforward.frame import enter, identity_frame, leave

__all__ = [
    "Level", "Problem", "field", "first_order", "guess", "known", "level", "level_at", "looked_up", "pose", "reverse",
    "stirred",
]  # fmt: skip


@register_dataclass
@dataclass(frozen=True, eq=False)
class Problem:
    """A reversed diffusion to be solved.

    denoise: (t, x) -> prediction, like x. noise: the process. times: [num_steps + 1]. clip: None or two events of bounds, in
    the frame. frame: shift and scale of the coordinates the denoiser works in. data_variance: scalar, for the start. event:
    shapes. prediction: what the denoiser returns.
    """

    denoise: Any
    noise: Noise
    times: Any
    clip: Any
    frame: Any
    data_variance: Any
    event: Event
    prediction: str = dataclasses.field(metadata={"static": True})


class Level(NamedTuple):
    """One time of a grid: t, alpha, sigma, and lam = log(alpha / sigma), finite; clean: whether no noise is left."""

    t: Any
    alpha: Any
    sigma: Any
    lam: Any
    clean: Any


def pose(
    name: str, denoise: Any, noise: Noise, grid: Any, template: Any, prediction: str, clip: Any, data_variance: Any, frame: Any,
    *, needs_signal: bool = False,
) -> Problem:  # fmt: skip
    """A problem from a solver's arguments, checked.

    Args:
        name: the solver, for messages.
        denoise, noise, grid, template, prediction, clip, data_variance, frame: as for `ancestral`.
        needs_signal: the solver cannot start where alpha is zero, whatever is predicted.

    Raises:
        TypeError: the denoiser holds a text among its arrays, where no compiled program takes one.
        ValueError: the grid is not a vector of at least two times in [0, 1] that never rise, it starts where the solver or the
            prediction cannot, or the prediction is unknown.
    """
    check_prediction(prediction, name)
    texts = [leaf for leaf in jax.tree.leaves(denoise) if isinstance(leaf, str)]
    if texts:
        raise TypeError(f"{name} got a denoiser that holds {texts[0]!r}, which is no array; bind it as Static({texts[0]!r})")
    event = Event.of(template)
    if jnp.ndim(grid) != 1 or jnp.size(grid) < 2:
        raise ValueError(f"{name} got a grid of shape {jnp.shape(grid)}; expected [num_steps + 1] times")
    times = known(grid)
    if times is not None and not (np.all(np.diff(times) <= 0) and times[0] <= 1 and times[-1] >= 0):
        raise ValueError(f"{name} got the grid {times}; expected times from noise (1) down to data (0)")
    if times is not None and (needs_signal or prediction in ("eps", "score")):
        signal = known(noise.alpha(times[0]))
        if signal is not None and signal < FLOOR:
            why = f"the integral of eps that {name} takes has no end" if needs_signal else f"{prediction} says nothing of x_0"
            remedy = "start at 0.999" if needs_signal else "start at 0.999, or let the denoiser predict x0, v or velocity"
            raise ValueError(
                f"{name} got a grid from t = {times[0]:g}, where this process leaves no signal and {why}; {remedy}"
            )
    frame = identity_frame(event.template) if frame is None else frame
    if clip is not None:
        clip = tuple(enter(frame, event.unflatten(jnp.full(event.size, bound, event.dtype))) for bound in clip)
    return Problem(
        denoise, noise, jnp.asarray(grid, event.dtype), clip, frame, scalar(data_variance, event.template), event, prediction
    )


def reverse(problem: Problem, step: Any, *given: Any, memory: int = 0) -> Sampler:
    """The Sampler that walks down the problem's grid.

    Args:
        step: module-level, (problem, *given, key, state, index) -> (state, Info), its forwards the calls of the denoiser.
        given: what the solver binds besides: arrays, `Static`s.
        memory: 0: the state is x. n: the state is (x, (event, ...)) with n remembered events, zero at the start.
    """
    return Sampler(
        # The start needs no denoiser: its parameters are handed to programs once, and not twice.
        start=bind(_start, dataclasses.replace(problem, denoise=None, clip=None)),
        init=bind(_remember, Static(memory)) if memory else bind(_stand),
        step=charged(bind(step, problem, *given), problem.denoise),
        position=bind(_leave_first if memory else leave, problem.frame),
        num_steps=problem.times.size - 1,
        traits=Traits(law="approximate"),
    )


def level(problem: Problem, index: Any) -> Level:
    """The grid's time number `index` (the first for a negative one)."""
    return level_at(problem.noise, problem.times[jnp.maximum(index, 0)])


def looked_up(index: Any, coefficients: Any, problem: Problem, *given: Any) -> Any:
    """`coefficients(problem, *given, index)`, a tree of numbers that depend on the grid and not on the draw.

    They are asked for at all steps at once. So XLA takes them out of the loop over steps, where every one of them would be a
    kernel call of its own in every step.
    """
    steps = jnp.arange(problem.times.size - 1, dtype=jnp.int32)
    rows = jax.vmap(lambda step: coefficients(problem, *given, step))(steps)
    return jax.tree.map(lambda row: jax.lax.dynamic_index_in_dim(row, index, keepdims=False), rows)


def level_at(noise: Noise, t: Any) -> Level:
    """Any time of a process."""
    sigma = noise.sigma(t)
    return Level(t, noise.alpha(t), sigma, noise.log_snr(t) / 2, sigma < FLOOR)


def guess(problem: Problem, t: Any, x: Any) -> tuple[Any, Any]:
    """(x_0, eps) as the denoiser sees them in x at time t, x_0 clipped where bounds were given; one forward.

    eps is recomputed from a clipped x_0: with the old one, the two no longer add up to x_t (and DDIM no longer to DDPM).
    """
    noise, prediction = problem.noise, problem.prediction
    value = problem.denoise(t, x)
    x0 = to_x0(noise, t, x, value, prediction)
    if problem.clip is None:
        return x0, to_eps(noise, t, x, value, prediction)
    x0 = jax.tree.map(jnp.clip, x0, *problem.clip)
    return x0, x0_to_eps(noise, t, x, x0)


def field(problem: Problem, t: Any, x0: Any, eps: Any) -> Any:
    """The velocity dx/dt = alpha' x_0 + sigma' eps of the probability-flow ODE, from a guess at time t."""
    alpha_rate, sigma_rate = rates(problem.noise, t)
    return combine(alpha_rate, x0, sigma_rate, eps)


def first_order(then: Level, x0: Any, eps: Any) -> Any:
    """alpha x_0 + sigma eps at a later level: DDIM's step, and every solver's to a time without noise."""
    return combine(then.alpha, x0, then.sigma, eps)


def stirred(problem: Problem, amount: Any, key: Any, *terms: Any) -> Any:
    """combine(*terms) + amount z with z standard normal; where the amount is zero, no numbers are drawn.

    A deterministic solver is a stochastic one at eta = 0, which is a leaf; drawing numbers to multiply them by zero cost four
    times the rest of a step.
    """

    def stir(x):
        return jax.tree.map(jnp.add, x, combine(amount, problem.event.normal(key)))

    return jax.lax.cond(amount > 0, stir, lambda x: x, combine(*terms))


def known(value: Any) -> np.ndarray | None:
    """A value that can be looked at now, or None inside of a transformation."""
    return None if isinstance(value, jax.core.Tracer) else np.asarray(value)


def _start(problem, key):
    first = level(problem, 0)
    scale = root(first.sigma**2 + first.alpha**2 * problem.data_variance)
    return jax.tree.map(lambda z: scale.astype(z.dtype) * z, problem.event.normal(key))


def _stand(key, z):
    del key
    return z


def _remember(memory, key, z):
    del key
    return z, tuple(jax.tree.map(jnp.zeros_like, z) for _ in range(memory.value))


def _leave_first(frame, state):
    return leave(frame, state[0])
