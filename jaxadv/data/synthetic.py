"""Files of synthetic labelled images, memory-mapped.

Two formats are read. `ShardWriter` writes the first, `pack` the second:

- a folder with `manifest.json` and shards `images_00000.npy` (uint8, n x height x width x 3) and
  `labels_00000.npy` (int32, n); the manifest has `num_images` and, by file name, `sha256`;
- an `.npz` with arrays `image` (uint8) and `label` (integers), the format of published synthetic
  CIFAR-10 sets. Without compression, as `numpy.savez` writes it, the file itself is mapped;
  otherwise the images are unpacked beside it once.

Opening a file reads it once completely to verify its checksums.
"""

import hashlib
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from tqdm import tqdm

from jaxadv.core.files import atomic_write, write_json
from jaxadv.core.progress import progress_bar
from jaxadv.core.types import UserError
from jaxadv.data.mapped_arrays import CHUNK, MappedArray, map_member, map_npy, member_chunks

MANIFEST = "manifest.json"
_NUM_PROBED = 1000  # images whose range of values is checked


class SyntheticImages:
    """Images mapped from files, with their labels in memory."""

    def __init__(
        self,
        parts: Sequence[MappedArray],
        labels: Int[np.ndarray, "n"],
        image_shape: tuple[int, ...],
    ) -> None:
        """Concatenate the images of all parts."""
        self._parts, self.image_shape = parts, image_shape
        self._starts = np.cumsum([0, *(len(part.array) for part in parts)])
        self.labels = labels

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def take(self, rows: Int[np.ndarray, "m"]) -> UInt8[np.ndarray, "m height width channels"]:
        """Return the images of some rows, in memory."""
        images = np.empty((len(rows), *self.image_shape), np.uint8)
        part_numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(part_numbers):
            part, selected = self._parts[number], part_numbers == number
            images[selected] = part.take(rows[selected] - self._starts[number])
        return images


def no_images(image_shape: tuple[int, ...]) -> SyntheticImages:
    """Return an empty set of images."""
    return SyntheticImages([], np.zeros(0, np.int32), image_shape)


def open_synthetic(
    path: str | Path, image_shape: tuple[int, ...], num_classes: int
) -> SyntheticImages:
    """Open a folder of shards or an `.npz`.

    Args:
      path: of the folder or the file.
      image_shape: expected (height, width, channels).
      num_classes: labels must be below it.

    Raises:
      UserError: the path does not exist, a file is damaged, or images or labels have another type,
        shape or range.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        parts, labels = _open_shards(path)
    elif path.is_file():
        parts, labels = _open_npz(path)
    else:
        raise UserError(
            f"config.data.synthetic.path is {path}, which does not exist: pass a folder of samples "
            "or an .npz"
        )
    for part in parts:
        if part.array.ndim != 4:
            raise UserError(
                f"{path} has images of shape {part.array.shape}: use (n, height, width, channels)"
            )
        if part.array.shape[1:] != image_shape:
            raise UserError(
                f"{path} has images of shape {part.array.shape[1:]}: use images of shape "
                f"{image_shape}, as in the data set"
            )
    if not len(labels):
        raise UserError(f"{path} has no images: pass other samples")
    if sum(len(part.array) for part in parts) != len(labels):
        raise UserError(f"{path} has different numbers of images and labels: sample it again")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(
            f"{path} has labels from {labels.min()} to {labels.max()}: use labels from 0 to "
            f"{num_classes - 1}, as in the data set"
        )
    images = SyntheticImages(parts, labels.astype(np.int32), image_shape)
    brightest = images.take(np.arange(min(len(images), _NUM_PROBED))).max()
    if brightest <= 1:
        raise UserError(f"{path} has values up to {brightest}: use uint8 values from 0 to 255")
    return images


def _open_shards(folder: Path) -> tuple[list[MappedArray], np.ndarray]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        digests = manifest["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"cannot read {folder / MANIFEST} ({error}): pass a folder written by "
            "config.mode=sample"
        ) from None
    if not isinstance(digests, dict) or not digests:
        raise UserError(f"{folder / MANIFEST} lists no files: sample it again")
    size = sum((folder / name).stat().st_size for name in digests if (folder / name).exists())
    with progress_bar(total=size, title=f"Verify {folder.name}", unit="B", unit_scale=True,
              disable=None, leave=False) as bar:  # fmt: skip
        for name, digest in digests.items():
            if _sha256(folder / name, bar) != digest:
                raise UserError(f"{folder / name} is truncated or damaged: sample it again")
    parts, labels = [], []
    for name in sorted(name for name in digests if name.startswith("images_")):
        parts.append(map_npy(folder / name))
        labels.append(_read_labels(folder / name.replace("images_", "labels_")))
        if len(labels[-1]) != len(parts[-1].array):
            raise UserError(
                f"{folder / name} has different numbers of images and labels: sample it again"
            )
    return parts, np.concatenate([np.zeros(0, np.int32), *labels])


def _read_labels(path: Path) -> np.ndarray:
    try:
        return _check_labels(np.load(path, allow_pickle=False), path)
    except OSError:
        raise UserError(f"{path} does not exist: sample it again") from None


def _check_labels(labels: np.ndarray, path: Path) -> np.ndarray:
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{path} has labels of type {labels.dtype} and shape {labels.shape}: use integers of "
            "shape (n,)"
        )
    return labels


def _sha256(path: Path, bar: tqdm) -> str | None:
    sha256 = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                sha256.update(chunk)
                bar.update(len(chunk))
    except OSError:
        return None
    return sha256.hexdigest()


def _open_npz(path: Path) -> tuple[list[MappedArray], np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            missing = {"image.npy", "label.npy"} - members.keys()
            if missing:
                raise UserError(
                    f"{path} has {[*members]}, without {', '.join(sorted(missing))}: use arrays "
                    "`image` and `label`"
                )
            with archive.open("label.npy") as stored:
                labels = _check_labels(np.lib.format.read_array(stored, allow_pickle=False), path)
            image = members["image.npy"]
            if image.compress_type == zipfile.ZIP_STORED:
                for _ in member_chunks(archive, image, f"Check {path.name}"):
                    pass
            unpacked = path.with_name(f"{path.name}.{image.CRC:08x}.npy")
            return [map_member(archive, image, path, unpacked)], labels
    except UserError:
        raise
    except (OSError, ValueError, EOFError, RuntimeError, struct.error, zlib.error,
            zipfile.BadZipFile) as error:  # fmt: skip
        raise UserError(f"{path} is truncated or damaged ({error}): download it again") from None


class ShardWriter:
    """Writer of labelled images to a folder of shards. The manifest is written last."""

    def __init__(self, folder: Path, shard_size: int) -> None:
        """Create the folder, or delete the shards of an interrupted writer.

        Raises:
          UserError: the folder has other files, or cannot be written.
        """
        self._folder, self._shard_size = folder, shard_size
        self._buffer: list[tuple[np.ndarray, np.ndarray]] = []
        self._digests: dict[str, str] = {}
        self._num_images = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / MANIFEST).exists():
                for path in (*folder.glob("*_?????.npy"), *folder.glob(f"{MANIFEST}.*.partial")):
                    path.unlink()
            if any(folder.iterdir()):
                raise UserError(f"{folder} is not empty: move or delete it")
        except OSError as error:
            raise UserError(
                f"cannot write {folder} ({error.strerror}): set another config.sampling.path"
            ) from None

    def write(
        self, images: UInt8[np.ndarray, "n height width channels"], labels: Int[np.ndarray, "n"]
    ) -> None:
        """Append images; complete shards are written."""
        self._buffer.append((images, labels))
        while sum(len(labels) for _, labels in self._buffer) >= self._shard_size:
            self._write_shard()

    def close(self, **entries: Any) -> None:
        """Write the last shard, and the manifest with additional entries."""
        if self._buffer:
            self._write_shard()
        manifest = {**entries, "num_images": self._num_images, "sha256": self._digests}
        write_json(self._folder / MANIFEST, manifest)

    def _write_shard(self) -> None:
        images, labels = (np.concatenate(arrays) for arrays in zip(*self._buffer, strict=True))
        self._buffer = [(images[self._shard_size :], labels[self._shard_size :])]
        if not len(self._buffer[0][1]):
            self._buffer = []
        number = len(self._digests) // 2
        for name, array in (("images", images), ("labels", labels.astype(np.int32))):
            path = self._folder / f"{name}_{number:05}.npy"
            np.save(path, array[: self._shard_size])
            self._digests[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        self._num_images += min(len(labels), self._shard_size)


def pack(folder: Path, path: Path) -> None:
    """Convert a folder of shards to one `.npz` with arrays `image` and `label`."""
    parts, labels = _open_shards(folder)
    image_shape = parts[0].array.shape[1:]
    images = SyntheticImages(parts, labels, image_shape)
    shape = (len(images), *image_shape)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with (
        atomic_write(path) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
    ):
        with archive.open("image.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for rows in _blocks(len(images)):
                file.write(images.take(rows).tobytes())
        with archive.open("label.npy", "w") as file:
            np.lib.format.write_array(file, labels.astype(np.int64), allow_pickle=False)


def _blocks(n: int, size: int = 10_000) -> Iterator[np.ndarray]:
    return (np.arange(start, min(start + size, n)) for start in range(0, n, size))
