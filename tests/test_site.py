"""The documentation site builds without a warning, and says all that it should."""

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


def rows(page: str) -> list[list[str]]:
    """The cells of every line of every table."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built from a copy: a build writes beside its sources."""
    root = tmp_path_factory.mktemp("site")
    for part in ("docs", "notebooks", "odesampler", "tests"):
        shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("_build", "__pycache__"))
    for page in ROOT.glob("*.md"):
        shutil.copy(page, root)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(root / "docs"), str(root / "html")]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return root / "html"


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
