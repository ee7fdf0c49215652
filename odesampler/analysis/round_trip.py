"""Round trips: encode real images, decode them, and measure what did not come back.

    error = decode(encode(x)) - x,     for each case of   solvers x steps x dtypes x guidance x conventions

The point that comes back is the one at sigma_min, as the images are taken to be (`inversion`), so an exact solver has
error 0. A small error does not mean a good latent, so the standard deviation of the latents is given beside it: near 1
for a good encoding of data that vary in every direction, less where pixels never change, as the corners of the digits.
Where the error comes from says `error_sources`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from odesampler.analysis.round_trips import RANGE, RoundTrip, Trip
from odesampler.conventions import AnyConvention, upward
from odesampler.data_range import check_images
from odesampler.defaults import STEPS
from odesampler.guidance import AnyGuidance, Guidance
from odesampler.implicit import Implicit
from odesampler.inversion import decode, encode, refuse_what_cannot_be_encoded
from odesampler.model import Model
from odesampler.plan import AnyGrid, AnySolver, Plan, checked_batch, checked_cond, checked_model, make_plan
from odesampler.precision import finest_dtype
from odesampler.program import Invertible, Loop, Solver
from odesampler.registry import find_solver, spec_of

DEFAULT_SOLVERS = ("ddim", "heun", "rk4", "alf")


@dataclass(frozen=True)
class Case:
    """One round trip: a solver, and how it is used."""

    solver: AnySolver
    num_steps: int | None  # None: it chooses its own
    options: Mapping[str, Any] = field(default_factory=dict)  # as `encode` takes them

    @property
    def name(self) -> str:
        """The solver, as the user named it."""
        return self.solver if isinstance(self.solver, str) else spec_of(self.solver)

    def plan(self, model: Model) -> Plan:
        """How it will be decoded. Raises as `encode`, before any model is called."""
        given = {k: self.options[k] for k in ("grid", "guidance_scale")}
        dtype = self.options["state_dtype"] or finest_dtype(model.device)
        ends: dict[str, Any] = {"rtol": None, "atol": None, "into_zero": False}
        plan = make_plan(model, self.solver, num_steps=self.num_steps, state_dtype=dtype, **given, **ends)
        refuse_what_cannot_be_encoded(plan)
        upward(plan.loop, self.options["convention"])
        return plan


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
    max_batch: int | None = None,
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
        progress: Show a progress bar over the cases.

    Returns:
        A `RoundTrip`. A solver that fails while running has no row but a reason; the others' rows stand.

    Raises:
        ValueError: What cannot be meant, before any model is called.
    """
    check_images(checked_batch(checked_model(model), images, "images"), model.data_range, model.name)
    data_range, model = model.data_range or RANGE, replace(model, data_range=None)  # said once, not for every solver
    options = {"grid": grid, "cond": cond, "max_batch": max_batch}
    varied: dict[str, list[Any]] = {
        "guidance_scale": _several(guidance_scale, (int, float, Guidance), "guidance_scale"),
        "convention": _several(convention, (str, Implicit, type(None)), "convention"),
        "state_dtype": _several(state_dtype, (torch.dtype, type(None)), "state_dtype"),
    }
    chosen, steps = _several(solvers, (str, Solver, Loop), "solvers"), _several(num_steps, int, "num_steps")
    cases = list(_cases(chosen, steps, varied, options))
    for case in cases:
        case.plan(model)
    checked_cond(model, cond, len(images))
    trips, failures = [], {}
    for case in _shown(cases, progress):
        try:
            trips.append(_trip(model, images, case, data_range))
        except (ArithmeticError, RuntimeError, ValueError) as error:  # NaN, gave up, did not arrive: the others go on
            failures[_told(case, {k for k, values in varied.items() if len(values) > 1})] = str(error)
    return RoundTrip(images.detach().cpu(), tuple(trips), failures, model.name)


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
        own = isinstance(found, Loop) and not found.takes_steps
        given = dict(varied)
        if len(solvers) > 1 and (own or isinstance(found, Invertible)):
            given["convention"] = [None]
        for n, *values in product([None] if own else steps, *given.values()):
            how = {**options, **dict(zip(given, values, strict=True))}
            yield Case(solver, n, {**how, "grid": None} if own else how)


def _told(case: Case, varied: set[str]) -> str:
    """A case, in words that tell it from the others."""
    at = "" if case.num_steps is None else f" at {case.num_steps} steps"
    return f"{case.name}{at}" + "".join(f", {k} {case.options[k]}" for k in case.options if k in varied)


def _shown(cases: list[Case], progress: bool) -> Any:
    if not progress:
        return cases
    from tqdm.auto import tqdm

    return tqdm(cases, desc="round trips", unit="case", leave=False)


def _trip(model: Model, images: Tensor, case: Case, data_range: tuple[float, float]) -> Trip:
    began = time.perf_counter()
    latent = encode(model, images, solver=case.solver, num_steps=case.num_steps, **case.options)
    back = decode(model, latent, max_batch=case.options["max_batch"])
    seconds = time.perf_counter() - began
    assert latent.nfe is not None  # fresh from encode
    returned, scale = back.x.cpu(), model.schedule.latent_scale(latent.recipe.sigmas[0])
    error = returned - images.to("cpu", returned.dtype)
    return Trip(case.name, case.num_steps, latent, returned, error, latent.nfe + back.nfe, seconds, scale, data_range)
