"""Draws on disk (zarr) and checkpoints (orbax).

A run's draws go to a zarr group: `position` (or `position/<leaf>`), `acceptance`, `diverged`, `log_weight`, ..., each
[chain, draw, ...], readable by any zarr library while the run is going on. Beside the group `run.zarr` stands
`run.zarr.checkpoint` with the state of the chains after the last recorded draw. Draws are written first and the checkpoint
after them, so a run killed at any moment resumes from its checkpoint and writes the same bits again. Both carry what the run
was made of, and a checkpoint is read only to go on with the run that stands beside it.
"""

import contextlib
import importlib.util
import json
import logging
import os
import shutil
from pathlib import Path as FilePath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gensamp.core import PyTree
from gensamp.fingerprint import fingerprint

__all__ = [
    "DiskStore", "MemoryStore", "check_writable", "fingerprint", "key_words", "like_saved", "load_checkpoint",
    "need_packages", "save_checkpoint", "unstorable",
]  # fmt: skip

CHUNK_BYTES = 2**22


class MemoryStore:
    """Draws kept in host memory, in arrays [chain, draw, ...] sized for the whole run."""

    checkpoint = None

    def __init__(self) -> None:
        self.arrays: PyTree = None

    def saved(self) -> None:
        """No run in memory is gone on with."""

    def open(self, shapes: PyTree, num_draws: int) -> None:
        """Make room for `num_draws` draws; `shapes` has one draw of all chains, [chain, ...]."""
        try:
            self.arrays = jax.tree.map(lambda a: np.empty((a.shape[0], num_draws, *a.shape[1:]), a.dtype), shapes)
        except MemoryError:
            raise MemoryError(
                f"{num_draws} draws per chain do not fit in memory; give store= a path, or take fewer draws or thin="
            ) from None

    def write(self, chains: slice, draws: slice, values: PyTree) -> None:
        """Record values [chain, draw, ...]."""
        _write(self.arrays, chains, draws, values)

    def read(self, num_draws: int) -> PyTree:
        """The first `num_draws` draws."""
        return jax.tree.map(lambda array: array[:, :num_draws], self.arrays)


class DiskStore:
    """Draws kept in a zarr group at `path`; see the module's docstring.

    Raises (all before anything is compiled or overwritten):
        ModuleNotFoundError: zarr or orbax is not installed.
        FileExistsError: the path holds a run and resume is False, or there is the checkpoint of a run that is gone.
        ValueError: it holds another run (names what differs), something that is no run of ours, or a damaged one; or nothing
            can be written there.
    """

    def __init__(self, path: Any, identity: dict[str, str], resume: bool) -> None:
        need_packages("store=", "zarr", "orbax.checkpoint")
        if not isinstance(path, str | FilePath) or not FilePath(path).name or FilePath(path).is_file():
            raise ValueError(f"store is {path!r}; expected the path of a folder to make or to go on with, such as 'run.zarr'")
        self.path = FilePath(path)
        self.identity = identity
        self.checkpoint = self.path.with_name(self.path.name + ".checkpoint")
        check_writable(self.path)
        self.goes_on = any(self.path.iterdir()) if self.path.exists() else False
        if self.goes_on:
            self._check_group(resume)
        elif self.checkpoint.exists():
            raise FileExistsError(
                f"store {self.path} is gone and its checkpoint {self.checkpoint} is there; remove that too, or choose another"
            )
        self.arrays: PyTree = None

    def _check_group(self, resume: bool) -> None:
        """Refuse what is there, unless it is this run and is to be gone on with."""
        found = None
        if (self.path / "zarr.json").exists():
            found = self._whole(lambda group: group.attrs.get("gensamp_run"))
        if found is None:
            raise ValueError(f"store {self.path} exists and holds no run of gensamp; choose another path")
        if not resume:
            raise FileExistsError(f"store {self.path} already holds a run; pass resume=True to go on, or another path")
        differs = sorted(part for part in self.identity if found.get(part) != self.identity[part])
        if differs:
            raise ValueError(f"store {self.path} is of another run: its {' and '.join(differs)} changed; choose another")

    def _whole(self, look: Any) -> Any:
        """What `look` finds in the group, or a ValueError where it cannot be read."""
        import zarr

        try:
            return look(zarr.open_group(self.path, mode="r"))
        except Exception as error:
            raise ValueError(f"store {self.path} is damaged: {_first_line(error)}; remove it to start anew") from error

    def saved(self) -> PyTree:
        """What the checkpoint of this run holds, or None where there is none to go on from. Reads the draws it counts once.

        Raises:
            ValueError: it is of another run, cannot be read, or counts draws that the store does not have or cannot give back.
        """
        found = load_checkpoint(self.checkpoint) if self.goes_on else None
        if found is None:
            return None
        held = found[1].get("identity")
        if held is None or json.loads(np.asarray(held, np.uint8).tobytes()) != self.identity:
            raise ValueError(f"checkpoint {self.checkpoint} is not of the run in {self.path}; remove it to start anew")
        done = int(found[1]["done"])
        lost = self._whole(lambda group: _lost(group, done, strict=not found[1]["nonfinite"])) if done else ""
        if lost:
            raise ValueError(f"store {self.path} {lost}; remove it and its checkpoint to start anew")
        return found[1]

    def open(self, shapes: PyTree, num_draws: int) -> None:
        """Create the arrays, or take the ones that are there and stretch them to `num_draws`. Nothing is on disk before.

        Raises:
            ValueError: what a sampler reports has a dtype that no store can hold.
        """
        import zarr

        if kind := unstorable(shapes):
            raise ValueError(f"this sampler reports numbers of {kind}, which cannot be stored; leave store out")
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
            # What was never written, or is lost, reads as NaN and not as draws at zero.
            fill = np.nan if np.issubdtype(one.dtype, np.floating) else 0
            chunks = (one.shape[0], rows, *one.shape[1:])
            return group.create_array(name, shape=shape, chunks=chunks, dtype=one.dtype, fill_value=fill)

        self.arrays = jax.tree_util.tree_map_with_path(array, shapes)
        group.attrs["gensamp_arrays"] = sorted(one.path for one in jax.tree.leaves(self.arrays))

    def write(self, chains: slice, draws: slice, values: PyTree) -> None:
        """Record values [chain, draw, ...]."""
        _write(self.arrays, chains, draws, values)

    def read(self, num_draws: int) -> PyTree:
        """The arrays on disk, as zarr arrays cut to `num_draws`: nothing is loaded."""
        for array in jax.tree.leaves(self.arrays):
            array.resize((array.shape[0], num_draws, *array.shape[2:]))
        return self.arrays


def unstorable(shapes: PyTree) -> str | None:
    """A dtype among these that no store can hold, or None."""
    return next(iter(sorted({str(one.dtype) for one in jax.tree.leaves(shapes) if one.dtype.kind not in "fiub"})), None)


def _write(arrays: PyTree, chains: slice, draws: slice, values: PyTree) -> None:
    def put(array, value):
        # The positions of a population have several rows for each chain (run).
        rows = value.shape[0] // (chains.stop - chains.start)
        array[chains.start * rows : chains.stop * rows, draws] = value

    jax.tree.map(put, arrays, values)


def _lost(group: Any, done: int, strict: bool) -> str:
    """What a group lacks of `done` draws in each of its arrays, or cannot be read of them; "" where they are whole.

    A chunk of nothing but NaN is not written: only (strict) of positions that are all finite can anybody tell that one is gone.
    """
    for name in group.attrs.get("gensamp_arrays", ["position"]):
        array: Any = group.get(name)
        gone = f"lacks some of the {done} draws that its checkpoint counts, in its array '{name}'"
        if array is None or array.shape[1] < done:
            return gone
        chunked = strict and name.startswith("position") and array.size
        if chunked and array.nchunks_initialized < -(-done // array.chunks[1]):
            return gone
        for first in range(0, done, array.chunks[1]):
            last = min(first + array.chunks[1], done)
            try:
                array[:, first:last]
            except Exception as error:
                return f"is damaged: its array '{name}' cannot be read from draw {first} to {last - 1} ({_first_line(error)})"
    return ""


def need_packages(what: str, *names: str) -> None:
    """Raises ModuleNotFoundError in one sentence unless the packages that a store needs are installed."""
    for name in names:
        found = None
        with contextlib.suppress(ModuleNotFoundError):
            found = importlib.util.find_spec(name)
        if found is None:
            package = name.replace(".", "-")
            raise ModuleNotFoundError(f"{what} needs {package}, which is not installed; pip install 'gensamp[store]'")


def check_writable(folder: str | FilePath) -> None:
    """Raises ValueError in one sentence unless this folder, which may be yet to make, can be written; leaves no trace."""
    made: list[FilePath] = []
    try:
        folder = FilePath(folder)
        for part in (*reversed(folder.parents), folder):
            if not part.exists():
                part.mkdir()
                made.append(part)
        if not os.access(folder, os.W_OK | os.X_OK) or not folder.is_dir():
            raise PermissionError("no permission to write there")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"store is {str(folder)!r}, where nothing can be written ({why}); choose another path") from None
    finally:
        for part in reversed(made):
            part.rmdir()


def save_checkpoint(folder: str | FilePath, step: int, tree: PyTree) -> None:
    """Save a tree of arrays and Python numbers as checkpoint `step` of `folder`; atomic, the last two are kept."""
    for later in _steps(folder):
        # A run that goes on before it could not read this one.
        if later > step:
            shutil.rmtree(FilePath(folder) / str(later))
    with _checkpointer(folder) as checkpointer:
        checkpointer.save(step, _plain(tree), overwrite=True)


def load_checkpoint(folder: str | FilePath) -> tuple[int, PyTree] | None:
    """The newest checkpoint of `folder` that can be read, as (step, tree of NumPy arrays and numbers), or None if it has none.

    Raises:
        ValueError: there are some, and none can be read.
    """
    if not FilePath(folder).exists():
        return None
    why: Exception | None = None if FilePath(folder).is_dir() else NotADirectoryError("it is no folder")
    steps = _steps(folder)
    if steps:
        try:
            with _checkpointer(folder) as checkpointer:
                for step in steps:
                    try:
                        return step, checkpointer.load(step)
                    except Exception as error:
                        why = why or error
        except Exception as error:
            why = why or error
    if why is None:
        return None
    raise ValueError(f"checkpoint {folder} is damaged: {_first_line(why)}; remove it to start anew") from why


def key_words(leaf: Any) -> Any:
    """What of a leaf can be saved: of keys their words, of everything else itself."""
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def like_saved(value: Any, leaf: Any) -> Any:
    """A saved value in the type of `leaf`: keys from their words, numbers in its dtype."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf))
    return np.asarray(value, leaf.dtype)


def _steps(folder: str | FilePath) -> list[int]:
    """The steps of which a folder has checkpoints, the newest first."""
    if not FilePath(folder).is_dir():
        return []
    return sorted((int(entry.name) for entry in FilePath(folder).iterdir() if entry.name.isdigit()), reverse=True)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__} {str(error).strip().splitlines()[0] if str(error).strip() else ''}".strip().rstrip(".")


def _checkpointer(folder):
    from contextlib import closing

    from orbax.checkpoint import v1

    logging.getLogger("absl").setLevel(logging.CRITICAL)
    options = {"preservation_policy": v1.training.preservation_policies.LatestN(2), "cleanup_tmp_directories": True}
    return closing(v1.training.Checkpointer(FilePath(folder).absolute(), **options))


def _plain(tree: PyTree) -> PyTree:
    """Leaves orbax can write: NumPy arrays and Python numbers."""
    return jax.tree.map(lambda a: a.item() if isinstance(a, np.generic) else a, tree)
