"""Directories of TFDS: versions, configs, features, and streaming."""

import io
import json
import pickle
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from jaxadv.core.types import UserError
from jaxadv.data import in_memory, is_prepared, load, preparation, tfds


def load_named(name, data_dir, **options):
    return load(name, data_dir=str(data_dir), validation_fraction=0.25, **options)


@pytest.fixture
def copy(data_dir):
    """Return a function that copies the directory of CIFAR-10 under another name."""

    def copy_to(name: str, change=lambda info, features: None):
        folder = data_dir / name
        shutil.copytree(data_dir / "cifar10" / "3.0.2", folder)
        contents = [json.loads((folder / f).read_text()) for f in FILES]
        contents[0]["version"] = folder.name
        change(contents[0], contents[1]["featuresDict"]["features"])
        for file, content in zip(FILES, contents, strict=True):
            (folder / file).write_text(json.dumps(content))
        return folder

    return copy_to


FILES = ("dataset_info.json", "features.json")


def test_the_newest_version_is_read_unless_one_is_named(data_dir, copy):
    for version in ("1.0.0", "1.10.0", "1.9.0"):
        copy(f"scans/{version}")
    (data_dir / "scans" / "2.0.0.incompleteABC").mkdir()
    (data_dir / "scans" / "2.0.0").mkdir()  # without dataset_info.json
    dataset = load_named("scans", data_dir)
    assert (dataset.name, dataset.source, dataset.version) == ("scans", "scans", "1.10.0")
    assert load_named("scans:1.9.0", data_dir).version == "1.9.0"
    assert load_named("scans:1.9.0", data_dir).source == "scans"
    with pytest.raises(UserError, match=r"^scans is not prepared in .*"):
        load_named("scans:1.2.0", data_dir)


def test_a_config_is_found_and_several_are_named(data_dir, copy):
    copy("scans/small/1.0.0")
    assert load_named("scans", data_dir).version == "1.0.0"
    assert is_prepared("scans", str(data_dir))
    assert is_prepared("scans/small:1.0.0", str(data_dir))
    assert not is_prepared("scans/large", str(data_dir))
    copy("scans/large/2.0.0")
    assert load_named("scans/small", data_dir).name == "scans/small"
    with pytest.raises(UserError, match="has the configs large, small: name one, as in scans"):
        load_named("scans", data_dir)


def test_sources_other_than_tfds_need_no_preparation(tmp_path):
    assert is_prepared("digits", None)
    assert is_prepared("folder:x", None)
    assert not is_prepared("cifar10", None)
    assert not is_prepared("cifar10", str(tmp_path))


def test_the_features_are_found_without_supervised_keys(data_dir, copy):
    copy("scans/1.0.0", lambda info, features: info.pop("supervisedKeys"))
    expected, found = load_named("cifar10", data_dir), load_named("scans", data_dir)
    np.testing.assert_array_equal(found.train.images, expected.train.images)
    np.testing.assert_array_equal(found.train.labels, expected.train.labels)


def test_validation_and_a_share_of_train_serve_as_test_split(data_dir, copy):
    def rename(info, features):
        info["splits"][1]["name"] = "validation"

    folder = copy("scans/1.0.0", rename)
    (file,) = folder.glob("cifar10-test.*")
    file.rename(folder / file.name.replace("test", "validation"))
    expected = load_named("cifar10", data_dir)
    np.testing.assert_array_equal(load_named("scans", data_dir).test.images, expected.test.images)

    copy("parts/1.0.0", lambda info, features: info["splits"].pop(1))
    dataset = load_named("parts", data_dir, test_fraction=0.4)
    assert [len(split.labels) for split in dataset[2:5]] == [9, 3, 8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda info, features: info["splits"].pop(0),
            "has the splits test: use a data set with",
        ),
        (
            lambda info, features: features["image"]["image"].update(dtype="uint16"),
            "has images of type uint16 with 3 channels",
        ),
        (
            lambda info, features: (info.pop("supervisedKeys"), features.pop("label")),
            "has 0 features with a class label: use a data set for image classification",
        ),
        (
            lambda info, features: features["image"]["image"]["shape"].update(
                dimensions=["-1", "-1", "3"]
            ),
            "has images of several sizes: set config.data.size",
        ),
    ],
)
def test_unsuitable_data_sets_are_reported(data_dir, copy, change, message):
    copy("scans/1.0.0", change)
    with pytest.raises(UserError, match=message) as error:
        load_named("scans", data_dir)
    assert "\n" not in str(error.value)


def test_streamed_images_are_those_in_memory(data_dir, monkeypatch):
    decoded = load_named("cifar10", data_dir)
    for folder in (data_dir / "cifar10" / "3.0.2").glob("jaxadv-cache-*"):
        folder.unlink()
    streamed = load_named("cifar10", data_dir, streaming=True)
    for first, second in zip(decoded[2:5], streamed[2:5], strict=True):
        restored = pickle.loads(pickle.dumps(second))
        np.testing.assert_array_equal(restored.labels, first.labels)
        np.testing.assert_array_equal(in_memory(restored).images, first.images)
        rows = np.array([2, 0, 2])
        np.testing.assert_array_equal(restored.take(rows), first.images[rows])
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    again = load_named("cifar10", data_dir, streaming=True)  # labels are cached
    np.testing.assert_array_equal(again.train.labels, decoded.train.labels)


@pytest.fixture
def prepare(archive, monkeypatch):
    """Return a function that changes the splits of CIFAR-10 and prepares them."""

    def prepare_changed(change):
        recipe = preparation.RECIPES["cifar10"]

        def generate(*arguments):
            splits = {name: [*split] for name, split in recipe.generate(*arguments).items()}
            change(splits)
            return {name: iter(split) for name, split in splits.items()}

        monkeypatch.setitem(preparation.RECIPES, "cifar10", recipe._replace(generate=generate))
        preparation.prepare("cifar10", "", "", archive.parents[2])
        return archive.parents[2]

    return prepare_changed


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("validation", [False, True])
def test_a_test_split_without_labels_is_not_used(prepare, capsys, validation, streaming):
    def remove_labels(splits):
        if validation:
            splits["validation"] = splits["test"][:3]
        splits["test"] = [(key, example | {"label": -1}) for key, example in splits["test"]]

    data_dir = prepare(remove_labels)
    dataset = load_named("cifar10", data_dir, streaming=streaming, test_fraction=0.2)
    sizes = [15, 5, 3] if validation else [12, 4, 4]
    assert [len(split.labels) for split in dataset[2:5]] == sizes
    name = "the split validation" if validation else "a share of the train split"
    message = f"The split test of CIFAR-10 has no labels: {name} is the test split"
    assert message in capsys.readouterr().out.splitlines()
    again = load_named("cifar10", data_dir, streaming=streaming, test_fraction=0.2)
    np.testing.assert_array_equal(again.test.labels, dataset.test.labels)


@pytest.mark.parametrize("length", [0, 500])
def test_a_damaged_image_is_named(prepare, length):
    def damage(splits):
        buffer = io.BytesIO()
        splits["train"][3][1]["image"].save(buffer, format="png")
        splits["train"][3][1]["image"] = buffer.getvalue()[:length]

    data_dir = prepare(damage)
    message = (
        r"^cannot read image \d+ of the split train in [^\n]*3\.0\.2 as an image \([^\n]*\): "
        r"delete [^\n]*3\.0\.2 to prepare it again, or set [^\n]*$"
    )
    with pytest.raises(UserError, match=message):
        load_named("cifar10", data_dir)


def test_an_image_of_too_many_pixels_is_named(data_dir, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(UserError, match=r"^cannot read image 0 of the split test .*exceeds limit"):
        load_named("cifar10", data_dir)


def test_an_error_without_a_text_is_reported_by_its_type(data_dir, monkeypatch):
    def fail(*_):
        raise RuntimeError

    monkeypatch.setattr(tfds, "_image_and_label", fail)
    with pytest.raises(UserError, match=r"^cannot read [^\n]*3\.0\.2 \(RuntimeError\): delete"):
        load_named("cifar10", data_dir)


def test_images_are_resized_and_converted(data_dir):
    decoded = load_named("cifar10", data_dir, size=16, channels=1)
    assert decoded.train.images.shape == (15, 16, 16, 1)
    assert load_named("cifar10", data_dir).train.images.shape == (15, 32, 32, 3)
    streamed = load_named("cifar10", data_dir, size=16, channels=1, streaming=True)
    np.testing.assert_array_equal(in_memory(streamed.train).images, decoded.train.images)


def test_tfrecords_cannot_be_streamed(data_dir, copy):
    copy("scans/1.0.0", lambda info, features: info.update(fileFormat="tfrecord"))
    with pytest.raises(UserError, match="cannot be streamed: prepare it as array_record"):
        load_named("scans", data_dir, streaming=True)
