"""The learned hierarchy: a stream of `width` numbers that every latent group reads and writes on the way down.

    up      f_L = W x,    f_{l-1} = f_l + up_l(f_l) / sqrt(L)                  deterministic; the top group sees the deepest
    down    (m_l, log s_l, u_l) = down_l(h_{l-1}),    h' = h_{l-1} + u_l / sqrt(L)
            q: m_l + s_l a and s_l exp(b) with (a, b) = judge_l(h', f_l),    h_l = h' + V_l z_l / sqrt(L)

The posterior is written relative to the prior (Vahdat and Kautz 2020, section 3.3), and the last matrices of `down` and `judge`
start at zero: at first every prior is standard normal and every rate is zero. Log scales are bounded, c tanh(a / c) with c = 5.
All groups have networks of one shape, stacked along a leading axis and scanned, so compilation does not grow with their number.
Sources: Sonderby, Raiko, Maaloe, Sonderby and Winther 2016, "Ladder variational autoencoders"; Child 2021, "Very deep VAEs
generalize autoregressive models and can outperform them on images", for the residual stream.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from gensamp.core import Static, bind
from gensamp.nets.event import Event
from gensamp.nets.mlp import feedforward
from gensamp.nets.sizes import check_sizes
from gensamp.pushforward.frame import enter, fit_frame
from gensamp.pushforward.hierarchical_vae import Hierarchy
from gensamp.pushforward.likelihoods import Likelihood, gaussian

__all__ = ["ladder"]

_BOUND = 5.0
_FREE_BITS = 0.5


def ladder(
    template: Any,
    *,
    num_groups: int = 6,
    latent_dim: int = 8,
    width: int = 256,
    depth: int = 1,
    likelihood: Likelihood | None = None,
) -> Hierarchy:
    """A hierarchy of perceptrons over events of any shape (images and trees are flattened).

    Args:
        template: one event. num_groups: L. latent_dim: latents of each group.
        width: of the stream and of all hidden layers. depth: hidden layers of every network.
        likelihood: of the event at the end, see `likelihoods`; a Gaussian with one learned scale per coordinate by default.

    Returns:
        Hierarchy for `hierarchical_vae` and `prefix`. Forwards: num_groups to encode, one per prior, posterior and decoder.

    Raises:
        ValueError: a number is no positive integer.
    """
    check_sizes("ladder", num_groups=(num_groups, 1), latent_dim=(latent_dim, 1), width=(width, 1), depth=(depth, 1))
    event = Event.of(template)
    likelihood = gaussian(template) if likelihood is None else likelihood
    options = {"width": width, "depth": depth, "dtype": event.dtype}
    nets = {
        "into": feedforward(event.size, width, depth=0, dtype=event.dtype),
        "up": feedforward(width, width, **options),
        "down": feedforward(width, 2 * latent_dim + width, zero=True, **options),
        "judge": feedforward(2 * width, 2 * latent_dim, zero=True, **options),
        "out": feedforward(width, likelihood.numbers * event.size, **options),
    }
    sizes = Static((num_groups, latent_dim, width))
    return Hierarchy(
        init=bind(_init, nets, likelihood, event, sizes),
        encode=bind(_encode, nets, event, sizes),
        groups=bind(_groups, sizes),
        begin=bind(_begin),
        top=bind(_top, event, sizes),
        prior=bind(_prior, nets["down"], sizes),
        posterior=bind(_posterior, nets["judge"]),
        merge=bind(_merge, sizes),
        log_prob=bind(_log_prob, nets["out"], likelihood),
        draw=bind(_draw, nets["out"], likelihood),
        event=event,
        latent_dim=latent_dim,
        num_groups=num_groups,
        forwards=(num_groups, 1, 1, 1),
        free_bits=_FREE_BITS,
    )


def _init(nets, likelihood, event, sizes, key, batch):
    if batch is None:
        raise ValueError("a hierarchical VAE got no data; expected a batch of events to learn from")
    event.check(batch)
    num_groups, latent_dim, width = sizes.value
    keys = jax.random.split(key, 6)

    def stacked(name, key, number):
        return jax.vmap(nets[name].init)(jax.random.split(key, number))

    return {
        "into": nets["into"].init(keys[0]),
        "up": stacked("up", keys[1], num_groups - 1),
        "groups": {
            "down": stacked("down", keys[2], num_groups),
            "judge": stacked("judge", keys[3], num_groups),
            "write": jax.random.normal(keys[4], (num_groups, latent_dim, width), event.dtype) / math.sqrt(latent_dim),
        },
        "above": jnp.zeros(width, event.dtype),
        "out": nets["out"].init(keys[5]),
        "last": likelihood.init(),
        "frame": fit_frame(batch),
    }, ()


def _encode(nets, event, sizes, params, x):
    """Features [num_groups, width], those of the top group first."""
    share = _share(sizes)

    def climb(f, weights):
        higher = f + share * nets["up"].apply(weights, f)
        return higher, higher

    lowest = nets["into"].apply(params["into"], event.flatten(enter(_frame(params), x)))
    _, above = jax.lax.scan(climb, lowest, params["up"])
    return jnp.concatenate([lowest[None], above])[::-1]


def _groups(sizes, params):
    return {**params["groups"], "index": jnp.arange(sizes.value[0])}


def _begin(params):
    return params["above"]


def _top(event, sizes, params):
    del params
    zeros = jnp.zeros(sizes.value[1], event.dtype)
    return zeros, zeros + 1


def _prior(down, sizes, params, at, path):
    del params
    latent_dim = sizes.value[1]
    mean, raw, update = jnp.split(down.apply(at["down"], path), (latent_dim, 2 * latent_dim))
    return mean, _scale(raw), path + _share(sizes) * update


def _posterior(judge, params, at, path, prior, features):
    del params
    mean, scale = prior
    move, raw = jnp.split(judge.apply(at["judge"], jnp.concatenate([path, features[at["index"]]])), 2)
    return mean + scale * move, scale * _scale(raw)


def _merge(sizes, params, at, path, z):
    del params
    return path + _share(sizes) * (z @ at["write"])


def _log_prob(out, likelihood, params, path, x):
    return likelihood.log_prob(params["last"], _frame(params), out.apply(params["out"], path), x)


def _draw(out, likelihood, params, path, key):
    return likelihood.draw(params["last"], _frame(params), out.apply(params["out"], path), key)


def _share(sizes) -> float:
    """What keeps the stream's variance from growing with the number of groups."""
    return 1 / math.sqrt(sizes.value[0])


def _scale(raw):
    return jnp.exp(_BOUND * jnp.tanh(raw / _BOUND))


def _frame(params):
    return jax.lax.stop_gradient(params["frame"])
