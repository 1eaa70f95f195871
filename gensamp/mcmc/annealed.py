"""Annealed Langevin dynamics: a few Langevin steps on each of a sequence of laws that end at the target.

Given a path with laws indexed by t (t = 0 easy to draw from, t = 1 the target), levels t_1 < ... < t_L and step sizes eps_1,
..., eps_L,

    x_0 ~ base;    for each level i, steps_per_level times:    x <- x + eps_i score(t_i, x) + sqrt(2 eps_i) xi,

the last state being the draw. It is Song and Ermon 2019, Algorithm 1, whose step alpha_i is 2 eps_i here, and whose schedule
`scaled_step_sizes` computes. No step is corrected, so the law is approximate. Row two of the table: finite, made by hand; with
a learned score it is row three's.

A state carries the score of the law it stands in. A step therefore ends by initialising the state anew at the level of the step
that follows; the common mistake keeps the old level's score, and moves with it once per level.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gensamp.core import Info, Path, Sampler, Static, Traits, bind, require, scalar
from gensamp.mcmc.arguments import dimension, strong
from gensamp.mcmc.langevin import UlaState, langevin_move

__all__ = ["annealed_langevin", "scaled_step_sizes"]


def annealed_langevin(path: Path, *, levels: Any, step_sizes: Any, steps_per_level: int, denoise: Any = None) -> Sampler:
    """Annealed Langevin dynamics along a path.

    Args:
        path: `base.exact` gives the start, `score` the drift. Closed form or learned.
        levels: [L] times in [0, 1], from the base's side (0) to the target's (1). Leaves.
        step_sizes: [L] eps_i of the formula above, or one number for all levels; see `scaled_step_sizes`. Leaves.
        steps_per_level: steps on each level; static, since L * steps_per_level is the length of the run.
        denoise: variance v of the noise that is left at the last level; the draw is then the mean of the clean event given the
            noisy one, x + v score(t_L, x) (Tweedie's formula; Jolicoeur-Martineau et al. 2021). None leaves the noisy event. It
            is for
            paths that add noise without shrinking the event, and costs nothing: the state holds that score.

    Returns:
        A finite Sampler of L * steps_per_level steps. Each evaluates the score once (`path.forwards` forwards if that is not 0,
        otherwise one gradient), and so does init.

    Raises:
        ValueError: the base cannot be drawn from, shapes differ, or values are out of range.
    """
    exact = require(path.base, "exact", "annealed_langevin")
    if not isinstance(steps_per_level, int) or steps_per_level < 1:
        raise ValueError(f"annealed_langevin got steps_per_level {steps_per_level!r}; expected an integer of at least 1")
    if np.ndim(levels) != 1 or np.size(levels) == 0:
        raise ValueError(f"annealed_langevin got levels of shape {list(np.shape(levels))}; expected [levels], at least one")
    if np.shape(step_sizes) not in ((), np.shape(levels)):
        raise ValueError(
            f"annealed_langevin got step_sizes of shape {list(np.shape(step_sizes))} for {np.size(levels)} levels; expected "
            f"[{np.size(levels)}] or one number"
        )
    if _wrong(levels, lambda t: ((t >= 0) & (t <= 1)).all() and (np.diff(t) >= 0).all()):
        raise ValueError(
            f"annealed_langevin got levels {np.asarray(levels)}; expected times that rise from 0 (base) to 1 (target)"
        )
    if _wrong(step_sizes, lambda e: ((e > 0) & np.isfinite(e)).all()):
        raise ValueError(f"annealed_langevin got step_sizes {np.asarray(step_sizes)}; expected positive finite numbers")
    if denoise is not None and _wrong(denoise, lambda v: v.shape == () and v >= 0 and np.isfinite(v)):
        raise ValueError(f"annealed_langevin got denoise {denoise}; expected the variance of the noise that is left, or None")
    template = path.base.template
    levels = scalar(levels, template)
    return Sampler(
        start=exact,
        init=bind(_init, path.score, levels),
        step=bind(
            _step, path.score, levels, jnp.broadcast_to(scalar(step_sizes, template), levels.shape),
            jnp.ones((dimension(template),), levels.dtype), Static(steps_per_level), Static(path.forwards),
        ),
        position=bind(_noisy) if denoise is None else bind(_clean, scalar(denoise, template)),
        num_steps=levels.size * steps_per_level,
        traits=Traits(law="approximate"),
    )  # fmt: skip


def scaled_step_sizes(scales: Any, smallest: Any) -> jax.Array:
    """Song and Ermon's schedule eps_i = smallest * sigma_i^2 / sigma_L^2: every level has the same signal-to-noise ratio.

    Args:
        scales: [L] standard deviations sigma_i of the noise at each level, the target's side last.
        smallest: eps_L, the step size of the last level (half of the paper's epsilon).

    Returns:
        [L] step sizes.
    """
    scales = jnp.asarray(scales)
    return smallest * jnp.square(scales / scales[-1])


def _init(score, levels, key, position):
    del key
    return _stand(score, levels[0], position)


def _step(score, levels, step_sizes, identity, steps_per_level, forwards, key, state, index):
    level = index // steps_per_level.value
    following = jnp.minimum((index + 1) // steps_per_level.value, levels.size - 1)
    position = langevin_move(key, state.position, state.score, step_sizes[level], identity)
    cost = {"forwards": forwards.value} if forwards.value else {"gradients": 1}
    finite = jnp.stack([jnp.isfinite(a).all() for a in jax.tree.leaves(position)]).all()
    return _stand(score, levels[following], position), Info.of(**cost, diverged=~finite)


def _stand(score, level, position):
    return strong(UlaState(position, score(level, position)))


def _noisy(state):
    return state.position


def _clean(variance, state):
    return jax.tree.map(lambda x, s: x + variance * s, state.position, state.score)


def _wrong(values, holds) -> bool:
    return not isinstance(values, jax.core.Tracer) and not holds(np.asarray(values))
