"""The digits of scikit-learn: 1,797 scanned digits of 8 x 8 pixels.

`digits.npz` holds them with a stratified split into train and test. To load them from scikit-learn,
whose import takes more than a second, would delay every first trial of a user. They are the test
set of "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak, 1998, UCI, CC BY 4.0).
"""

from pathlib import Path

import numpy as np
from PIL import Image

from jaxadv.data.examples import ArrayExamples, OpenedSource
from jaxadv.data.images import ImageFormat

_FILE = Path(__file__).with_name("digits.npz")
_DEFAULT = (32, 3)  # size and channels of CIFAR-10, which every model takes


def open_digits(image_format: ImageFormat) -> OpenedSource:
    """Return the digits, in the format of CIFAR-10 if none is requested."""
    with np.load(_FILE) as digits:
        grayscale = np.round(digits["images"] * (255 / 16)).astype(np.uint8)
        labels = digits["labels"].astype(np.int32)
        train, test = digits["train"], digits["test"]
    size, channels = image_format.size or _DEFAULT[0], image_format.channels or _DEFAULT[1]
    images = np.stack([_resize(image, size, channels) for image in grayscale])
    return OpenedSource(
        name="digits, not CIFAR",
        class_names=tuple("0123456789"),
        train=ArrayExamples(images[train], labels[train]),
        tests={"test": ArrayExamples(images[test], labels[test])},
        shuffle_train=False,
        shuffle_test=False,
    )


def _resize(grayscale: np.ndarray, size: int, channels: int) -> np.ndarray:
    resized = Image.fromarray(grayscale).resize((size, size), Image.Resampling.BILINEAR)
    return np.repeat(np.asarray(resized)[..., None], channels, axis=-1)
