"""Table 2 of the DDIM paper in form: how much of an image is lost when it is encoded and decoded with S times.

    up:    x_(t') = sqrt(a_t') x0 + sqrt(1 - a_t') eps(x_t, t),     x0 = (x_t - sqrt(1 - a_t) eps(x_t, t)) / sqrt(a_t)
    down:  the same from the noisier end,     t in 0, k, 2k, ..., (S - 1) k,     k = T // S

The error is the mean square of (decoded - image) over values and images, the data scaled to [0, 1]. The paper took
CIFAR-10 and does not say how its encoding starts; here an image is taken to be at t = 0 itself, not at sigma = 0 before
it, so that S times make S - 1 steps each way.

References:
    Song, Meng, Ermon 2021, Denoising Diffusion Implicit Models, arXiv:2010.02502, Section 5.4, Table 2, eq. 13.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from odesampler.analysis.report import Report, Section, Table
from odesampler.grid import make_grid
from odesampler.inputs import checked_cond, checked_images, checked_model, coded
from odesampler.inversion import decode, encode
from odesampler.model import Model
from odesampler.precision import is_whole
from odesampler.room import AnyBatch

PAPER = {10: 0.014, 20: 0.0065, 50: 0.0023, 100: 0.0009, 200: 0.0004, 500: 0.0001, 1000: 0.0001}  # on CIFAR-10
GRID = "leading"  # 0, k, 2k, ...: what the paper's code calls uniform


@dataclass(frozen=True, repr=False)
class DdimTable2(Report):
    """Reconstruction errors by number of times; prints as a table that says how they were made."""

    steps: tuple[int, ...]  # S
    errors: Tensor  # (len(steps), batch) mean square error of each image, data scaled to [0, 1]
    choices: tuple[str, ...]  # what was chosen, a line each
    seconds: float

    @property
    def means(self) -> list[float]:
        """The table's numbers: the mean over the images, for each S."""
        return self.errors.mean(1).tolist()

    @property
    def title(self) -> str:
        """One line for a page."""
        return "Reconstruction error by number of times (DDIM, Table 2 in form)"

    def sections(self) -> Sequence[Section]:
        """The table, and below it what was chosen. Evaluations are those of both ways together."""
        rows = [
            (str(s), str(2 * (s - 1)), f"{error:.2e}", f"{PAPER[s]:g}" if s in PAPER else "-")
            for s, error in zip(self.steps, self.means, strict=True)
        ]
        notes = [*self.choices, f"{self.seconds:.0f} s"]
        return [Section(self.title, table=Table(("S", "evaluations", "error", "paper, CIFAR-10"), rows, notes))]

    def records(self) -> list[dict[str, Any]]:
        """S and its error."""
        return [{"S": s, "error": error} for s, error in zip(self.steps, self.means, strict=True)]


def ddim_table2(
    model: Model,
    images: Tensor,
    steps: Sequence[int] = tuple(PAPER),
    *,
    cond: Mapping[str, Any] | None = None,
    max_batch: AnyBatch = None,
    progress: bool = False,
) -> DdimTable2:
    """Encode and decode `images` by DDIM with each number of times, and measure what is lost.

    Args:
        model: One with a table of times, `ods.VP`, that knows its `data_range`.
        images: (batch, *shape), float, in the model's data range.
        steps: The numbers of times, S.
        cond: As for `encode`; none by default, as the paper's model has none.
        max_batch: As for `sample`.
        progress: Show progress bars.

    Returns:
        A `DdimTable2`.

    Raises:
        ValueError: What cannot be meant, before the model is called: no table of times, more times than it has, fewer
            than two, a data range that is not known.
    """
    images = checked_images(checked_model(model), images)
    if model.data_range is None:
        raise ValueError(f"the error is one of data scaled to [0, 1]: give {model.name} its range, Model(data_range=)")
    conditions = checked_cond(model, cond, len(images))
    _check_steps(model, steps)
    low, high = model.data_range
    choices = _choices(model, len(images), cond)
    images = coded(model, images)
    model = replace(model, data_range=None)  # what leaves it has been said, and need not be for every S
    began = time.perf_counter()
    errors = []
    for s in steps:
        latent = encode(
            model,
            images,
            solver="ddim",
            num_steps=s - 1,
            grid=GRID,
            cond=conditions,
            state_dtype=torch.float64,
            max_batch=max_batch,
            progress=progress,
        )
        back = decode(model, latent, max_batch=max_batch, progress=progress).x
        lost = (back - images.to(back.device, back.dtype)) / (high - low)
        errors.append(lost.flatten(1).square().mean(1).cpu())
    return DdimTable2(tuple(steps), torch.stack(errors), choices, time.perf_counter() - began)


def _check_steps(model: Model, steps: Sequence[int]) -> None:
    """Raises: ValueError: not numbers of times, or not of this model."""
    whole = [is_whole(s) and s >= 2 for s in steps]
    if not whole or not all(whole):
        raise ValueError(f"steps are numbers of times, whole and 2 or more, whose steps are one fewer; got {steps!r}")
    low, high = model.range
    for s in steps:
        make_grid(GRID, model.schedule, s - 1, into_zero=False, sigma_min=low, sigma_max=high)


def _choices(model: Model, num: int, cond: Mapping[str, Any] | None) -> tuple[str, ...]:
    assert model.data_range is not None
    low, high = model.data_range
    told = f"conditions {', '.join(cond)}" if cond else "no label" if "label" in model.null_cond else "no condition"
    return (
        f"model {model.name}, {num} images, {told}, no guidance; state in float64",
        f"times 0, k, 2k, ... with k = T // S: the uniform sub-sequence of the paper's code, grid {GRID!r}",
        f"the image is taken to be at t = 0, sigma = {model.range[0]:.3g}: S times are S - 1 steps each way",
        "encoding tells the network the time that a step starts from: convention 'source'",
        f"error: mean square over values and images, data scaled from [{low:g}, {high:g}] to [0, 1], not rounded",
        "the paper's errors, of another model and other data, are there for their form",
    )
