"""Microcanonical dynamics: motion at constant speed that the gradient only steers, unadjusted (MCLMC) and adjusted (MAMS).

In coordinates whitened by the metric, x = R y with R R = M^-1, a unit vector u moves the event and turns towards the gradient,

    dy = u dt,    du = (I - u u') R grad log p(x) / (d - 1) dt,

which leaves p(x), with u uniform on the sphere, invariant; noise that only turns u makes it ergodic. The speed is 1 in all d
coordinates together, so lengths grow with sqrt d: a step of eps sqrt d here compares with a step of eps in HMC.

`mclmc` takes every step, u turned a little by noise each time so that it forgets its direction after `decoherence_length`. The
law is biased by order step_size^2 (law = "approximate"), one way or the other; measured error of E x^2 with L = sqrt d, d = 50:

    step_size / sqrt d         0.2       0.3       0.45      0.65      gradients per step
    leapfrog, normal          +0.4 %    +1.0 %    +1.9 %    +3.7 %     1
    leapfrog, exp(-x^4 / 4)   -0.1 %    -0.1 %    -0.6 %    -2.0 %     1     (step in units of its sd)
    step_size / sqrt d         0.4       0.6       0.9       1.3
    minimal norm, normal       0.0 %    -0.4 %    -1.0 %    -2.5 %     2
    minimal norm, exp(...)    -0.5 %    -1.4 %    -3.8 %   -10.6 %     2

`mams` draws a new u, follows a path of many steps and accepts its end with the Metropolis probability: right in the limit of
many draws. Its path length is spread evenly over (0, trajectory_length), by the sequence of `dynamic_hamiltonian.py`.

At equal gradients the leapfrog gave `mams` 1.1 to 2.2 times the effective draws of the minimal-norm integrator (the worse of x
and x^2 on normal, quartic and banana laws in 2 and 50 dimensions, each at its best step), so it is the default of both; the
papers use minimal norm. Kernels and integrators are blackjax's, to which a dense metric goes as its eigenvalue decomposition.
Row one of the table: no end, every state is a draw.

Sources: Robnik, De Luca, Silverstein and Seljak 2023 (MCLMC); Robnik, Cohn-Gordon and Seljak 2025 (MAMS); Ver Steeg and
Galstyan 2021 (the exact turn of u).
"""

import math
from typing import Any

import blackjax
import jax.numpy as jnp
from blackjax.mcmc.integrators import isokinetic_mclachlan, isokinetic_velocity_verlet
from blackjax.mcmc.metrics import LowRankInverseMassMatrix

from gensamp.core import Info, PyTree, Sampler, Static, Target, Traits, bind
from gensamp.mcmc.arguments import dimension, read_log_density, read_metric, read_start, read_step_size, strong
from gensamp.mcmc.dynamic_hamiltonian import jitter, path_steps, read_most_steps, read_positive

__all__ = ["mams", "mclmc"]

# name -> (integrator, gradients per step)
_INTEGRATORS = {"leapfrog": (isokinetic_velocity_verlet, 1), "minimal_norm": (isokinetic_mclachlan, 2)}
_MCLMC = {name: blackjax.mclmc.build_kernel(integrator) for name, (integrator, _) in _INTEGRATORS.items()}
_MAMS = {name: blackjax.adjusted_mclmc.build_kernel(integrator) for name, (integrator, _) in _INTEGRATORS.items()}


def mclmc(
    target: Target,
    step_size: Any,
    *,
    decoherence_length: Any = None,
    inverse_mass_matrix: Any = None,
    integrator: str = "leapfrog",
    start: Any = None,
) -> Sampler:
    """Microcanonical Langevin Monte Carlo: every step is taken, so the law is biased (law = "approximate").

    Args:
        target: needs `log_density`, of an event with at least two coordinates.
        step_size: length of a step, a scalar, in the metric's units times sqrt d. There is no acceptance to tune it by.
        decoherence_length: distance after which the velocity has forgotten its direction: a scalar and a leaf. None is sqrt d,
            which suits a metric that whitens the target.
        inverse_mass_matrix: [d] or [d, d] over the flattened event; None is the identity. A dense one costs an eigenvalue
            decomposition when the sampler is made.
        integrator: "leapfrog" or "minimal_norm". Static.
        start: (key) -> position; None is Uniform(-2, 2) in every coordinate.

    Returns:
        A Sampler without end; one gradient per step with the leapfrog and two with minimal norm, and one in init, which draws
        the velocity. Its state depends on neither step size nor metric. acceptance is 1; diverged marks a step to where
        something is not finite, which is not taken and redraws the velocity.

    Raises:
        ValueError: the target has no log_density or one coordinate only, a size is not positive, the metric does not fit the
            event, or the integrator is unknown.
    """
    log_density, size = read_log_density(target, "mclmc"), _read_dimension(target.template, "mclmc")
    length = math.sqrt(size) if decoherence_length is None else decoherence_length
    return Sampler(
        start=read_start(start, target.template),
        init=bind(_mclmc_init, log_density),
        step=bind(
            _mclmc_step, log_density, read_step_size(step_size, target.template, "mclmc"),
            read_positive(length, target.template, "mclmc", "decoherence_length"),
            _read_metric(inverse_mass_matrix, target.template, "mclmc"), _read_integrator(integrator, "mclmc"),
        ),
        position=bind(_position),
        traits=Traits(law="approximate"),
    )  # fmt: skip


def mams(
    target: Target,
    step_size: Any,
    *,
    trajectory_length: Any = None,
    decoherence_length: Any = math.inf,
    inverse_mass_matrix: Any = None,
    integrator: str = "leapfrog",
    max_num_steps: Any = 1000,
    start: Any = None,
) -> Sampler:
    """Metropolis-adjusted microcanonical sampler; best near an acceptance of 0.9.

    Args:
        target: needs `log_density`, of an event with at least two coordinates.
        step_size: length of a step, a scalar, in the metric's units times sqrt d.
        trajectory_length: the longest path: a scalar and a leaf. None is pi sqrt d, which suits a metric that whitens the
            target.
        decoherence_length: distance after which noise along the path has turned the velocity: a scalar and a leaf. The default
            is no noise; the paper's Langevin variant has about the mean path length.
        inverse_mass_matrix: [d] or [d, d] over the flattened event; None is the identity. A dense one costs an eigenvalue
            decomposition when the sampler is made.
        integrator: "leapfrog" or "minimal_norm". Static.
        max_num_steps: no path has more steps than this, whatever the step size: an integer and a leaf.
        start: (key) -> position; None is Uniform(-2, 2) in every coordinate.

    Returns:
        A Sampler without end. A path has about trajectory_length / (2 step_size) steps on average, at one gradient each with
        the leapfrog and two with minimal norm; init makes one. Its state depends on neither step size nor metric. diverged
        marks an energy error above 1000. The length is data of the program, so `jax.grad` does not run backwards through it.

    Raises:
        ValueError: the target has no log_density or one coordinate only, a size is not positive, the metric does not fit the
            event, or the integrator is unknown.
    """
    log_density, size = read_log_density(target, "mams"), _read_dimension(target.template, "mams")
    length = math.pi * math.sqrt(size) if trajectory_length is None else trajectory_length
    return Sampler(
        start=read_start(start, target.template),
        init=bind(_mams_init, log_density),
        step=bind(
            _mams_step, log_density, read_step_size(step_size, target.template, "mams"),
            read_positive(length, target.template, "mams", "trajectory_length"),
            read_positive(decoherence_length, target.template, "mams", "decoherence_length"),
            _read_metric(inverse_mass_matrix, target.template, "mams"), _read_integrator(integrator, "mams"),
            read_most_steps(max_num_steps, "mams"),
        ),
        position=bind(_position),
    )  # fmt: skip


def _mclmc_init(log_density, key, position):
    return strong(blackjax.mclmc.init(position, log_density, key))


def _mclmc_step(log_density, step_size, decoherence_length, metric, integrator, key, state, index):
    del index
    kernel, (_, gradients) = _MCLMC[integrator.value], _INTEGRATORS[integrator.value]
    state, info = kernel(key, state, log_density, metric, decoherence_length, step_size)
    return strong(state), Info.of(gradients=gradients, diverged=~jnp.asarray(info.nonans))


def _mams_init(log_density, key, position):
    del key
    return strong(blackjax.hmc.init(position, log_density))


def _mams_step(log_density, step_size, trajectory_length, decoherence_length, metric, integrator, most, key, state, index):
    kernel, (_, gradients) = _MAMS[integrator.value], _INTEGRATORS[integrator.value]
    count = path_steps(jitter(index, step_size.dtype) * trajectory_length, step_size, most)
    # The kernel takes the decoherence length as a share of the path.
    share = decoherence_length / (count.astype(step_size.dtype) * step_size)
    state, info = kernel(key, state, log_density, step_size, (count,), metric, share)
    return strong(state), Info.of(gradients=gradients * count, acceptance=info.acceptance_rate, diverged=info.is_divergent)


def _position(state):
    return state.position


def _read_dimension(template: PyTree, by: str) -> int:
    size = dimension(template)
    if size < 2:
        raise ValueError(
            f"{by} got an event of {size} coordinate; expected at least 2, since it moves at constant speed: use malt or nuts"
        )
    return size


def _read_metric(inverse_mass_matrix, template, by):
    """The metric as blackjax's integrators take it: variances [d], or a decomposed covariance."""
    matrix = read_metric(inverse_mass_matrix, template, by)
    if matrix.ndim == 1:
        return matrix
    values, vectors = jnp.linalg.eigh(matrix)
    # Rounding can make the smallest of a badly conditioned matrix negative.
    values = jnp.maximum(values, jnp.finfo(values.dtype).eps * values[-1])
    return LowRankInverseMassMatrix(jnp.ones_like(values), vectors, values)


def _read_integrator(name, by) -> Static:
    if name not in _INTEGRATORS:
        raise ValueError(f"{by} got integrator {name!r}; expected one of {', '.join(_INTEGRATORS)}")
    return Static(name)
