"""Data sets that the library `datasets` of Hugging Face has saved with `save_to_disk`."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image

from jaxadv.core.types import UserError, first_line
from jaxadv.data.decode_cache import cache_path
from jaxadv.data.encoded import DAMAGES, EncodedExamples, EncodedImage, unreadable
from jaxadv.data.examples import OpenedSource, Rows
from jaxadv.data.images import ImageFormat

_REMEDY = "delete or replace the image, and save the data set again"
_TEST = ("test", "validation", "valid", "val")  # the first with labels is the test split


@dataclass(frozen=True)
class HuggingFaceImages:
    """A split of a saved data set.

    Attributes:
      folder: that `save_to_disk` wrote.
      split: its name; "" for a `Dataset` without splits.
      image: name of the feature.
      label: the same.
    """

    folder: str
    split: str
    image: str
    label: str

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._split())

    def labels(self) -> Int[np.ndarray, "n"]:
        """Return the class of each image; -1 without one."""
        return np.array([_class_of(label) for label in self._split()[self.label][:]], np.int32)

    def read(self, rows: Rows) -> Iterator[EncodedImage]:
        """Yield the images of some rows."""
        from datasets import Image as ImageFeature

        dataset = self._split().select_columns([self.image, self.label])
        dataset = dataset.cast_column(self.image, ImageFeature(decode=False))
        for row in rows:
            example = dataset[int(row)]
            name = f"image {row} of {Path(self.folder, self.split)}"
            try:
                stored = example[self.image]
                content = stored["bytes"] or Path(stored["path"]).read_bytes()
                image = Image.open(io.BytesIO(content))
            except (*DAMAGES, TypeError) as error:
                raise unreadable(name, error, _REMEDY) from None
            yield EncodedImage(name, image, _class_of(example[self.label]), _REMEDY)

    def _split(self) -> Any:
        saved = _saved(self.folder)
        return saved[self.split] if self.split else saved


def _class_of(label: int | None) -> int:
    return -1 if label is None else label


@cache
def _saved(folder: str) -> Any:
    """Open a folder, once in each process."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"config.data.source is huggingface:{folder}, which needs the library datasets: "
            "`pip install datasets`"
        ) from None
    try:
        return datasets.load_from_disk(folder)
    except (AttributeError, OSError, LookupError, TypeError, ValueError) as error:
        reason = first_line(error).rstrip(".")
        raise UserError(
            f"cannot read {folder} ({reason}): pass a folder written by save_to_disk"
        ) from None


def open_huggingface(location: str, image_format: ImageFormat) -> OpenedSource:
    """Open a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    Raises:
      UserError: the library is missing, or the folder has no labelled images.
    """
    folder = Path(location)
    if not folder.is_dir():
        raise UserError(
            f"config.data.source is huggingface:{folder}, which is not a folder: pass one written "
            "by save_to_disk"
        )
    saved = _saved(str(folder))
    names = list(saved) if isinstance(saved, dict) else [""]
    if isinstance(saved, dict) and "train" not in names:
        raise UserError(f"{folder} has the splits {', '.join(names)}: it needs a split train")
    train_name = "train" if isinstance(saved, dict) else ""
    train = saved[train_name] if train_name else saved
    image, label = _features(folder, train.features)

    def open_split(name: str) -> EncodedExamples:
        reader = HuggingFaceImages(str(folder), name, image, label)
        return EncodedExamples(reader, image_format)

    tests = {}
    for test_name in (name for name in _TEST if name in names):
        for name in (image, label):
            if saved[test_name].features.get(name) != train.features[name]:
                raise UserError(
                    f"{folder} has another feature {name} in {test_name} than in train, perhaps "
                    "with other classes: save both with the same features"
                )
        tests[test_name] = open_split(test_name)
        if tests[test_name].has_labels():
            break  # further splits are not read
    return OpenedSource(
        name=train.info.dataset_name or folder.absolute().name,
        class_names=tuple(train.features[label].names),
        train=open_split(train_name),
        tests=tests,
        version=str(train.info.version or ""),
        cache=cache_path((f for f in folder.rglob("*") if f.is_file()), image_format),
    )


def _features(folder: Path, features: Any) -> tuple[str, str]:
    """Return the names of the image and of the label."""
    import datasets

    found = []
    for kind, advice in (
        (datasets.Image, "cast_column(NAME, datasets.Image())"),
        (datasets.ClassLabel, "class_encode_column(NAME)"),
    ):
        names = [name for name, feature in features.items() if isinstance(feature, kind)]
        if len(names) != 1:
            described = ", ".join(f"{name}: {type(one).__name__}" for name, one in features.items())
            raise UserError(
                f"{folder} has the features {described}: it needs one {kind.__name__}, "
                f"see {advice}, and remove_columns for further ones"
            )
        found += names
    return found[0], found[1]
