"""The bootstrap: how else a comparison could have come out, had other samples been drawn.

    resample = n samples, drawn with replacement from the n there are;     interval = the middle 95 % of what they give

Solvers are compared on the same latents, so they are resampled together: what the samples have in common cancels. A
resample is kept as how often it has each sample, from which a median takes a running sum and no sorting.

References:
    Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13 (percentile intervals).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RESAMPLES = 4000
LEVEL = 0.95
FEWEST = 6  # samples: of fewer, even all that agree are no evidence, 2 * (1/2)^5 > 1 - LEVEL


@dataclass(frozen=True)
class Resamples:
    """How often each sample is in each resample."""

    times: Tensor  # (resamples, samples) int64, rows sum to the number of samples

    @classmethod
    def of(cls, num_samples: int, count: int = RESAMPLES, seed: int = 0) -> Resamples:
        """Draw `count` of them. Equal seeds draw equal ones."""
        drawn = torch.randint(num_samples, (count, num_samples), generator=torch.Generator().manual_seed(seed))
        return cls(torch.zeros_like(drawn).scatter_add_(1, drawn, torch.ones_like(drawn)))

    def medians(self, values: Tensor) -> Tensor:
        """(resamples, columns), the median of each column of `values`, (samples, columns), in each resample."""
        return torch.stack([self._median(column) for column in values.double().unbind(1)], 1)

    def means(self, values: Tensor) -> Tensor:
        """(resamples, columns), likewise the means."""
        return self.times.double() @ values.double() / len(values)

    def _median(self, values: Tensor) -> Tensor:
        rising, order = values.sort()
        upto = self.times[:, order].cumsum(1)  # how many of the resample are no larger
        middle = torch.tensor([(len(values) - 1) // 2, len(values) // 2]).expand(len(upto), 2).contiguous()
        return rising[torch.searchsorted(upto, middle, right=True)].mean(1)


def interval(values: Tensor) -> tuple[Tensor, Tensor]:
    """The lower and the upper end of the middle 95 % along the first dimension; infinity is a value like others."""
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=values.dtype)
    low, high = values.quantile(tails, 0, interpolation="nearest")
    return low, high


def basis(num_samples: int) -> str:
    """What the intervals stand on, for people."""
    if num_samples < FEWEST:
        return f"{num_samples} samples are too few for intervals, {FEWEST} the fewest."
    return f"Intervals hold the middle {LEVEL:.0%} of {RESAMPLES} resamples of the {num_samples} samples."
