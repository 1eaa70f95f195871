"""Hamiltonian Monte Carlo over paths of varying length, the kernel that ChEES tunes.

As in `hamiltonian.py` an event x gets a momentum p ~ N(0, M), and leapfrog steps of length eps follow the energy

    H(x, p) = -log p(x) + p' M^-1 p / 2

to an end point that a Metropolis step accepts or not. Their number changes from draw to draw,

    n_i = ceil(u_i T / eps),    u_i in (0, 1),

so that no period of the target resonates with it. T is `trajectory_length`, and should cross the target's longest direction.
Row one of the table: no end, every state is a draw.

The u_i are the golden-ratio sequence of the step's index, u_i = (i + 1) / phi mod 1. Like the Halton sequence of the paper it
fills the interval evenly, and so it does under every stride (a kernel inside a cycle sees each second or third index). It does
not depend on the state, so every step leaves the target invariant; and as all chains share the index, chains side by side take
paths of one length and none waits for another.

The path and the Metropolis step are blackjax's HMC. Sources: Hoffman, Radul and Sountsov 2021 (section 3); Neal 2011 (section
3.2, on random lengths).
"""

from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.util import linear_map
from jax.flatten_util import ravel_pytree

from gensamp.core import Info, PyTree, Sampler, Static, Target, bind, scalar
from gensamp.mcmc.arguments import euclidean, read_log_density, read_metric, read_start, read_step_size, strong

__all__ = ["dynamic_hmc", "jitter", "path_steps", "read_most_steps", "read_positive"]

_HMC = blackjax.hmc.build_kernel()
# 2^32 / phi: the golden-ratio sequence in 32-bit integers, exact for every index.
_GOLDEN = np.uint32(2654435769)


def dynamic_hmc(
    target: Target,
    step_size: Any,
    *,
    inverse_mass_matrix: Any = None,
    trajectory_length: Any = jnp.pi,
    max_num_steps: Any = 1000,
    start: Any = None,
    report: bool = False,
    report_path: bool = False,
) -> Sampler:
    """Hamiltonian Monte Carlo whose path length is spread evenly over (0, trajectory_length).

    Args:
        target: needs `log_density`.
        step_size: length of a leapfrog step, a scalar.
        inverse_mass_matrix: [d] or [d, d] over the flattened event; None is the identity.
        trajectory_length: the longest path, in time: a scalar and a leaf. The default suits a metric that whitens the target,
            where a draw then has no correlation with the last (E cos(u pi) = 0) after half of it on average.
        max_num_steps: no path has more leapfrog steps than this, whatever the step size: an integer and a leaf.
        start: (key) -> position; None is Uniform(-2, 2) in every coordinate.
        report: Info.extra carries `energy`, the energy at the end of the path.
        report_path: Info.extra carries `proposal`, that end, accepted or not, and `velocity`, M^-1 p there, both like one
            event: what ChEES learns a trajectory length from.

    Returns:
        A Sampler without end; as many gradients per step as leapfrog steps, on average about trajectory_length / (2 step_size),
        and one in init. Its state depends on neither step size nor metric. diverged marks an energy error above 1000. The
        length is data of the program, so `jax.grad` does not run backwards through it.

    Raises:
        ValueError: the target has no log_density, a size is not positive, or the metric does not fit the event.
    """
    log_density = read_log_density(target, "dynamic_hmc")
    return Sampler(
        start=read_start(start, target.template),
        init=bind(_init, log_density),
        step=bind(
            _step, log_density, read_step_size(step_size, target.template, "dynamic_hmc"),
            read_metric(inverse_mass_matrix, target.template, "dynamic_hmc"),
            read_positive(trajectory_length, target.template, "dynamic_hmc", "trajectory_length"),
            read_most_steps(max_num_steps, "dynamic_hmc"), Static((report, report_path)),
        ),
        position=bind(_position),
    )  # fmt: skip


def jitter(index: jax.Array, dtype: Any) -> jax.Array:
    """u_i in (0, 1) for the step of that index: the golden-ratio sequence, the same for every chain."""
    # The top 23 bits, which even float32 holds exactly, at the middle of their cell: neither 0 nor 1 comes out.
    cell = ((index.astype(jnp.uint32) + 1) * _GOLDEN) >> 9
    return (cell.astype(dtype) + 0.5) / 2**23


def path_steps(length: jax.Array, step_size: jax.Array, most: jax.Array) -> jax.Array:
    """How many steps make a path of that length: ceil(length / step_size), at least 1 and at most `most`."""
    # Clipped before it becomes an integer: a step size that underflows asks for infinitely many.
    return jnp.clip(jnp.ceil(length / step_size), 1, most.astype(step_size.dtype)).astype(jnp.int32)


def read_positive(value: Any, template: PyTree, by: str, name: str) -> jax.Array:
    """A length or a rate as a scalar in the template's dtype.

    Raises:
        ValueError: it is not one number, or a concrete number that is not positive.
    """
    if isinstance(value, str) or value is None or jnp.shape(value) != ():
        raise ValueError(f"{by} got {name} {value!r}; expected one positive number")
    if not isinstance(value, jax.core.Tracer) and not float(value) > 0:
        raise ValueError(f"{by} got {name} {float(value)}; expected a positive number")
    return scalar(value, template)


def read_most_steps(most: Any, by: str) -> jax.Array:
    """The bound on the steps of a path as an int32 scalar.

    Raises:
        ValueError: it is not one integer of at least 1.
    """
    wrong = isinstance(most, Static | str) or most is None
    if wrong or jnp.shape(most) != () or not jnp.issubdtype(jnp.result_type(most), jnp.integer):
        raise ValueError(f"{by} got max_num_steps {most!r}; expected one integer")
    if not isinstance(most, jax.core.Tracer) and int(most) < 1:
        raise ValueError(f"{by} got max_num_steps {int(most)}; expected at least 1")
    return jnp.asarray(most, jnp.int32)


def _init(log_density, key, position):
    del key
    return strong(blackjax.hmc.init(position, log_density))


def _step(log_density, step_size, inverse_mass_matrix, trajectory_length, most, report, key, state, index):
    count = path_steps(jitter(index, step_size.dtype) * trajectory_length, step_size, most)
    state, info = _HMC(key, state, log_density, step_size, euclidean(inverse_mass_matrix), count)
    energy, path = report.value
    extra = {"energy": info.energy} if energy else {}
    extra |= _end(inverse_mass_matrix, info.proposal) if path else {}
    return strong(state), Info.of(
        gradients=count, acceptance=info.acceptance_rate, diverged=info.is_divergent, extra=strong(extra or ())
    )


def _end(inverse_mass_matrix, end):
    # blackjax turns the momentum round at the end of a path, so that the proposal is its own inverse.
    momentum, unravel = ravel_pytree(jax.tree.map(jnp.negative, end.momentum))
    return {"proposal": end.position, "velocity": unravel(linear_map(inverse_mass_matrix, momentum))}


def _position(state):
    return state.position
