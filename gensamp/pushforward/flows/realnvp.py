"""RealNVP: a Gaussian pushed through affine couplings, with an exact density (Dinh, Sohl-Dickstein and Bengio 2017).

    z ~ N(0, I),    x = shift + scale T(z),    log q(x) = log N(z; 0, I) - log |dT/dz| - sum log scale

`nets.affine_couplings` is T. shift and scale start at the mean and spread of the first batch (at 0 and 1 without data) and are
trained with the rest. Row "normalizing flow" of the table: start Gaussian, one learned deterministic step.

Fit to data it minimises the negative log likelihood, -mean log q(x). Fit to a density p known up to a constant Z it minimises
the reverse Kullback-Leibler divergence by the path gradient (Roeder, Wu and Duvenaud 2017, equation 8): the gradient of
log q(x) - log p(x) through the draw x only, with the parameters of log q held fixed. Its expectation is that of the full
gradient, and its variance vanishes as q reaches p. The loss estimates an upper bound of -log Z. Reverse KL covers the modes it
finds and says nothing of the others. So that it finds more of them, training can start on a flattened target, p^beta with beta
rising geometrically to 1 (annealing as in Rezende and Mohamed 2015, section 6.1). It starts at 0.1: flatter still, the tails of
a posterior reach where its density overflows.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gensamp.core import Info, Model, Sampler, Static, Target, Traits, as_template, bind, require, scalar
from gensamp.nets.couplings import affine_couplings
from gensamp.nets.event import Event
from gensamp.pushforward.frame import fit_frame

__all__ = ["realnvp"]

FLATTEST = 0.1


def realnvp(
    template: Any,
    *,
    target: Target | None = None,
    num_layers: int = 8,
    width: int = 64,
    depth: int = 2,
    dequantise: Any = 0.0,
    num_draws: int = 256,
    anneal: int = 0,
    weighted: bool = False,
) -> Model:
    """A normalizing flow over events of any shape (images and trees are flattened).

    Args:
        template: one event of d coordinates.
        target: None learns from data by likelihood. A Target with a log_density is learned by reverse KL, and batches are None.
        num_layers, width, depth: couplings, and hidden units and layers of each conditioner.
        dequantise: for data on a lattice, the width of a cell: training adds uniform noise in one cell, without which a density
            has no finite best fit. Draws are then of the smoothed law.
        num_draws: draws per step of the reverse KL.
        anneal: steps of the reverse KL over which the flattened target becomes the target; 0 starts with the target itself.
        weighted: with a target, draws carry log_weight = log p(x) - log q(x): importance sampling, which makes expectations
            consistent and estimates log Z, for one density per draw.

    Returns:
        Model with log_density (params, x); its samplers have log_density too, and cost one forward per draw. Metrics: "nll" in
        nats per event and "bits_per_dim" for data; "reverse_kl" (up to log Z) and "log_normaliser" (an importance estimate over
        the step's draws) for a density, and "gradients", the score evaluations of the step.

    Raises:
        ValueError: the target has no log_density or another template, weights are asked for without one, num_draws < 1, or
            anneal < 0.
    """
    event = Event.of(template)
    couplings = affine_couplings(event.size, num_layers=num_layers, width=width, depth=depth, dtype=event.dtype)
    density = bind(_log_density, couplings, event)
    if target is None:
        if weighted:
            raise ValueError("realnvp got weighted=True without a target; expected target=, whose log density weighs the draws")
        loss = bind(_likelihood_loss, couplings, event, scalar(dequantise, event.template))
        return Model(bind(_init, couplings, event), loss, bind(_sampler, couplings, event, density, None), density)
    log_p = require(target, "log_density", "realnvp(target=)")
    if Event.of(target.template) != event:
        raise ValueError(
            f"realnvp got the template {as_template(template)}, a target over {target.template}; expected the same"
        )
    if num_draws < 1 or anneal < 0:
        raise ValueError(f"realnvp got num_draws={num_draws} and anneal={anneal}; expected at least 1 and at least 0")
    return Model(
        init=bind(_init_standard, couplings, event),
        loss=bind(_reverse_kl_loss, couplings, event, log_p, Static(num_draws), jnp.float32(max(anneal, 1))),
        sampler=bind(_sampler, couplings, event, density, log_p if weighted else None),
        log_density=density,
        forwards=2 * num_draws,
    )


def _init(couplings, event, key, batch):
    if batch is None:
        raise ValueError("realnvp got no data; expected a batch of events, or realnvp(..., target=) to learn from a density")
    event.check(batch)
    frame = fit_frame(batch)
    spread = jax.tree.map(lambda a, s: jnp.broadcast_to(s, a.shape), event.template, frame["scale"])
    shift = jax.tree.map(lambda a, s: jnp.broadcast_to(s, a.shape), event.template, frame["shift"])
    return {
        "couplings": couplings.init(key), "shift": event.flatten(shift), "log_scale": jnp.log(event.flatten(spread)),
    }, ()  # fmt: skip


def _init_standard(couplings, event, key, batch):
    del batch
    zeros = jnp.zeros(event.size, event.dtype)
    return {"couplings": couplings.init(key), "shift": zeros, "log_scale": zeros}, jnp.float32(0)


def _push(couplings, params, z):
    """x [d] and log q(x) of the base draw z [d]."""
    y, log_jacobian = couplings.forward(params["couplings"], z)
    x = params["shift"] + jnp.exp(params["log_scale"]) * y
    return x, _log_normal(z) - log_jacobian - params["log_scale"].sum()


def _log_density_flat(couplings, params, x):
    y = (x - params["shift"]) * jnp.exp(-params["log_scale"])
    z, log_jacobian = couplings.inverse(params["couplings"], y)
    return _log_normal(z) + log_jacobian - params["log_scale"].sum()


def _log_density(couplings, event, params, x):
    return _log_density_flat(couplings, params, event.flatten(x))


def _log_normal(z):
    return -0.5 * (jnp.square(z).sum() + z.size * jnp.log(2 * jnp.pi).astype(z.dtype))


def _likelihood_loss(couplings, event, dequantise, params, state, key, batch):
    x = jax.vmap(event.flatten)(batch)
    x = x + dequantise * jax.random.uniform(key, x.shape, x.dtype, minval=-0.5, maxval=0.5)
    nll = -jax.vmap(lambda v: _log_density_flat(couplings, params, v))(x).mean()
    return nll, (state, {"nll": nll, "bits_per_dim": nll / (event.size * jnp.log(2.0).astype(nll.dtype))})


def _reverse_kl_loss(couplings, event, log_p, num_draws, anneal, params, taken, key, batch):
    """`taken` counts steps: the model's state."""
    del batch
    held = jax.lax.stop_gradient(params)
    beta = (FLATTEST ** jnp.maximum(1 - (taken + 1) / anneal, 0)).astype(event.dtype)

    def one(z):
        x, _ = _push(couplings, params, z)
        return log_p(event.unflatten(x)), _log_density_flat(couplings, held, x)

    log_ps, log_qs = jax.vmap(one)(jax.random.normal(key, (num_draws.value, event.size), event.dtype))
    kl = (log_qs - log_ps).mean()
    log_normaliser = jax.scipy.special.logsumexp(log_ps - log_qs) - jnp.log(num_draws.value).astype(kl.dtype)
    return (log_qs - beta * log_ps).mean(), (
        taken + 1,
        {"reverse_kl": kl, "log_normaliser": log_normaliser, "gradients": jnp.int32(num_draws.value)},
    )


def _sampler(couplings, event, density, log_p, params):
    return Sampler(
        start=bind(_base, event),
        init=bind(_stand),
        step=bind(_step, couplings, event, log_p, params),
        position=bind(_position, event),
        log_density=bind(_density_of, density, params),
        log_weight=None if log_p is None else bind(_log_weight),
        num_steps=1,
        traits=Traits(law="approximate"),
    )


def _base(event, key):
    return jax.random.normal(key, (event.size,), event.dtype)


def _stand(key, z):
    del key
    return z, jnp.zeros((), z.dtype)


def _step(couplings, event, log_p, params, key, state, index):
    del key, index
    x, log_q = _push(couplings, params, state[0])
    if log_p is None:
        return (x, log_q), Info.of(forwards=1)
    return (x, log_p(event.unflatten(x)) - log_q), Info.of(forwards=1, densities=1)


def _position(event, state):
    return event.unflatten(state[0])


def _density_of(density, params, x):
    return density(params, x)


def _log_weight(state):
    return state[1]
