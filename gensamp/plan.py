"""What `sample` was asked for, checked: every bad input is named here, before anything is compiled.

`make_plan` turns the arguments of `sample` into a `Plan`: one pair of a sampler (or a maker of samplers) and its per-lane
inputs, the width of the run in chains or draws, and how it is cut into lane blocks.
"""

import operator
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from gensamp import core
from gensamp.core import Model, PyTree, Sampler, check_key
from gensamp.fingerprint import fingerprint
from gensamp.lanes import EFFORTS, resolve
from gensamp.parallel import AXIS, put
from gensamp.parallel import mesh as device_mesh
from gensamp.store import unstorable

__all__ = ["MOST_STEPS", "Plan", "make_plan", "recall", "remembered"]

LANE_ELEMENTS = 2**18
MOST_STEPS = 2**31 - 2**10
ROWS_OF_A_CHAIN = 4

# Sampler: (structure, leaves, facts), as long as the sampler itself lives.
_REMEMBERED: weakref.WeakKeyDictionary[Sampler, tuple[Any, list[Any], dict[Any, Any]]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Plan:
    """A checked run: width chains (or finite draws) in blocks of `lanes`, all inputs placed on the mesh.

    facts: what earlier runs found out about this very sampler, see `remembered`.
    """

    key: Any
    maker: Any
    each: Any
    initial: Any
    mesh: Mesh
    num_steps: int | None
    width: int
    lanes: int
    num_draws: int
    warmup: int
    thin: int
    chunk: int | None
    population: int
    effort: str
    facts: dict[Any, Any]

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, lane blocks of a finite sampler one after another."""
        if self.num_steps is None:
            return self.warmup + self.num_draws * self.thin
        return self.num_steps * -(-self.num_draws // self.lanes)

    def identity(self) -> dict[str, str]:
        """What a stored run must share to be the same run; its number of draws may grow, its lanes and devices may change."""
        chains = self.num_steps is None
        return {
            "key": fingerprint(self.key), "sampler": fingerprint(self.maker),
            "number of chains": str(self.width if chains else 1), "warm-up": str(self.warmup),
            "thinning": str(self.thin), "initial positions": fingerprint(self.initial),
            "rows of each": fingerprint(self.each) if chains else "", "effort": self.effort,
        }  # fmt: skip

    def block(self, first: int) -> tuple[PyTree, Any, PyTree]:
        """each, ids and initial of the lanes from row `first`, padded with copies of the last row."""
        ids = np.arange(first, first + self.lanes, dtype=np.uint32)
        rows = np.minimum(ids, self.width - 1)
        each, initial = jax.tree.map(lambda a: a[rows], (self.each, self.initial))
        return put((each, ids, initial), self.mesh, P(AXIS))

    def rows_of_each(self, stop: int) -> str:
        """A digest of `each` up to a row, by which a resumed finite run knows the conditions of the draws it has."""
        return fingerprint(jax.tree.map(lambda a: a[:stop], self.each))


def make_plan(
    key, sampler, num_draws, *, num_chains=None, warmup=0, thin=1, initial=None, each=None, mesh=None, batch=None, chunk=None,
    until=None, store=None, resume=False, effort="full",
) -> Plan:  # fmt: skip
    """The Plan of a call to `sample`, or a TypeError or ValueError of one sentence."""
    check_key(key)
    _check_counts(num_draws=(num_draws, 1), warmup=(warmup, 0), thin=(thin, 1))
    optional = {"num_chains": (num_chains, 1), "batch": (batch, 2), "chunk": (chunk, 1)}
    _check_counts(**{name: pair for name, pair in optional.items() if pair[0] is not None})
    if effort not in EFFORTS:
        raise ValueError(f"effort is {effort!r}; expected one of {', '.join(EFFORTS)}")
    if resume and store is None:
        raise ValueError("resume=True needs store=, the path of the run to go on with")
    parts = ("next_look", "met", "rhat")
    if isinstance(until, type) or not (until is None or all(hasattr(until, part) for part in parts)):
        got = f"the class {until.__name__}" if isinstance(until, type) else type(until).__name__
        raise TypeError(f"until is {got}; expected a gensamp.Until, such as gensamp.Until(ess=400), or what has its parts")
    each = _check_each(each)
    maker, one = _maker(sampler, each)
    facts = remembered(maker, key) if each is None else {}
    event = recall(facts, "event", lambda: _start.eval_shape(key, maker, _first(each)))
    if one.num_steps is None:
        initial = _arrays_like(event, initial)
        width = _num_chains(num_chains, each, initial)
        if until is not None and until.rhat is not None and width * one.traits.population < 2:
            raise ValueError("until asks for R-hat, which compares chains, and there is one; use more chains or rhat=None")
    else:
        width = num_draws
        _check_finite(one, num_chains, warmup, thin, initial, until, each, num_draws, store)
    mesh = recall(facts, "mesh", lambda: device_mesh(1)) if mesh is None else mesh
    if not isinstance(mesh, Mesh) or tuple(mesh.axis_names) != (AXIS,):
        raise ValueError(f"mesh is {mesh!r}; expected a mesh made by gensamp.parallel.mesh()")
    if initial is not None:
        initial = _check_initial(initial, event)
    if store is not None:
        _check_storable(event)
    _check_length(event, width, num_draws, warmup, thin, one.num_steps, in_memory=store is None and until is None)
    if batch is None:
        batch = -(-width // mesh.size)
        if one.num_steps is not None:
            size = max(1, sum(int(np.prod(a.shape)) for a in jax.tree.leaves(event)))
            batch = min(batch, 2 ** max(1, int(np.log2(max(1, LANE_ELEMENTS // size)))))
    # On one device what is placed shares the memory of what was given; copies on several are not held on to.
    facts = facts if mesh.size == 1 else {}
    maker = recall(facts, ("placed", mesh), lambda: put(maker, mesh, P()))
    # JAX itself takes a key that stands nowhere in particular to the one device, in a fraction of the time.
    key = put(key, mesh, P()) if key.committed or mesh.size > 1 else key
    return Plan(
        key=key, maker=maker, each=each, initial=initial, mesh=mesh, num_steps=one.num_steps, width=int(width),
        lanes=int(batch) * mesh.size, num_draws=int(num_draws), warmup=int(warmup), thin=int(thin),
        chunk=None if chunk is None else int(chunk), population=one.traits.population, effort=effort,
        facts=facts,
    )  # fmt: skip


def remembered(maker: Any, key: Any) -> dict[Any, Any]:
    """Facts about a sampler under keys of this kind (shapes, what was placed on a device), found by earlier runs of it.

    They are kept while the sampler lives and as long as its leaves are the very same JAX arrays, which nobody can change: that
    a dict of its parameters was written into is noticed. Asking JAX anew takes longer than drawing from a small network. For
    anything else there are no facts, and none are kept.
    """
    if not isinstance(maker, Sampler):
        return {}
    leaves, structure = jax.tree.flatten(maker)
    known = _REMEMBERED.get(maker)
    if known is None or known[0] != structure or not all(map(operator.is_, known[1], leaves)):
        if not all(isinstance(leaf, jax.Array) for leaf in leaves):
            return {}
        known = _REMEMBERED[maker] = (structure, leaves, {})
    # Shapes depend on whether numbers may be of 64 bits.
    kind = (key.dtype, jax.dtypes.canonicalize_dtype(np.float64))
    return known[2].setdefault(kind, {})


def recall(facts: dict[Any, Any], name: Any, find: Callable[[], Any]) -> Any:
    """The fact of that name, found now where it was not known."""
    if name not in facts:
        facts[name] = find()
    return facts[name]


def _check_counts(**counts) -> None:
    for name, (value, least) in counts.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name} is {value!r}; expected an integer of at least {least}")


def _maker(sampler, each) -> tuple[Any, Sampler]:
    """The sampler or maker as a pytree, and one sampler it makes (as shapes)."""
    if isinstance(sampler, Model):
        raise TypeError("sample got a Model; fit it and pass model.sampler(fitted.params)")
    if each is None:
        if not isinstance(sampler, Sampler):
            raise TypeError(f"sample got {type(sampler).__name__}; expected a Sampler, or with each= (each) -> Sampler")
        return sampler, sampler
    if isinstance(sampler, Sampler) or not callable(sampler):
        raise TypeError(f"each= came with {type(sampler).__name__}; expected a function from one slice of each to a Sampler")
    _leading(each, "each")
    maker = sampler if isinstance(sampler, jax.tree_util.Partial) else jax.tree_util.Partial(sampler)
    one = jax.eval_shape(maker, _first(each))
    if not isinstance(one, Sampler):
        raise TypeError(f"the function given with each= returned {type(one).__name__}; expected a Sampler")
    return maker, one


def _num_chains(num_chains, each, initial) -> int:
    asked = {"num_chains": num_chains, "each": _leading(each, "each"), "initial": _leading(initial, "initial")}
    asked = {name: value for name, value in asked.items() if value is not None}
    if len(set(asked.values())) > 1:
        raise ValueError(f"the numbers of chains differ, {asked}; give them one leading axis")
    return next(iter(asked.values()), 4)


def _check_finite(one: Sampler, num_chains, warmup, thin, initial, until, each, num_draws, store) -> None:
    given = {"num_chains": num_chains, "initial": initial, "until": until, "warmup": warmup or None}
    given["thin"] = None if thin == 1 else thin
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name} was given for a finite sampler, whose draws are independent of each other; leave it out")
    if each is not None and _leading(each, "each") != num_draws:
        raise ValueError(f"each has {_leading(each, 'each')} rows for {num_draws} finite draws; expected one row per draw")
    if one.traits.population > 1 and store is not None:
        raise ValueError("a finite population is returned in memory; leave store out")


def _arrays_like(event: PyTree, initial: PyTree) -> PyTree:
    """initial with an array where the event has one, also where lists of numbers were given."""
    if initial is None:
        return None
    structure = jax.tree.structure(event)
    try:
        parts = structure.flatten_up_to(initial)
    except (ValueError, TypeError):
        parts = [{}]
    if any(isinstance(part, dict) for part in parts):
        got = jax.tree.structure(initial)
        raise ValueError(f"initial has the structure {got}; expected positions like {structure} with a leading chain axis")
    return jax.tree.unflatten(structure, [_numbers(part, "initial") for part in parts])


def _numbers(value: Any, name: str) -> np.ndarray:
    """`value` as an array of real numbers."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError):
        array = np.asarray(None)
    if not (jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.kind in "iub"):
        got = getattr(value, "dtype", array.dtype if array.dtype.kind in "USc" else f"a {type(value).__name__}")
        raise ValueError(f"{name} holds {got}; expected arrays of real numbers with a leading axis of chains or draws")
    return array


def _check_initial(initial: PyTree, event: PyTree) -> PyTree:
    def check(value, shape):
        if value.shape[1:] != shape.shape:
            expected = ", ".join(map(str, ("chain", *shape.shape)))
            raise ValueError(f"initial has shape {list(value.shape)}; expected [{expected}]")
        with np.errstate(invalid="ignore"):
            kept = jnp.issubdtype(shape.dtype, jnp.floating) or (value.astype(shape.dtype) == value).all()
        if not kept:
            raise ValueError(f"initial holds numbers that {shape.dtype} has not; expected positions of {shape.dtype}")
        return _finite_rows(value, shape.dtype, "initial", "for chains", "expected finite positions")

    return jax.tree.map(check, initial, event)


def _check_each(each: PyTree) -> PyTree:
    """each as arrays of numbers, finite where floating."""

    def check(value):
        value = _numbers(value, "each")
        if not value.ndim or not jnp.issubdtype(value.dtype, jnp.floating):
            return value
        _finite_rows(value, jax.dtypes.canonicalize_dtype(value.dtype), "each", "in rows", "expected finite numbers")
        return value

    return jax.tree.map(check, each)


def _finite_rows(value: np.ndarray, dtype: Any, name: str, where: str, expected: str) -> np.ndarray:
    """value in this dtype, in which it must be finite."""
    with np.errstate(over="ignore"):
        value = value.astype(dtype, copy=False)
    if not np.isfinite(value).all():
        bad = np.flatnonzero(~np.isfinite(value).reshape(len(value), -1).all(axis=1)).tolist()
        shown = f"[{', '.join(map(str, bad[:10]))}, ...]" if len(bad) > 10 else bad
        raise ValueError(f"{name} is not finite in {dtype} {where} {shown}; {expected}")
    return value


def _check_storable(event: PyTree) -> None:
    """Refuse events whose leaves a store cannot hold, or cannot hold apart."""
    paths = jax.tree_util.tree_flatten_with_path(event)[0]
    if kind := unstorable(event):
        raise ValueError(f"events of {kind} cannot be stored; give the target a float32 template, or leave store out")
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    for name, (path, _) in zip(names, paths, strict=True):
        if path and any(part in ("", ".", "..", "zarr.json") or part.startswith("__") for part in name.split("/")):
            raise ValueError(f"an entry of the event is named {name!r}, which no store can hold; rename it, or leave store out")
    # A leaf is a folder: sorted, whatever lies within it comes right after it.
    for one, other in pairwise(sorted(f"{name}/" for name in names)):
        if other.startswith(one):
            raise ValueError(
                f"the entries {one[:-1]!r} and {other[:-1]!r} of the event share a place in a store; rename one of them"
            )


def _check_length(event, width, num_draws, warmup, thin, num_steps, *, in_memory: bool) -> None:
    """Refuse more steps than are counted, and more draws, or chains, than memory can ever hold."""
    size = sum(leaf.dtype.itemsize * int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(event))
    chains = 1 if num_steps is not None else int(width)
    if hasattr(os, "sysconf"):
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        needed = size * int(num_draws) * chains
        if in_memory and needed > there:
            raise MemoryError(
                f"{num_draws} draws take {needed / 2**30:.3g} GiB and this machine has {there / 2**30:.3g}; give store= a "
                "path, or take fewer draws or thin="
            )
        # Where a chain stands, where it stood, and a row of each of two buffers.
        needed = ROWS_OF_A_CHAIN * size * chains
        if num_steps is None and needed > there:
            raise MemoryError(
                f"{width} chains take {needed / 2**30:.3g} GiB and this machine has {there / 2**30:.3g}; take fewer chains"
            )
    steps = int(warmup) + int(num_draws) * int(thin)
    if num_steps is None and steps > MOST_STEPS:
        raise ValueError(f"the run has {steps} steps; expected at most {MOST_STEPS}, the most that are counted")


def _leading(tree: PyTree, name: str) -> int | None:
    """The leading axis shared by all leaves of a tree; None for no tree."""
    if tree is None:
        return None
    sizes = {np.shape(a)[0] if np.ndim(a) else None for a in jax.tree.leaves(tree)}
    if len(sizes) != 1 or sizes & {None, 0}:
        shapes = [list(np.shape(a)) for a in jax.tree.leaves(tree)]
        raise ValueError(f"{name} has shapes {shapes}; expected arrays that share one leading axis of chains or draws")
    return int(sizes.pop())


def _first(each: PyTree) -> PyTree:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], jax.dtypes.canonicalize_dtype(a.dtype)), each)


@jax.jit
def _start(key, maker, each):
    """Never run: a position: what `initial` must look like, one chain of it."""
    sampler = resolve(maker, each)
    return sampler.position(core.begin(key, sampler))
