"""Sets of images as targets: MNIST, the Olivetti faces, CIFAR-10, CelebA; pixels scaled to [-1, 1].

Each loader looks in the folder that GENSAMP_DATA names, `mnist/`, `olivetti/`, `cifar10/`, `celeba/`, for the files as they are
published; what is not there is downloaded from its public source, with a progress bar in a terminal, and kept in the user's
cache. Either way the content is compared with a checksum, and nothing in a file is ever executed: CIFAR-10 is read from its
binary form, not from its pickles.

As for `digits`, `data` is what a model may learn from and `truth.reference` holds events that no model has seen, in a split
that is the same on every machine: the publisher's own, except for the faces, of which every tenth is held out. Pixels take 256
equally spaced values, so a density needs noise of one cell, 2/255, first.
"""

import gzip
import hashlib
import io
import os
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from gensamp.core import Target, Truth
from gensamp.targets.mixture import float_dtype

__all__ = ["celeba", "cifar10", "images_labelled", "mnist", "olivetti", "scaled"]


def mnist(*, dtype: Any = None) -> Target:
    """Handwritten digits, [28, 28, 1]: 60,000 to learn from and 10,000 held out.

    Args:
        dtype: of events; jax's default float if None.

    Raises:
        FileNotFoundError: a file is neither in GENSAMP_DATA nor to be had. ValueError: it is there and not what it should be.

    Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits".
    """
    return _target("mnist", dtype)


def olivetti(*, dtype: Any = None) -> Target:
    """Faces of 40 people, [64, 64, 1]: 360 to learn from, and one of the ten pictures of each person held out.

    Arguments and errors as for `mnist`.

    Source: AT&T Laboratories Cambridge, "The database of faces", in Roweis's 64 x 64 copy.
    """
    return _target("olivetti", dtype)


def cifar10(*, dtype: Any = None) -> Target:
    """Small photographs of ten classes, [32, 32, 3]: 50,000 to learn from and 10,000 held out.

    Arguments and errors as for `mnist`.

    Source: Krizhevsky 2009, "Learning multiple layers of features from tiny images".
    """
    return _target("cifar10", dtype)


def celeba(*, side: int = 64, num_events: int | None = None, dtype: Any = None) -> Target:
    """Faces of celebrities, [side, side, 3]: up to 162,770 to learn from and up to 19,962 held out.

    The middle 148 x 148 pixels of the aligned pictures, averaged down. At side 64 all of them are 8 GB in float32.

    Args:
        side: of the pictures. num_events: the first so many of either part; None: all. dtype: of events.

    Raises:
        ValueError: side or num_events is not positive; else as for `mnist`.

    Source: Liu, Luo, Wang and Tang 2015, "Deep learning face attributes in the wild"; for research without commerce.
    """
    if side < 1 or (num_events is not None and num_events < 1):
        raise ValueError(f"celeba got side={side}, num_events={num_events}; expected positive numbers")
    archive = _read("celeba", "img_align_celeba.zip")
    parts = {part: _celeba_part(archive, span, side, num_events) for part, span in _CELEBA_PARTS.items()}
    return _as_target("celeba", parts["train"], parts["held_out"], dtype)


def images_labelled(name: str, split: str = "train", *, dtype: Any = None) -> tuple[Any, Any]:
    """The images of one split with their labels, in the order of the target's data or truth.reference.

    Args:
        name: "mnist", "olivetti" (labels are the 40 people) or "cifar10". split: "train" or "held_out".
        dtype: of the images; jax's default float if None.

    Returns:
        images [events, height, width, channels] in [-1, 1] and labels [events], int32 from 0.

    Raises:
        ValueError: an unknown name or split; else as for `mnist`.
    """
    if name not in _READERS or split not in ("train", "held_out"):
        raise ValueError(
            f"images_labelled got {name!r} and split={split!r}; expected one of {', '.join(_READERS)}, and train or held_out"
        )
    pixels, labels = _READERS[name](split)
    return scaled(pixels, dtype), jnp.asarray(labels, jnp.int32)


def _target(name: str, dtype: Any) -> Target:
    train, held_out = (_READERS[name](split)[0] for split in ("train", "held_out"))
    return _as_target(name, train, held_out, dtype)


def _as_target(name: str, train: np.ndarray, held_out: np.ndarray, dtype: Any) -> Target:
    truth = Truth(reference=scaled(held_out, dtype), source=f"{len(held_out)} held-out images, never in `data`")
    return Target.from_data(scaled(train, dtype), name=name, truth=truth)


def scaled(pixels: np.ndarray, dtype: Any):
    """Pixels 0 to 255 as numbers in [-1, 1]."""
    dtype = float_dtype(dtype)
    return jnp.asarray(pixels, dtype) / jnp.asarray(127.5, dtype) - 1


def _mnist(split: str) -> tuple[np.ndarray, np.ndarray]:
    part = {"train": "train", "held_out": "t10k"}[split]
    images = np.frombuffer(_read("mnist", f"{part}-images-idx3-ubyte.gz"), np.uint8, offset=16).reshape(-1, 28, 28, 1)
    return images, np.frombuffer(_read("mnist", f"{part}-labels-idx1-ubyte.gz"), np.uint8, offset=8)


def _olivetti(split: str) -> tuple[np.ndarray, np.ndarray]:
    from scipy.io import loadmat

    stored = loadmat(io.BytesIO(_read("olivetti", "olivetti.mat")))
    # Two copies are about: one row per face, or, from the public source, one column.
    faces = stored["X"] if "X" in stored else stored["faces"].T
    # Pixels stand column by column.
    faces = faces.reshape(400, 64, 64).transpose(0, 2, 1)[..., None]
    held_out = np.arange(400) % 10 == 9
    chosen = held_out if split == "held_out" else ~held_out
    return faces[chosen], (np.arange(400) // 10)[chosen]


def _cifar10(split: str) -> tuple[np.ndarray, np.ndarray]:
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if split == "train" else ["test_batch.bin"]
    with tarfile.open(fileobj=io.BytesIO(_read("cifar10", "cifar-10-binary.tar.gz"))) as archive:
        parts = [_member(archive, f"cifar-10-batches-bin/{name}") for name in names]
    rows = np.concatenate([np.frombuffer(part, np.uint8).reshape(-1, 3073) for part in parts])
    return rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0]


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None, name
    return file.read()


def _celeba_part(archive: bytes, span: tuple[int, int], side: int, num_events: int | None) -> np.ndarray:
    from PIL import Image

    first, last = span
    last = last if num_events is None else min(last, first + num_events - 1)
    out = np.empty((last - first + 1, side, side, 3), np.uint8)
    with zipfile.ZipFile(io.BytesIO(archive)) as pictures:
        for row, number in enumerate(range(first, last + 1)):
            with pictures.open(f"img_align_celeba/{number:06d}.jpg") as file:
                # 178 x 218, the face in the middle.
                face = Image.open(file).crop((15, 35, 163, 183))
                out[row] = np.asarray(face.resize((side, side), Image.Resampling.BOX))
    return out


def _read(folder: str, file: str) -> bytes:
    """The content of a file of a set, unpacked if it ends in .gz and is no archive, once its checksum is found right."""
    path = Path(os.environ.get("GENSAMP_DATA", ""), folder, file)
    if not path.is_file():
        path = _download(folder, file, path)
    content = path.read_bytes()
    if file.endswith("-ubyte.gz"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is no gzip file ({error}); delete it, and it is downloaded again") from error
    method, allowed = _CONTENTS[f"{folder}/{file}"]
    found = hashlib.new(method, content, usedforsecurity=False).hexdigest()
    if found not in allowed:
        raise ValueError(
            f"{path} is corrupt or another file: the {method} of its content is {found}, expected {' or '.join(allowed)}; "
            "delete it, and it is downloaded again"
        )
    return content


def _download(folder: str, file: str, looked_at: Path) -> Path:
    import pooch

    url, digest = _SOURCES[f"{folder}/{file}"]
    cache = Path(pooch.os_cache("gensamp"), folder)
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=60)
    try:
        return Path(pooch.retrieve(url, digest, file, cache, downloader=downloader))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{file} is not at {looked_at}, and the download failed ({error}); set GENSAMP_DATA to a folder that has it as "
            f"{folder}/{file}"
        ) from error


_READERS = {"mnist": _mnist, "olivetti": _olivetti, "cifar10": _cifar10}
# The publisher's split by the numbers of the pictures; 162,771 to 182,637, his validation set, is left out.
_CELEBA_PARTS = {"train": (1, 162_770), "held_out": (182_638, 202_599)}

_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_CELEBA = "https://drive.usercontent.google.com/download?id=0B7EVK8r0v71pZjFTYXZWM3FlRnM&export=download&confirm=t"
# fmt: off
_SOURCES = {  # where a file comes from, and the checksum of what arrives
    "mnist/train-images-idx3-ubyte.gz": (
        f"{_MNIST}train-images-idx3-ubyte.gz", "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
    "mnist/train-labels-idx1-ubyte.gz": (
        f"{_MNIST}train-labels-idx1-ubyte.gz", "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    "mnist/t10k-images-idx3-ubyte.gz": (
        f"{_MNIST}t10k-images-idx3-ubyte.gz", "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
    "mnist/t10k-labels-idx1-ubyte.gz": (
        f"{_MNIST}t10k-labels-idx1-ubyte.gz", "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    "olivetti/olivetti.mat": (
        "https://ndownloader.figshare.com/files/5976027", "b612fb967f2dc77c9c62d3e1266e0c73d5fca46a4b8906c18e454d41af987794"),
    "cifar10/cifar-10-binary.tar.gz": (
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
    "celeba/img_align_celeba.zip": (_CELEBA, "md5:00d2c5bc6d35e252742224ab0c1e8fcb"),
}
_CONTENTS = {  # checksums of what is read: of idx files unpacked, since the same file may be compressed in many ways
    "mnist/train-images-idx3-ubyte.gz": (
        "sha256", ("ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",)),
    "mnist/train-labels-idx1-ubyte.gz": (
        "sha256", ("65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",)),
    "mnist/t10k-images-idx3-ubyte.gz": (
        "sha256", ("0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",)),
    "mnist/t10k-labels-idx1-ubyte.gz": (
        "sha256", ("ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",)),
    "olivetti/olivetti.mat": (
        "sha256", ("b612fb967f2dc77c9c62d3e1266e0c73d5fca46a4b8906c18e454d41af987794",
                   "9d5db3f38be1b08d9484ec501a11c940a21d11b394b05d1a75bd58dc5a5805e9")),
    "cifar10/cifar-10-binary.tar.gz": ("sha256", ("c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",)),
    "celeba/img_align_celeba.zip": ("md5", ("00d2c5bc6d35e252742224ab0c1e8fcb",)),
}
# fmt: on
