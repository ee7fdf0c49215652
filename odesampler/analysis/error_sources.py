"""Where the error of a round trip comes from, measured one by one.

    discretisation   (E_N - E_2N) / (1 - 2^-q)      E_N what N steps miss: Richardson's estimate; q see `trip_order`
    order            log2 |z_N - z_2N| / |z_2N - z_4N|      z_N the latent of N steps: one way
    tolerance        the rest, where encoding solved the equations of decoding: then steps miss nothing
    rounding         |E(x + ulp) - E(x)| / sqrt 2   E where each value of x is moved by one unit in the last place
    model            the growth of a small change up and down the equation, see `growth`
    convention       what comes back when encoded as `conventions` has it otherwise
    where            what each step misses, and what of it arrives, see `estimate`

2N steps go by the same grid, each of its steps cut in two. The order is told one way, since the way down takes back
what leads in the error of the way up where p is even: the round trip has order p + 1 then. A unit in the last place is
one of the coarser of state and network: moving by it draws all roundings anew, while a smooth map hardly moves.

References:
    Hairer, Norsett, Wanner 1993, Solving Ordinary Differential Equations I, II.4 (step doubling). Parker 1997, Monte
    Carlo Arithmetic (rounding measured by perturbation).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from odesampler.analysis.cases import Case, Walked, missed_by_grey
from odesampler.analysis.errors import rms
from odesampler.analysis.estimate import SWEEPS, estimated
from odesampler.analysis.growth import growths, own_grid
from odesampler.analysis.sources import ErrorSources, Other
from odesampler.conventions import AnyConvention
from odesampler.defaults import STEPS
from odesampler.grid import Grid
from odesampler.guidance import AnyGuidance, warn_of_nothing_to_guide_to
from odesampler.inputs import checked_cond, checked_images, checked_model, coded
from odesampler.integrate import OnGrid
from odesampler.model import Model
from odesampler.noise import Streams
from odesampler.plan import AnyGrid, AnySolver, Plan
from odesampler.precision import dtype_name, finest_dtype, is_whole
from odesampler.program import Invertible
from odesampler.registry import find_solver, spec_of
from odesampler.room import AnyBatch
from odesampler.tuned import Tuned

Found = TypeVar("Found")
CONVENTIONS = ("source", "target", "implicit")
ITERATIONS = 4
MIRRORED = 2  # the highest order of steps whose levels are mirrored: their first error cancels about the middle


def error_sources(
    model: Model,
    images: Tensor,
    solver: AnySolver = "ddim",
    num_steps: int | None = None,
    *,
    grid: AnyGrid | None = None,
    cond: Mapping[str, Any] | None = None,
    guidance_scale: AnyGuidance = 1.0,
    convention: AnyConvention = None,
    state_dtype: torch.dtype | None = None,
    conventions: Sequence[AnyConvention] = CONVENTIONS,
    iterations: int = ITERATIONS,
    max_batch: AnyBatch = None,
) -> ErrorSources:
    """Take a round trip, and measure what makes its error: the steps, rounding, the model, the convention; and where.

    Args:
        model: The model. Where torch cannot differentiate its network, forward and backward, the report has no growth
            and no estimate, and says why.
        images: (batch, *shape), float, in the model's data range. A few: this takes many round trips.
        solver: As for `encode`, one of ours with a number of steps.
        num_steps: As for `encode`.
        grid: As for `encode`.
        cond: As for `encode`.
        guidance_scale: As for `encode`.
        convention: As for `encode`.
        state_dtype: As for `encode`.
        conventions: Those to compare with, for a solver that has a choice; "implicit" costs as much as ten round trips.
        iterations: The most of them for each growth; each costs about 800 evaluations. 0: growth is not measured.
        max_batch: As for `encode`. Without it all steps of all samples are asked about in one call, for "where".

    Returns:
        An `ErrorSources`, which says in words what dominates, and has the numbers of each image.

    Raises:
        ValueError: What cannot be meant, before any model is called; a solver that chooses its own steps, or states no
            order.

    Examples:
        >>> model, images = ods.load("digits"), ods.held_out("digits").images[:1]
        >>> found = ods.error_sources(model, images, "heun", 10, conventions=(), iterations=0)
        >>> found.dominant, bool(found.rounding.max() < found.error.abs().max() / 100)
        ('discretisation', True)
    """
    images = checked_images(checked_model(model), images)
    if not is_whole(iterations) or iterations < 0:
        raise ValueError(f"iterations must be a whole number, 0 or more; got {iterations!r}")
    if isinstance(find_solver(solver), Tuned):
        raise ValueError(f"{solver!r} was tuned for the steps of its grid, which cannot be doubled: see its measured")
    own = not getattr(find_solver(solver), "takes_steps", True)  # such a one is refused for what it is, below
    steps = STEPS if num_steps is None and not own and (grid is None or isinstance(grid, str)) else num_steps
    case = Case(solver, steps, grid, cond, guidance_scale, convention, state_dtype, max_batch)
    plan = case.plan(model)
    if not isinstance(plan.loop, OnGrid):
        raise ValueError(
            f"{spec_of(plan.loop)} chooses its own steps, or takes them in another library, so they cannot be doubled "
            "or looked at: give num_steps and one of our solvers"
        )
    if plan.loop.solver.order < 1:
        raise ValueError(
            f"{spec_of(plan.loop)} states the order {plan.loop.solver.order}, by which no error falls with the steps: "
            "its order must be 1 or more"
        )
    others = [] if isinstance(plan.loop.solver, Invertible) else [replace(case, convention=c) for c in conventions]
    for other in others:
        other.plan(model)
    checked_cond(model, cond, len(images))
    warn_of_nothing_to_guide_to(model, cond, guidance_scale)
    return sources_of(replace(model, data_range=None), coded(model, images), case, others, iterations, model.data_range)


def sources_of(
    model: Model,
    images: Tensor,
    case: Case,
    others: Sequence[Case],
    iterations: int,
    data_range: tuple[float, float] | None,
) -> ErrorSources:
    """The sources for a case whose arguments have been checked, compared with those of `others`."""
    plan = case.plan(model)
    assert isinstance(plan.loop, OnGrid)
    whole, grid = case.walked(model, images), doubled(plan.grid)
    fine = replace(case, num_steps=None, grid=grid).walked(model, images)
    error, finer = (w.x - images.to("cpu", w.x.dtype) for w in (whole, fine))
    finest_latent = replace(case, num_steps=None, grid=doubled(grid)).encoded(model, images).x
    up = whole.latent.recipe.convention
    order = min(plan.loop.solver.order, MIRRORED if up == "target" else math.inf)
    q = trip_order(error, finer, order, up)
    moved = _moved(images, _coarser(model, plan))
    shaken = case.walked(model, moved)
    again = shaken.x - moved.to("cpu", whole.x.dtype)
    finest = finest_dtype(model.device)
    other = torch.float64 if plan.state_dtype == torch.float32 else torch.float32
    states = None if finest == torch.float32 else replace(case, state_dtype=other).walked(model, images).x - whole.x
    cond = checked_cond(model, case.cond, len(images))
    estimate, no_estimate = _or_why(lambda: estimated(model, images, case, plan, SWEEPS))
    growth, no_growth = _or_why(
        lambda: growths(model, own_grid(model, plan), images, cond, iterations, case.max_batch) if iterations else None
    )
    return ErrorSources(
        error=error,
        finer=finer,
        discretisation=None if whole.latent.defect is not None else (error - finer) / (1 - 2 ** -_each(q, error)),
        latent_change=(whole.latent.x - fine.latent.x).cpu() / (1 - 2.0**-order),
        finer_latent_change=(fine.latent.x - finest_latent).cpu() / (1 - 2.0**-order),
        latent_rounding=(shaken.latent.x - whole.latent.x).cpu() / math.sqrt(2),
        rounding=(again - error) / math.sqrt(2),
        states=states,
        other_dtype=dtype_name(other),
        others=tuple(_compared(model, images, whole, one) for one in others),
        growth=growth,
        why_no_growth=no_growth,
        estimate=estimate,
        why_no_estimate=no_estimate,
        grey=missed_by_grey(images, data_range),
        order=int(order),
        exact=isinstance(plan.loop.solver, Invertible),
        dtypes=(dtype_name(plan.state_dtype), dtype_name(_coarser(model, plan))),
        how=f"{case.name}, {plan.grid.num_steps} steps, {whole.latent.recipe.convention}",
        settings=replace(case, convention=None).settings,  # `how` has it
        model=model.name,
    )


def doubled(grid: Grid) -> Grid:
    """`grid` with a sigma between any two neighbours: their geometric mean, and twice the last before infinity."""
    down = grid.down().sigmas
    inner = [2 * low if math.isinf(high) else math.sqrt(high * low) for high, low in pairwise(down)]
    sigmas = [*(s for pair in zip(down, inner, strict=False) for s in pair), down[-1]]
    return Grid(tuple(sigmas), f"{grid.name}, doubled")


def trip_order(error: Tensor, finer: Tensor, order: float, convention: str) -> Tensor:
    """(batch,) float64: the order of a round trip of a solver of this order, from what N and 2N steps miss.

    One higher than the solver's where that is even, up goes the way that comes down, and this is what is measured.
    """
    higher = torch.log2(rms(error) / rms(finer)) > order + 0.5
    return order + higher.double() * (order % 2 == 0 and convention == "source")


def _or_why(measured: Callable[[], Found]) -> tuple[Found | None, str]:
    """What needs derivatives of the network, or why there is none: not every network has them."""
    try:
        return measured(), ""
    except (ValueError, RuntimeError) as refused:  # NotImplementedError among them, by functions without a jvp
        return None, str(refused) or type(refused).__name__


def _each(value: Tensor, like: Tensor) -> Tensor:
    return value.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def _compared(model: Model, images: Tensor, whole: Walked, case: Case) -> Other:
    """What another convention brings back."""
    name = str(case.convention)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*did not converge", RuntimeWarning)  # it is counted below
            found = case.walked(model, images)
    except (ArithmeticError, RuntimeError, ValueError) as failed:
        return Other(name, None, None, None, None, str(failed))
    error, change = found.x - images.to("cpu", found.x.dtype), (found.latent.x - whole.latent.x).cpu()
    return Other(name, error, change, found.evaluations, found.latent.converged)


def _coarser(model: Model, plan: Plan) -> torch.dtype:
    """The coarser dtype of state and network."""
    dtypes = [d for d in (plan.state_dtype, model.network_dtype, model.autocast) if d is not None]
    return max(dtypes, key=lambda d: torch.finfo(d).eps)


def _moved(images: Tensor, dtype: torch.dtype) -> Tensor:
    """`images` with each value moved by a unit in its last place in `dtype`, or in that of 1, up or down by chance."""
    signs = Streams([0] * len(images)).draw(images).sign()  # for a sample the same whatever batch it is in
    fine = images.to(finest_dtype(images.device))
    return fine + torch.finfo(dtype).eps * fine.abs().clamp(min=1.0) * signs
