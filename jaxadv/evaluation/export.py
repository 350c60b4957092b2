"""Export adversarial images: as floats, as bytes, and a record in the format of RobustBench."""

import json
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8

from jaxadv.attacks.threat import THREATS
from jaxadv.core.files import atomic_write
from jaxadv.core.results import AttackEntry, Evaluation
from jaxadv.core.types import UserError
from jaxadv.reports import formats

_DATASETS = {"CIFAR-10": "cifar10"}  # names of RobustBench


def round_inside(
    adversarial: Float[np.ndarray, "n height width channels"],
    clean: UInt8[np.ndarray, "n height width channels"]
    | Float[np.ndarray, "n height width channels"],
    eps: float,
    norm: str,
) -> UInt8[np.ndarray, "n height width channels"]:
    """Round adversarial images to bytes inside the ball around the clean images.

    Pixels are rounded to the nearest byte. Where that leaves the ball they are rounded towards the
    clean image: in L-inf the values that leave it, in L2 and L0 all values of the image, and in L1
    as many as needed, first those that the rounding moved farthest outwards.

    Args:
      adversarial: floats in [0, 1].
      clean: the clean images.
      eps: radius of the ball in units of the pixel range.
      norm: "linf", "l2", "l1" or "l0".

    Raises:
      UserError: the clean images are floats; the ball around them may contain no bytes.
    """
    if clean.dtype != np.uint8:
        raise UserError(
            f"the images are {clean.dtype}, but config.evaluation.export writes bytes: "
            "pass the images as uint8, or leave config.evaluation.export empty"
        )
    change = 255 * adversarial.astype(np.float64) - clean
    nearest, inward = np.rint(change), np.trunc(change + np.sign(change) * 1e-3)
    if norm == "linf":
        inside = np.abs(nearest) / 255 <= eps + 1e-6
    elif norm == "l1":
        inside = ~_farthest_outwards(change, nearest, inward, 255 * eps)
    else:
        length = THREATS[norm].length(jnp.asarray(nearest / 255, jnp.float32))
        inside = np.asarray(length) <= eps + 1e-6
    return (clean + np.where(inside, nearest, inward)).astype(np.uint8)


def _farthest_outwards(
    change: Float[np.ndarray, "n height width channels"],
    nearest: Float[np.ndarray, "n height width channels"],
    inward: Float[np.ndarray, "n height width channels"],
    eps: float,
) -> Bool[np.ndarray, "n height width channels"]:
    """Return the values to round towards the clean image, for an L1 length of at most eps."""
    shape, n = change.shape, len(change)
    size, rounded, shorter = (np.abs(array).reshape(n, -1) for array in (change, nearest, inward))
    excess = np.where(rounded > shorter, rounded - size, -np.inf)
    num_needed = np.ceil(rounded.sum(axis=1) - eps - 1e-4)[:, None]
    rank = (-excess).argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    return ((rank < num_needed) & (rounded > shorter)).reshape(shape)


def write_images(
    folder: Path, name: str, arrays: Mapping[str, np.ndarray], suffix: str = ""
) -> Path:
    """Write `adversarial_<name><suffix>.npz` atomically, and return its path."""
    path = _path(folder, name, f"{suffix}.npz")
    with atomic_write(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return path


def write_record(
    folder: Path, entry: AttackEntry, evaluation: Evaluation, suffix: str = ""
) -> Path:
    """Write `adversarial_<name><suffix>.json`, a model entry in the format of RobustBench."""
    record = {
        "link": None,
        "name": evaluation.model,
        "authors": None,
        "additional_data": None,
        "number_forward_passes": evaluation.num_passes,
        "dataset": _DATASETS.get(evaluation.dataset, evaluation.dataset),
        "venue": "Unpublished",
        "architecture": evaluation.model,
        "eps": formats.byte_fraction(entry.eps) or f"{entry.eps:g}",
        "norm": entry.norm.capitalize(),
        "clean_acc": f"{100 * evaluation.clean.accuracy:.2f}",
        "reported": None,
        "autoattack_acc": f"{100 * entry.accuracy:.2f}",
        "num_examples": evaluation.n,
        "flags": entry.flags,
        "provenance": evaluation.provenance,
    }
    path = _path(folder, entry.key, f"{suffix}.json")
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return path


def _path(folder: Path, name: str, suffix: str) -> Path:
    # The user chooses the name of an attack: quoting keeps the path inside the folder.
    return folder / f"adversarial_{quote(name.replace('/', '_'), safe='')}{suffix}"
