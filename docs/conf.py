"""The site: `sphinx-build -W docs docs/_build`. It is read from the working tree; nothing is fetched, nothing run."""

import shutil
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]  # the library as it stands here, and docstrings.py

import docstrings  # noqa: E402  the path comes first
from docutils import nodes  # noqa: E402

from odesampler.version import __version__  # noqa: E402

project = "odesampler"
author = "the authors of odesampler"
release = version = __version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb"]
exclude_patterns = ["_build", "jupyter_execute", "**.ipynb_checkpoints"]  # the second is what myst-nb leaves here
default_role = "py:obj"  # `x` in docstrings is code, and a link where there is such a name

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are committed with their outputs, and the tests run them
nb_merge_streams = True

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False  # `step` of every solver says what Solver.step says
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 80
napoleon_numpy_docstring = False

smartquotes_action = "D"  # dashes alone: {"label": 3} in a description is to be copied as it is

html_theme = "furo"
html_title = f"odesampler {__version__}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = html_show_copyright = False
pygments_style, pygments_dark_style = "friendly", "monokai"

# What lies beside docs/ and belongs to the site: where links to it lead there.
MOVED = {
    "](../notebooks/": "](notebooks/",
    "](../docs/": "](../",  # in a notebook
    "](../CHANGELOG.md)": "](changelog.md)",
    "](../CONTRIBUTING.md)": "](contributing.md)",
    "](../odesampler/zoo/DIGITS.md)": "](card_digits.md)",
    "](../odesampler/zoo/EMOJI.md)": "](card_emoji.md)",
}


def copied_notebooks() -> None:
    """Notebooks live beside docs/, and Sphinx reads below it only. docs/notebooks is no part of the repository."""
    (HERE / "notebooks").mkdir(exist_ok=True)
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        there = HERE / "notebooks" / notebook.name
        if not there.exists() or there.read_bytes() != notebook.read_bytes():
            shutil.copyfile(notebook, there)


def relinked(app: Any, docname: str, source: list[str]) -> None:
    """Links that are right in the repository, made right on the site."""
    for written, meant in MOVED.items():
        source[0] = source[0].replace(written, meant)


def short_cells_kept(app: Any, page: Any) -> None:
    """Numbers and names in tables are not broken at their hyphens."""
    for cell in page.findall(nodes.entry):
        if len(cell.astext()) <= 18:
            cell["classes"].append("short")


def setup(app: Any) -> None:
    """Called by Sphinx."""
    copied_notebooks()
    app.connect("source-read", relinked)
    app.connect("doctree-read", short_cells_kept)
    docstrings.setup(app)
