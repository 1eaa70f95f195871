"""Metropolis-adjusted Langevin trajectories (MALT): HMC whose path is refreshed all along it.

A draw is a path of underdamped Langevin dynamics. It begins with a new momentum p ~ N(0, M), and each of its n steps is

    O   p <- e p + sqrt(1 - e^2) xi,    xi ~ N(0, M),  e = exp(-gamma eps)     (exact friction and noise)
    L   one leapfrog step of length eps                                        (energy H(x, p) = -log p(x) + p' M^-1 p / 2)

One Metropolis test at its end takes the energy that the leapfrog steps gained,

    acceptance = min(1, exp(-sum over L steps of H(after) - H(before))),

and none of what O changed: O leaves N(0, M) invariant, so it is no error. (Counting it too, as HMC's H(end) - H(start), samples
another law.) A rejected path leaves x where it was, and since the next momentum is new there is nothing to turn round. The
friction gamma damps the periods that make the length of an HMC path delicate; gamma -> 0 is HMC. Row one of the table: no end,
every state is a draw.

blackjax has no MALT; the leapfrog, the metric and the Metropolis test are its own. Adjacent half steps of O are one whole step
here: the first of a path changes nothing in law, and a last half step would change only the momentum, which is forgotten.

Source: Riou-Durand and Vogrinc 2022, algorithm 1.
"""

from typing import Any

import blackjax
import jax
import jax.numpy as jnp
from blackjax.mcmc.hmc import HMCState
from blackjax.mcmc.integrators import IntegratorState, velocity_verlet
from blackjax.mcmc.proposal import static_binomial_sampling

from gensamp.core import Info, Sampler, Target, bind
from gensamp.mcmc.arguments import euclidean, read_log_density, read_metric, read_start, read_step_size, strong
from gensamp.mcmc.dynamic_hamiltonian import path_steps, read_most_steps, read_positive

__all__ = ["malt"]

# An energy error above which a path counts as diverged; blackjax's default.
_DIVERGED = 1000


def malt(
    target: Target,
    step_size: Any,
    *,
    inverse_mass_matrix: Any = None,
    trajectory_length: Any = 2.4,
    damping: Any = 1.0,
    max_num_steps: Any = 1000,
    start: Any = None,
) -> Sampler:
    """Metropolis-adjusted Langevin trajectories; best near an acceptance of 0.65, like HMC.

    Args:
        target: needs `log_density`.
        step_size: eps above, a scalar.
        inverse_mass_matrix: [d] or [d, d] over the flattened event; None is the identity.
        trajectory_length: n eps, in time: a scalar and a leaf; n is trajectory_length / step_size rounded up. The default suits
            a metric that whitens the target: at damping 1 a draw then has no correlation with the last.
        damping: gamma above, per time: a scalar and a leaf. One over the largest standard deviation of the target, in the
            metric's units, is a good one.
        max_num_steps: no path has more leapfrog steps than this, whatever the step size: an integer and a leaf.
        start: (key) -> position; None is Uniform(-2, 2) in every coordinate.

    Returns:
        A Sampler without end; n gradients per step, and one in init. Its state depends on neither step size nor metric.
        diverged marks an energy error above 1000. The length is data of the program, so `jax.grad` does not run backwards
        through it.

    Raises:
        ValueError: the target has no log_density, a size is not positive, or the metric does not fit the event.
    """
    log_density = read_log_density(target, "malt")
    return Sampler(
        start=read_start(start, target.template),
        init=bind(_init, log_density),
        step=bind(
            _step, log_density, read_step_size(step_size, target.template, "malt"),
            read_metric(inverse_mass_matrix, target.template, "malt"),
            read_positive(trajectory_length, target.template, "malt", "trajectory_length"),
            read_positive(damping, target.template, "malt", "damping"), read_most_steps(max_num_steps, "malt"),
        ),
        position=bind(_position),
    )  # fmt: skip


def _init(log_density, key, position):
    del key
    return strong(blackjax.hmc.init(position, log_density))


def _step(log_density, step_size, inverse_mass_matrix, trajectory_length, damping, most, key, state, index):
    del index
    metric = euclidean(inverse_mass_matrix)
    count = path_steps(trajectory_length, step_size, most)
    key_momentum, key_path, key_accept = jax.random.split(key, 3)
    begin = IntegratorState(state.position, metric.sample_momentum(key_momentum, state.position), *state[1:])
    end, gained = _travel(log_density, metric, step_size, damping, count, key_path, begin)
    log_ratio = end.logdensity - begin.logdensity - gained
    log_ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)
    proposal = HMCState(end.position, end.logdensity, end.logdensity_grad)
    state, (_, acceptance, _) = static_binomial_sampling(key_accept, log_ratio, state, proposal)
    return strong(state), Info.of(gradients=count, acceptance=acceptance, diverged=log_ratio < -_DIVERGED)


def _travel(log_density, metric, step_size, damping, count, key, begin):
    """The end of a path, and the kinetic energy that its leapfrog steps gained.

    (O leaves the potential energy alone, so that of the leapfrog steps is the difference between the ends.)
    """
    leapfrog = velocity_verlet(log_density, metric.kinetic_energy)
    kept, added = jnp.exp(-damping * step_size), jnp.sqrt(-jnp.expm1(-2 * damping * step_size))

    def body(i, carry):
        state, gained = carry
        noise = metric.sample_momentum(jax.random.fold_in(key, i), state.position)
        momentum = jax.tree.map(lambda p, n: kept * p + added * n, state.momentum, noise)
        after = leapfrog(state._replace(momentum=momentum), step_size)
        return strong((after, gained + metric.kinetic_energy(after.momentum) - metric.kinetic_energy(momentum)))

    return jax.lax.fori_loop(0, count, body, strong((begin, jnp.zeros_like(begin.logdensity))))


def _position(state):
    return state.position
