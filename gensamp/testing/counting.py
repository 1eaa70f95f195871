"""Count evaluations as they happen: a density, a score or a network replaced by one that counts its own calls.

A sampler holds its target's functions as `Partial`s among the arguments of its own. `instrument` swaps each of them for a
counting one with the same value. A log density called for its value is one density; differentiated (which also gives the
value) it is one gradient, told apart by a custom derivative rule. Counts arrive by `jax.debug.callback`, once per call at run
time whatever loop it stands in, and mapped over the walkers or particles of a population once for each of them: for tests only,
since a library has no business calling the host from compiled code.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from gensamp.core import PyTree, Static, bind

__all__ = ["Tally", "instrument"]


class Tally:
    """Counts of gradients, densities and forwards since the last `take`."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, kind: str, mark: Any = None) -> None:
        """One evaluation of this kind; what `mark` holds does not matter."""
        del mark
        self._counts[kind] += 1

    def take(self) -> dict[str, int]:
        """The counts so far, after everything dispatched has run; starts again from zero."""
        jax.effects_barrier()
        counts = {kind: self._counts[kind] for kind in ("gradients", "densities", "forwards")}
        self._counts.clear()
        return counts


def instrument(tree: PyTree, tally: Tally, *, log_density: Any = None, score: Any = None, networks: Iterable[Any] = ()):
    """`tree` with every occurrence of the given functions replaced by one that counts into `tally`.

    Args:
        tree: a Sampler, or anything else made of Partials.
        log_density, score: Partials or functions, as in a Target. networks: `apply` functions; each call is one forward.

    Returns:
        (tree, number of occurrences found).
    """
    wrappers: list[tuple[Callable, Callable, str]] = []
    for function, wrapper, kind in (
        (score, _counted, "gradients"), (log_density, _counted_density, "densities"),
        *((network, _counted, "forwards") for network in networks),
    ):  # fmt: skip
        if function is not None:
            wrappers.append((function.func if isinstance(function, Partial) else function, wrapper, kind))
    found = 0

    def replace(node):
        nonlocal found
        if not isinstance(node, Partial):
            return node
        for function, wrapper, kind in wrappers:
            if node.func is function:
                found += 1
                return bind(wrapper, Static((tally, kind)), node)
        args, keywords = visit((node.args, node.keywords))
        return Partial(node.func, *args, **keywords)

    def visit(tree):
        return jax.tree.map(replace, tree, is_leaf=lambda node: isinstance(node, Partial))

    return visit(tree), found


def _counted(counter, function, *arguments):
    tally, kind = counter.value
    jax.debug.callback(tally.add, kind, _mark(arguments))
    return function(*arguments)


def _mark(arguments):
    """A number that is batched where the arguments are: without one, `vmap` calls back once for the whole batch."""
    floats = [a for a in jax.tree.leaves(arguments) if jnp.issubdtype(jnp.result_type(a), jnp.floating)]
    return sum(jax.lax.stop_gradient(jnp.ravel(a)[:0].sum()) for a in floats)


def _counted_density(counter, function, *arguments):
    return _value(counter, function, arguments)


@jax.custom_jvp
def _value(counter, function, arguments):
    return _counted(counter, function, *arguments)


@_value.defjvp
def _value_and_gradient(primals, tangents):
    counter, function, arguments = primals
    tally, _ = counter.value
    jax.debug.callback(tally.add, "gradients", _mark(arguments))
    _, *moved = tangents
    return jax.jvp(_call, (function, arguments), tuple(moved))


def _call(function, arguments):
    return function(*arguments)
