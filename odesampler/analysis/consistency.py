"""Consistency: whether more steps make the same images better, or other images.

    between(n, m) = rms(x with n steps - x with m steps), the same latents;    error(n) = c n^-rate

    one direction:  between(n, m) = |error(n) - error(m)|;    each its own:  sqrt(error(n)^2 + error(m)^2)

The latents of an ODE are codes: with other numbers of steps they decode to the same images but for the solver's error,
which falls at its order, in one direction. A sampler that draws its noise anew, such as DDPM, makes other images each
time, all equally far from each other: rate 0. The rate is that of the law which fits the distances better.

References:
    Song, Meng, Ermon 2021, Denoising Diffusion Implicit Models, arXiv:2010.02502, section 5.2 and Figure 5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from odesampler.analysis.errors import quantile, rms
from odesampler.analysis.report import Report, Section, Table
from odesampler.analysis.settings import made_with
from odesampler.grid import check_num_steps
from odesampler.guidance import AnyGuidance, guided, warn_of_nothing_to_guide_to
from odesampler.inputs import checked_cond, checked_count, checked_model
from odesampler.model import Model
from odesampler.plan import AnyGrid, AnySolver
from odesampler.precision import finest_dtype
from odesampler.registry import find_solver, spec_of
from odesampler.room import AnyBatch
from odesampler.sampling import sample
from odesampler.threshold import AnyThreshold
from odesampler.tuned import Tuned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST_RATE = 0.25  # half of what a path of noise gives to a solver of strong order 1/2
SMALL_RATE = 0.05  # as good as none
MOST_RATE = 10.0  # no solver here has an order above 8
MOST_OF_NOISE = 1.5  # the highest strong order here: what falls faster has one direction
ROUNDING = 1e-6  # distances below this many standard deviations of the images are none


@dataclass(frozen=True, repr=False, eq=False)
class Consistency(Report):
    """The same latents with several numbers of steps; prints as a table and draws itself.

    Examples:
        >>> model = ods.exact.GaussianMixture.ring().model()
        >>> found = ods.consistency(model, (5, 10, 20, 40), num_samples=3, solver="heun")
        >>> found.nfe, tuple(found.to_finest.shape)
        ((9, 19, 39, 79), (3, 3))
        >>> bool((found.to_finest[0] > found.to_finest[-1]).all())
        True
    """

    num_steps: tuple[int, ...]  # rising
    x: Tensor  # (numbers of steps, batch, *shape), on the CPU, as `sample` gives it
    nfe: tuple[int, ...]  # evaluations of a sample, for each number of steps
    solver: str
    model: str
    made: str = ""  # the settings that the table does not show

    @property
    def to_finest(self) -> Tensor:
        """(numbers of steps - 1, batch) rms distance from the images with the most steps, in units of the data."""
        return torch.stack([rms(x - self.x[-1]) for x in self.x[:-1]])

    @property
    def to_next(self) -> Tensor:
        """(numbers of steps - 1, batch) rms distance from the images with the next number of steps, likewise."""
        return torch.stack([rms(a - b) for a, b in pairwise(self.x)])

    @property
    def rate(self) -> Tensor:
        """(batch,) the power of the steps at which the error falls, -10 to 10; inf: down to rounding."""
        size = self.x.double().std().item()
        pairs = [*pairwise(self.num_steps), *((n, self.num_steps[-1]) for n in self.num_steps[:-2])]
        found = torch.cat([self.to_next, self.to_finest[:-1]]).clamp(min=ROUNDING * size)
        return _fitted(pairs, found).where(self.to_next[-1] > ROUNDING * size, math.inf)

    @property
    def consistent(self) -> bool:
        """Whether the distances fall for at least half of the samples as those of a convergent solver do."""
        return quantile(self.rate.clamp(max=1e3), 0.5) > LEAST_RATE

    @property
    def title(self) -> str:
        """One line for a page."""
        return f"The same {self.x.shape[1]} latents with more steps: {self.solver} on {self.model}"

    def sections(self) -> Sequence[Section]:
        """A row for each number of steps; the images, a row for each latent; the distances."""
        head = ("steps", "nfe", "to the next (median)", "to the finest (median)", "largest")
        rows = [
            (
                str(r["steps"]),
                str(r["nfe"]),
                *("-" if r[k] is None else f"{r[k]:.2e}" for k in ("to_next", "to_finest", "largest")),
            )
            for r in self.records()
        ]
        words = "Root mean square distances of images from the same latents, in units of the data."
        parts = [
            Section(
                self.title, words, Table(head, rows, [*self._said(), *([self.made] if self.made else [])]), self.plot
            )
        ]
        if self.x.ndim == 5:
            parts.append(
                Section(
                    "The images", "A row for each latent, a column for each number of steps.", draw=self.plot_images
                )
            )
        return parts

    def _said(self) -> list[str]:
        rate = quantile(self.rate.clamp(max=1e3), 0.5)
        fall = "falls to rounding"
        if rate < SMALL_RATE:
            fall = "does not fall"
        elif rate < 1e3:
            fall = f"{'falls' if self.consistent else 'hardly falls:'} as steps^-{rate:.1f}"
            fall += " (median)" if rate < MOST_RATE else " or faster (median)"
        if self.consistent:
            return [f"the error {fall}", "consistent: more steps make the same images better"]
        why = "where noise is drawn anew, or the steps are still too few for the solver"
        return [f"the error {fall}", f"not consistent: more steps make other images; so it is {why}"]

    def records(self) -> list[dict[str, Any]]:
        """A record for each number of steps; the last has none to be compared with."""
        made = []
        for i, (n, nfe) in enumerate(zip(self.num_steps, self.nfe, strict=True)):
            last = i == len(self.num_steps) - 1
            made.append(
                {
                    "steps": n,
                    "nfe": nfe,
                    "to_next": None if last else quantile(self.to_next[i], 0.5),
                    "to_finest": None if last else quantile(self.to_finest[i], 0.5),
                    "largest": None if last else self.to_finest[i].max().item(),
                }
            )
        return made

    def plot(self) -> Figure:
        """Distances to the next and to the finest against steps, with the quartiles over the samples."""
        from odesampler.analysis.table_pictures import consistency_figure

        return consistency_figure(self)

    def plot_images(self) -> Figure:
        """A row for each latent, a column for each number of steps.

        Raises:
            ValueError: These are no images.
        """
        from odesampler.analysis.table_pictures import table_of_images

        columns = [f"{n} steps" for n in self.num_steps]
        return table_of_images(self.x.transpose(0, 1), columns, ["" for _ in self.x[0]])


def _fitted(pairs: Sequence[tuple[int, int]], between: Tensor) -> Tensor:
    """(batch,) the rate whose law is nearest to the distances (pairs, batch): least squares of logarithms."""
    rates = torch.linspace(-MOST_RATE, MOST_RATE, 2000, dtype=torch.float64)  # an even number: 0 is not among them
    low, high = torch.tensor(pairs, dtype=torch.float64).log().T[..., None]
    ratio = (-rates * (high - low)).exp()  # of the errors, (pairs, rates)
    noise = rates <= MOST_OF_NOISE
    errors = torch.cat([(1 - ratio).abs(), (1 + ratio[:, noise] ** 2).sqrt()], dim=1)
    rates = torch.cat([rates, rates[noise]])
    off = between.log()[..., None] - (errors.log() - rates * low)[:, None]
    return rates[(off - off.mean(0)).square().sum(0).argmin(1)]


def consistency(
    model: Model,
    num_steps: Sequence[int] = (10, 20, 50, 100),
    num_samples: int | None = None,
    *,
    solver: AnySolver = "ddim",
    grid: AnyGrid | None = None,
    seed: int | Sequence[int] = 0,
    noise: str = "independent",
    x: Tensor | None = None,
    cond: Mapping[str, Any] | None = None,
    guidance_scale: AnyGuidance = 1.0,
    clip_denoised: AnyThreshold = None,
    state_dtype: torch.dtype | None = None,
    max_batch: AnyBatch = None,
    progress: bool = False,
) -> Consistency:
    """Sample from the same latents with several numbers of steps, and measure how far the images are apart.

    Args:
        model: The model.
        num_steps: Three numbers or more, rising.
        num_samples: How many, 6 by default.
        solver: A name or an object, as for `sample`; one that walks a grid.
        grid: The name of a grid, as for `sample`.
        seed: As for `sample`.
        noise: As for `sample`: with "brownian" stochastic solvers get the same noise whatever their steps.
        x: Latents, as for `sample`.
        cond: As for `sample`.
        guidance_scale: As for `sample`.
        clip_denoised: As for `sample`.
        state_dtype: torch.float64 by default, where the device has it.
        max_batch: As for `sample`.
        progress: Show a progress bar.

    Returns:
        A `Consistency`.

    Raises:
        ValueError: What cannot be meant, before the model is called: fewer than three numbers of steps, numbers that do
            not rise, a solver that chooses its own steps or was tuned for some, a grid that has a number of its own.

    Examples:
        >>> found = ods.consistency(ods.exact.GaussianMixture.ring().model(), (5, 10, 20, 40), num_samples=3)
        >>> found.consistent, tuple(found.x.shape)
        (True, (4, 3, 2))
    """
    steps = list(num_steps)
    for n in steps:
        check_num_steps(n)
    if len(steps) < 3 or any(a >= b for a, b in pairwise(steps)):
        raise ValueError(f"num_steps must be three numbers or more, rising, to see distances fall; got {steps}")
    name = solver if isinstance(solver, str) else spec_of(solver)
    if isinstance(find_solver(solver), Tuned):
        raise ValueError(
            f"{name} was tuned for the steps of its grid, and latents are decoded here with several numbers of steps: "
            "take the name of a solver"
        )
    if not getattr(find_solver(solver), "takes_steps", True):
        raise ValueError(f"{name} chooses its own steps: take one that walks a grid")
    if grid is not None and not isinstance(grid, str):
        raise ValueError("a grid with a number of steps of its own cannot be walked in others: give its name")
    count = checked_count(6 if num_samples is None and x is None else num_samples, x)
    conditions = checked_cond(checked_model(model), cond, count)
    guided(model, guidance_scale)  # raises where this model cannot be guided so
    warn_of_nothing_to_guide_to(model, cond, guidance_scale)
    how: dict[str, Any] = {"grid": grid, "x": x, "guidance_scale": guidance_scale, "clip_denoised": clip_denoised}
    made = made_with(
        **how,
        cond=cond,
        seed=seed if x is None else None,
        noise=None if noise == "independent" else noise,
        state_dtype=state_dtype,
    )
    how |= {"cond": conditions, "state_dtype": state_dtype or finest_dtype(model.device)}
    how |= {"seed": seed, "noise": noise, "max_batch": max_batch, "progress": progress}
    found = [sample(model, count, solver=solver, num_steps=n, **how) for n in steps]
    images = torch.stack([one.x.cpu() for one in found])
    return Consistency(tuple(steps), images, tuple(int(one.nfe.max()) for one in found), name, model.name, made)
