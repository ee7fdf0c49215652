"""Likelihoods found: nats and bits per dimension of each image, and what speaks against them.

    bits per dimension = -(log p + d log width) / (d log 2),      width of a level; 1 for a density

Two things can be told without knowing the truth. A probability is at most 1: negative bits of levels are impossible.
And a solve with half the steps should come to the same: the difference is about the error of that one, which is larger
than that of the solve with all steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odesampler.analysis.report import Report, Section, Table

OPEN = 0.05  # bits per dimension: a larger difference to half the steps is said


@dataclass(frozen=True, repr=False)
class Likelihood(Report):
    """The log-likelihood of each image; prints as a table.

    Examples:
        >>> model = ods.exact.Gaussian(torch.zeros(2), 1.0).model()
        >>> found = ods.log_likelihood(model, torch.zeros(1, 2), solver="rk4", num_steps=20)
        >>> round(found.bits_per_dim.item(), 2)  # log2(2 pi) / 2
        1.33
        >>> found.exact, found.impossible.tolist(), found.unsettled.tolist()
        (True, [False], [False])
    """

    # (batch,) log-density in nats, float64; NaN for a sample that did not arrive. With levels its mean over the noise:
    # adding size * log(width) gives a lower bound of the log-probability.
    log_p: Tensor
    error: Tensor  # (batch,) standard error of log_p, from draws and probes; 0: nothing was drawn, NaN: drawn once
    draws: Tensor  # (draws, batch) what log_p is the mean of
    nfe: Tensor  # (batch,) int64, all draws together
    difference: Tensor | None  # (batch,) nats, to half the steps or ten times the tolerances; None: not asked for
    size: int  # values of one image
    levels: int | None  # of the pixels; None: log_p is a density
    width: float  # of a level, in units of the data; 1 for a density
    exact: bool  # the divergence
    how: str
    model: str

    @property
    def bits_per_dim(self) -> Tensor:
        """(batch,) bits a value: of the levels where there are some, else of the density, which may be negative."""
        return -(self.log_p / self.size + math.log(self.width)) / math.log(2)

    @property
    def impossible(self) -> Tensor:
        """(batch,) bool: a probability above 1, by more than 3 standard errors. A density may be."""
        above = -self.bits_per_dim * self.size * math.log(2)
        return (above > 3 * self.error.nan_to_num(0.0)) & (self.levels is not None)

    @property
    def unsettled(self) -> Tensor:
        """(batch,) bool: half the steps change it by more than 0.05 bits per dimension; False where not asked for."""
        off = torch.zeros_like(self.log_p) if self.difference is None else self.difference
        return off > OPEN * self.size * math.log(2)

    def doubts(self) -> list[str]:
        """What speaks against it, a line each."""
        said = (
            (self.log_p.isnan(), "did not arrive, and have no likelihood"),
            (self.impossible, "have a probability above 1, which cannot be: take more steps"),
            (self.unsettled, f"change by more than {OPEN:g} bits/dim with half the steps: take more"),
        )
        return [f"{int(which.sum())} of {len(which)} images {what}" for which, what in said if bool(which.any())]

    @property
    def importance_weighted(self) -> Tensor:
        """(batch,) log of the mean of p over the draws: a tighter bound than `log_p`, the tighter the more draws.

        Raises:
            ValueError: The divergence was estimated: the noise of that would count as likelihood.
        """
        if not self.exact:
            raise ValueError('the mean of p needs divergence="exact": the exponential of an estimate is too large')
        return self.draws.logsumexp(0) - math.log(len(self.draws))

    @property
    def title(self) -> str:
        """One line for a page."""
        return f"Log-likelihood of {len(self.log_p)} images, {self.model}"

    def sections(self) -> Sequence[Section]:
        """A row for each image, how they were found, and what speaks against them."""
        checked = () if self.difference is None else ("half steps",)
        head = ("image", "log p (nats)", "+- (nats)", *checked, "bits/dim", "+- (bits)", "nfe")
        digits = (".0f", ".2f", ".2f", *(".2f" for _ in checked), ".3f", ".3f", ".0f")
        rows = [
            tuple(
                "-" if math.isnan(value) else format(value, how)
                for value, how in zip(record.values(), digits, strict=True)
            )
            for record in self.records()
        ]
        mean = self.bits_per_dim.nanmean().item()
        what = f"of {self.levels} levels, a bound from {len(self.draws)} draws" if self.levels else "of a density"
        how = f"mean {mean:.3f} bits/dim, {what}; {self.model}, {self.how}"
        return [Section(self.title, table=Table(head, rows, [how, *self.doubts()]))]

    def records(self) -> list[dict[str, Any]]:
        """A record for each image; `difference` is that to half the steps, where it was asked for."""
        columns = {"log_p": self.log_p, "log_p_error": self.error}
        columns |= {} if self.difference is None else {"difference": self.difference}
        columns |= {"bits_per_dim": self.bits_per_dim, "bits_error": self.error / (self.size * math.log(2))}
        columns |= {"nfe": self.nfe}
        values = zip(*(column.tolist() for column in columns.values()), strict=True)
        return [{"image": i, **dict(zip(columns, row, strict=True))} for i, row in enumerate(values)]
