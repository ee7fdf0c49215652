"""What a solver is like, found out by trying it on equations of our own."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from odesampler.combine import question
from odesampler.program import Course, Draw, Program, Sigma, Solver, State

T = TypeVar("T")
_SIGMAS = tuple(0.9**i for i in range(8))  # more steps than any starter takes


def carries(solver: Solver) -> bool:
    """Whether a step depends on the steps before it, through what the solver remembers.

    False also where it remembers only what it could ask again, as Dormand-Prince does its last eps.
    """
    trial = solver.prepared(Course(torch.log, _SIGMAS))
    on, anew = (answered(_walk(trial, restart=restart), _wavy) for restart in (False, True))
    return not torch.allclose(on, anew, rtol=1e-12, atol=0)


def reads_sigma(solver: Solver) -> bool:
    """Whether a step, or its error, depends on what sigma is, not on differences alone, as methods for any equation do.

    Found out by trying some steps, since the first of a multistep method may be Euler's, with an eps that is moved up
    by 1 together with them. A solver that cannot be tried counts as one that does: it may want sigmas of some range, or
    images of some shape, which is no error before it is given others.
    """
    try:
        first, second = (answered(_down_from(solver, top), _moved(top)) for top in (1.0, 2.0))
    except Exception:  # of a user's own, so it may be any
        return True
    return not all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(first, second, strict=True))


def answered(program: Program[T], eps: Callable[[Tensor, Sigma], Tensor]) -> T:
    """What `program` returns where eps is that of the trial, and all noise is 0."""
    answer = None
    try:
        while True:
            asked = question(program.send(answer))  # type: ignore[arg-type]  # None begins
            answer = torch.zeros_like(asked.like) if isinstance(asked, Draw) else eps(asked.x, asked.sigma)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


def _wavy(x: Tensor, sigma: Sigma) -> Tensor:
    return torch.sin(x + sigma)


def _walk(solver: Solver, *, restart: bool) -> Program[Tensor]:
    x = torch.ones(1, 1, dtype=torch.float64)
    state = yield from solver.init(x, _SIGMAS[0])
    for s0, s1 in pairwise(_SIGMAS):
        if restart:
            state = yield from solver.init(state.x, s0)
        state = yield from solver.step(state, s0, s1)
    return state.x


def _moved(s0: float) -> Callable[[Tensor, Sigma], Tensor]:
    return lambda x, sigma: x * 0 + torch.as_tensor(3 * (sigma - s0) + 0.5).sin()  # no method is exact for it


def _down_from(solver: Solver, top: float) -> Program[list[Tensor]]:
    """What uneven steps from `top`, x = 0, make of x, and their errors."""
    sigmas, seen = tuple(top - way for way in (0.0, 0.19, 0.3, 0.5, 0.62)), list[Tensor]()
    trial = solver.prepared(Course(torch.log, sigmas))
    state = yield from trial.init(torch.zeros(1, 1, dtype=torch.float64), top)
    for s0, s1 in pairwise(sigmas):
        state = yield from trial.step(state, s0, s1)
        seen += [state.x] if state.error is None else [state.x, state.error]
    return seen


def one_step(base: Solver, s0: float, eps: Callable[[Tensor, Sigma], Tensor]) -> State:
    """`base` stepped once from `s0`, by 0.19 down, from x = 0."""
    s1 = s0 - 0.19
    return answered(_stepped(base.prepared(Course(torch.log, (s0, s1))), s0, s1), eps)


def _stepped(base: Solver, s0: float, s1: float) -> Program[State]:
    state = yield from base.init(torch.zeros(1, 1, dtype=torch.float64), s0)
    return (yield from base.step(state, s0, s1))
