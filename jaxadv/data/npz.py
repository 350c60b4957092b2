"""`.npz` files with images and labels."""

import hashlib
import zipfile
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from jaxadv.core.files import cache_folder
from jaxadv.core.types import HostBatch, UserError
from jaxadv.data.examples import OpenedSource, Rows
from jaxadv.data.images import ImageFormat, convert_arrays
from jaxadv.data.mapped_arrays import ArrayHeader, MappedArray, map_member, read_array_header

# Names of the arrays: images and labels of the train split, and of the test split.
_LAYOUTS = (
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("x_train", "y_train", "x_test", "y_test"),
    ("image", "label"),
)
_DAMAGES = (OSError, ValueError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile)


@dataclass(frozen=True)
class NpzExamples:
    """A split in an `.npz`, mapped when it is read by rows.

    Attributes:
      path: of the file.
      array: name of the images.
      stored_shape: height, width and channels.
      labels: class of each image.
      image_format: requested by the config.
    """

    path: Path
    array: str
    stored_shape: tuple[int, int, int]
    labels: Int[np.ndarray, "n"]
    image_format: ImageFormat

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return height, width and channels."""
        return self.image_format.shape_of(*self.stored_shape)

    def take(self, rows: Rows) -> UInt8[np.ndarray, "m height width channels"]:
        """Return the images of some rows."""
        return self._convert(_mapped(self.path, self.array).take(rows))

    def has_labels(self) -> bool:
        """Return whether any label is not -1."""
        return bool(np.any(self.labels != -1))

    def decode(self, title: str) -> HostBatch:
        """Return all examples, after verifying their checksum."""
        del title
        return HostBatch(self._convert(_read(self.path, self.array)), self.labels)

    def _convert(
        self, images: UInt8[np.ndarray, "m ..."]
    ) -> UInt8[np.ndarray, "m height width channels"]:
        return convert_arrays(images.reshape(-1, *self.stored_shape), self.image_format)


@cache
def _mapped(path: Path, array: str) -> MappedArray:
    """Map an array, once in each process. A compressed one is unpacked to the cache folder."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {_array_name(member.filename): member for member in archive.infolist()}
            member = members[array]
            identity = f"{path.absolute()} {path.stat().st_mtime_ns} {array} {member.CRC}"
            digest = hashlib.sha256(identity.encode()).hexdigest()
            unpacked = cache_folder() / f"jaxadv-cache-{digest[:16]}.npy"
            return map_member(archive, member, path, unpacked)
    except UserError:
        raise
    except _DAMAGES as error:
        raise _damaged(path, error) from None


def _array_name(member: str) -> str:
    return member.removesuffix(".npy")


def _read(path: Path, array: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[array]
    except _DAMAGES as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is truncated or damaged ({error}): write or download it again")


def open_npz(location: str, image_format: ImageFormat) -> OpenedSource:
    """Open an `.npz`. Only the labels are read.

    Raises:
      UserError: the file or an array is missing, damaged, or of another type or shape.
    """
    path = Path(location)
    if not path.is_file():
        raise UserError(
            f"config.data.source is npz:{path}, which is not a file: pass an .npz with images and "
            "labels"
        )
    headers = _headers(path)
    layout = next((names for names in _LAYOUTS if {*names} <= headers.keys()), None)
    if layout is None:
        needed = ", or ".join(", ".join(names) for names in _LAYOUTS)
        raise UserError(f"{path} has the arrays {', '.join(headers)}: it needs {needed}")
    splits = [
        _open_split(path, headers, images, labels, image_format)
        for images, labels in zip(layout[::2], layout[1::2], strict=True)
    ]
    return OpenedSource(
        name=path.stem,
        class_names=_class_names(path, headers, splits[0].labels),
        train=splits[0],
        tests={"test": splits[1]} if len(splits) > 1 else {},
        shuffle_test=False,  # published test sets are evaluated in their order
    )


def _headers(path: Path) -> dict[str, ArrayHeader]:
    """Return shape and type of each array."""
    headers = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as file:
                    headers[_array_name(name)] = read_array_header(file)
    except _DAMAGES as error:
        raise _damaged(path, error) from None
    return headers


def _open_split(
    path: Path,
    headers: dict[str, ArrayHeader],
    images: str,
    labels: str,
    image_format: ImageFormat,
) -> NpzExamples:
    shape, _, dtype = headers[images]
    if np.issubdtype(dtype, np.floating):
        raise UserError(
            f"{path} has {images} of type {dtype}: convert them, if they are in [0, 1] by "
            "np.round(255 * images).astype(np.uint8)"
        )
    is_image_shape = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
    if dtype != np.uint8 or not is_image_shape or 0 in shape[1:]:
        raise UserError(
            f"{path} has {images} of type {dtype} and shape {shape}: use uint8 of shape "
            "(n, height, width), (n, height, width, 1) or (n, height, width, 3)"
        )
    _, _, label_dtype = headers[labels]
    if len(headers[labels].shape) != 1 or not np.issubdtype(label_dtype, np.integer):
        raise UserError(
            f"{path} has {labels} of type {label_dtype} and shape {headers[labels].shape}: use "
            "integers of shape (n,)"
        )
    if headers[labels].shape[0] != shape[0]:
        raise UserError(
            f"{path} has {shape[0]:,} {images} and {headers[labels].shape[0]:,} {labels}: use one "
            "label per image"
        )
    height, width, channels = (*shape[1:], 1)[:3]
    values = _read(path, labels)
    if values.size and not -1 <= int(values.min()) <= int(values.max()) < 2**31:
        raise UserError(f"{path} has labels from {values.min()} to {values.max()}: use 0, 1, ...")
    return NpzExamples(
        path, images, (height, width, channels), values.astype(np.int32), image_format
    )


def _class_names(
    path: Path, headers: dict[str, ArrayHeader], labels: Int[np.ndarray, "n"]
) -> tuple[str, ...]:
    """Return the array `class_names`, or the numbers up to the largest label."""
    if "class_names" in headers:
        if headers["class_names"].dtype.kind != "U" or len(headers["class_names"].shape) != 1:
            raise UserError(f"{path} has class_names that are no strings: use an array of strings")
        return tuple(map(str, _read(path, "class_names")))
    found = np.unique(labels[labels >= 0])
    if len(found) and len(found) != found[-1] + 1:
        absent = next(label for label in range(found[-1]) if label not in found)
        raise UserError(
            f"{path} has labels up to {found[-1]}, but none is {absent}: use labels from 0 to "
            f"{len(found) - 1}, or add an array class_names"
        )
    return tuple(map(str, range(len(found))))
