"""Grids: the sigmas between which a solver steps.

A grid is N + 1 strictly monotone sigmas, N transitions, one immutable object for both directions: sampling walks it
down, encoding up. Its sigmas are Python floats, computed in float64 on the host, so that a solve never waits for the
device to learn where it goes.

A named grid is a function `nodes(schedule, low, high, n)` that returns n falling sigmas in [low, high]. For sampling,
N transitions are N nodes and a last step into sigma = 0; for encoding they are N + 1 nodes, since sigma = 0 cannot be
left.
Knows schedules (for grids on a model's clock), neither solvers nor networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from numbers import Integral
from typing import TypeAlias

import torch

from odesampler.schedule import VP, Schedule

MOST_STEPS = 1_000_000  # more is a slip of the hand
Nodes: TypeAlias = Callable[[Schedule, float, float, int], list[float]]


@dataclass(frozen=True)
class Grid:
    """N + 1 strictly monotone sigmas.

    Args:
        sigmas: Falling or rising, 0 <= sigma <= infinity.
        name: How it was made, for tables.

    Raises:
        ValueError: Fewer than two sigmas, a negative or NaN one, or not strictly monotone.
    """

    sigmas: tuple[float, ...]
    name: str = "custom"
    _mirror: Grid | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        sigmas = tuple(float(s) for s in self.sigmas)
        object.__setattr__(self, "sigmas", sigmas)
        if len(sigmas) < 2:
            raise ValueError(f"a grid needs at least two sigmas, the ends of one step; got {list(sigmas)}")
        for i, s in enumerate(sigmas):
            if math.isnan(s) or s < 0:
                raise ValueError(f"sigmas must be 0 or more; got {s} at position {i} of {len(sigmas)}")
        falls = sigmas[0] > sigmas[-1]
        for i, (s0, s1) in enumerate(pairwise(sigmas)):
            if s0 == s1 or (s0 > s1) != falls:
                raise ValueError(
                    f"a grid must be strictly monotone: sigmas {i} and {i + 1} are {s0:g} and {s1:g}; "
                    "a step of no length wastes an evaluation, one that turns back is a different grid"
                )

    @property
    def num_steps(self) -> int:
        """Transitions."""
        return len(self.sigmas) - 1

    @property
    def falls(self) -> bool:
        """Whether it is written in the sampling direction."""
        return self.sigmas[0] > self.sigmas[-1]

    def reverse(self) -> Grid:
        """The same grid in the other direction. Reversing twice gives the same object."""
        if self._mirror is None:
            object.__setattr__(self, "_mirror", Grid(self.sigmas[::-1], self.name, self))
        assert self._mirror is not None
        return self._mirror

    def down(self) -> Grid:
        """This grid in the sampling direction."""
        return self if self.falls else self.reverse()

    def up(self) -> Grid:
        """This grid in the encoding direction."""
        return self.reverse() if self.falls else self

    def __len__(self) -> int:
        return len(self.sigmas)

    def __iter__(self) -> Iterator[float]:
        return iter(self.sigmas)

    def __getitem__(self, i: int) -> float:
        return self.sigmas[i]


def leading(schedule: Schedule, low: float, high: float, n: int) -> list[float]:
    """t = 0, k, 2k, ... with k = T // n: diffusers' "leading", the DDIM code's "uniform". Does not reach sigma_max."""
    stride = _table(schedule, "leading", n) // n
    return _on_clock(schedule, low, high, [float(i * stride) for i in range(n)])


def trailing(schedule: Schedule, low: float, high: float, n: int) -> list[float]:
    """t = T - 1, T - 1 - T/n, ... rounded: diffusers' "trailing". Starts at sigma_max, ends above sigma_min."""
    size = _table(schedule, "trailing", n)
    return _on_clock(schedule, low, high, [round(size - i * size / n) - 1.0 for i in range(n)])


def linspace(schedule: Schedule, low: float, high: float, n: int) -> list[float]:
    """n equal distances on the model's clock, both ends included; on a table, rounded to it as diffusers does."""
    if isinstance(schedule, VP):
        size = _table(schedule, "linspace", n)
        ts = torch.linspace(0, size - 1, n, dtype=torch.float64)
        return _on_clock(schedule, low, high, ts.round().tolist())
    t_low, t_high = (schedule.t(torch.tensor(s, dtype=torch.float64)).item() for s in (low, high))
    inner = torch.linspace(t_high, t_low, n, dtype=torch.float64)[1:-1]
    return _ends(low, high, n, schedule.sigma(inner).tolist())


def quadratic(schedule: Schedule, low: float, high: float, n: int) -> list[float]:
    """t = floor(c i^2), i = 0 .. n - 1, up to 0.8 T: the DDIM paper's sub-sequence for CIFAR-10 (appendix D.2), as its
    code has it. Indices that it would repeat, near t = 0, move up to the next free one."""
    size = _table(schedule, "quadratic", n)
    root = math.sqrt(0.8 * size) / max(n - 1, 1)
    ts: list[int] = []
    for i in range(n):
        ts.append(max(int((root * i) ** 2), ts[-1] + 1 if ts else 0))
    if n == 1:
        ts = [int(0.8 * size)]
    return _on_clock(schedule, low, high, [float(min(t, size - n + i)) for i, t in enumerate(ts)])


def karras(schedule: Schedule, low: float, high: float, n: int, rho: float = 7.0) -> list[float]:
    """Equal distances in sigma^(1/rho). Karras et al. 2022, arXiv:2206.00364, eq. 5."""
    _finite("karras", high)
    return _ends(low, high, n, [(_mix(high ** (1 / rho), low ** (1 / rho), i, n)) ** rho for i in range(1, n - 1)])


def log_snr(schedule: Schedule, low: float, high: float, n: int) -> list[float]:
    """Equal distances in log sigma, so in the log signal-to-noise ratio; "exponential" in k-diffusion and diffusers."""
    _finite("log_snr", high)
    return _ends(low, high, n, [math.exp(_mix(math.log(high), math.log(low), i, n)) for i in range(1, n - 1)])


NAMED: dict[str, Nodes] = {
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
    "quadratic": quadratic,
    "karras": karras,
    "log_snr": log_snr,
    "exponential": log_snr,
}


def make_grid(
    grid: Grid | Sequence[float] | str,
    schedule: Schedule,
    num_steps: int,
    *,
    into_zero: bool,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float | None = None,
) -> Grid:
    """A falling grid.

    Args:
        grid: A name of `NAMED`, a Grid, or a sequence of sigmas. The last two are taken as they are.
        schedule: The model's; named grids on the clock need it.
        num_steps: Transitions, at least 1. Ignored for a given grid.
        into_zero: Whether a named grid ends at sigma = 0 (sampling) or at `sigma_min` (encoding).
        sigma_min: Lower end of a named grid; the schedule's own by default.
        sigma_max: Upper end, likewise.
        rho: Of the "karras" grid; 7 by default.

    Raises:
        ValueError: An unknown name, `num_steps` below 1 or beyond what the clock can tell apart, sigmas that are not
            strictly monotone.
    """
    if isinstance(grid, Grid):
        return grid.down()
    if not isinstance(grid, str):
        return Grid(tuple(grid)).down()
    if grid not in NAMED:
        raise ValueError(f"unknown grid {grid!r}; known: {', '.join(NAMED)}, a Grid or a sequence of sigmas")
    if rho is not None and grid != "karras":
        raise ValueError(f"rho belongs to the karras grid; got grid={grid!r}")
    check_num_steps(num_steps)
    low = schedule.sigma_min if sigma_min is None else sigma_min
    high = schedule.sigma_max if sigma_max is None else sigma_max
    nodes = partial(karras, rho=rho) if rho is not None else NAMED[grid]
    sigmas = nodes(schedule, low, high, num_steps if into_zero else num_steps + 1)
    return Grid((*sigmas, 0.0) if into_zero else tuple(sigmas), grid)


def check_num_steps(num_steps: int) -> None:
    """Raises: ValueError: `num_steps` is not a whole number, 1 or more."""
    if isinstance(num_steps, bool) or not isinstance(num_steps, Integral) or not 1 <= num_steps <= MOST_STEPS:
        raise ValueError(
            f"num_steps is the number of transitions, a whole number from 1 to {MOST_STEPS}; got {num_steps!r}"
        )


def _mix(first: float, last: float, i: int, n: int) -> float:
    return first + (last - first) * i / (n - 1)


def _ends(low: float, high: float, n: int, inner: list[float]) -> list[float]:
    """Exact ends, whatever rounding the formula has; a single node is the noisy end."""
    return [high] if n == 1 else [high, *inner, low]


def _finite(name: str, high: float) -> None:
    if math.isinf(high):
        raise ValueError(
            f"the {name} grid needs a finite sigma_max, and this model starts at sigma = infinity; "
            "use grid='linspace', or a sequence of sigmas that begins with float('inf')"
        )


def _table(schedule: Schedule, name: str, n: int) -> int:
    if not isinstance(schedule, VP):
        raise ValueError(
            f"the {name} grid is defined on a table of timesteps, and {type(schedule).__name__} has none; "
            "use linspace, karras or log_snr"
        )
    size = len(schedule.alpha_bar)
    if n > size:
        raise ValueError(f"the {name} grid has {size} timesteps to choose from; {n} are too many")
    return size


def _on_clock(schedule: Schedule, low: float, high: float, ts: list[float]) -> list[float]:
    """Sigmas at the times `ts`, falling, those outside [low, high] moved to its ends and not repeated."""
    sigmas = schedule.sigma(torch.tensor(sorted(ts, reverse=True), dtype=torch.float64)).tolist()
    inside = list(dict.fromkeys(min(max(s, low), high) for s in sigmas))
    if len(inside) < len(sigmas):
        outside = sum(not low <= s <= high for s in sigmas)
        raise ValueError(
            f"{outside} of {len(sigmas)} timesteps fall outside [{low:g}, {high:g}]; "
            "use karras or log_snr with such ends"
        )
    return inside
