"""Round trips: encode real images, decode them, and measure what did not come back.

    error = decode(encode(x)) - x,     for each case of   solvers x steps x dtypes x guidance x conventions

The point that comes back is the one at sigma_min, as the images are taken to be (`inversion`), so an exact solver has
error 0. A small error does not mean a good latent, so the standard deviation of the latents is given beside it: near 1
for a good encoding of data that vary in every direction, less where pixels never change, as the corners of the digits.
Where the error comes from says `error_sources`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from odesampler.analysis.cases import Case
from odesampler.analysis.error_sources import error_sources
from odesampler.analysis.round_trips import RANGE, RoundTrip, Trip
from odesampler.conventions import AnyConvention
from odesampler.defaults import STEPS
from odesampler.guidance import AnyGuidance, Guidance, warn_of_nothing_to_guide_to
from odesampler.implicit import Implicit
from odesampler.inputs import checked_cond, checked_images, checked_model, coded
from odesampler.model import Model
from odesampler.plan import AnyGrid, AnySolver
from odesampler.program import Invertible, Loop, Solver
from odesampler.registry import find_solver
from odesampler.room import AnyBatch
from odesampler.tuned import Tuned

FAILURES = (ArithmeticError, RuntimeError, ValueError)  # NaN, gave up, did not arrive: the others go on
DEFAULT_SOLVERS = ("ddim", "heun", "rk4", "alf")


def round_trip(
    model: Model,
    images: Tensor,
    solvers: AnySolver | Sequence[AnySolver] = DEFAULT_SOLVERS,
    num_steps: int | Sequence[int] = STEPS,
    *,
    grid: AnyGrid | None = None,
    cond: Mapping[str, Any] | None = None,
    guidance_scale: AnyGuidance | Sequence[AnyGuidance] = 1.0,
    convention: AnyConvention | Sequence[AnyConvention] = None,
    state_dtype: torch.dtype | Sequence[torch.dtype] | None = None,
    max_batch: AnyBatch = None,
    sources: bool = False,
    progress: bool = False,
) -> RoundTrip:
    """Encode and decode `images` with every solver at every number of steps, and in every other way that is given.

    Args:
        model: The model.
        images: (batch, *shape), float, in the model's data range.
        solvers: Names or objects, as for `sample`, or one. Those that choose their own steps get one row.
        num_steps: Transitions, one number or several.
        grid: As for `encode`: a name, since several numbers of steps walk several grids.
        cond: As for `encode`.
        guidance_scale: As for `encode`, one or several.
        convention: As for `encode`, one or several. Among several solvers, those that are undone exactly, or choose
            their own steps, get one row by the convention that they have.
        state_dtype: As for `encode`, one or several.
        max_batch: As for `encode`.
        sources: Say also where the error of each solver comes from, at its most steps, as `ods.error_sources`, which
            takes many more round trips; solvers that choose their own steps are left out.
        progress: Show a progress bar over the cases.

    Returns:
        A `RoundTrip`. A solver that fails while running has no row but a reason; the others' rows stand.

    Raises:
        ValueError: What cannot be meant, before any model is called.

    Examples:
        >>> model, images = ods.load("digits"), ods.held_out("digits").images[:2]
        >>> found = ods.round_trip(model, images, ["ddim", "alf"], 10)
        >>> {record["solver"]: record["max_error"] < 1e-9 for record in found.records()}
        {'ddim': False, 'alf': True}
    """
    images = checked_images(checked_model(model), images)
    data_range, model = model.data_range or RANGE, replace(model, data_range=None)  # said once, not for every solver
    options: dict[str, Any] = {"grid": grid, "cond": cond, "max_batch": max_batch}
    varied: dict[str, list[Any]] = {
        "guidance_scale": _several(guidance_scale, (int, float, Guidance), "guidance_scale"),
        "convention": _several(convention, (str, Implicit, type(None)), "convention"),
        "state_dtype": _several(state_dtype, (torch.dtype, type(None)), "state_dtype"),
    }
    chosen, steps = _several(solvers, (str, Solver, Loop), "solvers"), _several(num_steps, int, "num_steps")
    cases = list(_cases(chosen, steps, varied, options))
    for case in cases:
        case.plan(model)
    conditions = checked_cond(model, cond, len(images))
    warn_of_nothing_to_guide_to(model, cond, *varied["guidance_scale"])
    images = coded(model, images)
    trips, failures = [], {}
    for case in _shown(cases, progress):
        try:
            trips.append(_trip(model, images, case, data_range))
        except FAILURES as error:
            failures[_told(case, {k for k, values in varied.items() if len(values) > 1})] = str(error)
    found = []
    for case in _best(cases) if sources else ():
        try:
            how = {f.name: getattr(case, f.name) for f in fields(case)}
            found.append(error_sources(model, images, **{**how, "cond": conditions}))
        except FAILURES as error:
            failures[f"sources of {_told(case, set())}"] = str(error)
    constant = {k: values[0] for k, values in varied.items() if len(values) == 1}
    settings = Case("", None, grid, cond, **constant).settings
    return RoundTrip(images.detach().cpu(), tuple(trips), failures, model.name, settings, tuple(found))


def _several(given: Any, one: Any, what: str) -> list[Any]:
    """One or several as a list. Raises: ValueError: none."""
    found = [given] if isinstance(given, one) or not isinstance(given, (Sequence, set, range)) else list(given)
    if not found:
        raise ValueError(f"round_trip needs solvers and numbers of steps, and one or more of all else; got no {what}")
    return found


def _cases(
    solvers: list[AnySolver], steps: list[int], varied: Mapping[str, list[Any]], options: Mapping[str, Any]
) -> Iterator[Case]:
    for solver in solvers:
        found = find_solver(solver)
        own = isinstance(found, Tuned) or (isinstance(found, Loop) and not found.takes_steps)
        given = dict(varied)
        if len(solvers) > 1 and (own or isinstance(found, Invertible)):
            given["convention"] = [None]
        for n, *values in product([None] if own else steps, *given.values()):
            how = {**options, **dict(zip(given, values, strict=True))}
            yield Case(solver, n, **({**how, "grid": None} if own else how))


def _best(cases: list[Case]) -> list[Case]:
    """Of each solver, the first case of those with the most steps."""
    found: dict[str, Case] = {}
    for case in cases:
        if case.num_steps is not None and case.num_steps > (getattr(found.get(case.name), "num_steps", 0)):
            found[case.name] = case
    return list(found.values())


def _told(case: Case, varied: set[str]) -> str:
    """A case, in words that tell it from the others."""
    at = "" if case.num_steps is None else f" at {case.num_steps} steps"
    return f"{case.name}{at}" + "".join(f", {k} {getattr(case, k)}" for k in sorted(varied))


def _shown(cases: list[Case], progress: bool) -> Any:
    if not progress:
        return cases
    from tqdm.auto import tqdm

    return tqdm(cases, desc="round trips", unit="case", leave=False)


def _trip(model: Model, images: Tensor, case: Case, data_range: tuple[float, float]) -> Trip:
    latent, back, evaluations, seconds = case.walked(model, images)
    scale, error = model.schedule.latent_scale(latent.recipe.sigmas[0]), back - images.to("cpu", back.dtype)
    return Trip(case.name, case.num_steps, latent, back, error, evaluations, seconds, scale, data_range)
