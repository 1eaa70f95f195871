"""Linear inverse problems: draws of x given y = A x + noise from a denoiser of x alone, without training for A.

What is wanted is the score of the law of x_t given y, score(x_t) + grad log p(y | x_t). The second term is an integral over x_0
that nobody has; with x_0_hat = E[x_0 | x_t] each method here puts a Gaussian in its place,

    p(y | x_t) ~ N(y; A x_0_hat(x_t), s^2 I + A C A^T),        s the scale of the noise,

    moment = "tweedie"     C = (sigma^2 / alpha) d x_0_hat / d x_t, the covariance of x_0 given x_t   (Boys et al. 2023, TMPD)
             "isotropic"   C = r^2 I, r^2 = v sigma^2 / (v alpha^2 + sigma^2)                         (Song et al. 2023, PiGDM)
             "point"       C = 0                                    (Chung et al. 2023, equation 16: the theory behind DPS)

**None is exact, but for a Gaussian prior**: "tweedie" for any, "isotropic" for one with covariance v I. Then C is the true
covariance and draws have the posterior's law. For other priors the law of x_0 given x_t is no Gaussian, and modes are weighted
wrongly. "point" forgets that x_0 is not known at high noise: it trusts y too much, so its draws are too narrow where A sees
them, and its field is stiff when s is small.

`dps` is Chung et al.'s algorithm as they run it, ancestral steps each followed by a step of fixed length against the residual.
Its draws fit y, and have no law that anybody knows: s does not enter. `replacement`, for known coordinates, is in `inpainting`.

Measured on a mixture of three Gaussians in the plane, y = x_1 + x_2 / 2 + noise of s = 0.3, 200 steps, 4,000 draws; the
posterior's mean is (0.66, 0.28), its variances 0.14 and 0.70, and A x has standard deviation 0.32 under it:

                       mean            variances      standard deviation of A x
    tweedie            0.64,  0.31     0.14, 0.64     0.31
    isotropic          0.65,  0.34     0.13, 0.66     0.33
    point              0.64,  0.36     0.13, 0.53     0.21
    dps, step 0.1      0.66,  0.28     0.16, 0.60     0.14
    dps, step 0.3      1.00, -0.42     0.33, 1.12     0.43
    dps, step 1        1.44, -2.25     1.28, 0.92     1.30     (oscillates: long steps are for small gradients)

All of it is a denoiser (t, x) -> prediction for any solver, or one solver (`dps`). A is a pure function in the data's own
units; m is the number of its outputs. Row "diffusion" of the table.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from gensamp.core import Info, PyTree, Sampler, Static, bind, scalar
from gensamp.nets.condition import told
from gensamp.nets.event import Event
from gensamp.noise import FLOOR, Noise, root
from gensamp.predictions import Prediction, check_prediction, to_x0
from gensamp.pushforward.diffusion.guidance import Guidance, shifted
from gensamp.pushforward.diffusion.guided import Guided, cost
from gensamp.pushforward.diffusion.inpainting import ancestral_move
from gensamp.pushforward.diffusion.solver import guess, pose, reverse
from gensamp.pushforward.frame import identity_frame, leave

__all__ = ["dps", "measured", "measured_guidance"]

Moment = Literal["tweedie", "isotropic", "point"]
MOMENTS = ("tweedie", "isotropic", "point")


def measured(
    denoise: Any,
    noise: Noise,
    operator: Any,
    observed: PyTree,
    scale: Any,
    template: Any,
    *,
    moment: Moment = "tweedie",
    data_variance: Any = 1.0,
    strength: Any = 1.0,
    prediction: Prediction = "eps",
    frame: Any = None,
) -> Guided:
    """A denoiser of x given y, from one of x.

    Args:
        denoise, noise, prediction, frame: as for `ancestral`.
        operator: A, linear: (x) -> like y, for one event in the data's units; a Partial with its arrays bound.
        observed: y. A leaf, so `sample(each=)` gives each draw its own.
        scale: standard deviation of the noise in y; positive. A leaf.
        template: one event.
        moment: what stands for the covariance of x_0 given x_t, see the module.
        data_variance: v of "isotropic", in the frame's coordinates.
        strength: factor on the guidance, 1 for the posterior.

    Returns:
        Guided of the denoiser's cost, plus one backward pass through it, m for "tweedie".

    Raises:
        ValueError: the moment or the prediction is unknown, scale is not one positive number, the operator does not take an
            event to real numbers, or y is not what it returns.
    """
    check_prediction(prediction, "measured")
    event = Event.of(template)
    _check(event, operator, observed, scale, moment, "measured")
    frame = identity_frame(event.template) if frame is None else frame
    numbers = [scalar(value, event.template) for value in (scale, data_variance, strength)]
    setting = Static((moment, prediction, event))
    return Guided(bind(_measured, denoise, noise, _partial(operator), observed, numbers, frame, setting), *cost(denoise))


def measured_guidance(operator: Any, scale: Any, template: Any, *, moment: Moment = "tweedie", strength: Any = 1.0) -> Guidance:
    """The same for a fitted model, `diffusion_model(guidance=)`: its samplers then take y as their condition.

    Args:
        operator, scale, template, moment, strength: as for `measured`.

    Raises:
        ValueError: as for `measured`; about y when a sampler is made.

    Example:
        model = diffusion_model(network, process, template=template, guidance=measured_guidance(blur, 0.1, template))
        draws = sample(key, conditional(model, params), n, each=observations)
    """
    event = Event.of(template)
    _check(event, operator, None, scale, moment, "measured_guidance")
    numbers = [scalar(value, event.template) for value in (scale, 1.0, strength)]
    return Guidance(bind(_for_model, _partial(operator), numbers, Static((moment, event))))


def dps(
    denoise: Any,
    noise: Noise,
    grid: Any,
    template: Any,
    operator: Any,
    observed: PyTree,
    *,
    step_size: Any = 1.0,
    prediction: Prediction = "eps",
    clip: Any = None,
    data_variance: Any = 0.0,
    frame: Any = None,
) -> Sampler:
    """Diffusion posterior sampling as published: x_s = ancestral step - step_size grad |y - A x_0_hat|^2 / |y - A x_0_hat|.

    Args:
        operator, observed: as for `measured`; the noise in y is not asked for.
        step_size: zeta', 0.1 to 1 in the paper; a leaf.
        denoise, noise, grid, template, prediction, clip, data_variance, frame: as for `ancestral`.

    Returns:
        A finite Sampler of as many steps as the grid has, one forward and a backward pass each. Its draws fit y; their
        spread is not the posterior's.

    Raises:
        ValueError: step_size is negative, y is not what the operator returns, or as for `ancestral`.

    Source: Chung, Kim, McCann, Klasky and Ye 2023, "Diffusion posterior sampling for general noisy inverse problems",
        algorithm 1, with steps divided by the norm of the residual.
    """
    if not isinstance(step_size, jax.core.Tracer) and not float(step_size) >= 0:
        raise ValueError(f"dps got step_size={step_size}; expected a number that is not negative, such as 1")
    problem = pose("dps", denoise, noise, grid, template, prediction, clip, data_variance, frame)
    _check(problem.event, operator, observed, 1.0, "point", "dps")
    return reverse(problem, _dps_step, _partial(operator), observed, scalar(step_size, problem.event.template))


def _partial(function):
    return function if isinstance(function, Partial) else Partial(function)


def _check(event, operator, observed, scale, moment, name):
    if moment not in MOMENTS:
        raise ValueError(f"{name} got moment={moment!r}; expected one of {', '.join(MOMENTS)}")
    if jnp.ndim(scale) or not (isinstance(scale, jax.core.Tracer) or float(scale) > 0):
        raise ValueError(f"{name} got scale={scale}; expected one number, the positive standard deviation of the noise")
    try:
        seen = jax.eval_shape(operator, event.template)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{name} got an operator that cannot take an event: {reason}") from error
    if any(jnp.iscomplexobj(a) for a in jax.tree.leaves((seen, observed))):
        raise ValueError(f"{name} got complex observations; expected an operator to return real numbers: stack .real and .imag")
    if observed is None:
        return
    wanted = jax.tree.map(lambda a: tuple(a.shape), seen)
    if wanted != jax.tree.map(jnp.shape, observed):
        raise ValueError(
            f"{name} got y of shape {jax.tree.map(jnp.shape, observed)}; expected {wanted}, what the operator returns"
        )


def _flat(tree):
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def _residual(operator, observed, frame, event, x0):
    """y - A x_0 [m], for x_0 [d] in the frame."""
    seen = operator(leave(frame, event.unflatten(x0)))
    return _flat(jax.tree.map(lambda y, a: (jnp.asarray(y, a.dtype) - a).astype(event.dtype), observed, seen))


def _measured(denoise, noise, operator, observed, numbers, frame, setting, t, x):
    moment, prediction, event = setting.value
    scale, data_variance, strength = numbers

    def guessed(vector):
        at = event.unflatten(vector)
        value = denoise(t, at)
        return event.flatten(to_x0(noise, t, at, value, prediction)), value

    x0, pull, value = jax.vjp(guessed, event.flatten(x), has_aux=True)
    residual, back = jax.vjp(lambda z: _residual(operator, observed, frame, event, z), x0)
    # Rows of -A: the residual falls as A x_0 rises.
    rows = -jax.vmap(lambda e: back(e)[0])(jnp.eye(residual.size, dtype=event.dtype))
    alpha, sigma = (f(t).astype(event.dtype) for f in (noise.alpha, noise.sigma))
    pulled = None
    covariance = scale**2 * jnp.eye(residual.size, dtype=event.dtype)
    if moment == "isotropic":
        covariance += data_variance * sigma**2 / (data_variance * alpha**2 + sigma**2) * rows @ rows.T
    elif moment == "tweedie":
        # Rows of A d x_0_hat / d x_t, which the gradient takes as well.
        pulled = jax.vmap(lambda row: pull(row)[0])(rows)
        spread = sigma**2 / jnp.maximum(alpha, FLOOR) * pulled @ rows.T
        covariance += (spread + spread.T) / 2
    weighed = strength * jnp.linalg.solve(covariance, residual)
    score = pull(weighed @ rows)[0] if pulled is None else weighed @ pulled
    return shifted(noise, t, value, event.unflatten(score), prediction)


def _for_model(operator, numbers, setting, predict, network, params, noise, prediction, condition):
    moment, event = setting.value
    scale, data_variance, strength = numbers
    observed = told(condition, "measured_guidance")
    return measured(
        predict(network, params, ()), noise, operator, observed, scale, event.template, moment=moment,
        data_variance=data_variance, strength=strength, prediction=prediction,
        frame={"shift": params["shift"], "scale": params["scale"]},
    )  # fmt: skip


def _dps_step(problem, operator, observed, step_size, key, x, index):
    event = problem.event
    t, s = problem.times[index], problem.times[index + 1]

    def distance(vector):
        x0, eps = guess(problem, t, event.unflatten(vector))
        squares = jnp.square(_residual(operator, observed, problem.frame, event, event.flatten(x0))).sum()
        # A root without a derivative at zero residual would give NaN there.
        return root(squares), (x0, eps)

    gradient, (x0, eps) = jax.grad(distance, has_aux=True)(event.flatten(x))
    moved = event.flatten(ancestral_move(problem, t, s, x0, eps, key))
    # grad |r|^2 / |r| is twice the gradient of |r|.
    return event.unflatten(moved - 2 * step_size * gradient), Info.of(forwards=1)
