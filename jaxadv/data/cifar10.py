"""Preparation of CIFAR-10 in TFDS's format, from the official archive.

The CIFAR-10 builder of TFDS needs TensorFlow to extract and encode images; this builder does not.
The result has the same name, version and features, and `tfds.load` reads it.
"""

import os
import tarfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from jaxadv.core.types import UserError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_FOLDER = "cifar-10-batches-bin"
_RECORD_BYTES = 1 + 3 * 32 * 32  # label, then the red, green and blue planes


def prepare(data_dir: Path) -> None:
    """Download CIFAR-10 and prepare it as `cifar10/3.0.2` in a TFDS directory.

    The archive must have the SHA-256 that TFDS records for it. An interrupted preparation leaves no
    directory that looks prepared.

    Raises:
      UserError: no connection, a wrong checksum, or a directory that cannot be written.
    """
    if not _is_online():
        raise UserError(
            f"CIFAR-10 is not prepared in {data_dir} and {URL} cannot be reached: set "
            "--config.data.data_dir=DIR to a prepared TFDS directory, or connect to the "
            "internet, or use the config with `:digits`"
        )
    try:
        Cifar10(data_dir=data_dir, file_format="array_record").download_and_prepare(
            download_config=tfds.download.DownloadConfig(
                force_checksums_validation=True, try_download_gcs=False
            )
        )
    except NonMatchingChecksumError as error:
        raise UserError(
            f"The download of {URL} has a wrong checksum: run the same command to download it again"
        ) from error
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"CIFAR-10 could not be prepared in {data_dir} ({reason}): check its permissions and "
            "disk space, or set --config.data.data_dir=DIR to another directory"
        ) from error


def _is_online() -> bool:
    # Without a connection TFDS retries for minutes.
    try:
        urllib.request.urlopen(urllib.request.Request(URL, method="HEAD"), timeout=3).close()
    except OSError:
        return False
    return True


class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Builder with the name, version, features and ids of the CIFAR-10 builder of TFDS."""

    VERSION = tfds.core.Version("3.0.2")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(32, 32, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict]]]:
        archive = dl_manager.download(URL)
        names = _read(archive, "batches.meta.txt").decode().split()
        self.info.features["label"].names = names
        batches = [f"data_batch_{i}.bin" for i in range(1, 6)]
        return {
            "train": self._generate_examples(archive, "train", batches),
            "test": self._generate_examples(archive, "test", ["test_batch.bin"]),
        }

    def _generate_examples(
        self, archive: os.PathLike[str], split: str, members: list[str]
    ) -> Iterator[tuple[int, dict]]:
        data = b"".join(_read(archive, member) for member in members)
        records = np.frombuffer(data, np.uint8).reshape(-1, _RECORD_BYTES)
        for index, record in enumerate(records):
            planes = record[1:].reshape(3, 32, 32)
            yield (
                index,
                {
                    "id": f"{split}_{index:05d}",
                    "image": Image.fromarray(planes.transpose(1, 2, 0)),
                    "label": int(record[0]),
                },
            )


def _read(archive: os.PathLike[str], member: str) -> bytes:
    with tarfile.open(archive) as tar:
        file = tar.extractfile(f"{_FOLDER}/{member}")
        assert file is not None  # None for a directory; excluded by the checksum
        return file.read()
