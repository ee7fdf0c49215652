"""Where a method comes from, as BibTeX. What a docstring cites is what is cited; `references.bib` says it in full.

    Surname et al. YEAR, Title, arXiv:NUMBER, Algorithm 1                       in a docstring
    @inproceedings{surnameYEARtitle, ..., year = {YEAR}, eprint = {NUMBER}, ...}  in references.bib

The number of a preprint leads from one to the other; where a citation has none, its first author and its year. A solver
of many names says in brackets, after a citation, whose source it is: `(belm)` is for belm alone.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Collection, Iterable
from dataclasses import Field, fields, is_dataclass
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import odesampler
from odesampler.adaptive import Adaptive
from odesampler.grid import Grid, parsed_grid
from odesampler.guidance import Guidance
from odesampler.latent import Latent, Recipe
from odesampler.named_grids import NAMED
from odesampler.program import Loop, Solver
from odesampler.registry import LOOPS, SOLVERS, find_solver, spec_of
from odesampler.threshold import DynamicThreshold
from odesampler.tuned import Tuned
from odesampler.version import __version__

FOLDER = Path(__file__).parent
LIBRARY = "odesampler"  # the key of its own entry
_NAME = r"[A-Z][\w-]+(?: [A-Z][\w-]+)?"
_CITATION = re.compile(rf"((?:{_NAME}(?:,| &| and) )*{_NAME})(?: et al\.)?,? ((?:18|19|20)\d\d)\b")
_PREPRINT = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


class BibTeX(str):
    """Entries, as a .bib file takes them; shown as they are."""

    def __repr__(self) -> str:
        return str(self)


class Entry(NamedTuple):
    """One work in references.bib."""

    key: str
    text: str
    fields: dict[str, str]

    @property
    def surnames(self) -> tuple[str, ...]:
        """Of its authors, without accents and braces."""
        authors = re.sub(r"\\o\b", "o", self.fields["author"]).split(" and ")
        return tuple(re.sub(r"""[\\{}"']""", "", name.partition(",")[0]) for name in authors)


class Citation(NamedTuple):
    """One work as a docstring names it."""

    surnames: tuple[str, ...]
    year: str
    preprint: str | None
    bracketed: frozenset[str]  # words in brackets after it

    @property
    def entry(self) -> Entry:
        """What it stands for. Raises: ValueError: references.bib does not have it."""
        for entry in entries().values():
            known = entry.fields.get("eprint")
            first = (entry.surnames[0], entry.fields["year"]) == (self.surnames[0], self.year)
            if self.preprint == known and (known or first):
                return entry
        raise ValueError(f"there is no BibTeX entry for {self.surnames[0]} {self.year}, which its docstring cites")


@cache
def entries() -> dict[str, Entry]:
    """Every work in references.bib, by its key."""
    found = {}
    for text in (FOLDER / "references.bib").read_text(encoding="utf-8").strip().split("\n\n"):
        key = text.partition("{")[2].partition(",")[0]
        found[key] = Entry(key, text, dict(re.findall(r"^  (\w+) = \{(.*)\},$", text, re.MULTILINE)))
    return found


def citations(docstring: str | None) -> list[Citation]:
    """What a docstring cites: authors and year, and up to the next such, the preprint and the words in brackets."""
    text = " ".join((docstring or "").split())
    heads = list(_CITATION.finditer(text))
    starts = [*(head.start() for head in heads), len(text)]
    found = []
    for head, end in zip(heads, starts[1:], strict=True):
        rest = text[head.end() : end]
        preprint = _PREPRINT.search(rest)
        words = {word for inside in re.findall(r"\(([^)]*)\)", rest) for word in re.findall(r"\w+", inside)}
        surnames = tuple(re.split(r",? and |, | & ", head[1]))
        found.append(Citation(surnames, head[2], preprint and preprint[1], frozenset(words)))
    return found


def cite(what: Any = None) -> BibTeX:
    """The sources of what you used, as BibTeX.

    Args:
        what: A solver, grid, public name of the library or one of its modules, by name, with arguments if need be
            ("ddim", "karras(rho=5)", "null_text", "likelihood"); the object itself; a latent or its recipe, for all
            that went into it. Nothing, or "odesampler": this library.

    Raises:
        ValueError: An unknown name (says what is near), or one for which the library names no source.
        RuntimeError: Python runs without docstrings, in which the sources stand.

    Examples:
        >>> ods.cite("ddim").splitlines()[0]
        '@inproceedings{song2021ddim,'
    """
    if what is None or what is odesampler or (isinstance(what, str) and what == LIBRARY):
        own = entries()[LIBRARY].text
        return BibTeX(own[:-1] + f"  version = {{{__version__}}},\n}}")
    if cite.__doc__ is None:
        raise RuntimeError("sources are read from docstrings, which `python -OO` leaves out: run Python without it")
    found = {source.entry.key: source.entry.text for source in _sources(what)}
    if not found:
        shown = repr(what)
        shown = shown if len(shown) <= 80 else f"this {type(what).__name__}"  # a model's fills pages
        raise ValueError(f"the library names no source for {shown}; to cite the library itself: ods.cite()")
    return BibTeX("\n\n".join(found.values()))


def _sources(what: Any) -> list[Citation]:
    if isinstance(what, str):
        return _of_name(what)
    if isinstance(what, Latent):
        return _of_recipe(what.recipe) + (_of_name("null_text") if what.null else [])
    if isinstance(what, Recipe):
        return _of_recipe(what)
    if isinstance(what, Tuned):
        return _sources(what.solver)
    if isinstance(what, (Solver, Loop)):
        return _of_solver(spec_of(what), what)
    if isinstance(what, Grid):
        return _of_grid(what.name)
    if isinstance(what, Guidance):
        given = {f.name for f in fields(what) if getattr(what, f.name) != f.default}
        return _chosen(_of_object(Guidance), {f.name for f in fields(what)}, given)
    return _of_object(what)


def _of_name(name: str) -> list[Citation]:
    head = name.partition("(")[0].strip()
    if ":" in head or head in SOLVERS or head in LOOPS or name.endswith(".json"):
        return _of_solver(name, find_solver(name))
    if head in NAMED:
        return citations(NAMED[parsed_grid(name)[0]].__doc__)
    if name in odesampler.__all__:
        return _of_object(getattr(odesampler, name))
    if name in _concepts():
        return citations(_concepts()[name])
    known = [*SOLVERS, *LOOPS, *NAMED, *odesampler.__all__, *_concepts()]
    near = get_close_matches(name, known, n=3) or get_close_matches(name.lower(), known, n=3)
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    raise ValueError(
        f"nothing here is called {name!r}; {meant}cite takes the name of a solver (see ods.solvers()), of a grid "
        f"(ods.grids()), of anything public in odesampler, or one of {', '.join(_concepts())}"
    )


def _of_solver(spec: str, solver: Solver | Loop) -> list[Citation]:
    """Of a solver, known by the name that was typed, since one with arguments has no other; and of what drives it."""
    if isinstance(solver, Tuned):
        return _sources(solver.solver)
    head = spec.partition("(")[0].strip()
    name = LOOPS.get(head, head).rpartition(":")[2].strip()
    if isinstance(solver, Adaptive):
        return _of_solver(name, solver.solver) + _of_object(Adaptive)
    if name not in SOLVERS or ":" in head:
        return _of_object(type(getattr(solver, "solver", solver)))
    usual, kind = SOLVERS[name](), _class_of(name)
    names = {other for other in SOLVERS if _class_of(other) is kind}
    alike = {other for other in names if SOLVERS[other]() == usual}
    found = _chosen(_of_object(kind), names, {name, *alike})
    told: tuple[Field[Any], ...] = fields(solver) if is_dataclass(solver) and type(solver) is type(usual) else ()
    for f in told:
        inner = getattr(solver, f.name)
        if isinstance(inner, Solver) and inner != getattr(usual, f.name):
            found += _sources(inner)  # in place of the usual one, which the docstring speaks of
    return found


def _class_of(name: str) -> Any:
    """Of a solver; what makes it, where a user registered a function."""
    maker = SOLVERS[name]
    return maker.func if isinstance(maker, partial) else maker


def _of_grid(name: str) -> list[Citation]:
    """Of a grid that was made: its name, or those of its pieces; one of the user's own has none."""
    heads = [re.match(r"\w*", piece) for piece in name.split(" + ")]
    return [c for head in heads if head and head[0] in NAMED for c in citations(NAMED[head[0]].__doc__)]


def _of_recipe(recipe: Recipe) -> list[Citation]:
    try:
        found = _of_solver(recipe.solver, find_solver(recipe.solver))
    except (ValueError, OSError):  # a solver of the user's own, or a file that is not here
        found = []
    found += _of_grid(recipe.grid)
    scale = recipe.guidance_scale
    if scale != 1:
        found += _sources(scale if isinstance(scale, Guidance) else Guidance(scale))
    if isinstance(recipe.clip_denoised, DynamicThreshold):
        found += _of_object(DynamicThreshold)
    if recipe.convention == "target":
        found += _chosen(_of_name("conventions"), {"source", "target"}, {"target"})
    if recipe.convention.startswith("implicit"):
        found += _of_name("Implicit")
    return found + (_of_name("polish") if recipe.polished else [])


def _of_object(what: Any) -> list[Citation]:
    """Of a class, function or module: what its own docstring cites, else that of its module."""
    module = sys.modules.get(getattr(what, "__module__", None) or "")
    return citations(what.__doc__) or citations(module.__doc__ if module else None)


def _chosen(found: Iterable[Citation], names: Collection[str], mine: Collection[str]) -> list[Citation]:
    """Those for all and those for `mine`, where brackets tell `names` apart; if that leaves none, all."""
    found = list(found)
    chosen = [c for c in found if not c.bracketed & set(names) or c.bracketed & set(mine)]
    return chosen or found


@cache
def _concepts() -> dict[str, str]:
    """Docstrings of the modules that cite something, by the module's name. Read, not imported: some need more."""
    found = {}
    for path in sorted(FOLDER.rglob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        if citations(docstring):
            found[path.parent.name if path.stem == "__init__" else path.stem] = docstring
    return found
