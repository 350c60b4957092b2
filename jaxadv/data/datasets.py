"""The data sets as arrays in memory: CIFAR-10 in TFDS's format, and the embedded digits."""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from absl import logging
from PIL import Image
from tqdm import tqdm

from jaxadv.files import cache_folder, written_whole
from jaxadv.types import Batch, UserError

_Source = tuple[str, tuple[str, ...], Batch, Batch]  # name, class names, train and test split
_CACHE_PREFIX = "jaxadv-cache-"


class Dataset(NamedTuple):
    """A labelled image data set on the host.

    The batches hold numpy arrays: uint8 images of shape (n, 32, 32, 3) and int32 labels of
    shape (n,). The test split is for the final evaluation only.
    """

    name: str  # as every report shows it
    class_names: tuple[str, ...]
    train: Batch
    validation: Batch
    test: Batch


def load(name: str, *, data_dir: str | None, validation_fraction: float) -> Dataset:
    """Loads a data set; CIFAR-10 is downloaded and prepared where it is missing.

    Args:
      name: "cifar10" or "digits".
      data_dir: TFDS directory of the prepared data set; None: TFDS's own default. The
        digits come with scikit-learn and ignore it.
      validation_fraction: in (0, 1); this last part of the train split is held out.

    Raises:
      UserError: unknown name, fraction out of range, or a data set that cannot be had.
    """
    if name not in SOURCES:
        known = ", ".join(SOURCES)
        raise UserError(f"data.name={name!r} is not a known data set: use one of {known}")
    if not 0 < validation_fraction < 1:
        raise UserError(
            f"data.validation_fraction={validation_fraction} must lie between 0 and 1, exclusive"
        )
    shown_name, class_names, (images, labels), test = SOURCES[name](data_dir)
    num_validation = round(validation_fraction * len(labels))
    boundary = len(labels) - min(max(num_validation, 1), len(labels) - 1)
    return Dataset(
        name=shown_name,
        class_names=class_names,
        train=Batch(images[:boundary], labels[:boundary]),
        validation=Batch(images[boundary:], labels[boundary:]),
        test=test,
    )


def _digits(_: str | None) -> _Source:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    images = np.stack([_enlarge(image) for image in grey])
    labels = digits.target.astype(np.int32)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=0.2, random_state=0, stratify=labels
    )
    return (
        "digits, not CIFAR",
        tuple("0123456789"),
        Batch(train_images, train_labels),
        Batch(test_images, test_labels),
    )


def _enlarge(grey: np.ndarray) -> np.ndarray:
    large = Image.fromarray(grey).resize((32, 32), Image.Resampling.BILINEAR)
    return np.asarray(large.convert("RGB"))


def is_prepared(data_dir: str | None) -> bool:
    """Returns whether a TFDS directory holds CIFAR-10."""
    return data_dir is not None and (_directory(Path(data_dir)) / "dataset_info.json").exists()


def _directory(root: Path) -> Path:
    return root.expanduser().absolute() / "cifar10" / "3.0.2"


def _cifar10(data_dir: str | None) -> _Source:
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    directory = _directory(root)
    # TFDS takes seconds to import and misleads about a missing directory: look for it first.
    if not is_prepared(str(root)):
        from jaxadv.data.cifar10 import prepare

        prepare(root.expanduser().absolute())
    try:
        return _read_prepared(directory)
    except (OSError, KeyError, RuntimeError, json.JSONDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{directory} cannot be read ({reason}): delete it to have it prepared again, "
            "or set --config.data.data_dir=DIR to another directory"
        ) from error


def _read_prepared(directory: Path) -> _Source:
    described = json.loads((directory / "features.json").read_text(encoding="utf-8"))
    features = described["featuresDict"]["features"]
    is_jpeg = features["image"]["image"].get("encodingFormat") == "jpeg"
    arrays = _cached_arrays(directory)
    return (
        "CIFAR-10, JPEG copy" if is_jpeg else "CIFAR-10",
        tuple((directory / "label.labels.txt").read_text(encoding="utf-8").split()),
        Batch(arrays["train_images"], arrays["train_labels"]),
        Batch(arrays["test_images"], arrays["test_labels"]),
    )


SOURCES: dict[str, Callable[[str | None], _Source]] = {"cifar10": _cifar10, "digits": _digits}


def _cached_arrays(directory: Path) -> dict[str, Any]:
    path = _cache_path(directory)
    try:
        # Reading an array to its end verifies the checksum that the file keeps of it.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as cache:
            return dict(cache)
    except (OSError, EOFError, ValueError, BadZipFile):
        arrays = _decode(directory)
    try:
        _write_cache(path, arrays)
    except OSError as error:
        logging.warning("No cache of the decoded images (%s): every start decodes again", error)
    return arrays


def _cache_path(directory: Path) -> Path:
    files = sorted(f for f in directory.iterdir() if not f.name.startswith(_CACHE_PREFIX))
    identity = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    name = f"{_CACHE_PREFIX}{hashlib.sha256(repr(identity).encode()).hexdigest()[:16]}.npz"
    # Root may write everywhere: a directory without write bits is left alone all the same.
    if os.access(directory, os.W_OK) and directory.stat().st_mode & 0o222:
        return directory / name
    return cache_folder() / name


def _write_cache(path: Path, arrays: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def _decode(directory: Path) -> dict[str, Any]:
    import tensorflow_datasets as tfds

    read = _reader(directory)
    builder = tfds.builder_from_directory(directory)
    arrays: dict[str, Any] = {}
    for split in ("train", "test"):
        n = builder.info.splits[split].num_examples
        images, labels = np.empty((n, 32, 32, 3), np.uint8), np.empty(n, np.int32)
        examples = tqdm(read(builder, split), f"Decode CIFAR-10 {split}", n, unit=" images")
        num_read = 0
        for num_read, example in enumerate(examples, start=1):
            images[num_read - 1] = np.asarray(Image.open(io.BytesIO(example["image"])))
            labels[num_read - 1] = example["label"]
        if num_read < n:
            raise OSError(f"its {split} split has {num_read} of {n} examples")
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    return arrays


def _reader(directory: Path) -> Callable[[Any, str], Iterator[dict[str, Any]]]:
    """Returns the function that reads a split in the format of a prepared directory, in order."""
    # TFDS wrote no format before it had a choice of them.
    info = json.loads((directory / "dataset_info.json").read_text(encoding="utf-8"))
    file_format = info.get("fileFormat", "tfrecord")
    if file_format == "array_record":
        return _read_by_index
    if file_format != "tfrecord":
        raise UserError(
            f"{directory} holds CIFAR-10 as {file_format}: prepare it as array_record or tfrecord, "
            "or set --config.data.data_dir=DIR to another directory"
        )
    try:
        import tensorflow
    except ImportError as error:
        raise UserError(
            f"{directory} holds CIFAR-10 as tfrecord, which only TensorFlow reads: "
            "`pip install tensorflow` (it is needed once), or set --config.data.data_dir=DIR to a "
            "directory without CIFAR-10, where it is prepared as array_record"
        ) from error
    return partial(_read_with_tensorflow, tensorflow)


def _read_by_index(builder: Any, split: str) -> Iterator[dict[str, Any]]:
    source = builder.as_data_source(split, decoders=_encoded_images())
    for start in range(0, len(source), 1000):
        yield from source.__getitems__(range(start, min(start + 1000, len(source))))


def _read_with_tensorflow(tf: Any, builder: Any, split: str) -> Iterator[dict[str, Any]]:
    import tensorflow_datasets as tfds

    tf.config.set_visible_devices([], "GPU")  # else it takes the memory of all of them from JAX
    in_order = tfds.ReadConfig(interleave_cycle_length=1)
    dataset = builder.as_dataset(split, decoders=_encoded_images(), read_config=in_order)
    try:
        yield from tfds.as_numpy(dataset)
    except tf.errors.OpError as error:
        raise OSError(error.message) from error


def _encoded_images() -> dict[str, Any]:
    """Returns what keeps TFDS from decoding: PIL does it alike everywhere.

    TFDS takes OpenCV where it is installed, whose JPEGs differ, or TensorFlow.
    """
    import tensorflow_datasets as tfds

    return {"image": tfds.decode.SkipDecoding()}
