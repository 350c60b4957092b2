"""The digits of scikit-learn: 1,797 scanned digits of 8 x 8 pixels."""

import numpy as np
from PIL import Image

from jaxadv.data.examples import ArrayExamples, OpenedSource
from jaxadv.data.images import ImageFormat

_DEFAULT = (32, 3)  # size and channels of CIFAR-10, which every model takes


def open_digits(image_format: ImageFormat) -> OpenedSource:
    """Return the digits, in the format of CIFAR-10 if none is requested."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    size, channels = image_format.size or _DEFAULT[0], image_format.channels or _DEFAULT[1]
    grayscale = np.round(digits.images * (255 / 16)).astype(np.uint8)
    images = np.stack([_resize(image, size, channels) for image in grayscale])
    labels = digits.target.astype(np.int32)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=0.2, random_state=0, stratify=labels
    )
    return OpenedSource(
        name="digits, not CIFAR",
        class_names=tuple("0123456789"),
        train=ArrayExamples(train_images, train_labels),
        tests={"test": ArrayExamples(test_images, test_labels)},
        shuffle_train=False,
        shuffle_test=False,
    )


def _resize(grayscale: np.ndarray, size: int, channels: int) -> np.ndarray:
    resized = Image.fromarray(grayscale).resize((size, size), Image.Resampling.BILINEAR)
    return np.repeat(np.asarray(resized)[..., None], channels, axis=-1)
