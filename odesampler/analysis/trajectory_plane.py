"""Trajectories seen in a plane: the paths of several solvers from one latent.

    z = x / sqrt(1 + sigma^2),    V: the two leading principal directions of the finest path,    place = V'(z - mean)

In z the noise has the size that the data have, so that neither end dwarfs the other; for VP models z is x_t. Places are
divided by sqrt(d): distances in the plane are rms distances. What lies outside the plane is measured, not shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from odesampler.analysis.reference import grids_between
from odesampler.analysis.report import Report, Section, Table
from odesampler.analysis.settings import made_with
from odesampler.grid import Grid, make_grid
from odesampler.guidance import AnyGuidance, guided, warn_of_nothing_to_guide_to
from odesampler.inputs import checked_batch, checked_cond, checked_model
from odesampler.model import Model
from odesampler.noise import seeds_for
from odesampler.observe import Trajectory
from odesampler.plan import AnyGrid, AnySolver
from odesampler.precision import finest_dtype
from odesampler.program import Loop, Solver
from odesampler.registry import distinct_names, find_solver, spec_of
from odesampler.sampling import sample
from odesampler.schedule import Schedule
from odesampler.threshold import AnyThreshold
from odesampler.tuned import Tuned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FINEST = "finest"
CURVED = 0.1  # of the finest path's length: further outside the plane, and the picture misses something


@dataclass(frozen=True, eq=False)
class Path:
    """One solver's way from noise to image."""

    solver: str
    sigmas: tuple[float, ...]
    place: Tensor  # (points, 2), in the plane
    outside: Tensor  # (points,) rms distance from the plane
    length: float  # of the path, outside the plane too
    miss: float  # rms distance of its end from that of the finest path


@dataclass(frozen=True, repr=False, eq=False)
class TrajectoryPlane(Report):
    """The paths of several solvers in one plane; prints as a table and draws itself.

    Examples:
        >>> found = ods.trajectory_plane(ods.load("digits"), "ddim", 6, reference_steps=40)
        >>> ddim, finest = found.paths
        >>> tuple(ddim.place.shape), tuple(finest.place.shape), finest.miss
        ((7, 2), (41, 2), 0.0)
    """

    paths: tuple[Path, ...]  # the last is the finest
    held: float  # the share of the finest path's variance that the plane holds
    model: str
    made: str = ""  # the settings that the table does not show
    drawing: tuple[str, ...] = ()  # the solvers that draw noise

    @property
    def curved(self) -> bool:
        """Whether a path leaves the plane by more than a tenth of the finest path's length."""
        return max(path.outside.max().item() for path in self.paths) > CURVED * self.paths[-1].length

    @property
    def title(self) -> str:
        """One line for a page."""
        return f"From one latent of {self.model} to its image, in the plane of the finest path"

    def sections(self) -> Sequence[Section]:
        """A row for each path; the plane."""
        head = ("solver", "steps", "length", "misses the end by", "outside the plane")
        rows = [
            (r["solver"], str(r["steps"]), *(f"{r[k]:.3g}" for k in ("length", "miss", "outside")))
            for r in self.records()
        ]
        notes = [f"rms, in units of the data; the plane holds {self.held:.1%} of the finest path's variance"]
        if self.curved:
            notes.append(
                "paths leave the plane by more than a tenth of the finest path's length: the picture misses something"
            )
        if self.drawing:
            notes.append(
                f"{', '.join(self.drawing)}: draws noise, so that its path is one of many, and its miss no error"
            )
        notes += [self.made] if self.made else []
        return [Section(self.title, table=Table(head, rows, notes), draw=self.plot)]

    def records(self) -> list[dict[str, Any]]:
        """A record for each path; `outside` is the largest distance from the plane."""
        return [
            {
                "solver": path.solver,
                "steps": len(path.sigmas) - 1,
                "length": path.length,
                "miss": path.miss,
                "outside": path.outside.max().item(),
            }
            for path in self.paths
        ]

    def plot(self) -> Figure:
        """The paths in the plane, and how far outside of it they are along the way."""
        from odesampler.analysis.map_pictures import trajectory_figure

        return trajectory_figure(self)


def trajectory_plane(
    model: Model,
    solvers: AnySolver | Sequence[AnySolver] = ("ddim", "heun", "dpmpp_2m"),
    num_steps: int | None = None,
    *,
    grid: AnyGrid | None = None,
    seed: int = 0,
    x: Tensor | None = None,
    cond: Mapping[str, Any] | None = None,
    guidance_scale: AnyGuidance = 1.0,
    clip_denoised: AnyThreshold = None,
    reference_steps: int = 200,
) -> TrajectoryPlane:
    """The ways of several solvers from one latent, seen in the plane that holds most of the finest one.

    Args:
        model: The model.
        solvers: Names or objects, as for `sample`, or one; all walk a grid.
        num_steps: Transitions of each, 6 by default; few, to have something to see. Not with a grid of your own;
            what was tuned has its own.
        grid: As for `sample`; the finest path starts and ends where a grid of your own does.
        seed: Of the latent.
        x: The latent instead, (1, *shape), as for `sample`.
        cond: As for `sample`.
        guidance_scale: As for `sample`.
        clip_denoised: As for `sample`.
        reference_steps: Steps of the finest path, RK4 in log sigma; an even number.

    Returns:
        A `TrajectoryPlane`; its last path is the finest.

    Raises:
        ValueError: What cannot be meant, before the model is called: more than one latent, data of one value.

    Examples:
        >>> found = ods.trajectory_plane(ods.load("digits"), ["ddim", "heun"], 6, reference_steps=40)
        >>> [path.solver for path in found.paths]
        ['ddim', 'heun', 'finest']
    """
    asked = [solvers] if isinstance(solvers, (str, Solver, Loop)) else list(solvers)
    if not asked:
        raise ValueError("trajectory_plane needs solvers; got none")
    if x is not None and len(checked_batch(checked_model(model), x, "x")) != 1:
        raise ValueError(f"trajectory_plane follows one latent, (1, *shape); got {len(x)}: x[:1]")
    for solver in asked:
        found = find_solver(solver)
        if not getattr(found, "takes_steps", True):
            raise ValueError(f"{spec_of(found)} chooses its own steps: take solvers that walk a grid")
    if grid is None or isinstance(grid, str):
        num_steps = 6 if num_steps is None else num_steps
    finest = _finest(checked_model(model), grid, reference_steps)
    guided(model, guidance_scale)  # raises where this model cannot be guided so
    warn_of_nothing_to_guide_to(model, cond, guidance_scale)
    how: dict[str, Any] = {
        "cond": checked_cond(model, cond, 1),
        "guidance_scale": guidance_scale,
        "clip_denoised": clip_denoised,
    }
    how |= {"seed": seeds_for(seed, 1), "x": x, "state_dtype": finest_dtype(model.device), "trajectory": True}
    cases: list[tuple[AnySolver, int | None, AnyGrid | None]] = []
    for solver in asked:
        own = isinstance(find_solver(solver), Tuned)  # what was tuned has its own steps
        cases.append((solver, None, None) if own else (solver, num_steps, grid))
    cases.append(("rk4", None, finest))
    ways = []
    for solver, steps, walked in cases:
        way = sample(model, 1, solver=solver, num_steps=steps, grid=walked, **how).trajectory
        assert way is not None
        ways.append((_in_one_scale(way, model.schedule), way.sigmas))
    names = [*distinct_names(asked), FINEST]
    made = made_with(
        grid=grid,
        seed=seed if x is None else None,
        x=x,
        cond=cond,
        guidance_scale=guidance_scale,
        clip_denoised=clip_denoised,
    )
    drawing = tuple(
        n for n, solver in zip(names, asked, strict=False) if getattr(find_solver(solver), "stochastic", False)
    )
    return replace(_seen(names, ways, model.name), made=made, drawing=drawing)


def _finest(model: Model, grid: AnyGrid | None, num_steps: int) -> Grid:
    """The grid of the finest path, from where a given `grid` starts to where it ends."""
    low, high = model.range
    end = 0.0
    if grid is not None and not isinstance(grid, str):
        given = make_grid(grid, model.schedule, 1, into_zero=True)
        high, end = given[0], given[-1]
    finest, _ = grids_between(model, end or low, high, num_steps, into_zero=end == 0)
    return finest


def _seen(names: Sequence[str], ways: Sequence[tuple[Tensor, tuple[float, ...]]], model: str) -> TrajectoryPlane:
    """The paths in the plane of the last one; a way is its points (points, d) and their sigmas."""
    finest = ways[-1][0]
    if finest.shape[1] < 2:
        raise ValueError("data of one value have no plane to be seen in")
    centre = finest.mean(0)
    _, weights, axes = torch.linalg.svd(finest - centre, full_matrices=False)
    axes = axes[:2] * torch.where(axes[:2] @ (finest[-1] - finest[0]) < 0, -1.0, 1.0)[:, None]  # the image: up, right
    paths = []
    for name, (points, sigmas) in zip(names, ways, strict=True):
        place = (points - centre) @ axes.T
        outside = (points - centre - place @ axes).norm(dim=1)
        steps = (points[1:] - points[:-1]).norm(dim=1).sum()
        miss = (points[-1] - finest[-1]).norm()
        scaled = (v / math.sqrt(finest.shape[1]) for v in (place, outside, steps, miss))
        place, outside, steps, miss = scaled
        paths.append(Path(name, sigmas, place, outside, steps.item(), miss.item()))
    held = (weights[:2].square().sum() / weights.square().sum()).item()
    return TrajectoryPlane(tuple(paths), held, model)


def _in_one_scale(way: Trajectory, schedule: Schedule) -> Tensor:
    """x / sqrt(1 + sigma^2) along the way of one sample, (points, d), float64."""
    points = []
    for x_t, sigma in zip(way.x_t.double(), way.sigmas, strict=True):
        x = schedule.from_model_scale(x_t, sigma)  # at infinity it is noise of this scale already
        points.append(x if math.isinf(sigma) else x / math.hypot(1, sigma))
    return torch.stack(points).flatten(1)
