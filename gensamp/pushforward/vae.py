"""Variational autoencoder (Kingma and Welling 2014; Rezende, Mohamed and Wierstra 2014).

    z ~ N(0, I_k),    x | z ~ p(x | decoder(z)),    q(z | x) = N(m(x), diag s(x)^2)
    ELBO(x) = E_q log p(x | z) - KL(q(z | x) || N(0, I)) <= log p(x)          (their equation 3; the KL in closed form)

The law of the last step is one of `likelihoods`. Two changes of the objective, each an option:

    importance weights    E_q log 1/n sum_i p(x, z_i) / q(z_i | x), between the ELBO and log p(x)   (Burda et al. 2016, eq. 8)
    free bits             KL_j replaced by max(KL_j, lambda) for every latent coordinate j          (Kingma et al. 2016, eq. 15)

A conditional VAE (Sohn, Lee and Yan 2015) tells encoder and decoder the condition c: q(z | x, c) and p(x | z, c), the prior as
it is.

Row "VAE" of the table: start from the prior, one learned stochastic step.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from gensamp.core import Info, Model, Sampler, Static, Traits, bind, scalar
from gensamp.nets.condition import check_labels
from gensamp.nets.event import Event
from gensamp.nets.mlp import feedforward
from gensamp.nets.sizes import check_sizes
from gensamp.pushforward.conditional import labelled
from gensamp.pushforward.diffusion.losses import split_condition
from gensamp.pushforward.frame import check_frame, check_params, enter, fit_frame, shapes_of
from gensamp.pushforward.likelihoods import Likelihood, gaussian

__all__ = ["vae"]


def vae(
    template: Any,
    *,
    latent_dim: int = 8,
    width: int = 256,
    depth: int = 2,
    variance: Literal["shared", "coordinate", "predicted"] = "coordinate",
    smallest_scale: float = 1e-2,
    likelihood: Likelihood | None = None,
    dequantise: Any = 0.0,
    num_importance: int = 1,
    free_bits: float | int = 0.0,
    draws: Literal["event", "mean"] = "event",
    num_classes: int | None = None,
) -> Model:
    """A VAE over events of any shape (images and trees are flattened).

    Args:
        template: one event. latent_dim: k. width, depth: hidden units and layers of encoder and decoder; depth 0 makes both
            linear.
        variance, smallest_scale: of a Gaussian observation noise, see `likelihoods.gaussian`.
        likelihood: another law of events, such as `likelihoods.discretised_logistic`; the two above are then not used.
        dequantise: for data on a lattice under a Gaussian, the width of a cell; training adds uniform noise in one cell.
        num_importance: n of the importance-weighted bound; 1 is the ELBO.
        free_bits: lambda, nats per latent coordinate that cost nothing, averaged over the batch.
        draws: "event" draws from the model's law, observation noise included; "mean" returns the decoder's mean, which looks
            cleaner and is not a draw from any law the model has a bound for.
        num_classes: makes it conditional: batches are pairs (events, integer labels), and samplers are made by
            model.sampler(params, label); see `pushforward.conditional`.

    Returns:
        Model without log_density (only a bound is known). Samplers cost one forward per draw, a loss 1 + num_importance per
        event. Metrics, means per event in nats: "elbo", "kl", "reconstruction" (log p(x | z)), and "bound", which training
        raises: loss = -bound, plus what the free bits add. Free bits never enter the bounds that are reported.

    Raises:
        ValueError: a size is no positive integer, an option is unknown, or two options exclude each other; on fitting and
            on making a sampler, labels outside [0, num_classes).
    """
    event = Event.of(template)
    check_sizes(
        "vae", latent_dim=(latent_dim, 1), width=(width, 1), depth=(depth, 0), num_importance=(num_importance, 1),
        num_classes=(1 if num_classes is None else num_classes, 1),
    )  # fmt: skip
    if draws not in ("event", "mean"):
        raise ValueError(f"vae got draws={draws!r}; expected event or mean")
    if free_bits and (num_importance > 1 or free_bits < 0):
        raise ValueError(
            f"vae got free_bits={free_bits} with num_importance={num_importance}; expected a number of at least 0, and 0 "
            "beside importance weights, whose bound has no term of each coordinate"
        )
    likelihood = gaussian(template, variance=variance, smallest_scale=smallest_scale) if likelihood is None else likelihood
    options = {"width": width, "depth": depth, "dtype": event.dtype}
    # The encoder starts at the prior, where the KL is zero.
    told = num_classes or 0
    encoder = feedforward(event.size + told, 2 * latent_dim, zero=True, **options)
    decoder = feedforward(latent_dim + told, likelihood.numbers * event.size, **options)
    if num_classes is not None:
        encoder, decoder = labelled(encoder, num_classes), labelled(decoder, num_classes)
    conditional, classes = Static(num_classes is not None), Static(num_classes)
    return Model(
        init=bind(_init, encoder, decoder, likelihood, event, classes),
        loss=bind(
            _loss, encoder, decoder, likelihood, event, conditional, Static(num_importance), scalar(dequantise, event.template),
            scalar(free_bits, event.template),
        ),
        sampler=bind(_sampler, decoder, likelihood, event, Static((latent_dim, draws)), classes),
        forwards=1 + num_importance,
    )  # fmt: skip


def _init(encoder, decoder, likelihood, event, num_classes, key, batch):
    if batch is None:
        raise ValueError("vae got no data; expected a batch of events to learn from")
    batch, labels = split_condition(num_classes.value is not None, batch)
    event.check(batch)
    check_labels(labels, num_classes.value, "vae")
    key_encoder, key_decoder = jax.random.split(key)
    return {
        "encoder": encoder.init(key_encoder), "decoder": decoder.init(key_decoder), **likelihood.init(),
        "frame": fit_frame(batch),
    }, ()  # fmt: skip


def _loss(encoder, decoder, likelihood, event, conditional, num_importance, dequantise, free_bits, params, state, key, batch):
    frame = jax.lax.stop_gradient(params["frame"])
    batch, conditions = split_condition(conditional.value, batch)

    def one(key, x, *condition):
        key_cell, key_latent = jax.random.split(key)
        cell = event.unflatten(jax.random.uniform(key_cell, (event.size,), event.dtype, minval=-0.5, maxval=0.5))
        x = jax.tree.map(lambda a, u: a + dequantise * u, x, cell)
        mean, raw = jnp.split(encoder.apply(params["encoder"], event.flatten(enter(frame, x)), *condition), 2)
        # A spread in (0, 2): a posterior much wider than the prior never pays, and an unbounded one overflows on outliers.
        log_spread = jax.nn.log_sigmoid(raw) + jnp.log(2.0).astype(raw.dtype)

        def weigh(eps):
            z = mean + jnp.exp(log_spread) * eps
            log_prob = likelihood.log_prob(params, frame, decoder.apply(params["decoder"], z, *_told(condition)), x)
            return log_prob, log_prob + 0.5 * (jnp.square(eps) - jnp.square(z)).sum() + log_spread.sum()

        eps = jax.random.normal(key_latent, (num_importance.value, mean.size), event.dtype)
        log_probs, log_weights = jax.vmap(weigh)(eps)
        kl = 0.5 * (jnp.square(mean) + jnp.exp(2 * log_spread) - 2 * log_spread - 1)
        return log_probs.mean(), kl, _log_mean_exp(log_weights)

    size = len(jax.tree.leaves(batch)[0])
    reconstruction, kl, weighted = (a.mean(0) for a in jax.vmap(one)(jax.random.split(key, size), batch, *conditions))
    elbo = reconstruction - kl.sum()
    bound = elbo if num_importance.value == 1 else weighted
    # Zero where every coordinate is above its free bits, so that the loss is then the bound itself.
    forgiven = jnp.maximum(free_bits - kl, 0).sum()
    return forgiven - bound, (state, {"elbo": elbo, "kl": kl.sum(), "reconstruction": reconstruction, "bound": bound})


def _told(condition):
    """What the decoder is told of the condition while it learns."""
    return condition


def _log_mean_exp(log_weights):
    return jax.scipy.special.logsumexp(log_weights) - jnp.log(log_weights.size).astype(log_weights.dtype)


def _sampler(decoder, likelihood, event, options, num_classes, params, *condition):
    latent_dim, draws = options.value
    check_labels(condition, num_classes.value, "vae")
    learned = {"decoder": shapes_of(decoder.init), **jax.eval_shape(likelihood.init)}
    check_params(params, {"frame": None, **learned})
    check_frame(params["frame"], event.template)
    return Sampler(
        start=bind(_prior, Static(latent_dim), event),
        init=bind(_stand, event),
        step=bind(_step, decoder, likelihood, Static(draws), params, condition),
        position=bind(_position),
        num_steps=1,
        traits=Traits(law="approximate"),
    )


def _prior(latent_dim, event, key):
    return jax.random.normal(key, (latent_dim.value,), event.dtype)


def _stand(event, key, z):
    del key
    return z, event.zeros()


def _step(decoder, likelihood, draws, params, condition, key, state, index):
    del index
    outputs = decoder.apply(params["decoder"], state[0], *condition)
    if draws.value == "mean":
        x = likelihood.mean(params, params["frame"], outputs)
    else:
        x = likelihood.draw(params, params["frame"], outputs, key)
    return (state[0], x), Info.of(forwards=1)


def _position(state):
    return state[1]
