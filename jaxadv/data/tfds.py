"""Data sets of TFDS, read from their prepared directories without TensorFlow."""

import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from PIL import Image

from jaxadv.core.types import UserError, first_line
from jaxadv.data.decode_cache import cache_path, read_cache, write_cache
from jaxadv.data.encoded import DAMAGES, EncodedExamples, EncodedImage, unreadable
from jaxadv.data.examples import OpenedSource, Rows, progress
from jaxadv.data.images import ImageFormat

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_TEST = ("test", "validation")  # the first with labels is the test split
_INFO = "dataset_info.json"  # written last by TFDS
_NAMED = ("cifar10", "cifar100")  # their classes have names; those of others may be numbers
_CHUNK = 1000  # records that are read at once
_ANOTHER_DIRECTORY = "set --config.data.data_dir=DIR to another directory"


class TfdsName(NamedTuple):
    """A name of TFDS, such as `imagenette/160px-v2:1.0.0`.

    Attributes:
      name: of the data set.
      config: "" if none is given.
      version: the same.
    """

    name: str
    config: str
    version: str

    @classmethod
    def parse(cls, text: str) -> "TfdsName":
        """Split a name into its parts."""
        name, _, version = text.partition(":")
        name, _, config = name.partition("/")
        return cls(name, config, version)


def is_prepared(name: str, data_dir: str | None) -> bool:
    """Return whether a TFDS directory holds a data set."""
    return data_dir is not None and _find(TfdsName.parse(name), _root(data_dir)) is not None


def _root(data_dir: str | None) -> Path:
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(root).expanduser().absolute()


def _find(asked: TfdsName, root: Path) -> Path | None:
    """Return the newest prepared directory of a data set.

    Raises:
      UserError: no config is given, and several are prepared.
    """
    folder = root / asked.name
    folders = [folder / asked.config]
    if not asked.config and folder.is_dir():
        folders += sorted(path for path in folder.iterdir() if not _VERSION.fullmatch(path.name))
    found = [path for path in (_newest(folder, asked.version) for folder in folders) if path]
    if len(found) > 1:
        configs = ", ".join(path.parent.name for path in found)
        raise UserError(
            f"config.data.source is {asked.name}, of which {root} has the configs {configs}: name "
            f"one, as in {asked.name}/{found[0].parent.name}"
        )
    return found[0] if found else None


def _newest(folder: Path, version: str) -> Path | None:
    paths = [folder / version] if version else [*folder.glob("*.*.*")]
    prepared = [p for p in paths if _VERSION.fullmatch(p.name) and (p / _INFO).exists()]
    return max(prepared, key=lambda path: [*map(int, path.name.split("."))], default=None)


def open_tfds(name: str, data_dir: str | None, image_format: ImageFormat) -> OpenedSource:
    """Open a data set of TFDS; a few are downloaded and prepared if they are missing.

    Args:
      name: of the data set, with optional config and version.
      data_dir: TFDS directory; None: the default of TFDS.
      image_format: requested by the config.

    Raises:
      UserError: the data set cannot be prepared or read, or has no labelled images.
    """
    asked, root = TfdsName.parse(name), _root(data_dir)
    directory = _find(asked, root)
    # TFDS takes seconds to import, and its error for a missing directory is misleading.
    if directory is None:
        from jaxadv.data.preparation import prepare

        directory = prepare(*asked, root)
    with _reported(directory):
        return _open_directory(asked, directory, image_format)


@contextmanager
def _reported(directory: Path) -> Iterator[None]:
    """Report a damaged directory in one line."""
    try:
        yield
    except UserError:
        raise
    except (AttributeError, OSError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"cannot read {directory} ({first_line(error)}): {_prepare_again('it')}"
        ) from error


def _prepare_again(directory: str) -> str:
    return f"delete {directory} to prepare it again, or {_ANOTHER_DIRECTORY}"


def _open_directory(asked: TfdsName, directory: Path, image_format: ImageFormat) -> OpenedSource:
    info = _read_json(directory / _INFO)
    features = _read_json(directory / "features.json")["featuresDict"]["features"]
    image, label = _image_and_label(directory, info, features)
    stored = features[image]["image"]
    height, width, channels = (int(size) for size in stored["shape"]["dimensions"])
    if stored.get("dtype", "uint8") != "uint8" or channels not in (1, 3):
        raise UserError(
            f"{directory} has images of type {stored['dtype']} with {channels} channels: use a "
            "data set of uint8 images with 1 or 3 channels"
        )
    if not image_format.size and min(height, width) < 0:
        raise UserError(
            f"{directory} has images of several sizes: set config.data.size to resize all images"
        )
    # The images of a data set may have fewer channels than it declares, as in ImageNet.
    image_format = image_format._replace(channels=image_format.channels or channels)
    sizes = {split["name"]: sum(map(int, split["shardLengths"])) for split in info["splits"]}
    if "train" not in sizes:
        raise UserError(
            f"{directory} has the splits {', '.join(sizes)}: use a data set with a split train"
        )
    path = cache_path(directory.iterdir(), image_format, beside=directory)

    def open_split(split: str) -> EncodedExamples:
        return EncodedExamples(
            TfdsImages(str(directory), split, sizes[split], image, label, str(path)),
            image_format,
            image_format.shape_of(height, width, channels),
        )

    return OpenedSource(
        name=_display_name(asked, directory, stored),
        class_names=_class_names(directory, label, features[label]["classLabel"]),
        train=open_split("train"),
        tests={split: open_split(split) for split in _TEST if split in sizes},
        version=directory.name,
        cache=path,
        shuffle_train=False,
        shuffle_test=False,
    )


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _image_and_label(
    directory: Path, info: Mapping[str, Any], features: Mapping[str, Any]
) -> tuple[str, str]:
    """Return the names of the features: the supervised keys, or the only ones of their kind."""
    items = info.get("supervisedKeys", {}).get("tuple", {}).get("items", [])
    keys = [item.get("featureKey") for item in items]
    if len(keys) == 2 and "image" in features[keys[0]] and "classLabel" in features[keys[1]]:
        return keys[0], keys[1]
    found = []
    for kind, title in (("image", "an image"), ("classLabel", "a class label")):
        names = [name for name, feature in features.items() if kind in feature]
        if len(names) != 1:
            raise UserError(
                f"{directory} has {len(names)} features with {title}: use a data set for image "
                "classification"
            )
        found += names
    return found[0], found[1]


def _class_names(directory: Path, label: str, feature: Mapping[str, Any]) -> tuple[str, ...]:
    path = directory / f"{label}.labels.txt"
    if not path.exists() and directory.parent.name not in _NAMED:
        return tuple(map(str, range(int(feature["numClasses"]))))
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip())


def _display_name(asked: TfdsName, directory: Path, stored: Mapping[str, Any]) -> str:
    if asked.name == "cifar10":
        is_jpeg = stored.get("encodingFormat") == "jpeg"
        return "CIFAR-10, JPEG copy" if is_jpeg else "CIFAR-10"
    return str(Path(asked.name, asked.config))


@dataclass(frozen=True)
class TfdsImages:
    """A split of a prepared directory.

    Attributes:
      directory: of one version.
      split: its name.
      num: number of images.
      image: name of the feature.
      label: the same.
      cache: file of the decoded images, beside which labels are cached.
    """

    directory: str
    split: str
    num: int
    image: str
    label: str
    cache: str

    def __len__(self) -> int:
        """Return the number of images."""
        return self.num

    def labels(self) -> Int[np.ndarray, "n"]:
        """Return the class of each image. All records are read once, then the labels are cached.

        Raises:
          UserError: the records cannot be read by row.
        """
        if self._file_format() == "tfrecord":
            raise UserError(
                f"{self.directory} has file format tfrecord, which cannot be streamed: prepare it "
                "as array_record, or set config.data.streaming=False"
            )
        path = Path(self.cache)
        path = path.with_name(f"{path.stem}-{self.split}-labels.npz")
        if (arrays := read_cache(path)) is None:
            title = f"Read labels of {self.split}"
            images = progress(self.read(np.arange(self.num)), title, self.num)
            arrays = {"labels": np.array([image.label for image in images], np.int32)}
            write_cache(path, arrays)
        return arrays["labels"]

    def read(self, rows: Rows) -> Iterator[EncodedImage]:
        """Yield the images of some rows."""
        remedy = _prepare_again(self.directory)
        with _reported(Path(self.directory)):
            for row, example in zip(rows, self._records(rows), strict=False):
                name = f"image {row} of the split {self.split} in {self.directory}"
                try:
                    image = Image.open(io.BytesIO(example[self.image]))
                except DAMAGES as error:
                    raise unreadable(name, error, remedy) from None
                yield EncodedImage(name, image, int(example[self.label]), remedy)

    def _records(self, rows: Rows) -> Iterator[dict[str, Any]]:
        file_format = self._file_format()
        if file_format == "array_record":
            return self._read_by_index(rows)
        if file_format == "tfrecord":
            return self._read_in_order()
        raise UserError(
            f"{self.directory} has file format {file_format}: prepare it as array_record or "
            f"tfrecord, or {_ANOTHER_DIRECTORY}"
        )

    def _file_format(self) -> str:
        # Early versions of TFDS had one format only and did not record it.
        return _read_json(Path(self.directory, _INFO)).get("fileFormat", "tfrecord")

    def _read_by_index(self, rows: Rows) -> Iterator[dict[str, Any]]:
        source = _data_source(self.directory, self.split, self.image)
        for start in range(0, len(rows), _CHUNK):
            yield from source.__getitems__(rows[start : start + _CHUNK].tolist())

    def _read_in_order(self) -> Iterator[dict[str, Any]]:
        """Read a TFRecord, which has no index, from its start to its end."""
        try:
            import tensorflow as tf
        except ImportError as error:
            raise UserError(
                f"{self.directory} has file format tfrecord, which needs TensorFlow once: "
                "`pip install tensorflow`, or set --config.data.data_dir=DIR to a directory with "
                "this data set as array_record, or without it, to prepare it there"
            ) from error
        import tensorflow_datasets as tfds

        tf.config.set_visible_devices([], "GPU")  # otherwise it reserves their memory
        dataset = tfds.builder_from_directory(self.directory).as_dataset(
            self.split,
            decoders=_encoded(self.image),
            read_config=tfds.ReadConfig(interleave_cycle_length=1),  # in order
        )
        num_read = 0
        try:
            for example in tfds.as_numpy(dataset):
                num_read += 1
                yield example
        except tf.errors.OpError as error:
            raise OSError(error.message) from error
        if num_read < self.num:
            raise OSError(f"the {self.split} split has {num_read} of {self.num} examples")


@cache
def _data_source(directory: str, split: str, image: str) -> Any:
    """Open a split, once in each process."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(directory)
    return builder.as_data_source(split, decoders=_encoded(image))


def _encoded(image: str) -> dict[str, Any]:
    """Return the decoders that keep TFDS from decoding images.

    TFDS decodes with OpenCV or TensorFlow, depending on what is installed, and their JPEGs differ.
    PIL gives the same images on all machines.
    """
    import tensorflow_datasets as tfds

    return {image: tfds.decode.SkipDecoding()}
