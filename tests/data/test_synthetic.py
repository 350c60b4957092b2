"""Files of synthetic images: both formats come back, and what is wrong with one is told."""

import json

import numpy as np
import pytest

from jaxadv.data.synthetic import ShardWriter, open_synthetic, pack
from jaxadv.types import UserError

SHAPE = (4, 4, 3)
GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (25, *SHAPE), dtype=np.uint8)
LABELS = GENERATOR.integers(0, 10, 25).astype(np.int32)


def same(opened):
    assert len(opened) == 25
    np.testing.assert_array_equal(opened.labels, LABELS)
    rows = np.array([24, 3, 3, 11, 0])
    np.testing.assert_array_equal(opened.take(rows), IMAGES[rows])
    assert opened.take(rows[:0]).shape == (0, *SHAPE)


@pytest.fixture
def shards(tmp_path):
    writer = ShardWriter(tmp_path / "made", shard_size=10)
    for start in range(0, 25, 7):
        writer.write(IMAGES[start : start + 7], LABELS[start : start + 7])
    writer.close(dataset="none")
    return tmp_path / "made"


def test_shards_come_back(shards):
    sizes = [len(np.load(shards / f"images_0000{i}.npy")) for i in range(3)]
    assert sizes == [10, 10, 5]
    assert json.loads((shards / "manifest.json").read_text())["num_images"] == 25
    same(open_synthetic(shards, SHAPE, 10))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_comes_back(tmp_path, save):
    save(tmp_path / "1m.npz", image=IMAGES, label=LABELS.astype(np.int64))
    for _ in range(2):  # the second time a compressed one is unpacked already
        same(open_synthetic(tmp_path / "1m.npz", SHAPE, 10))


def test_shards_are_packed_as_numpy_reads_them(shards, tmp_path):
    pack(shards, tmp_path / "packed.npz")
    with np.load(tmp_path / "packed.npz", allow_pickle=False) as packed:
        np.testing.assert_array_equal(packed["image"], IMAGES)
        np.testing.assert_array_equal(packed["label"], LABELS)
    same(open_synthetic(tmp_path / "packed.npz", SHAPE, 10))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": IMAGES}, r"lacks label\.npy"),
        ({"image": IMAGES / 255, "label": LABELS}, "type float64.*expected are bytes"),
        ({"image": IMAGES[..., 0], "label": LABELS}, r"shape \(25, 4, 4\)"),
        ({"image": IMAGES[:, :3], "label": LABELS}, r"shape \(3, 4, 3\), the data set has"),
        ({"image": IMAGES // 255, "label": LABELS}, "values up to 1: bytes from 0 to 255"),
        ({"image": IMAGES, "label": LABELS + 1}, "labels from 1 to 10.*classes from 0 to 9"),
        ({"image": IMAGES, "label": LABELS - 1}, "labels from -1"),
        ({"image": IMAGES, "label": LABELS[:-1]}, "not as many labels as images"),
        ({"image": IMAGES, "label": LABELS / 2}, "labels of type float64"),
        ({"image": IMAGES[:0], "label": LABELS[:0]}, "has no images"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=message) as error:
        open_synthetic(tmp_path / "bad.npz", SHAPE, 10)
    assert "\n" not in str(error.value)


def test_what_is_cut_short_or_missing_is_told(shards, tmp_path):
    np.savez(tmp_path / "whole.npz", image=IMAGES, label=LABELS)
    content = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[:-400])
    (tmp_path / "flipped.npz").write_bytes(content[:500] + b"?" + content[501:])
    for path, message in (
        (tmp_path / "flipped.npz", "cut short or damaged.*CRC"),
        (tmp_path / "cut.npz", "cut short or damaged"),
        (tmp_path / "nowhere", "there is no"),
        (tmp_path, "no manifest.json that can be read"),
    ):
        with pytest.raises(UserError, match=message):
            open_synthetic(path, SHAPE, 10)
    shard = shards / "images_00001.npy"
    whole = shard.read_bytes()
    for damaged in (whole[:-10], whole[:200] + b"?" + whole[201:]):
        shard.write_bytes(damaged)
        with pytest.raises(UserError, match=r"images_00001\.npy is cut short or damaged"):
            open_synthetic(shards, SHAPE, 10)
    shard.unlink()
    with pytest.raises(UserError, match=r"images_00001\.npy is cut short or damaged"):
        open_synthetic(shards, SHAPE, 10)


def test_another_compressed_file_of_the_same_name_is_not_taken_for_the_first(tmp_path):
    for images in (255 - IMAGES, IMAGES):
        np.savez_compressed(tmp_path / "x.npz", image=images, label=LABELS)
        opened = open_synthetic(tmp_path / "x.npz", SHAPE, 10)
    same(opened)


@pytest.mark.parametrize("manifest", ["[]", "{}", '{"sha256": {}}', '{"sha256": []}'])
def test_a_manifest_of_nothing_is_told(shards, manifest):
    (shards / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match=r"manifest\.json"):
        open_synthetic(shards, SHAPE, 10)


def test_shards_of_a_writer_that_was_killed_make_way(shards):
    (shards / "manifest.json").rename(shards / "manifest.json.7.partial")
    writer = ShardWriter(shards, shard_size=25)
    writer.write(IMAGES, LABELS)
    writer.close()
    same(open_synthetic(shards, SHAPE, 10))


def test_a_folder_that_is_not_empty_is_left_alone(shards):
    with pytest.raises(UserError, match="is not empty"):
        ShardWriter(shards, 10)
