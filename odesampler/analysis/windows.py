"""Windows: single steps down from points that are known, all of them at once, and their derivatives.

    landed_i = step(y_{i+1}; s_{i+1} -> s_i)                  where decoding would go from a point of the encoding
    pushed_i = sum_j (d landed_i / d y_{i+j}) v_{i+j}         j = 1 .. w, forward derivatives

Since the points are known, no step waits for another: they are asked side by side, rows = samples x steps. A solver
that remembers evaluations of the w - 1 points before is walked through these first, each time from the known point; w
is found out by trying. One that remembers more has no such window.

References:
    Griewank, Walther 2008, Evaluating Derivatives, chapter 3 (forward mode).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.autograd.forward_ad as forward
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from odesampler.combine import within
from odesampler.drive import Eps, Tally, run
from odesampler.integrate import stepped
from odesampler.program import Course, Program, Solver, State
from odesampler.registry import spec_of
from odesampler.trial import answered, carries

WIDEST = 5  # more points than any multistep formula of ours looks at


@dataclass(frozen=True, eq=False)
class Windows:
    """The steps of `solver` down a path of known points."""

    solver: Solver
    width: int  # points that a step depends on, see `width_of`
    sigmas: tuple[float, ...]  # rising; at most the last is infinite
    x: tuple[Tensor, ...]  # the points there, (batch, *shape) each, in the equation's scale
    eps: Eps
    cond: Mapping[str, Tensor]
    range: tuple[float, float]  # in which the model may be asked
    max_batch: int | None = None

    def landed(self, tally: Tally | None = None) -> list[Tensor]:
        """Where each step leads: at `sigmas[i]` from the points above, for all but the last i."""
        with torch.no_grad():
            return self._walked(self.x, tally)

    def pushed(self, tangents: Sequence[Tensor], tally: Tally | None = None) -> list[Tensor]:
        """How far each step's end moves with its points, if these move by `tangents`, to first order."""
        with torch.no_grad(), forward.dual_level(), sdpa_kernel(SDPBackend.MATH):  # the others know no forward mode
            points = [dual(x, v) for x, v in zip(self.x, tangents, strict=True)]
            ends = self._walked(points, tally)
            moved = [tangent(end) for end in ends]
        return [torch.zeros_like(end) if v is None else v for end, v in zip(ends, moved, strict=True)]

    def _walked(self, points: Sequence[Tensor], tally: Tally | None) -> list[Tensor]:
        last = len(points) - 1
        programs = [self._window(points, i, min(i + self.width, last)) for i in range(last)]
        return run(*programs, model=self.eps, cond=[self.cond] * len(programs), max_batch=self.max_batch, tally=tally)

    def _window(self, points: Sequence[Tensor], i: int, top: int) -> Program[Tensor]:
        """The step into `sigmas[i]`, its memory made from the points up to `top`."""
        name = spec_of(self.solver)
        return within(*self.range, name, through(self.solver, points[i + 1 : top + 1], self.sigmas[i : top + 1]))


def through(solver: Solver, points: Sequence[Tensor], sigmas: Sequence[float]) -> Program[Tensor]:
    """Steps down from the last of `points` to the first of `sigmas`, each from the known point; one sigma more."""
    state = State(points[-1])
    for i in range(len(points) - 1, -1, -1):
        state = yield from stepped(solver, state._replace(x=points[i]), sigmas[i + 1], sigmas[i])
    return state.x


def width_of(solver: Solver) -> int | None:
    """How many points a step of `solver` depends on, through what it remembers; None: on all before it."""
    if not carries(solver):
        return 1
    sigmas = tuple(0.9 ** (8 - i) for i in range(9))
    trial = solver.prepared(Course(torch.log, sigmas[::-1]))
    points = [torch.full((1, 1), 1 + 0.1 * i * i, dtype=torch.float64) for i in range(9)]

    def end(top: int) -> Tensor:
        return answered(through(trial, points[1 : top + 1], sigmas[: top + 1]), lambda x, s: torch.sin(x + s))

    whole = end(8)
    fits = (w for w in range(1, WIDEST + 1) if torch.allclose(end(w), whole, rtol=1e-12, atol=0))
    return next(fits, None)


def dual(x: Tensor, v: Tensor) -> Tensor:
    """`x` that carries the change `v` along, inside a dual level."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.script", DeprecationWarning)  # torch's own, at its first use
        return forward.make_dual(x, v)  # type: ignore[no-untyped-call, no-any-return]


def tangent(x: Tensor) -> Tensor | None:
    """The change that `x` carries; None: none."""
    return forward.unpack_dual(x).tangent  # type: ignore[no-untyped-call, no-any-return]


class Carrying(nn.Module):
    """A network that is refused where it answers without a forward derivative: it would be taken for 0."""

    def __init__(self, network: Any, name: str) -> None:
        super().__init__()
        self.network, self.name = network, name

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        out: Tensor = self.network(x_t, t, **cond)
        if tangent(x_t) is not None and tangent(out) is None:
            raise ValueError(
                f"{self.name} answers without a derivative, as from numpy or under inference_mode: this analysis "
                "needs it; give Model a network that torch can differentiate"
            )
        return out
