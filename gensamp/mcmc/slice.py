"""Slice sampling: a uniform draw from under the graph of the density, one line through the current point at a time.

With a level log y = log p(x) + log u, u ~ Uniform(0, 1), the slice is {x : log p(x) > log y}. Along a line through x an
interval of the given width is laid over x at random and stepped out, width by width, until both ends are outside of the slice;
then points are drawn from it, each one outside of the slice becoming the interval's new end on its side, until one is inside
(Neal 2003, figures 3 and 5). Nothing is tuned that the law depends on: the width changes the cost alone, since the interval
grows or shrinks to what it finds.

`slice_sampling` takes the lines parallel to the axes, each coordinate once per step in random order; `hit_and_run` takes one
line in a random direction, shaped by a metric, which does not mind correlation. Row one of the table: no end, every state is a
draw. The kernels are blackjax's. The interval is at most max_expansions widths long, shared out at random between its two sides
so that the law stays right.

Sources: Neal 2003; Belisle, Romeijn and Smith 1993 (hit-and-run).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.mcmc import slice as slices
from jax.flatten_util import ravel_pytree

from gensamp.core import Info, Sampler, Target, bind, scalar
from gensamp.mcmc.arguments import (
    dimension,
    euclidean,
    read_log_density,
    read_metric,
    read_start,
    read_step_size,
    strong,
)  # fmt: skip

__all__ = ["hit_and_run", "slice_sampling"]

# Shrinking halves the interval about every other time, so that this many leave nothing of it.
MAX_SHRINKAGE = 200


def slice_sampling(target: Target, width: Any = 1.0, *, max_expansions: int = 32, start: Any = None) -> Sampler:
    """Slice sampling along the axes: every coordinate is drawn anew once per step.

    Args:
        target: needs `log_density`; no gradient is taken.
        width: of the first interval: one number, or [d] over the flattened event. About the target's spread costs least.
        max_expansions: an interval grows to at most this many widths.
        start: (key) -> position; None is Uniform(-2, 2) in every coordinate.

    Returns:
        A Sampler without end; each of the d coordinates costs at least 3 densities per step (the two ends of the interval and
        the draw), about 6 at a width that fits, and init costs one. Info counts what was spent. Its state depends on the
        position alone. acceptance is 1; diverged marks a step in which an interval shrank to nothing.

    Raises:
        ValueError: the target has no log_density, a width is not positive or does not fit the event, or max_expansions < 1.
    """
    log_density = read_log_density(target, "slice_sampling")
    return Sampler(
        start=read_start(start, target.template),
        init=bind(_init, log_density),
        step=bind(_sweep, log_density, _read_width(width, target.template), _read_expansions(max_expansions, "slice_sampling")),
        position=bind(_position),
    )


def hit_and_run(
    target: Target, width: Any = 2.0, *, inverse_mass_matrix: Any = None, max_expansions: int = 32, start: Any = None
) -> Sampler:
    """Slice sampling along one random direction per step.

    The direction is M^-1/2 xi / |xi| with xi ~ N(0, I): uniform on the sphere once the metric is divided out.

    Args:
        target: needs `log_density`; no gradient is taken.
        width: of the first interval, in units of the metric: with M^-1 a covariance of the target, in standard deviations.
        inverse_mass_matrix: [d] or [d, d] over the flattened event; None is the identity.
        max_expansions: an interval grows to at most this many widths.
        start: (key) -> position; None is Uniform(-2, 2) in every coordinate.

    Returns:
        A Sampler without end; at least 3 densities per step, about 6 at a width that fits, and one in init. Info counts what
        was spent. Its state depends on the position alone. acceptance is 1; diverged marks an interval that shrank to nothing.

    Raises:
        ValueError: the target has no log_density, the width is not positive, the metric does not fit the event, or
            max_expansions < 1.
    """
    log_density = read_log_density(target, "hit_and_run")
    return Sampler(
        start=read_start(start, target.template),
        init=bind(_init, log_density),
        step=bind(
            _hit, log_density, read_step_size(width, target.template, "hit_and_run", "width"),
            read_metric(inverse_mass_matrix, target.template, "hit_and_run"), _read_expansions(max_expansions, "hit_and_run"),
        ),
        position=bind(_position),
    )  # fmt: skip


def _init(log_density, key, position):
    del key
    return strong(slices.init(position, log_density))


def _sweep(log_density, width, max_expansions, key, state, index):
    del index
    # Built while tracing: blackjax takes the widths with the kernel.
    kernel = slices.build_coordinate_kernel(
        slices.stepping_out, axis_proposal=_along_axis, initial_widths=width, max_expansions=max_expansions,
        max_shrinkage=MAX_SHRINKAGE,
    )  # fmt: skip
    return _report(kernel(key, _feasible(state), bind(_finite, log_density)), width.size)


def _hit(log_density, width, inverse_mass_matrix, max_expansions, key, state, index):
    del index
    metric = euclidean(inverse_mass_matrix)

    def random_line(key, position, log_density):
        # The metric's momentum p ~ N(0, M) has p' M^-1 p = |xi|^2, and M^-1 p has the law of M^-1/2 xi.
        energy, velocity = jax.value_and_grad(metric.kinetic_energy)(metric.sample_momentum(key, position))
        return _line(position, jax.tree.map(lambda v: v / jnp.sqrt(2 * energy), velocity), log_density)

    kernel = slices.build_kernel(slices.stepping_out, max_expansions, MAX_SHRINKAGE)
    return _report(kernel(key, _feasible(state), bind(_finite, log_density), random_line, width), 1)


def _along_axis(key, position, log_density, axis):
    del key
    flat, unravel = ravel_pytree(position)
    return _line(position, unravel(jnp.zeros_like(flat).at[axis].set(1)), log_density)


def _line(position, direction, log_density):
    """blackjax's slice: t -> (the state at position + t direction, whether it is allowed)."""

    def at(t):
        # Under 64-bit mode t is float64 whatever the position is.
        x = jax.tree.map(lambda p, v: p + jnp.asarray(t, p.dtype) * v, position, direction)
        return slices.SliceState(x, log_density(x)), True

    return at


def _finite(log_density, x):
    """Never inside a slice where the density is zero: a level of log 0 (u = 0 comes up) would take it for inside."""
    value = log_density(x)
    return jnp.where(jnp.isfinite(value), value, jnp.nan)


def _feasible(state):
    """From where the log density is not finite any finite point is inside."""
    return state._replace(logdensity=jnp.where(jnp.isfinite(state.logdensity), state.logdensity, -jnp.inf))


def _report(moved, lines):
    state, info = moved
    # Each line looks at the two ends of its first interval before it steps out.
    densities = 2 * lines + info.num_expansions + info.num_shrink
    return strong(state), Info.of(densities=densities, diverged=~info.is_accepted)


def _position(state):
    return state.position


def _read_width(width, template) -> jax.Array:
    size = dimension(template)
    if isinstance(width, str) or width is None:
        raise ValueError(f"slice_sampling got width {width!r}; expected positive finite numbers")
    if jnp.shape(width) not in ((), (size,)):
        raise ValueError(
            f"slice_sampling got a width of shape {list(jnp.shape(width))}; expected one number or [{size}], over "
            "the flattened event"
        )
    if not isinstance(width, jax.core.Tracer) and not (np.isfinite(width).all() and (np.asarray(width) > 0).all()):
        raise ValueError(f"slice_sampling got width {np.asarray(width).tolist()}; expected positive finite numbers")
    return jnp.broadcast_to(scalar(width, template), (size,))


def _read_expansions(max_expansions, by: str) -> jax.Array:
    if not isinstance(max_expansions, int) or max_expansions < 1:
        raise ValueError(f"{by} got max_expansions {max_expansions!r}; expected an integer of at least 1")
    return jnp.int32(max_expansions)
