"""What is handed out: wheel and sdist, their metadata, and files that must say the same as the code."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import torch
import yaml

import odesampler as ods
from odesampler.citation import LIBRARY, entries

ROOT = Path(__file__).parent.parent
PROJECT = (ROOT / "pyproject.toml").read_text()
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]


def checked(*words: object, cwd: Path, **environment: str) -> str:
    """What a command prints; it must succeed."""
    known = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment
    done = subprocess.run([str(w) for w in words], cwd=cwd, env=known, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def built(tree: Path, out: Path, target: str) -> Path:
    """The wheel or sdist of a tree."""
    checked(sys.executable, "-m", "hatchling", "build", "-d", out, "-t", target, cwd=tree)
    (made,) = out.iterdir()
    return made


def contents(wheel: Path) -> dict[str, bytes]:
    """Its files."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return built(ROOT, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    return built(ROOT, tmp_path_factory.mktemp("sdist"), "sdist")


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel):
    folder = ROOT / "odesampler"
    junk = {"__pycache__", ".ipynb_checkpoints"}
    ours = {
        str(p.relative_to(ROOT)) for p in folder.rglob("*") if p.is_file() and not junk & set(p.relative_to(ROOT).parts)
    }
    found = set(contents(wheel))
    own = {name for name in found if ".dist-info/" in name}
    assert found - own == ours
    needed = ["references.bib", "py.typed", "analysis/page.css", "analysis/page.js", "zoo/digits.safetensors"]
    assert {f"odesampler/{name}" for name in needed} <= found
    licences = {name.partition("/licenses/")[2] for name in own if "/licenses/" in name}
    assert licences == set(re.findall(r'"([^"]+)"', re.search(r"^license-files = (.*)$", PROJECT, re.MULTILINE)[1]))


@pytest.mark.slow
def test_a_wheel_made_from_the_sdist_is_the_same(wheel, sdist, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "tree", filter="data")
    (tree,) = (tmp_path / "tree").iterdir()
    for file in ("CITATION.cff", ".ci/run", ".github/ISSUE_TEMPLATE/bug.yml", ".gitignore"):  # tests in it read them
        assert (tree / file).is_file(), file
    assert contents(built(tree, tmp_path / "again", "wheel")) == contents(wheel)


@pytest.mark.slow
def test_the_metadata_say_what_is_needed(wheel):
    (text,) = [data.decode() for name, data in contents(wheel).items() if name.endswith("/METADATA")]
    said = Parser().parsestr(text)
    assert said["Version"] == ods.__version__
    assert said["Requires-Python"] == ">=3.10"
    assert said["License-Expression"] == "MIT"
    assert set(said.get_all("Provides-Extra")) >= {"diffusers", "notebooks", "train", "test", "dev"}
    plain = {re.match(r"[\w-]+", r)[0] for r in said.get_all("Requires-Dist") if "extra ==" not in r}
    needed = {"torch", "torchdiffeq", "scipy", "numpy", "safetensors", "tqdm", "pillow", "matplotlib", "click"}
    assert {name.lower() for name in plain} == needed
    assert wheel.name.endswith("-py3-none-any.whl"), "no compiler is needed"


@pytest.mark.slow
def test_installed_by_itself_it_runs_from_elsewhere(wheel, tmp_path):
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", target, wheel]
    checked(*pip, cwd=tmp_path)
    where = {"cwd": tmp_path, "PYTHONPATH": str(target)}
    told = checked(sys.executable, "-c", "import odesampler; print(odesampler.__file__)", **where)
    assert Path(told.strip()).is_relative_to(target)
    assert "roundtrip" in checked(sys.executable, "-m", "odesampler", "--help", **where)
    sample = ["sample", "--model", "digits", "--num", "2", "--steps", "3", "--out", "digits.png"]
    assert "3 evaluations each" in checked(sys.executable, "-m", "odesampler", *sample, **where)
    assert (tmp_path / "digits.png").is_file()
    assert "@article{dormand1980" in checked(sys.executable, "-m", "odesampler", "cite", "rk45", **where)


def test_the_versions_of_python_are_those_that_are_stated():
    assert re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT) == PYTHONS
    assert f'requires-python = ">={PYTHONS[0]}"' in PROJECT
    assert 'target-version = "py310"' in PROJECT
    assert f"Python {PYTHONS[0]} or later" in (ROOT / "README.md").read_text()
    assert all(version in (ROOT / "CONTRIBUTING.md").read_text() for version in PYTHONS)


def test_the_citation_file_and_the_library_cite_the_library_alike():
    said = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    own = entries()[LIBRARY].fields
    assert said["cff-version"] == "1.2.0"
    assert said["type"] == "software"
    assert said["message"]
    assert said["version"] == ods.__version__
    assert f"version = {{{ods.__version__}}}" in ods.cite()
    assert said["title"] == re.sub(r"[{}]", "", own["title"])
    assert [author["name"] for author in said["authors"]] == [own["author"].strip("{}")]
    assert f"Copyright (c) {own['year']} {own['author'].strip('{}')}" in (ROOT / "LICENSE").read_text()
    assert f'license = "{said["license"]}"' in PROJECT


def test_pre_commit_checks_what_ci_checks_before_it_tests():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    installs = [i for i, line in enumerate(lines) if "pip install" in line]
    checks = lines[installs[0] + 1 : installs[1]]
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local"
    assert [hook["entry"] for hook in repo["hooks"]] == checks
    assert len(checks) >= 3
    for hook in repo["hooks"]:
        assert (hook["language"], hook["pass_filenames"]) == ("system", False)
        assert {"id", "name"} <= hook.keys()


@pytest.mark.parametrize("name", ["bug", "idea"])
def test_a_form_for_issues_has_what_github_asks_for(name):
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
    assert {"name", "description", "body"} <= form.keys()
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids))
    for field in form["body"]:
        assert field["type"] in ("textarea", "input", "dropdown", "checkboxes")
        assert field["attributes"]["label"]
        assert isinstance(field["validations"]["required"], bool)


def test_what_the_forms_ask_for_exists(capsys):
    from odesampler.cli import main

    asked = (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text()
    assert "`odesampler --version`" in asked
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    python = ".".join(map(str, sys.version_info[:3]))
    for words in (f"odesampler {ods.__version__}", f"Python {python}", f"torch {torch.__version__}", "devices: cpu"):
        assert words in said
    template = (ROOT / ".github" / "PULL_REQUEST_TEMPLATE.md").read_text()
    for path in re.findall(r"`(?:python |bash )?([\w./]+/[\w.]+|[A-Z]+\.md)`", template):
        assert (ROOT / path).is_file(), path
