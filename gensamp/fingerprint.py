"""A digest of what a run is made of, by which a store knows its own run from another one.

    digest(value) = sha256(kind of value, digests of its parts)

Of an array count its numbers; of a container its elements; of an object its type and what it holds; of a function its code,
defaults, what it closes over, and the globals that its code names: data, helpers, and the helpers of those. Installed
libraries (and this one) are walked no further than the code of the function met: their globals are theirs. The digest is the
same in every process, so nothing may count that is not: addresses, the order of sets, attributes that cache.
"""

import dataclasses
import dis
import functools
import hashlib
import re
import sys
import sysconfig
from enum import Enum
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["fingerprint"]

INSTALLED = ("site-packages", "dist-packages")
STANDARD = sysconfig.get_paths()["stdlib"]


def fingerprint(tree: Any) -> str:
    """A digest of a pytree's structure, functions and leaves; see the module's docstring."""
    return _Walk().digest(tree).hex()[:16]


class _Walk:
    """One walk: what was met already is not walked again, so cycles end and shared helpers cost once."""

    def __init__(self) -> None:
        # By id, with the object itself, lest another one takes its address during the walk.
        self.met: dict[int, tuple[Any, bytes]] = {}

    def digest(self, value: Any) -> bytes:
        if isinstance(value, FunctionType | ModuleType | type) or hasattr(value, "__dict__") or isinstance(value, dict | list):
            if id(value) not in self.met:
                self.met[id(value)] = value, b"cycle"
                self.met[id(value)] = value, self._digest(value)
            return self.met[id(value)][1]
        return self._digest(value)

    def _digest(self, value: Any) -> bytes:
        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            return _sha(type(value).__name__.encode(), repr(value).encode())
        if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            return self._all("key", jax.random.key_data(value))
        if isinstance(value, np.ndarray | np.generic | jax.Array):
            array = np.asarray(value)
            data = self._all("objects", *array.ravel()) if array.dtype.hasobject else array.tobytes()
            return _sha(f"array {array.dtype}{array.shape}".encode(), data)
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, CodeType):
            return _sha(b"code", value.co_code, repr(value.co_names).encode(), self._all("constants", *value.co_consts))
        if isinstance(value, ModuleType):
            return _sha(b"module", value.__name__.encode())
        if isinstance(value, type):
            return self._type(value)
        if isinstance(value, dict):
            return self._unordered(f"{type(value).__name__} of items", value.items())
        if isinstance(value, set | frozenset):
            return self._unordered("set", value)
        if isinstance(value, tuple | list):
            return self._all(type(value).__name__, *value)
        if isinstance(value, MethodType):
            return self._all("method", value.__func__, value.__self__)
        if isinstance(value, functools.partial) and not _is_node(value):
            return self._all("partial", value.func, value.args, value.keywords)
        if isinstance(value, jax.tree_util.PyTreeDef):
            return self._structure(value)
        if _is_node(value):
            leaves, structure = jax.tree.flatten(value)
            return self._all("tree", structure, *leaves)
        return self._object(value)

    def _all(self, kind: str, *parts: Any) -> bytes:
        return _sha(kind.encode(), *(self.digest(part) for part in parts))

    def _unordered(self, kind: str, parts: Any) -> bytes:
        return _sha(kind.encode(), *sorted(self.digest(part) for part in parts))

    def _structure(self, structure: Any) -> bytes:
        node = structure.node_data()
        if node is None:
            return _sha(b"leaf or none", str(structure.num_leaves).encode())
        kind, static = node
        if kind is type(static):  # a node without leaves, an object like any other
            held = self._object(static)
        elif kind.__module__.startswith("numpyro."):  # whose distributions list their static parts in the order of a set
            held = self._unordered("static", static or ())
        else:
            held = self.digest(static)
        return _sha(_name(kind), held, *(self._structure(child) for child in structure.children()))

    def _function(self, function: FunctionType) -> bytes:
        cells = [_content(cell) for cell in function.__closure__ or ()]
        parts = [function.__code__, function.__defaults__, function.__kwdefaults__, cells]
        if not _of_library(function.__globals__.get("__name__")):
            parts.append(self._globals(function.__code__, function.__globals__))
        return self._all("function", *parts)

    def _globals(self, code: CodeType, known: dict[str, Any]) -> list[Any]:
        """Names and values of the globals that a code names; of a module of the user's, of its attributes that it names."""
        found: list[Any] = []
        codes = [code]
        for one in codes:
            codes.extend(constant for constant in one.co_consts if isinstance(constant, CodeType))
            named = {step.argval for step in dis.get_instructions(one) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
            for name in sorted(named & known.keys()):
                found.append((name, known[name]))
                if isinstance(known[name], ModuleType) and not _of_library(known[name].__name__):
                    inside = vars(known[name])
                    found.extend((part, inside[part]) for part in sorted(set(one.co_names) & inside.keys()))
        return found

    def _type(self, kind: type) -> bytes:
        if _of_library(kind.__module__):
            return _sha(b"type", _name(kind))
        # What dataclasses and the like write themselves follows from the fields.
        own = {
            name: value
            for name, value in vars(kind).items()
            if not name.startswith("_") or (isinstance(value, FunctionType) and value.__code__.co_filename != "<string>")
        }
        return _sha(b"type", _name(kind), self.digest(own), self.digest(kind.__bases__))

    def _object(self, value: Any) -> bytes:
        """An object by its type and what it holds."""
        kind = type(value)
        if isinstance(value, Enum):
            return _sha(_name(kind), value.name.encode())
        if isinstance(value, property | staticmethod | classmethod):
            functions = [getattr(value, part, None) for part in ("fget", "fset", "__func__")]
            return self._all(kind.__name__, *functions)
        if dataclasses.is_dataclass(value):
            held = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
            return self._all("dataclass", kind, held)
        if hasattr(value, "__array__") and not callable(value):
            return self._all("as array", kind, np.asarray(value))
        standard = kind.__module__.partition(".")[0] in sys.stdlib_module_names and kind is not SimpleNamespace
        if standard or isinstance(value, BuiltinFunctionType) or not hasattr(value, "__dict__"):
            slots = {name: getattr(value, name, None) for name in _slots(kind)} if not standard else {}
            return _sha(_name(kind), _without_addresses(repr(value)), self.digest(slots))
        library = _of_library(kind.__module__)
        held = {
            name: part
            for name, part in vars(value).items()
            # Of a library, what is public or wraps a function; of anybody, no attribute that caches a property.
            if (name == "__wrapped__" or not (library and name.startswith("_")))
            and not hasattr(_attribute(kind, name), "__get__")
        }
        return self._all("object", kind, held)


def _sha(*parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def _is_node(value: Any) -> bool:
    return not jax.tree_util.all_leaves([value])


def _name(kind: type) -> bytes:
    return f"{kind.__module__}.{kind.__qualname__}".encode()


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _attribute(kind: type, name: str) -> Any:
    return next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)


def _slots(kind: type) -> list[str]:
    named = (vars(base).get("__slots__", ()) for base in kind.__mro__ if not _of_library(base.__module__))
    return [name for slots in named for name in ((slots,) if isinstance(slots, str) else slots)]


@functools.cache
def _of_library(module: str | None) -> bool:
    """Whether a module is Python's, an installed package's or this package's, and not the user's."""
    top = (module or "__main__").partition(".")[0]
    if top == "__main__":
        return False
    if top in sys.stdlib_module_names or top == "gensamp":
        return True
    file = getattr(sys.modules.get(module or ""), "__file__", None) or getattr(sys.modules.get(top), "__file__", None) or ""
    return any(part in file for part in INSTALLED) or file.startswith(STANDARD)


def _without_addresses(text: str) -> bytes:
    return re.sub(r" at 0x[0-9a-f]+", "", text).encode()
