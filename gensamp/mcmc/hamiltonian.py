"""Hamiltonian Monte Carlo: with a fixed number of leapfrog steps, and with a path that stops where it would turn back.

An event x gets a momentum p ~ N(0, M); the leapfrog integrator follows the energy

    H(x, p) = -log p(x) + p' M^-1 p / 2

for a while, and the end (hmc) or a point of the path chosen by its weight exp(-H) (nuts) is the next state. M^-1 is the inverse
mass matrix: variances or a covariance of the target make every direction move alike. Row one of the table: no end, every state
is a draw.

The kernels are blackjax's: `hmc` with a Metropolis step at the end point (Duane et al. 1987; Neal 2011), `nuts` with
multinomial sampling and the generalised turning criterion (Hoffman and Gelman 2014; Betancourt 2017). A fixed number of steps
may resonate with a period of the target (Neal 2011, section 5.3.1).
"""

from typing import Any

import blackjax
import jax
import jax.numpy as jnp

from gensamp.core import Info, Sampler, Static, Target, bind, scalar
from gensamp.mcmc.arguments import euclidean, read_log_density, read_metric, read_start, read_step_size, strong

__all__ = ["hmc", "nuts"]

_HMC = blackjax.hmc.build_kernel()
_NUTS = blackjax.nuts.build_kernel()


def hmc(
    target: Target,
    step_size: Any,
    *,
    inverse_mass_matrix: Any = None,
    num_integration_steps: Any = 10,
    start: Any = None,
    report: bool = False,
) -> Sampler:
    """Hamiltonian Monte Carlo with a fixed number of leapfrog steps.

    Args:
        target: needs `log_density`.
        step_size: length of a leapfrog step, a scalar.
        inverse_mass_matrix: [d] or [d, d] over the flattened event; None is the identity.
        num_integration_steps: leapfrog steps per draw. An integer is a leaf: a new one does not recompile, and `jax.grad`
            cannot run backwards through the loop. `Static(n)` compiles for that n and can be differentiated.
        start: (key) -> position; None is Uniform(-2, 2) in every coordinate.
        report: Info.extra carries `energy`, the energy at the end of the path.

    Returns:
        A Sampler without end; num_integration_steps gradients per step, and one in init. Its state depends on neither step size
        nor metric. diverged marks an energy error above 1000.

    Raises:
        ValueError: the target has no log_density, a size is not positive, or the metric does not fit the event.
    """
    log_density = read_log_density(target, "hmc")
    return Sampler(
        start=read_start(start, target.template),
        init=bind(_init, log_density),
        step=bind(
            _hmc_step, log_density, read_step_size(step_size, target.template, "hmc"),
            read_metric(inverse_mass_matrix, target.template, "hmc"), _read_count(num_integration_steps), Static(report),
        ),
        position=bind(_position),
    )  # fmt: skip


def nuts(
    target: Target,
    step_size: Any,
    *,
    inverse_mass_matrix: Any = None,
    max_tree_depth: int = 10,
    start: Any = None,
    report: bool = False,
) -> Sampler:
    """The no-U-turn sampler.

    Args:
        target: needs `log_density`.
        step_size: length of a leapfrog step, a scalar.
        inverse_mass_matrix: [d] or [d, d] over the flattened event; None is the identity.
        max_tree_depth: the path has at most 2^max_tree_depth - 1 leapfrog steps. Static.
        start: (key) -> position; None is Uniform(-2, 2) in every coordinate.
        report: Info.extra carries `energy` and `num_steps`, the length of the path.

    Returns:
        A Sampler without end; as many gradients per step as leapfrog steps were taken, and one in init. acceptance is the mean
        over the path. Its state depends on neither step size nor metric. The length depends on the data, so `jax.grad` does not
        run backwards through it.

    Raises:
        ValueError: the target has no log_density, a size is not positive, the metric does not fit the event, or the event is
            not of jax's default float dtype.
    """
    log_density = read_log_density(target, "nuts")
    if not isinstance(max_tree_depth, int) or not 1 <= max_tree_depth <= 30:
        raise ValueError(f"nuts got max_tree_depth {max_tree_depth!r}; expected an integer from 1 to 30")
    dtype, default = scalar(0, target.template).dtype, jnp.result_type(float)
    if dtype != default:
        raise ValueError(
            f"nuts got events of {dtype}; expected {default}, jax's default, in which blackjax keeps a tree's weights: make "
            "the template so, or use dynamic_hmc"
        )
    return Sampler(
        start=read_start(start, target.template),
        init=bind(_init, log_density),
        step=bind(
            _nuts_step, log_density, read_step_size(step_size, target.template, "nuts"),
            read_metric(inverse_mass_matrix, target.template, "nuts"), Static(max_tree_depth), Static(report),
        ),
        position=bind(_position),
    )  # fmt: skip


def _init(log_density, key, position):
    del key
    return strong(blackjax.hmc.init(position, log_density))


def _hmc_step(log_density, step_size, inverse_mass_matrix, count, report, key, state, index):
    del index
    count = count.value if isinstance(count, Static) else count
    state, info = _HMC(key, state, log_density, step_size, euclidean(inverse_mass_matrix), count)
    extra = {"energy": info.energy} if report.value else ()
    return strong(state), Info.of(
        gradients=count, acceptance=info.acceptance_rate, diverged=info.is_divergent, extra=strong(extra)
    )


def _nuts_step(log_density, step_size, inverse_mass_matrix, depth, report, key, state, index):
    del index
    state, info = _NUTS(key, state, log_density, step_size, inverse_mass_matrix, depth.value)
    steps = info.num_integration_steps
    extra = {"energy": info.energy, "num_steps": jnp.asarray(steps, jnp.int32)} if report.value else ()
    return strong(state), Info.of(
        gradients=steps, acceptance=info.acceptance_rate, diverged=info.is_divergent, extra=strong(extra)
    )


def _position(state):
    return state.position


def _read_count(count):
    value = count.value if isinstance(count, Static) else count
    one = not isinstance(value, str) and value is not None and jnp.shape(value) == ()
    if not one or not jnp.issubdtype(jnp.result_type(value), jnp.integer):
        raise ValueError(f"hmc got num_integration_steps {value!r}; expected one integer (or Static of one)")
    if not isinstance(value, jax.core.Tracer) and int(value) < 1:
        raise ValueError(f"hmc got num_integration_steps {int(value)}; expected at least 1")
    return count if isinstance(count, Static) else jnp.asarray(count, jnp.int32)
