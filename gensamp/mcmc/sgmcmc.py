"""Langevin and Hamiltonian dynamics on minibatches: each step sees n of the N data, and nothing is corrected.

With g an unbiased estimate of the score from a batch drawn anew at every step, and V the covariance of its error,

    sgld:    x' = x + eps M^-1 g(x) + sqrt(2 eps) M^-1/2 xi
    sghmc:   x' = x + h p,    p' = (1 - a h) p + h g(x') + sqrt(h (2 a - h b)) xi

(Welling and Teh 2011, equation 4, with eps for half of its step; Chen, Fox and Guestrin 2014, equation 13 and algorithm 2, a
the friction and b an estimate of V). The error of g adds noise that the law pays for: on a Gaussian target of precision L the
variance of sgld is

    (2 + eps V) / (L (2 - eps L))    instead of    1 / L,

so the bias is of order eps, and vanishes only with the step. A Metropolis step would need all the data. Row one of the table:
no end, every state is a draw; the law is approximate.

What a batch must be. `target.minibatch_log_density(x, batch)` estimates the log density without bias: log prior + (N / n) times
the batch's log likelihood. Forgetting N / n - the usual mistake - tempers the likelihood to a sliver of itself, and nothing
looks wrong; so these factories compare, once and before a chain runs, its gradient over all the data with the target's score.
"""

from math import gcd
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.sgmcmc import diffusions
from blackjax.util import generate_gaussian_noise
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from gensamp.core import Info, Sampler, Static, Target, Traits, bind, require, scalar
from gensamp.mcmc.arguments import read_metric, read_start, read_step_size, strong
from gensamp.mcmc.langevin import langevin_move

__all__ = ["SghmcState", "SgldState", "polynomial_decay", "sghmc", "sgld"]

# Batches whose gradients are compared with the score of all data, at most.
CHECKED = 256


class SgldState(NamedTuple):
    """position, like one event."""

    position: Any


class SghmcState(NamedTuple):
    """position and momentum, each like one event."""

    position: Any
    momentum: Any


def polynomial_decay(first: Any, *, delay: Any = 1.0, power: Any = 0.55) -> Partial:
    """A step size that falls: first (1 + i / delay)^-power at step i, Welling and Teh's a (b + i)^-gamma with b the delay.

    Between 1/2 and 1 the power makes the bias vanish in the end (their equation 2). Late draws then move less, so averages over
    draws should weigh each by its step size (their equation 11).

    Args:
        first: step size of step 0. delay: steps until it begins to fall. power: gamma.

    Returns:
        A function (index) -> step size, to pass as `step_size`. All three numbers are leaves.

    Raises:
        ValueError: a number is not positive.
    """
    for name, value in (("first", first), ("delay", delay), ("power", power)):
        if not isinstance(value, jax.core.Tracer) and not 0 < float(value) < float("inf"):
            raise ValueError(f"polynomial_decay got {name} {value}; expected a positive finite number")
    return bind(_decay, *(jnp.asarray(value, jnp.float32) for value in (first, delay, power)))


def sgld(target: Target, step_size: Any, *, batch_size: int, inverse_mass_matrix: Any = None, start: Any = None) -> Sampler:
    """Stochastic gradient Langevin dynamics.

    Args:
        target: needs `minibatch_log_density` (see the module's docstring) and `data`, a tree of arrays [N, ...]; with a score
            as well, the factor N / n is checked.
        step_size: eps above, a number, or a function (index) -> number such as `polynomial_decay` makes.
        batch_size: n. Rows are drawn with replacement; n = N takes all data in order, which is `ula`. Static.
        inverse_mass_matrix: [d] or [d, d] over the flattened event, a constant preconditioner; None is the identity.
        start: (key) -> position; None is Uniform(-2, 2) in every coordinate.

    Returns:
        A Sampler without end. Info counts one gradient per step: that of batch_size events, not of all N. acceptance is 1;
        diverged marks a position that is not finite.

    Raises:
        ValueError: the target has no minibatch_log_density or no data, the data have no rows or leading axes that differ,
            batch_size is not between 1 and N, the batch's gradients do not average to the target's score, the step size is not
            positive, or the metric does not fit the event.
        TypeError: minibatch_log_density does not return one real number for one event and a batch (found by tracing).
    """
    start = read_start(start, target.template)
    gradient, data = _read_batches(target, batch_size, start, "sgld")
    return Sampler(
        start=start,
        init=bind(_sgld_init),
        step=bind(
            _sgld_step, gradient, data, Static(batch_size), _read_schedule(step_size, target.template, "sgld"),
            read_metric(inverse_mass_matrix, target.template, "sgld"),
        ),
        position=bind(_position),
        traits=Traits(law="approximate"),
    )  # fmt: skip


def sghmc(
    target: Target, step_size: Any, *, batch_size: int, friction: Any = 1.0, gradient_noise: Any = 0.0, start: Any = None
) -> Sampler:
    """Stochastic gradient Hamiltonian Monte Carlo: underdamped Langevin dynamics whose momentum is kept from step to step.

    Args:
        target, batch_size, start: as for `sgld`.
        step_size: h above, a number or a function (index) -> number; in the target's standard deviations, below 1.
        friction: a above: the momentum is forgotten over 1 / (a h) steps.
        gradient_noise: b above, an estimate of the variance V of one coordinate of g. That much of the noise is left out,
            as the batches bring it; h b may not exceed 2 a.

    Returns:
        A Sampler without end; one gradient per step, of batch_size events. init draws a new momentum. acceptance is 1; diverged
        marks a position that is not finite.

    Raises:
        ValueError, TypeError: as for `sgld`, or friction or gradient_noise is out of range.
    """
    start = read_start(start, target.template)
    gradient, data = _read_batches(target, batch_size, start, "sghmc")
    schedule = _read_schedule(step_size, target.template, "sghmc")
    _check_noise(schedule, friction, gradient_noise)
    return Sampler(
        start=start,
        init=bind(_sghmc_init),
        step=bind(
            _sghmc_step, gradient, data, Static(batch_size), schedule, scalar(friction, target.template),
            scalar(gradient_noise, target.template),
        ),
        position=bind(_position),
        traits=Traits(law="approximate"),
    )  # fmt: skip


def _sgld_init(key, position):
    del key
    return strong(SgldState(position))


def _sgld_step(gradient, data, batch_size, schedule, inverse_mass_matrix, key, state, index):
    key_batch, key_noise = jax.random.split(key)
    slope = gradient(state.position, _batch(key_batch, data, batch_size.value))
    position = langevin_move(key_noise, state.position, slope, _size(schedule, index, inverse_mass_matrix), inverse_mass_matrix)
    return strong(SgldState(position)), Info.of(gradients=1, diverged=~_finite(position))


def _sghmc_init(key, position):
    return strong(SghmcState(position, _like(generate_gaussian_noise(key, position), position)))


def _sghmc_step(gradient, data, batch_size, schedule, friction, gradient_noise, key, state, index):
    key_batch, key_noise = jax.random.split(key)
    step_size = _size(schedule, index, friction)
    # The slope is that of where the position goes: at the old one the integrator is explicit, and gains energy.
    ahead = jax.tree.map(lambda x, p: x + step_size * p, state.position, state.momentum)
    slope = gradient(ahead, _batch(key_batch, data, batch_size.value))
    move = diffusions.sghmc(friction, gradient_noise)
    position, momentum = _like(move(key_noise, state.position, state.momentum, slope, step_size), (ahead, ahead))
    return strong(SghmcState(position, momentum)), Info.of(gradients=1, diverged=~_finite(position))


def _position(state):
    return state.position


def _gradient(minibatch_log_density, x, batch):
    return jax.grad(minibatch_log_density)(x, batch)


def _batch(key, data, size):
    """`size` rows with replacement: drawing without would sort all N at every step."""
    number = len(jax.tree.leaves(data)[0])
    if size == number:
        return data
    rows = jax.random.randint(key, (size,), 0, number)
    return jax.tree.map(lambda a: a[rows], data)


def _decay(first, delay, power, index):
    return first * (1 + index / delay) ** -power


def _constant(step_size, index):
    del index
    return step_size


def _size(schedule, index, like):
    return jnp.asarray(schedule(index), like.dtype)


def _like(new, old):
    """Under 64-bit mode blackjax's noise is float64 whatever the position is."""
    return jax.tree.map(lambda a, b: a.astype(b.dtype), new, old)


def _finite(position):
    return jnp.stack([jnp.isfinite(a).all() for a in jax.tree.leaves(position)]).all()


def _read_schedule(step_size, template, by: str) -> Partial:
    if callable(step_size):
        schedule = step_size if isinstance(step_size, Partial) else Partial(step_size)
        first = schedule(jnp.int32(0))
        if not isinstance(first, jax.core.Tracer):
            read_step_size(first, template, f"{by} (from its schedule, at step 0)")
        return schedule
    return bind(_constant, read_step_size(step_size, template, by))


def _check_noise(schedule, friction, gradient_noise) -> None:
    for name, value, holds in (("friction", friction, lambda a: a > 0), ("gradient_noise", gradient_noise, lambda b: b >= 0)):
        if not isinstance(value, jax.core.Tracer) and not (holds(float(value)) and float(value) < float("inf")):
            least = "positive" if name == "friction" else "not negative"
            raise ValueError(f"sghmc got {name} {value}; expected a finite number that is {least}")
    if any(isinstance(value, jax.core.Tracer) for value in jax.tree.leaves((schedule, friction, gradient_noise))):
        return
    first = float(schedule(jnp.int32(0)))
    if first * float(gradient_noise) > 2 * float(friction):
        raise ValueError(
            f"sghmc got gradient_noise {gradient_noise} with step_size {first} and friction {friction}; expected at most "
            "2 friction / step_size, since the batches would bring more noise than friction takes out: raise the friction"
        )


def _read_batches(target, batch_size, start, by: str):
    """The gradient of a batch and the data, both checked."""
    minibatch = require(target, "minibatch_log_density", by)
    minibatch = minibatch if isinstance(minibatch, Partial) else Partial(minibatch)
    if target.data is None:
        raise ValueError(
            f"{by} needs target.data, and target '{target.name}' has none; give it the rows that batches are made of, "
            "Target.from_log_density(..., data=)"
        )
    data = jax.tree.map(jnp.asarray, target.data)
    shapes = [list(a.shape) for a in jax.tree.leaves(data)]
    if not shapes or [] in shapes or len({shape[0] for shape in shapes}) != 1 or shapes[0][0] == 0:
        raise ValueError(f"{by} got data of shapes {shapes}; expected arrays that share a leading axis of at least one row")
    number = shapes[0][0]
    if not isinstance(batch_size, int) or not 1 <= batch_size <= number:
        raise ValueError(f"{by} got batch_size {batch_size!r} for {number} rows; expected an integer from 1 to {number}")
    _check_batch_density(minibatch, target.template, data, batch_size, by)
    gradient = bind(_gradient, minibatch)
    known = target.score
    if known is not None and not any(isinstance(a, jax.core.Tracer) for a in jax.tree.leaves((target, start))):
        _check_scale(gradient, known, data, batch_size, number, start, by)
    return gradient, data


def _check_batch_density(minibatch, template, data, batch_size: int, by: str) -> None:
    """Is it one number for one event and one batch? Found by tracing."""
    batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct((batch_size, *a.shape[1:]), a.dtype), data)
    try:
        out = jax.eval_shape(minibatch, template, batch)
    except Exception as error:
        kind = ValueError if isinstance(error, ValueError) else TypeError
        reason = next(iter(str(error).splitlines()), "")
        raise kind(
            f"{by} got a minibatch_log_density that cannot be traced at one event and a batch of {batch_size} rows: "
            f"{type(error).__name__}: {reason}"
        ) from error
    if not isinstance(out, jax.ShapeDtypeStruct) or out.shape != () or not jnp.issubdtype(out.dtype, jnp.floating):
        got = str(jax.tree.map(lambda a: f"{a.dtype}{list(a.shape)}", out)).replace("'", "")
        raise TypeError(
            f"{by} got a minibatch_log_density that returns {got} for one event and a batch of {batch_size} rows; expected one "
            "real number of shape []: sum over the rows"
        )


def _check_scale(gradient, score, data, batch_size, number, start, by: str) -> None:
    """Do the gradients of batches that cover the data average to the score of all data? Compared at one start."""
    needed = number // gcd(number, batch_size)
    count = min(needed, CHECKED)
    rows = np.random.default_rng(0).permutation(number)
    rows = rows[np.arange(count * batch_size) % number].reshape(count, batch_size)
    whole, batches = jax.device_get(_slopes(gradient, score, data, jnp.asarray(rows), start))
    average = batches.mean(0)
    gap, size = np.linalg.norm(average - whole), np.linalg.norm(whole)
    # Batches that do not cover the data evenly leave sampling error; those that do leave rounding alone.
    error = 0.0 if needed <= CHECKED else np.linalg.norm(batches.std(0)) / np.sqrt(count)
    allowed = 1e-2 * size + 1e-4 * np.linalg.norm(batches, axis=1).mean() + 5 * error
    if np.isfinite(gap) and gap > allowed:
        ratio = float(average @ whole / max(size**2, np.finfo(np.float32).tiny))
        raise ValueError(
            f"{by} got a minibatch_log_density whose gradient, averaged over batches of {batch_size} that cover the {number} "
            f"rows, is {ratio:.3g} times the gradient of the target's log density; expected 1: it must be the log prior plus "
            f"N / n = {number / batch_size:.4g} times the batch's log likelihood"
        )


@jax.jit
def _slopes(gradient, score, data, rows, start):
    """The score of all data [d], and the gradients of batches [batches, d], at one start."""
    x = start(jax.random.key(0))
    batches = jax.lax.map(lambda r: ravel_pytree(gradient(x, jax.tree.map(lambda a: a[r], data)))[0], rows)
    return ravel_pytree(score(x))[0], batches
