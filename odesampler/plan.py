"""Plans: how a verb gets from one end of a grid to the other, decided and checked before any model is called.

    plan = loop + grid + guidance + clipping + dtype,        execute(plan, model, start) -> Outcome

What the verbs share is here, once. They differ in direction, in what they start from and in what they hand back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from odesampler import defaults
from odesampler.adjoint import AnyGrad, checked_grad, differentiated
from odesampler.combine import ROUNDED, within
from odesampler.drive import Eps, Tally, run
from odesampler.grid import Grid, check_num_steps, make_grid
from odesampler.guidance import AnyGuidance, Guided, check_sides, checked_guidance, guided
from odesampler.inputs import checked_model
from odesampler.integrate import OnGrid, solve
from odesampler.model import Model
from odesampler.noise import Noise
from odesampler.observe import Progress, Recorder, Trajectory, tell_all
from odesampler.program import Course, Invertible, Loop, Observer, Program, Solved, Solver, State
from odesampler.registry import find_solver, loop_for, spec_of
from odesampler.room import AnyBatch
from odesampler.threshold import AnyThreshold, checked_threshold, thresholded
from odesampler.tuned import Tuned

AnyGrid: TypeAlias = "Grid | Sequence[float] | str"
AnySolver: TypeAlias = "Solver | Loop | str"


@dataclass(frozen=True)
class Plan:
    """Everything about a solve but the model and the samples."""

    loop: Loop
    grid: Grid  # falling
    guidance_scale: AnyGuidance = 1.0
    clip_denoised: AnyThreshold = None
    state_dtype: torch.dtype = torch.float32

    @property
    def invertible(self) -> Invertible | None:
        """The solver, if it steps along a grid and can be undone exactly."""
        solver = getattr(self.loop, "solver", None)
        return solver if self.loop.takes_steps and isinstance(solver, Invertible) else None

    @property
    def stochastic(self) -> bool:
        """Whether the solver draws noise."""
        return bool(getattr(getattr(self.loop, "solver", None), "stochastic", False))


@dataclass(frozen=True)
class Outcome:
    """What a solve gave and cost."""

    solved: Solved
    nfe: Tensor  # (batch,) int64 on the CPU
    calls: int
    seconds: float
    trajectory: Trajectory | None


def make_plan(
    model: Model,
    solver: AnySolver | None,
    *,
    num_steps: int | None,
    grid: AnyGrid | None,
    rtol: float | None,
    atol: float | None,
    into_zero: bool,
    guidance_scale: AnyGuidance = 1.0,
    clip_denoised: AnyThreshold = None,
    state_dtype: torch.dtype | None = None,
) -> Plan:
    """Decide loop and grid; arguments as the verbs take them.

    Raises:
        ValueError: What does not go together, or not with this model.
    """
    checked_model(model)
    if isinstance(grid, (int, float)):
        raise TypeError(f"grid must be a name, a Grid or a sequence of sigmas; got {grid!r}")
    if solver is not None:
        solver = find_solver(solver)
    if isinstance(solver, Tuned):
        if grid is not None:
            raise ValueError(f"{solver!r} brings its grid along, so grid={grid!r} would have no effect: leave it out")
        solver.check_model(model.name, model.fingerprint())
        solver.check_task(encoding=not into_zero)
        grid = solver.grid if into_zero else solver.grid_to_encode
    asks = ""
    if grid is not None and not isinstance(grid, str):  # a given grid asks for its own number of steps
        steps = len(grid) - 1
        asks = f"the given grid of {steps} transitions"
        if num_steps not in (None, steps):
            raise ValueError(f"num_steps={num_steps}, but the given grid has {steps} transitions: leave num_steps out")
        num_steps = steps
    if num_steps is not None:
        check_num_steps(num_steps)
    steps = defaults.STEPS if num_steps is None else int(num_steps)
    if solver is None:
        solver = defaults.solver_for(steps, adaptive=(rtol, atol) != (None, None), encoding=not into_zero)
    loop = loop_for(solver, num_steps, rtol, atol, asks=asks)
    low, high = model.range
    if loop.takes_steps:
        walker = loop.solver if isinstance(loop, OnGrid) else None
        if grid is None:
            grid = model.grid or defaults.grid_for(model.schedule, low, high, steps, walker)
        made = make_grid(grid, model.schedule, steps, into_zero=into_zero, sigma_min=low, sigma_max=high)
    elif grid is None:
        made = Grid(_ends(low, high, loop, into_zero), "ends")
    else:
        raise ValueError(f"{spec_of(loop)} chooses its own steps, so grid={grid!r} would have no effect: leave it out")
    _check_grid(made, model, into_zero)
    loop = loop.prepared(course_of(model, made))
    guidance, clip = checked_guidance(guidance_scale), checked_threshold(clip_denoised)
    guided(model, guidance)  # raises where this model cannot be guided so
    return Plan(loop, made, guidance, clip, _checked_dtype(state_dtype))


def course_of(model: Model, grid: Grid) -> Course:
    """What a solver is told of a solve along `grid`, in either direction."""
    return Course(model.schedule.t, grid.down().sigmas, model.range[0])


def execute(
    plan: Plan,
    model: Model,
    start: State,
    *,
    rising: bool = False,
    cond: Mapping[str, Tensor] | None = None,
    noise: Noise | None = None,
    max_batch: AnyBatch = None,
    progress: str | None = None,
    trajectory: bool = False,
    grad: AnyGrad = False,
    eps: Eps | None = None,
) -> Outcome:
    """Carry out `plan` from `start`, in the equation's scale, up or down its grid.

    Arguments as for the verbs. `eps` is asked instead of what the plan makes of the model.
    """
    grid = plan.grid.up() if rising else plan.grid.down()
    if trajectory and not (plan.loop.takes_steps and plan.loop.observable):
        raise ValueError("a trajectory is recorded by our own solvers on a fixed grid: give num_steps, not tolerances")
    check_guided(plan, model, cond or {})
    how = checked_grad(grad, plan.loop)
    if grad and max_batch == "auto":
        raise ValueError(
            'max_batch="auto" has no effect with grad: what all calls computed is kept until the backward pass, '
            "however few rows each had; give a number, or fewer samples"
        )
    tally = Tally()
    recorder = Recorder(start.x, grid[0]) if trajectory else None
    steps = plan.loop.takes_steps
    bar = Progress(
        grid.num_steps if steps else len(start.x),
        show=progress is not None,
        what=progress or "",
        counts_samples=not steps,
    )
    began = time.perf_counter()
    asked = eps_of(plan, model) if eps is None else eps
    given = {"cond": cond or {}, "noise": noise, "tally": tally}

    def ask(program: Program[Any], **given: Any) -> Any:
        inside = within(*model.range, lambda: spec_of(plan.loop), program)
        return run(inside, model=asked, max_batch=max_batch, **given)[0]

    with torch.set_grad_enabled(bool(grad)), bar:
        observers: list[Observer] = [o for o in (recorder, bar if progress is not None else None) if o is not None]
        loop = differentiated(plan.loop, how, model, ask, **given)
        solved = ask(solve(loop, start, grid.sigmas, tell_all(observers)), **given)
    seconds = time.perf_counter() - began
    nfe = torch.zeros(len(start.x), dtype=torch.int64) if tally.nfe is None else tally.nfe.cpu()
    seen = recorder.trajectory(model.schedule) if recorder else None
    return Outcome(solved, nfe, tally.calls, seconds, seen)


def clean_end(plan: Plan, model: Model, images: Tensor) -> State:
    """Where `plan`, walked up, starts from `images` (batch, *shape), in the model's own scale."""
    end = plan.grid.down()[-1]
    return State(model.schedule.from_model_scale(images.to(model.device, plan.state_dtype), end))


def program_of(plan: Plan, model: Model, start: State, grid: Grid, observe: Observer | None = None) -> Program[Solved]:
    """The solve along `grid`, the plan's in either direction, kept within the model's range."""
    return within(*model.range, lambda: spec_of(plan.loop), solve(plan.loop, start, grid.sigmas, observe))


def eps_of(plan: Plan, model: Model) -> Eps:
    """What the plan's solve asks: the model, guided and its image bounded as planned."""
    return thresholded(guided(model, plan.guidance_scale), plan.clip_denoised)


def check_guided(plan: Plan, model: Model, cond: Mapping[str, Tensor]) -> None:
    """Raises: ValueError: `cond` and the null conditions that the plan guides away from have not one shape."""
    if isinstance(guided(model, plan.guidance_scale), Guided):
        check_sides(model.nothing(1), cond)


def refuse_stochastic(plan: Plan) -> None:
    """Raises: ValueError: the plan's solver draws noise, which cannot be encoded."""
    if plan.stochastic:
        raise ValueError(f"{spec_of(plan.loop)} draws noise, which cannot be encoded: use an ODE solver such as 'heun'")


def refuse_what_cannot_be_encoded(plan: Plan) -> None:
    """Raises: ValueError: the plan's solver draws noise, or has no step that it could undo."""
    refuse_stochastic(plan)
    if plan.invertible is not None and plan.grid.num_steps == 1 and math.isinf(plan.grid[0]):
        raise ValueError(
            "the step out of sigma = infinity is Euler's, which cannot be undone exactly: take num_steps=2 or more, or "
            'exact="residual" with a solver such as "ddim"'
        )


def _ends(low: float, high: float, loop: Loop, into_zero: bool) -> tuple[float, ...]:
    """The grid of a loop that chooses its own steps: only the ends, and the edges around them.

    Out of infinity goes one Euler step; to sigma = s its error is about 1 / (2 s^2), hence s from the tolerance.
    """
    tolerance = getattr(loop, "rtol", 1e-4) or getattr(loop, "atol", 1e-4)
    first = (high,) if math.isfinite(high) else (high, tolerance**-0.5)
    return (*first, low, 0.0) if into_zero else (*first, low)


def _check_grid(grid: Grid, model: Model, into_zero: bool) -> None:
    low, high = model.range
    inner = [s for s in grid.sigmas if s > 0]
    # `combine.within` moves what is outside by rounding alone to the end of the range.
    if max(inner) > high * (1 + ROUNDED) or min(inner) < low * (1 - ROUNDED):
        raise ValueError(
            f"the grid runs from {max(inner):.9g} to {min(inner):.9g}, outside the range [{low:.9g}, {high:.9g}] in "
            f"which {model.name} may be asked"
        )
    if not into_zero and grid.down()[-1] == 0:
        raise ValueError(
            "this grid ends at sigma = 0, and the step into 0 cannot be undone: encode on a grid that ends at "
            f"sigma_min ({low:g} or above), where the image is taken to be"
        )


def _checked_dtype(dtype: torch.dtype | None) -> torch.dtype:
    if dtype not in (None, torch.float32, torch.float64):
        raise ValueError(
            f"state_dtype must be torch.float32 or torch.float64 (the network's is Model.dtype); got {dtype}"
        )
    return torch.float32 if dtype is None else dtype
