"""Small folders of images for tests."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_images(folder: Path, num: int, mode: str = "RGB", side: int = 8) -> list[np.ndarray]:
    """Write PNG images of random pixels to a folder; return their pixels in the order of names."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = (side, side, 3) if mode == "RGB" else (side, side)
    seed = sum(map(ord, folder.name))
    images = np.random.default_rng(seed).integers(0, 256, (num, *shape), np.uint8)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03}.png")
    return list(images)


def write_classes(folder: Path, num: int = 5, names: tuple[str, ...] = ("cat", "dog"), **options):
    """Write `num` images for each class; return the pixels by class."""
    return {name: write_images(folder / name, num, **options) for name in names}
