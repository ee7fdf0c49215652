"""Windows: single steps down from points that are known, all of them at once.

    landed_i = step(y_{i+1}; s_{i+1} -> s_i)        where decoding would go from there

Since the points are known, no step waits for another: they are asked side by side, rows = samples x steps. A solver
that remembers evaluations of the w - 1 points before is walked through these first, each time from the known point; w
is found out by trying. One that remembers more has no such window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odesampler.combine import within
from odesampler.drive import Eps, Tally, run
from odesampler.integrate import stepped
from odesampler.program import Course, Program, Solver, State
from odesampler.registry import spec_of
from odesampler.room import AnyBatch
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
    max_batch: AnyBatch = None

    def landed(self, tally: Tally | None = None) -> list[Tensor]:
        """Where each step leads: at `sigmas[i]` from the points above, for all but the last i."""
        last = len(self.x) - 1
        programs = [self._window(i, min(i + self.width, last)) for i in range(last)]
        conditions = [self.cond] * len(programs)
        with torch.no_grad():
            return run(*programs, model=self.eps, cond=conditions, max_batch=self.max_batch, tally=tally)

    def _window(self, i: int, top: int) -> Program[Tensor]:
        """The step into `sigmas[i]`, its memory made from the points up to `top`."""
        name = spec_of(self.solver)
        return within(*self.range, name, through(self.solver, self.x[i + 1 : top + 1], self.sigmas[i : top + 1]))


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
