"""Sets of images: what the published files hold, and the sentence for a file that is missing or is not what it should be.

The real files are read where GENSAMP_DATA has them. Archives made here stand for those it has not.
"""

import gzip
import hashlib
import io
import os
import tarfile
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from gensamp.targets import images
from gensamp.targets.images import celeba, cifar10, images_labelled, mnist, olivetti

DATA = Path(os.environ.get("GENSAMP_DATA", ""))


def needs(*files):
    """Skips unless GENSAMP_DATA has these files."""
    missing = [file for file in files if not (DATA / file).is_file()]
    return pytest.mark.skipif(bool(missing), reason=f"GENSAMP_DATA has no {', '.join(missing)}")


MNIST_FILES = [f"mnist/{part}" for part in (
    "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz",
)]  # fmt: skip


@needs(*MNIST_FILES)
def test_mnist_is_ten_digits_in_black_and_white():
    target = mnist()
    assert target.data.shape == (60_000, 28, 28, 1) and target.truth.reference.shape == (10_000, 28, 28, 1)
    assert target.data.dtype == jnp.float32 and (target.data.min(), target.data.max()) == (-1, 1)
    assert len(np.unique(np.asarray(target.data[:2000]))) <= 256
    # Published: mean .1307 and standard deviation .3081 of pixels in [0, 1].
    pixels = np.asarray(target.data) / 2 + 0.5
    assert pixels.mean() == pytest.approx(0.1307, abs=1e-4) and pixels.std() == pytest.approx(0.3081, abs=1e-4)
    held_out, labels = images_labelled("mnist", "held_out")
    np.testing.assert_array_equal(held_out, target.truth.reference)
    assert labels[:5].tolist() == [7, 2, 1, 0, 4] and np.bincount(labels).tolist()[:2] == [980, 1135]


@needs("olivetti/olivetti.mat")
def test_olivetti_faces_stand_upright_and_are_held_out_person_by_person():
    target = olivetti()
    assert target.data.shape == (360, 64, 64, 1) and target.truth.reference.shape == (40, 64, 64, 1)
    faces, people = images_labelled("olivetti")
    assert np.bincount(people).tolist() == [9] * 40
    assert images_labelled("olivetti", "held_out")[1].tolist() == list(range(40))
    average = np.asarray(faces).mean(0)[..., 0]
    # Upright, the average face mirrors itself left to right and not top to bottom.
    sideways, upside_down = (np.abs(average - np.flip(average, axis)).mean() for axis in (1, 0))
    assert sideways < 0.5 * upside_down
    # A person looks like himself: the nearest other picture is his own for most.
    flat = np.asarray(faces).reshape(360, -1)
    size = (flat**2).sum(-1)
    gaps = size[:, None] + size[None] - 2 * flat @ flat.T + 1e9 * np.eye(360)
    assert (np.asarray(people)[gaps.argmin(1)] == np.asarray(people)).mean() > 0.9


def publish(monkeypatch, folder, file, content):
    """Makes `content` the published content of a file under GENSAMP_DATA."""
    (folder / Path(file).parent).mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(content)
    monkeypatch.setenv("GENSAMP_DATA", str(folder))
    monkeypatch.setitem(images._CONTENTS, file, ("sha256", (hashlib.sha256(content).hexdigest(),)))


def test_cifar10_is_read_without_executing_anything(monkeypatch, tmp_path):
    random, stream, planes = np.random.default_rng(0), io.BytesIO(), []
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
            rows = random.integers(0, 256, (4, 3073), np.uint8)
            rows[:, 0] %= 10
            planes.append(rows)
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = rows.size
            archive.addfile(member, io.BytesIO(rows.tobytes()))
    publish(monkeypatch, tmp_path, "cifar10/cifar-10-binary.tar.gz", stream.getvalue())
    target = cifar10()
    assert target.data.shape == (20, 32, 32, 3) and target.truth.reference.shape == (4, 32, 32, 3)
    pictures, labels = images_labelled("cifar10", "held_out")
    assert labels.tolist() == planes[-1][:, 0].tolist()
    # Row by row, first all red values, then all green, then all blue.
    assert float(pictures[1, 2, 3, 2]) == pytest.approx(planes[-1][1, 1 + 2 * 1024 + 2 * 32 + 3] / 127.5 - 1, abs=1e-6)


def test_celeba_is_cropped_and_averaged_down(monkeypatch, tmp_path):
    from PIL import Image

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number in (1, 2, 3, 4):
            picture = np.zeros((218, 178, 3), np.uint8)
            # Red where the crop begins, green in the margins that it drops.
            picture[:, :, 1] = 255
            picture[35:183, 15:163] = (60 * number, 0, 0)
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "jpeg", quality=100, subsampling=0)
            archive.writestr(f"img_align_celeba/{number:06d}.jpg", file.getvalue())
    publish(monkeypatch, tmp_path, "celeba/img_align_celeba.zip", stream.getvalue())
    monkeypatch.setattr(images, "_CELEBA_PARTS", {"train": (1, 2), "held_out": (3, 4)})
    target = celeba(side=8)
    assert target.data.shape == (2, 8, 8, 3) and target.truth.reference.shape == (2, 8, 8, 3)
    inner = np.asarray(target.truth.reference)[:, 1:-1, 1:-1] * 127.5 + 127.5
    np.testing.assert_allclose(inner[..., 0].mean((1, 2)), [180, 240], atol=3)
    assert inner[..., 1].max() < 6
    assert celeba(side=4, num_events=1).data.shape == (1, 4, 4, 3)


def test_a_corrupt_file_is_named_with_what_to_do(monkeypatch, tmp_path):
    file = "mnist/t10k-labels-idx1-ubyte.gz"
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist/t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16 + 784)))
    monkeypatch.setenv("GENSAMP_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte.gz is corrupt or another file: the sha256 .* delete it"):
        images_labelled("mnist", "held_out")
    (tmp_path / file).write_bytes(b"not gzip at all")
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte.gz is no gzip file .* delete it"):
        images._read("mnist", "t10k-labels-idx1-ubyte.gz")
    whole = gzip.compress(np.random.default_rng(0).bytes(100))
    backwards = whole[:10] + whole[10:][::-1]
    for damaged in (whole[:-9], whole[:-20] + bytes(20), backwards, whole[:5], b""):
        (tmp_path / file).write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is no gzip file|is corrupt or another file"):
            images._read("mnist", "t10k-labels-idx1-ubyte.gz")


def test_a_download_that_breaks_off_or_brings_something_else_says_so(monkeypatch, tmp_path):
    import pooch

    served = tmp_path / "served.mat"
    served.write_bytes(b"<html>too many downloads</html>")
    monkeypatch.setenv("GENSAMP_DATA", str(tmp_path / "empty"))
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache")

    def bring(url, output_file, pooch_instance):
        Path(output_file).write_bytes(served.read_bytes())

    monkeypatch.setattr(pooch, "HTTPDownloader", lambda **options: bring)
    with pytest.raises(FileNotFoundError, match=r"the download failed \(.*hash.*; set GENSAMP_DATA"):
        olivetti()
    # Nothing of it stays in the cache, where it would be taken for the file.
    assert not (tmp_path / "cache" / "olivetti" / "olivetti.mat").exists()


@pytest.mark.parametrize("loader", [mnist, olivetti, cifar10, celeba])
def test_every_loader_without_a_network_says_where_to_put_its_file(loader, monkeypatch, tmp_path):
    import pooch

    def refuse(url, output_file, pooch_instance):
        raise ConnectionError("no network")

    monkeypatch.setenv("GENSAMP_DATA", str(tmp_path / "empty"))
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache")
    monkeypatch.setattr(pooch, "HTTPDownloader", lambda **options: refuse)
    with pytest.raises(FileNotFoundError, match=rf"\(no network\); set GENSAMP_DATA .* as {loader.__name__}/"):
        loader()


def test_a_missing_file_that_cannot_be_had_says_where_to_put_it(monkeypatch, tmp_path):
    import pooch

    def refuse(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setenv("GENSAMP_DATA", str(tmp_path))
    monkeypatch.setattr(pooch, "retrieve", refuse)
    with pytest.raises(FileNotFoundError, match=r"the download failed \(no network\); set GENSAMP_DATA .* as olivetti/oliv"):
        olivetti()


def test_a_download_is_asked_for_by_checksum(monkeypatch, tmp_path):
    import pooch

    asked = {}

    def retrieve(url, digest, name, folder, downloader):
        asked[name] = (url, digest)
        (tmp_path / name).write_bytes(b"something else")
        return str(tmp_path / name)

    monkeypatch.setenv("GENSAMP_DATA", str(tmp_path / "empty"))
    monkeypatch.setattr(pooch, "retrieve", retrieve)
    with pytest.raises(ValueError, match="corrupt or another file"):
        celeba()
    url, digest = asked["img_align_celeba.zip"]
    assert url.startswith("https://") and digest == "md5:00d2c5bc6d35e252742224ab0c1e8fcb"
    assert set(images._SOURCES) == set(images._CONTENTS)


def test_bad_input_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="expected one of mnist, olivetti, cifar10"):
        images_labelled("celeba")
    with pytest.raises(ValueError, match="side=0"):
        celeba(side=0)
