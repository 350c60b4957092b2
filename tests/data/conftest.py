"""A small archive in the format of CIFAR-10, and the directory prepared from it."""

from pathlib import Path

import numpy as np
import pytest
from archives import manual_folder, register_archive, write_tar

from jaxadv.data import preparation

CLASS_NAMES = tuple("abcdefghij")
NUM_PER_BATCH = 4


@pytest.fixture(scope="session")
def records() -> dict[str, np.ndarray]:
    """Records in the binary format: label, then the colour planes of the image."""
    generator = np.random.default_rng(0)
    records = {
        "train": generator.integers(0, 256, (5 * NUM_PER_BATCH, 3073), np.uint8),
        "test": generator.integers(0, 256, (NUM_PER_BATCH, 3073), np.uint8),
    }
    for split in records.values():
        split[:, 0] %= 10
    return records


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records) -> Path:
    """Create the archive where TFDS finds it without a download, and register its checksum.

    The data_dir is three levels above the archive.
    """
    path = manual_folder(tmp_path) / "cifar-10-binary.tar.gz"
    files = {
        f"data_batch_{i + 1}.bin": batch.tobytes()
        for i, batch in enumerate(np.split(records["train"], 5))
    }
    files["test_batch.bin"] = records["test"].tobytes()
    files["batches.meta.txt"] = "\n".join((*CLASS_NAMES, "", "")).encode()
    write_tar(path, {f"cifar-10-batches-bin/{name}": files[name] for name in files})
    register_archive(monkeypatch, "cifar10", path)
    return path


@pytest.fixture
def data_dir(archive: Path) -> Path:
    """Prepare the archive in a TFDS directory."""
    root = archive.parents[2]
    preparation.prepare("cifar10", "", "", root)
    return root
