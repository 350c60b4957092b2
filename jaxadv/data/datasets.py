"""Data sets split for training, validation and test, and the order of the images in an epoch.

To add a kind of source, write a file with a function that returns an `OpenedSource`, and call it in
`_open`.
"""

import math
import os
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from jaxadv.core.rng import Stream, stream
from jaxadv.core.types import HostBatch, UserError
from jaxadv.data import tfds
from jaxadv.data.decode_cache import cached_shape, read_cache, write_cache
from jaxadv.data.digits import open_digits
from jaxadv.data.examples import OpenedSource, StoredExamples, select
from jaxadv.data.folder import open_folder
from jaxadv.data.huggingface import open_huggingface
from jaxadv.data.images import ImageFormat
from jaxadv.data.npz import open_npz
from jaxadv.data.sources import Source, parse_source

Split = HostBatch | StoredExamples

_SHARE_OF_MEMORY = 0.5  # for the train split


class Dataset(NamedTuple):
    """A labelled image data set.

    Images are uint8 of shape (n, height, width, 1 or 3), labels int32. The test split is for the
    final evaluation only.

    Attributes:
      name: in reports.
      class_names: in the order of the labels.
      train: arrays on the host, or examples that are decoded when they are read.
      validation: the same.
      test: the same.
      source: `config.data.source` without paths and versions: "cifar10", "npz", "folder", "digits".
      version: of a TFDS or Hugging Face data set; "" otherwise.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    source: str = ""
    version: str = ""


def load(
    source: str,
    *,
    data_dir: str | None = None,
    validation_fraction: float,
    size: int | None = None,
    channels: int | None = None,
    test_fraction: float = 0.2,
    streaming: bool | None = None,
) -> Dataset:
    """Load a data set.

    The validation split is a part of the train split. The digits and the splits of TFDS are in
    random order, and it is their last part. Other sources may be sorted by class, so a fixed
    permutation chooses it.

    Args:
      source: "digits"; a name of TFDS with optional config and version, such as "cifar10" or
        "imagenette/160px-v2:1.0.0"; "folder:DIR", "npz:FILE" or "huggingface:DIR".
      data_dir: TFDS directory; None: the default of TFDS. Ignored for other sources.
      validation_fraction: share of the train split, in (0, 1), that becomes the validation split.
      size: the shorter side of each image is resized to it, then the centre is cropped to a square;
        None: as stored.
      channels: 1 or 3; None: as stored.
      test_fraction: share in (0, 1) of a source without a test or validation split that becomes the
        test split.
      streaming: whether images are decoded when they are read, instead of into memory; None: if the
        train split does not fit into the memory of a device.

    Raises:
      UserError: a value is out of range, or the data set cannot be loaded.
    """
    parsed = parse_source(source)
    for name, fraction in (
        ("validation_fraction", validation_fraction),
        ("test_fraction", test_fraction),
    ):
        if not 0 < fraction < 1:
            raise UserError(f"data.{name}={fraction} must lie between 0 and 1, exclusive")
    if size is not None and size < 1:
        raise UserError(f"data.size={size} must be at least 1")
    if channels not in (None, 1, 3):
        raise UserError(f"data.channels={channels} must be 1 or 3")
    opened = _open(parsed, data_dir, ImageFormat(size, channels))
    train, test = _read(opened, streaming)
    _check(opened, train, test)
    if test is None:
        num_test = _num_held_out(test_fraction, train)
        shuffled = select(train, _permutation(train))
        test, train = select(shuffled, slice(num_test)), select(shuffled, slice(num_test, None))
    else:
        train = select(train, _permutation(train)) if opened.shuffle_train else train
        test = select(test, _permutation(test)) if opened.shuffle_test else test
    num_train = len(train.labels) - _num_held_out(validation_fraction, train)
    return Dataset(
        name=opened.name,
        class_names=opened.class_names,
        train=select(train, slice(num_train)),
        validation=select(train, slice(num_train, None)),
        test=test,
        source=parsed.location.partition(":")[0] if parsed.kind == "tfds" else parsed.kind,
        version=opened.version,
    )


def is_prepared(source: str, data_dir: str | None) -> bool:
    """Return whether a source needs no preparation in a TFDS directory."""
    kind, location = parse_source(source)
    return kind != "tfds" or tfds.is_prepared(location, data_dir)


def _open(source: Source, data_dir: str | None, image_format: ImageFormat) -> OpenedSource:
    kind, location = source
    if kind == "digits":
        return open_digits(image_format)
    if kind == "tfds":
        return tfds.open_tfds(location, data_dir, image_format)
    open_path = {"folder": open_folder, "npz": open_npz, "huggingface": open_huggingface}[kind]
    return open_path(location, image_format)


def _read(opened: OpenedSource, streaming: bool | None) -> tuple[Split, Split | None]:
    """Return the splits: decoded into memory, perhaps from the cache, or as they are stored."""
    if streaming or (streaming is None and not _train_fits(opened)):
        opened.train.take(np.arange(min(1, len(opened.train.labels))))  # reports what is damaged
        name = _test_split(opened)
        return opened.train, opened.tests[name] if name else None
    if opened.cache and (arrays := read_cache(opened.cache)):
        cached = [
            HostBatch(arrays[f"{name}_images"], arrays[f"{name}_labels"])
            for name in ("train", "test")
            if f"{name}_images" in arrays
        ]
        return cached[0], cached[1] if len(cached) > 1 else None
    stored = {"train": opened.train}
    if name := _test_split(opened):
        stored["test"] = opened.tests[name]
    decoded = {name: split.decode(f"Decode {opened.name} {name}") for name, split in stored.items()}
    if opened.cache:
        arrays = {f"{name}_images": split.images for name, split in decoded.items()}
        arrays |= {f"{name}_labels": split.labels for name, split in decoded.items()}
        write_cache(opened.cache, arrays)
    return decoded["train"], decoded.get("test")


def _train_fits(opened: OpenedSource) -> bool:
    """Return whether the train split fits into memory; print a message if it does not."""
    shape = cached_shape(opened.cache, "train_images") if opened.cache else None
    num_bytes = math.prod(shape or (len(opened.train), *opened.train.image_shape))
    if _fits_in_memory(num_bytes):
        return True
    print(
        f"The {len(opened.train):,} training images of {opened.name} take {num_bytes / 1e9:.1f} "
        "GB, too much for the memory of a device or of this machine: they are streamed"
    )
    return False


def _fits_in_memory(num_bytes: int) -> bool:
    return num_bytes <= _SHARE_OF_MEMORY * _memory()


def _memory() -> int:
    """Return the memory for each copy of a split, in bytes.

    The machine holds two copies while it shuffles the split, later one, and each device another.
    CPU devices share the memory of the machine.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return min(stats["bytes_limit"], memory // 2)
    return memory // (jax.local_device_count() + 1)


def _test_split(opened: OpenedSource) -> str | None:
    """Return the name of the test split, the first one with labels; None if there is none.

    Raises:
      UserError: its images have another shape than those of the train split.
    """
    chosen = next((name for name, split in opened.tests.items() if split.has_labels()), None)
    first = next(iter(opened.tests), None)
    if chosen != first:
        print(
            f"The split {first} of {opened.name} has no labels: "
            f"{f'the split {chosen}' if chosen else 'a share of the train split'} is the test split"
        )
    if chosen:
        train_shape, test_shape = opened.train.image_shape, opened.tests[chosen].image_shape
        if train_shape != test_shape:
            raise UserError(
                f"{opened.name} has train images of shape {train_shape} and test images of shape "
                f"{test_shape}: set config.data.size and config.data.channels to convert all images"
            )
    return chosen


def _check(opened: OpenedSource, train: Split, test: Split | None) -> None:
    """Check the number of classes, and the labels."""
    num_classes = len(opened.class_names)
    if num_classes < 2:
        raise UserError(f"{opened.name} has {num_classes} classes: use at least two")
    for name, split in (("train", train), ("test", test)):
        if split is None:
            continue
        if len(split.labels) < 2:
            raise UserError(
                f"the {name} split of {opened.name} has {len(split.labels)} images: use more"
            )
        lowest, highest = int(split.labels.min()), int(split.labels.max())
        if lowest < 0 or highest >= num_classes:
            raise UserError(
                f"the {name} split of {opened.name} has labels from {lowest} to {highest}: use "
                f"labels from 0 to {num_classes - 1}, the number of classes minus 1"
            )


def _permutation(split: Split) -> Int[np.ndarray, "n"]:
    """Return the permutation of a split whose images may be sorted by class."""
    return np.random.RandomState(0).permutation(len(split.labels))  # equal in all NumPy versions


def _num_held_out(fraction: float, split: Split) -> int:
    """Return the number of images in a share of a split, at least one and not all."""
    num = len(split.labels)
    return min(max(round(fraction * num), 1), num - 1)


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
