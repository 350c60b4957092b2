import pytest

from jaxadv.core.types import UserError
from jaxadv.data.sources import Source, expand_source, parse_source


@pytest.mark.parametrize(
    ("source", "parsed"),
    [
        ("digits", ("digits", "")),
        ("cifar10", ("tfds", "cifar10")),
        ("imagenette/160px-v2:1.0.0", ("tfds", "imagenette/160px-v2:1.0.0")),
        ("folder:a/b c", ("folder", "a/b c")),
        ("npz:C:/x.npz", ("npz", "C:/x.npz")),
        ("huggingface:/x", ("huggingface", "/x")),
    ],
)
def test_sources_are_parsed(source, parsed):
    assert parse_source(source) == Source(*parsed)


@pytest.mark.parametrize(
    "source",
    [
        "",
        "foldr:x",
        "folder:",
        "npz",
        "../../etc",
        "cifar10:latest",
        "CIFAR10",
        "a/b/c",
        "x y",
        "/x",
    ],
)
def test_invalid_sources_are_reported_with_all_kinds(source):
    message = r"config.data.source is '.*': use digits, a name of TFDS .* or huggingface:DIR$"
    with pytest.raises(UserError, match=message):
        parse_source(source)


def test_a_home_directory_in_a_path_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_source("folder:~/flowers") == "folder:/home/me/flowers"
    assert expand_source("cifar10:3.0.2") == "cifar10:3.0.2"
