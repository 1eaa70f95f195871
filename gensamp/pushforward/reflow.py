"""Reflow: fit a straight flow to the pairs that a flow itself has made (Liu, Gong and Liu 2023, "Flow straight and fast").

A flow fitted to independent pairs of noise and events has curved paths, since the straight lines between such pairs cross. Its
own ends (z, x), x being where it takes z, are a coupling whose straight lines cross less, and the flow fitted to that,

    loss = E_t E_(z, x) | u(t, (1 - t) x + t z) - (z - x) |^2 / d                                  (their equation 1)

draws the same law (theorem 3.3) along straighter paths (theorem 3.7): where they are straight, one Euler step is exact. The
loss that is left is what remains of their crookedness. `coupled_draws` makes the pairs, by `sample`, with a bill; `reflow` is
the model fitted to them by `fit`, whose parameters are those of `flow_matching`. It can be done again.

Row "diffusion" of the table, on its way to row "GAN, consistency, distilled".
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gensamp.core import Ledger, Model, Network, Sampler, Static, bind
from gensamp.nets.event import Event
from gensamp.noise import diffuse, rectified_flow
from gensamp.predictions import combine
from gensamp.pushforward.diffusion.distillation import check_teacher, student_params
from gensamp.pushforward.diffusion.euler import euler
from gensamp.pushforward.diffusion.losses import asked, split_condition
from gensamp.pushforward.flow_matching import flow_matching
from gensamp.pushforward.frame import enter

__all__ = ["coupled", "coupled_draws", "reflow"]


def coupled(sampler: Sampler) -> Sampler:
    """The same sampler with draws (z, x): where it started, and where it came to.

    Args:
        sampler: finite. For `reflow` its start must be standard normal, and its steps deterministic: `euler`, `heun`, `unipc`
            on `noise.rectified_flow()` or a variance-preserving process.
    """
    return Sampler(
        start=sampler.start,
        init=bind(_init_both, sampler.init),
        step=bind(_step_both, sampler.step),
        position=bind(_position_both, sampler.position),
        num_steps=sampler.num_steps,
        traits=sampler.traits,
    )


def coupled_draws(key: jax.Array, sampler: Any, num_pairs: int, *, each: Any = None, **options: Any) -> tuple[Any, Ledger]:
    """Pairs of noise and event, made by the runner.

    Args:
        key: a typed key, consumed.
        sampler: as for `coupled`; a Partial (each) -> Sampler when `each` is given, such as `conditional(model, params)`.
        num_pairs: how many. each, options: as for `sample`.

    Returns:
        ((starts, events), ledger): trees with a leading axis [num_pairs], what `fit` takes as data for `reflow`, and the bill,
        to be added to that of the fit. With `each` the data are ((starts, events), each), for a conditional `reflow`.

    Raises:
        ValueError: as for `sample`.
    """
    # Upwards, and only when asked: a model's own code does not run things.
    from gensamp.runner import sample

    if each is None:
        draws = sample(key, coupled(sampler), num_pairs, **options)
    else:
        draws = sample(key, bind(_coupled_for, sampler), num_pairs, each=each, **options)
    pairs = jax.tree.map(lambda a: jnp.asarray(a[0]), draws.position)
    return pairs if each is None else (pairs, each), draws.ledger


def reflow(
    network: Network,
    *,
    template: Any,
    teacher: Any = None,
    solver: Callable[..., Sampler] = euler,
    num_steps: int = 1,
    conditional: bool = False,
    **options: Any,
) -> Model:
    """A velocity network fitted to given pairs.

    Args:
        network, template, solver, num_steps, options: as for `flow_matching`.
        teacher: the params of the flow that made the pairs, if it is of the same network: the student starts as its copy.
        conditional: data are ((starts, events), conditions).

    Returns:
        Model that learns from (starts, events) as `coupled_draws` makes them; one forward per event in a loss. Its sampler is
        that of `flow_matching`.

    Raises:
        ValueError: the data are no pairs, the teacher is none, or as for `flow_matching`.
    """
    event, teacher = Event.of(template), check_teacher("reflow", teacher)
    model = flow_matching(network, template=template, solver=solver, num_steps=num_steps, conditional=conditional, **options)
    return dataclasses.replace(
        model,
        init=bind(_init, network, teacher, Static(conditional)),
        loss=bind(_loss, network, event, Static(conditional)),
    )


def _init_both(init, key, z):
    return z, init(key, z)


def _step_both(step, key, state, index):
    inner, info = step(key, state[1], index)
    return (state[0], inner), info


def _position_both(position, state):
    return state[0], position(state[1])


def _coupled_for(make, each):
    return coupled(make(each))


def _pairs(conditional, batch):
    pairs, condition = split_condition(conditional, batch)
    if not isinstance(pairs, tuple | list) or len(pairs) != 2:
        raise ValueError(f"reflow got a {type(pairs).__name__} as batch; expected a pair (starts, events) of coupled_draws")
    return *pairs, condition


def _init(network, teacher, conditional, key, batch):
    _, events, _ = _pairs(conditional.value, batch)
    return student_params(network, teacher, Static(False), key, events), ()


def _loss(network, event, conditional, params, state, key, batch):
    starts, events, condition = _pairs(conditional.value, batch)
    event.check(events)
    frame = jax.lax.stop_gradient({"shift": params["shift"], "scale": params["scale"]})
    line, size = rectified_flow(), len(jax.tree.leaves(events)[0])
    times = jnp.mod(jax.random.uniform(key, (), event.dtype) + jnp.arange(size, dtype=event.dtype) / size, 1)

    def one(t, z, x, *condition):
        x0, unit = enter(frame, x), jnp.ones((), event.dtype)
        # A denoiser sees its input at unit variance, as `losses` scales it.
        r = jax.lax.rsqrt(line.alpha(t) ** 2 + line.sigma(t) ** 2)
        found = asked(network, params["network"], combine(r, diffuse(line, t, x0, z)), t, condition)
        return jnp.square(event.flatten(found) - event.flatten(combine(unit, z, -unit, x0))).mean()

    error = jax.vmap(one)(times, starts, events, *condition).mean()
    return error, (state, {"denoising_error": error})
