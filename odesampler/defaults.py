"""What is taken where the user names no solver or no grid: by budget, chosen by measurement on trained networks.

docs/defaults.md has the tables and the command that repeats them, docs/inversion.md those of the solver that encodes.
All solvers here take one evaluation a step.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from odesampler.program import Solver
from odesampler.schedule import VP, ContinuousVP, Schedule
from odesampler.solvers.alf import ALF
from odesampler.solvers.fixed_point import FixedPoint

STEPS = 20
ENCODER = "alf"
MANY = 28  # steps from which on a grid that is nearly even in log sigma is the better one


class Choice(NamedTuple):
    """A solver for up to so many steps."""

    most: float
    solver: str


CHOICES = (
    Choice(6, "unipc"),
    Choice(27, "multistep"),
    Choice(41, "multistep(predictor=3, corrector=4)"),
    Choice(math.inf, "multistep(variable='log1p', predictor=4, corrector=5)"),
)


def solver_for(num_steps: int, *, adaptive: bool, encoding: bool = False) -> str:
    """The solver for a number of steps, or for steps chosen by tolerances. To encode, one that can be undone."""
    if adaptive:
        return "dopri5"
    return ENCODER if encoding else next(c.solver for c in CHOICES if num_steps <= c.most)


def grid_for(schedule: Schedule, low: float, high: float, num_steps: int, solver: Solver | None) -> str:
    """The grid from `high` to `low` for a number of steps of a solver (None: of another library).

    For a few steps of one evaluation each, and for Euler always, even in the square root of the clock, the last step
    into zero the longer the fewer there are. Else nearly even in log sigma: the first steps of methods of several
    stages must not be long.
    """
    if math.isinf(high):
        return "power(rho=1.5)"
    if isinstance(solver, (ALF, FixedPoint)):
        return f"asinh(last={_last(2, low, high, num_steps)!r})"
    few = solver is not None and solver.cost(num_steps) == num_steps and (num_steps < MANY or solver.order == 1)
    if not few or not isinstance(schedule, (VP, ContinuousVP)):
        return "polyexponential(rho=0.9)"
    return f"power(rho=2, variable='t', last={_last(2.5, low, high, num_steps)!r})"


def _last(share: float, low: float, high: float, num_steps: int) -> float:
    """The sigma before the last step, the larger the fewer steps there are."""
    return min(max(float(low), round(share / num_steps**2, 4)), math.sqrt(low * high))
