"""Round trips: encode real images, decode them, and measure what did not come back.

    error = decode(encode(x)) - x,     per image: rmse, largest, psnr = 20 log10(2 / rmse) for data in [-1, 1]

The point that comes back is the one at sigma_min, as the images are taken to be (`inversion`), so an exact solver has
error 0. A small error does not mean a good latent, so the standard deviation of the latents is given beside it: near 1
for a good encoding of data that vary in every direction, less where pixels never change, as the corners of the digits.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from odesampler.analysis.report import Report, Section, Table
from odesampler.data_range import check_images
from odesampler.defaults import STEPS
from odesampler.guidance import AnyGuidance
from odesampler.inversion import decode, encode, refuse_stochastic
from odesampler.latent import Latent
from odesampler.model import Model
from odesampler.plan import AnyGrid, AnySolver, checked_batch, checked_cond, checked_model, make_plan
from odesampler.program import Loop, Solver
from odesampler.registry import find_solver, spec_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFAULT_SOLVERS = ("ddim", "heun", "rk4", "alf")


@dataclass(frozen=True)
class Trip:
    """One solver at one number of steps."""

    solver: str  # as the user named it
    num_steps: int | None  # transitions; None: it chose its own
    latent: Latent
    images: Tensor  # (batch, *shape), what came back
    error: Tensor  # (batch, *shape) = images - originals
    nfe: float  # evaluations a sample, encoding and decoding together, mean over the batch
    seconds: float

    @property
    def rmse(self) -> Tensor:
        """(batch,) root mean square error over the pixels of each image, in units of the data."""
        return self.error.flatten(1).square().mean(1).sqrt()

    @property
    def worst(self) -> float:
        """The largest error of any pixel of any image, in units of the data."""
        return self.error.abs().max().item()

    @property
    def psnr(self) -> Tensor:
        """(batch,) peak signal-to-noise ratio in dB, for data in [-1, 1]."""
        return 20 * torch.log10(2 / self.rmse)

    @property
    def latent_std(self) -> float:
        """Standard deviation over all coordinates of all latents."""
        return self.latent.x.std().item()


@dataclass(frozen=True, repr=False)
class RoundTrip(Report):
    """The round-trip errors of several solvers; prints as a table and draws itself."""

    originals: Tensor  # (batch, *shape)
    trips: tuple[Trip, ...]
    failures: Mapping[str, str]  # solver and steps -> why it has no row
    model: str

    @property
    def title(self) -> str:
        """One line for a page."""
        return f"Round trips of {len(self.originals)} images, {self.model}"

    def sections(self) -> Sequence[Section]:
        """A row for each solver and number of steps, `nfe` counting both directions; the images."""
        head = (
            "solver",
            "steps",
            "nfe",
            "rmse (median)",
            "rmse (worst)",
            "max error",
            "psnr dB",
            "latent std",
            "seconds",
        )
        rows = [
            (
                t.solver,
                "own" if t.num_steps is None else str(t.num_steps),
                f"{t.nfe:.0f}",
                f"{t.rmse.median().item():.2e}",
                f"{t.rmse.max().item():.2e}",
                f"{t.worst:.2e}",
                f"{t.psnr.median().item():.1f}",
                f"{t.latent_std:.3f}",
                f"{t.seconds:.2f}",
            )
            for t in self.trips
        ]
        failed = [f"{name} failed: {why}" for name, why in self.failures.items()]
        drawn = self.originals.ndim == 4 and bool(self.trips)
        return [Section(self.title, table=Table(head, rows, failed), draw=self.plot if drawn else None)]

    def records(self) -> list[dict[str, Any]]:
        """A record for each solver and number of steps."""
        return [
            {
                "solver": t.solver,
                "steps": t.num_steps,
                "nfe": t.nfe,
                "rmse_median": t.rmse.median().item(),
                "rmse_worst": t.rmse.max().item(),
                "max_error": t.worst,
                "psnr": t.psnr.median().item(),
                "latent_std": t.latent_std,
                "seconds": t.seconds,
            }
            for t in self.trips
        ]

    def plot(self, num_images: int = 6, samples: Tensor | None = None) -> Figure:
        """Originals, latents, reconstructions and errors of each solver at its most steps, and error by evaluations.

        Args:
            num_images: Images shown for each solver.
            samples: Images drawn from the model, (n, *shape), to show above.

        Raises:
            ValueError: The data are no images, (channels, height, width), or no solver came back.
        """
        if self.originals.ndim != 4 or not self.trips:
            raise ValueError(
                f"a picture needs images, (batch, channels, height, width), and a solver that came back; "
                f"got {tuple(self.originals.shape)} and {len(self.trips)} solvers"
            )
        from odesampler.analysis.pictures import round_trip_figure

        return round_trip_figure(self, num_images, samples)


def round_trip(
    model: Model,
    images: Tensor,
    solvers: AnySolver | Sequence[AnySolver] = DEFAULT_SOLVERS,
    num_steps: int | Sequence[int] = STEPS,
    *,
    grid: AnyGrid | None = None,
    cond: Mapping[str, Any] | None = None,
    guidance_scale: AnyGuidance = 1.0,
    state_dtype: torch.dtype | None = None,
    max_batch: int | None = None,
    progress: bool = False,
) -> RoundTrip:
    """Encode and decode `images` with every solver at every number of steps.

    Args:
        model: The model.
        images: (batch, *shape), float, in the model's data range.
        solvers: Names or objects, as for `sample`, or one. Those that choose their own steps get one row.
        num_steps: Transitions, one number or several.
        grid: As for `encode`: a name, since several numbers of steps walk several grids.
        cond: As for `encode`.
        guidance_scale: As for `encode`.
        state_dtype: As for `encode`.
        max_batch: As for `encode`.
        progress: Show a progress bar over the cases.

    Returns:
        A `RoundTrip`. A solver that fails while running has no row but a reason; the others' rows stand.

    Raises:
        ValueError: What cannot be meant, before any model is called.
    """
    check_images(checked_batch(checked_model(model), images, "images"), model.data_range, model.name)
    model = replace(model, data_range=None)  # said once, not again for every solver
    solvers = [solvers] if isinstance(solvers, (str, Solver, Loop)) else list(solvers)
    steps = [num_steps] if isinstance(num_steps, int) else list(num_steps)
    if not solvers or not steps:
        raise ValueError(f"round_trip needs solvers and numbers of steps; got {list(solvers)} and {steps}")
    options: dict[str, Any] = {
        "grid": grid,
        "cond": cond,
        "guidance_scale": guidance_scale,
        "state_dtype": state_dtype,
        "max_batch": max_batch,
    }
    cases = list(_cases(solvers, steps))
    for solver, n in cases:
        _check(model, images, solver, n, options)
    trips, failures = [], {}
    for solver, n in _shown(cases, progress):
        name = solver if isinstance(solver, str) else spec_of(solver)
        try:
            trips.append(_trip(model, images, solver, name, n, options))
        except (ArithmeticError, RuntimeError, ValueError) as error:  # NaN, gave up, did not arrive: the others go on
            failures[name if n is None else f"{name} at {n} steps"] = str(error)
    return RoundTrip(images.detach().cpu(), tuple(trips), failures, model.name)


def _cases(solvers: Sequence[AnySolver], steps: Sequence[int]) -> Iterator[tuple[Solver | Loop | str, int | None]]:
    for solver in solvers:
        found = find_solver(solver)
        own = isinstance(found, Loop) and not found.takes_steps
        for n in [None] if own else steps:
            yield solver, n


def _check(model: Model, images: Tensor, solver: AnySolver, n: int | None, options: Mapping[str, Any]) -> None:
    plan_options = {k: options[k] for k in ("grid", "guidance_scale", "state_dtype")}
    if n is None:
        plan_options["grid"] = None
    plan = make_plan(model, solver, num_steps=n, rtol=None, atol=None, into_zero=False, **plan_options)
    refuse_stochastic(plan)
    checked_cond(model, options["cond"], len(images))


def _shown(cases: list[Any], progress: bool) -> Any:
    if not progress:
        return cases
    from tqdm.auto import tqdm

    return tqdm(cases, desc="round trips", unit="case", leave=False)


def _trip(model: Model, images: Tensor, solver: AnySolver, name: str, n: int | None, options: dict[str, Any]) -> Trip:
    began = time.perf_counter()
    latent = encode(model, images, solver=solver, num_steps=n, **(options if n else {**options, "grid": None}))
    back = decode(model, latent, max_batch=options["max_batch"])
    seconds = time.perf_counter() - began
    assert latent.nfe is not None  # fresh from encode
    returned = back.x.cpu()
    nfe = (latent.nfe + back.nfe).double().mean().item()
    return Trip(name, n, latent, returned, returned - images.to("cpu", returned.dtype), nfe, seconds)
