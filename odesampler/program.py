"""The contract between solvers, loops and the driver. Read this file first.

    dx / dsigma = eps(x, sigma)

A *program* is a generator that yields what it wants to know and is sent the answer: `eps = yield x, sigma`. Solvers
(one step) and loops (many steps) are programs, so neither ever sees a network; the driver answers programs and never
sees a solver. Optimisers call this ask and tell, network protocols sans I/O.

Notation: `s0, s1` are the ends of a step, `h = s1 - s0` its signed size, `k0, k1, ...` the values of eps at its stages.
A sigma is a Python float, shared by the batch, or a tensor that broadcasts against `x`, one value a sample.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from inspect import isgeneratorfunction
from typing import Any, ClassVar, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from odesampler.precision import finest_dtype

T = TypeVar("T")
Sigma: TypeAlias = "float | Tensor"
Program: TypeAlias = Generator[tuple[Any, ...], Tensor, T]  # yields Request, its first fields, or Draw; returns T


class Request(NamedTuple):
    """The question "what is eps at `x`, `sigma`?".

    A program's first question is about its whole batch. Later ones may be about some `rows` of it only: `x` then holds
    just those samples, and the driver selects their conditions.
    """

    x: Tensor  # (n, *shape)
    sigma: Sigma
    rows: Tensor | None = None  # (n,) int64; None: the whole batch
    told: Sigma | None = None  # the level whose clock the network is told; None: that of `sigma`


class Draw(NamedTuple):
    """The question "give me standard normal noise of the shape of `like`", answered from one stream a sample.

    A solver of a stochastic equation also says of what its noise is the increment: (W(b) - W(a)) / sqrt(|b - a|), where
    W is a Brownian motion in some clock and (a, b) the `span`. Only a `noise.BrownianPath` listens to that.
    """

    like: Tensor  # (n, *shape)
    rows: Tensor | None = None  # as in Request
    span: tuple[Sigma, Sigma] | None = None  # above 0, one for all or one a sample; None: noise of no path


class State(NamedTuple):
    """Where a solver stands between two steps: everything that lasts, and nothing that merely informs.

    Every tensor has the batch first, so that rows can be selected, dropped and merged.

    Examples:
        >>> state = ods.State(torch.tensor([[0.0], [1.0], [2.0]]), memory=(torch.ones(3, 1),))
        >>> state.select(torch.tensor([2, 0])).x.tolist()
        [[2.0], [0.0]]
        >>> state.where(torch.tensor([[True], [False], [True]]), state._replace(x=-state.x)).x.tolist()
        [[0.0], [-1.0], [2.0]]
    """

    x: Tensor  # (batch, *shape)
    memory: tuple[Tensor, ...] = ()  # what the solver carries to its next step
    error: Tensor | None = None  # (batch, *shape): estimate of the last step's local error, in units of x
    sigmas: tuple[Sigma, ...] = ()  # where it has been, newest first, for solvers whose weights depend on that

    def select(self, rows: Tensor) -> State:
        """The samples `rows` (int64 indices) of this state, in that order. The error estimate is dropped."""
        sigmas = tuple(s[rows] if isinstance(s, Tensor) and len(s) == len(self.x) else s for s in self.sigmas)
        return State(self.x[rows], tuple(m[rows] for m in self.memory), sigmas=sigmas)

    def where(self, accept: Tensor, other: State) -> State:
        """This state where `accept` (broadcasts against x), `other` elsewhere. The error estimate is dropped."""
        memory = (torch.where(accept, a, b) for a, b in zip(self.memory, other.memory, strict=True))
        sigmas = (_sigma_where(accept, a, b) for a, b in zip(self.sigmas, other.sigmas, strict=True))
        return State(torch.where(accept, self.x, other.x), tuple(memory), sigmas=tuple(sigmas))

    @staticmethod
    def merge(states: Sequence[State]) -> State:
        """One state that holds the samples of all `states`, in order. Error estimates are dropped."""
        memories = zip(*(s.memory for s in states), strict=True)
        xs = [s.x for s in states]
        sigmas = (one_sigma(each, xs) for each in zip(*(s.sigmas for s in states), strict=True))
        return State(torch.cat(xs), tuple(torch.cat(m) for m in memories), sigmas=tuple(sigmas))


def column(sigma: Sigma, x: Tensor) -> Tensor:
    """`sigma` as (batch, 1, ...), in float64 where the device of `x` has it. A number is filled in: nothing waits."""
    shape = (len(x),) + (1,) * (x.ndim - 1)
    if isinstance(sigma, Tensor):
        return sigma.to(finest_dtype(sigma.device)).reshape(-1, *shape[1:]).expand(shape)
    return torch.full(shape, sigma, dtype=finest_dtype(x.device), device=x.device)


def _sigma_where(accept: Tensor, a: Sigma, b: Sigma) -> Sigma:
    if not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b:
        return a
    return torch.where(accept, column(a, accept), column(b, accept))


def one_sigma(sigmas: Sequence[Sigma], xs: Sequence[Tensor]) -> Sigma:
    """The sigmas of several batches `xs` as one for all: a number where they agree, else a column."""
    numbers = {s for s in sigmas if not isinstance(s, Tensor)}
    if len(numbers) == 1 and not any(isinstance(s, Tensor) for s in sigmas):
        return numbers.pop()
    return torch.cat([column(s, x) for s, x in zip(sigmas, xs, strict=True)])


class Course(NamedTuple):
    """What a solver may know in advance of the solve that it is used for."""

    clock: Callable[[Tensor], Tensor]  # the model's clock t at a sigma, elementwise, float64
    sigmas: tuple[float, ...]  # the grid, falling
    low: float = math.inf  # the least sigma at which the model may be asked, where that is known


class Solver(ABC):
    """One step of an integrator, in either direction, written as a program.

    Immutable: what varies during a solve is in `State`. Subclasses are final (wrap, do not override) and state their
    facts in a fixed order: order, evaluations, error estimate, memory, whether exactly invertible.

    Examples:
        >>> class Mine(ods.Solver):  # Euler's method
        ...     order, evaluations = 1, 1
        ...     def step(self, state, s0, s1):
        ...         k0 = yield state.x, s0  # the question: eps at x, s0?
        ...         return ods.State(state.x + (s1 - s0) * k0)
        >>> model = ods.exact.GaussianMixture.ring().model()
        >>> found = ods.sample(model, 2, solver=Mine(), num_steps=5).x
        >>> found.allclose(ods.sample(model, 2, solver="ddim", num_steps=5).x)
        True
    """

    summary: str = ""  # one line for listings
    stochastic: bool = False  # draws noise; such a solver cannot encode
    adaptive: bool = False  # chooses its own steps when the user gives no number of steps
    differentiable: bool = True  # its step keeps the graph from x to the result
    start_evaluations: int = 0  # evaluations that starting costs beyond `evaluations` a step
    names: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # other names that users type -> the arguments they stand for

    @property
    @abstractmethod
    def order(self) -> int:
        """Order of the global error on a smooth eps."""

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """Model evaluations a step."""

    @property
    def error_order(self) -> int | None:
        """The error estimate is that of a method of this order; None: there is no estimate."""
        return None

    def __init_subclass__(cls) -> None:
        if "step" in vars(cls) and not isgeneratorfunction(cls.step):
            raise TypeError(f"{cls.__name__}.step must be a program: ask for eps with `k0 = yield state.x, s0`")

    def init(self, x: Tensor, sigma: Sigma) -> Program[State]:
        """The state from which the first step starts, at `x`, `sigma`. Asks for nothing unless a solver says so."""
        return State(x)
        yield  # makes this a program

    @abstractmethod
    def step(self, state: State, s0: Sigma, s1: Sigma) -> Program[State]:
        """From `state` at `s0` to the state at `s1`."""

    def cost(self, num_steps: int) -> int:
        """Model evaluations in `num_steps` steps."""
        return self.start_evaluations + num_steps * self.evaluations

    def into_zero(self, state: State, s0: Sigma) -> Program[State]:
        """The last step, from `state` at `s0` to sigma = 0, where nobody is asked: by default one Euler step, which
        returns the denoised image."""
        return (yield from euler_into_zero(state, s0))

    def prepared(self, course: Course) -> Solver:
        """This solver for a solve along `course`. Itself, unless it needs to know the model's clock or the grid."""
        return self


def euler_into_zero(state: State, s0: Sigma) -> Program[State]:
    """x - sigma * eps, the denoised image."""
    k0 = yield state.x, s0
    return State(state.x - s0 * k0)


class Invertible(Solver):
    """A solver whose step can be undone exactly, up to rounding, given its whole state.

    Examples:
        >>> model, images = ods.load("digits"), ods.held_out("digits").images[:2]
        >>> for solver in (ods.ALF(), ods.Heun()):
        ...     back = ods.decode(model, ods.encode(model, images, solver=solver, num_steps=10)).x
        ...     print(isinstance(solver, ods.Invertible), bool((back - images).abs().max() < 1e-9))
        True True
        False False
    """

    @abstractmethod
    def unstep(self, state: State, s0: Sigma, s1: Sigma) -> Program[State]:
        """The inverse of `step(., s0, s1)`: from the state at `s1` back to that at `s0`."""


Observer: TypeAlias = Callable[[int, Sigma, Tensor, "Tensor | None"], None]
"""Told `(step, sigma, x, rows)` after every accepted step; `rows` as in `Request`."""


class Solved(NamedTuple):
    """What a loop returns."""

    state: State
    status: Tensor | None = None  # (batch,) int64, see `adaptive.Status`; None: every sample arrived
    # Where equations were solved, (batch,) each: whether they hold, and what decoding misses, as x / hypot(1, sigma).
    converged: Tensor | None = None
    defect: Tensor | None = None


class Loop(ABC):
    """Many steps: how to get from one sigma to another."""

    takes_steps: bool = True  # False: it chooses its own steps, and only the ends of a grid matter
    observable: bool = True  # tells observers about every step
    differentiable: bool = True  # keeps the graph from x to the result
    reaches_infinity: bool = False  # takes the step into sigma = infinity itself, as one of its steps

    @abstractmethod
    def across(self, state: State, sigmas: Sequence[float], observe: Observer | None = None) -> Program[Solved]:
        """From `state` at `sigmas[0]` to `sigmas[-1]`, all of them positive, and finite unless it `reaches_infinity`.

        A state without memory is a bare point: the loop lets its solver make the first memory.
        """

    def into_zero(self, state: State, s0: float) -> Program[State]:
        """The last step, from `state` at `s0` to sigma = 0."""
        return (yield from euler_into_zero(state, s0))

    def prepared(self, course: Course) -> Loop:
        """This loop for a solve along `course`."""
        return self


def check_tolerances(rtol: float, atol: float) -> None:
    """Raises: ValueError: not two finite numbers of 0 or more, or both 0."""
    numbers = all(isinstance(t, (int, float)) and 0 <= t < math.inf for t in (rtol, atol))
    if not numbers or rtol + atol == 0:
        raise ValueError(f"rtol and atol must be finite, 0 or more, not both 0; got rtol={rtol!r}, atol={atol!r}")
