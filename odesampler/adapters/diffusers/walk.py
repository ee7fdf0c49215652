"""A solve, one answer at a time: the driver turned inside out.

    driver      asks the model what the program wants to know, until the program returns
    here        is told what the model said, and says what the program wants to know next

Between two answers nothing runs. What lasts is plain data: the state between two steps, and the answers since then, to
which the program of the step is run again. So a solve can be copied, pickled and gone on with from any point.
Knows programs, neither models nor anything of diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from odesampler.combine import question, within
from odesampler.conventions import upward
from odesampler.integrate import OnGrid, solve
from odesampler.program import Course, Draw, Invertible, Loop, Request, Solver, State
from odesampler.registry import find_solver
from odesampler.schedule import Schedule

Noise: TypeAlias = Callable[[Tensor], Tensor]  # standard normal, of the shape of what it is given


@dataclass(frozen=True)
class Route:
    """A solver, and where it goes. What two equal ones ask is the same, so it is found out once."""

    solver: str
    schedule: Schedule
    sigmas: tuple[float, ...]  # falling, or rising
    low: float  # the range in which the model may be asked
    high: float
    convention: str | None = None  # of going up with a solver that cannot be undone

    @property
    def falls(self) -> bool:
        """Whether it goes from noise to image."""
        return self.sigmas[0] > self.sigmas[-1]

    def reverse(self) -> Route:
        """The same route from its other end."""
        return Route(self.solver, self.schedule, self.sigmas[::-1], self.low, self.high, self.convention)


class Stand(NamedTuple):
    """Where a solve stands: all that lasts between two answers."""

    step: int  # between sigmas[step] and the next; the number of steps: it has arrived
    state: State  # at sigmas[step]
    answers: tuple[Tensor, ...] = ()  # since then, noise that was drawn among them
    asked: Request | None = None  # what it wants to know; None: it has arrived


class Question(NamedTuple):
    """One evaluation, as it is known before the solve."""

    step: int
    first: bool  # of its step
    level: float  # the sigma of the sample that is shown
    told: float  # the sigma whose clock the network is told
    plain: bool  # it is about the state itself, between two steps

    @property
    def honest(self) -> bool:
        """Whether the time that the network is told says how noisy the sample is."""
        return self.level == self.told


def fixed_grid(name: str) -> Solver:
    """The solver of that name.

    Raises:
        ValueError: There is none, or it takes steps of its own.
        TypeError: Not a name.
    """
    if not isinstance(name, str):
        raise TypeError(f"solver must be a name of ods.solvers(), which a config can hold; got {name!r}")
    solver = find_solver(name)
    if not isinstance(solver, Solver):
        raise ValueError(
            f"solver={name!r} chooses its own steps or is of another library, so its times are not known in advance, "
            "as the step API of diffusers needs them: take one of our own, such as 'heun', without tolerances"
        )
    return solver


@lru_cache(maxsize=64)
def loop_of(route: Route) -> Loop:
    """The loop along the route.

    Raises:
        ValueError: A solver that cannot go up, or a convention that does not go with it or with the step API.
    """
    solver = fixed_grid(route.solver)
    falling = route.sigmas if route.falls else route.sigmas[::-1]
    loop = OnGrid(solver.prepared(Course(route.schedule.t, falling, route.low)))
    if route.falls:
        return loop
    if solver.stochastic:
        raise ValueError(f"solver={route.solver!r} draws noise, which cannot be encoded: take an ODE solver")
    if (route.convention or "").startswith("implicit"):
        raise ValueError(
            f"convention={route.convention!r} asks as often as its equations need, so its times are not known in "
            "advance: use ods.encode"
        )
    return upward(loop, route.convention)[0]


def invertible(route: Route) -> bool:
    """Whether the solver undoes its own steps, so that all of its state belongs together."""
    return isinstance(fixed_grid(route.solver), Invertible)


def ahead(route: Route, stand: Stand, noise: Noise) -> Stand:
    """`stand` with the next question that its program has, or with none, if it has arrived."""
    step, state, answers, _ = stand
    while step < len(route.sigmas) - 1:
        asked = _asked(route, step, state, answers)
        if isinstance(asked, Request):
            return Stand(step, state, answers, asked)
        if isinstance(asked, Draw):
            answers = (*answers, noise(asked.like))
        else:
            step, state, answers = step + 1, asked, ()
    return Stand(step, state)


def answered(route: Route, stand: Stand, eps: Tensor, noise: Noise) -> Stand:
    """`stand` after the answer `eps` (batch, *shape) to its question."""
    return ahead(route, stand._replace(answers=(*stand.answers, eps)), noise)


def _asked(route: Route, step: int, state: State, answers: Sequence[Tensor]) -> Request | Draw | State:
    """What the program of a step asks after `answers`, or the state in which it ends."""
    loop, ends = loop_of(route), route.sigmas[step : step + 2]
    program = within(route.low, route.high, route.solver, solve(loop, state, ends))
    try:
        asked = question(next(program))
        for answer in answers:
            asked = question(program.send(answer))
        return asked
    except StopIteration as stop:
        return cast(State, stop.value.state)._replace(error=None)
    finally:
        program.close()


@lru_cache(maxsize=64)
def questions(route: Route, start: int = 0, carried: bool = False) -> tuple[Question, ...]:
    """All that is asked from sigmas[start] on. Which sigmas those are does not depend on the image: found on a pixel.

    With `carried` the solve goes on from the state in which that from the other end ended.
    """
    pixel = State(torch.full((1, 1), 0.7, dtype=torch.float64))
    found = list[Question]()
    stand = ahead(route, Stand(start, _end(route.reverse(), pixel) if carried else pixel), torch.zeros_like)
    while stand.asked is not None:
        x, sigma, _, told = stand.asked
        level, said = float(sigma), float(sigma if told is None else told)
        here = route.sigmas[stand.step]
        plain = math.isclose(level, here, rel_tol=1e-9) and torch.allclose(x, stand.state.x)
        found.append(Question(stand.step, not stand.answers, level, said, plain and not stand.answers))
        stand = answered(route, stand, _answer(stand.asked), torch.zeros_like)
    return tuple(found)


def _end(route: Route, state: State) -> State:
    """Where the solve of a pixel ends."""
    stand = ahead(route, Stand(0, state), torch.zeros_like)
    while stand.asked is not None:
        stand = answered(route, stand, _answer(stand.asked), torch.zeros_like)
    return stand.state


def _answer(asked: Request) -> Tensor:
    """eps of N(0, 1) data, so that no solver is led astray; at sigma = infinity its denoised image."""
    sigma = float(asked.sigma)
    return torch.zeros_like(asked.x) if math.isinf(sigma) else asked.x * sigma / (1 + sigma**2)
