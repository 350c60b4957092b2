"""Adversarial images for others: as floats, as the bytes of an image file, and their record."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from jaxadv import formats
from jaxadv.attacks.threat import THREATS
from jaxadv.files import written_whole
from jaxadv.types import UserError

_DATASETS = {"CIFAR-10": "cifar10"}  # as RobustBench names them


def round_inside(
    adversarial: Float[np.ndarray, "n height width channels"],
    clean: UInt8[np.ndarray, "n height width channels"]
    | Float[np.ndarray, "n height width channels"],
    eps: float,
    norm: str,
) -> UInt8[np.ndarray, "n height width channels"]:
    """Returns adversarial images as bytes that are inside of the ball around the clean ones.

    They are rounded to the nearest, and where that leaves the ball, towards the clean image: in
    L-inf the pixels that leave it, in L2 all pixels of an image.

    Args:
      adversarial: in [0, 1].
      clean: the images that they were made of.
      eps: radius of the ball in units of the pixel range.
      norm: "linf" or "l2".

    Raises:
      UserError: the clean images are floats, around which no byte need be inside of the ball.
    """
    if clean.dtype != np.uint8:
        raise UserError(
            f"the images are {clean.dtype}, and config.evaluation.export writes bytes: "
            "pass the images as uint8, or leave config.evaluation.export empty"
        )
    change = 255 * adversarial.astype(np.float64) - clean
    nearest, inward = np.rint(change), np.trunc(change + np.sign(change) * 1e-3)
    if norm == "linf":
        inside = np.abs(nearest) / 255 <= eps + 1e-6
    else:
        length = THREATS[norm].length(jnp.asarray(nearest / 255, jnp.float32))
        inside = np.asarray(length) <= eps + 1e-6
    return (clean + np.where(inside, nearest, inward)).astype(np.uint8)


def write_images(
    folder: Path, name: str, arrays: Mapping[str, np.ndarray], suffix: str = ""
) -> Path:
    """Writes `adversarial_<name><suffix>.npz`, whole or not at all, and returns its path."""
    path = _path(folder, name, f"{suffix}.npz")
    with written_whole(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return path


def write_record(folder: Path, name: str, evaluation: Mapping[str, Any], suffix: str = "") -> Path:
    """Writes `adversarial_<name><suffix>.json`, an entry as RobustBench keeps them."""
    entry = evaluation["attacks"][name]
    dataset = evaluation["dataset"]
    record = {
        "link": None,
        "name": evaluation["model"],
        "authors": None,
        "additional_data": None,
        "number_forward_passes": evaluation["num_passes"],
        "dataset": _DATASETS.get(dataset, dataset),
        "venue": "Unpublished",
        "architecture": evaluation["model"],
        "eps": formats.byte_fraction(entry["eps"]) or f"{entry['eps']:g}",
        "norm": {"linf": "Linf", "l2": "L2"}[entry["norm"]],
        "clean_acc": f"{100 * evaluation['clean']['accuracy']:.2f}",
        "reported": None,
        "autoattack_acc": f"{100 * entry['accuracy']:.2f}",
        "num_examples": evaluation["n"],
        "flags": entry["flags"],
        "provenance": evaluation["provenance"],
    }
    path = _path(folder, name, f"{suffix}.json")
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return path


def _path(folder: Path, name: str, suffix: str) -> Path:
    # The name of an attack is a user's: nothing in it leads out of the folder.
    return folder / f"adversarial_{quote(name.replace('/', '_'), safe='')}{suffix}"
