"""Files of synthetic images: reading of both formats, and error messages."""

import json

import numpy as np
import pytest

from jaxadv.core.types import UserError
from jaxadv.data.synthetic import ShardWriter, open_synthetic, pack

SHAPE = (4, 4, 3)
GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (25, *SHAPE), dtype=np.uint8)
LABELS = GENERATOR.integers(0, 10, 25).astype(np.int32)


def assert_same(opened):
    assert len(opened) == 25
    np.testing.assert_array_equal(opened.labels, LABELS)
    rows = np.array([24, 3, 3, 11, 0])
    np.testing.assert_array_equal(opened.take(rows), IMAGES[rows])
    assert opened.take(rows[:0]).shape == (0, *SHAPE)


@pytest.fixture
def shards(tmp_path):
    writer = ShardWriter(tmp_path / "samples", shard_size=10)
    for start in range(0, 25, 7):
        writer.write(IMAGES[start : start + 7], LABELS[start : start + 7])
    writer.close(dataset="none")
    return tmp_path / "samples"


def test_shards_are_read(shards):
    sizes = [len(np.load(shards / f"images_0000{i}.npy")) for i in range(3)]
    assert sizes == [10, 10, 5]
    assert json.loads((shards / "manifest.json").read_text())["num_images"] == 25
    assert_same(open_synthetic(shards, SHAPE, 10))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_is_read(tmp_path, save):
    save(tmp_path / "1m.npz", image=IMAGES, label=LABELS.astype(np.int64))
    for _ in range(2):  # the second time, a compressed file is already unpacked
        assert_same(open_synthetic(tmp_path / "1m.npz", SHAPE, 10))


def test_numpy_reads_packed_shards(shards, tmp_path):
    pack(shards, tmp_path / "packed.npz")
    with np.load(tmp_path / "packed.npz", allow_pickle=False) as packed:
        np.testing.assert_array_equal(packed["image"], IMAGES)
        np.testing.assert_array_equal(packed["label"], LABELS)
    assert_same(open_synthetic(tmp_path / "packed.npz", SHAPE, 10))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": IMAGES}, r"without label\.npy: use arrays"),
        ({"image": IMAGES / 255, "label": LABELS}, "type float64.*use uint8"),
        ({"image": IMAGES[..., 0], "label": LABELS}, r"shape \(25, 4, 4\)"),
        ({"image": IMAGES[:, :3], "label": LABELS}, r"shape \(3, 4, 3\): use .* \(4, 4, 3\)"),
        ({"image": IMAGES // 255, "label": LABELS}, "values up to 1: use uint8 values"),
        ({"image": IMAGES, "label": LABELS + 1}, "labels from 1 to 10: use labels from 0 to 9"),
        ({"image": IMAGES, "label": LABELS - 1}, "labels from -1"),
        ({"image": IMAGES, "label": LABELS[:-1]}, "different numbers of images and labels"),
        ({"image": IMAGES, "label": LABELS / 2}, "labels of type float64"),
        ({"image": IMAGES[:0], "label": LABELS[:0]}, "has no images"),
    ],
)
def test_invalid_arrays_are_reported(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=message) as error:
        open_synthetic(tmp_path / "bad.npz", SHAPE, 10)
    assert "\n" not in str(error.value)


def test_truncated_damaged_and_missing_files_are_reported(shards, tmp_path):
    np.savez(tmp_path / "intact.npz", image=IMAGES, label=LABELS)
    content = (tmp_path / "intact.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[:-400])
    (tmp_path / "flipped.npz").write_bytes(content[:500] + b"?" + content[501:])
    for path, message in (
        (tmp_path / "flipped.npz", "truncated or damaged.*CRC"),
        (tmp_path / "cut.npz", "truncated or damaged"),
        (tmp_path / "nowhere", "nowhere, which does not exist"),
        (tmp_path, r"cannot read .*manifest\.json"),
    ):
        with pytest.raises(UserError, match=message):
            open_synthetic(path, SHAPE, 10)
    shard = shards / "images_00001.npy"
    intact = shard.read_bytes()
    for damaged in (intact[:-10], intact[:200] + b"?" + intact[201:]):
        shard.write_bytes(damaged)
        with pytest.raises(UserError, match=r"images_00001\.npy is truncated or damaged"):
            open_synthetic(shards, SHAPE, 10)
    shard.unlink()
    with pytest.raises(UserError, match=r"images_00001\.npy is truncated or damaged"):
        open_synthetic(shards, SHAPE, 10)


def test_a_replaced_compressed_file_is_unpacked_again(tmp_path):
    for images in (255 - IMAGES, IMAGES):
        np.savez_compressed(tmp_path / "x.npz", image=images, label=LABELS)
        opened = open_synthetic(tmp_path / "x.npz", SHAPE, 10)
    assert_same(opened)


@pytest.mark.parametrize("manifest", ["[]", "{}", '{"sha256": {}}', '{"sha256": []}'])
def test_a_manifest_without_files_is_reported(shards, manifest):
    (shards / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match=r"manifest\.json"):
        open_synthetic(shards, SHAPE, 10)


def test_shards_of_an_interrupted_writer_are_replaced(shards):
    (shards / "manifest.json").rename(shards / "manifest.json.7.partial")
    writer = ShardWriter(shards, shard_size=25)
    writer.write(IMAGES, LABELS)
    writer.close()
    assert_same(open_synthetic(shards, SHAPE, 10))


def test_a_folder_with_other_files_is_refused(shards):
    with pytest.raises(UserError, match="is not empty"):
        ShardWriter(shards, 10)
