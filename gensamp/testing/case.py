"""One sampler under test: its two shared programs, and how outcomes are compared.

The programs - the sampler alone, and mapped over keys and over its own leaves - are compiled when a contract first needs them.
The number of steps is an argument of both, so no contract compiles its own. The sampler alone carries functions that count
their calls, which changes no value.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gensamp.core import PyTree, Sampler, add_info, begin
from gensamp.testing.counting import Tally, instrument

__all__ = ["Case", "close", "equal", "fetch", "moved", "program_text", "run", "split_floats"]

_CHAIN_STEPS = 3


class Case:
    """One sampler under test, with the two programs that most contracts share, compiled when first needed."""

    def __init__(self, sampler, template, target, networks, remake, key, rtol) -> None:
        self.sampler, self.template, self.target, self.networks = sampler, template, target, networks
        self.remake, self.rtol, self.tally = remake, rtol, Tally()
        self.keys = jax.random.split(key, 2)
        self.traces = 0
        self._mapped = jax.jit(self._trace_mapped)
        self._alone = jax.jit(run)
        self._ran: dict[str, Any] = {}

    @property
    def endless(self) -> bool:
        """Whether it is a chain without end."""
        return self.sampler.num_steps is None

    @property
    def num_steps(self) -> int:
        """How many steps a check runs."""
        return _CHAIN_STEPS if self.endless else self.sampler.num_steps

    def _trace_mapped(self, samplers, keys, num_steps):
        self.traces += 1
        over_keys = jax.vmap(run, in_axes=(None, 0, None))
        return jax.vmap(over_keys, in_axes=(0, None, None))(samplers, keys, num_steps)

    @property
    def both(self) -> Sampler:
        """The sampler and a copy with slightly other numbers, stacked."""
        return jax.tree.map(lambda a, b: jnp.stack([jnp.asarray(a), jnp.asarray(b)]), self.sampler, moved(self.sampler))

    def mapped(self, num_steps=None, samplers=None, keys=None):
        """Outcomes [2 samplers, 2 keys, ...] of the mapped program."""
        samplers = self.both if samplers is None else samplers
        steps = jnp.int32(self.num_steps if num_steps is None else num_steps)
        return fetch(self._mapped(samplers, self.keys if keys is None else keys, steps))

    def standard(self):
        """The mapped program's outcome on the two keys, run once."""
        if "mapped" not in self._ran:
            self._ran["mapped"] = self.mapped()
        return self._ran["mapped"]

    def counted(self):
        """The sampler with counting functions, and how many were found."""
        if "counted" not in self._ran:
            density = score = None
            if self.target is not None:
                density, score = self.target.log_density, self.target.score
            functions = {"log_density": density, "score": score, "networks": self.networks}
            sampler, found = instrument(self.sampler, self.tally, **functions)
            if self.target is not None and self.target.minibatch_log_density is not None:
                sampler, more = instrument(sampler, self.tally, log_density=self.target.minibatch_log_density)
                found += more
            self._ran["counted"] = sampler, found
        return self._ran["counted"]

    def alone(self, num_steps=None):
        """The outcome of the (counting) sampler by itself, on the first key."""
        outcome = self._alone(self.counted()[0], self.keys[0], jnp.int32(self.num_steps if num_steps is None else num_steps))
        return fetch(outcome)


def run(sampler: Sampler, key, num_steps):
    """The state after `num_steps` steps, its draw, the Info summed, and for a chain the states two inits make at that draw."""
    state = begin(key, sampler)
    blank = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(sampler.step, key, state, jnp.int32(0))[1])

    def body(index, carry):
        state, total = carry
        state, info = sampler.step(jax.random.fold_in(key, index + 1), state, index)
        return state, add_info(total, info)

    state, total = jax.lax.fori_loop(jnp.int32(0), num_steps, body, (state, blank))
    position = sampler.position(state)
    again = ()
    if sampler.num_steps is None:
        again = tuple(sampler.init(jax.random.fold_in(key, 2**31 + i), position) for i in range(2))
    weight = () if sampler.log_weight is None else sampler.log_weight(state)
    density = () if sampler.log_density is None else sampler.log_density(position)
    return {"state": state, "position": position, "info": total, "again": again, "weight": weight, "density": density}


def program_text(case: Case) -> str:
    """The traced program of one step with its constants, to compare between two tracings."""
    closed = jax.make_jaxpr(lambda sampler, key: run(sampler, key, jnp.int32(1)))(case.sampler, case.keys[0])
    constants = [np.asarray(c).tobytes().hex() for c in closed.consts if isinstance(c, jax.Array | np.ndarray) and _is_plain(c)]
    # Derivative rules print with the address they happen to have.
    return re.sub(r"0x[0-9a-f]+", "", f"{closed.jaxpr}") + str(constants)


def _is_plain(array) -> bool:
    return not jnp.issubdtype(array.dtype, jax.dtypes.extended)


def moved(tree: PyTree) -> PyTree:
    """The same tree with its floating-point leaves a thousandth smaller (a time in [0, 1] must stay there)."""

    def move(leaf):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            return jnp.asarray(leaf) * jnp.asarray(0.999, jnp.result_type(leaf))
        return leaf

    return jax.tree.map(move, tree)


def split_floats(tree: PyTree):
    """The floating-point leaves of a tree, and a function that puts others in their place."""
    leaves, structure = jax.tree.flatten(tree)
    places = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]

    def rebuild(values):
        full = list(leaves)
        for place, value in zip(places, values, strict=True):
            full[place] = value
        return jax.tree.unflatten(structure, full)

    return [jnp.asarray(leaves[i]) for i in places], rebuild


def equal(one: PyTree, other: PyTree) -> bool:
    """Whether two trees of arrays have the same bits, NaNs included."""
    return all(np.array_equal(a, b, equal_nan=_is_float(a)) for a, b in _pairs(one, other))


def close(one: PyTree, other: PyTree, rtol: float) -> bool:
    """Whether two trees agree to `rtol` of each leaf's largest number; integers exactly."""
    for a, b in _pairs(one, other):
        if not _is_float(a):
            if not np.array_equal(a, b):
                return False
            continue
        size = np.max(np.abs(b[np.isfinite(b)]), initial=0.0)
        if not np.allclose(a, b, rtol=rtol, atol=rtol * size, equal_nan=True):
            return False
    return True


def _pairs(one: PyTree, other: PyTree):
    return list(zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def fetch(tree: PyTree) -> PyTree:
    """The tree as NumPy arrays, keys as their data."""
    return jax.device_get(jax.tree.map(lambda a: a if _is_plain(a) else jax.random.key_data(a), tree))


def _is_float(array) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.inexact))
