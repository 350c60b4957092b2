"""The documentation: every public name is in the reference, and the examples of the pages run.

Other tests run those of docs/your_model.md, docs/training.md and the notebooks of docs/tutorials/.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxadv
from jaxadv import attacks

DOCS = Path(__file__).parents[2] / "docs"
SHAPE = (8, 8, 3)


def test_the_reference_has_every_public_name_with_its_docstring():
    reference = (DOCS / "reference" / "api.md").read_text()
    documented = set(re.findall(r"^\.\. (?:auto\w+|data):: (\w+)", reference, re.M))
    public = {*jaxadv.__all__, *attacks.__all__}
    assert documented == public
    for name in public - {"ATTACKS"}:
        described = getattr(jaxadv, name, None) or getattr(attacks, name)
        assert described.__doc__.strip(), name


def test_the_reference_names_every_command():
    from jaxadv.cli.main import make_parser

    page = (DOCS / "reference" / "command_line.md").read_text()
    usage = make_parser().format_help()
    commands = re.findall(r"^    (\w+) {3,}", usage, re.M)
    assert len(commands) == 8
    for command in commands:
        assert f"jaxadv {command}" in page


def linear_model(seed):
    weights = jax.random.normal(jax.random.key(seed), (np.prod(SHAPE), 10))
    return lambda key, images: images.reshape(len(images), -1) @ weights


class Model:
    @staticmethod
    def apply(variables, images):
        return linear_model(0)(None, images)


IMAGES = jax.random.uniform(jax.random.key(0), (4, *SHAPE))
ROWS = jax.random.uniform(jax.random.key(1), (4, 10), minval=-1)
NAMES = {
    "key": jax.random.key(0),
    "logits_fn": linear_model(0),
    "model": Model,
    "variables": {},
    "images": IMAGES,
    "labels": linear_model(0)(None, IMAGES).argmax(1),
    "lowest": np.full(10, -1.0),
    "highest": np.full(10, 1.0),
    "rows": ROWS,
    "table_fn": lambda key, rows: rows @ jax.random.normal(jax.random.key(3), (10, 10)),
    "ask_server": lambda images: np.asarray(jax.nn.softmax(linear_model(0)(None, images))),
    "another_logits_fn": linear_model(1),
    "victim": linear_model(2),
    "held_out_images": jnp.flip(IMAGES, 1),
}
ELSEWHERE = ("load_dataset(", "load_pretrained(")  # needs the Internet or a file of weights


@pytest.mark.slow  # compiles many attacks
@pytest.mark.parametrize("page", ["attacks", "data", "defences", "getting_started", "models"])
def test_the_examples_of_a_page_run(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = (DOCS / f"{page}.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    assert blocks
    names = dict(NAMES)
    for code in blocks:
        if any(call in code for call in ELSEWHERE):
            continue
        exec(compile(code, page, "exec"), names)


def test_no_page_has_code_that_no_test_runs():
    tested = {"attacks", "data", "defences", "getting_started", "models", "your_model", "training"}
    with_code = {path.stem for path in DOCS.glob("*.md") if "```python" in path.read_text()}
    assert with_code <= tested | {"index"}
