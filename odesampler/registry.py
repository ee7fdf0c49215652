"""Names of solvers: from what a user types to what a program is made of, and back.

    "heun"    "ancestral(eta=0.5)"    "adaptive:dopri5(rtol=1e-6)"    "torchdiffeq:rk4"    "scipy:DOP853"

A plain name is one of our solvers on a grid; before a colon stands who drives: our adaptive loop, or another library.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cache, partial
from importlib import import_module
from inspect import isabstract
from pkgutil import iter_modules
from typing import Any, NamedTuple, TypeVar

from odesampler.adaptive import Adaptive
from odesampler.integrate import OnGrid
from odesampler.names import parsed, table
from odesampler.program import Invertible, Loop, Solver
from odesampler.solvers.external import SCIPY_METHODS, Scipy, Torchdiffeq, torchdiffeq_methods

T = TypeVar("T")
OF_THE_LOOP = [field.name for field in fields(Adaptive) if field.name != "solver"]
DRIVERS = ("adaptive", "torchdiffeq", "scipy")
LOOPS = {"dpm_adaptive": "adaptive:dpm_solver_3"}  # plain names of loops -> the driver and the solver that they mean
MEANT: dict[str, dict[str, Any]] = {
    "dpm_adaptive": {"coordinate": "asinh"}
}  # as k-diffusion's, which measures errors in x


def _found() -> dict[str, Callable[..., Solver]]:
    """Every concrete solver of the package, in whatever module: under its own name and under each of its `names`."""
    makers: dict[str, Callable[..., Solver]] = {}
    for module in iter_modules(import_module("odesampler.solvers").__path__, "odesampler.solvers."):
        for kind in vars(import_module(module.name)).values():
            here = isinstance(kind, type) and kind.__module__ == module.name
            if here and issubclass(kind, Solver) and not isabstract(kind):
                makers[re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower()] = kind
                makers |= {name: partial(kind, **arguments) for name, arguments in kind.names.items()}
    return makers


SOLVERS = _found()
_BUILT_IN = frozenset(SOLVERS)


class Facts(NamedTuple):
    """What is known of one solver."""

    name: str
    aliases: tuple[str, ...]
    order: int | None  # None: the other library knows
    evaluations: int | None  # a step
    error_estimate: bool
    invertible: bool  # exactly
    stochastic: bool
    summary: str


class SolverList(list[Facts]):
    """All solvers; prints as a table."""

    def __str__(self) -> str:
        head = ("name", "also", "order", "evals/step", "adaptive", "invertible", "stochastic", "")
        return table(head, self)

    __repr__ = __str__


def solvers() -> SolverList:
    """Every solver by name, with its order, evaluations a step, and whether it adapts, inverts exactly, draws noise.

    Examples:
        >>> known = {facts.name: facts for facts in ods.solvers()}
        >>> known["heun"].order, known["heun"].evaluations, known["heun"].error_estimate, known["heun"].invertible
        (2, 2, True, False)
        >>> known["alf"].evaluations, known["alf"].invertible
        (1, True)
    """
    ours = _listed()
    by_name = {name: facts for facts in ours for name in (facts.name, *facts.aliases)}
    loops = [
        by_name[spec.partition(":")[2]]._replace(name=name, aliases=(spec_of(find_solver(name)),))
        for name, spec in LOOPS.items()
    ]
    theirs = [("torchdiffeq", torchdiffeq_methods()), ("scipy", SCIPY_METHODS)]
    foreign = [
        Facts(f"{library}:{m}", (), None, None, find_solver(f"{library}:{m}").takes_steps is False, False, False, "")  # type: ignore[union-attr]
        for library, methods in theirs
        for m in methods
    ]
    return SolverList(ours + loops + foreign)


def register(name: str, maker: Callable[..., Solver]) -> None:
    """Make a solver of your own known by `name`, so that verbs, recipes and the command line find it.

    Args:
        name: An identifier that is not taken.
        maker: The class, or a function, that makes it; must work without arguments. Arguments are remembered in recipes
            if the class is a dataclass.

    Raises:
        ValueError: The name is taken, or not an identifier, or `maker` makes no solver.

    Examples:
        >>> from functools import partial
        >>> ods.register("a_little_noise", partial(ods.Ancestral, eta=0.2))
        >>> model = ods.exact.GaussianMixture.ring().model()
        >>> ods.sample(model, 2, solver="a_little_noise", num_steps=5).nfe.tolist()
        [5, 5]
        >>> ods.register("heun", ods.Heun)
        Traceback (most recent call last):
            ...
        ValueError: a solver's name must be a free identifier; got 'heun'
    """
    if not name.isidentifier() or name in SOLVERS or name in LOOPS:
        raise ValueError(f"a solver's name must be a free identifier; got {name!r}")
    if not (callable(maker) and isinstance(maker(), Solver)):
        raise ValueError(f"a solver's maker must be a class or function that makes a Solver; got {maker!r}")
    SOLVERS[name] = maker


def find_solver(solver: Solver | Loop | str) -> Solver | Loop:
    """The solver of that name, or in that file (.json, `tuned`); a solver or loop is returned as it is.

    Raises:
        ValueError: An unknown name (lists the known ones), or arguments that it does not take; a damaged file.
        FileNotFoundError: There is no such file.
        TypeError: Neither a name nor a solver.
    """
    if isinstance(solver, (Solver, Loop)):
        return solver
    if not isinstance(solver, str):
        raise TypeError(f"solver must be a name or an object such as ods.Heun(); got {solver!r}")
    if solver.endswith(".json"):
        return _from_file(solver)
    name, bracket, given = solver.partition("(")
    driver, colon, rest = (LOOPS.get(name, name) + bracket + given).partition(":")
    if not colon:
        return _named(solver)
    name, arguments = parsed(rest, "solver", solver)
    makers: dict[str, Callable[..., Loop]] = {"torchdiffeq": Torchdiffeq, "scipy": Scipy}
    if driver == "adaptive":
        own: dict[str, Any] = {k: arguments.pop(k) for k in OF_THE_LOOP if k in arguments}
        own = {**MEANT.get(solver.partition("(")[0], {}), **own}
        return _called(lambda **options: Adaptive(_made(name, arguments, solver), **options), own, solver)
    if driver not in makers:
        raise ValueError(f"unknown solver {solver!r}: before the colon stands one of {', '.join(DRIVERS)}")
    return _called(lambda **options: makers[driver](name, **options), arguments, solver)


def _from_file(path: str) -> Loop:
    """A solver that was tuned, from its file."""
    from odesampler.tuned import Tuned  # knows this module

    return Tuned.load(path)


def spec_of(solver: Solver | Loop) -> str:
    """The name, with arguments that differ from their defaults, from which `find_solver` makes an equal object."""
    if isinstance(solver, OnGrid):
        return spec_of(solver.solver)
    if isinstance(solver, Adaptive):
        inner, own = spec_of(solver.solver), _arguments(solver, skip=("solver",))
        both = f"{inner[:-1]}, {own[1:]}".replace("(, ", "(", 1) if inner.endswith(")") and own else inner + own
        return f"adaptive:{both}"
    if isinstance(solver, (Torchdiffeq, Scipy)):
        return f"{type(solver).__name__.lower()}:{solver.method}{_arguments(solver, skip=('method',))}"
    own_names = _own()
    for name, maker in SOLVERS.items():
        made = maker() if name in own_names else _built_in(name)
        if made == solver or (name in own_names and type(solver) is type(made) and vars(solver) == vars(made)):
            return name
    for name, maker in SOLVERS.items():
        if type(solver) is maker and is_dataclass(solver):
            return name + _arguments(solver)
    return _described(solver)


def _described(solver: Solver | Loop) -> str:
    """A user's own: readable, and refused by `find_solver`. Its repr, or its class and its plain attributes."""
    kind = type(solver)
    if kind.__repr__ is not object.__repr__:
        return repr(solver)
    plain = {k: v for k, v in getattr(solver, "__dict__", {}).items() if isinstance(v, (bool, int, float, str))}
    given = ", ".join(f"{name}={value!r}" for name, value in plain.items() if not name.startswith("_"))
    taken = kind.__name__ in SOLVERS or kind.__name__ in LOOPS  # by another, which a recipe would then find
    return f"{'own ' if taken else ''}{kind.__name__}({given})"


def distinct_names(solvers: Iterable[Solver | Loop | str]) -> list[str]:
    """Each as the user named it, or its spec; different objects whose specs are the same are numbered."""
    seen: dict[str, list[Solver | Loop | str]] = {}
    names = []
    for solver in solvers:
        name = solver if isinstance(solver, str) else spec_of(solver)
        alike = seen.setdefault(name, [])
        if solver not in alike and not (isinstance(solver, (Solver, Loop)) and _found_by(name)):
            alike.append(solver)
        place = alike.index(solver) + 1 if solver in alike else 1
        names.append(name if place == 1 else f"{name} #{place}")
    return names


def _found_by(name: str) -> bool:
    try:
        find_solver(name)
    except (ValueError, ImportError):
        return False
    return True


@cache
def _built_in(name: str) -> Solver:
    """Made once: some try out what they are made of, and every solve looks for its name."""
    return SOLVERS[name]()


def _own() -> set[str]:
    """Names that were registered by users."""
    return SOLVERS.keys() - _BUILT_IN


def loop_for(
    solver: Solver | Loop | str, num_steps: int | None, rtol: float | None, atol: float | None, *, asks: str = ""
) -> Loop:
    """How to get across a grid: one step between neighbours, or steps of its own.

    `num_steps` asks for a fixed grid, `rtol` or `atol` for adaptive steps; with neither, a solver that is made for
    adaptive use (its fact `adaptive`) adapts. `asks` says what `num_steps` comes from, where the user did not give it.

    Raises:
        ValueError: Both asked for; tolerances for a solver without an error estimate.
    """
    found, asks = find_solver(solver), asks or f"num_steps={num_steps}"
    tolerances: dict[str, Any] = {k: v for k, v in (("rtol", rtol), ("atol", atol)) if v is not None}
    if num_steps is not None and tolerances:
        raise ValueError(f"{asks} asks for a fixed grid and {tolerances} for adaptive steps: give one")
    if isinstance(found, Loop):
        if num_steps is not None and not found.takes_steps:
            raise ValueError(f"{spec_of(found)} chooses its own steps, so {asks} would have no effect: leave it out")
        if tolerances:
            given = ", ".join(f"{k}={v}" for k, v in tolerances.items())
            instead = f"{spec_of(found).split('(')[0]}({given})"
            if isinstance(found, Adaptive):  # whose other settings are to stay
                instead = spec_of(replace(found, **tolerances))
            raise ValueError(f"{spec_of(found)} has tolerances of its own: write {instead}")
        return found
    if tolerances or (found.adaptive and num_steps is None):
        return Adaptive(found, **tolerances)
    return OnGrid(found)


def _listed() -> list[Facts]:
    """Facts of our solvers; names that mean the same share a line."""
    names: dict[Solver, list[str]] = {}
    for name, maker in SOLVERS.items():
        names.setdefault(maker(), []).append(name)
    return [
        Facts(
            first,
            aliases=tuple(others),
            order=solver.order,
            evaluations=solver.evaluations,
            error_estimate=solver.error_order is not None,
            invertible=isinstance(solver, Invertible),
            stochastic=solver.stochastic,
            summary=solver.summary,
        )
        for solver, (first, *others) in names.items()
    ]


def _named(spec: str) -> Solver:
    return _made(*parsed(spec, "solver"), spec)


def _made(name: str, arguments: dict[str, Any], spec: str) -> Solver:
    if name not in SOLVERS:
        near = get_close_matches(name.lower(), SOLVERS, n=3)
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        known = [*SOLVERS, *LOOPS, *(f"{d}:..." for d in DRIVERS)]
        raise ValueError(
            f"unknown solver {name!r}; {meant}known: {', '.join(known)}. Your own: ods.register(name, class)"
        )
    for key, value in arguments.items():
        if key in ("base", "starter") and isinstance(value, str):
            arguments[key] = _named(value)
    return _called(SOLVERS[name], arguments, spec)


def _called(maker: Callable[..., T], arguments: dict[str, Any], spec: str) -> T:
    try:
        return maker(**arguments)
    except TypeError as error:
        raise ValueError(f"solver {spec!r}: {error}") from error


def _arguments(solver: Any, skip: Iterable[str] = ()) -> str:
    given = []
    for f in fields(solver):
        value = getattr(solver, f.name)
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        if f.name not in skip and f.repr and value != default:
            given.append(f"{f.name}={_literal(value)!r}")
    return f"({', '.join(given)})" if given else ""


def _literal(value: Any) -> Any:
    """What `ast.literal_eval` can read back: a solver's name, a plain number instead of numpy's."""
    if isinstance(value, Solver):
        return spec_of(value)
    return value.item() if hasattr(value, "item") else value
