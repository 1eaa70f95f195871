"""Data sets of the library `datasets`: made in memory and written to a folder, never fetched."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest

from gensamp.targets.hugging_face import hugging_face, hugging_face_labelled

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), np.uint8)


@pytest.fixture(scope="module")
def datasets():
    return pytest.importorskip("datasets", reason="the extra hugging_face is not installed")


def picture_set(datasets, pixels=PIXELS, **more):
    from PIL import Image

    pictures = [Image.fromarray(picture) for picture in pixels]
    columns = {"image": pictures, "label": [i % 3 for i in range(len(pictures))], "vector": [[1.0 * i, 2.0] for i in range(6)]}
    features = {"image": datasets.Image(), "label": datasets.Value("int64")}
    features |= {"vector": datasets.Sequence(datasets.Value("float64")), **more.get("features", {})}
    return datasets.Dataset.from_dict(columns | more.get("columns", {}), features=datasets.Features(features))


@pytest.fixture(scope="module")
def both(datasets):
    whole = picture_set(datasets)
    return datasets.DatasetDict(train=whole.select(range(4)), test=whole.select(range(4, 6)))


def test_pictures_become_events_in_the_form_of_the_other_loaders(both):
    target = hugging_face(both)
    assert target.data.shape == (4, 5, 4, 3) and target.truth.reference.shape == (2, 5, 4, 3)
    assert target.data.dtype == jnp.float32 and target.log_density is None
    np.testing.assert_allclose(target.data, PIXELS[:4] / 127.5 - 1, atol=1e-6)
    events, labels = hugging_face_labelled(both, "test")
    np.testing.assert_array_equal(events, target.truth.reference)
    assert labels.tolist() == [1, 2] and labels.dtype == jnp.int32
    assert hugging_face(both, num_events=3).data.shape == (3, 5, 4, 3)


def test_columns_of_numbers_stay_as_they_are(both):
    target = hugging_face(both, column="vector")
    np.testing.assert_array_equal(target.data, [[0, 2], [1, 2], [2, 2], [3, 2]])
    assert target.truth.reference.shape == (2, 2)


def test_a_folder_is_read_and_gensamp_data_is_looked_in_first(both, datasets, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "load_dataset", lambda *given: pytest.fail("the hub was asked"))
    both.save_to_disk(str(tmp_path / "sets" / "made"))
    both["train"].save_to_disk(str(tmp_path / "alone"))
    np.testing.assert_array_equal(hugging_face(str(tmp_path / "sets" / "made")).data, hugging_face(both).data)
    alone = hugging_face(str(tmp_path / "alone"), held_out=None)
    assert alone.truth is None and alone.data.shape == (4, 5, 4, 3)
    monkeypatch.setenv("GENSAMP_DATA", str(tmp_path / "sets"))
    assert hugging_face("made").data.shape == (4, 5, 4, 3) and hugging_face("made").name == "made"


def test_the_hub_is_asked_for_a_name_and_its_configuration(both, datasets, monkeypatch):
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *given: asked.append(given) or both)
    assert hugging_face("somebody/something", configuration="small").data.shape == (4, 5, 4, 3)
    assert set(asked) == {("somebody/something", "small")}


def test_pictures_are_cut_to_one_size_and_to_three_channels_where_one_has_colour(datasets):
    grey, wide = PIXELS[0][..., 0], np.repeat(PIXELS[1], 2, axis=1)
    mixed = picture_set(datasets, [grey, wide, PIXELS[2], PIXELS[3], PIXELS[4], PIXELS[5]])
    with pytest.raises(ValueError, match=r"have 2 sizes, such as \[\(5, 4, 3\), \(5, 8, 3\)\]; expected one: give side="):
        hugging_face(mixed, held_out=None)
    cut = hugging_face(mixed, held_out=None, side=2).data
    assert cut.shape == (6, 2, 2, 3)
    assert float(jnp.abs(cut[0, ..., 0] - cut[0, ..., 2]).max()) == 0
    assert hugging_face(picture_set(datasets, PIXELS[..., 0]), held_out=None).data.shape == (6, 5, 4, 1)


def test_what_cannot_be_read_is_said_in_a_sentence(both, datasets, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="split 'validation' of the data set, which has train, test; expected one of those"):
        hugging_face(both, held_out="validation")
    with pytest.raises(ValueError, match="column 'picture' of the data set; expected one of image, label, vector"):
        hugging_face(both, column="picture")
    with pytest.raises(ValueError, match="num_events=0"):
        hugging_face(both, num_events=0)
    with pytest.raises(ValueError, match="side=0"):
        hugging_face(both, side=0)
    with pytest.raises(ValueError, match=r"column 'vector' of the data set holds float64\[2\]; expected integers"):
        hugging_face_labelled(both, label="vector")
    ragged = datasets.Dataset.from_dict({"image": [[1.0], [1.0, 2.0]]})
    words = datasets.Dataset.from_dict({"image": ["one", "two"]})
    for rows in (ragged, words):
        with pytest.raises(ValueError, match="holds no numbers, or arrays of several shapes"):
            hugging_face(rows, held_out=None)

    def refuse(*given):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(FileNotFoundError, match=r"a/b could not be had from the hub \(no network\); check its name"):
        hugging_face("a/b")


@pytest.mark.parametrize("damage", ["truncated", "no index", "no folder of a data set"])
def test_a_corrupt_folder_is_named_with_what_to_do(damage, both, tmp_path):
    folder = tmp_path / "made"
    both.save_to_disk(str(folder))
    arrow = next((folder / "train").glob("*.arrow"))
    if damage == "truncated":
        arrow.write_bytes(arrow.read_bytes()[:200])
    elif damage == "no index":
        (folder / "train" / "state.json").write_text("{")
    else:
        folder = tmp_path / "empty"
        folder.mkdir()
    with pytest.raises(FileNotFoundError, match=rf"in {folder} could not be read .* save_to_disk"):
        hugging_face(str(folder))


def test_without_the_extra_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'gensamp\[hugging_face\]'"):
        hugging_face("a/b")
