"""Small archives in place of those that TFDS would download."""

import hashlib
import io
import tarfile
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.checksums import UrlInfo

from jaxadv.data import preparation


def manual_folder(tmp_path: Path) -> Path:
    """Create the folder in which TFDS looks for archives before it downloads them."""
    path = tmp_path / "tfds" / "downloads" / "manual"
    path.mkdir(parents=True, exist_ok=True)
    return path


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def register_archive(monkeypatch: pytest.MonkeyPatch, name: str, path: Path) -> None:
    """Register the checksum of an archive, so that TFDS takes it from its manual folder."""
    infos = tfds.builder_cls(name).url_infos
    (url,) = (url for url in infos if url.endswith(f"/{path.name}"))
    content = path.read_bytes()
    info = UrlInfo(len(content), hashlib.sha256(content).hexdigest(), path.name)
    monkeypatch.setitem(infos, url, info)
    monkeypatch.setattr(preparation, "_is_online", lambda url: True)
