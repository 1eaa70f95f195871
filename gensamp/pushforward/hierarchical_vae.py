"""Hierarchical VAE: latent groups from coarse to fine, inferred from the top down (Sonderby et al. 2016; Child 2021).

    p(z_1) = N(0, s_1^2),    p(z_l | z_<l) = N(prior_l),    x ~ p(x | z_1..z_L),    q(z_l | z_<l, x) = N(posterior_l)
    ELBO(x) = E_q log p(x | z) - sum over l of R_l,    R_l = E_q KL(q(z_l | z_<l, x) || p(z_l | z_<l))

R_l is the rate of group l: what it costs, in nats, to tell it apart from its prior. Inference goes down the same path as
generation, so the posterior of a group sees both the event and what the groups above have drawn. `Hierarchy` is that path; two
are made here, the learned one (`ladder`) and diffusion, whose encoder is fixed (`diffusion_hierarchy`), and everything below
serves both.

Because a prefix of the groups determines the law of the rest, a hierarchy is a progressive code: `prefix` takes the first k
groups from the posterior of an event and the others from the prior.

Options of training, which change the loss and never the bound that is reported:

    free bits    R_l counts as max(R_l, lambda), R_l averaged over the batch               (Kingma et al. 2016, eq. 15)
                 Groups of a learned hierarchy can do each other's work, so those that lag behind are left at their prior and
                 stay there; a hierarchy names the lambda that keeps them in use, and `ladder`'s is not zero.
    shares       R_l is weighed by how far it is from a share a_l of the total rate: by r = R_l / (a_l sum R) held at 0.1 from
                 below where r < 1, by 1 up to r = 2, by min(r / 2, 2) above; no gradient through the weight (Luhman and Luhman
                 2022, whose shares are `geometric_shares`)

Row "hierarchical VAE" of the table: start from the prior of the top group, one learned stochastic step per further group and
one for the event.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from gensamp.core import Info, Model, Sampler, Static, Traits, bind, scalar
from gensamp.nets.event import Event
from gensamp.pushforward.frame import check_params, shapes_of

__all__ = ["Hierarchy", "geometric_shares", "hierarchical_vae", "prefix", "rates"]

_TOLD = 32
"""Groups up to which every rate is a metric of its own."""


@register_dataclass
@dataclass(frozen=True, eq=False)
class Hierarchy:
    """The way down from the top group to the event, for ONE event; latents are vectors [latent_dim].

    init: (key, batch) -> params. encode: (params, x) -> features, all that the posterior sees of the event.
    groups: (params) -> tree with a leading axis [num_groups], one slice `at` for each group, the top one first.
    begin: (params) -> path, the state above all groups. top: (params) -> (mean, scale) of the first group's prior.
    prior: (params, at, path) -> (mean, scale, path), for the groups below the first.
    posterior: (params, at, path, prior's (mean, scale), features) -> (mean, scale).
    merge: (params, at, path, z) -> path, once the group is drawn.
    log_prob: (params, path, x) -> scalar, the event's law at the end; draw: (params, path, key) -> x.
    forwards: network evaluations of encode, prior, posterior, and of log_prob or draw. free_bits: nats per group that had
    better cost nothing while it is trained.
    """

    init: Any
    encode: Any
    groups: Any
    begin: Any
    top: Any
    prior: Any
    posterior: Any
    merge: Any
    log_prob: Any
    draw: Any
    event: Event
    latent_dim: int = dataclasses.field(metadata={"static": True})
    num_groups: int = dataclasses.field(metadata={"static": True})
    forwards: tuple[int, int, int, int] = dataclasses.field(metadata={"static": True})
    free_bits: float = dataclasses.field(default=0.0, metadata={"static": True})


def hierarchical_vae(
    hierarchy: Any, *, dequantise: Any = 0.0, free_bits: float | int | None = None, shares: Sequence[float] | None = None
) -> Model:
    """The Model that trains a hierarchy on its ELBO and draws from it.

    Args:
        hierarchy: a Hierarchy, such as `ladder(...)` or `diffusion_hierarchy(...)`.
        dequantise: for data on a lattice under a density, the width of a cell; training adds uniform noise in one cell.
        free_bits: lambda, nats per group that cost nothing; None: those of the hierarchy, or none where shares are given, which
            keep groups in use too.
        shares: a_l, one positive number per group, scaled to sum to one; None weighs every rate alike.

    Returns:
        Model without log_density (only a bound is known). A draw takes num_groups steps. Metrics, means per event in nats:
        "elbo", "kl" (the sum of the rates), "reconstruction", and "rate_1" to "rate_L" for up to 32 groups.

    Raises:
        TypeError: it is no hierarchy.
        ValueError: free_bits is negative, or the shares are not one positive number per group.
    """
    _check_hierarchy("hierarchical_vae", hierarchy)
    groups = hierarchy.num_groups
    own: float = hierarchy.free_bits if shares is None else 0.0
    free_bits = own if free_bits is None else free_bits
    if free_bits < 0:
        raise ValueError(f"hierarchical_vae got free_bits={free_bits}; expected at least 0 nats per group")
    if shares is not None and (len(shares) != groups or not all(share > 0 for share in shares)):
        raise ValueError(f"hierarchical_vae got shares={shares}; expected {groups} positive numbers, one per group")
    template = hierarchy.event.template
    wanted = None if shares is None else jnp.asarray(np.asarray(shares) / np.sum(shares), hierarchy.event.dtype)
    encode, prior, posterior, last = hierarchy.forwards
    return Model(
        init=hierarchy.init,
        loss=bind(_loss, hierarchy, scalar(dequantise, template), scalar(free_bits, template), wanted),
        sampler=bind(_sampler, hierarchy),
        forwards=encode + (groups - 1) * prior + groups * posterior + last,
    )


def rates(hierarchy: Hierarchy, params: Any, key: jax.Array, x: Any) -> tuple[jax.Array, jax.Array]:
    """One estimate of the ELBO's terms for one event: log p(x | z) and the rates [num_groups], in nats.

    Each group's KL is in closed form given the groups above, which are drawn from the posterior. ELBO = log_prob - rates.sum().
    """
    features = hierarchy.encode(params, x)
    key_top, key_rest = jax.random.split(key)
    keys = jax.random.split(key_rest, hierarchy.num_groups - 1)
    stack = hierarchy.groups(params)
    first, rest = (jax.tree.map(lambda a, part=part: a[part], stack) for part in (0, slice(1, None)))

    def infer(at, path, prior, key):
        mean, scale = hierarchy.posterior(params, at, path, prior, features)
        z = mean + scale * jax.random.normal(key, mean.shape, mean.dtype)
        return hierarchy.merge(params, at, path, z), _divergence(mean, scale, *prior)

    def group(path, given):
        at, key = given
        mean, scale, path = hierarchy.prior(params, at, path)
        return infer(at, path, (mean, scale), key)

    path, rate = infer(first, hierarchy.begin(params), hierarchy.top(params), key_top)
    path, others = jax.lax.scan(group, path, (rest, keys))
    return hierarchy.log_prob(params, path, x), jnp.concatenate([rate[None], others])


def prefix(hierarchy: Any, params: Any, x: Any, num_posterior: Any) -> Sampler:
    """A Sampler of events that agree with x as far as the first groups tell.

    Args:
        hierarchy: the Hierarchy that the parameters were fitted for.
        x: one event, a leaf: to decode many, `sample(key, Partial(function of x), n, each=events)`.
        num_posterior: k, a leaf: groups 1 to k come from q(z | x), the rest from the prior. 0 forgets x, num_groups keeps all
            that is encoded.

    Returns:
        A finite Sampler of num_groups steps; a group costs the forwards of its prior and its posterior. Encoding belongs to
        init and is in no Info.

    Raises:
        TypeError: it is no hierarchy.
        ValueError: x is not one event, or num_posterior is no integer from 0 to num_groups.
    """
    _check_hierarchy("prefix", hierarchy)
    wanted = hierarchy.event.template
    if jax.tree.structure(x) != jax.tree.structure(wanted) or _shapes(x) != _shapes(wanted):
        raise ValueError(f"prefix got x of shapes {_shapes(x)}; expected one event, {_shapes(wanted)}, or sample(each=events)")
    known = not isinstance(num_posterior, jax.core.Tracer)
    whole = jnp.shape(num_posterior) == () and jnp.issubdtype(jnp.result_type(num_posterior), jnp.integer)
    if not whole or (known and not 0 <= int(num_posterior) <= hierarchy.num_groups):
        raise ValueError(
            f"prefix got num_posterior={num_posterior}; expected an integer from 0 to its {hierarchy.num_groups} groups"
        )
    return _build(hierarchy, params, x, jnp.asarray(num_posterior, jnp.int32))


def geometric_shares(num_groups: int, *, ratio: float = 1000.0, floor: float = 10.0) -> tuple[float, ...]:
    """Shares of the total rate that grow geometrically from 1 to `ratio`, plus `floor`, scaled to sum to one.

    Coarse groups get few bits. Source: Luhman and Luhman 2022, "Optimizing hierarchical image VAEs for sample quality".
    """
    raw = np.exp(np.linspace(0.0, math.log(ratio), num_groups)) + floor
    return tuple((raw / raw.sum()).tolist())


def _check_hierarchy(by, hierarchy):
    if not isinstance(hierarchy, Hierarchy):
        raise TypeError(f"{by} got {type(hierarchy).__name__}; expected a Hierarchy, such as ladder(template)")


def _shapes(tree):
    return [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]


def _divergence(mean, scale, prior_mean, prior_scale):
    """KL of one diagonal Gaussian from another."""
    ratio = scale / prior_scale
    terms = 0.5 * (jnp.square(ratio) + jnp.square((mean - prior_mean) / prior_scale) - 1) - jnp.log(ratio)
    return terms.sum()


def _loss(hierarchy, dequantise, free_bits, wanted, params, state, key, batch):
    event = hierarchy.event

    def one(key, x):
        key_cell, key_latent = jax.random.split(key)
        cell = event.unflatten(jax.random.uniform(key_cell, (event.size,), event.dtype, minval=-0.5, maxval=0.5))
        return rates(hierarchy, params, key_latent, jax.tree.map(lambda a, u: a + dequantise * u, x, cell))

    size = len(jax.tree.leaves(batch)[0])
    reconstruction, rate = (a.mean(0) for a in jax.vmap(one)(jax.random.split(key, size), batch))
    cost = _weights(rate, wanted) * jnp.maximum(rate, free_bits)
    metrics = {"elbo": reconstruction - rate.sum(), "kl": rate.sum(), "reconstruction": reconstruction}
    if hierarchy.num_groups <= _TOLD:
        metrics |= {f"rate_{i + 1}": rate[i] for i in range(hierarchy.num_groups)}
    return cost.sum() - reconstruction, (state, metrics)


def _weights(rate, wanted):
    if wanted is None:
        return jnp.ones_like(rate)
    held = jax.lax.stop_gradient(rate)
    # A posterior at its prior throughout has no shares to speak of: then nothing is weighed down but by the floor.
    r = held / jnp.maximum(wanted * held.sum(), jnp.finfo(rate.dtype).tiny)
    return jnp.where(r < 1, jnp.maximum(r, 0.1), jnp.clip(r / 2, 1, 2))


def _sampler(hierarchy, params):
    return _build(hierarchy, params, None, None)


def _build(hierarchy, params, x, num_posterior):
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape), a.dtype), hierarchy.event.template)
    fresh = shapes_of(hierarchy.init, one)
    check_params(params, {} if fresh is None else fresh[0])
    return Sampler(
        start=bind(_start, Static(hierarchy.latent_dim), hierarchy.event),
        init=bind(_stand, hierarchy, params, x, num_posterior),
        step=bind(_step, hierarchy, params, num_posterior),
        position=bind(_position),
        num_steps=hierarchy.num_groups,
        traits=Traits(law="approximate"),
    )


def _start(latent_dim, event, key):
    """The noise of the top group."""
    return jax.random.normal(key, (latent_dim.value,), event.dtype)


def _stand(hierarchy, params, x, num_posterior, key, eps):
    del key
    features = None if x is None else hierarchy.encode(params, x)
    at = jax.tree.map(lambda a: a[0], hierarchy.groups(params))
    path = _drawn(hierarchy, params, at, hierarchy.begin(params), hierarchy.top(params), features, num_posterior, 0, eps)
    return path, features, hierarchy.event.zeros()


def _drawn(hierarchy, params, at, path, prior, features, num_posterior, group, eps):
    """The path after one group, drawn from its prior, or from its posterior where it is among the first."""
    mean, scale = prior
    if num_posterior is not None:
        told = hierarchy.posterior(params, at, path, prior, features)
        mean, scale = (jnp.where(group < num_posterior, q, p) for q, p in zip(told, prior, strict=True))
    return hierarchy.merge(params, at, path, mean + scale * eps)


def _step(hierarchy, params, num_posterior, key, state, index):
    path, features, x = state
    _, prior_cost, posterior_cost, last_cost = hierarchy.forwards
    group_cost = prior_cost + (0 if num_posterior is None else posterior_cost)

    def descend():
        at = jax.tree.map(lambda a: a[index + 1], hierarchy.groups(params))
        mean, scale, below = hierarchy.prior(params, at, path)
        eps = jax.random.normal(key, (hierarchy.latent_dim,), hierarchy.event.dtype)
        return _drawn(hierarchy, params, at, below, (mean, scale), features, num_posterior, index + 1, eps), x

    def finish():
        return path, hierarchy.draw(params, path, key)

    if hierarchy.num_groups == 1:
        return (path, features, finish()[1]), Info.of(forwards=last_cost)
    last = index == hierarchy.num_groups - 1
    path, x = jax.lax.cond(last, finish, descend)
    # A number and no array where it can be: the runner then counts on the host.
    cost = group_cost if group_cost == last_cost else jnp.where(last, last_cost, group_cost)
    return (path, features, x), Info.of(forwards=cost)


def _position(state):
    return state[2]
