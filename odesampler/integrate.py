"""Loops over a fixed grid, and the two ends of the equation where no solver goes.

    on_grid:     step(s0, s1), step(s1, s2), ...        back_along: the same steps undone, last first
    solve:       [out of infinity]  a loop  [into zero | into infinity]

Loops are programs: they never see a network. They know nothing of how a step is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from odesampler.combine import for_rows, mirrored
from odesampler.program import Course, Invertible, Loop, Observer, Program, Sigma, Solved, Solver, State
from odesampler.trial import carries

Step: TypeAlias = Callable[[State, Sigma, Sigma], Program[State]]


@dataclass(frozen=True)
class OnGrid(Loop):
    """One step of `solver` between neighbours of the grid."""

    solver: Solver

    @property
    def differentiable(self) -> bool:  # type: ignore[override]  # a fact of its solver
        return self.solver.differentiable

    def across(self, state: State, sigmas: Sequence[float], observe: Observer | None = None) -> Program[Solved]:
        return Solved((yield from on_grid(self.solver, state, sigmas, observe)))

    def into_zero(self, state: State, s0: float) -> Program[State]:
        return (yield from self.solver.into_zero(state, s0))

    def prepared(self, course: Course) -> OnGrid:
        return OnGrid(self.solver.prepared(course))


@dataclass(frozen=True)
class BackAlong(Loop):
    """The exact inverse of `OnGrid(solver)`; its grid rises where that one's falls."""

    solver: Invertible

    @property
    def differentiable(self) -> bool:  # type: ignore[override]  # a fact of its solver
        return self.solver.differentiable

    def across(self, state: State, sigmas: Sequence[float], observe: Observer | None = None) -> Program[Solved]:
        return Solved((yield from back_along(self.solver, state, sigmas, observe)))


@dataclass(frozen=True)
class Mirrored(Loop):
    """`OnGrid(solver)`, but in each step the network is told the level mirrored in it: for upward Euler, the end's."""

    solver: Solver
    reaches_infinity = True

    def across(self, state: State, sigmas: Sequence[float], observe: Observer | None = None) -> Program[Solved]:
        keeps = carries(self.solver)

        def step(state: State, s0: Sigma, s1: Sigma) -> Program[State]:
            bare = state if keeps else State(state.x)  # an eps that it kept was told the clock of the step before
            return (yield from mirrored(stepped(self.solver, bare, s0, s1), s0, s1))

        return Solved((yield from _along(step, state, sigmas, observe)))


def on_grid(
    solver: Solver, start: Tensor | State, sigmas: Sequence[float], observe: Observer | None = None
) -> Program[State]:
    """Solve from `start` at `sigmas[0]` to `sigmas[-1]`, one step between neighbours, all positive and finite.

    `start` is a point (batch, *shape), or the state where an earlier solve ended.
    """
    state = yield from _started(solver, start, sigmas[0])
    return (yield from _along(solver.step, state, sigmas, observe))


def back_along(
    solver: Invertible, start: Tensor | State, sigmas: Sequence[float], observe: Observer | None = None
) -> Program[State]:
    """Undo `on_grid(solver, ., reversed(sigmas))` exactly, from `start` at `sigmas[0]`, step by step."""
    state = yield from _started(solver, start, sigmas[0])
    return (yield from _along(lambda state, s1, s0: solver.unstep(state, s0, s1), state, sigmas, observe))


def _along(step: Step, state: State, sigmas: Sequence[float], observe: Observer | None) -> Program[State]:
    for i, (s0, s1) in enumerate(pairwise(sigmas), 1):
        state = yield from step(state, s0, s1)
        if observe is not None:
            observe(i, s1, state.x, None)
    return state


def stepped(solver: Solver, state: State, s0: Sigma, s1: Sigma) -> Program[State]:
    """A step from `state`, which may be a bare point; from and to infinity, that which `solve` takes."""
    if not isinstance(s0, Tensor) and not isinstance(s1, Tensor):
        if math.isinf(s0):
            return (yield from _out_of_infinity(State(state.x), s1))
        if math.isinf(s1):
            return (yield from _into_infinity(state, s0))
    return (yield from solver.step((yield from _started(solver, state, s0)), s0, s1))


def _started(solver: Solver, start: Tensor | State, sigma: Sigma) -> Program[State]:
    if isinstance(start, State) and start.memory:
        return start
    return (yield from solver.init(start.x if isinstance(start, State) else start, sigma))


def solve(loop: Loop, start: State, sigmas: Sequence[float], observe: Observer | None = None) -> Program[Solved]:
    """Run `loop` along `sigmas`, which may begin or end at 0 or infinity. The one place that knows what happens there.

    Into zero, the loop's own last step, by default Euler's, x - sigma * eps, which returns the denoised image: no
    network is asked at sigma = 0.
    Out of infinity, one Euler step in the model's own scale. At sigma = infinity `x` stands for x_t, which is pure
    noise and so its own eps; what the model answers there is the denoised image (`Model.__call__`), hence
    x = denoised + sigma * noise. Into infinity, the reverse of that step: x_t becomes the predicted noise, and a solver
    with memory keeps the whole state that it left there; given that memory back, it goes on from that state.

    Raises:
        ValueError: The grid starts at 0, which holds no information about the noise: start at sigma_min.
    """
    first, last = sigmas[0], sigmas[-1]
    if first == 0:
        raise ValueError("a solve cannot start at sigma = 0: an image is encoded from sigma_min upward")
    inner = [s for s in sigmas if 0 < s < math.inf or (s == last and s and loop.reaches_infinity)]
    solved = Solved(start)
    if math.isinf(first):
        solved = Solved((yield from _out_of_infinity(start, sigmas[1])))
        _tell(observe, 1, sigmas[1], solved.state.x)
    if len(inner) > 1:
        skipped = 1 if math.isinf(first) else 0
        solved = yield from loop.across(solved.state, inner, _shifted(observe, skipped))
    if inner and inner[-1] != last:
        rows = None if solved.status is None else torch.nonzero(solved.status == 0).flatten()
        step = loop.into_zero if last == 0 else _into_infinity
        state = yield from _for_arrived(rows, step, solved.state, inner[-1])
        _tell(observe, len(sigmas) - 1, last, state.x)
        solved = solved._replace(state=state)
    return solved


def _out_of_infinity(start: State, sigma: float) -> Program[State]:
    if start.memory:
        return State(start.memory[0], start.memory[1:])
    denoised = yield start.x, math.inf
    return State(denoised + sigma * start.x if sigma else denoised)


def _into_infinity(state: State, s0: Sigma) -> Program[State]:
    k0 = yield state.x, s0
    return State(k0, (state.x, *state.memory) if state.memory else ())


def _for_arrived(
    rows: Tensor | None, step: Callable[[State, float], Program[State]], state: State, s0: float
) -> Program[State]:
    """A last step for the samples that got to `s0` (`rows`; None: all). The others stay, and memory is dropped."""
    if rows is None:
        return (yield from step(state, s0))
    if len(rows) == 0:
        return State(state.x)
    there = yield from for_rows(rows, step(state.select(rows), s0))
    return State(state.x.index_copy(0, rows, there.x))


def _tell(observe: Observer | None, step: int, sigma: float, x: Tensor) -> None:
    if observe is not None:
        observe(step, sigma, x, None)


def _shifted(observe: Observer | None, by: int) -> Observer | None:
    if observe is None or by == 0:
        return observe
    return lambda step, sigma, x, rows: observe(step + by, sigma, x, rows)
