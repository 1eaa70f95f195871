"""What the samplers along a path share: levels, the base's normalised density, log densities at many levels, moves at one.

A path is a family of laws p_t, t in [0, 1]. The samplers weigh an event x by ratios p_s(x) / p_t(x) and move it by a chain that
leaves p_t invariant. Three rules live here, once.

1. The base is normalised. Weights start at 1 / base(x), so that what they average to is the normaliser of the law at the last
   level. A base whose truth states its log normaliser is corrected by it; any other is taken at its word. The path's own law at
   t = 0 need not be the base's: the first weight is p_{t_1}(x) / base(x) whatever the family (so tempered paths serve too).
2. A state that moved at one level is stale at the next. Moves therefore take a position and give a position back, and make the
   state in between anew.
3. A geometric or a tempered path is a formula in the densities of its parts: evaluated once at x, they give log p_t(x) at every
   t for nothing. `measure` keeps these values; for any other family it keeps nothing, and each level costs one density.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from gensamp import paths
from gensamp.core import Info, Path, PyTree, Static, Target, add_info, as_template, bind, require, scalar
from gensamp.mcmc.arguments import dimension

__all__ = [
    "Mover", "base_log_density", "densities_per_point", "holds_base", "log_ratio", "measure", "read_levels", "read_mover",
    "read_per_level", "value_at",
]  # fmt: skip

# The families whose log density at every t is a formula in densities that do not depend on t.
_FORMULAS = (paths.mean_density, paths.tempered_density)


class Mover(NamedTuple):
    """How to move at one level: the path's functions of (t, x), the kernel's factory, its options (arrays, and the rest)."""

    log_density: Any
    score: Any
    kernel: Static
    arrays: dict[str, Any]
    options: Static

    def sampler(self, t: jax.Array, step_size: jax.Array, metric: jax.Array | None, position: PyTree) -> Any:
        """The kernel that leaves p_t invariant."""
        target = Target(as_template(position), bind(_at, self.log_density, t), bind(_at, self.score, t))
        options = {**self.arrays, **dict(self.options.value)}
        if metric is not None:
            options["inverse_mass_matrix"] = metric
        return self.kernel.value(target, step_size, **options)

    def __call__(self, t, step_size, metric, key, position, num_moves: int, round: Any) -> tuple[PyTree, PyTree, Info]:
        """`num_moves` moves at level t, in the `round`-th call along the path: kernels may vary their moves with the index.

        Returns:
            (the last position, all positions [num_moves, ...], Info summed over the moves and the init, acceptance averaged).
        """
        sampler = self.sampler(t, step_size, metric, position)
        state = sampler.init(jax.random.fold_in(key, 0), position)
        step = jax.eval_shape(lambda: sampler.step(key, state, jnp.int32(0))[1])
        blank = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), step)

        def body(carry, index):
            state, total = carry
            state, info = sampler.step(jax.random.fold_in(key, index + 1), state, round * num_moves + index)
            return (state, add_info(total, info)), sampler.position(state)

        (state, total), visited = jax.lax.scan(body, (state, blank), jnp.arange(num_moves, dtype=jnp.int32))
        # What an init caches is what a step evaluates: a gradient where steps take gradients, else a density.
        by_gradient = total.gradients > 0
        info = Info.of(
            gradients=total.gradients + by_gradient, densities=total.densities + ~by_gradient, forwards=total.forwards,
            acceptance=total.acceptance / num_moves, diverged=total.diverged,
        )  # fmt: skip
        return sampler.position(state), visited, info


def read_mover(path: Path, kernel: Callable, options: Mapping[str, Any] | None, by: str) -> Mover:
    """The moves of a sampler along a path, from its arguments `kernel` and `kernel_options`.

    Raises:
        ValueError: the path has no density, or an option is neither an array nor hashable.
        TypeError: the kernel is no function.
    """
    if not isinstance(path, Path):
        raise TypeError(f"{by} got {type(path).__name__}; expected a Path, such as gs.paths.geometric(base, target)")
    if path.log_density is None:
        raise ValueError(
            f"{by} weighs by the path's log_density, and this path has none (a learned score has no density); use "
            "annealed_langevin, or a geometric, tempered or noised path"
        )
    if not callable(kernel):
        raise TypeError(f"{by} got a kernel of type {type(kernel).__name__}; expected (target, step_size) -> Sampler, as mala")
    options = dict(options or {})
    arrays = {name: value for name, value in options.items() if isinstance(value, jax.Array | np.ndarray)}
    rest = tuple(sorted((name, value) for name, value in options.items() if name not in arrays))
    try:
        hash(rest)
    except TypeError:
        raise ValueError(f"{by} got kernel_options {rest}, which do not hash; give arrays, numbers or strings") from None
    arrays = {name: jnp.asarray(value) for name, value in arrays.items()}
    mover = Mover(bind(_below_infinity, path.log_density), path.score, Static(kernel), arrays, Static(rest))
    template = path.base.template
    event = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), template)
    made = mover.sampler(scalar(1.0, template), scalar(1.0, template), None, event)
    if made.num_steps is not None or made.traits.population != 1:
        raise ValueError(f"{by} got a kernel that is finite or moves a population; expected a chain without end, such as hmc")
    return mover


def read_levels(levels: Any, template: PyTree, by: str) -> jax.Array:
    """Levels [L] in the template's dtype: rising times in (0, 1] (or from 0), the last of them 1.

    Raises:
        ValueError: another shape, or concrete values that do not rise to 1.
    """
    if np.ndim(levels) != 1 or np.size(levels) == 0:
        raise ValueError(f"{by} got levels of shape {list(np.shape(levels))}; expected [levels], at least one")
    if not isinstance(levels, jax.core.Tracer):
        t = np.asarray(levels, np.float64)
        if not (np.isfinite(t).all() and t[0] >= 0 and abs(t[-1] - 1) < 1e-6 and (np.diff(t) >= 0).all()):
            raise ValueError(f"{by} got levels {t}; expected times that rise from the base's side (0) and end at 1, the target")
    return scalar(levels, template)


def read_per_level(values: Any, levels: jax.Array, by: str, name: str, width: int | None = None) -> jax.Array | None:
    """Values [L] (or [L, ...] for metrics of `width` coordinates) from one each or one for all; a metric of None stays None.

    Raises:
        ValueError: another shape, or concrete values that are not positive and finite.
    """
    if values is None and width is None:
        raise ValueError(f"{by} got {name} None; expected positive numbers, one or one per level")
    if values is None:
        return None
    shape, size = np.shape(values), levels.shape[0]
    one = [()] if width is None else [(width,), (width, width)]
    if shape in one:
        values = jnp.broadcast_to(jnp.asarray(values), (size, *shape))
    elif shape not in [(size, *rest) for rest in one]:
        alone = "one number" if width is None else f"[{width}] or [{width}, {width}]"
        each = " or ".join(str([size, *rest]) for rest in one)
        raise ValueError(f"{by} got {name} of shape {list(shape)}; expected {alone}, or {each} for one per level")
    concrete = not isinstance(values, jax.core.Tracer)
    if concrete and not np.isfinite(values).all():
        raise ValueError(f"{by} got {name} that are not finite")
    if concrete and width is None and not (np.asarray(values) > 0).all():
        raise ValueError(f"{by} got {name} {np.asarray(values)}; expected positive numbers")
    return jnp.asarray(values, levels.dtype)


def read_metrics(metrics: Any, levels: jax.Array, template: PyTree, by: str) -> jax.Array | None:
    """Inverse mass matrices [L, d] or [L, d, d], from one per level or one for all; None is the kernel's own."""
    return read_per_level(metrics, levels, by, "inverse_mass_matrices", dimension(template))


def base_log_density(base: Target, by: str) -> Partial:
    """The base's normalised log density.

    Raises:
        ValueError: it has no density or no exact draws.
    """
    require(base, "exact", by)
    log_density = require(base, "log_density", by)
    known = getattr(base.truth, "log_normaliser", None)
    return bind(_normalised, scalar(0.0 if known is None else known[0], base.template), log_density)


def holds_base(path: Path) -> bool:
    """Whether the base is the path's law at t = 0: for all but a tempered path."""
    return path.log_density.func is not paths.tempered_density


def densities_per_point(log_density: Partial) -> int:
    """What `measure` costs: 1 for a formula in parts, 0 for a path whose every level is a density of its own."""
    return 1 if _path_density(log_density).func in _FORMULAS else 0


def measure(log_density: Partial, x: PyTree) -> tuple[jax.Array, ...]:
    """What log p_t(x) at every t follows from: the densities of the path's parts, or nothing."""
    inner = _path_density(log_density)
    if inner.func not in _FORMULAS:
        return ()
    return tuple(part(x) for part in inner.args if isinstance(part, Partial))


def value_at(log_density: Partial, measured: tuple[jax.Array, ...], t: jax.Array, x: PyTree) -> jax.Array:
    """log p_t(x), from what was measured at x: one density where that is nothing."""
    inner = _path_density(log_density)
    if inner.func not in _FORMULAS:
        return log_density(t, x)
    values = iter(measured)
    parts = [bind(_constant, next(values)) if isinstance(part, Partial) else part for part in inner.args]
    return bind(_below_infinity, bind(inner.func, *parts))(t, x)


def log_ratio(after: jax.Array, before: jax.Array) -> jax.Array:
    """log p_s(x) - log p_t(x) as the increment of a log weight: -inf where either is not finite, for then x is lost."""
    change = after - before
    return jnp.where(jnp.isfinite(change), change, -jnp.inf)


def _path_density(log_density: Partial) -> Partial:
    """The path's own function within the one that `read_mover` made."""
    return log_density.args[0]


def _at(function, t, x):
    return function(t, x)


def _below_infinity(log_density, t, x):
    value = log_density(t, x)
    return jnp.where(value == jnp.inf, jnp.nan, value)


def _constant(value, x):
    del x
    return value


def _normalised(log_normaliser, log_density, x):
    value = log_density(x)
    return value - log_normaliser.astype(value.dtype)
