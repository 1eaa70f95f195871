"""Somebody else's network as a `Network`: a Flax Linen, Flax NNX or Equinox module behind (init, apply).

The parameters come out as one pytree of arrays, the trainable leaves; whatever is not an array stays static. So `fit`, the
samplers and the store treat them like our own. Equinox and NNX are imported only when asked for. Modules that keep running
statistics (batch normalisation, caches, dropout state) are refused by their own libraries or here, because a `Network` is pure.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gensamp.core import Network, Static, bind

__all__ = ["from_equinox", "from_linen", "from_nnx"]


def from_linen(module: Any, *example: Any) -> Network:
    """A `Network` from a Flax Linen module.

    Args:
        module: a `flax.linen.Module`; its fields must be hashable (tuples, not lists).
        example: one event of each input, as the module's `__call__` takes them (only shapes and dtypes are used).

    Returns:
        Network whose params are the module's "params" collection.

    Raises:
        TypeError: it is no such module, or has collections other than "params", such as batch statistics.
    """
    import flax.linen as nn

    if not isinstance(module, nn.Module):
        raise TypeError(f"from_linen got {_described(module)}; expected an instance of a flax.linen.Module")
    inputs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)), example)
    found = set(jax.eval_shape(module.init, jax.random.key(0), *inputs)) - {"params"}
    if found:
        raise TypeError(f"{type(module).__name__} keeps the collections {sorted(found)}; expected a module with params only")
    leaves, structure = jax.tree.flatten(inputs)
    return Network(bind(_linen_init, Static(module), Static((tuple(leaves), structure))), bind(_linen_apply, Static(module)))


def from_nnx(make: Callable[[Any], Any]) -> Network:
    """A `Network` from a Flax NNX module.

    Args:
        make: (flax.nnx.Rngs) -> module, a module-level function or a class whose only argument is `rngs`.

    Returns:
        Network whose params are the module's `nnx.Param` leaves, as a pytree of arrays.

    Raises:
        TypeError: it is a module and not what makes one, or has variables other than `nnx.Param` (batch statistics, dropout
            streams).
    """
    from flax import nnx

    if not callable(make) or isinstance(make, nnx.Module):
        raise TypeError(
            f"from_nnx got {_described(make)}; expected its class, or a function from flax.nnx.Rngs to a module, by which to "
            "make new parameters"
        )
    module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graph, _, rest = nnx.split(module, nnx.Param, ...)
    if jax.tree.leaves(rest):
        raise TypeError(f"{type(module).__name__} has variables that are not nnx.Param; expected a module with parameters only")
    return Network(bind(_nnx_init, Static(make)), bind(_nnx_apply, Static(graph)))


def from_equinox(make: Callable[[jax.Array], Any]) -> Network:
    """A `Network` from an Equinox module.

    Args:
        make: (key) -> module, a module-level function (a class whose only argument is `key` will do).

    Returns:
        Network whose params are the module's floating-point arrays, in the module's own tree (`None` where a leaf is static:
        a function, a number), so that any optimiser or map over leaves sees the trainable ones only.

    Raises:
        TypeError: it is a module and not what makes one, or carries arrays that are not floating point and so cannot be
            trained.
    """
    import equinox as eqx

    if not callable(make) or isinstance(make, eqx.Module):
        raise TypeError(
            f"from_equinox got {_described(make)}; expected its class, or a function from a key to a module, by which to make "
            "new parameters"
        )
    example = eqx.filter_eval_shape(make, jax.random.key(0))
    arrays = [leaf for leaf in jax.tree.leaves(example) if isinstance(leaf, jax.ShapeDtypeStruct)]
    if any(not jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in arrays):
        found = sorted({str(leaf.dtype) for leaf in arrays})
        raise TypeError(f"{type(example).__name__} has arrays of {found}; expected floating point only, or Python constants")
    _, fixed = eqx.partition(example, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    leaves, structure = jax.tree.flatten(fixed, is_leaf=lambda leaf: leaf is None)
    return Network(bind(_equinox_init, Static(make)), bind(_equinox_apply, Static((tuple(leaves), structure))))


def _described(value):
    return f"the class {value.__name__}" if isinstance(value, type) else f"an instance of {type(value).__name__}"


def _linen_init(module, inputs, key):
    leaves, structure = inputs.value
    zeros = jax.tree.unflatten(structure, [jnp.zeros(a.shape, a.dtype) for a in leaves])
    return module.value.init(key, *zeros)["params"]


def _linen_apply(module, params, *inputs):
    return module.value.apply({"params": params}, *inputs)


def _nnx_init(make, key):
    from flax import nnx

    return nnx.to_pure_dict(nnx.state(make.value(nnx.Rngs(key)), nnx.Param))


def _nnx_apply(graph, params, *inputs):
    from flax import nnx

    return nnx.merge(graph.value, params)(*inputs)


def _equinox_init(make, key):
    import equinox as eqx

    return eqx.filter(make.value(key), eqx.is_array)


def _equinox_apply(fixed, params, *inputs):
    import equinox as eqx

    leaves, structure = fixed.value
    return eqx.combine(params, jax.tree.unflatten(structure, leaves))(*inputs)
