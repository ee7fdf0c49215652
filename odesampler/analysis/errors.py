"""Errors of samples: one number each, and quantiles of them.

rms(x - y) = sqrt(mean over a sample's values of (x - y)^2),     in units of the data, float64
"""

from __future__ import annotations

from torch import Tensor


def rms(difference: Tensor) -> Tensor:
    """(batch,) root mean square over each sample, float64."""
    return difference.double().flatten(1).square().mean(1).sqrt()


def quantile(values: Tensor, q: float) -> float:
    """The `q`-quantile of all values."""
    return values.double().quantile(q).item()
