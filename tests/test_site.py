"""The documentation site builds without a warning, and says all that it should."""

import ast
import html
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import odesampler

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
NAMED = re.compile(r"^\.\. (?:auto\w+|py:function):: odesampler\.([\w.]+)", re.MULTILINE)


def shown() -> list[str]:
    """What the reference pages set, by its place in the package."""
    return [m[1] for page in sorted((DOCS / "api").glob("*.md")) for m in NAMED.finditer(page.read_text())]


def test_every_public_name_is_in_the_reference_once():
    public = [name for name in shown() if "." not in name]
    assert sorted([*public, "adapters"]) == sorted(odesampler.__all__)


def test_every_adapter_for_diffusers_is_in_the_reference():
    there = {name.removeprefix("adapters.diffusers.") for name in shown() if name.startswith("adapters.diffusers.")}
    assert there == set(odesampler.adapters.diffusers.__all__)


def test_what_the_reference_imports_comes_with_the_packages_for_the_site():
    project = (ROOT / "pyproject.toml").read_text()
    wanted = re.search(r"^dependencies = (.*?)^\]", project, re.M | re.S)[1]
    wanted += re.search(r"^docs = (.*)$", project, re.M)[1]
    came = {name.lower() for name in re.findall(r'"(?:odesampler\[)?(\w[\w-]*)', wanted)} | {"pil", "odesampler"}
    needed = set()
    for name in shown():
        thing = odesampler
        for part in name.split("."):
            thing = getattr(thing, part)
        for node in ast.parse(inspect.getsource(inspect.getmodule(thing))).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                needed |= {(getattr(node, "module", None) or node.names[0].name).partition(".")[0].lower()}
    assert "diffusers" in needed
    assert needed <= came | set(sys.stdlib_module_names)


def test_the_list_of_the_reference_names_what_its_pages_have():
    for page, names in re.findall(r"^\| \[.*?\]\((.*?)\) \| (.*) \|$", (DOCS / "api" / "index.md").read_text(), re.M):
        there = [m[1].rpartition(".")[2] for m in NAMED.finditer((DOCS / "api" / page).read_text())]
        assert re.findall(r"`(\w+)`", names) == there, page


def test_the_numbers_for_choosing_are_those_that_were_measured():
    digits, _, _ = (DOCS / "defaults.md").read_text().partition("\nEmoji, v-prediction")
    measured = {tuple(row[:2]): row[2:] for row in rows(digits)}
    quoted = [row for row in rows((DOCS / "choosing.md").read_text()) if re.match(r"\d\.\de", row[1])]
    assert len(quoted) > 5
    for name, *errors in quoted:
        solver, _, grid = name.replace("`", "").replace("its default grid", "default").partition(", ")
        assert errors == [cell.split(" ")[0] for cell in measured[solver, grid or "default"]], name


def test_the_numbers_of_the_first_page_are_those_that_were_measured():
    best, ours, tuned = {}, {}, {}
    defaults = (DOCS / "defaults.md").read_text().partition("\n## Solvers and grids")[0]
    for model, table in zip(("digits", "emoji"), defaults.split("\n| evaluations |")[1:], strict=True):
        for evaluations, _, error, _, own, _ in rows(table)[1:]:
            best[model, evaluations], ours[model, evaluations] = float(error), float(own)
    for row in rows((DOCS / "tuning.md").read_text()):
        if row[0] in ("digits", "emoji") and len(row) == 9:
            tuned[row[0], row[1]] = float(row[5])
    quoted = [row for row in rows((ROOT / "README.md").read_text()) if row[0] in ("digits", "emoji")]
    assert len(quoted) == 6
    for model, evaluations, *errors in quoted:
        known = [best[model, evaluations], ours[model, evaluations], tuned.get((model, evaluations))]
        assert [error and float(error) for error in errors] == [float(f"{k:.1e}") if k else "" for k in known]


def rows(page: str) -> list[list[str]]:
    """The cells of every line of every table."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built from a copy: a build writes beside its sources."""
    root = tmp_path_factory.mktemp("site")
    for part in ("docs", "notebooks", "odesampler", "tests"):
        shutil.copytree(
            ROOT / part, root / part, ignore=shutil.ignore_patterns("_build", "jupyter_execute", "__pycache__")
        )
    for page in ROOT.glob("*.md"):
        shutil.copy(page, root)
    build(root)
    return root / "docs" / "_build"


def build(root: Path) -> None:
    """As the README says it."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", "docs/_build"]
    built = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr


def text_of(page: Path) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.read_text()))


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_shows_what_docstrings_say(site):
    solvers, verbs = text_of(site / "api" / "solvers.html"), text_of(site / "api" / "verbs.html")
    assert "Evaluations : 2 a step." in solvers  # Heun's facts
    assert "Error estimate : embedded Euler" in solvers
    assert "nfe (Tensor): (batch,) int64: evaluations of eps for each sample" in verbs  # a field's comment
    assert "(batch, *shape)" in verbs


@pytest.mark.slow
def test_the_site_is_built_a_second_time_and_what_a_build_leaves_is_ignored_by_git(site):
    docs = site.parent
    build(docs.parent)
    left = {path.name for path in docs.iterdir() if path.is_dir()} - {"api", "images", "static", "__pycache__"}
    assert {"_build", "notebooks"} <= left
    assert {f"docs/{name}/" for name in left} <= set((ROOT / ".gitignore").read_text().splitlines())


@pytest.mark.slow
def test_examples_on_the_site_are_those_of_the_docstrings(site):
    pages = [html.unescape(re.sub(r"<[^>]+>", "", p.read_text())) for p in (site / "api").glob("*.html")]
    there = {line.strip() for page in pages for line in page.splitlines() if line.strip().startswith(">>>")}
    assert len(there) > 300
    source = "".join(path.read_text() for path in (ROOT / "odesampler").rglob("*.py"))
    assert not [line for line in there if line not in source]
    for name in {*odesampler.__all__} - {"adapters", "exact", "images", "solvers"}:
        lines = inspect.getdoc(getattr(odesampler, name)).splitlines()
        assert {line.strip() for line in lines if line.strip().startswith(">>>")} <= there, name


def test_what_follows_a_formula_in_a_docstring_is_kept(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    from docstrings import formulas_set

    before, after = ["Title.", "", "    x * y", ""], ["", "Examples:", "    >>> 2 * 3", "    6"]
    found = formulas_set([*before, "Args:", "    a: (*b).", *after])
    assert found == ["Title.", "", "::", "", "    x * y", "", "Args:", "    a: (\\*b).", *after]


@pytest.mark.slow
def test_every_page_can_be_read_without_a_network(site):
    for page in site.glob("**/*.html"):
        loaded = re.findall(r'<(?:script|img|link rel="stylesheet")[^>]+(?:src|href)="([^"]+)"', page.read_text())
        assert not [url for url in loaded if re.match(r"(https?:)?//", url)], page.name


@pytest.mark.slow
def test_notebooks_are_pages_with_their_outputs(site):
    pages = list((site / "notebooks").glob("*.html"))
    assert len(pages) == len(list((ROOT / "notebooks").glob("*.ipynb"))) > 0
    for page in pages:
        assert "<img" in page.read_text() or "<svg" in page.read_text(), page.name
