"""Every example in a docstring does what it shows, and every public name has one. They are found in the source."""

import ast
import importlib
from doctest import ELLIPSIS, DocTest, DocTestParser, DocTestRunner
from pathlib import Path

import pytest
import torch

import odesampler
from odesampler import registry
from odesampler.adapters import diffusers as for_diffusers

ROOT = Path(odesampler.__file__).parent
NAMED = (ast.ClassDef, ast.FunctionDef)
WITHOUT = {  # public names without an example, and why
    "odesampler.adapters.checkpoints.Loaded": "what `into` gives back, shown there",
    "odesampler.adapters.checkpoints.Weights": "what `load_weights` gives back, shown there",
    "odesampler.adapters.diffusers.pipelines.from_pipeline": "needs a pipeline",
    "odesampler.adapters.diffusers.pipelines.from_pretrained": "needs a download",
    "odesampler.adapters.diffusers.prompts.conditions": "needs a pipeline with a text encoder",
    "odesampler.adapters.diffusers.prompts.text_model": "needs a pipeline with a text encoder",
    "odesampler.adapters.edm.Coefficients": "what `Preconditioned` is made of",
    "odesampler.adapters.kdiffusion.Denoiser": "what `to_denoiser` gives back, shown there",
    "odesampler.adapters.kdiffusion_samplers.Sampler": "what `sampler` gives back, shown there",
}


def docstrings(node, name):
    """Each (name, docstring, line) in a module, class or function, and what is defined in it."""
    if text := ast.get_docstring(node):
        yield name, text, node.body[0].lineno
    for child in ast.iter_child_nodes(node):
        if isinstance(child, NAMED):
            yield from docstrings(child, f"{name}.{child.name}")


def module_name(path):
    return ".".join(("odesampler", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
EXAMPLES = {
    name: DocTestParser().get_doctest(text, {}, name, str(path), line - 1)
    for module, path in FILES.items()
    for name, text, line in docstrings(ast.parse(path.read_text()), module)
    if ">>>" in text
}


def home(name):
    """Where a name of the package is defined: "odesampler.grid.Grid"."""
    if name == "solvers":  # the package of this name answers for the function
        return "odesampler.registry.solvers"
    thing = getattr(odesampler, name)
    return f"{thing.__module__}.{thing.__qualname__}"


def defined_in(module):
    """The public functions and classes that a module defines."""
    body = ast.parse(FILES[module].read_text()).body
    return {f"{module}.{n.name}" for n in body if isinstance(n, NAMED) and not n.name.startswith("_")}


def public():
    """All that users call: the package's names, and those of its public modules."""
    names = {home(name) for name in odesampler.__all__ if name not in odesampler._MODULES}
    modules = ("checkpoints", "edm", "guided_diffusion", "kdiffusion", "kdiffusion_samplers")
    for module in ("exact", "images", *(f"adapters.{each}" for each in modules)):
        names |= defined_in(f"odesampler.{module}")
    inside = for_diffusers.__name__
    return names | {f"{inside}.{at}.{name}" for at, held in for_diffusers._HOMES.items() for name in held}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_shows_what_happens(name, tmp_path, monkeypatch):
    """As a user types it after the two imports, in a folder of its own; a warning is an error here as anywhere."""
    if name.startswith(for_diffusers.__name__):
        pytest.importorskip("diffusers")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "SOLVERS", dict(registry.SOLVERS))  # what an example registers is forgotten
    found = EXAMPLES[name]
    names = {"ods": odesampler, "torch": torch, "__name__": "__main__"}
    complaints = []
    runner = DocTestRunner(optionflags=ELLIPSIS)
    runner.run(DocTest(found.examples, names, name, found.filename, found.lineno, None), out=complaints.append)
    assert runner.tries > 0
    assert runner.failures == 0, "".join(complaints)


def test_every_public_name_has_an_example():
    lacking = public() - EXAMPLES.keys()
    assert lacking == WITHOUT.keys(), "write examples, or strike out the exceptions that are none any more"


def test_public_names_are_found_where_they_are_looked_for():
    """The sets above would agree if both were empty."""
    assert len(public()) > 100
    assert {"odesampler.sampling.sample", "odesampler.images.save_grid", "odesampler.solvers.alf.ALF"} <= public()
    for name in sorted(public() - {n for n in public() if n.startswith(for_diffusers.__name__)}):
        module, _, own = name.rpartition(".")
        assert hasattr(importlib.import_module(module), own), name
