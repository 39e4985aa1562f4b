"""Sphinx's settings for the handbook. `make docs` builds it, without a network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import generate  # noqa: E402

import gpuspawner  # noqa: E402

project = "gpuspawner"
author = "the gpuspawner authors"
copyright = author
version = release = gpuspawner.__version__

extensions = [
    "myst_parser",
    "autodoc_traits",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
root_doc = "index"
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "pictures"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
# Quotes are code here more often than not.
smartquotes = False
# The help of traits and docstrings writes code in single backticks.
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
# Prompts are not a part of the command.
copybutton_prompt_text = "$ "
# Types of other projects, whose inventories would have to be fetched.
nitpick_ignore_regex = [("py:.*", r"(traitlets|dockerspawner|jupyterhub|docker)\..*")]

html_theme = "pydata_sphinx_theme"
html_title = "gpuspawner"
html_show_sourcelink = False
html_copy_source = False
# Pages without others below them.
html_sidebars: dict[str, list[str]] = {"index": [], "architecture": [], "contributing": []}
html_theme_options = {
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "show_prev_next": False,
    "use_edit_page_button": False,
    "footer_start": ["copyright"],
    "footer_end": [],
}


def _fill(app: Any, page: str, source: list[str]) -> None:
    source[0] = generate.fill(source[0])


def setup(app: Any) -> None:
    """Have the marks in the pages replaced before they are parsed."""
    app.connect("source-read", _fill)
