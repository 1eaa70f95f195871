"""Draws on disk (zarr) and checkpoints (orbax).

A run's draws go to a zarr group: `position` (or `position/<leaf>`), `acceptance`, `diverged`, `log_weight`, ..., each
[chain, draw, ...], readable by any zarr library while the run is going on. Beside the group `run.zarr` stands
`run.zarr.checkpoint` with the state of the chains after the last recorded draw. Draws are written first and the checkpoint
after them, so a run killed at any moment resumes from its checkpoint and writes the same bits again.
"""

import hashlib
import logging
import re
from pathlib import Path as FilePath
from types import CodeType, FunctionType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gensamp.core import PyTree

__all__ = ["DiskStore", "MemoryStore", "fingerprint", "key_words", "like_saved", "load_checkpoint", "save_checkpoint"]

CHUNK_BYTES = 2**22


class MemoryStore:
    """Draws kept in host memory, in arrays [chain, draw, ...] sized for the whole run."""

    checkpoint = None

    def __init__(self) -> None:
        self.arrays: PyTree = None

    def open(self, shapes: PyTree, num_draws: int) -> None:
        """Make room for `num_draws` draws; `shapes` has one draw of all chains, [chain, ...]."""
        self.arrays = jax.tree.map(lambda a: np.empty((a.shape[0], num_draws, *a.shape[1:]), a.dtype), shapes)

    def write(self, chains: slice, draws: slice, values: PyTree) -> None:
        """Record values [chain, draw, ...]."""
        _write(self.arrays, chains, draws, values)

    def read(self, num_draws: int) -> PyTree:
        """The first `num_draws` draws."""
        return jax.tree.map(lambda array: array[:, :num_draws], self.arrays)


class DiskStore:
    """Draws kept in a zarr group at `path`; see the module's docstring.

    Raises (all before anything is compiled or overwritten):
        FileExistsError: the path holds a run and resume is False.
        ValueError: it holds another run (names what differs), or something that is no run of ours.
    """

    def __init__(self, path: Any, identity: dict[str, str], resume: bool) -> None:
        import zarr

        if not isinstance(path, str | FilePath) or not FilePath(path).name or FilePath(path).is_file():
            raise ValueError(f"store is {path!r}; expected the path of a folder to make or to go on with, such as 'run.zarr'")
        self.path = FilePath(path)
        self.identity = identity
        self.checkpoint = self.path.with_name(self.path.name + ".checkpoint")
        if self.path.exists() and any(self.path.iterdir()):
            try:
                found = zarr.open_group(self.path, mode="r").attrs.get("gensamp_run")
            except (FileNotFoundError, ValueError):
                found = None
            if found is None:
                raise ValueError(f"store {self.path} exists and holds no run of gensamp; choose another path")
            if not resume:
                raise FileExistsError(f"store {self.path} already holds a run; pass resume=True to go on, or another path")
            differs = sorted(part for part in identity if found.get(part) != identity[part])
            if differs:
                raise ValueError(f"store {self.path} is of another run: its {' and '.join(differs)} changed; choose another")
        self.arrays: PyTree = None

    def open(self, shapes: PyTree, num_draws: int) -> None:
        """Create the arrays, or take the ones that are there and stretch them to `num_draws`. Nothing is on disk before."""
        import zarr

        group = zarr.open_group(self.path, mode="a")
        group.attrs["gensamp_run"] = self.identity

        def array(path, one):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            shape = (one.shape[0], num_draws, *one.shape[1:])
            if name in group:
                existing: Any = group[name]
                existing.resize((one.shape[0], max(num_draws, existing.shape[1]), *one.shape[1:]))
                return existing
            rows = max(1, min(num_draws, CHUNK_BYTES // max(1, one.dtype.itemsize * int(np.prod(one.shape)))))
            return group.create_array(name, shape=shape, chunks=(one.shape[0], rows, *one.shape[1:]), dtype=one.dtype)

        self.arrays = jax.tree_util.tree_map_with_path(array, shapes)

    def write(self, chains: slice, draws: slice, values: PyTree) -> None:
        """Record values [chain, draw, ...]."""
        _write(self.arrays, chains, draws, values)

    def read(self, num_draws: int) -> PyTree:
        """The arrays on disk, as zarr arrays cut to `num_draws`: nothing is loaded."""
        for array in jax.tree.leaves(self.arrays):
            array.resize((array.shape[0], num_draws, *array.shape[2:]))
        return self.arrays


def _write(arrays: PyTree, chains: slice, draws: slice, values: PyTree) -> None:
    def put(array, value):
        # The positions of a population have several rows for each chain (run).
        rows = value.shape[0] // (chains.stop - chains.start)
        array[chains.start * rows : chains.stop * rows, draws] = value

    jax.tree.map(put, arrays, values)


def fingerprint(tree: Any) -> str:
    """A digest of a pytree's structure, functions and leaves that is the same in every process.

    Of a function count its code, constants, defaults and what it closes over; not the functions that it calls by name.
    """
    leaves, structure = jax.tree.flatten(tree)
    digest = hashlib.sha256(_without_addresses(str(structure)))
    nodes = [structure]
    while nodes:
        node = nodes.pop()
        nodes.extend(node.children())
        _digest_functions(digest, node.node_data())
    for leaf in leaves:
        leaf = np.asarray(key_words(leaf) if isinstance(leaf, jax.Array) else leaf)
        digest.update(f"{leaf.dtype}{leaf.shape}".encode() + leaf.tobytes())
    return digest.hexdigest()[:16]


def _digest_functions(digest: Any, value: Any) -> None:
    """Feed every Python function in `value` (a function, or nested tuples with some) to the digest."""
    if isinstance(value, tuple | list):
        for part in value:
            _digest_functions(digest, part)
    elif isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        _digest_code(digest, value.__code__)
        _digest_functions(digest, cells)
        for part in (*(value.__defaults__ or ()), *cells):
            arrays = isinstance(part, np.ndarray | jax.Array)
            digest.update(np.asarray(part).tobytes() if arrays else _without_addresses(repr(part)))


def _digest_code(digest: Any, code: CodeType) -> None:
    digest.update(code.co_code + repr(code.co_names).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _digest_code(digest, constant)
        else:
            digest.update(repr(constant).encode())


def _without_addresses(text: str) -> bytes:
    return re.sub(r" at 0x[0-9a-f]+", "", text).encode()


def save_checkpoint(folder: str | FilePath, step: int, tree: PyTree) -> None:
    """Save a tree of arrays and Python numbers as checkpoint `step` of `folder`; atomic, the last two are kept."""
    with _checkpointer(folder) as checkpointer:
        checkpointer.save(step, _plain(tree), overwrite=True)


def load_checkpoint(folder: str | FilePath) -> tuple[int, PyTree] | None:
    """The newest checkpoint of `folder` as (step, tree of NumPy arrays and numbers), or None where there is none."""
    if not FilePath(folder).exists():
        return None
    with _checkpointer(folder) as checkpointer:
        latest = checkpointer.latest
        return None if latest is None else (latest.step, checkpointer.load(latest.step))


def key_words(leaf: Any) -> Any:
    """What of a leaf can be saved: of keys their words, of everything else itself."""
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def like_saved(value: Any, leaf: Any) -> Any:
    """A saved value in the type of `leaf`: keys from their words, numbers in its dtype."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf))
    return np.asarray(value, leaf.dtype)


def _checkpointer(folder):
    from contextlib import closing

    from orbax.checkpoint import v1

    logging.getLogger("absl").setLevel(logging.ERROR)
    options = {"preservation_policy": v1.training.preservation_policies.LatestN(2), "cleanup_tmp_directories": True}
    return closing(v1.training.Checkpointer(FilePath(folder).absolute(), **options))


def _plain(tree: PyTree) -> PyTree:
    """Leaves orbax can write: NumPy arrays and Python numbers."""
    return jax.tree.map(lambda a: a.item() if isinstance(a, np.generic) else a, tree)
