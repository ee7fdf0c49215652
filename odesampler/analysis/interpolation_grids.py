"""The report of an interpolation grid: images between latents, how long these are, how far neighbours are apart.

    length = |latent| / sqrt(d), 1 for noise;     kept = length / that of the ends;     jump = rms of neighbours

A model knows latents of the length that N(0, 1) has, and no others. The straight line between two draws of many values
is shorter, by 1 / sqrt(2) in its middle where they are independent, and its images lose contrast.

References:
    Song, Meng, Ermon 2021, Denoising Diffusion Implicit Models, arXiv:2010.02502, section 5.3 and Figure 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from odesampler.analysis.errors import rms
from odesampler.analysis.report import Report, Section, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_LOST = 0.1  # of a latent's length


@dataclass(frozen=True, repr=False, eq=False)
class InterpolationGrid(Report):
    """Images between latents, in rows; prints as a table and draws itself.

    Examples:
        >>> model = ods.load("digits")
        >>> circle = ods.interpolation_grid(model, (0, 1), 5, num_steps=5)
        >>> line = ods.interpolation_grid(model, (0, 1), 5, how="linear", num_steps=5)
        >>> circle.short.tolist(), line.short.tolist()
        ([False], [True])
        >>> bool((circle.kept[0, 2] - 1).abs() < 0.1), bool(line.kept[0, 2] < 0.8)  # the lengths half-way
        (True, True)
    """

    x: Tensor  # (rows, columns, *shape), on the CPU
    latents: Tensor  # likewise, in the model's own scale
    scale: float  # of latents there: standard deviation of noise
    turns: Tensor  # (rows, columns - 1) bool, whether the condition changes between neighbours
    names: tuple[tuple[str, str], ...]  # the ends of each row
    square: bool  # rows are neighbours too
    how: str
    model: str
    made: str = ""  # the settings that the table does not show

    @property
    def length(self) -> Tensor:
        """(rows, columns) |latent| / sqrt(d), about 1 for noise."""
        return rms(self.latents.flatten(0, 1)).reshape(self.latents.shape[:2]) / self.scale

    @property
    def kept(self) -> Tensor:
        """(rows, columns) `length` relative to the straight line between the lengths at the ends of the row."""
        w = torch.linspace(0, 1, self.x.shape[1], dtype=torch.float64)
        return self.length / torch.lerp(self.length[:, :1], self.length[:, -1:], w)

    @property
    def jumps(self) -> Tensor:
        """(rows, columns - 1) rms distance of neighbours in a row, in units of the data."""
        apart = self.x[:, 1:] - self.x[:, :-1]
        return rms(apart.flatten(0, 1)).reshape(apart.shape[:2])

    @property
    def angle(self) -> Tensor:
        """(rows,) between the latents at both ends, in degrees; about 90 for independent ones of many values."""
        a, b = (self.latents[:, i].double().flatten(1) for i in (0, -1))
        return torch.cosine_similarity(a, b).clamp(-1, 1).acos().rad2deg()

    @property
    def short(self) -> Tensor:
        """(rows,) bool: the path leaves the lengths of its ends by more than a tenth: models know no such latents."""
        return (self.kept - 1).abs().amax(1) > MOST_LOST

    @property
    def title(self) -> str:
        """One line for a page."""
        shape = " x ".join(map(str, self.x.shape[:2]))
        return f"Between latents of {self.model}: {shape} images, {self.how}"

    def sections(self) -> Sequence[Section]:
        """A row for each path; the images; length and jumps along the paths."""
        head = ("from", "to", "angle (deg)", "least length", "kept", "at most", "mean jump", "largest jump")
        digits = ("", "", ".0f", ".3f", ".3f", ".3f", ".3f", ".3f")
        rows = [tuple(format(v, how) for v, how in zip(r.values(), digits, strict=False)) for r in self.records()]
        notes = [
            "length: |latent| / sqrt(d), 1 for noise; kept: the least and the largest part of the ends' lengths",
            "jumps: rms distance of neighbours, in units of the data",
        ]
        if bool(self.turns.any()):
            jump = self.jumps[self.turns].mean().item()
            notes.append(
                f"in {int(self.turns.any(1).sum())} rows the condition changes midway, a jump of {jump:.3f} (mean)"
            )
        if bool(self.short.any()):
            most = (self.kept - 1).abs().max().item()
            why = 'take how="slerp"' if self.how == "linear" else "the ends differ in length"
            notes.append(
                f"{int(self.short.sum())} of {len(self.short)} paths leave the lengths that the model knows, by up to "
                f"{most:.0%}: {why}"
            )
        notes += [self.made] if self.made else []
        parts = [Section(self.title, table=Table(head, rows, notes), draw=self.plot)] if self.x.ndim == 5 else []
        along = Section(
            "Along the paths",
            "Length of the latents, and how far each image is from the one before.",
            draw=self.plot_along,
        )
        return [*(parts or [Section(self.title, table=Table(head, rows, notes))]), along]

    def records(self) -> list[dict[str, Any]]:
        """A record for each row."""
        columns = {
            "angle": self.angle,
            "least_length": self.length.amin(1),
            "kept": self.kept.amin(1),
            "kept_at_most": self.kept.amax(1),
            "mean_jump": self.jumps.mean(1),
            "largest_jump": self.jumps.amax(1),
            "short": self.short,
        }
        values = zip(*(column.tolist() for column in columns.values()), strict=True)
        return [
            {"from": a, "to": b, **dict(zip(columns, row, strict=True))}
            for (a, b), row in zip(self.names, values, strict=True)
        ]

    def plot(self) -> Figure:
        """The images.

        Raises:
            ValueError: These are no images.
        """
        from odesampler.analysis.table_pictures import table_of_images

        columns = [f"{i / (self.x.shape[1] - 1):.2f}" for i in range(self.x.shape[1])]
        return table_of_images(
            self.x, columns, [a.replace(", ", "\n") if self.square else f"{a}\nto {b}" for a, b in self.names]
        )

    def plot_along(self) -> Figure:
        """Length of the latents and jumps of the images along each row."""
        from odesampler.analysis.table_pictures import along_figure

        return along_figure(self)
