"""The record of the data set of a run, and the check that another data set is the same."""

from collections.abc import Mapping
from typing import Any

from jaxadv.core.types import UserError
from jaxadv.data import Dataset
from jaxadv.data.examples import image_shape
from jaxadv.data.fingerprint import fingerprint

# Records of earlier versions have the keys of the first line only.
_KINDS: dict[str, type] = {
    **{"name": str, "image_shape": list, "class_names": list},
    **{"source": str, "version": str, "fingerprint": str},
}
_PATHS = ("folder", "npz", "huggingface")  # sources that are named after their path
_REQUIRED = ("name", "image_shape", "class_names")


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """Return the record of a data set, as it is stored in JSON."""
    return {
        "name": dataset.name,
        "source": dataset.source,
        "version": dataset.version,
        "image_shape": [int(size) for size in image_shape(dataset.train)],
        "class_names": [str(name) for name in dataset.class_names],
        "fingerprint": fingerprint(dataset),
    }


def is_record(content: Any) -> bool:
    """Return whether the content of a file, which is not trusted, is a record."""
    return (
        isinstance(content, Mapping)
        and all(key in content for key in _REQUIRED)
        and all(type(value) is _KINDS.get(key) for key, value in content.items())
    )


def check_same_dataset(
    recorded: Mapping[str, Any] | None,
    given: Mapping[str, Any] | None,
    what: str,
    *,
    copies: bool = False,
) -> None:
    """Check that the data set of a record is the given one.

    Args:
      recorded: record of the data set of a run or a checkpoint; None, as in earlier versions: the
        check is left out.
      given: record of the data set in use; None: the check is left out.
      what: what was trained on the recorded data set, for the message.
      copies: accept another copy of the data set: the part of a name after a comma names the copy,
        as in "CIFAR-10, JPEG copy".

    Raises:
      UserError: it is another data set.
    """
    if recorded is None or given is None:
        return
    names = [record["name"] for record in (recorded, given)]
    is_copy = copies and names[0] != names[1] and _without_copy(names[0]) == _without_copy(names[1])
    compared = {*recorded} & {*given}
    if given.get("source") in _PATHS and "fingerprint" in compared:
        compared.remove("name")  # that of the file or folder, which may differ on this machine
    elif is_copy:
        compared = {"image_shape", "class_names"}
    if "fingerprint" in compared:
        compared -= {"source", "version"}  # of the same images
    if any(recorded[key] != given[key] for key in compared):
        raise UserError(
            f"{what} was trained on {_text(recorded)}, this is {_text_of_other(recorded, given)}: "
            "use the data set of the run (config.data)"
        )


def _without_copy(name: str) -> str:
    return name.partition(",")[0]


def _text(record: Mapping[str, Any]) -> str:
    """Return name, source, version, classes and shape in words."""
    shape = " x ".join(map(str, record["image_shape"]))
    origin = f"{record.get('source', '')} {record.get('version', '')}".strip()
    parts = [origin, f"{len(record['class_names'])} classes", f"images of {shape}"]
    return f"{record['name']!r} ({', '.join(filter(None, parts))})"


def _text_of_other(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    if _text(recorded) != _text(given):
        return _text(given)
    for old, new in zip(recorded["class_names"], given["class_names"], strict=True):
        if old != new:
            return f"a data set of that name whose classes differ ({new!r} instead of {old!r})"
    return "a data set of that name with other images or labels"
