"""Metropolis-Hastings with proposals that need no gradient: a Gaussian step, or a fresh draw from another sampler.

A proposal y ~ q(x -> y) is accepted with probability

    min(1, p(y) q(y -> x) / (p(x) q(x -> y))),

otherwise the chain stays. `random_walk` steps by a Gaussian, which is symmetric, so q cancels; the best step accepts about one
proposal in four in many dimensions (0.234; Roberts, Gelman and Gilks 1997). `independence` proposes a draw that does not depend
on x, from any finite sampler whose density is known: a fitted flow then serves the statistician, who asks for the target's law
and not for the flow's. Where the proposal is the target nothing is rejected; where its tails are lighter than the target's the
chain sticks.

Row one of the table: no end, every state is a draw. The kernels are blackjax's. Sources: Metropolis et al. 1953; Hastings 1970
(the ratio of proposal densities); Tierney 1994, section 2.3.3 (independence chains).
"""

from typing import Any

import jax
import jax.numpy as jnp
from blackjax.mcmc import random_walk as rmh

from gensamp.core import Info, Sampler, Static, Target, bind, draw
from gensamp.mcmc.arguments import euclidean, read_log_density, read_metric, read_start, read_step_size, strong

__all__ = ["independence", "random_walk"]

_ADDITIVE = rmh.build_additive_step()
_INDEPENDENT = rmh.build_irmh()


def random_walk(target: Target, step_size: Any, *, inverse_mass_matrix: Any = None, start: Any = None) -> Sampler:
    """Random-walk Metropolis: y = x + step_size M^-1/2 xi, xi ~ N(0, I).

    Args:
        target: needs `log_density`; no gradient is taken.
        step_size: a scalar; on a Gaussian target with M^-1 its covariance, 2.4 / sqrt(d) is about best.
        inverse_mass_matrix: [d] or [d, d] over the flattened event; None is the identity.
        start: (key) -> position; None is Uniform(-2, 2) in every coordinate.

    Returns:
        A Sampler without end; one density per step, and one in init. Its state depends on neither step size nor metric.
        diverged marks a chain that stands where the log density is not finite.

    Raises:
        ValueError: the target has no log_density, the step size is not positive, or the metric does not fit the event.
    """
    log_density = read_log_density(target, "random_walk")
    return Sampler(
        start=read_start(start, target.template),
        init=bind(_init, log_density),
        step=bind(
            _walk, log_density, read_step_size(step_size, target.template, "random_walk"),
            read_metric(inverse_mass_matrix, target.template, "random_walk"),
        ),
        position=bind(_position),
    )  # fmt: skip


def independence(target: Target, proposal: Sampler, *, density_forwards: int | None = None, start: Any = None) -> Sampler:
    """Independence Metropolis-Hastings: every proposal is a new draw of another sampler.

    Args:
        target: needs `log_density`.
        proposal: a finite Sampler with a log_density (a normalised one is not needed), such as a fitted flow's. Its arrays are
            leaves. It must reach wherever the target has mass.
        density_forwards: network evaluations that one log_density of the proposal makes; None says as many as one draw, which
            is so for flows.
        start: (key) -> position; None is a draw of the proposal.

    Returns:
        A Sampler without end. Each step makes one draw of the proposal (what its Info says) and evaluates the proposal's log
        density once and the target's once. diverged marks a chain that stands where either is not finite; outside of the
        proposal's support it would never leave.

    Raises:
        TypeError: proposal is not a Sampler.
        ValueError: the target or the proposal has no log_density, or the proposal has no end, is a population or draws other
            events than the target's.
    """
    log_density = read_log_density(target, "independence")
    _check_proposal(proposal, target)
    if density_forwards is not None and (not isinstance(density_forwards, int) or density_forwards < 0):
        raise ValueError(f"independence got density_forwards {density_forwards!r}; expected a count of at least 0, or None")
    return Sampler(
        start=bind(_draw_position, proposal) if start is None else read_start(start, target.template),
        init=bind(_init_pair, log_density, proposal.log_density),
        step=bind(_replace, log_density, proposal, Static(density_forwards)),
        position=bind(_position_of_pair),
    )


def _init(log_density, key, position):
    del key
    return strong(rmh.init(position, log_density))


def _walk(log_density, step_size, inverse_mass_matrix, key, state, index):
    del index
    metric = euclidean(inverse_mass_matrix)

    def move(key, position):
        # The metric's momentum p ~ N(0, M) gives the step: M^-1 p has the law of M^-1/2 xi.
        velocity = jax.grad(metric.kinetic_energy)(metric.sample_momentum(key, position))
        return jax.tree.map(lambda v: step_size * v, velocity)

    state, info = _ADDITIVE(key, state, log_density, move)
    return strong(state), Info.of(densities=1, acceptance=info.acceptance_rate, diverged=~jnp.isfinite(state.logdensity))


def _position(state):
    return state.position


def _init_pair(log_density, log_proposal, key, position):
    """The position beside its density under the proposal, so that a step need not evaluate that again."""
    del key
    return strong(rmh.RWState((position, log_proposal(position)), log_density(position)))


def _replace(log_density, proposal, density_forwards, key, state, index):
    del index
    # Outside of the kernel, whose own interface has no room for the cost; it gets the draw ready made.
    key_draw, key_accept = jax.random.split(key)
    drawn = draw(key_draw, proposal)
    pair = drawn.position, proposal.log_density(drawn.position)

    def ready(key):
        del key
        return pair

    state, info = _INDEPENDENT(key_accept, state, lambda pair: log_density(pair[0]), ready, _log_proposal)
    again = drawn.info.forwards if density_forwards.value is None else density_forwards.value
    return strong(state), Info.of(
        gradients=drawn.info.gradients, densities=drawn.info.densities + 1, forwards=drawn.info.forwards + again,
        acceptance=info.acceptance_rate, diverged=~(jnp.isfinite(state.logdensity) & jnp.isfinite(state.position[1])),
    )  # fmt: skip


def _log_proposal(origin, end):
    """log q(origin -> end), which is that of `end` alone."""
    del origin
    return end.position[1]


def _position_of_pair(state):
    return state.position[0]


def _draw_position(proposal, key):
    return draw(key, proposal).position


def _check_proposal(proposal, target) -> None:
    if not isinstance(proposal, Sampler):
        raise TypeError(f"independence got {type(proposal).__name__} as its proposal; expected a Sampler, such as a flow's")
    if proposal.num_steps is None:
        raise ValueError(
            "independence got a proposal without end, whose draws depend on each other; expected a finite Sampler, such as a "
            "fitted flow's"
        )
    if proposal.log_density is None:
        raise ValueError(
            "independence got a proposal without log_density, which the acceptance probability needs; expected a Sampler that "
            "has one, such as a fitted flow's"
        )
    got = jax.eval_shape(_draw_position, proposal, jax.random.key(0))
    if jax.tree.structure(got) != jax.tree.structure(target.template) or any(
        (a.shape, a.dtype) != (b.shape, b.dtype) for a, b in zip(*map(jax.tree.leaves, (got, target.template)), strict=True)
    ):
        raise ValueError(f"independence got a proposal that draws {got}; expected events of the target, {target.template}")
