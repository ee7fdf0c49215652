"""What tuning found: a solver and the grid that it belongs to, for one model, as a file that can be used anywhere.

    recipe = ods.tune(model, num_steps=8)      ods.sample(model, 16, solver=recipe)      solver="recipe.json"

Wherever a solver is taken, a `Tuned` is, and so is the path of its file, a str that ends in .json; it brings its grid
along. The file is plain JSON. What was measured when it was made is in it, and nothing of it is needed to use it.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from odesampler.files import written_whole
from odesampler.grid import Grid
from odesampler.integrate import OnGrid
from odesampler.program import Course, Loop, Observer, Program, Solved, Solver, State
from odesampler.registry import find_solver, spec_of
from odesampler.solvers.fitted import Fitted
from odesampler.version import __version__

FORMAT = "odesampler.tuned/1"
TASKS = ("sample", "encode")


def checked_name(path: str | Path) -> Path:
    """A name for a recipe's file. Raises: ValueError: it does not end in .json."""
    if Path(path).suffix != ".json":
        raise ValueError(f"a tuned solver is written as .json; got {path}")
    return Path(path)


@dataclass(frozen=True, repr=False)
class Tuned(Loop):
    """A solver on the grid that it was tuned for.

    Args:
        solver: The solver.
        grid: Its grid, falling.
        model: The name of the model that it was tuned for.
        fingerprint: That model's.
        task: What it was tuned to do, "sample" or "encode".
        start: What tuning began with, and is compared with, in words.
        measured: Errors and what else was measured, as JSON can hold it.
        warning: What its user should know; nothing: no more than usual.
        report: Tables and pictures of the tuning; not saved.

    Examples:
        >>> model = ods.exact.GaussianMixture.ring().model()
        >>> mine = ods.Tuned(ods.Heun(), ods.Grid((20.0, 2.0, 0.5, 0.0)), model.name, model.fingerprint())
        >>> mine.save("mine.json")
        >>> ods.Tuned.load("mine.json") == mine
        True
        >>> ods.sample(model, 2, solver="mine.json").nfe.tolist()
        [5, 5]
    """

    solver: Solver
    grid: Grid
    model: str = ""
    fingerprint: str = ""
    start: str = ""
    measured: Mapping[str, Any] = field(default_factory=dict, compare=False)
    warning: str = ""
    task: str = "sample"
    version: str = field(default=__version__, compare=False)
    report: Any = field(default=None, compare=False)

    def __repr__(self) -> str:
        return f"Tuned({self.grid.num_steps} steps for {self.model}, from {self.start})"

    @property
    def grid_to_encode(self) -> Grid:
        """The grid without its step into sigma = 0, which cannot be undone."""
        sigmas = self.grid.sigmas
        return self.grid if sigmas[-1] else Grid(sigmas[:-1], f"{self.grid.name}, not into 0")

    @property
    def differentiable(self) -> bool:  # type: ignore[override]  # a fact of its solver
        return self.solver.differentiable

    def across(self, state: State, sigmas: Sequence[float], observe: Observer | None = None) -> Program[Solved]:
        return (yield from OnGrid(self.solver).across(state, sigmas, observe))

    def into_zero(self, state: State, s0: float) -> Program[State]:
        return (yield from self.solver.into_zero(state, s0))

    def prepared(self, course: Course) -> OnGrid:
        """The solver on a grid like any other: what a plan is made of."""
        return OnGrid(self.solver.prepared(course))

    def check_model(self, name: str, fingerprint: str) -> None:
        """Warns where this was tuned for another model, or has something to say."""
        if fingerprint != self.fingerprint:
            warnings.warn(
                f"this solver was tuned for {self.model} ({self.fingerprint}), not for {name} ({fingerprint}): how "
                "good it is there was not measured",
                stacklevel=4,
            )
        elif self.warning:
            warnings.warn(self.warning, stacklevel=4)

    def check_task(self, encoding: bool) -> None:
        """Warns where this was tuned to do the other thing."""
        if encoding and self.task == "sample" and isinstance(self.solver, Fitted):
            warnings.warn(
                "this solver was tuned to sample: upward its table says nothing, and the exponential Adams method "
                'walks its grid instead; to encode, tune with task="encode"',
                stacklevel=4,
            )
        elif encoding and self.task == "sample":
            warnings.warn('this solver was tuned to sample; to encode, tune with task="encode"', stacklevel=4)
        elif not encoding and self.task == "encode":
            warnings.warn(
                f"this solver was tuned to encode: samples end at its sigma_min, {self.grid.down()[-1]:g}, with the "
                "noise that is left there; to sample, tune without task",
                stacklevel=4,
            )

    def save(self, path: str | Path) -> None:
        """Write to `path` as JSON, whole or not at all.

        Raises:
            OSError: The file cannot be written.
            ValueError: `path` does not end in .json, by which solvers in files are known.
        """
        checked_name(path)
        table = self.solver if isinstance(self.solver, Fitted) else None
        held = {
            "format": FORMAT,
            "solver": spec_of(self.solver) if table is None else "fitted",
            "fitted": {} if table is None else {"sigmas": table.sigmas, "weights": table.weights},
            "grid": self.grid.name,
            "sigmas": [s if math.isfinite(s) else "inf" for s in self.grid.sigmas],
            "model": self.model,
            "fingerprint": self.fingerprint,
            "task": self.task,
            "start": self.start,
            "warning": self.warning,
            "measured": dict(self.measured),
            "version": self.version,
        }
        text = json.dumps(held, indent=1, allow_nan=False)
        with written_whole(path) as file:
            file.write(text.encode())

    @classmethod
    def load(cls, path: str | Path) -> Tuned:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is none of ours, or damaged.
        """
        try:
            held = json.loads(Path(path).read_text())
            if held["format"] != FORMAT:
                raise ValueError(f"its format is {held['format']!r}, this version reads {FORMAT!r}")
            grid = Grid(tuple(float(s) for s in held["sigmas"]), held["grid"])
            if str(held["solver"]).endswith(".json"):
                raise ValueError(f"its solver is {held['solver']!r}, another file")
            solver = Fitted(**held["fitted"]) if held["solver"] == "fitted" else find_solver(held["solver"])
            if not isinstance(solver, Solver):
                raise ValueError(f"{held['solver']} is not a solver that steps along a grid")
            task = held.get("task", "sample")  # files of earlier versions have none
            if task not in TASKS:
                raise ValueError(f"its task is {task!r}, this version knows {' and '.join(TASKS)}")
            if isinstance(solver, Fitted) and solver.sigmas != tuple(s for s in grid if s < math.inf):
                raise ValueError("its table of weights is for other sigmas than those of its grid")
            rest = {k: held[k] for k in ("model", "fingerprint", "start", "warning", "measured", "version")}
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is no tuned solver, or a damaged one: {error}") from error
        return cls(solver, grid, task=task, **rest)
