"""A normalizing flow from any invertible map: what all flows of this package share.

    z ~ N(0, I),    x = shift + scale T(z),    log q(x) = log N(z; 0, I) - log |dT/dz| - sum log scale

shift and scale start at the mean and spread of the first batch (at 0 and 1 without data) and are trained with the rest. Row
"normalizing flow" of the table: start Gaussian, one learned deterministic step.

Fit to data a flow minimises the negative log likelihood, -mean log q(x). Fit to a density p known up to a constant Z it
minimises the reverse Kullback-Leibler divergence. Where the inverse of T costs one pass, by the path gradient (Roeder, Wu and
Duvenaud 2017, equation 8): the gradient of log q(x) - log p(x) through the draw x only, with the parameters of log q held
fixed. Its expectation is that of the full gradient, and its variance vanishes as q reaches p. Where the inverse costs d
passes, by the full gradient, whose log q comes with the draw. The loss estimates an upper bound of -log Z. Reverse KL covers
the modes it finds and says nothing of the others. So that it finds more of them, training can start on a flattened target,
p^beta with beta rising geometrically to 1 (annealing as in Rezende and Mohamed 2015, section 6.1). It starts at 0.1: flatter
still, the tails of a posterior reach where its density overflows.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gensamp.core import Info, Model, Sampler, Static, Target, Traits, as_template, bind, require, scalar
from gensamp.nets.couplings import Bijection
from gensamp.nets.event import Event
from gensamp.pushforward.frame import check_params, fit_frame, shapes_of
from gensamp.pushforward.lattice import dequantised, in_bits

__all__ = ["flow"]

FLATTEST = 0.1


def flow(
    name: str,
    template: Any,
    bijection: Bijection,
    *,
    target: Target | None = None,
    dequantise: Any = 0.0,
    num_draws: int = 256,
    anneal: int = 0,
    weighted: bool = False,
) -> Model:
    """A normalizing flow over events of any shape.

    Args:
        name: of the flow, for messages.
        template: one event of d coordinates.
        bijection: T over vectors [d].
        target: None learns from data by likelihood. A Target with a log_density is learned by reverse KL, and batches are None.
        dequantise: for data on a lattice, the width of a cell: training adds uniform noise in one cell, without which a density
            has no finite best fit. Draws are then of the smoothed law.
        num_draws: draws per step of the reverse KL.
        anneal: steps of the reverse KL over which the flattened target becomes the target; 0 starts with the target itself.
        weighted: with a target, draws carry log_weight = log p(x) - log q(x): importance sampling, which makes expectations
            consistent and estimates log Z, for one density per draw.

    Returns:
        Model with log_density (params, x); its samplers have log_density too. A draw costs `bijection.forward_passes`
        forwards, a forward being a pass through all layers; a density, or an event in the likelihood, costs `inverse_passes`.
        Metrics: "nll" in nats per event and "bits_per_dim" for data; "reverse_kl" (up to log Z) and "log_normaliser" (an
        importance estimate over the step's draws) for a density, and "gradients", the score evaluations of the step.

    Raises:
        ValueError: the target has no log_density or another template, weights are asked for without one, num_draws < 1, or
            anneal < 0.
    """
    event = Event.of(template)
    density = bind(_log_density, bijection, event)
    if target is None:
        if weighted:
            raise ValueError(f"{name} got weighted=True without a target; expected target=, whose log density weighs the draws")
        cell = scalar(dequantise, event.template)
        return Model(
            init=bind(_init, Static(name), bijection, event, cell),
            loss=bind(_likelihood_loss, bijection, event, cell),
            sampler=bind(_sampler, bijection, event, density, None),
            log_density=density,
            forwards=bijection.inverse_passes,
        )
    log_p = require(target, "log_density", f"{name}(target=)")
    if Event.of(target.template) != event:
        raise ValueError(f"{name} got the template {as_template(template)}, a target over {target.template}; expected the same")
    if num_draws < 1 or anneal < 0:
        raise ValueError(f"{name} got num_draws={num_draws} and anneal={anneal}; expected at least 1 and at least 0")
    by_path = bijection.inverse_passes == 1
    return Model(
        init=bind(_init_standard, bijection, event),
        loss=bind(_reverse_kl_loss, bijection, event, log_p, Static((num_draws, by_path)), jnp.float32(max(anneal, 1))),
        sampler=bind(_sampler, bijection, event, density, log_p if weighted else None),
        log_density=density,
        forwards=num_draws * (bijection.forward_passes + by_path),
    )


def _init(name, bijection, event, cell, key, batch):
    if batch is None:
        raise ValueError(
            f"{name.value} got no data; expected a batch of events, or {name.value}(..., target=) to learn from a density"
        )
    event.check(batch)
    frame = fit_frame(batch)
    spread = jax.tree.map(lambda a, s: jnp.broadcast_to(s, a.shape), event.template, frame["scale"])
    shift = jax.tree.map(lambda a, s: jnp.broadcast_to(s, a.shape), event.template, frame["shift"])
    params = {
        "couplings": bijection.init(key), "shift": event.flatten(shift), "log_scale": jnp.log(event.flatten(spread)),
    }  # fmt: skip
    if bijection.adapt is not None:
        x = dequantised(jax.random.fold_in(key, 1), jax.vmap(event.flatten)(batch), cell)
        y = (x - params["shift"][None]) * jnp.exp(-params["log_scale"])[None]
        params["couplings"] = bijection.adapt(params["couplings"], y)
    return params, ()


def _init_standard(bijection, event, key, batch):
    del batch
    zeros = jnp.zeros(event.size, event.dtype)
    return {"couplings": bijection.init(key), "shift": zeros, "log_scale": zeros}, jnp.float32(0)


def _push(bijection, params, z):
    """x [d] and log q(x) of the base draw z [d]."""
    y, log_jacobian = bijection.forward(params["couplings"], z)
    x = params["shift"] + jnp.exp(params["log_scale"]) * y
    return x, _log_normal(z) - log_jacobian - params["log_scale"].sum()


def _log_density_flat(bijection, params, x):
    y = (x - params["shift"]) * jnp.exp(-params["log_scale"])
    z, log_jacobian = bijection.inverse(params["couplings"], y)
    return _log_normal(z) + log_jacobian - params["log_scale"].sum()


def _log_density(bijection, event, params, x):
    return _log_density_flat(bijection, params, event.flatten(x))


def _log_normal(z):
    return -0.5 * (jnp.square(z).sum() + z.size * jnp.log(2 * jnp.pi).astype(z.dtype))


def _likelihood_loss(bijection, event, cell, params, state, key, batch):
    x = dequantised(key, jax.vmap(event.flatten)(batch), cell)
    nll = -jax.vmap(lambda v: _log_density_flat(bijection, params, v))(x).mean()
    return nll, (state, {"nll": nll, "bits_per_dim": in_bits(nll, event.size, cell)})


def _reverse_kl_loss(bijection, event, log_p, setting, anneal, params, taken, key, batch):
    """`taken` counts steps: the model's state."""
    del batch
    num_draws, by_path = setting.value
    held = jax.lax.stop_gradient(params)
    beta = (FLATTEST ** jnp.maximum(1 - (taken + 1) / anneal, 0)).astype(event.dtype)

    def one(z):
        x, log_q = _push(bijection, params, z)
        return log_p(event.unflatten(x)), _log_density_flat(bijection, held, x) if by_path else log_q

    log_ps, log_qs = jax.vmap(one)(jax.random.normal(key, (num_draws, event.size), event.dtype))
    kl = (log_qs - log_ps).mean()
    log_normaliser = jax.scipy.special.logsumexp(log_ps - log_qs) - jnp.log(num_draws).astype(kl.dtype)
    return (log_qs - beta * log_ps).mean(), (
        taken + 1,
        {"reverse_kl": kl, "log_normaliser": log_normaliser, "gradients": jnp.int32(num_draws)},
    )


def _sampler(bijection, event, density, log_p, params):
    vector = jax.ShapeDtypeStruct((event.size,), event.dtype)
    check_params(params, {"shift": vector, "log_scale": vector, "couplings": shapes_of(bijection.init)})
    return Sampler(
        start=bind(_base, event),
        init=bind(_stand),
        step=bind(_step, bijection, event, log_p, params),
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


def _step(bijection, event, log_p, params, key, state, index):
    del key, index
    x, log_q = _push(bijection, params, state[0])
    passes = bijection.forward_passes
    if log_p is None:
        return (x, log_q), Info.of(forwards=passes)
    return (x, log_p(event.unflatten(x)) - log_q), Info.of(forwards=passes, densities=1)


def _position(event, state):
    return event.unflatten(state[0])


def _density_of(density, params, x):
    return density(params, x)


def _log_weight(state):
    return state[1]
