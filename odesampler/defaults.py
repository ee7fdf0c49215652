"""What is taken where the user names no solver or no grid: by budget, chosen by measurement.

docs/defaults.md has the tables, the models that they were measured on, and the command that repeats them. All solvers
here take one evaluation a step, so that steps are evaluations.
"""

from __future__ import annotations

from odesampler.schedule import VP, ContinuousVP, Schedule

STEPS = 20
FEW, MANY = 7, 25  # evaluations at which another setting is the better one

FLOW_PC = "multistep"  # the flow frame, order 2 with a corrector through 3 points
ON_CLOCK = "power(rho=2, variable='t')"  # even in the square root of the model's clock


def solver_for(num_steps: int, *, adaptive: bool) -> str:
    """The solver for a number of steps, or for steps chosen by tolerances."""
    if adaptive:
        return "dopri5"
    if num_steps < FEW:
        return "multistep(predictor=1, corrector=2)"
    return FLOW_PC if num_steps < MANY else "multistep(predictor=3, corrector=4)"


def grid_for(schedule: Schedule, sigma_max: float, evaluations: int) -> str:
    """The grid for a number of evaluations."""
    if sigma_max == float("inf"):
        return "linspace"
    return ON_CLOCK if isinstance(schedule, (VP, ContinuousVP)) and evaluations < MANY else "log_snr"
