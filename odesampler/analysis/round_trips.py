"""The report of round trips: what came back of each image, by solver, steps, dtype, guidance and convention.

    mse = mean of error^2,    rmse = sqrt(mse),    psnr = 20 log10(range / rmse) dB,    ssim: see `ssim`

All are measured image by image; a table shows medians over the images, and the worst.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from odesampler.analysis.cases import missed_by_grey
from odesampler.analysis.errors import quantile
from odesampler.analysis.normality import measures
from odesampler.analysis.report import Report, Rows, Section, Table
from odesampler.analysis.ssim import ssim
from odesampler.latent import Latent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANGE = (-1.0, 1.0)  # of a model that says none


@dataclass(frozen=True)
class Trip:
    """One case: a solver, a number of steps, and all else that was varied."""

    solver: str  # as the user named it
    num_steps: int | None  # transitions; None: it chose its own
    latent: Latent
    images: Tensor  # (batch, *shape), what came back
    error: Tensor  # (batch, *shape) = images - originals
    evaluations: Tensor  # (batch,) int64, of each sample, encoding and decoding together
    seconds: float
    scale: float  # standard deviation of latents of data of unit variance
    data_range: tuple[float, float] = RANGE

    @property
    def dtype(self) -> str:
        """Of the state."""
        return self.latent.recipe.state_dtype

    @property
    def guidance(self) -> str:
        """How it was guided: a scale, or all of an `ods.Guidance`."""
        scale = self.latent.recipe.guidance_scale
        return f"{scale:g}" if isinstance(scale, (int, float)) else str(scale)

    @property
    def convention(self) -> str:
        """How it was encoded, see `conventions`."""
        return self.latent.recipe.convention

    @property
    def name(self) -> str:
        """Solver and steps, for headings."""
        return self.solver if self.num_steps is None else f"{self.solver}, {self.num_steps} steps"

    @property
    def nfe(self) -> float:
        """Mean of the evaluations over the batch."""
        return self.evaluations.double().mean().item()

    @property
    def mse(self) -> Tensor:
        """(batch,) mean square error over the pixels of each image, in squared units of the data."""
        return self.error.flatten(1).square().mean(1)

    @property
    def rmse(self) -> Tensor:
        """(batch,) its root, in units of the data."""
        return self.mse.sqrt()

    @property
    def largest(self) -> Tensor:
        """(batch,) the largest error of any pixel, in units of the data."""
        return self.error.flatten(1).abs().amax(1)

    @property
    def worst(self) -> float:
        """The largest error of any pixel of any image, in units of the data."""
        return self.largest.max().item()

    @property
    def lost(self) -> Tensor:
        """(batch,) whether what came back is farther from the image than plain grey is from most."""
        return ~(self.rmse <= missed_by_grey(self.images - self.error, self.data_range))

    @property
    def psnr(self) -> Tensor:
        """(batch,) peak signal-to-noise ratio in dB; infinity where nothing is missing."""
        low, high = self.data_range
        return 20 * torch.log10((high - low) / self.rmse)

    @cached_property
    def ssim(self) -> Tensor | None:
        """(batch,) structural similarity; None where the data are no images."""
        return ssim(self.images, self.images - self.error, self.data_range) if self.error.ndim == 4 else None

    @property
    def latent_std(self) -> float:
        """Standard deviation over all coordinates of all latents, in units of `scale`: 1 for noise."""
        return self.latent.x.std().item() / self.scale

    @cached_property
    def noise(self) -> dict[str, Tensor]:
        """What is measured of each latent, (batch,) each: its mean and std, and how likely noise is as far off.

        The chance is Kolmogorov and Smirnov's, of all values of a latent together: `ods.diagnose` asks more.
        """
        found = {m.name: m.value for m in measures(self.latent.x / self.scale)}
        return {"latent_mean": found["mean"], "latent_std": found["std"], "latent_p": found["ks_p"]}


@dataclass(frozen=True, repr=False)
class RoundTrip(Report):
    """The round-trip errors of several cases; prints as a table and draws itself.

    Examples:
        >>> model, images = ods.load("digits"), ods.held_out("digits").images[:2]
        >>> found = ods.round_trip(model, images, "heun", [5, 20])
        >>> few, many = found.records()
        >>> few["steps"], many["steps"], many["rmse_median"] < few["rmse_median"]
        (5, 20, True)
        >>> len(found.per_sample().records())  # two images at two numbers of steps
        4
    """

    originals: Tensor  # (batch, *shape)
    trips: tuple[Trip, ...]
    failures: Mapping[str, str]  # solver and steps -> why it has no row
    model: str
    settings: str = ""  # what holds for all and is not the default
    sources: tuple[Report, ...] = ()  # where the errors come from, if that was asked

    @property
    def title(self) -> str:
        """One line for a page."""
        return f"Round trips of {len(self.originals)} images, {self.model}"

    def sections(self) -> Sequence[Section]:
        """A row for each case, `nfe` counting both directions; the images; where the errors come from."""
        failed = [f"{name} failed: {why}" for name, why in self.failures.items()]
        rows = [_shown(trip, self.varied) for trip in self.trips]
        head = list(rows[0]) if rows else ["solver", "steps"]
        lost = [
            f"lost: {self.series(t)}{t.name.removeprefix(t.solver)}: {n} of {len(t.error)} came back farther off than "
            "plain grey would be"
            for t in self.trips
            if (n := int(t.lost.sum()))
        ]
        table = Table(
            head, [list(row.values()) for row in rows], [*([self.settings] if self.settings else []), *lost, *failed]
        )
        first = Section(self.title, table=table, draw=self.plot if self.trips else None)
        return [first, *(section for report in self.sources for section in report.sections())]

    @property
    def varied(self) -> tuple[str, ...]:
        """Of dtype, guidance and convention, those of which a solver has several."""
        facts, solvers = ("dtype", "guidance", "convention"), {trip.solver for trip in self.trips}
        return tuple(f for f in facts if len({(t.solver, getattr(t, f)) for t in self.trips}) > len(solvers))

    def series(self, trip: Trip) -> str:
        """What a line of a figure is called: the solver, and what of dtype, guidance and convention varies."""
        return ", ".join(
            (trip.solver, *(f"guidance {trip.guidance}" if f == "guidance" else getattr(trip, f) for f in self.varied))
        )

    def records(self) -> list[dict[str, Any]]:
        """A record for each case: medians over the samples, but for `rmse_worst` and `max_error`."""
        return [
            {
                **_case(trip),
                "nfe": trip.nfe,
                "mse_median": quantile(trip.mse, 0.5),
                "rmse_median": quantile(trip.rmse, 0.5),
                "rmse_worst": trip.rmse.max().item(),
                "max_error": trip.worst,
                "psnr": quantile(trip.psnr, 0.5),
                "ssim": None if trip.ssim is None else quantile(trip.ssim, 0.5),
                "lost": int(trip.lost.sum()),
                "latent_mean": trip.latent.x.mean().item() / trip.scale,
                "latent_std": trip.latent_std,
                "latent_p": quantile(trip.noise["latent_p"], 0.5),
                "seconds": trip.seconds,
            }
            for trip in self.trips
        ]

    def per_sample(self) -> Rows:
        """What came back of each image by itself, as a report of its own: `.per_sample().to_csv(path)`."""
        found = []
        for trip in self.trips:
            columns = {"nfe": trip.evaluations, "mse": trip.mse, "rmse": trip.rmse, "max_error": trip.largest}
            columns |= {"lost": trip.lost}
            columns |= {"psnr": trip.psnr} | ({} if trip.ssim is None else {"ssim": trip.ssim}) | trip.noise
            for i, values in enumerate(zip(*(c.tolist() for c in columns.values()), strict=True)):
                found.append({**_case(trip), "sample": i, **dict(zip(columns, values, strict=True))})
        return Rows(f"{self.title}, one by one", found)

    def plot(self, num_images: int = 6, samples: Tensor | None = None) -> Figure:
        """Originals, latents, reconstructions and errors of each solver at its most steps, and error by evaluations.

        Of data that are no images, (channels, height, width), the error by evaluations alone.

        Args:
            num_images: Images shown for each solver.
            samples: Images drawn from the model, (n, *shape), to show above.

        Raises:
            ValueError: No solver came back, or samples that are no images.
        """
        if not self.trips:
            raise ValueError(f"no solver came back, so there is nothing to draw: {dict(self.failures)}")
        if samples is not None and self.originals.ndim != 4:
            raise ValueError(
                f"samples are shown as images, (n, channels, height, width); the data here have shape "
                f"{tuple(self.originals.shape[1:])}: leave samples out"
            )
        from odesampler.analysis.pictures import round_trip_figure

        return round_trip_figure(self, num_images, samples)


def _case(trip: Trip) -> dict[str, Any]:
    """What tells a case from others."""
    facts = {"dtype": trip.dtype, "guidance": trip.guidance, "convention": trip.convention}
    facts |= {"grid": trip.latent.recipe.grid}
    return {"solver": trip.solver, "steps": trip.num_steps, **facts}


def _shown(trip: Trip, varied: Sequence[str]) -> dict[str, str]:
    """The cells of a case, by their heads."""
    pixels = {"psnr dB": f"{quantile(trip.psnr, 0.5):.1f}"}  # which points of other kinds have not
    similar = {} if trip.ssim is None else {**pixels, "ssim": f"{quantile(trip.ssim, 0.5):.4f}"}
    return {
        "solver": trip.solver,
        "steps": "own" if trip.num_steps is None else str(trip.num_steps),
        **{name: getattr(trip, name) for name in varied},
        "nfe": f"{trip.nfe:.0f}",
        "rmse (median)": f"{quantile(trip.rmse, 0.5):.2e}",
        "rmse (worst)": f"{trip.rmse.max().item():.2e}",
        "max error": f"{trip.worst:.2e}",
        **similar,
        "latent std": f"{trip.latent_std:.3f}",
        "seconds": f"{trip.seconds:.2f}",
    }
