"""The race: many solvers on many grids at one number of steps, side by side from the same latents.

First all of them on a few latents, then the best on all: error = geometric mean of each sample's rms from the truth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from odesampler import defaults
from odesampler.analysis.errors import rms
from odesampler.analysis.side_by_side import Samples, side_by_side
from odesampler.grid import Grid
from odesampler.guidance import AnyGuidance
from odesampler.integrate import OnGrid
from odesampler.model import Model
from odesampler.plan import AnyGrid, AnySolver, Plan, make_plan
from odesampler.precision import finest_dtype
from odesampler.program import Solver
from odesampler.room import AnyBatch

FAMILY = (  # frames, variables and orders; all of one evaluation a step
    "multistep",
    "multistep(corrector=0)",
    "multistep(predictor=3, corrector=4)",
    "multistep(variable='log1p')",
    "multistep(variable='log1p', predictor=4, corrector=5)",
    "multistep(frame='noise')",
    "multistep(variable='phi', predictor=4, corrector=5)",
    "multistep(variable='flow', predictor=3, corrector=4)",
    "unipc",
    "unipc_3",
    "dpmpp_2m",
    "deis",
    "lms",
    "adams_pc",
    "euler",
)
GRIDS = (
    "log_snr",
    "polyexponential(rho=0.9)",
    "karras",
    "power",
    "power(rho=1.5)",
    "power(rho=2, variable='t')",
    "asinh",
    "phi",
)
FEW, BEST = 16, 10  # latents of the first heat, settings of the second
ROWS = 2048  # at once, where nothing else is said


@dataclass(frozen=True)
class Entry:
    """A solver on a grid, and what it missed."""

    solver: str
    plan: Plan
    error: Tensor  # (n,), of each latent
    usual: bool = False  # what `sample` takes

    @property
    def score(self) -> float:
        """Geometric mean."""
        return self.error.log().mean().exp().item()

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.solver} on {self.plan.grid.name}"

    @property
    def walker(self) -> Solver:
        """The solver, prepared for its grid."""
        assert isinstance(self.plan.loop, OnGrid)
        return self.plan.loop.solver


def plan_for(
    model: Model, solver: AnySolver | None, grid: AnyGrid | None, num_steps: int | None, guidance_scale: AnyGuidance
) -> Plan:
    """As `sample` would make it, in float64 where the device has it. Raises: ValueError: it cannot be."""
    return make_plan(
        model,
        solver,
        num_steps=num_steps,
        grid=grid,
        rtol=None,
        atol=None,
        into_zero=True,
        guidance_scale=guidance_scale,
        state_dtype=finest_dtype(model.device),
    )


def entrants(
    model: Model, num_steps: int, guidance_scale: AnyGuidance, more: Sequence[Grid] = ()
) -> list[tuple[str, Plan]]:
    """The default first, then every solver on every grid that exists for this model, and on those of `more`."""
    usual = plan_for(model, None, None, num_steps, guidance_scale)
    found = [(defaults.solver_for(num_steps, adaptive=False), usual)]
    seen = {(found[0][0], usual.grid.sigmas)}
    for solver in FAMILY:
        for grid in (None, *GRIDS, *more):
            try:
                plan = plan_for(model, solver, grid, num_steps, guidance_scale)
            except ValueError:  # no such grid for this schedule, or not for so few steps
                continue
            starts = plan.grid[0] == model.range[1]
            if starts and (solver, plan.grid.sigmas) not in seen:
                seen.add((solver, plan.grid.sigmas))
                found.append((solver, plan))
    return found


def raced(
    model: Model,
    entries: Sequence[tuple[str, Plan]],
    samples: Samples,
    truth: Tensor,
    *,
    max_batch: AnyBatch = None,
    progress: bool = False,
) -> list[Entry]:
    """The best of `entries` by their errors, best first; the first of them, the default, is always among them."""
    few = min(FEW, len(truth))
    first = _heat(model, entries, first_of(samples, few), truth[:few], max_batch, progress)
    good = sorted((e for e in first if e.error.isfinite().all()), key=lambda e: e.score)
    chosen = [e for e in good[:BEST] if e is not first[0]]
    again = [(e.solver, e.plan) for e in (first[0], *chosen)]
    return sorted(_heat(model, again, samples, truth, max_batch, progress), key=lambda e: e.score)


def errors_of(
    model: Model, plans: Sequence[Plan], samples: Samples, truth: Tensor, *, max_batch: AnyBatch = None
) -> list[Tensor]:
    """(n,) each: what the plans miss; infinite where one fails."""
    return [e.error for e in _heat(model, [("", plan) for plan in plans], samples, truth, max_batch, False)]


def _heat(
    model: Model,
    entries: Sequence[tuple[str, Plan]],
    samples: Samples,
    truth: Tensor,
    max_batch: AnyBatch,
    progress: bool,
) -> list[Entry]:
    """As many side by side as fit."""
    at_once, found = max(1, ROWS // len(truth)), []
    for i in range(0, len(entries), at_once):
        some = entries[i : i + at_once]
        bar = "race" if progress else None
        ran, _ = side_by_side(model, [plan for _, plan in some], samples, max_batch=max_batch, progress=bar)
        for (solver, plan), one in zip(some, ran, strict=True):
            lost = torch.full((len(truth),), math.inf, dtype=torch.float64)
            found.append(Entry(solver, plan, lost if one.failure is not None else rms(one.x - truth).clamp(min=1e-300)))
    return found


def first_of(samples: Samples, few: int) -> Samples:
    """The first `few` of them, or all."""
    few = min(few, len(samples.seeds))
    return replace(
        samples,
        seeds=samples.seeds[:few],
        shape=(few, *samples.shape[1:]),
        x_t=None if samples.x_t is None else samples.x_t[:few],
        cond={k: v[:few] for k, v in samples.cond.items()},
    )
