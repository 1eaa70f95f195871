"""Any data set that the library `datasets` can read, as a target: from the Hugging Face hub, from a folder, or from memory.

    faces = hugging_face("nielsr/CelebA-faces", held_out=None, side=64, num_events=20_000)

The first place looked in is the folder that GENSAMP_DATA names, for a data set written there by `save_to_disk`; the hub is the
last, and its copy stays in that library's own cache, checked by its own checksums. No code that comes with a data set is run:
from release 4 on the library runs none. It is an extra, `pip install gensamp[hugging_face]`, imported when it is asked for.

Pictures become arrays [height, width, channels] scaled to [-1, 1], as those of `images`; numbers stay as they are.
"""

import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from gensamp.core import Target, Truth
from gensamp.targets.images import scaled
from gensamp.targets.mixture import float_dtype

__all__ = ["hugging_face", "hugging_face_labelled"]


def hugging_face(
    name: Any,
    *,
    split: str = "train",
    held_out: str | None = "test",
    column: str = "image",
    configuration: str | None = None,
    side: int | None = None,
    num_events: int | None = None,
    dtype: Any = None,
) -> Target:
    """One column of a data set as a target.

    Args:
        name: of a data set on the hub, such as "ylecun/mnist"; a folder that `save_to_disk` wrote, in GENSAMP_DATA or anywhere;
            or a `datasets.Dataset` or `DatasetDict` itself.
        split: what to learn from. held_out: the split whose events no model is to see, for `truth.reference`; None: none.
        column: of pictures, or of numbers or arrays of numbers that all have one shape.
        configuration: the subset of a data set on the hub that has several.
        side: crops pictures to the square in their middle and averages it to this many pixels a side; None: as they are.
        num_events: the first so many of either split; None: all. dtype: of events; jax's default float if None.

    Returns:
        Target with `data` [events, ...], and `truth.reference` where something is held out.

    Raises:
        ImportError: the extra is not installed. FileNotFoundError: the data set is nowhere to be had.
        ValueError: no such split or column, pictures of several sizes, or entries that are no numbers.
    """

    def events(part: str):
        return _events(_rows(name, part, configuration), name, column, side, num_events, dtype)

    train, truth = events(split), None
    if held_out is not None:
        reference = events(held_out)
        truth = Truth(reference=reference, source=f"{len(reference)} events of the split '{held_out}', never in `data`")
    return Target.from_data(train, name=_title(name), truth=truth)


def hugging_face_labelled(
    name: Any,
    split: str = "train",
    *,
    column: str = "image",
    label: str = "label",
    configuration: str | None = None,
    side: int | None = None,
    num_events: int | None = None,
    dtype: Any = None,
) -> tuple[Any, Any]:
    """The events of one split with their labels, in the order of the target's data or truth.reference.

    Args:
        label: the column of integers. Others and errors: as for `hugging_face`.

    Returns:
        events [events, ...] and labels [events], int32.
    """
    rows = _rows(name, split, configuration)
    labels = np.asarray(_column(rows, name, label, num_events)[label])
    if labels.dtype.kind not in "iub" or labels.ndim != 1:
        raise ValueError(f"column '{label}' of {_title(name)} holds {labels.dtype}{list(labels.shape[1:])}; expected integers")
    return _events(rows, name, column, side, num_events, dtype), jnp.asarray(labels, jnp.int32)


def _rows(name: Any, split: str, configuration: str | None) -> Any:
    """One split of a data set, as a `datasets.Dataset`."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "hugging_face needs the library datasets; install it with: pip install 'gensamp[hugging_face]'"
        ) from error
    if isinstance(name, datasets.Dataset):
        name = datasets.DatasetDict({str(name.split or "train"): name})
    if not isinstance(name, datasets.DatasetDict):
        name = _read(datasets, str(name), configuration)
    if split not in name:
        raise ValueError(
            f"hugging_face got split '{split}' of {_title(name)}, which has {', '.join(map(str, name))}; expected one of "
            "those, or held_out=None where there is nothing to hold out"
        )
    return name[split]


def _read(datasets: Any, name: str, configuration: str | None) -> Any:
    """A data set of that name, all splits of it, from a folder or from the hub."""
    folders = [Path(os.environ.get("GENSAMP_DATA", ""), name), Path(name)]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    try:
        if folder is None:
            return datasets.load_dataset(name, configuration)
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        where = "could not be had from the hub" if folder is None else f"in {folder} could not be read"
        raise FileNotFoundError(
            f"the data set {name} {where} ({reason}); check its name and the network, or set GENSAMP_DATA to a folder where "
            f"save_to_disk wrote it as {name}"
        ) from error
    return found if isinstance(found, datasets.DatasetDict) else datasets.DatasetDict({str(found.split or "train"): found})


def _column(rows: Any, name: Any, column: str, num_events: int | None) -> Any:
    if column not in rows.column_names:
        raise ValueError(
            f"hugging_face got column '{column}' of {_title(name)}; expected one of {', '.join(rows.column_names)}"
        )
    if num_events is not None and num_events < 1:
        raise ValueError(f"hugging_face got num_events={num_events}; expected a positive number")
    return rows.select_columns(column).select(range(min(len(rows), num_events or len(rows))))


def _events(rows: Any, name: Any, column: str, side: int | None, num_events: int | None, dtype: Any) -> Any:
    """Events of one column [events, ...]."""
    import datasets

    rows = _column(rows, name, column, num_events)
    if isinstance(rows.features[column], datasets.Image):
        return scaled(_pictures(rows, name, column, side), dtype)
    values = rows.with_format("numpy")[:][column]
    if values.dtype.kind not in "fiub":
        raise ValueError(
            f"column '{column}' of {_title(name)} holds no numbers, or arrays of several shapes; expected pictures, or "
            "numbers or arrays of one shape"
        )
    return jnp.asarray(values, float_dtype(dtype))


def _pictures(rows: Any, name: Any, column: str, side: int | None) -> np.ndarray:
    """Pixels [events, height, width, channels], uint8; one channel where all pictures are grey."""
    if side is not None and side < 1:
        raise ValueError(f"hugging_face got side={side}; expected a positive number of pixels")
    pictures = (_square(row[column], side) for row in rows)
    arrays = [np.asarray(picture.convert("L" if picture.mode in ("1", "L") else "RGB")) for picture in pictures]
    if len({array.ndim for array in arrays}) == 2:
        arrays = [array if array.ndim == 3 else np.repeat(array[..., None], 3, 2) for array in arrays]
    shapes = {array.shape for array in arrays}
    if len(shapes) != 1:
        raise ValueError(
            f"pictures of {_title(name)} have {len(shapes)} sizes, such as {sorted(shapes)[:2]}; expected one: give side="
        )
    stacked = np.stack(arrays)
    return stacked if stacked.ndim == 4 else stacked[..., None]


def _square(picture: Any, side: int | None) -> Any:
    if side is None:
        return picture
    from PIL import Image

    if picture.mode not in ("L", "RGB"):
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    width, height = picture.size
    edge = min(width, height)
    left, top = (width - edge) // 2, (height - edge) // 2
    return picture.crop((left, top, left + edge, top + edge)).resize((side, side), Image.Resampling.BOX)


def _title(name: Any) -> str:
    return str(name) if isinstance(name, str | Path) else "the data set"
