"""Implicit inversion: the point from which decoding's own step leads to where one is.

    step(w; s' -> s) = x        solved for w, step by step upward, by  f(w) = x - step(w; s' -> s)
    G(z) = x                    solved for z at once, where steps have memory, by  f(z) = E(x) - E(G(z))

For Euler the first iterates w + f(w) are the fixed point of DDIM inversion. Steps with memory cannot be undone one by
one, since what they remember comes from above: so the whole solve G is inverted, with explicit steps upward E as its
approximate inverse (defect correction). A coarse step need not have an inverse, or may have several, and decoding may
magnify what the equations miss: so every latent is decoded once, and every sample says whether it came back.

References:
    Pan et al. 2023, AIDI, arXiv:2309.04907 (fixed point). Garibi et al. 2024, ReNoise, arXiv:2403.14602 (mean of late
    iterates).
    Hong et al. 2024, On Exact Inversion of DPM-Solvers, arXiv:2311.18387. Stetter 1978, The defect correction principle
    and discretization methods, Numer. Math. 29, 425.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from odesampler.combine import for_rows
from odesampler.integrate import OnGrid, solve, stepped
from odesampler.precision import is_number
from odesampler.program import Course, Loop, Observer, Program, Solved, Solver, State
from odesampler.roots import METHODS, Correction, Found, Search, find_roots
from odesampler.trial import carries


@dataclass(frozen=True)
class Implicit:
    """How to solve the equations, wherever `encode` takes a convention. "implicit" is this with its defaults.

    Args:
        method: "anderson", which goes over to Newton's method where it stalls; "newton", Newton-Krylov alone; or
            "fixed_point".
        memory: Iterates from which Anderson's method makes the next.
        tolerance: What the equation of a step may miss, relative to the largest value in it, or to 1. Never less than
            the rounding of the state; a float32 network's own is about 1e-7. A sample has converged if all its
            equations hold, and decoding misses its square root at most: half of the digits.
        max_evaluations: Budget of a step, for each sample.
        average: ReNoise: where a fixed point is not reached, take the mean of so many last iterates.

    Raises:
        ValueError: An unknown method, numbers out of range, an average of what is no fixed-point iteration.

    Examples:
        >>> model, images = ods.load("digits"), ods.held_out("digits").images[:2]
        >>> how = ods.Implicit(max_evaluations=50)
        >>> latent = ods.encode(model, images, solver="ddim", num_steps=20, convention=how)
        >>> latent.converged.tolist()
        [True, True]
        >>> bool((ods.decode(model, latent).x - images).abs().max() < 1e-3)
        True
    """

    method: str = "anderson"
    memory: int = 5
    tolerance: float = 1e-6
    max_evaluations: int = 100
    average: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}; got {self.method!r}")
        for what, least in (("memory", 0), ("max_evaluations", 1), ("average", 0)):
            if type(getattr(self, what)) is not int or getattr(self, what) < least:
                raise ValueError(f"{what} must be a whole number, {least} or more; got {getattr(self, what)!r}")
        if not is_number(self.tolerance) or not 0 <= self.tolerance < math.inf:
            raise ValueError(f"tolerance must be finite, 0 or more; got {self.tolerance!r}")
        if self.average and self.method != "fixed_point":
            raise ValueError(
                f'average is of fixed-point iterates: use it with method="fixed_point"; got {self.method!r}'
            )

    def __str__(self) -> str:
        given = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"implicit({', '.join(given)})" if given else "implicit"

    @property
    def search(self) -> Search:
        """How to search for the roots."""
        return Search(self.method, self.memory, self.average)


@dataclass(frozen=True)
class Implicitly(Loop):
    """The inverse of `OnGrid(solver)`, by solving its equations; its grid rises where that one's falls."""

    solver: Solver
    how: Implicit
    differentiable = False
    reaches_infinity = True

    def across(self, state: State, sigmas: Sequence[float], observe: Observer | None = None) -> Program[Solved]:
        if carries(self.solver):
            return (yield from self._at_once(state.x, sigmas, observe))
        x, down = state.x, Way(OnGrid(self.solver), tuple(sigmas)[::-1])
        converged = torch.ones(len(x), dtype=torch.bool, device=x.device)
        for i, (s1, s0) in enumerate(pairwise(sigmas), 1):
            found = yield from self._unstep(x, s1, s0)
            x, converged = found.x, converged & found.converged
            if observe is not None:
                observe(i, s0, x, None)
        missed = largest((yield from down.carried(x)) - state.x)
        returned = missed <= self._relative(x.dtype) ** 0.5 * _size(state.x)
        return Solved(State(x), converged=converged & returned, defect=missed / math.hypot(1, sigmas[0]))

    def _unstep(self, x: Tensor, s1: float, s0: float) -> Program[Found]:
        """The w from which a step from s0 leads to `x` at s1."""
        slope = s1 if math.isinf(s0) else 1.0  # of the step, where eps is constant

        def correction(w: Tensor, rows: Tensor, _wanted: Tensor) -> Program[tuple[Tensor, Tensor]]:
            reached = yield from stepped(self.solver, State(w), s0, s1)
            f = x[rows] - reached.x
            return f / slope, largest(f) / math.hypot(1, s1)

        guess = yield from stepped(self.solver, State(x), s1, s0)
        limit = max(1, self.how.max_evaluations // self.solver.cost(1) - 1)
        tolerance = self._tolerance(x, guess.x * slope) / math.hypot(1, s1)
        return (yield from find_roots(correction, guess.x, tolerance, limit, self.how.search))

    def _at_once(self, x: Tensor, sigmas: Sequence[float], observe: Observer | None) -> Program[Solved]:
        """The z from which the whole solve leads to `x`."""
        loop, unit = OnGrid(self.solver), math.hypot(1, sigmas[0])
        first = yield from solve(loop, State(x), sigmas, observe)
        tolerance = self._tolerance(x, x) * len(sigmas) / unit  # what the equations of the steps may miss together
        down, up = Way(loop, tuple(sigmas)[::-1]), Way(loop, tuple(sigmas))
        correction = defect_correction(down, up, x, tolerance, 1 / unit, first.state.x)
        limit = max(1, self.how.max_evaluations // 2)  # a correction costs two evaluations a step
        found = yield from find_roots(correction, first.state.x, tolerance, limit, self.how.search)
        return Solved(State(found.x), converged=found.converged, defect=found.defect)

    def _tolerance(self, x: Tensor, w: Tensor) -> Tensor:
        return self._relative(x.dtype) * torch.maximum(_size(x), _size(w))

    def _relative(self, dtype: torch.dtype) -> float:
        return max(self.how.tolerance, 4 * torch.finfo(dtype).eps)

    def prepared(self, course: Course) -> Implicitly:
        return Implicitly(self.solver.prepared(course), self.how)


class Way(NamedTuple):
    """A loop and the sigmas along which it goes."""

    loop: Loop
    sigmas: tuple[float, ...]

    def carried(self, x: Tensor) -> Program[Tensor]:
        """Where it carries `x` (n, *shape); NaN where it did not arrive."""
        solved = yield from solve(self.loop, State(x), self.sigmas)
        end = solved.state.x
        if solved.status is None:
            return end
        return end.where((solved.status == 0).reshape(-1, *[1] * (x.ndim - 1)), math.nan)


def defect_correction(
    down: Way, up: Way, x: Tensor, tolerance: Tensor, unit: float, encoded: Tensor | None = None
) -> Correction:
    """f(z) = E(x) - E(G(z)), with what G(z) misses of x; 0 where that is within the tolerance, and E is not asked.

    Args:
        down: G.
        up: E, an approximate inverse of G.
        x: (batch, *shape), where G is to arrive.
        tolerance: (batch,), what G(z) may miss.
        unit: What one unit of x counts in that.
        encoded: (batch, *shape), E(x), if it is known.
    """
    goal = torch.full_like(x, math.nan) if encoded is None else encoded
    known = torch.full((len(x),), encoded is not None, device=x.device)

    def correction(z: Tensor, rows: Tensor, wanted: Tensor) -> Program[tuple[Tensor, Tensor]]:
        reached = yield from down.carried(z)
        missed = largest(reached - x[rows]) * unit
        f, off = torch.zeros_like(z), torch.nonzero(wanted & (missed > tolerance[rows])).flatten()
        new = off[~known[rows[off]]]
        if len(new):
            goal[rows[new]] = yield from for_rows(new, up.carried(x[rows[new]]))
            known[rows[new]] = True
        if len(off):
            again = yield from for_rows(off, up.carried(reached[off]))
            f[off] = (goal[rows[off]] - again).nan_to_num(0, 0, 0)  # E did not arrive: nothing to correct by
        return f, missed

    return correction


def _size(x: Tensor) -> Tensor:
    """The largest absolute value of each sample, (batch,), or 1, of whose order data are: an image may be all 0."""
    return largest(x).clamp(min=1.0)


def largest(x: Tensor) -> Tensor:
    """The largest absolute value of each sample, (batch,)."""
    return x.abs().flatten(1).amax(1)
