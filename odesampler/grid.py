"""Grids: the sigmas between which a solver steps.

A grid is N + 1 strictly monotone sigmas, N transitions, one immutable object for both directions: sampling walks it
down, encoding up. Its sigmas are Python floats, computed in float64 on the host, so that a solve never waits for the
device to learn where it goes. How the named ones are made: `named_grids`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from odesampler.named_grids import NAMED, NamedGrid, parameters
from odesampler.names import parsed, table
from odesampler.precision import is_whole
from odesampler.schedule import Schedule
from odesampler.spacing import Span

MOST_STEPS = 1_000_000  # more is a slip of the hand


@dataclass(frozen=True)
class Grid:
    """N + 1 strictly monotone sigmas.

    Args:
        sigmas: Falling or rising, 0 <= sigma <= infinity.
        name: How it was made, for tables.

    Raises:
        ValueError: Fewer than two sigmas, a negative or NaN one, or not strictly monotone.

    Examples:
        >>> grid = ods.Grid((3.0, 1.0, 0.5))
        >>> grid.num_steps, grid.up().sigmas, grid.reverse().reverse() is grid
        (2, (0.5, 1.0, 3.0), True)
        >>> model = ods.exact.GaussianMixture.ring().model()
        >>> ods.sample(model, 2, solver="ddim", grid=grid).nfe.tolist()
        [2, 2]
        >>> ods.Grid((3.0, 1.0, 2.0))
        Traceback (most recent call last):
            ...
        ValueError: a grid must be strictly monotone: sigmas 1 and 2 are 1 and 2...
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


class GridFacts(NamedTuple):
    """What is known of one named grid."""

    name: str
    aliases: tuple[str, ...]
    parameters: tuple[str, ...]  # with their defaults, as one types them
    summary: str


class GridList(list[GridFacts]):
    """All named grids; prints as a table."""

    def __str__(self) -> str:
        return table(("name", "also", "parameters", ""), self)

    __repr__ = __str__


def grids() -> GridList:
    """Every grid by name, with its parameters and what it is. A verb takes `grid="karras(rho=5)"`.

    Examples:
        >>> known = {facts.name: facts for facts in ods.grids()}
        >>> known["karras"].parameters, known["log_snr"].aliases
        (('rho=7.0', 'last=None'), ('exponential', 'lu'))
    """
    names: dict[NamedGrid, list[str]] = {}
    for name, function in NAMED.items():
        names.setdefault(function, []).append(name)
    return GridList(
        GridFacts(
            name,
            tuple(aliases),
            tuple(f"{key}={default!r}" for key, default in parameters(function).items()),
            (inspect.getdoc(function) or "").partition("\n")[0],
        )
        for function, (name, *aliases) in names.items()
    )


def concatenate(*grids: Grid) -> Grid:
    """One grid of pieces that meet: each begins at the sigma at which the one before it ended.

    Args:
        grids: Two or more, in the order in which they are walked, all falling or all rising.

    Raises:
        ValueError: Pieces that do not meet, or go in different directions.

    Examples:
        >>> top = ods.make_grid("karras", ods.VE(), 4, into_zero=False, sigma_min=1.0)
        >>> rest = ods.make_grid("log_snr", ods.VE(), 6, into_zero=True, sigma_max=1.0)
        >>> whole = ods.concatenate(top, rest)
        >>> whole.name, whole.num_steps
        ('karras + log_snr', 10)
    """
    if not grids or not all(isinstance(grid, Grid) for grid in grids):
        raise ValueError(f"concatenate takes grids, such as make_grid gives; got {grids!r}")
    for a, b in pairwise(grids):
        if a.falls is not b.falls or a[-1] != b[0]:
            raise ValueError(
                f"pieces must meet at one sigma and go one way: {a.name} runs from {a[0]:g} to {a[-1]:.17g}, "
                f"{b.name} from {b[0]:.17g} to {b[-1]:g}; give both the same end (sigma_min of one, sigma_max of the "
                "other), or turn one with Grid.reverse"
            )
    sigmas = grids[0].sigmas + tuple(s for grid in grids[1:] for s in grid.sigmas[1:])
    return Grid(sigmas, " + ".join(grid.name for grid in grids))


def make_grid(
    grid: Grid | Sequence[float] | str,
    schedule: Schedule,
    num_steps: int,
    *,
    into_zero: bool,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Grid:
    """A falling grid.

    Args:
        grid: A name, with arguments if need be ("karras(rho=5)"; `ods.grids()` lists them), a Grid, or a sequence of
            sigmas. The last two are taken as they are.
        schedule: The model's; named grids on the clock need it.
        num_steps: Transitions, at least 1. Ignored for a given grid.
        into_zero: Whether a named grid ends at sigma = 0 (sampling) or at `sigma_min` (encoding).
        sigma_min: Lower end of a named grid; the schedule's own by default.
        sigma_max: Upper end, likewise.

    Raises:
        ValueError: An unknown name, arguments that it does not take, `num_steps` below 1 or beyond what the clock or
            float64 can tell apart, a range that the grid cannot span, sigmas that are not strictly monotone.

    Examples:
        >>> grid = ods.make_grid("log_snr", ods.VE(0.01, 100.0), 4, into_zero=False)
        >>> [round(sigma, 6) for sigma in grid]
        [100.0, 10.0, 1.0, 0.1, 0.01]
        >>> grid = ods.make_grid("karras(rho=7)", ods.VE(), 5, into_zero=True)
        >>> len(grid), round(grid[1], 2), grid[5]
        (6, 17.53, 0.0)
        >>> ods.make_grid("karas", ods.VE(), 5, into_zero=True)
        Traceback (most recent call last):
            ...
        ValueError: unknown grid 'karas'; known: leading, trailing, ...
    """
    if isinstance(grid, Grid):
        return grid.down()
    if not isinstance(grid, str):
        if isinstance(grid, (int, float)) or any(isinstance(s, (str, Grid)) for s in grid):
            raise TypeError(f"grid must be a name, a Grid or a sequence of sigmas; got {grid!r}")
        return Grid(tuple(grid)).down()
    check_num_steps(num_steps)
    low = schedule.sigma_min if sigma_min is None else sigma_min
    high = schedule.sigma_max if sigma_max is None else sigma_max
    return _named(grid, schedule, int(num_steps), into_zero, low, high)


@lru_cache(maxsize=256)  # the same few come back at every solve, and making one takes as long as a small network
def _named(grid: str, schedule: Schedule, num_steps: int, into_zero: bool, low: float, high: float) -> Grid:
    name, arguments = parsed_grid(grid)
    if not 0 < low < high:
        raise ValueError(f"a named grid runs between 0 < sigma_min < sigma_max; got [{low:g}, {high:g}]")
    try:
        sigmas = NAMED[name](Span(grid.strip(), schedule, low, high, num_steps, into_zero), **arguments)
    except (TypeError, OverflowError) as error:  # a list for a number, a number beyond all floats
        raise ValueError(f"the {name} grid cannot be made with these arguments: {grid} ({error})") from error
    for i, (s0, s1) in enumerate(pairwise(sigmas)):
        if not s0 > s1:
            raise ValueError(
                f"{num_steps} steps of the {grid} grid between {high:g} and {low:g} are too fine for float64: sigmas "
                f"{i} and {i + 1} are {s0:.17g} and {s1:.17g}; take fewer, milder arguments, or grid='log_snr'"
            )
    return Grid(tuple(sigmas), grid.strip())


def parsed_grid(grid: str) -> tuple[str, dict[str, Any]]:
    """The name of a named grid, and its arguments.

    Raises: ValueError: an unknown name, or arguments that it does not take.
    """
    name, arguments = parsed(grid, "grid")
    if name not in NAMED:
        raise ValueError(f"unknown grid {name!r}; known: {', '.join(NAMED)}, a Grid or a sequence of sigmas")
    takes = parameters(NAMED[name])
    if unknown := arguments.keys() - takes.keys():
        raise ValueError(
            f"the {name} grid takes {', '.join(takes) or 'no arguments'}; got {', '.join(sorted(unknown))}"
        )
    return name, arguments


def check_num_steps(num_steps: int) -> None:
    """Raises: ValueError: `num_steps` is not a whole number, 1 or more."""
    if not is_whole(num_steps) or not 1 <= num_steps <= MOST_STEPS:
        raise ValueError(
            f"num_steps is the number of transitions, a whole number from 1 to {MOST_STEPS}; got {num_steps!r}"
        )
