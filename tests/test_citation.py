"""`ods.cite`: what docstrings cite has an entry that agrees with them, and what one asks for brings that alone."""

import ast
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache

import pytest
import torch

import odesampler as ods
from odesampler.citation import FOLDER, LIBRARY, Citation, citations, entries
from odesampler.named_grids import NAMED
from odesampler.registry import LOOPS, SOLVERS, find_solver
from tests.problems import concrete_solvers

FILES = sorted(FOLDER.rglob("*.py"))
ASCII = str.maketrans("äöüéø", "aoueo")


@cache
def docstrings():
    """Every docstring of the package, by file and name."""
    found = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
                name = getattr(node, "name", "module")
                found[f"{path.relative_to(FOLDER)}:{name}:{getattr(node, 'lineno', 0)}"] = ast.get_docstring(node)
    return found


CITING = {where: text for where, text in docstrings().items() if citations(text)}


def keys(what):
    """The keys of what `cite` brings, in order."""
    return re.findall(r"^@\w+\{(\w+),$", ods.cite(what), re.MULTILINE)


@pytest.mark.parametrize("where", CITING)
def test_what_a_docstring_cites_has_an_entry_by_the_same_authors_of_the_same_year(where):
    """All authors that it names, in order; without "et al." these are all there are."""
    text = " ".join(CITING[where].split())
    for cited in citations(text):
        entry, named = cited.entry, tuple(name.translate(ASCII) for name in cited.surnames)
        assert entry.surnames[: len(named)] == named
        assert entry.fields["year"] == cited.year
        et_al = f"{cited.surnames[-1]} et al. {cited.year}" in text
        assert (len(entry.surnames) > len(named)) == et_al, entry.key


def test_every_preprint_in_a_docstring_belongs_to_a_citation():
    for where, text in docstrings().items():
        numbers = re.findall(r"arXiv:(\d{4}\.\d{4,5})", text)
        assert sorted(numbers) == sorted(c.preprint for c in citations(text) if c.preprint), where


def test_every_preprint_that_the_code_names_in_comments_too_has_an_entry():
    known = {entry.fields.get("eprint") for entry in entries().values()}
    for path in FILES:
        assert set(re.findall(r"arXiv:(\d{4}\.\d{4,5})", path.read_text())) <= known, path.name


def test_every_references_section_is_read():
    for where, text in docstrings().items():
        assert ("References:" not in text) or where in CITING, where


def test_every_entry_is_cited():
    cited = {c.entry.key for text in CITING.values() for c in citations(text)}
    assert {LIBRARY} | cited == entries().keys()


@pytest.mark.parametrize("entry", entries().values(), ids=lambda entry: entry.key)
def test_an_entry_is_whole_and_named_after_its_first_author_and_year(entry):
    assert entry.text.startswith("@")
    assert entry.text.endswith("\n}")
    assert {"author", "title", "year"} <= entry.fields.keys()
    assert len(entry.fields) == len(entry.text.splitlines()) - 2, "one field a line"
    assert entry.text.count("{") == entry.text.count("}")
    assert entry.text.isascii(), "accents as BibTeX has them"
    if entry.key != LIBRARY:
        assert entry.key.startswith(entry.surnames[0].lower() + entry.fields["year"])
    if "eprint" in entry.fields:
        assert entry.fields["archivePrefix"] == "arXiv"
    elif entry.key != LIBRARY:
        assert {"doi", "pages", "publisher", "booktitle", "institution", "howpublished"} & entry.fields.keys()


def test_no_work_has_two_entries():
    for field in ("eprint", "doi", "title"):
        values = [entry.fields[field] for entry in entries().values() if field in entry.fields]
        assert len(values) == len(set(values))


@pytest.mark.parametrize("name", [*SOLVERS, *LOOPS, "adaptive:heun", "torchdiffeq:rk4", "scipy:LSODA"])
def test_every_solver_has_a_source_by_every_name_and_as_an_object(name):
    assert keys(name)
    assert set(keys(find_solver(name))) == set(keys(name))


@pytest.mark.parametrize("kind", concrete_solvers(), ids=lambda kind: kind.__name__)
def test_words_in_brackets_that_look_like_names_are_names_and_none_is_without_a_source_of_its_own(kind):
    """A name that is misspelt in a docstring would silently be for all."""
    found, names = citations(kind.__doc__), set(getattr(kind, "names", {}))
    bracketed = {word for c in found for word in c.bracketed}
    assert {word for word in bracketed if "_" in word} <= names | SOLVERS.keys()
    if kind in (ods.Multistep, ods.Singlestep):  # families, whose members differ in where they come from
        alike = {n for n in names if any(kind.names[n] == kind.names[b] for b in bracketed & names)}
        assert alike == names


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("heun", ["karras2022edm"]),
        ("ddim", ["song2021ddim"]),
        ("alf", ["zhuang2021mali", "mutze2013"]),
        ("dpmpp_2m", ["lu2022dpmsolverpp"]),
        ("dpmpp_2m(predictor=3)", ["lu2022dpmsolverpp"]),
        ("unipc_bh2", ["zhao2023unipc"]),
        ("o_belm", ["wang2024belm"]),
        ("bdia", ["zhang2023bdia"]),
        ("plms", ["liu2022pndm"]),
        ("plms(starter='rk4')", ["liu2022pndm", "kutta1901"]),
        ("churn(base='ralston')", ["karras2022edm", "ralston1962"]),
        ("adaptive:dopri5(rtol=1e-3)", ["dormand1980", "hairer1993", "gustafsson1994"]),
        ("dpm_adaptive", ["lu2022dpmsolver", "hairer1993", "gustafsson1994"]),
        ("torchdiffeq:dopri5", ["chen2018torchdiffeq"]),
        ("scipy:RK45", ["virtanen2020scipy"]),
        ("karras", ["karras2022edm"]),
        ("karras(rho=5)", ["karras2022edm"]),
        ("null_text", ["mokady2022", "kingma2015adam"]),
        ("DynamicThreshold", ["saharia2022imagen"]),
        ("ssim", ["wang2004ssim"]),
        ("Guidance", ["ho2022cfg", "lin2023flawed", "kynkaanniemi2024"]),
        (ods.Guidance(3), ["ho2022cfg"]),
        (ods.Guidance(3, interval=(0.1, 2)), ["ho2022cfg", "kynkaanniemi2024"]),
        (ods.Heun(), ["karras2022edm"]),
        (ods.Heun, ["karras2022edm"]),
        (ods.null_text, ["mokady2022", "kingma2015adam"]),
        (ods.Adaptive(ods.Bosh3()), ["bogacki1989", "hairer1993", "gustafsson1994"]),
        (ods.make_grid("ays", ods.VE(), 5, into_zero=True), ["sabour2024ays"]),
        (ods.Tuned(ods.Heun(), ods.make_grid("karras", ods.VE(), 3, into_zero=True)), ["karras2022edm"]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_asked_for_brings_its_sources_and_nothing_more(what, expected):
    assert keys(what) == expected


def test_of_pieces_that_were_joined_every_one_is_cited():
    top = ods.make_grid("karras", ods.VE(), 4, into_zero=False, sigma_min=1.0)
    rest = ods.make_grid("beta", ods.VE(), 6, into_zero=True, sigma_max=1.0)
    assert keys(ods.concatenate(top, rest)) == ["karras2022edm", "lee2024beta"]


def test_a_latent_cites_all_that_went_into_it_once():
    model = ods.load("digits")
    images, cond = ods.held_out("digits").images[:1], {"label": [3]}
    how = {"cond": cond, "solver": "heun", "grid": "karras", "num_steps": 3}
    plain = ods.encode(model, images, **how)
    assert keys(plain) == keys(plain.recipe) == ["karras2022edm"]
    how |= {"guidance_scale": 2.0, "clip_denoised": ods.DynamicThreshold(), "convention": "target"}
    with pytest.warns(UserWarning, match="cannot come back"):
        more = ods.encode(model, images, **how)
    assert keys(more) == ["karras2022edm", "ho2022cfg", "saharia2022imagen", "mokady2022"]
    solved = replace(plain.recipe, convention="implicit(tolerance=1e-9)", polished=True)
    equations = ["pan2023aidi", "garibi2024renoise", "hong2024", "stetter1978", "walker2011"]
    assert keys(solved) == ["karras2022edm", *equations]
    found = replace(plain, null={"embedding": torch.zeros(1, 3, 2)})
    assert keys(found) == ["karras2022edm", "mokady2022", "kingma2015adam"]


def test_a_recipe_of_a_solver_of_ones_own_cites_the_rest():
    model = ods.load("digits")
    latent = ods.encode(model, ods.held_out("digits").images[:1], solver="ddim", grid="karras", num_steps=2)
    assert keys(replace(latent.recipe, solver="MyOwn(a=1)")) == ["karras2022edm"]


def test_a_registered_solver_is_cited_by_its_docstring(monkeypatch):
    class Mine(ods.Heun):
        """A solver.

        References:
            Ralston 1962, Runge-Kutta methods with minimum error bounds.
        """

    monkeypatch.setitem(SOLVERS, "mine", Mine)
    assert keys("mine") == ["ralston1962"]
    Mine.__doc__ = "A solver. Nobody et al. 1999, arXiv:9912.99999."
    with pytest.raises(ValueError, match="no BibTeX entry for Nobody 1999"):
        ods.cite("mine")


def test_it_prints_as_bibtex():
    said = ods.cite("rk45")
    assert isinstance(said, str)
    assert repr(said) == str(said) == entries()["dormand1980"].text
    assert ods.cite("rex").count("\n\n@") == 1


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("huen", "did you mean heun"),
        ("karas", "did you mean .*karras"),
        ("null_txt", "did you mean .*null_text"),
        ("likelyhood", "did you mean .*likelihood"),
        ("nothing like it", "cite takes the name of a solver"),
        ("leading", "names no source for 'leading'.*cite()"),
        ("Model", "names no source"),
        (3, "names no source for 3"),
        ("cite", "names no source for 'cite'"),
        ("heun(order=3)", "unexpected keyword"),
        ("karras(order=3)", "takes rho, last"),
        ("adaptive:euler", "estimates no error"),
    ],
)
def test_what_has_no_source_is_refused_in_words_that_help(what, words):
    with pytest.raises(ValueError, match=words):
        ods.cite(what)


def test_what_cannot_be_shown_in_a_line_is_named_by_its_kind():
    with pytest.raises(ValueError, match="names no source for this Model"):
        ods.cite(ods.load("digits"))


@pytest.mark.parametrize("what", ["odesampler", ods], ids=["name", "package"])
def test_the_library_is_cited_by_its_name_too(what):
    assert ods.cite(what) == ods.cite()


def test_grids_with_a_name_from_the_literature_have_a_source():
    silent = {name for name, function in NAMED.items() if not citations(function.__doc__)}
    assert silent == {"leading", "trailing", "linspace", "polyexponential", "phi", "power", "asinh", "angle"}


def test_without_docstrings_it_says_so():
    script = "import odesampler as ods\nprint(ods.cite())\nods.cite('heun')"
    done = subprocess.run(
        [sys.executable, "-OO", "-c", script], cwd=FOLDER.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "@software{odesampler," in done.stdout
    assert "leaves out: run Python without it" in done.stderr


def test_a_citation_is_read_from_a_docstring_as_people_write_it():
    text = """Golub, Van Loan 2013, Matrix Computations. Ho & Salimans 2022, arXiv:2207.12598 (a, b_c). Karras et
    al. 2022 (EDM), arXiv:2206.00364, eq. 5; Efron and Tibshirani 1993."""
    assert citations(text) == [
        Citation(("Golub", "Van Loan"), "2013", None, frozenset()),
        Citation(("Ho", "Salimans"), "2022", "2207.12598", frozenset({"a", "b_c"})),
        Citation(("Karras",), "2022", "2206.00364", frozenset({"EDM"})),
        Citation(("Efron", "Tibshirani"), "1993", None, frozenset()),
    ]
    assert citations(None) == []
