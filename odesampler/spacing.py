"""Spacing: sigmas at even distances in a variable v(sigma), or at distances warped by a power or by quantiles.

    v(sigma_i) = v_end + (v(sigma_max) - v_end) * warp(1 - i / N),      i = 0 .. N,      warp(0) = 0, warp(1) = 1

A grid ends in one of two ways. Some *stop* at sigma_min and then step into 0 (karras, log_snr: their variable is made
for sigmas above 0). Others *aim* at 0 itself, the last step one of their own (phi, shift, power); where that would ask
a network below sigma_min, the whole is lifted just so far that the last question is at sigma_min.
For encoding both end at sigma_min.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from odesampler.schedule import Schedule

Elementwise: TypeAlias = Callable[[Tensor], Tensor]


class Span(NamedTuple):
    """What a grid has to span."""

    name: str  # of the grid, as the user typed it
    schedule: Schedule
    low: float  # the least sigma at which the network is asked
    high: float
    num_steps: int
    into_zero: bool

    @property
    def end(self) -> float:
        """The grid's last sigma."""
        return 0.0 if self.into_zero else self.low

    @property
    def nodes(self) -> int:
        """Sigmas in [low, high]: all but 0."""
        return self.num_steps + (not self.into_zero)

    def closed(self, nodes: list[float]) -> list[float]:
        """`nodes` and the step into 0, if there is one."""
        return [*nodes, 0.0] if self.into_zero else nodes


class Variable(NamedTuple):
    """A rising function of sigma and its inverse, on float64 tensors, elementwise."""

    of: Elementwise
    back: Elementwise


def power_of_sigma(rho: float) -> Variable:
    """sigma^(1/rho); sigma itself for 1."""
    return Variable(lambda s: s ** (1 / rho), lambda v: v**rho)


def asinh_of_sigma(delta: float) -> Variable:
    """asinh(sigma / delta): log sigma where sigma is large, sigma itself near 0."""
    return Variable(lambda s: torch.asinh(s / delta), lambda v: delta * torch.sinh(v))


def angle_of_sigma(scale: float) -> Variable:
    """atan(sigma / scale). pi / 2 at infinity."""
    return Variable(lambda s: torch.atan(s / scale), lambda v: scale * torch.tan(v))


def flow_time(shift: float = 1.0) -> Variable:
    """sigma / (shift + sigma): the flow model's time std / (alpha + std), before a shift. 1 at infinity."""
    return Variable(lambda s: 1 / (1 + shift / s), lambda v: shift / (1 / v - 1))


def flow_mu(
    tokens: int, *, base_tokens: int = 256, most_tokens: int = 4096, base_shift: float = 0.5, max_shift: float = 1.15
) -> float:
    """The mu of flow models that shift time with the size of the image, as Flux and Stable Diffusion 3 do.

    A line through (base_tokens, base_shift) and (most_tokens, max_shift); for `grid=f"shift(mu={mu})"`.

    Args:
        tokens: The network sees of an image: (height / 16) (width / 16) for Flux's pictures in pixels.
        base_tokens: Of the small image, to which `base_shift` belongs.
        most_tokens: Of the large one, to which `max_shift` belongs.
        base_shift: mu there.
        max_shift: mu there.

    Raises:
        ValueError: No tokens, or the two sizes are one.

    Examples:
        >>> ods.flow_mu(256), round(ods.flow_mu(4096), 6)
        (0.5, 1.15)
    """
    if not tokens > 0 or base_tokens == most_tokens:
        raise ValueError(
            f"mu is a line over the number of tokens, 1 or more, through two different numbers; got tokens={tokens!r}, "
            f"base_tokens={base_tokens}, most_tokens={most_tokens}"
        )
    return base_shift + (max_shift - base_shift) * (tokens - base_tokens) / (most_tokens - base_tokens)


def clock(schedule: Schedule) -> Variable:
    """The model's own clock."""
    return Variable(schedule.t, schedule.sigma)


LOG = Variable(torch.log, torch.exp)
ANGLE = angle_of_sigma(1.0)
VARIABLES: dict[str, Callable[[Schedule], Variable]] = {
    "sigma": lambda _: power_of_sigma(1),
    "flow": lambda _: flow_time(),
    "phi": lambda _: ANGLE,
    "t": clock,
}


def check_finite(span: Span) -> None:
    """Raises: ValueError: the grid would have to start at infinity."""
    if math.isinf(span.high):
        raise ValueError(
            f"the {span.name} grid needs a finite sigma_max, and this model starts at sigma = infinity; "
            "use grid='linspace', 'shift', 'phi' or 'power', or a sequence of sigmas that begins with float('inf')"
        )


def spaced(
    span: Span, variable: Variable, *, warp: Elementwise | None = None, aims: bool = False, last: float | None = None
) -> list[float]:
    """The falling sigmas of a whole grid.

    Args:
        span: What to span.
        variable: In which the distances are even.
        warp: Rising from (0, 0) to (1, 1); what it does to even distances.
        aims: Whether the last step is one of the formula's, or added after it has stopped at sigma_min.
        last: Stop here instead, at the last sigma before the grid's end.

    Raises:
        ValueError: `last` is outside the range, or the variable is infinite where the grid starts.
    """
    if not math.isfinite(_at(variable.of, span.high)):
        check_finite(span)
    warp = warp or (lambda r: r)
    if last is not None:
        _check_last(span, last)
        if span.into_zero or last > span.low:
            return [*_between(variable, span.high, last, warp(_even(span.num_steps))), span.end]
    elif aims:
        return _aimed(span, variable, warp(_even(span.num_steps + 1)))
    return span.closed(_between(variable, span.high, span.low, warp(_even(span.nodes))))


def _aimed(span: Span, variable: Variable, r: Tensor) -> list[float]:
    """Towards the end of the grid; lifted, if the last sigma before 0 came out below sigma_min."""
    if span.into_zero and math.isfinite(_at(variable.of, 0.0)):
        nodes = _between(variable, span.high, 0.0, r)
        if nodes[-2] < span.low:
            q = r[-2]
            nodes = [*_between(variable, span.high, span.low, (r[:-1] - q) / (1 - q)), 0.0]
        return nodes
    return [*_between(variable, span.high, span.low, r)[:-1], span.end]  # a table's t = 0 is sigma_min


def _between(variable: Variable, high: float, low: float, r: Tensor) -> list[float]:
    """Exact ends, whatever rounding the formula has; a single node is the noisy end."""
    if len(r) == 1:
        return [high]
    first, end = _at(variable.of, high), _at(variable.of, low)
    inner: list[float] = variable.back(end + (first - end) * r[1:-1]).tolist()
    return [high, *inner, low]


def _even(n: int) -> Tensor:
    """(n,) 1 to 0 in equal distances."""
    return 1 - torch.arange(n, dtype=torch.float64) / max(n - 1, 1)


def _at(function: Elementwise, value: float) -> float:
    return function(torch.tensor(value, dtype=torch.float64)).item()


def _check_last(span: Span, last: float) -> None:
    if isinstance(last, bool) or not isinstance(last, (int, float)) or not span.low <= last < span.high:
        raise ValueError(
            f"last is the last sigma before the end of the {span.name} grid, at least sigma_min = {span.low:g} and "
            f"below sigma_max = {span.high:g}; got {last!r}"
        )
