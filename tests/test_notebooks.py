"""The notebooks: each runs in a fresh kernel, and what is committed is what such a run puts out."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

import odesampler
from notebooks.execute import executed, notebooks

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:(zmq|jupyter_client|jupyter_core|nbclient)")
ROOT = Path(__file__).parent.parent
PATHS = notebooks()
MOST = 600_000  # bytes of one file
every_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell):
    """What a cell puts out, in order, without the numbers."""
    return [(o.output_type, sorted(o.get("data", {o.get("name"): ""}))) for o in cell.outputs]


def words(cell):
    """The words that a cell prints, in any order: numbers and ranks may change with the machine."""
    said = "\n".join(o.get("text") or o.data["text/plain"] for o in cell.outputs)
    return sorted(set(re.findall(r"[A-Za-z_]{3,}", said)))


def test_there_are_five():
    assert [path.stem[:2] for path in PATHS] == ["1_", "2_", "3_", "4_", "5_"]


@pytest.mark.slow
@every_notebook
def test_a_fresh_kernel_puts_out_what_is_committed(path):
    """Else run `python notebooks/execute.py`. A cell that fails is shown with its source and traceback."""
    again = executed(path)
    for kept, new in zip(code(read(path)), code(again), strict=True):
        assert kinds(new) == kinds(kept), f"stale: python notebooks/execute.py {path.name}\n\n{new.source}"
        assert words(new) == words(kept), f"stale: python notebooks/execute.py {path.name}\n\n{new.source}"


@every_notebook
def test_outputs_are_of_one_run_from_top_to_bottom(path):
    cells = code(read(path))
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]


@every_notebook
def test_nothing_went_wrong_and_no_warning_was_left_standing(path):
    for cell in code(read(path)):
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert output.get("name") != "stderr", output.text


@every_notebook
def test_a_notebook_has_pictures_and_each_has_content(path):
    pictures = [o.data["image/png"] for c in code(read(path)) for o in c.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 3
    assert all(len(picture) > 4000 for picture in pictures), "an empty picture"
    for output in (o for c in code(read(path)) for o in c.outputs if "data" in o):
        if output.data["text/plain"].startswith("<Figure"):
            assert "image/png" in output.data, "a figure that only says its size: %matplotlib inline"


@every_notebook
def test_a_file_is_small_and_says_nothing_of_the_machine_it_was_made_on(path):
    text = path.read_text()
    assert len(text) < MOST
    notebook = read(path)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert not any(cell.metadata for cell in notebook.cells)
    said = re.sub(r'"image/png": "[^"]*"', "", text)
    assert not re.search(r"(?<![\w:/.])/(home|root|tmp|work|Users|usr|mnt)/|[A-Z]:\\\\", said)


@every_notebook
def test_it_tells_what_is_to_be_seen_and_ends_with_what_was_learned(path):
    first, *_, last = read(path).cells
    assert first.cell_type == last.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert last.source.startswith("## What was learned")
    assert ".ipynb)" in last.source, "where to go on"


@every_notebook
def test_links_exist(path):
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith("https://"):
            assert (path.parent / target).exists(), target


@every_notebook
def test_every_name_of_ours_that_the_text_mentions_exists(path):
    """In the code a missing one fails by itself; in the text nobody would notice."""
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    for name in re.findall(r"`[^`]*?ods\.(\w+)", text):
        assert name in odesampler.__all__, name


@every_notebook
def test_the_code_parses_and_downloads_nothing(path):
    source = "\n".join(cell.source for cell in code(read(path)))
    tree = ast.parse(re.sub("^%.*", "", source, flags=re.MULTILINE))
    names = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    assert not names & {"from_pretrained", "urlopen", "urlretrieve", "hf_hub_download"}


def test_the_readme_names_each():
    text = (ROOT / "README.md").read_text()
    assert all(f"(notebooks/{path.name})" in text for path in PATHS)
