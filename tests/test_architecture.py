"""The shape of the code: who may know whom, how long things are, what is documented. Read from the source."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import odesampler
from odesampler.program import Invertible
from tests.problems import concrete_solvers

ROOT = Path(odesampler.__file__).parent
FILES = {
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}
every_module = pytest.mark.parametrize("name", FILES)

CORE = {  # what each module of the core may import of ours
    "precision": set(),
    "prediction": set(),
    "schedule": {"precision"},
    "names": set(),
    "spacing": {"schedule"},
    "named_grids": {"names", "schedule", "spacing"},
    "grid": {"names", "named_grids", "precision", "schedule", "spacing"},
    "noise": {"transfer"},
    "transfer": set(),
    "program": {"precision"},
    "combine": {"program", "precision"},
    "trial": {"program", "combine"},
    "integrate": {"program", "combine", "trial"},
    "frames": {"program"},
    "coordinates": {"program", "combine", "frames", "precision"},
    "adaptive": {"program", "combine", "coordinates", "trial"},
    "roots": {"program", "combine", "precision"},
    "implicit": {"precision", "program", "combine", "integrate", "roots", "trial"},
    "registry": {"program", "combine", "integrate", "adaptive", "names", "solvers", "tuned"},
    "tuned": {"files", "grid", "integrate", "program", "registry", "solvers", "version"},
    "solvers": {"solvers", "registry"},  # the package answers `odesampler.solvers()`
    "data_range": {"precision"},
    "codec": set(),
    "room": {"precision"},
    "standing": set(),
    "compiled": set(),
    "networks": set(),
    "traits": set(),
    "answers": set(),
    "model": {
        "traits",
        "answers",
        "schedule",
        "prediction",
        "precision",
        "codec",
        "data_range",
        "grid",
        "room",
        "standing",
        "compiled",
        "networks",
    },
    "guidance": {"model", "precision"},
    "inputs": {"data_range", "model", "precision"},
    "threshold": {"precision"},
    "drive": {"program", "combine", "model", "noise", "precision", "room", "compiled"},
    "observe": {"program", "schedule"},
    "adjoint": {"program", "integrate", "drive", "model", "noise", "registry"},
    "divergence": {"program", "drive", "model", "noise"},
    "exact": {"model", "prediction", "schedule"},
}
A_SOLVER = {"precision", "program", "combine", "trial", "frames", "coordinates", "solvers"}
FACES = {"analysis", "tuning", "adapters", "cli", "zoo"}  # known to no one but each other
OPTIONAL = {
    "diffusers",
    "sklearn",
    "fontTools",
    "transformers",
    "accelerate",
    "huggingface_hub",
    "IPython",
    "torchvision",
}


def imported(tree):
    """Every module that a file imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
            if node.module == "odesampler":
                yield from (f"odesampler.{alias.name}" for alias in node.names)


def ours(tree):
    """The first part of the name of each of our modules that a file imports."""
    return {name.split(".")[1] for name in imported(tree) if name.startswith("odesampler.")}


def functions(tree):
    return [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def own_nodes(function):
    """What belongs to a function itself, not to functions inside it."""
    rest = list(function.body)
    while rest:
        node = rest.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            rest += ast.iter_child_nodes(node)


def is_program(function):
    decorators = {ast.unparse(d) for d in function.decorator_list}
    yields = any(isinstance(n, (ast.Yield, ast.YieldFrom)) for n in own_nodes(function))
    return yields and "contextmanager" not in decorators


@pytest.mark.parametrize("name", CORE)
def test_a_module_of_the_core_imports_only_what_it_may_know(name):
    assert ours(TREES[name]) <= CORE[name]


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith("solvers.")])
def test_a_solver_knows_neither_models_nor_loops_nor_drivers(name):
    assert ours(TREES[name]) <= A_SOLVER


@every_module
def test_the_faces_are_known_to_no_one_below_them(name):
    if name.split(".")[0] not in FACES | {"__init__", "__main__"}:
        assert not ours(TREES[name]) & FACES


@every_module
def test_optional_packages_are_imported_by_adapters_and_training_scripts_only(name):
    if not re.match(r"adapters\.|zoo\.train", name):
        assert not {i.split(".")[0] for i in imported(TREES[name])} & OPTIONAL


def test_the_package_is_imported_without_torch_and_the_core_without_pictures_and_foreign_solvers():
    script = """
import sys, odesampler
assert "torch" not in sys.modules, "a name should be imported when it is first used"
odesampler.sample, odesampler.registry, odesampler.exact
late = {"matplotlib", "PIL", "click", "scipy", "torchdiffeq", "diffusers", "sklearn"} & set(sys.modules)
assert not late, late
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@every_module
def test_no_context_manager_surrounds_a_yield(name):
    """It would stay entered while the driver has the word: gradient modes and autocast would leak into it."""
    for function in filter(is_program, functions(TREES[name])):
        for node in own_nodes(function):
            if isinstance(node, (ast.With, ast.AsyncWith)):
                inside = {type(n) for n in ast.walk(node)}
                assert not inside & {ast.Yield, ast.YieldFrom}, f"{function.name}, line {node.lineno}"


def test_some_functions_are_programs():
    found = {f.name for tree in TREES.values() for f in functions(tree) if is_program(f)}
    assert {"step", "unstep", "init", "on_grid", "adaptive", "solve", "inverted", "together"} <= found
    assert "written_whole" not in found


@every_module
def test_no_function_is_longer_than_60_lines(name):
    """Not counting its docstring: what a verb's arguments mean takes many lines, and should."""
    for function in functions(TREES[name]):
        words = function.body[0] if ast.get_docstring(function) else None
        length = function.end_lineno - function.lineno + 1 - (words.end_lineno - words.lineno + 1 if words else 0)
        assert length <= 60, f"{function.name} has {length} lines"


@every_module
def test_no_file_is_longer_than_330_lines(name):
    length = len(FILES[name].read_text().splitlines())
    assert length <= 330


CLASSES = {node.name: node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
OF_OTHERS = {"nn.Module": {"forward"}, "Module": {"forward"}}


def documented_by_a_base(kind, method):
    """Whether a class that `kind` is made from documents `method`."""
    for base in map(ast.unparse, kind.bases):
        base = base.split("[")[0]
        if method in OF_OTHERS.get(base, ()):
            return True
        if base in CLASSES:
            for member in CLASSES[base].body:
                if isinstance(member, ast.FunctionDef) and member.name == method and ast.get_docstring(member):
                    return True
                if isinstance(member, ast.AnnAssign) and ast.unparse(member.target) == method:
                    return True  # a property in place of an attribute that its base explains
            if documented_by_a_base(CLASSES[base], method):
                return True
    return False


def undocumented(tree):
    """Public functions, classes and methods without a docstring."""
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            yield node.name
        for member in node.body if isinstance(node, ast.ClassDef) else ():
            if not isinstance(member, ast.FunctionDef) or member.name.startswith("_"):
                continue
            if not ast.get_docstring(member) and not documented_by_a_base(node, member.name):
                yield f"{node.name}.{member.name}"


@every_module
def test_every_public_name_is_documented(name):
    if FILES[name].read_text().strip():
        assert ast.get_docstring(TREES[name]), "the module itself"
    assert list(undocumented(TREES[name])) == []


@pytest.mark.parametrize("kind", concrete_solvers(), ids=lambda kind: kind.__name__)
def test_a_solver_states_its_facts_in_a_fixed_order_and_they_are_true(kind):
    text = re.sub(r"\s+", " ", inspect.getdoc(kind))
    facts = ["Order", "Evaluations:", "Error estimate:", "Memory:", "Exactly invertible:"]
    assert [text.count(fact) for fact in facts] == [1] * 5
    assert sorted(facts, key=text.index) == facts
    said = {fact: text.partition(fact)[2].strip(": ") for fact in facts}
    solver = kind()
    for fact, value in (("Order", solver.order), ("Evaluations:", solver.evaluations)):
        if number := re.match(r"\d+", said[fact]):
            assert int(number[0]) == value
    assert said["Error estimate:"].startswith("none") == (solver.error_order is None)
    assert said["Exactly invertible:"].startswith("yes") == isinstance(solver, Invertible)
    assert "References:" in text


@every_module
def test_nothing_is_unpickled(name):
    assert not {i.split(".")[0] for i in imported(TREES[name])} & {"pickle", "dill", "joblib"}
    for call in (n for n in ast.walk(TREES[name]) if isinstance(n, ast.Call)):
        if ast.unparse(call.func) == "torch.load":
            assert "weights_only=True" in map(ast.unparse, call.keywords)
