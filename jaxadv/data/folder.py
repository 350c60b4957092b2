"""Folders of images: `DIR/train/CLASS/*` and `DIR/test/CLASS/*`, or `DIR/CLASS/*`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image, UnidentifiedImageError

from jaxadv.core.types import UserError
from jaxadv.data.decode_cache import cache_path
from jaxadv.data.encoded import DAMAGES, EncodedExamples, EncodedImage, unreadable
from jaxadv.data.examples import OpenedSource, Rows
from jaxadv.data.images import ImageFormat

_TRAIN = "train"
_TEST = ("test", "val", "valid", "validation")  # the first that exists is the test split
_IGNORED = ("Thumbs.db", "desktop.ini", "__MACOSX")  # and hidden files


@dataclass(frozen=True)
class ImageFiles:
    """Image files with their classes."""

    paths: tuple[Path, ...]
    classes: tuple[int, ...]

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.paths)

    def labels(self) -> Int[np.ndarray, "n"]:
        """Return the class of each file."""
        return np.array(self.classes, np.int32)

    def read(self, rows: Rows) -> Iterator[EncodedImage]:
        """Yield the images of some files."""
        for row in rows:
            path = self.paths[row]
            try:
                with Image.open(path) as image:
                    yield EncodedImage(str(path), image, self.classes[row])
            except UnidentifiedImageError:
                raise UserError(
                    f"{path} is not an image, or damaged: delete or replace it"
                ) from None
            except DAMAGES as error:
                raise unreadable(str(path), error) from None


def open_folder(location: str, image_format: ImageFormat) -> OpenedSource:
    """Open a folder of images. Files and classes are in the order of their names.

    Raises:
      UserError: the folder does not exist or cannot be read, has no images in class folders, or
        files beside them, or its splits have different classes.
    """
    try:
        return _open(Path(location), image_format)
    except OSError as error:
        raise UserError(
            f"cannot read {error.filename} ({error.strerror}): check its permissions; delete it if "
            "it is a broken link"
        ) from None


def _open(folder: Path, image_format: ImageFormat) -> OpenedSource:
    if not folder.is_dir():
        raise UserError(
            f"config.data.source is folder:{folder}, which is not a folder: pass one with a "
            "subfolder for each class"
        )
    splits = _split_folders(folder)
    train_folder = splits.get(_TRAIN, folder)
    test_folder = next((splits[name] for name in _TEST if name in splits), None)
    class_names, train = _class_folders(train_folder)
    files, tests = train.paths, {}
    if test_folder:
        test_class_names, test = _class_folders(test_folder)
        _check_same_classes(train_folder, test_folder, class_names, test_class_names)
        files += test.paths
        tests = {test_folder.name: EncodedExamples(test, image_format)}
    return OpenedSource(
        name=folder.absolute().name,
        class_names=class_names,
        train=EncodedExamples(train, image_format),
        tests=tests,
        cache=cache_path(files, image_format),
    )


def _entries(folder: Path) -> list[Path]:
    paths = sorted(folder.iterdir())
    return [path for path in paths if path.name[0] != "." and path.name not in _IGNORED]


def _split_folders(folder: Path) -> dict[str, Path]:
    """Return the folders of splits by lower-case name; none if the subfolders are classes."""
    entries = _entries(folder)
    names = {path.name.lower(): path for path in entries if path.is_dir()}
    if _TRAIN not in names:
        return {}
    has_classes = any(path.is_dir() for path in _entries(names[_TRAIN]))
    if not has_classes and not names.keys() <= {_TRAIN, *_TEST}:
        return {}  # a class may be called train
    for path in entries:
        if path.name.lower() not in (_TRAIN, *_TEST) or path not in names.values():
            raise UserError(
                f"{path} is beside the split {names[_TRAIN].name} and would not be read: move it "
                f"out of {folder}"
            )
    return names


def _class_folders(folder: Path) -> tuple[tuple[str, ...], ImageFiles]:
    """Return the class names and the files of a split."""
    entries = _entries(folder)
    class_folders = [path for path in entries if path.is_dir()]
    if len(class_folders) < 2:
        raise UserError(
            f"{folder} has {len(class_folders)} subfolders: pass a folder with a subfolder of "
            "images for each of at least two classes"
        )
    if len(class_folders) < len(entries):
        file = next(path for path in entries if path not in class_folders)
        raise UserError(
            f"{file} is a file beside the folders of the classes: move it into one of them, or out "
            f"of {folder}"
        )
    paths, classes = [], []
    for label, class_folder in enumerate(class_folders):
        files = _entries(class_folder)
        if not files:
            raise UserError(f"{class_folder} has no images: add some, or delete it")
        for path in files:
            if path.is_dir():
                raise UserError(
                    f"{path} is a folder in the folder of a class: move its images to "
                    f"{class_folder}"
                )
        paths += files
        classes += [label] * len(files)
    names = tuple(path.name for path in class_folders)
    return names, ImageFiles(tuple(paths), tuple(classes))


def _check_same_classes(
    train_folder: Path, test_folder: Path, train: tuple[str, ...], test: tuple[str, ...]
) -> None:
    for here, there, names in (
        (train_folder, test_folder, sorted({*train} - {*test})),
        (test_folder, train_folder, sorted({*test} - {*train})),
    ):
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise UserError(
                f"{here} has classes that {there} lacks ({shown}): use the same subfolders in both"
            )
