"""Folders that `save_to_disk` of Hugging Face's `datasets` wrote."""

import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from jaxadv.core.types import UserError
from jaxadv.data import huggingface, in_memory, load

datasets = pytest.importorskip("datasets")

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 5, 4, 3), dtype=np.uint8)
LABELS = np.arange(12) // 6
FEATURES = {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def make_split(rows=slice(None), pixels=PIXELS, labels=None, **features):
    columns = {
        "picture": [Image.fromarray(image) for image in pixels[rows]],
        "kind": labels or LABELS[rows].tolist(),
    }
    return datasets.Dataset.from_dict(columns, datasets.Features(FEATURES | features))


def load_saved(tmp_path, saved, **options):
    saved.save_to_disk(str(tmp_path / "pets"))
    return load(f"huggingface:{tmp_path / 'pets'}", validation_fraction=0.25, **options)


@pytest.mark.parametrize("test_name", ["test", "validation"])
def test_a_saved_dictionary_of_splits_is_read(tmp_path, test_name):
    splits = {"train": make_split(slice(0, 8)), test_name: make_split(slice(8, 12))}
    dataset = load_saved(tmp_path, datasets.DatasetDict(splits))
    assert (dataset.name, dataset.source) == ("pets", "huggingface")
    assert dataset.class_names == ("cat", "dog")
    assert [len(split.labels) for split in dataset[2:5]] == [6, 2, 4]
    test = {image.tobytes() for image in dataset.test.images}
    assert test == {image.tobytes() for image in PIXELS[8:]}
    for images, labels in dataset[2:5]:
        for image, label in zip(images, labels, strict=True):
            (row,) = np.flatnonzero((image == PIXELS).all(axis=(1, 2, 3)))
            assert label == LABELS[row]


def test_a_saved_split_is_divided_and_streamed(tmp_path):
    decoded = load_saved(tmp_path, make_split(), test_fraction=0.5)
    path = f"huggingface:{tmp_path / 'pets'}"
    streamed = load(path, validation_fraction=0.25, test_fraction=0.5, streaming=True)
    for first, second in zip(decoded[2:5], streamed[2:5], strict=True):
        copy = in_memory(pickle.loads(pickle.dumps(second)))
        np.testing.assert_array_equal(copy.images, first.images)
        np.testing.assert_array_equal(copy.labels, first.labels)


def test_a_second_load_reads_the_cache(tmp_path, monkeypatch):
    first = load_saved(tmp_path, make_split())
    monkeypatch.setattr(huggingface.HuggingFaceImages, "read", None)
    second = load(f"huggingface:{tmp_path / 'pets'}", validation_fraction=0.25)
    np.testing.assert_array_equal(first.train.images, second.train.images)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("missing", [-1, None])
def test_test_splits_without_labels_are_not_used(tmp_path, capsys, missing, streaming):
    unlabelled = make_split(slice(8, 12), labels=[missing] * 4)
    splits = {"train": make_split(slice(0, 8)), "test": unlabelled}
    saved = datasets.DatasetDict(splits, validation=make_split(slice(4, 12)))
    dataset = load_saved(tmp_path / "first", saved, streaming=streaming)
    assert sorted(dataset.test.labels) == [0, 0, *[1] * 6]
    line = "The split test of pets has no labels: the split validation is the test split"
    assert capsys.readouterr().out == f"{line}\n"
    dataset = load_saved(tmp_path, datasets.DatasetDict(splits), streaming=streaming)
    assert [len(split.labels) for split in dataset[2:5]] == [4, 2, 2]
    assert "a share of the train split is the test split" in capsys.readouterr().out


@pytest.mark.parametrize("streaming", [False, True])
def test_a_missing_label_is_reported(tmp_path, streaming):
    saved = make_split(labels=[None, *LABELS[1:].tolist()])
    with pytest.raises(UserError, match="the train split of pets has labels from -1 to 1"):
        load_saved(tmp_path, saved, streaming=streaming)


def test_a_damaged_description_is_reported(tmp_path):
    load_saved(tmp_path, make_split())
    (tmp_path / "pets" / "dataset_info.json").write_text("[]")
    huggingface._saved.cache_clear()
    with pytest.raises(UserError, match=r"^cannot read [^\n]*pets \(.*\): pass a folder written"):
        load(f"huggingface:{tmp_path / 'pets'}", validation_fraction=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: datasets.DatasetDict(test=make_split()), "has the splits test: it needs"),
        (lambda: make_split(kind=datasets.Value("int64")), "kind: Value: it needs one ClassL"),
        (lambda: make_split().remove_columns("picture"), "features kind: ClassLabel: it needs"),
        (
            lambda: datasets.DatasetDict(
                train=make_split(),
                test=make_split(kind=datasets.ClassLabel(names=["dog", "cat"])),
            ),
            "another feature kind in test than in train",
        ),
        (lambda: make_split(pixels=[*PIXELS[:11], PIXELS[11, :4]]), "image 0 of .*has 5 x 4 "),
    ],
)
def test_what_is_wrong_is_reported_in_one_line(tmp_path, make, message):
    with pytest.raises(UserError, match=message) as error:
        load_saved(tmp_path, make())
    assert "\n" not in str(error.value)


def test_other_folders_and_a_missing_library_are_reported(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"other .*: pass a folder written by save_to_disk"):
        load(f"huggingface:{tmp_path / 'other'}", validation_fraction=0.1)
    with pytest.raises(UserError, match="nowhere, which is not a folder"):
        load(f"huggingface:{tmp_path / 'nowhere'}", validation_fraction=0.1)
    (tmp_path / "third").mkdir()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="needs the library datasets: `pip install datasets`"):
        load(f"huggingface:{tmp_path / 'third'}", validation_fraction=0.1)
