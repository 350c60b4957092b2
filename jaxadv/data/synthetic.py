"""Files of labelled images that a generator made, read without holding them in memory.

Two formats are read, and written by `ShardWriter` and `pack`:

- a folder with `manifest.json` and shards `images_00000.npy` (uint8, n x height x width x 3) and
  `labels_00000.npy` (int32, n); the manifest has `num_images` and, by file name, `sha256`;
- an `.npz` with arrays `image` (uint8) and `label` (integers), as the published synthetic
  CIFAR-10 sets come. Stored without compression, as `numpy.savez` does, it is mapped in place.

Each is read through once when it is opened, for its checksums.
"""

import hashlib
import json
import mmap
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from tqdm import tqdm

from jaxadv.files import write_json, written_whole
from jaxadv.types import UserError

_MANIFEST = "manifest.json"
_CHUNK = 1 << 22  # bytes
_PROBED = 1000  # images whose values are looked at


class _Mapped(NamedTuple):
    """An array of images that lies in a file."""

    file: mmap.mmap
    images: UInt8[np.ndarray, "n height width channels"]


class SyntheticImages:
    """Images in files, with their labels in memory; pages that were read are given back."""

    def __init__(
        self,
        parts: Sequence[_Mapped],
        labels: Int[np.ndarray, "n"],
        image_shape: tuple[int, ...],
    ) -> None:
        """Joins the images of all parts, in order."""
        self._parts, self.image_shape = parts, image_shape
        self._starts = np.cumsum([0, *(len(part.images) for part in parts)])
        self.labels = labels

    def __len__(self) -> int:
        """Returns how many images there are."""
        return len(self.labels)

    def take(self, rows: Int[np.ndarray, "m"]) -> UInt8[np.ndarray, "m height width channels"]:
        """Returns the images of some rows, in memory."""
        images = np.empty((len(rows), *self.image_shape), np.uint8)
        owners = np.searchsorted(self._starts, rows, side="right") - 1
        for owner in np.unique(owners):
            part, here = self._parts[owner], owners == owner
            images[here] = part.images[rows[here] - self._starts[owner]]
            # Else all pages that were ever read count as this program's memory.
            part.file.madvise(mmap.MADV_DONTNEED)
        return images


def no_images(image_shape: tuple[int, ...]) -> SyntheticImages:
    """Returns none."""
    return SyntheticImages([], np.zeros(0, np.int32), image_shape)


def open_synthetic(
    path: str | Path, image_shape: tuple[int, ...], num_classes: int
) -> SyntheticImages:
    """Returns the images of a folder of shards or of an `.npz`.

    Args:
      path: of the folder or the file.
      image_shape: (height, width, channels) that they must have.
      num_classes: above every label.

    Raises:
      UserError: it is not there, cut short, of another type, shape or range, or a shard is damaged.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        parts, labels = _open_shards(path)
    elif path.is_file():
        parts, labels = _open_npz(path)
    else:
        raise UserError(f"config.data.synthetic.path: there is no {path}")
    for part in parts:
        if part.images.shape[1:] != image_shape:
            raise UserError(
                f"{path} has images of shape {part.images.shape[1:]}, "
                f"the data set has {image_shape}"
            )
    if not len(labels):
        raise UserError(f"{path} has no images")
    if sum(len(part.images) for part in parts) != len(labels):
        raise UserError(f"{path} has not as many labels as images")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(
            f"{path} has labels from {labels.min()} to {labels.max()}: the data set has classes "
            f"from 0 to {num_classes - 1}"
        )
    images = SyntheticImages(parts, labels.astype(np.int32), image_shape)
    brightest = images.take(np.arange(min(len(images), _PROBED))).max()
    if brightest <= 1:
        raise UserError(f"{path} has values up to {brightest}: bytes from 0 to 255 are expected")
    return images


def _open_shards(folder: Path) -> tuple[list[_Mapped], np.ndarray]:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        digests = manifest["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} has no {_MANIFEST} that can be read ({error})") from None
    if not isinstance(digests, dict) or not digests:
        raise UserError(f"{folder / _MANIFEST} names no files")
    size = sum((folder / name).stat().st_size for name in digests if (folder / name).exists())
    with tqdm(total=size, desc=f"Verify {folder.name}", unit="B", unit_scale=True,
              disable=None, leave=False) as bar:  # fmt: skip
        for name, digest in digests.items():
            if _sha256(folder / name, bar) != digest:
                raise UserError(f"{folder / name} is cut short or damaged: sample it again")
    parts, labels = [], []
    for name in sorted(name for name in digests if name.startswith("images_")):
        parts.append(_map_npy(folder / name))
        labels.append(_read_labels(folder / name.replace("images_", "labels_")))
        if len(labels[-1]) != len(parts[-1].images):
            raise UserError(f"{folder / name} has not as many labels as images")
    return parts, np.concatenate([np.zeros(0, np.int32), *labels])


def _read_labels(path: Path) -> np.ndarray:
    try:
        return _check_labels(np.load(path, allow_pickle=False), path)
    except OSError:
        raise UserError(f"there is no {path}") from None


def _check_labels(labels: np.ndarray, path: Path) -> np.ndarray:
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{path} has labels of type {labels.dtype}, shape {labels.shape}")
    return labels


def _sha256(path: Path, bar: tqdm) -> str | None:
    sha256 = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                sha256.update(chunk)
                bar.update(len(chunk))
    except OSError:
        return None
    return sha256.hexdigest()


def _map_npy(path: Path) -> _Mapped:
    with path.open("rb") as file:
        return _map_array(file, path)


def _open_npz(path: Path) -> tuple[list[_Mapped], np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            members = {info.filename: info for info in archive.infolist()}
            missing = {"image.npy", "label.npy"} - members.keys()
            if missing:
                raise UserError(f"{path} lacks {', '.join(sorted(missing))}: it has {[*members]}")
            with archive.open("label.npy") as stored:
                labels = _check_labels(np.lib.format.read_array(stored, allow_pickle=False), path)
            image = members["image.npy"]
            if image.compress_type != zipfile.ZIP_STORED:
                return [_map_npy(_unpacked(archive, image, path))], labels
            for _ in _chunks(archive, image, f"Check {path.name}"):
                pass
            # A local header is 30 bytes, the name, and a field whose length it alone tells.
            file.seek(image.header_offset + 26)
            file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
            return [_map_array(file, path)], labels
    except UserError:
        raise
    except (OSError, ValueError, EOFError, RuntimeError, struct.error, zlib.error,
            zipfile.BadZipFile) as error:  # fmt: skip
        raise UserError(f"{path} is cut short or damaged ({error})") from None


def _unpacked(archive: zipfile.ZipFile, image: zipfile.ZipInfo, path: Path) -> Path:
    """Returns the path of the images beside a compressed file, unpacked once."""
    unpacked = path.with_name(f"{path.name}.{image.CRC:08x}.npy")
    if unpacked.exists() and unpacked.stat().st_size == image.file_size:
        return unpacked
    with written_whole(unpacked) as partial, partial.open("wb") as file:
        for chunk in _chunks(archive, image, f"Unpack {path.name}"):
            file.write(chunk)
    return unpacked


def _chunks(archive: zipfile.ZipFile, member: zipfile.ZipInfo, title: str) -> Iterator[bytes]:
    """Yields a member bit by bit; at its end its checksum is verified."""
    with (
        archive.open(member) as packed,
        tqdm(total=member.file_size, desc=title, unit="B", unit_scale=True, disable=None) as bar,
    ):
        while chunk := packed.read(_CHUNK):
            yield chunk
            bar.update(len(chunk))


def _map_array(file: BinaryIO, path: Path) -> _Mapped:
    """Maps the array of images whose header begins where the file stands."""
    version = np.lib.format.read_magic(file)
    read_header: Any = getattr(np.lib.format, f"read_array_header_{version[0]}_{version[1]}")
    shape, fortran, dtype = read_header(file)
    if dtype != np.uint8 or fortran or len(shape) != 4:
        raise UserError(
            f"{path} has images of type {dtype}, shape {shape}: expected are bytes (uint8), "
            "n x height x width x channels"
        )
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    count = int(np.prod(shape))
    if file.tell() + count > len(mapped):
        raise UserError(f"{path} is cut short: it should hold {shape[0]:,} images")
    return _Mapped(mapped, np.frombuffer(mapped, np.uint8, count, file.tell()).reshape(shape))


class ShardWriter:
    """Writes labelled images as a folder of shards; the manifest comes last."""

    def __init__(self, folder: Path, shard_size: int) -> None:
        """Begins in a new folder, or anew where an earlier writer did not come to its end.

        Raises:
          UserError: it holds something else, or cannot be written.
        """
        self._folder, self._shard_size = folder, shard_size
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._digests: dict[str, str] = {}
        self._num_images = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / _MANIFEST).exists():
                for path in (*folder.glob("*_?????.npy"), *folder.glob(f"{_MANIFEST}.*.partial")):
                    path.unlink()
            if any(folder.iterdir()):
                raise UserError(f"{folder} is not empty: move it away, or delete it")
        except OSError as error:
            raise UserError(f"{folder} cannot be written ({error.strerror})") from None

    def write(
        self, images: UInt8[np.ndarray, "n height width channels"], labels: Int[np.ndarray, "n"]
    ) -> None:
        """Adds images."""
        self._waiting.append((images, labels))
        while sum(len(labels) for _, labels in self._waiting) >= self._shard_size:
            self._write_shard()

    def close(self, **facts: Any) -> None:
        """Writes what is left, and the manifest with these facts."""
        if self._waiting:
            self._write_shard()
        manifest = {**facts, "num_images": self._num_images, "sha256": self._digests}
        write_json(self._folder / _MANIFEST, manifest)

    def _write_shard(self) -> None:
        images, labels = (np.concatenate(arrays) for arrays in zip(*self._waiting, strict=True))
        self._waiting = [(images[self._shard_size :], labels[self._shard_size :])]
        if not len(self._waiting[0][1]):
            self._waiting = []
        number = len(self._digests) // 2
        for name, array in (("images", images), ("labels", labels.astype(np.int32))):
            path = self._folder / f"{name}_{number:05}.npy"
            np.save(path, array[: self._shard_size])
            self._digests[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        self._num_images += min(len(labels), self._shard_size)


def pack(folder: Path, path: Path) -> None:
    """Writes a folder of shards as one `.npz` with arrays `image` and `label`, shard by shard."""
    parts, labels = _open_shards(folder)
    image_shape = parts[0].images.shape[1:]
    images = SyntheticImages(parts, labels, image_shape)
    shape = (len(images), *image_shape)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with (
        written_whole(path) as partial,
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
