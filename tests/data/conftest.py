"""A small archive in the format of CIFAR-10, and the directory prepared from it."""

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from tensorflow_datasets.core.download.checksums import UrlInfo, get_all_url_infos

from jaxadv.data import cifar10

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
    path = tmp_path / "tfds" / "downloads" / "manual" / "cifar-10-binary.tar.gz"
    path.parent.mkdir(parents=True)
    files = {
        f"data_batch_{i + 1}.bin": batch.tobytes()
        for i, batch in enumerate(np.split(records["train"], 5))
    }
    files["test_batch.bin"] = records["test"].tobytes()
    files["batches.meta.txt"] = "\n".join((*CLASS_NAMES, "", "")).encode()
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    content = path.read_bytes()
    info = UrlInfo(len(content), hashlib.sha256(content).hexdigest(), path.name)
    monkeypatch.setitem(get_all_url_infos(), cifar10.URL, info)
    monkeypatch.setattr(cifar10, "_is_online", lambda: True)
    return path


@pytest.fixture
def data_dir(archive: Path) -> Path:
    """Prepare the archive in a TFDS directory."""
    root = archive.parents[2]
    cifar10.prepare(root)
    return root
