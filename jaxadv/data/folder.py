"""Folders of images: `DIR/train/CLASS/*` and `DIR/test/CLASS/*`, or `DIR/CLASS/*`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image, UnidentifiedImageError

from jaxadv.core.types import UserError
from jaxadv.data.decode_cache import cache_path
from jaxadv.data.encoded import EncodedExamples, EncodedImage, unreadable
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
            except (OSError, Image.DecompressionBombError) as error:
                raise unreadable(str(path), error) from None


def open_folder(location: str, image_format: ImageFormat) -> OpenedSource:
    """Open a folder of images. Files and classes are in the order of their names.

    Raises:
      UserError: the folder does not exist, has no images in class folders, or its splits have
        different classes.
    """
    folder = Path(location)
    if not folder.is_dir():
        raise UserError(
            f"config.data.source is folder:{folder}, which is not a folder: pass one with a "
            "subfolder for each class"
        )
    subfolders = {path.name: path for path in _entries(folder) if path.is_dir()}
    test_name = next((name for name in _TEST if name in subfolders), None)
    is_split = _TRAIN in subfolders and subfolders.keys() <= {_TRAIN, *_TEST}
    class_names, train = _class_folders(subfolders[_TRAIN] if is_split else folder)
    test = None
    if is_split and test_name:
        test_class_names, test = _class_folders(subfolders[test_name])
        _check_same_classes(folder, test_name, class_names, test_class_names)
    files = [*train.paths, *(test.paths if test else ())]
    return OpenedSource(
        name=folder.absolute().name,
        class_names=class_names,
        train=EncodedExamples(train, image_format),
        test=EncodedExamples(test, image_format) if test else None,
        cache=cache_path(files, image_format),
    )


def _entries(folder: Path) -> list[Path]:
    paths = sorted(folder.iterdir())
    return [path for path in paths if path.name[0] != "." and path.name not in _IGNORED]


def _class_folders(folder: Path) -> tuple[tuple[str, ...], ImageFiles]:
    """Return the class names and the files of a split."""
    class_folders = [path for path in _entries(folder) if path.is_dir()]
    if len(class_folders) < 2:
        raise UserError(
            f"{folder} has {len(class_folders)} subfolders: pass a folder with a subfolder of "
            "images for each of at least two classes"
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
    folder: Path, test_name: str, train: tuple[str, ...], test: tuple[str, ...]
) -> None:
    for here, there, names in (
        (_TRAIN, test_name, sorted({*train} - {*test})),
        (test_name, _TRAIN, sorted({*test} - {*train})),
    ):
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise UserError(
                f"{folder / here} has classes that {folder / there} lacks ({shown}): use the same "
                "subfolders in both"
            )
