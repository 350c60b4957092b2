"""Sphinx config of the documentation site: `sphinx-build -W -c docs . build/site`.

The source is the whole repository, so that links between pages are the same in both.
"""

from jaxadv import __version__

project = "jaxadv"
release = version = __version__
author = "the jaxadv developers"
copyright = "the jaxadv developers, Apache-2.0"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
root_doc = "docs/index"
include_patterns = ["docs/**", "results/*.md", "results/study/index.md", "CHANGELOG.md",
                    "CONTRIBUTING.md"]  # fmt: skip
html_extra_path = ["_root"]
html_theme = "furo"
html_title = "jaxadv"
html_static_path = ["_static"]
html_css_files = ["site.css"]
templates_path: list[str] = []

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
nb_execution_mode = "cache"
nb_execution_in_temp = True  # tutorials write files
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 600
nb_merge_streams = True
suppress_warnings = [
    "myst.header",  # pages of results begin sections below a table of another level
    "mystnb.unknown_mime_type",
    "misc.highlighting_failure",  # shell commands in cells of Python
]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
default_role = "code"  # docstrings have single backticks
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_rtype = False  # a colon in the text of "Returns" does not end a type


def setup(app):
    """Register the function below."""
    app.connect("autodoc-process-docstring", _convert_tables, priority=400)


def _convert_tables(app, what, name, obj, options, lines):
    """Convert the Markdown tables of a docstring to list tables."""
    converted: list[str] = []
    rows: list[str] = []  # of the table so far
    for line in [*lines, ""]:
        if line.strip().startswith("|"):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if not set("".join(cells)) <= set("-: "):
                marks = ["* -", *["  -"] * (len(cells) - 1)]
                rows += [f"   {mark} {cell}" for mark, cell in zip(marks, cells, strict=True)]
            continue
        if rows:
            converted += [".. list-table::", "   :header-rows: 1", "", *rows, ""]
            rows = []
        converted.append(line)
    lines[:] = converted
