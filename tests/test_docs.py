"""Every code block of README and docs runs, and says what the project does."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch

import odesampler
from odesampler import registry
from odesampler.cli import main
from tests.benchmarks import (
    against_diffusers,
    coordinates,
    defaults,
    exact_problems,
    gpu,
    heterogeneous,
    inversion,
    loop_overhead,
    reversible,
    round_trips,
    throughput,
    time_to_error,
    tune,
)

HELD = odesampler.held_out("digits")
INVERSIONS = (lambda x, cond, n: inversion.bits(x, cond, (n,)), lambda x, cond, n: inversion.pairs(x, cond, (n,)))
IN_SMALL = {  # the benchmarks that the pages name: the same, in small
    "defaults": lambda: defaults.table(odesampler.load("digits"), budgets=(6,), samples=2, reference=60),
    "exact_problems": lambda: exact_problems.table(exact_problems.problems()["ring"], budgets=(6,)),
    "reversible": lambda: [
        f(odesampler.load("digits"), 2, 10, (3,)) for f in (reversible.sampling, reversible.encoding)
    ],
    "inversion": lambda: [f(HELD.images[:2], {"label": HELD.labels[:2]}, 3) for f in (*INVERSIONS, inversion.polished)],
    "round_trips": lambda: [
        round_trips.sources(1, (1.0,), 2, 1),
        round_trips.estimates(1, (2,)),
        round_trips.null_texts(1, ((2, 3.0),)),
        round_trips.saved(1, (2,)),
    ],
    "loop_overhead": lambda: [
        loop_overhead.table((1, 1, 4, 4), 1),
        loop_overhead.adaptive(2),
        loop_overhead.fused((1, 1, 8, 8), ("ddim",), 1),
    ],
    "time_to_error": lambda: [
        time_to_error.to_error(against_diffusers.Problem("digits", 8, 40), 1, [*against_diffusers.settings()][:1]),
        time_to_error.equal_steps(odesampler.load("digits"), 1, 4, 1),
    ],
    "heterogeneous": lambda: heterogeneous.table("mixtures", heterogeneous.mixtures(4), (1e-3,)),
    "coordinates": lambda: coordinates.main(small=True),
    "throughput": lambda: [
        throughput.batches((2,), 1),
        throughput.memory((2,), (1,)),
        throughput.processes((2,), 8, 1),
    ],
    "gpu": lambda: gpu.compare(gpu.TINY, torch.device("cpu"), (1,), 1, 1, tiny=True),
    "against_diffusers": lambda: against_diffusers.table(against_diffusers.Problem("digits", 4, 40), 5, 1),
    "tune": lambda: tune.row(
        against_diffusers.Problem("ring", 4, 40, tune.models()["ring"]),
        4,
        1,
        num_samples=9,
        iterations=10,
        reference_steps=20,
    ),
    "tune held_out": lambda: tune.held_out(3, num_samples=7, iterations=0, reference_steps=12),
}
ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "api").glob("*.md"))]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list:
    found = [
        (page, i, m[2]) for page in PAGES for i, m in enumerate(FENCE.finditer(page.read_text())) if m[1] == language
    ]
    return [pytest.param(page, text, id=f"{page.name}-{i}") for page, i, text in found]


def test_every_block_has_a_language_that_a_test_runs():
    languages = {m[1] for page in PAGES for m in FENCE.finditer(page.read_text())}
    assert languages <= {"python", "bash", "text", "{eval-rst}"}  # the last is Sphinx's: tests/test_site.py


@pytest.mark.parametrize(("page", "text"), blocks("python"))
def test_python_blocks_run(page, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "SOLVERS", dict(registry.SOLVERS))  # what a page registers is forgotten
    exec(compile(text, str(page), "exec"), {"__name__": "__main__"})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of a benchmark's peer
@pytest.mark.parametrize(("page", "text"), blocks("bash"))
def test_commands_run(page, text, tmp_path, monkeypatch):
    """Each `odesampler` command is run; installing and testing are .ci/run's, which must use the same words."""
    script = (ROOT / ".ci" / "run").read_text()
    for command in (part.strip() for line in text.splitlines() for part in line.split("&&")):
        words = shlex.split(command)
        if words[0] == "odesampler":
            monkeypatch.chdir(tmp_path)
            with pytest.raises(SystemExit) as stopped:
                main(words[1:])
            assert stopped.value.code == 0
        elif words[:2] == ["pip", "install"]:
            assert words[2:4] == ["-c", "constraints.txt"]
            assert (ROOT / "constraints.txt").is_file()
        elif words == ["pytest", "-n", "auto"]:
            asked = r"pip install .*-c constraints.txt -e '.\[test\]' && pytest -n auto$"
            assert re.search(asked, script, re.MULTILINE)
        elif words[:3] == ["python", "-m", "tests.benchmarks"]:
            IN_SMALL[" ".join(words[3:])]()
        else:
            pytest.fail(f"nothing runs {command!r}")


def test_the_tables_of_solvers_and_grids_are_those_of_the_library():
    page = (ROOT / "docs" / "solvers.md").read_text()
    written = runpy.run_path(str(ROOT / "docs" / "make_tables.py"))["filled"](page)
    assert written == page, "run `python docs/make_tables.py`"
    assert page.count("\n| `") > 40, "the tables are empty"


def headings(text: str) -> list[str]:
    """What one links to, as GitHub and the site spell it."""
    return [
        re.sub(r"[^\w\- ]", "", line).strip().lower().replace(" ", "-") for line in re.findall(r"^#+ (.*)$", text, re.M)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if not target.startswith("http"):
            file, _, heading = target.partition("#")
            assert (page.parent / file).exists(), target
            assert not heading or heading in headings((page.parent / file).read_text()), target
