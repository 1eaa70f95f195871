"""Gaussian variational autoencoder (Kingma and Welling 2014; Rezende, Mohamed and Wierstra 2014).

    z ~ N(0, I_k),    x | z ~ N(mean(z), diag sigma^2),    q(z | x) = N(m(x), diag s(x)^2)
    ELBO(x) = E_q log p(x | z) - KL(q(z | x) || N(0, I)) <= log p(x)          (their equation 3; the KL in closed form)

The noise sigma is learned, one for the event or one per coordinate: with it fixed at 1, as is often done, the bound measures
squared error and the draws are blurred by more noise than the data have. Row "VAE" of the table: start from the prior, one
learned stochastic step.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from gensamp.core import Info, Model, Sampler, Static, Traits, bind, scalar
from gensamp.nets.event import Event
from gensamp.pushforward.frame import enter, fit_frame, leave, log_volume

__all__ = ["vae"]

_RATE = 10.0
"""An optimiser that moves every number alike would take most of a fit to move a log scale by two."""


def vae(
    template: Any,
    *,
    latent_dim: int = 8,
    width: int = 256,
    depth: int = 2,
    variance: Literal["shared", "coordinate"] = "coordinate",
    smallest_scale: float = 1e-2,
    dequantise: Any = 0.0,
    draws: Literal["event", "mean"] = "event",
) -> Model:
    """A VAE over events of any shape (images and trees are flattened).

    Args:
        template: one event. latent_dim: k. width, depth: hidden units and layers of encoder and decoder; depth 0 makes both
            linear.
        variance: one learned observation noise per coordinate, or one that all share.
        smallest_scale: lower bound of the observation noise in units of the data's spread; without one a coordinate that the
            decoder predicts exactly drives the likelihood to infinity.
        dequantise: for data on a lattice, the width of a cell; training adds uniform noise in one cell.
        draws: "event" draws from the model's law, observation noise included; "mean" returns the decoder's mean, which looks
            cleaner and is not a draw from any law the model has a bound for.

    Returns:
        Model without log_density (only a bound is known). Samplers cost one forward per draw. Metrics, means per event in nats:
        "elbo", "kl", "reconstruction" (log p(x | z)); loss = -elbo = kl - reconstruction.

    Raises:
        ValueError: a size is not positive, or an option is unknown.
    """
    event = Event.of(template)
    if latent_dim < 1 or width < 1 or depth < 0:
        raise ValueError(f"vae got latent_dim={latent_dim}, width={width}, depth={depth}; expected positive sizes, depth >= 0")
    if variance not in ("shared", "coordinate") or draws not in ("event", "mean"):
        raise ValueError(f"vae got variance={variance!r}, draws={draws!r}; expected shared or coordinate, event or mean")
    # The encoder starts at the prior, where the KL is zero.
    encoder = _Feedforward(2 * latent_dim, width, depth, nn.initializers.zeros)
    parts = Static((encoder, _Feedforward(event.size, width, depth), latent_dim))
    smallest = scalar(smallest_scale, event.template)
    return Model(
        init=bind(_init, parts, event, Static(event.size if variance == "coordinate" else 1)),
        loss=bind(_loss, parts, event, smallest, scalar(dequantise, event.template)),
        sampler=bind(_sampler, parts, event, smallest, Static(draws)),
        forwards=2,
    )


class _Feedforward(nn.Module):
    features: int
    width: int
    depth: int
    last: Any = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, h):
        for _ in range(self.depth):
            h = nn.silu(nn.Dense(self.width, dtype=h.dtype, param_dtype=h.dtype)(h))
        return nn.Dense(self.features, dtype=h.dtype, param_dtype=h.dtype, kernel_init=self.last)(h)


def _init(parts, event, num_scales, key, batch):
    if batch is None:
        raise ValueError("vae got no data; expected a batch of events to learn from")
    event.check(batch)
    encoder, decoder, latent_dim = parts.value
    key_encoder, key_decoder = jax.random.split(key)
    return {
        "encoder": encoder.init(key_encoder, jnp.zeros(event.size, event.dtype))["params"],
        "decoder": decoder.init(key_decoder, jnp.zeros(latent_dim, event.dtype))["params"],
        "log_scale": jnp.zeros(num_scales.value, event.dtype),
        "frame": fit_frame(batch),
    }, ()


def _noise_scale(event, smallest, params):
    # A smooth bound from below, so the gradient never dies there.
    scale = smallest + jnp.exp(_RATE * params["log_scale"])
    return jnp.broadcast_to(scale, (event.size,))


def _loss(parts, event, smallest, dequantise, params, state, key, batch):
    encoder, decoder, latent_dim = parts.value
    frame = jax.lax.stop_gradient(params["frame"])
    scale = _noise_scale(event, smallest, params)
    volume = log_volume(frame, event.template)

    def one(key, x):
        key_cell, key_latent = jax.random.split(key)
        cell = event.unflatten(jax.random.uniform(key_cell, (event.size,), event.dtype, minval=-0.5, maxval=0.5))
        y = event.flatten(enter(frame, jax.tree.map(lambda a, u: a + dequantise * u, x, cell)))
        mean, raw = jnp.split(encoder.apply({"params": params["encoder"]}, y), 2)
        # A spread in (0, 2): a posterior much wider than the prior never pays, and an unbounded one overflows on outliers.
        log_spread = jax.nn.log_sigmoid(raw) + jnp.log(2.0).astype(raw.dtype)
        z = mean + jnp.exp(log_spread) * jax.random.normal(key_latent, (latent_dim,), event.dtype)
        error = (y - decoder.apply({"params": params["decoder"]}, z)) / scale
        constant = event.size * jnp.log(2 * jnp.pi).astype(event.dtype)
        reconstruction = -0.5 * (jnp.square(error).sum() + constant) - jnp.log(scale).sum() - volume
        kl = 0.5 * (jnp.square(mean) + jnp.exp(2 * log_spread) - 2 * log_spread - 1).sum()
        return reconstruction, kl

    size = len(jax.tree.leaves(batch)[0])
    reconstruction, kl = (a.mean() for a in jax.vmap(one)(jax.random.split(key, size), batch))
    elbo = reconstruction - kl
    return -elbo, (state, {"elbo": elbo, "kl": kl, "reconstruction": reconstruction})


def _sampler(parts, event, smallest, draws, params):
    return Sampler(
        start=bind(_prior, Static(parts.value[2]), event),
        init=bind(_stand, event),
        step=bind(_step, parts, event, smallest, draws, params),
        position=bind(_position, event, params["frame"]),
        num_steps=1,
        traits=Traits(law="approximate"),
    )


def _prior(latent_dim, event, key):
    return jax.random.normal(key, (latent_dim.value,), event.dtype)


def _stand(event, key, z):
    del key
    return z, jnp.zeros(event.size, event.dtype)


def _step(parts, event, smallest, draws, params, key, state, index):
    del index
    y = parts.value[1].apply({"params": params["decoder"]}, state[0])
    if draws.value == "event":
        y = y + _noise_scale(event, smallest, params) * jax.random.normal(key, (event.size,), event.dtype)
    return (state[0], y), Info.of(forwards=1)


def _position(event, frame, state):
    return leave(frame, event.unflatten(state[1]))
