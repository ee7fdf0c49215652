"""Comparison: the error of solvers against their evaluations, relative to a reference solve that checks itself.

    error = rms(x - reference) of each sample;     reference: RK4 with many steps, and how far half of them are from it

All solvers, grids and numbers of steps run side by side from the same latents, so the model is called as often as the
longest solve asks, not the sum. The reference spans the model's whole range down to sigma = 0: a grid that stops short
of either end keeps an error that no number of steps removes.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from odesampler.analysis.cell import Cell
from odesampler.analysis.comparison import Comparison
from odesampler.analysis.errors import rms
from odesampler.analysis.reference import CLEAR, Reference, checked_reference, plans, solved
from odesampler.analysis.settings import made_with
from odesampler.analysis.side_by_side import Ran, Samples, side_by_side
from odesampler.grid import Grid
from odesampler.guidance import AnyGuidance, usual_guidance, warn_of_nothing_to_guide_to
from odesampler.inputs import checked_batch, checked_cond, checked_count, checked_model, checked_shape
from odesampler.integrate import OnGrid
from odesampler.model import Model
from odesampler.noise import seeds_for
from odesampler.plan import AnyGrid, AnySolver, Plan, make_plan
from odesampler.precision import finest_dtype
from odesampler.program import Course, Loop, Solver
from odesampler.registry import distinct_names, find_solver
from odesampler.room import AnyBatch
from odesampler.threshold import AnyThreshold
from odesampler.tuned import Tuned

DEFAULT = "default"  # the solver that `sample` takes where none is named
DEFAULT_SOLVERS = (DEFAULT, "ddim", "dpmpp_2m", "unipc", "heun", "rk4")
BUDGETS = (10, 20, 50, 100)  # evaluations
LONG = 100  # steps, more than any solver needs to start
DEFAULT_SAMPLES = 16
REFERENCE_STEPS = 400


@dataclass(frozen=True)
class _Case:
    """A cell to come."""

    solver: str
    grid: str
    num_steps: int | None
    tolerance: float | None
    plan: Plan

    def __str__(self) -> str:
        if self.num_steps is not None:
            return f"{self.solver} on {self.grid} at {self.num_steps} steps"
        return self.solver if self.tolerance is None else f"{self.solver} at tolerance {self.tolerance:g}"


def compare(
    model: Model,
    solvers: AnySolver | Sequence[AnySolver] = DEFAULT_SOLVERS,
    num_steps: int | Sequence[int] | None = None,
    *,
    grid: AnyGrid | Sequence[AnyGrid] | None = None,
    tolerances: float | Sequence[float] | None = None,
    num_samples: int | None = None,
    seed: int | Sequence[int] = 0,
    x: Tensor | None = None,
    cond: Mapping[str, Any] | None = None,
    guidance_scale: AnyGuidance | None = None,
    clip_denoised: AnyThreshold = None,
    state_dtype: torch.dtype | None = None,
    reference: Tensor | Reference | Comparison | None = None,
    reference_steps: int = REFERENCE_STEPS,
    max_batch: AnyBatch = None,
    progress: bool = False,
) -> Comparison:
    """Sample with every solver on every grid at every number of steps, and measure how far each is from the truth.

    Args:
        model: The model.
        solvers: Names or objects, as for `sample`, or one; "default" is what `sample` takes where none is named.
            Stochastic ones solve another equation: their distance from the ODE's solution is no error of theirs.
        num_steps: Transitions, one number or several. By default as many as spend about 10, 20, 50 and 100 evaluations.
        grid: As for `sample`, one or several; "default" in the table is what a solver gets where none is named. A Grid
            or a sequence of sigmas has its own number of steps.
        tolerances: One number or several, each for rtol and atol of the solvers that choose their own steps, such as
            "adaptive:dopri5"; those get one row a tolerance. By default one row, at their own.
        num_samples: How many, 16 by default.
        seed: As for `sample`.
        x: Latents, as for `sample`.
        cond: As for `sample`.
        guidance_scale: As for `sample`.
        clip_denoised: As for `sample`.
        state_dtype: torch.float64 by default, where the device has it. The network's own dtype bounds what a reference
            can tell: `ods.load(..., dtype=torch.float64)`.
        reference: Instead of solving for it: an earlier `Comparison` of the same model, latents and conditions, its
            `reference`, or a tensor (batch, *shape) that is taken for the truth.
        reference_steps: Steps of the reference, an even number; its check takes half of them.
        max_batch: The most rows to give the network at once. By default all solves go together, samples times cases.
        progress: Show a progress bar.

    Returns:
        A `Comparison`. A solver that fails while running has no cell but a reason; the others' cells stand. Warns where
        the reference's own error is not much smaller than the smallest error found.

    Raises:
        ValueError: What cannot be meant, before the model is called; a reference for other samples.
        FloatingPointError: The reference solve fails.

    Examples:
        >>> model = ods.exact.GaussianMixture.ring().model()
        >>> found = ods.compare(model, ["ddim", "heun"], [10, 20], num_samples=4, reference_steps=100)
        >>> [(cell.solver, cell.num_steps, cell.nfe.max().item()) for cell in found.cells]
        [('ddim', 10, 10), ('ddim', 20, 20), ('heun', 10, 19), ('heun', 20, 39)]
    """
    began = time.perf_counter()
    checked_model(model)
    guidance_scale = usual_guidance(model, guidance_scale)
    how = {"guidance_scale": guidance_scale, "clip_denoised": clip_denoised}
    options = {**how, "state_dtype": state_dtype or finest_dtype(model.device)}
    asked = _listed(solvers, (str, Solver, Loop), "solvers")
    cases = _cases(model, asked, num_steps, _grids(grid), _tolerances(tolerances), options)
    samples = _samples(model, num_samples, seed, x, cond)
    warn_of_nothing_to_guide_to(model, cond, guidance_scale)
    given = reference.reference if isinstance(reference, Comparison) else reference
    known = None if given is None else checked_reference(model, given, samples, guidance_scale, clip_denoised)
    both = plans(model, reference_steps, lambda grid: _plan(model, "rk4", None, grid, options))
    bars = ("comparing", "reference") if progress else (None, None)
    ran, calls = side_by_side(model, [c.plan for c in cases], samples, max_batch=max_batch, progress=bars[0])
    if known is None:
        known = solved(model, both, samples, max_batch=max_batch, progress=bars[1])
    cells = tuple(_cell(case, r, known) for case, r in zip(cases, ran, strict=True) if r.failure is None)
    failures = {str(case): r.failure for case, r in zip(cases, ran, strict=True) if r.failure is not None}
    smallest = min((c.median for c in cells), default=math.inf)
    if smallest < CLEAR * known.floor:
        warnings.warn(
            f"the smallest error found, {smallest:.1e}, is not well above what the reference leaves open, "
            f"{known.floor:.1e}: raise reference_steps={reference_steps}, or compute the network in float64",
            stacklevel=2,
        )
    made = made_with(seed=seed if x is None else None, x=x, cond=cond, **how, state_dtype=state_dtype)
    return Comparison(cells, failures, known, model.name, calls, time.perf_counter() - began, made)


def _cases(
    model: Model,
    solvers: Sequence[AnySolver],
    num_steps: int | Sequence[int] | None,
    grids: Sequence[AnyGrid | None],
    tolerances: Sequence[float],
    options: Mapping[str, Any],
) -> list[_Case]:
    """All cells to come, each with a plan that this model can carry out."""
    steps = None if num_steps is None else _listed(num_steps, (int,), "num_steps")
    cases: list[_Case] = []
    for solver, name in zip(solvers, distinct_names(solvers), strict=True):
        named = None if solver == DEFAULT else solver
        found = find_solver("euler" if named is None else named)  # defaults cost one evaluation a step, as Euler does
        if isinstance(found, Loop) and not found.takes_steps:
            for tolerance in tolerances or (None,):
                loop = _with_tolerance(found, tolerance)
                cases.append(_Case(name, "own", None, tolerance, _plan(model, loop, None, None, options)))
            continue
        if isinstance(found, Tuned):
            plan = _plan(model, found, None, None, options)
            cases.append(_Case(name, found.grid.name, plan.grid.num_steps, None, plan))
            continue
        for grid in grids:
            for n in [None] if isinstance(grid, Grid) else steps or _affordable(model, found):
                plan = _plan(model, named, n, grid, options)
                called = "default" if grid is None else plan.grid.name  # one name, though it changes with the steps
                cases.append(_Case(name, called, plan.grid.num_steps, None, plan))
    _check_used(cases, grids, steps, tolerances)
    names = [str(case) for case in cases]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ValueError(f"{twice} is asked for twice; a grid of your own gets a name by ods.Grid(sigmas, name=...)")
    return cases


def _plan(
    model: Model, solver: AnySolver | None, num_steps: int | None, grid: AnyGrid | None, options: Mapping[str, Any]
) -> Plan:
    return make_plan(model, solver, num_steps=num_steps, grid=grid, rtol=None, atol=None, into_zero=True, **options)


def _affordable(model: Model, solver: Solver | Loop) -> list[int]:
    """The numbers of steps that spend about the default budgets; the last step, into zero, takes one evaluation."""
    cost, first = (1, 0) if isinstance(solver, Loop) else (solver.evaluations, solver.start_evaluations)
    if isinstance(solver, Solver) and first:  # which some spare in the noise
        first = solver.prepared(Course(model.schedule.t, model.range[::-1])).cost(LONG) - LONG * cost
    return [max(1, (budget - 1 - first) // cost + 1) for budget in BUDGETS]


def _with_tolerance(loop: Loop, tolerance: float | None) -> Loop:
    if tolerance is None:
        return loop
    if not is_dataclass(loop) or not hasattr(loop, "rtol"):
        raise ValueError(f"{loop!r} has no rtol and atol to set: leave tolerances out")
    changed: Loop = replace(loop, rtol=tolerance, atol=tolerance)
    return changed


def _check_used(
    cases: Sequence[_Case],
    grids: Sequence[AnyGrid | None],
    steps: Sequence[int] | None,
    tolerances: Sequence[float],
) -> None:
    """Raises: ValueError: something was asked for that no case heeds."""
    fixed = [case for case in cases if case.num_steps is not None]
    if tolerances and len(fixed) == len(cases):
        raise ValueError(
            f"tolerances={list(tolerances)} are for solvers that choose their own steps, and all of these walk a grid: "
            "leave them out, or give one such as 'adaptive:dopri5'"
        )
    if not fixed and (steps or grids != [None]):
        raise ValueError("all of these solvers choose their own steps: leave num_steps and grid out")
    if steps and all(isinstance(grid, Grid) for grid in grids):
        raise ValueError(f"num_steps={steps}, but the given grids have steps of their own: leave num_steps out")


def _listed(value: Any, kinds: tuple[type, ...], what: str) -> list[Any]:
    """One or several as several. Raises: ValueError: none."""
    values = [value] if isinstance(value, kinds) else list(value)
    if not values:
        raise ValueError(f"compare needs {what}; got none")
    return values


def _grids(grid: AnyGrid | Sequence[AnyGrid] | None) -> list[AnyGrid | None]:
    if grid is None:
        return [None]
    several = _listed(grid, (str, Grid), "grid")
    if not all(isinstance(one, (str, Grid, Sequence)) for one in several):
        several = [several]  # numbers: one grid
    return [one if isinstance(one, (str, Grid)) else Grid(tuple(one)) for one in several]


def _samples(
    model: Model,
    num_samples: int | None,
    seed: int | Sequence[int],
    x: Tensor | None,
    cond: Mapping[str, Any] | None,
) -> Samples:
    if x is not None:
        x = checked_batch(model, x, "x")
    count = checked_count(DEFAULT_SAMPLES if num_samples is None and x is None else num_samples, x)
    shape = (count, *(checked_shape(model, " or latents x") if x is None else x.shape[1:]))
    return Samples(seeds_for(seed, count), shape, x, checked_cond(model, cond, count))


def _cell(case: _Case, ran: Ran, reference: Reference) -> Cell:
    error = rms(ran.x - reference.x)
    solver = case.plan.loop.solver if isinstance(case.plan.loop, OnGrid) else None
    several = case.solver == DEFAULT  # by the number of steps
    stated = None if solver is None or solver.stochastic or several else solver.order
    return Cell(case.solver, case.grid, case.num_steps, case.tolerance, ran.x, error, ran.nfe, ran.calls, stated)


def _tolerances(tolerances: float | Sequence[float] | None) -> list[float]:
    return [] if tolerances is None else _listed(tolerances, (int, float), "tolerances")
