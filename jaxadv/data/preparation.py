"""Preparation of data sets in TFDS's format from their official archives.

The builders of TFDS need TensorFlow to extract and to encode images; these do not. Each is the
builder of TFDS with another generator of examples, so that name, version, features and checksums
are the same, and `tfds.load` reads the result.
"""

import difflib
import gzip
import os
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from jaxadv.core.types import UserError, first_line

Examples = Iterator[tuple[Any, dict[str, Any]]]  # each with its key


class Recipe(NamedTuple):
    """How a data set is prepared.

    Attributes:
      urls: of the archives by name, given the builder.
      generate: examples of each split, given the builder and the downloaded archives.
    """

    urls: Callable[[Any], dict[str, str]]
    generate: Callable[[Any, Mapping[str, os.PathLike]], dict[str, Examples]]


def prepare(name: str, config: str, version: str, data_dir: Path) -> Path:
    """Download a data set and prepare it in a TFDS directory; return the directory of its version.

    The archives must have the SHA-256 that TFDS records for them. An interrupted preparation leaves
    no directory that looks prepared.

    Args:
      name: of TFDS.
      config: of the data set; "": the default one.
      version: that must be prepared; "": any.
      data_dir: TFDS directory.

    Raises:
      UserError: a data set that is not in the table below, no connection, a wrong checksum, or a
        directory that cannot be written.
    """
    builder = _make_builder(name, config, version, data_dir)
    url = next(iter(RECIPES[name].urls(builder).values()))
    if not _is_online(url):
        raise UserError(
            f"{name} is not prepared in {data_dir} and {url} cannot be reached: set "
            "--config.data.data_dir=DIR to a prepared TFDS directory, or connect to the "
            "internet, or use the config with `:digits`"
        )
    try:
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(
                force_checksums_validation=True, try_download_gcs=False
            )
        )
    except NonMatchingChecksumError as error:
        raise UserError(
            f"The download of {url} has a wrong checksum: run the same command to download it again"
        ) from error
    except OSError as error:
        raise UserError(
            f"{name} could not be prepared in {data_dir} ({first_line(error)}): check its "
            "permissions and disk space, or set --config.data.data_dir=DIR to another directory"
        ) from error
    return Path(builder.data_dir)


def _make_builder(name: str, config: str, version: str, data_dir: Path) -> Any:
    if name not in RECIPES:
        raise UserError(f"{name} is not prepared in {data_dir}: {_advice(name, config, data_dir)}")
    original, recipe = tfds.builder_cls(name), RECIPES[name]
    configs = [known.name for known in original.BUILDER_CONFIGS]
    if config and config not in configs:
        raise UserError(
            f"config.data.source is {name}/{config}: {name} has "
            f"{'the configs ' + ', '.join(configs) if configs else 'no configs'}"
        )
    if version and version != str(original.VERSION):
        raise UserError(
            f"{name}:{version} is not prepared in {data_dir}: use {name}:{original.VERSION}, which "
            "is prepared if it is missing"
        )

    class Builder(original, skip_registration=True):  # type: ignore[call-arg, misc, valid-type]
        name = original.name
        url_infos = original.url_infos

        def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> Any:
            return recipe.generate(self, dl_manager.download(recipe.urls(self)))

        def _generate_examples(self) -> None:
            """Do nothing: the splits are generated above. The base class requires this method."""

    return Builder(data_dir=data_dir, config=config or None, file_format="array_record")


def _advice(name: str, config: str, data_dir: Path) -> str:
    known = tfds.list_builders(with_community_datasets=False)
    if name not in known:
        similar = difflib.get_close_matches(name, known, n=1)
        guess = f"did you mean {similar[0]}? " if similar else ""
        return f"{guess}TFDS has no data set of this name; use {', '.join(RECIPES)}, or another"
    full_name = f"{name}/{config}" if config else name
    return (
        f"only {', '.join(RECIPES)} are prepared without TensorFlow; for others install TensorFlow "
        f"and run `tfds build {full_name} --file_format=array_record --data_dir={data_dir}`"
    )


def _is_online(url: str) -> bool:
    # Without a connection TFDS retries for minutes.
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=3).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _cifar10(builder: Any, archives: Mapping[str, os.PathLike]) -> dict[str, Examples]:
    read = partial(_read_member, archives["archive"], "cifar-10-batches-bin")
    builder.info.features["label"].names = read("batches.meta.txt").decode().split()
    batches = b"".join(read(f"data_batch_{i}.bin") for i in range(1, 6))
    return {
        "train": _cifar_examples("train", ("label",), batches),
        "test": _cifar_examples("test", ("label",), read("test_batch.bin")),
    }


def _cifar100(builder: Any, archives: Mapping[str, os.PathLike]) -> dict[str, Examples]:
    read = partial(_read_member, archives["archive"], "cifar-100-binary")
    labels = {"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"}
    for label, member in labels.items():
        builder.info.features[label].names = read(member).decode().split()
    return {
        split: _cifar_examples(split, tuple(labels), read(f"{split}.bin"))
        for split in ("train", "test")
    }


def _read_member(archive: os.PathLike, folder: str, member: str) -> bytes:
    with tarfile.open(archive) as tar:
        file = tar.extractfile(f"{folder}/{member}")
        assert file is not None  # None for a directory; excluded by the checksum
        return file.read()


def _cifar_examples(split: str, labels: Sequence[str], content: bytes) -> Examples:
    """Yield the examples of records: labels, then the red, green and blue planes."""
    records = np.frombuffer(content, np.uint8).reshape(-1, len(labels) + 3 * 32 * 32)
    for index, record in enumerate(records):
        planes = record[len(labels) :].reshape(3, 32, 32)
        yield (
            index,
            {
                "id": f"{split}_{index:05d}",
                "image": Image.fromarray(planes.transpose(1, 2, 0)),
                **{label: int(record[i]) for i, label in enumerate(labels)},
            },
        )


def _idx(builder: Any, archives: Mapping[str, os.PathLike]) -> dict[str, Examples]:
    """Return the splits of a data set in the format of MNIST (idx)."""
    del builder
    return {
        split: _idx_examples(archives[f"{split}_images"], archives[f"{split}_labels"])
        for split in ("train", "test")
    }


def _idx_examples(images: os.PathLike, labels: os.PathLike) -> Examples:
    with gzip.open(images) as image_file, gzip.open(labels) as label_file:
        pixels = np.frombuffer(image_file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
        classes = np.frombuffer(label_file.read(), np.uint8, offset=8)
    for index, (image, label) in enumerate(zip(pixels, classes, strict=True)):
        yield index, {"image": Image.fromarray(image), "label": int(label)}


def _svhn(builder: Any, archives: Mapping[str, os.PathLike]) -> dict[str, Examples]:
    """Return the splits train and test of SVHN. The split extra, of 1.3 GB, is left out."""
    del builder
    return {split: _svhn_examples(split, path) for split, path in archives.items()}


def _svhn_examples(split: str, path: os.PathLike) -> Examples:
    from scipy.io import loadmat

    content = loadmat(os.fspath(path))
    images, labels = np.moveaxis(content["X"], -1, 0), content["y"].ravel()
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield (
            index,
            {
                "id": f"{split}_{index:06d}",
                "image": Image.fromarray(image),
                "label": int(label) % 10,  # the digit 0 is stored as 10
            },
        )


def _imagenette(builder: Any, archives: Mapping[str, os.PathLike]) -> dict[str, Examples]:
    del builder
    return {
        "train": _imagenette_examples(archives["archive"], "train"),
        "validation": _imagenette_examples(archives["archive"], "val"),
    }


def _imagenette_examples(archive: os.PathLike, split: str) -> Examples:
    """Yield the images of `FOLDER/SPLIT/CLASS/NAME.JPEG`, as they are encoded."""
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts
            if len(parts) == 4 and parts[1] == split and parts[3].endswith(".JPEG"):
                file = tar.extractfile(member)
                assert file is not None  # None for a directory; excluded by the checksum
                yield parts[3], {"image": file.read(), "label": parts[2]}


_CIFAR = "https://www.cs.toronto.edu/~kriz"
_SVHN = "http://ufldl.stanford.edu/housenumbers"
_IMAGENETTE = "https://s3.amazonaws.com/fast-ai-imageclas"


def _idx_urls(folder: str) -> dict[str, str]:
    return {
        f"{split}_{content}": f"{folder}/{prefix}-{content}-idx{dimensions}-ubyte.gz"
        for split, prefix in (("train", "train"), ("test", "t10k"))
        for content, dimensions in (("images", 3), ("labels", 1))
    }


RECIPES = {
    "cifar10": Recipe(lambda _: {"archive": f"{_CIFAR}/cifar-10-binary.tar.gz"}, _cifar10),
    "cifar100": Recipe(lambda _: {"archive": f"{_CIFAR}/cifar-100-binary.tar.gz"}, _cifar100),
    "mnist": Recipe(
        lambda _: _idx_urls("https://storage.googleapis.com/cvdf-datasets/mnist"), _idx
    ),
    "fashion_mnist": Recipe(
        lambda _: _idx_urls("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"), _idx
    ),
    "kmnist": Recipe(lambda _: _idx_urls("http://codh.rois.ac.jp/kmnist/dataset/kmnist"), _idx),
    "svhn_cropped": Recipe(
        lambda _: {split: f"{_SVHN}/{split}_32x32.mat" for split in ("train", "test")}, _svhn
    ),
    "imagenette": Recipe(
        lambda builder: {"archive": f"{_IMAGENETTE}/{builder.builder_config.dirname}.tgz"},
        _imagenette,
    ),
}
"""By name of TFDS: the data sets that can be prepared."""
