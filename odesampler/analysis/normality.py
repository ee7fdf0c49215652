"""Whether the values of a sample look like d independent draws of N(0, 1).

    mean      N(0, 1 / d)                           std       (d - 1) std^2 is chi^2 with d - 1 degrees of freedom
    kurtosis  in excess of a normal's 3             ks        max |share of values below z - Phi(z)|
    lag       sum of c_i c_(i+1) / pairs, divided by the mean of c^2, c = z - mean, along one axis of an image

The laws of mean, std and ks are exact for every d, that of the kurtosis is Anscombe and Glynn's approximation.
The direction of c is uniform on a sphere, so the lag has mean -1 / (d - 1) and a standard deviation in closed form, and
is taken for normal. `radius` = |z| / sqrt(d) is shown and not tested, for radius^2 is about mean^2 + std^2.

References:
    Anscombe, Glynn 1983, Distribution of the kurtosis statistic b2 for normal samples, Biometrika 70.
    Marsaglia, Tsang, Wang 2003, Evaluating Kolmogorov's distribution, Journal of Statistical Software 8.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

LEAST_FOR_KURTOSIS = 20  # of fewer values its law is not known well enough
FLAT = 1e-9  # a std below this part of the radius is rounding: the sample is constant


class Measure(NamedTuple):
    """One number for each sample, and what it is for independent draws of N(0, 1)."""

    name: str
    value: Tensor  # (batch,) float64; NaN where it means nothing
    expected: float
    error: float  # standard deviation around `expected`
    p: Tensor | None = None  # (batch,) chance of one as far off, if it is tested


def measures(x: Tensor) -> tuple[Measure, ...]:
    """What is measured of samples `x` (batch, *shape), each by itself.

    mean, std, kurtosis, ks and its p-value ks_p, radius; lag_x along the last axis and lag_y along the one before, of
    images (batch, channels, height, width) only.
    """
    from scipy import stats

    z = x.detach().to("cpu", torch.float64)
    flat = z.flatten(1)
    d = flat.shape[1]
    mean, radius = flat.mean(1), flat.square().mean(1).sqrt()
    p_mean = _from(2 * stats.norm.sf(mean.abs() * math.sqrt(d)))
    length = stats.chi(d)
    return (
        Measure("mean", mean, 0.0, d**-0.5, p_mean),
        _std(flat, stats),
        _kurtosis(flat, stats),
        *_ks(flat, stats),
        Measure("radius", radius, length.mean() / math.sqrt(d), length.std() / math.sqrt(d)),
        _lag(z, 3, "lag_x", stats),
        _lag(z, 2, "lag_y", stats),
    )


def _std(flat: Tensor, stats: Any) -> Measure:
    free = flat.shape[1] - 1
    if free < 1:
        return _nothing("std", flat)
    std = flat.std(1)
    law, squares = stats.chi(free), free * std.square().numpy()
    p = 2 * torch.minimum(*(_from(tail(squares, free)) for tail in (stats.chi2.cdf, stats.chi2.sf)))
    return Measure("std", std, law.mean() / math.sqrt(free), law.std() / math.sqrt(free), p)


def _kurtosis(flat: Tensor, stats: Any) -> Measure:
    d = flat.shape[1]
    if d < LEAST_FOR_KURTOSIS:
        return _nothing("kurtosis", flat)
    value, p = (torch.full((len(flat),), math.nan, dtype=torch.float64) for _ in range(2))
    varied = _varied(flat)
    if bool(varied.any()):
        given = flat[varied].numpy()
        value[varied] = _from(stats.kurtosis(given, axis=1))
        p[varied] = _from(stats.kurtosistest(given, axis=1).pvalue)
    error = math.sqrt(24 * d * (d - 2) * (d - 3) / ((d + 1) ** 2 * (d + 3) * (d + 5)))
    return Measure("kurtosis", value, -6 / (d + 1), error, p)


def _ks(flat: Tensor, stats: Any) -> tuple[Measure, Measure]:
    d = flat.shape[1]
    below = torch.special.ndtr(flat.sort(dim=1).values)
    steps = torch.arange(d + 1, dtype=torch.float64) / d
    value = torch.maximum(steps[1:] - below, below - steps[:-1]).amax(1)
    expected = math.sqrt(math.pi / 2) * math.log(2)  # of sqrt(d) D for large d; the next term is -1 / (6 d)
    error = math.sqrt(math.pi**2 / 12 - expected**2)
    p = _from(stats.kstwo.sf(value.numpy(), d))
    statistic = Measure("ks", value, expected / math.sqrt(d) - 1 / (6 * d), error / math.sqrt(d), p)
    return statistic, Measure("ks_p", p, 0.5, 12**-0.5)


def _lag(z: Tensor, axis: int, name: str, stats: Any) -> Measure:
    """The correlation of neighbours along `axis`: (d / pairs) u'Bu, u a random direction in the space of mean 0."""
    if z.ndim != 4 or z.shape[axis] < 2:
        return _nothing(name, z)
    n, d = z.shape[axis], z[0].numel()
    c = (z - z.mean((1, 2, 3), keepdim=True)).where(_varied(z.flatten(1)).reshape(-1, 1, 1, 1), math.nan)
    products = (c.narrow(axis, 1, n - 1) * c.narrow(axis, 0, n - 1)).flatten(1)
    value = products.mean(1) / c.flatten(1).square().mean(1)
    pairs, lines, free = products.shape[1], d // n, d - 1
    expected = -1 / free
    # B = PAP: A has 1/2 for each pair of neighbours, twice, P takes the mean away; trace(B) = -pairs / d
    trace_of_square = pairs / 2 - 2 * lines * (n - 1.5) / d + (pairs / d) ** 2
    variance = 2 * (trace_of_square - (pairs / d) ** 2 / free) / (free * (free + 2))
    error = d / pairs * math.sqrt(variance)
    return Measure(name, value, expected, error, _from(2 * stats.norm.sf((value - expected).abs() / error)))


def _varied(flat: Tensor) -> Tensor:
    """(batch,) whether the values are finite, and not all the same."""
    return flat.std(1) > FLAT * flat.square().mean(1).sqrt()


def _nothing(name: str, x: Tensor) -> Measure:
    return Measure(name, torch.full((len(x),), math.nan, dtype=torch.float64), math.nan, math.nan)


def _from(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)
