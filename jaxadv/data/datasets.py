"""Data sets as arrays in memory: CIFAR-10 from TFDS, and the digits of scikit-learn.

To add a data set, write a loader such as `_digits` and add it to `DATASETS`.
"""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import jax
import numpy as np
from absl import logging
from jaxtyping import Int
from PIL import Image
from tqdm import tqdm

from jaxadv.core.files import atomic_write, cache_folder
from jaxadv.core.rng import Stream, stream
from jaxadv.core.types import HostBatch, UserError

_Source = tuple[str, tuple[str, ...], HostBatch, HostBatch]  # name, class names, train, test
_CACHE_PREFIX = "jaxadv-cache-"


class Dataset(NamedTuple):
    """A labelled image data set on the host.

    Images are uint8 of shape (n, 32, 32, 3), labels int32. The test split is for the final
    evaluation only.
    """

    name: str  # in reports
    class_names: tuple[str, ...]
    train: HostBatch
    validation: HostBatch
    test: HostBatch


def load(name: str, *, data_dir: str | None, validation_fraction: float) -> Dataset:
    """Load a data set; CIFAR-10 is downloaded and prepared if it is missing.

    Args:
      name: "cifar10" or "digits".
      data_dir: TFDS directory of CIFAR-10; None: the default of TFDS. Ignored for the digits, which
        are part of scikit-learn.
      validation_fraction: share of the train split, in (0, 1), whose last part becomes the
        validation split.

    Raises:
      UserError: unknown name, fraction out of range, or a data set that cannot be loaded.
    """
    if name not in DATASETS:
        known = ", ".join(DATASETS)
        raise UserError(f"data.name={name!r} is not a data set: use one of {known}")
    if not 0 < validation_fraction < 1:
        raise UserError(
            f"data.validation_fraction={validation_fraction} must lie between 0 and 1, exclusive"
        )
    display_name, class_names, (images, labels), test = DATASETS[name](data_dir)
    num_validation = round(validation_fraction * len(labels))
    num_train = len(labels) - min(max(num_validation, 1), len(labels) - 1)
    return Dataset(
        name=display_name,
        class_names=class_names,
        train=HostBatch(images[:num_train], labels[:num_train]),
        validation=HostBatch(images[num_train:], labels[num_train:]),
        test=test,
    )


def _digits(_: str | None) -> _Source:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    grayscale = np.round(digits.images * (255 / 16)).astype(np.uint8)
    images = np.stack([_to_rgb_32(image) for image in grayscale])
    labels = digits.target.astype(np.int32)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=0.2, random_state=0, stratify=labels
    )
    return (
        "digits, not CIFAR",
        tuple("0123456789"),
        HostBatch(train_images, train_labels),
        HostBatch(test_images, test_labels),
    )


def _to_rgb_32(grayscale: np.ndarray) -> np.ndarray:
    resized = Image.fromarray(grayscale).resize((32, 32), Image.Resampling.BILINEAR)
    return np.asarray(resized.convert("RGB"))


def is_prepared(data_dir: str | None) -> bool:
    """Return whether a TFDS directory holds CIFAR-10."""
    return data_dir is not None and (_directory(Path(data_dir)) / "dataset_info.json").exists()


def _directory(root: Path) -> Path:
    return root.expanduser().absolute() / "cifar10" / "3.0.2"


def _cifar10(data_dir: str | None) -> _Source:
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    directory = _directory(root)
    # TFDS takes seconds to import, and its error for a missing directory is misleading.
    if not is_prepared(str(root)):
        from jaxadv.data.cifar10 import prepare

        prepare(root.expanduser().absolute())
    try:
        return _read_prepared(directory)
    except (OSError, KeyError, RuntimeError, json.JSONDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"cannot read {directory} ({reason}): delete it to prepare it again, "
            "or set --config.data.data_dir=DIR to another directory"
        ) from error


def _read_prepared(directory: Path) -> _Source:
    description = json.loads((directory / "features.json").read_text(encoding="utf-8"))
    features = description["featuresDict"]["features"]
    is_jpeg = features["image"]["image"].get("encodingFormat") == "jpeg"
    arrays = _cached_arrays(directory)
    return (
        "CIFAR-10, JPEG copy" if is_jpeg else "CIFAR-10",
        tuple((directory / "label.labels.txt").read_text(encoding="utf-8").split()),
        HostBatch(arrays["train_images"], arrays["train_labels"]),
        HostBatch(arrays["test_images"], arrays["test_labels"]),
    )


DATASETS: dict[str, Callable[[str | None], _Source]] = {"cifar10": _cifar10, "digits": _digits}


def _cached_arrays(directory: Path) -> dict[str, Any]:
    path = _cache_path(directory)
    try:
        # Reading an array verifies its checksum in the file.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as cache:
            return dict(cache)
    except (OSError, EOFError, ValueError, BadZipFile):
        arrays = _decode(directory)
    try:
        _write_cache(path, arrays)
    except OSError as error:
        logging.warning(
            "Could not cache the decoded images (%s); they will be decoded again on every start",
            error,
        )
    return arrays


def _cache_path(directory: Path) -> Path:
    files = sorted(f for f in directory.iterdir() if not f.name.startswith(_CACHE_PREFIX))
    identity = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    name = f"{_CACHE_PREFIX}{hashlib.sha256(repr(identity).encode()).hexdigest()[:16]}.npz"
    # `os.access` allows root to write everywhere; the write bits are respected nevertheless.
    if os.access(directory, os.W_OK) and directory.stat().st_mode & 0o222:
        return directory / name
    return cache_folder() / name


def _write_cache(path: Path, arrays: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial, partial.open("wb") as file:
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
            raise OSError(f"the {split} split has {num_read} of {n} examples")
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    return arrays


def _reader(directory: Path) -> Callable[[Any, str], Iterator[dict[str, Any]]]:
    """Return a function that reads a split of a prepared directory in order."""
    # Early versions of TFDS had one format only and did not record it.
    info = json.loads((directory / "dataset_info.json").read_text(encoding="utf-8"))
    file_format = info.get("fileFormat", "tfrecord")
    if file_format == "array_record":
        return _read_by_index
    if file_format != "tfrecord":
        raise UserError(
            f"{directory} has file format {file_format}: prepare it as array_record or tfrecord, "
            "or set --config.data.data_dir=DIR to another directory"
        )
    try:
        import tensorflow
    except ImportError as error:
        raise UserError(
            f"{directory} has file format tfrecord, which needs TensorFlow once: "
            "`pip install tensorflow`, or set --config.data.data_dir=DIR to a directory without "
            "CIFAR-10, to prepare it as array_record there"
        ) from error
    return partial(_read_with_tensorflow, tensorflow)


def _read_by_index(builder: Any, split: str) -> Iterator[dict[str, Any]]:
    source = builder.as_data_source(split, decoders=_encoded_images())
    for start in range(0, len(source), 1000):
        yield from source.__getitems__(range(start, min(start + 1000, len(source))))


def _read_with_tensorflow(tf: Any, builder: Any, split: str) -> Iterator[dict[str, Any]]:
    import tensorflow_datasets as tfds

    tf.config.set_visible_devices([], "GPU")  # otherwise it reserves their memory
    in_order = tfds.ReadConfig(interleave_cycle_length=1)
    dataset = builder.as_dataset(split, decoders=_encoded_images(), read_config=in_order)
    try:
        yield from tfds.as_numpy(dataset)
    except tf.errors.OpError as error:
        raise OSError(error.message) from error


def _encoded_images() -> dict[str, Any]:
    """Return the decoders that keep TFDS from decoding images.

    TFDS decodes with OpenCV or TensorFlow, depending on what is installed, and their JPEGs differ.
    PIL gives the same images on all machines.
    """
    import tensorflow_datasets as tfds

    return {"image": tfds.decode.SkipDecoding()}


def epoch_order(seed: int, name: Stream, epoch: int, num_examples: int) -> Int[np.ndarray, "n"]:
    """Return the order of an epoch, a permutation that depends on the seed and the epoch only."""
    return np.asarray(jax.random.permutation(stream(seed, name, epoch), num_examples))


def endless_order(
    seed: int, name: Stream, start: int, count: int, num_examples: int
) -> Int[np.ndarray, "count"]:
    """Return a slice of the concatenated orders of all epochs.

    Args:
      seed: seed of the run.
      name: key stream of the orders.
      start: first position of the slice.
      count: length of the slice.
      num_examples: length of an epoch.
    """
    if not count:
        return np.zeros(0, int)
    first, offset = divmod(start, num_examples)
    last = (start + count - 1) // num_examples
    orders = [epoch_order(seed, name, epoch, num_examples) for epoch in range(first, last + 1)]
    return np.concatenate(orders)[offset : offset + count]
