"""Arrays of uint8 that are memory-mapped from `.npy` and `.npz` files."""

import mmap
import os
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import UInt8

from jaxadv.core.files import atomic_write
from jaxadv.core.progress import progress_bar
from jaxadv.core.types import UserError, first_line

CHUNK = 1 << 22  # bytes


class MappedArray(NamedTuple):
    """An array that is mapped from a file."""

    file: mmap.mmap
    array: UInt8[np.ndarray, "..."]

    def take(self, rows: np.ndarray) -> UInt8[np.ndarray, "..."]:
        """Return some rows, in memory."""
        taken = self.array[rows]
        # Otherwise all pages that were ever read count as memory of this process.
        self.file.madvise(mmap.MADV_DONTNEED)
        return taken


class ArrayHeader(NamedTuple):
    """Shape and type of a stored array."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype


def read_array_header(file: Any) -> ArrayHeader:
    """Read the header of an array at the current position of a file."""
    version = np.lib.format.read_magic(file)
    read: Any = getattr(np.lib.format, f"read_array_header_{version[0]}_{version[1]}")
    return ArrayHeader(*read(file))


def map_npy(path: Path) -> MappedArray:
    """Map the array of an `.npy`.

    Raises:
      UserError: it is not of uint8, or truncated.
    """
    with path.open("rb") as file:
        return _map_array(file, path)


def map_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, unpack_to: Path
) -> MappedArray:
    """Map an array of an `.npz`; a compressed one is unpacked once.

    Args:
      archive: the open file.
      member: the array.
      path: of the archive.
      unpack_to: path for the unpacked array.

    Raises:
      UserError: it is not of uint8, or truncated.
    """
    if member.compress_type != zipfile.ZIP_STORED:
        _unpack(archive, member, unpack_to)
        return map_npy(unpack_to)
    with path.open("rb") as file:
        # A local header has 30 bytes, the name, and an extra field; bytes 26 to 29 are the lengths
        # of the last two.
        file.seek(member.header_offset + 26)
        file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
        return _map_array(file, path)


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    if path.exists() and path.stat().st_size == member.file_size:
        return
    packed = Path(str(archive.filename))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial, partial.open("wb") as file:
            for chunk in member_chunks(archive, member, f"Unpack {packed.name}"):
                file.write(chunk)
    except OSError as error:
        raise UserError(
            f"cannot unpack {packed} to {path.parent} ({first_line(error)}): make that folder "
            "writable, or save the arrays without compression by np.savez"
        ) from None


def member_chunks(archive: zipfile.ZipFile, member: zipfile.ZipInfo, title: str) -> Iterator[bytes]:
    """Yield a member in chunks. Reading to its end verifies its checksum."""
    with (
        archive.open(member) as packed,
        progress_bar(
            total=member.file_size, title=title, unit="B", unit_scale=True, disable=None
        ) as bar,
    ):
        while chunk := packed.read(CHUNK):
            yield chunk
            bar.update(len(chunk))


def _map_array(file: BinaryIO, path: Path) -> MappedArray:
    """Map the array whose header is at the current position of the file."""
    shape, fortran, dtype = read_array_header(file)
    if fortran:
        raise UserError(
            f"{path} has images in Fortran order, which cannot be memory-mapped: save "
            "np.ascontiguousarray(images)"
        )
    if dtype != np.uint8 or not shape:
        raise UserError(
            f"{path} has images of type {dtype} and shape {shape}: use uint8 of shape "
            "(n, height, width, channels)"
        )
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    count = int(np.prod(shape))
    if file.tell() + count > len(mapped):
        raise UserError(f"{path} is truncated, it should have {shape[0]:,} images: replace it")
    return MappedArray(mapped, np.frombuffer(mapped, np.uint8, count, file.tell()).reshape(shape))
