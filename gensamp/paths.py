"""Families of laws indexed by t in [0, 1], from a base that is easy to draw from (t = 0) to the target (t = 1).

    geometric   log p_t = (1 - t) log base + t log target            (Kirkpatrick et al. 1983; Neal 2001, equation 3)
    tempered    log p_t = beta(t) log target, beta rising to 1       (Geyer 1991)
    noised      p_t = law of alpha x_0 + sigma eps, x_0 ~ target     (Song and Ermon 2019), exact for Gaussian mixtures
    learned     the same law, its score from a network

The last two run along a noise process, whose time runs the other way: the path's t is noise time 1 - t. Each path feeds row
two of the design's table (annealed Langevin, importance sampling, tempering) and, with exact scores, the solvers of row three.

Geometric paths of unnormalised densities are unnormalised. Every function acts on one event; one score of a closed form
costs one gradient of the target, one learned score costs one forward evaluation.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from gensamp import noise as noising
from gensamp.core import Path, PyTree, Target, as_template, bind, require, scalar
from gensamp.noise import Noise
from gensamp.targets.mixture import Mixture, mixture_draw, mixture_log_density, mixture_score

__all__ = ["geometric", "learned", "mean_density", "noised", "tempered", "tempered_density"]


def geometric(base: Target, target: Target) -> Path:
    """The geometric mean of two densities, log p_t = (1 - t) log base + t log target.

    Args:
        base: with exact draws and a density.
        target: with a density; events like the base's.

    Returns:
        Path: one score is one score of each.

    Raises:
        ValueError: a density or the base's exact draws are missing, or the two have different events.
    """
    require(base, "exact", "geometric")
    _same_events(base, target, "geometric")
    densities = [require(t, "log_density", "geometric") for t in (base, target)]
    scores = [require(t, "score", "geometric") for t in (base, target)]
    return Path(base, bind(mean_density, *densities), bind(_mean_score, *scores))


def tempered(target: Target, base: Target, *, smallest: Any = 0.0) -> Path:
    """The target at inverse temperature beta(t), log p_t = beta(t) log target.

    beta(0) = smallest, beta(1) = 1, log-linear in t; with smallest = 0, linear, and the law at t = 0 is flat.

    Args:
        target: with a density.
        base: with exact draws: where runs start, chosen wide. It is no member of the family, which is why it must be given.
        smallest: inverse temperature at t = 0, in [0, 1].

    Raises:
        ValueError: a part is missing, the two have different events, or smallest is outside [0, 1].
    """
    if not isinstance(smallest, int | float | np.number | np.ndarray | jax.Array) or not 0 <= smallest <= 1:
        raise ValueError(f"tempered got smallest={smallest!r}; expected an inverse temperature in [0, 1]")
    require(base, "exact", "tempered")
    _same_events(base, target, "tempered")
    floor = scalar(smallest, target.template)
    log_density, score = (require(target, field, "tempered") for field in ("log_density", "score"))
    return Path(base, bind(tempered_density, floor, log_density), bind(_tempered_score, floor, score))


def noised(target: Target, noise: Any) -> Path:
    """A Gaussian mixture under noise, exactly: at noise time s the components are N(alpha m_k, alpha^2 v_k + sigma^2).

    Args:
        target: made by `targets.mixture`, or a target that is one: gmm40, two_moons.
        noise: the process; the path's t is noise time 1 - t, so t = 1 is the target under sigma(0), which a variance-exploding
            process does not take to zero.

    Returns:
        Path: its base is the mixture at noise time 1 itself, not its Gaussian limit, so that nothing is approximate.

    Raises:
        TypeError: the noise is none.
        ValueError: the target's density is not a Gaussian mixture in closed form.
    """
    if not isinstance(noise, Noise):
        raise TypeError(f"noised got {noise!r} as its noise; expected a Noise, such as gs.noise.cosine()")
    density = target.log_density
    if not isinstance(density, Partial) or density.func is not mixture_log_density:
        raise ValueError(
            f"noised got target '{target.name}', which is not a Gaussian mixture; make one with targets.mixture, or "
            "give a trained network to learned"
        )
    (components,) = density.args
    start = _noised_components(components, noise, 0.0)
    base = Target.from_log_density(
        bind(mixture_log_density, start),
        target.template,
        name=f"{target.name} under noise",
        score=bind(mixture_score, start),
        exact=bind(mixture_draw, start),
    )
    return Path(base, bind(_noised_density, components, noise), bind(_noised_score, components, noise))


def learned(score: Any, noise: Noise, template: PyTree) -> Path:
    """The path whose score a network gives, from the noise's prior to the data.

    Args:
        score: (t, x) -> like x at noise time t (0 data, 1 noise): a bound function with its parameters as leaves, such as
            `bind(my_score, network.apply, params)`.
        noise: the process it was trained under. It is asked for scores at noise times of at least noise.t_min.
        template: one event.

    Returns:
        Path: base N(0, sigma(1)^2), no density, `forwards` 1.

    Raises:
        TypeError: the score does not return an event like the template.
    """
    template = as_template(template)
    score = score if isinstance(score, Partial) else bind(score)
    got = jax.eval_shape(score, scalar(1.0, template), template)
    if jax.tree.structure(got) != jax.tree.structure(template) or not all(
        a.shape == b.shape for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(template), strict=True)
    ):
        raise TypeError(f"score returned {got} for one event {template}; expected an event of the same shapes")
    return Path(noising.prior(noise, template), None, bind(_learned_score, score, scalar(noise.t_min, template)), forwards=1)


def _same_events(base: Target, target: Target, by: str) -> None:
    if base.template != target.template:
        raise ValueError(f"{by} got a base of events {base.template}, a target of events {target.template}; expected the same")


def mean_density(base, target, t, x):
    """log p_t(x) of a geometric path, from its two log densities."""
    t = scalar(t, x)
    # A weight of exactly 0 must silence a density that is -inf there, and 0 * -inf is NaN.
    return (1 - t) * jnp.where(t < 1, base(x), 0.0) + t * jnp.where(t > 0, target(x), 0.0)


def _mean_score(base, target, t, x):
    t = scalar(t, x)

    def mean(a, b):
        weight = t.astype(a.dtype)
        return (1 - weight) * jnp.where(t < 1, a, 0.0) + weight * jnp.where(t > 0, b, 0.0)

    return jax.tree.map(mean, base(x), target(x))


def _beta(floor, t):
    t = jnp.asarray(t, floor.dtype)
    return jnp.where(floor > 0, jnp.maximum(floor, jnp.finfo(floor.dtype).tiny) ** (1 - t), t)


def tempered_density(floor, log_density, t, x):
    """log p_t(x) of a tempered path, from the target's log density; floor is the inverse temperature at t = 0."""
    beta = _beta(floor, t)
    return beta * jnp.where(beta > 0, log_density(x), 0.0)


def _tempered_score(floor, score, t, x):
    beta = _beta(floor, t)
    return jax.tree.map(lambda a: beta.astype(a.dtype) * jnp.where(beta > 0, a, 0.0), score(x))


def _noised_components(components: Mixture, noise: Noise, t) -> Mixture:
    """The mixture at path time t."""
    s = 1 - jnp.asarray(t, components.means.dtype)
    alpha, sigma = noise.alpha(s), noise.sigma(s)
    return Mixture(components.log_weights, alpha * components.means, alpha**2 * components.variances + sigma**2)


def _noised_density(components, noise, t, x):
    return mixture_log_density(_noised_components(components, noise, t), x)


def _noised_score(components, noise, t, x):
    return mixture_score(_noised_components(components, noise, t), x)


def _learned_score(score, t_min, t, x):
    return score(jnp.maximum(1 - jnp.asarray(t, t_min.dtype), t_min), x)
