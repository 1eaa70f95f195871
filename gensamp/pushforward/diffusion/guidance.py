"""Guidance: a diffusion steered towards a condition, by a second network or by a classifier.

    classifier-free   D = D_0 + w (D_c - D_0)             with and without the condition   (Ho and Salimans 2022, equation 6)
    autoguidance      D = D_b + w (D_g - D_b)             a good and a worse network       (Karras et al. 2024, equation 3)
    classifier        score = score + w grad log p(c | x_t)                        (Dhariwal and Nichol 2021, section 4)

The strength w is 1 for the condition itself, in all three: Ho and Salimans' own w is one less. The weights add up to one, and
the five predictions are affine in each other, so the first two are the same combination whatever is predicted.

For w other than 1 the guided field is grad log p(x_t) p(c | x_t)^w, **which is the score of no noised law**: the noised law of
p(x) p(c | x)^w has another one. So the draws have no law in closed form, and Langevin or SMC steps with this field correct
nothing.

Interval: guidance only where the noise level sigma / alpha lies between two numbers, the condition alone elsewhere
(Kynkaanniemi et al. 2024). Both networks are asked all the same, so the forwards of a draw do not depend on it.
Rescale: strong guidance inflates a guess; a share phi of it is brought back to the spread of D_c over an event's coordinates
(Lin et al. 2024, equations 15 and 16), taken in v as in the paper.

Two forms. `classifier_free`, `autoguided`, `classifier_guided` make a denoiser of denoisers, learned or exact, for any solver.
`label_guidance`, `autoguidance`, `classifier_guidance` are what `diffusion_model(guidance=)` takes, and `ddpm`, `ddim` and
`score_langevin` likewise. Row "diffusion".
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from gensamp.core import Network, PyTree, Static, bind
from gensamp.nets.condition import check_labels, told
from gensamp.nets.event import Event
from gensamp.noise import FLOOR, Noise, score_to_eps
from gensamp.predictions import Prediction, check_prediction, combine, convert
from gensamp.pushforward.diffusion.guided import Guided, cost
from gensamp.pushforward.diffusion.losses import denoiser

__all__ = [
    "Guidance", "autoguidance", "autoguided", "classifier_free", "classifier_guidance", "classifier_guided", "label_guidance",
    "shifted", "steered", "with_dropout",
]  # fmt: skip


@register_dataclass
@dataclass(frozen=True, eq=False)
class Guidance:
    """How a fitted model guides itself.

    apply: (predict, network, params, noise, prediction, condition) -> denoiser, where predict(network, params, condition) is
    the plain denoiser for a tuple of conditions, none or one, and returns `prediction`. null, dropout: the condition that
    stands for none, and how often training shows it; None where training is not concerned.
    """

    apply: Any
    null: Any = None
    dropout: Any = None


def classifier_free(
    denoise: Any,
    unconditional: Any,
    noise: Noise,
    *,
    strength: Any = 1.0,
    interval: tuple[Any, ...] | None = None,
    rescale: Any = None,
    prediction: Prediction = "eps",
) -> Guided:
    """Classifier-free guidance from a denoiser with the condition and one without.

    Args:
        denoise, unconditional: (t, x) -> prediction, both of the same kind.
        noise: the process they were made for.
        strength: w; 0 without the condition, 1 with it, above 1 more than that. A leaf, as all numbers here.
        interval: (lowest, highest) sigma / alpha at which w counts; 1 stands in its place elsewhere. None: everywhere.
        rescale: phi from 0 to 1; None: no rescaling. It needs events of several coordinates.
        prediction: what both denoisers return, and the result.

    Returns:
        Guided, of the forwards of both.

    Raises:
        ValueError: the interval is not two rising numbers, rescale is outside [0, 1], or the prediction is unknown.
    """
    return _between("classifier_free", denoise, unconditional, noise, strength, interval, rescale, prediction)


def autoguided(
    denoise: Any,
    worse: Any,
    noise: Noise,
    *,
    strength: Any = 2.0,
    interval: tuple[Any, ...] | None = None,
    prediction: Prediction = "eps",
) -> Guided:
    """Autoguidance: away from a worse version of the same denoiser, smaller or less trained, under the same condition.

    Args:
        worse: (t, x) -> prediction, with the faults of `denoise`, only more of them.
        denoise, noise, strength, interval, prediction: as for `classifier_free`.

    Returns:
        Guided, of the forwards of both.

    Raises:
        ValueError: as for `classifier_free`.
    """
    return _between("autoguided", denoise, worse, noise, strength, interval, None, prediction)


def classifier_guided(
    denoise: Any,
    log_likelihood: Any,
    noise: Noise,
    *,
    strength: Any = 1.0,
    interval: tuple[Any, ...] | None = None,
    prediction: Prediction = "eps",
) -> Guided:
    """Classifier guidance from a denoiser without the condition and a classifier of noised events.

    Args:
        log_likelihood: (t, x) -> log p(c | x_t = x), a scalar, up to what does not depend on x; x in the coordinates of the
            denoiser.
        strength: w; 0 without the condition, 1 with it. interval: as for `classifier_free`, with 0 elsewhere.
        denoise, noise, prediction: as for `classifier_free`.

    Returns:
        Guided, of the denoiser's forwards and one gradient more.

    Raises:
        ValueError: as for `classifier_free`.
    """
    check_prediction(prediction, "classifier_guided")
    forwards, gradients = cost(denoise)
    setting = _setting("classifier_guided", strength, interval)
    apply = bind(_classified, denoise, bind(_gradient, log_likelihood), noise, *setting, Static(prediction))
    return Guided(apply, forwards, gradients + 1)


def label_guidance(
    null: PyTree,
    *,
    strength: Any = 1.0,
    interval: tuple[Any, ...] | None = None,
    rescale: Any = None,
    dropout: Any = 0.1,
) -> Guidance:
    """Classifier-free guidance for a conditional model of one network, such as `diffusion_model(conditional=True, guidance=)`.

    Training replaces each condition by `null` with probability `dropout` (Ho and Salimans 2022, algorithm 1).

    Args:
        null: the condition that stands for none, such as the label `num_classes` of a network built for one class more.
        strength: w, one for all draws; or None: the sampler's condition is then the pair (condition, strength), so that
            `sample(key, conditional(model, params), n, each=(labels, strengths))` gives each draw its own.
        interval, rescale: as for `classifier_free`.
        dropout: a probability.

    Raises:
        ValueError: as for `classifier_free`, or dropout is no probability; on making a sampler, there is no condition, or it or
            `null` is no label of the network.

    Example:
        model = diffusion_model(nets.mlp(template, num_classes=11), process, template=template, conditional=True,
                                guidance=label_guidance(10, strength=2.0))
    """
    if not isinstance(dropout, jax.core.Tracer) and not 0 <= float(dropout) < 1:
        raise ValueError(f"label_guidance got dropout={dropout}; expected a probability from 0 to below 1, such as 0.1")
    null = jax.tree.map(jnp.asarray, null)
    own, interval = _setting("label_guidance", 1.0 if strength is None else strength, interval)
    apply = bind(_labelled, null, None if strength is None else own, interval, _share("label_guidance", rescale))
    return Guidance(apply, null, _number(dropout))


def autoguidance(network: Network, params: Any, *, strength: Any = 2.0, interval: tuple[Any, ...] | None = None) -> Guidance:
    """Autoguidance of a fitted model by a worse one of the same prediction, for `diffusion_model(guidance=)`.

    Args:
        network, params: the worse network and its parameters, as `fit` returned them: of an earlier moment of the same
            training, or a smaller network's. Its frame (shift and scale) must be the model's, since both see the same x_t.
        strength, interval: as for `autoguided`. A conditional model's worse version gets the same condition.

    Raises:
        ValueError: as for `classifier_free`; on drawing, the two frames differ.
    """
    return Guidance(bind(_autoguided, network, params, *_setting("autoguidance", strength, interval)))


def classifier_guidance(log_likelihood: Any, *, strength: Any = 1.0, interval: tuple[Any, ...] | None = None) -> Guidance:
    """Classifier guidance of an unconditional model, for `diffusion_model(guidance=)`: samplers then take a condition.

    Args:
        log_likelihood: (t, x, condition) -> log p(condition | x_t = x), x in the frame of the model's parameters.
        strength, interval: as for `classifier_guided`.
    """
    return Guidance(bind(_by_classifier, log_likelihood, *_setting("classifier_guidance", strength, interval)))


def shifted(noise: Noise, t: Any, value: PyTree, shift: PyTree, prediction: str) -> PyTree:
    """A prediction with `shift` added to the score it stands for: predictions are affine in each other at a given x.

    Where no signal is left x_t says nothing of a condition, and the way from the score to x_0 is singular: no shift there.
    """
    eps = combine(jnp.where(noise.alpha(t) < FLOOR, 0, 1), score_to_eps(noise, t, shift, shift))
    zero = jax.tree.map(jnp.zeros_like, shift)
    return jax.tree.map(jnp.add, value, convert(noise, t, zero, eps, "eps", prediction))


def steered(
    guidance: Guidance | None, network: Network, noise: Noise, params: Any, condition: tuple, prediction: str, returns: Any
) -> Any:
    """A fitted network as a denoiser for any sampler, guided where there is a guidance: `denoiser` of `losses`, and more.

    Args:
        params: "network", "shift" and "scale". condition: what the sampler was told, none or one. prediction: what the network
            returns. returns: what the denoiser does, "eps", "x0" or "velocity".
    """
    predict = bind(_predict, noise, Static((prediction, returns)))
    if guidance is None:
        return predict(network, params, condition)
    return guidance.apply(predict, network, params, noise, returns, condition)


def with_dropout(guidance: Guidance | None, loss: Any, conditional: bool) -> Any:
    """A model's loss, showing the null condition as often as the guidance asks.

    Raises:
        TypeError: the guidance is none.
        ValueError: it is by labels, and the model is not conditional.
    """
    if guidance is None:
        return loss
    if not isinstance(guidance, Guidance):
        raise TypeError(f"guidance is {type(guidance).__name__}; expected a Guidance, such as label_guidance(...), or None")
    if guidance.dropout is None:
        return loss
    if not conditional:
        raise ValueError("label_guidance got a model that is not conditional; build the model with conditional=True")
    return bind(_dropping, guidance.null, guidance.dropout, loss)


def _predict(noise, static, network, params, condition):
    prediction, returns = static.value
    check_labels(condition, network.num_classes, "model.sampler")
    return denoiser(network, noise, params, condition, prediction, returns)


def _between(name, denoise, other, noise, strength, interval, rescale, prediction) -> Guided:
    check_prediction(prediction, name)
    setting = (*_setting(name, strength, interval), _share(name, rescale))
    return Guided(bind(_extrapolated, denoise, other, noise, *setting, Static(prediction)), *cost(denoise, other))


def _setting(name, strength, interval):
    """Strength and interval as leaves, checked."""
    if interval is None:
        return _number(strength), None
    pair = isinstance(interval, tuple | list) and len(interval) == 2
    looked = pair and not any(isinstance(bound, jax.core.Tracer) for bound in interval)
    if not pair or (looked and not 0 <= float(interval[0]) <= float(interval[1])):
        raise ValueError(f"{name} got interval={interval}; expected (lowest, highest) noise level sigma / alpha")
    return _number(strength), tuple(_number(bound) for bound in interval)


def _share(name, rescale):
    if rescale is None:
        return None
    if not isinstance(rescale, jax.core.Tracer) and not 0 <= float(rescale) <= 1:
        raise ValueError(f"{name} got rescale={rescale}; expected a share from 0 (none) to 1, or None")
    return _number(rescale)


def _number(value):
    return jnp.asarray(value, jnp.result_type(float))


def _strength_at(noise, t, strength, interval, elsewhere):
    if interval is None:
        return strength
    level = jnp.exp(-noise.log_snr(t) / 2)
    return jnp.where((level >= interval[0]) & (level <= interval[1]), strength, elsewhere)


def _extrapolated(denoise, other, noise, strength, interval, rescale, prediction, t, x):
    wanted, from_here = denoise(t, x), other(t, x)
    strength = _strength_at(noise, t, strength, interval, 1)
    found = combine(1 - strength, from_here, strength, wanted)
    return found if rescale is None else _rescaled(noise, t, x, found, wanted, rescale, prediction.value)


def _rescaled(noise, t, x, found, wanted, share, prediction):
    event = Event.of(x)
    if event.size < 2:
        raise ValueError("rescale got events of one coordinate, which have no spread; expected several, or rescale=None")
    one, other = (convert(noise, t, x, value, prediction, "v") for value in (found, wanted))
    now, before = (event.flatten(v).std() for v in (one, other))
    factor = before / jnp.maximum(now, jnp.finfo(event.dtype).tiny)
    share = share.astype(event.dtype)
    return convert(noise, t, x, combine(share * factor + 1 - share, one), "v", prediction)


def _gradient(log_likelihood, t, x):
    return jax.grad(log_likelihood, argnums=1)(t, x)


def _classified(denoise, gradient, noise, strength, interval, prediction, t, x):
    strength = _strength_at(noise, t, strength, interval, 0)
    return shifted(noise, t, denoise(t, x), combine(strength, gradient(t, x)), prediction.value)


def _labelled(null, strength, interval, rescale, predict, network, params, noise, prediction, condition):
    label = told(condition, "label_guidance")
    if strength is None:
        if not isinstance(label, tuple | list) or len(label) != 2:
            raise ValueError(f"label_guidance(strength=None) got the condition {label}; expected a pair (condition, strength)")
        label, strength = label[0], _number(label[1])
    check_labels(null, network.num_classes, "label_guidance")
    pair = predict(network, params, (label,)), predict(network, params, (null,))
    return classifier_free(
        *pair, noise, strength=strength, interval=interval, rescale=rescale, prediction=prediction
    )  # fmt: skip


def _autoguided(other, weights, strength, interval, predict, network, params, noise, prediction, condition):
    for part in ("shift", "scale"):
        pairs = zip(jax.tree.leaves(params[part]), jax.tree.leaves(weights[part]), strict=True)
        if any(not isinstance(a + b, jax.core.Tracer) and not jnp.array_equal(a, b) for a, b in pairs):
            raise ValueError(
                f"autoguidance got a worse model whose frame has another {part}; expected the same frame, as of two moments of "
                "one training"
            )
    pair = predict(network, params, condition), predict(other, weights, condition)
    return autoguided(*pair, noise, strength=strength, interval=interval, prediction=prediction)


def _by_classifier(log_likelihood, strength, interval, predict, network, params, noise, prediction, condition):
    given = bind(_given, log_likelihood, told(condition, "classifier_guidance"))
    return classifier_guided(
        predict(network, params, ()), given, noise, strength=strength, interval=interval, prediction=prediction
    )


def _given(log_likelihood, condition, t, x):
    return log_likelihood(t, x, condition)


def _dropping(null, dropout, loss, params, state, key, batch):
    key, key_drop = jax.random.split(key)
    if isinstance(batch, tuple | list) and len(batch) == 2:
        x, condition = batch
        size = len(jax.tree.leaves(x)[0])
        dropped = jax.random.bernoulli(key_drop, dropout, (size,))

        def drop(leaf, none):
            mask = dropped.reshape(size, *(1,) * (leaf.ndim - 1))
            return jnp.where(mask, jnp.broadcast_to(none.astype(leaf.dtype), leaf.shape), leaf)

        batch = x, jax.tree.map(drop, condition, null)
    return loss(params, state, key, batch)
