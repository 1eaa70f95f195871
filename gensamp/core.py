"""The nouns: what to draw from, how to draw, and what comes out.

Every sampler here is a Markov chain started from a law that is easy to draw from,

    z ~ start,    state_0 = init(z),    state_{i+1} = step(key_i, state_i, i),    x = position(state),

and the families differ only in the law, in who made the step (a hand, or a fit), in how many steps there are and in which
states count as draws. So one type, `Sampler`, serves the statistician's chains and the learned maps alike.

All nouns are frozen dataclasses and pytrees: arrays are leaves, hashable configuration is static. The functions inside them
are `jax.tree_util.Partial` over module-level functions with every array bound as an argument, so a sampler is itself an
argument of `jax.jit`, and new weights or a new step size never retrace. `bind` makes such a function and refuses the ones that
would hide arrays.

Keys (`jax.random.key`): the event s of the chain c has the key fold_in(fold_in(key, c), s). Start and init share event 0;
step i has event i + 1. `draw` and `chain` take the key of one chain.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial, register_dataclass, register_pytree_node, register_static

PyTree = Any

__all__ = [
    "Bill", "Draw", "Info", "Ledger", "Model", "Network", "Path", "Sampler", "Static", "Target", "Traits", "Truth",
    "as_template", "bind", "chain", "check_key", "draw", "require", "scalar",
]  # fmt: skip


@register_static
@dataclass(frozen=True)
class Static:
    """A hashable value that rides in a pytree without leaves: a Flax module, a numpyro model, a tree depth."""

    value: Any


@dataclass(frozen=True)
class Traits:
    """What a sampler says of itself.

    law: "exact" (each draw has the target's law), "asymptotic" (in the limit of many steps) or "approximate" (biased, or
    learned). population: walkers or particles that one draw carries along a leading axis of its position.
    """

    law: Literal["exact", "asymptotic", "approximate"] = "asymptotic"
    population: int = 1


@register_dataclass
@dataclass(frozen=True, eq=False)
class Info:
    """What one step spent and how it went, per draw; the same for all families.

    gradients, densities, forwards: int32 evaluations of the score, of the log density and of a network made by this step (a
    gradient that also returns the value counts once, as a gradient). acceptance: probability in [0, 1]; 1 where nothing is
    rejected. diverged: bool. extra: `()` unless the algorithm was built to report more.
    """

    gradients: Any
    densities: Any
    forwards: Any
    acceptance: Any
    diverged: Any
    extra: Any = ()

    @classmethod
    def of(cls, *, gradients=0, densities=0, forwards=0, acceptance=1.0, diverged=False, extra=()) -> "Info":
        """An Info of arrays with fixed dtypes (int32, float32, bool), from whatever the kernel reports."""
        return cls(
            jnp.asarray(gradients, jnp.int32), jnp.asarray(densities, jnp.int32), jnp.asarray(forwards, jnp.int32),
            jnp.asarray(acceptance, jnp.float32), jnp.asarray(diverged, bool), extra,
        )  # fmt: skip


@dataclass(frozen=True)
class Bill:
    """What one phase cost: evaluations over all draws (integers) and seconds (compile_seconds is part of wall_seconds)."""

    gradients: int = 0
    densities: int = 0
    forwards: int = 0
    wall_seconds: float = 0.0
    compile_seconds: float = 0.0

    def __add__(self, other: "Bill") -> "Bill":
        return Bill(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    @property
    def evaluations(self) -> int:
        """Gradients, densities and forwards together."""
        return self.gradients + self.densities + self.forwards


@dataclass(frozen=True)
class Ledger:
    """The bill for training (`fit`), for tuning and warm-up (`tune`), and for the draws themselves (`sample`)."""

    fit: Bill = Bill()
    tune: Bill = Bill()
    sample: Bill = Bill()

    def __add__(self, other: "Ledger") -> "Ledger":
        return Ledger(self.fit + other.fit, self.tune + other.tune, self.sample + other.sample)


@register_dataclass
@dataclass(frozen=True, eq=False)
class Truth:
    """What is known of a target, each as (value, standard error), with None for what nobody knows.

    log_normaliser: scalar. mean, variance: like one event. quantiles: {probability: (tree like one event, error)}.
    second_moment: (E x^2, Var x^2), each like one event: what the bias of a second moment is measured in.
    modes: (centres [modes, ...event], weights [modes], radius [modes]): a draw within `radius` of a centre has found it.
    quantile: uniform [0, 1]^d -> x, the inverse Rosenblatt transform, where it is in closed form.
    reference: long reference draws [draws, ...event] for targets without an exact sampler. source: where all this comes from.
    """

    log_normaliser: Any = None
    mean: Any = None
    variance: Any = None
    second_moment: Any = None
    quantiles: Any = None
    modes: Any = None
    quantile: Any = None
    reference: Any = None
    source: str = dataclasses.field(default="", metadata={"static": True})


@dataclass(frozen=True, eq=False)
class Target:
    """What to draw from.

    log_density: (x) -> scalar, unnormalised; None for a law known only through data. score: (x) -> like x.
    template: pytree of `jax.ShapeDtypeStruct`, one event. exact: (key) -> x, exact independent draws, or None.
    constrain: (x) -> dict of named quantities in the user's space. data: pytree of events with a leading axis, or None.
    truth: `Truth` or None. minibatch_log_density: (x, batch) -> scalar, or None. name: for people only.
    """

    template: PyTree
    log_density: Any = None
    score: Any = None
    exact: Any = None
    constrain: Any = None
    data: Any = None
    truth: Truth | None = None
    minibatch_log_density: Any = None
    name: str = ""

    @classmethod
    def from_log_density(
        cls, log_density: Callable, template: PyTree, *, constraints: Any = None, name: Any = "", **known: Any
    ) -> "Target":
        """A target from a plain function.

        Args:
            log_density: (x) -> scalar, unnormalised. Arrays it needs are best bound as arguments,
                `jax.tree_util.Partial(f, data)`, so that new data do not recompile.
            template: one event: arrays or `ShapeDtypeStruct`s; only shapes and dtypes are used.
            constraints: where the density lives, if not everywhere: one numpyro constraint, or a dict of them by the names of
                the event's entries. The target is then on unconstrained coordinates; see `gensamp.targets.constraints`.
            name: for tables and plots.
            known: further fields of `Target`: exact, constrain, truth, score, minibatch_log_density.

        Raises:
            TypeError, ValueError: log_density does not return one real number for one event, or what is known beside it is not
                of its kind (found by tracing, nothing is compiled).
        """
        # Upwards, as in from_numpyro.
        from gensamp.target_checks import check_density, check_exact, check_known, check_score

        check_known(name, known)
        template = as_template(template)
        if not callable(log_density):
            raise TypeError(f"log_density is {type(log_density).__name__}; expected a function from one event to a real number")
        log_density = _as_partial(log_density)
        check_density(log_density, template)
        name = name or getattr(log_density.func, "__name__", "target")
        if constraints is not None:
            from gensamp.targets.constraints import bounded

            log_density, template, known = bounded(log_density, template, constraints, known)
        check_exact(known.get("exact"), template)
        score = known.pop("score", None)
        check_score(score, template)
        return cls(
            template=template,
            log_density=log_density,
            score=_as_partial(score) if score is not None else bind(_gradient, log_density),
            name=name,
            **{field: _as_partial(value) if callable(value) else value for field, value in known.items()},
        )

    @classmethod
    def from_data(cls, data: PyTree, *, name: Any = "data", **known: Any) -> "Target":
        """A target known through events only: a NumPy or JAX array (or tree of arrays) with a leading axis of events.

        Raises:
            TypeError, ValueError: no event, leading axes that differ, values that are not finite, or what is known beside the
                data is not of its kind.
        """
        # Upwards, as in from_numpyro.
        from gensamp.target_checks import check_data, check_exact, check_known

        check_known(name, known)
        check_data(data)
        data = jax.tree.map(jnp.asarray, data)
        if not all(bool(jnp.isfinite(a).all()) for a in jax.tree.leaves(data)):
            raise ValueError(f"data of target '{name}' contains values that are not finite; drop or impute those events first")
        template = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), data)
        check_exact(known.get("exact"), template)
        return cls(template=template, data=data, name=name, **known)

    @classmethod
    def from_numpyro(cls, model: Any, *args: Any, **kwargs: Any) -> "Target":
        """The posterior of a numpyro model called with these arguments; see `gensamp.targets.from_numpyro`."""
        # Upwards, and only when asked: the noun itself needs neither numpyro nor the package of targets.
        from gensamp.targets.posteriors import from_numpyro

        return from_numpyro(model, *args, **kwargs)


def _flatten_target(target: Target):
    fields = [f.name for f in dataclasses.fields(Target) if f.name not in ("template", "name")]
    leaves, structure = jax.tree.flatten(target.template)
    return [getattr(target, f) for f in fields], (tuple(fields), tuple(leaves), structure, target.name)


def _unflatten_target(static, children) -> Target:
    fields, leaves, structure, name = static
    return Target(template=jax.tree.unflatten(structure, leaves), name=name, **dict(zip(fields, children, strict=True)))


# By hand and not by register_dataclass: a template may be a dict, and a dict of shapes has no hash.
register_pytree_node(Target, _flatten_target, _unflatten_target)


@register_dataclass
@dataclass(frozen=True, eq=False)
class Path:
    """A family of laws indexed by t in [0, 1], from a base that is easy to draw from (t = 0) to what is wanted (t = 1).

    base: Target with exact draws. log_density: (t, x) -> scalar, unnormalised, or None. score: (t, x) -> like x.
    forwards: network evaluations that one score costs (0 for a closed form): what a sampler on this path writes to its Info.
    """

    base: Target
    log_density: Any
    score: Any
    forwards: int = dataclasses.field(default=0, metadata={"static": True})


@register_dataclass
@dataclass(frozen=True, eq=False)
class Sampler:
    """How to draw one draw (or one population); see the module's docstring for the recursion.

    start: (key) -> z. init: (key, z) -> state, one evaluation of the target where its state caches one.
    step: (key, state, index) -> (state, Info), index an int32 scalar that all draws share. position: (state) -> x.
    log_density: (x) -> scalar, the density of the draw itself, or None. log_weight: (state) -> scalar or [population], such
    that logsumexp - log N over draws estimates the log normaliser, or None.
    num_steps: None for a chain without end (every state is a draw), n for a finite sampler (the last state is the draw).
    """

    start: Any
    init: Any
    step: Any
    position: Any
    log_density: Any = None
    log_weight: Any = None
    num_steps: int | None = dataclasses.field(default=None, metadata={"static": True})
    traits: Traits = dataclasses.field(default=Traits(), metadata={"static": True})


@register_dataclass
@dataclass(frozen=True, eq=False)
class Model:
    """A family of samplers with parameters to be learned.

    init: (key, batch) -> (params, state), the batch with a leading axis of events, or None for a model that learns from a
    density. loss: (params, state, key, batch) -> (scalar, (state, metrics)), metrics a dict of scalars. sampler: (params) ->
    Sampler. log_density: (params, x) -> scalar, or None. `state` is `()` for most. forwards: network evaluations that one event
    costs in a loss. Plain functions will do; arrays they need are best bound as arguments, `jax.tree_util.Partial(f, data)`.
    """

    init: Any
    loss: Any
    sampler: Any
    log_density: Any = None
    forwards: int = dataclasses.field(default=1, metadata={"static": True})

    def __post_init__(self) -> None:
        _hold_functions(self)


@register_dataclass
@dataclass(frozen=True, eq=False)
class Network:
    """A learned function as a pair: init (key) -> params, apply (params, *inputs) -> output, inputs being ONE event each.

    Plain functions will do, as for `Model`. num_classes: how many labels it takes as its condition, numbered from 0, so that
    others can be refused; None where it takes no labels, or does not say.
    """

    init: Any
    apply: Any
    num_classes: int | None = dataclasses.field(default=None, metadata={"static": True})

    def __post_init__(self) -> None:
        _hold_functions(self)


class Draw(NamedTuple):
    """One finite draw, or n states of a chain along a leading axis: position, log_weight (or None), Info."""

    position: PyTree
    log_weight: Any
    info: Info


def draw(key: Any, sampler: Any) -> Draw:
    """One draw of a finite sampler: pure, traceable, reverse-differentiable where the sampler's step is.

    Args:
        key: a typed key, the key of this draw.
        sampler: a Sampler with num_steps.

    Returns:
        Draw: position like one event ([population, ...] for a population), log_weight, and the Info summed over steps (the
        acceptance averaged).

    Raises:
        ValueError: the sampler has no end; use `chain`.
        TypeError: it is no Sampler.
    """
    check_key(key)
    _check_sampler(sampler, "draw")
    if sampler.num_steps is None:
        raise ValueError("draw takes a finite sampler, and this one has no end; use chain(key, sampler, n) or sample")
    state = begin(key, sampler)

    def body(carry, index):
        state, total = carry
        state, info = sampler.step(jax.random.fold_in(key, index + 1), state, index)
        return (state, add_info(total, info)), None

    first = jax.eval_shape(lambda: sampler.step(key, state, jnp.int32(0))[1])
    total = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), first)
    (state, total), _ = jax.lax.scan(body, (state, total), jnp.arange(sampler.num_steps, dtype=jnp.int32))
    total = dataclasses.replace(total, acceptance=total.acceptance / max(sampler.num_steps, 1))
    return Draw(sampler.position(state), sampler.log_weight(state) if sampler.log_weight is not None else None, total)


def chain(key: Any, sampler: Any, num_draws: Any) -> Draw:
    """`num_draws` consecutive states of a sampler without end, from its own start: pure and traceable.

    Returns:
        Draw: position [num_draws, ...], log_weight None, and the Info per step [num_draws].

    Raises:
        ValueError: the sampler is finite (use `draw`), or num_draws is no integer of at least 1.
        TypeError: it is no Sampler.
    """
    check_key(key)
    _check_sampler(sampler, "chain")
    if isinstance(num_draws, bool) or not hasattr(num_draws, "__index__") or num_draws < 1:
        raise ValueError(f"chain got num_draws {num_draws!r}; expected an integer of at least 1")
    if sampler.num_steps is not None:
        raise ValueError("chain takes a sampler without end, and this one is finite; use draw(key, sampler) or sample")

    def body(state, index):
        state, info = sampler.step(jax.random.fold_in(key, index + 1), state, index)
        return state, (sampler.position(state), info)

    indices = jnp.arange(num_draws, dtype=jnp.int32)
    _, (positions, infos) = jax.lax.scan(body, begin(key, sampler), indices)
    return Draw(positions, None, infos)


def begin(key: jax.Array, sampler: Sampler, position: PyTree = None) -> PyTree:
    """The state of one chain at event 0: at `position`, or at a draw from the sampler's start."""
    key_start, key_init = jax.random.split(jax.random.fold_in(key, 0))
    return sampler.init(key_init, sampler.start(key_start) if position is None else position)


def add_info(total: Info, info: Info) -> Info:
    """Counts, acceptance and extras added; diverged if either is."""
    added = jax.tree.map(jnp.add, dataclasses.replace(total, diverged=()), dataclasses.replace(info, diverged=()))
    return dataclasses.replace(added, diverged=total.diverged | info.diverged)


def bind(function: Callable, *arguments: Any) -> Partial:
    """A pytree function: `function(*arguments, ...)` with the arrays in `arguments` as leaves.

    Raises:
        TypeError: `function` is a Partial, a bound method or a functools.partial, whose arrays would be hidden; pass
            the inner one as an argument of a module-level function.
    """
    if isinstance(function, Partial) or hasattr(function, "__self__") or hasattr(function, "keywords"):
        raise TypeError(f"bind got {type(function).__name__} {function!r}; expected a plain function, its arrays as arguments")
    return Partial(function, *arguments)


def scalar(value: Any, template: PyTree) -> jax.Array:
    """`value` as a strongly typed array in the floating dtype of a template, so that 1, 1.0 and array(1.) are one cache key."""
    return jnp.asarray(value, jnp.result_type(*(a.dtype for a in jax.tree.leaves(template))))


def as_template(tree: PyTree) -> PyTree:
    """The shapes and dtypes of one event, from arrays, scalars or `ShapeDtypeStruct`s.

    Raises:
        TypeError: the event is empty or not made of floating-point numbers.
    """

    def shape_of(leaf):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, int | float):
            raise TypeError(f"template holds a {type(leaf).__name__}; expected floating-point arrays, such as jnp.zeros(5)")
        dtype = jax.dtypes.canonicalize_dtype(leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(type(leaf)))
        return jax.ShapeDtypeStruct(jnp.shape(leaf), dtype)

    if isinstance(tree, Target | Sampler | Model):
        hint = "; pass target.template" if isinstance(tree, Target) else ", such as jnp.zeros(5)"
        raise TypeError(f"template is a {type(tree).__name__}; expected one event{hint}")
    template = jax.tree.map(shape_of, tree)
    leaves = jax.tree.leaves(template)
    if leaves and not any(0 not in a.shape for a in leaves):
        raise TypeError(f"template is {_describe(template)}, an event without coordinates; expected at least one")
    if not leaves or not all(jnp.issubdtype(a.dtype, jnp.floating) for a in leaves):
        raise TypeError(f"template is {_describe(template)}; expected floating-point arrays, such as jnp.zeros(5)")
    return template


def require(target: Target, field: str, by: str) -> Any:
    """`target.field`, or a ValueError in one sentence that says who needed it and what to do."""
    if not isinstance(target, Target):
        raise TypeError(
            f"{by} got {type(target).__name__} as its target; expected a Target, such as Target.from_log_density(...)"
        )
    value = getattr(target, field)
    if value is None:
        remedy = {
            "log_density": "fit a learned map to its data, or give Target.from_log_density a function",
            "exact": "give the target exact draws (exact=), or compare against reference draws",
            "data": "use Target.from_data, or a model that learns from a density",
        }.get(field, f"give the target a {field}")
        raise ValueError(f"{by} needs target.{field}, and target '{target.name}' has none; {remedy}")
    return value


def check_key(key: Any) -> None:
    """Raises TypeError unless `key` is one typed key (a `jax.random.key`)."""
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        got = f"{key.dtype}{list(key.shape)}" if isinstance(key, jax.Array) else type(key).__name__
        got = repr(key) if isinstance(key, int | float | str | None) else got
        raise TypeError(f"key is {got}; expected one typed key: jax.random.key(seed)")
    if key.shape != ():
        raise TypeError(f"key has shape {list(key.shape)}; expected one key of shape []")


def _check_sampler(sampler: Any, by: str) -> None:
    if not isinstance(sampler, Sampler):
        raise TypeError(f"{by} got {type(sampler).__name__}; expected {by}(key, sampler) with a Sampler")


def _as_partial(function: Callable) -> Partial:
    return function if isinstance(function, Partial) else Partial(function)


def _hold_functions(noun: Any) -> None:
    # A function that is a leaf, and no other: a noun is also rebuilt by JAX, around leaves of any kind.
    for field in dataclasses.fields(noun):
        value = getattr(noun, field.name)
        if callable(value) and jax.tree_util.all_leaves([value]):
            object.__setattr__(noun, field.name, Partial(value))


def _gradient(log_density, x):
    return jax.grad(log_density)(x)


def _describe(template: PyTree) -> str:
    return str(jax.tree.map(lambda a: f"{a.dtype}{list(a.shape)}", template)).replace("'", "")
