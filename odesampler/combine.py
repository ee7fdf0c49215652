"""Programs made of programs: for a part of the batch, side by side, kept within the range, out of a calling function.

These know the contract (`program`) and nothing else: neither solvers nor models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from odesampler.precision import finest_dtype
from odesampler.program import Draw, Program, Request, Sigma, one_sigma

T = TypeVar("T")
ROUNDED = 1e-6  # of a sigma in float32


def question(asked: tuple[Any, ...]) -> Request | Draw:
    """What a program yielded, as a Request or a Draw: solvers may yield just `x, sigma`."""
    return asked if isinstance(asked, (Request, Draw)) else Request(*asked)


def for_rows(rows: Tensor, program: Program[T]) -> Program[T]:
    """Run a program that only knows the samples `rows` of the batch."""

    def renamed(asked: Request | Draw) -> Request | Draw:
        return asked._replace(rows=rows if asked.rows is None else rows[asked.rows])

    return _relayed(program, renamed)


def mirrored(program: Program[T], s0: Sigma, s1: Sigma) -> Program[T]:
    """Run a step from s0 to s1 and tell the network, at each of its questions, the level mirrored in the step.

    What is asked at s0 is told s1, and the other way round; the answer is still understood at the level asked about.
    """

    def told(asked: Request | Draw) -> Request | Draw:
        if isinstance(asked, Draw):
            return asked
        finite = not isinstance(s1, float) or math.isfinite(s1)
        return asked._replace(told=s1 + (s0 - asked.sigma) if finite else s1)

    return _relayed(program, told)


def remembering(program: Program[T]) -> Program[tuple[T, Tensor]]:
    """Run a program and return, beside what it returns, the answer to its first question."""
    first: Tensor | None = None
    answer: Tensor | None = None
    try:
        while True:
            asked = program.send(cast(Tensor, answer))
            try:
                answer = yield asked
            except Exception as error:
                program.throw(error)
                raise
            first = answer if first is None else first
    except StopIteration as stop:
        return cast(T, stop.value), cast(Tensor, first)


def knowing(eps: Tensor, x: Tensor, sigma: Tensor, program: Program[T]) -> Program[T]:
    """Run a program, and tell it `eps` without asking where its question is about this very `x` and `sigma`."""

    def known(asked: Request | Draw) -> Request | Draw | Tensor:
        return eps if isinstance(asked, Request) and asked.x is x and asked.sigma is sigma else asked

    return _relayed(program, known)


def within(low: float, high: float, name: str | Callable[[], str], program: Program[T]) -> Program[T]:
    """Refuse questions outside [low, high], naming the solver that asks them, before any model is called.

    To find a solver's name takes as long as to ask a small network: `name` may be a function, called if it is needed.

    What lies outside by rounding alone, of a float32 sigma or a foreign solver's, is moved to the end of the range.
    Sigmas on an accelerator are moved without being read, since that would wait for it: they come from our own adaptive
    loop, which keeps inside by construction.
    """

    def inside(asked: Request | Draw) -> Request | Draw:
        if isinstance(asked, Draw):
            return asked
        if asked.told is None and not isinstance(asked.sigma, Tensor) and low <= asked.sigma <= high:
            return asked  # nearly all: what needs no change is not made anew
        for sigma in (asked.sigma,) if asked.told is None else (asked.sigma, asked.told):
            outside = _outside(sigma, low, high)
            if outside is not None:
                program.close()
                asks = name if isinstance(name, str) else name()
                raise ValueError(
                    f"{asks} asked for eps at sigma = {outside:g}, outside the model's range [{low:g}, {high:g}]: "
                    "no network is asked there"
                )
        told = None if asked.told is None else _clamped(asked.told, low, high)
        return asked._replace(sigma=_clamped(asked.sigma, low, high), told=told)

    return _relayed(program, inside)


def moved(program: Program[T], to: Callable[[Sigma], Sigma]) -> Program[T]:
    """Run a program that asks at `to(sigma)` what it asks at sigma."""
    return _relayed(program, lambda asked: asked if isinstance(asked, Draw) else asked._replace(sigma=to(asked.sigma)))


def surviving(program: Program[T], failures: tuple[type[Exception], ...]) -> Program[T | Exception]:
    """Return the error, one of `failures`, with which a program fails after its first question, so that others go on.

    What it refuses before that is raised, since no model has been asked; so are errors of the model.
    """
    return _relayed(program, lambda asked: asked, failures)


def _relayed(
    program: Program[Any],
    change: Callable[[Request | Draw], Request | Draw | Tensor],
    failures: tuple[type[Exception], ...] = (),
) -> Program[Any]:
    """Pass on what a program asks, changed, and what it is told. Its `failures`, once it has asked, are returned.

    A tensor that `change` makes of a question is its answer, and nobody is asked.
    """
    answer: Tensor | None = None
    returned: tuple[type[Exception], ...] = ()
    try:
        while True:
            asked = change(question(program.send(cast(Tensor, answer))))
            if isinstance(asked, Tensor):
                answer = asked
                continue
            returned = failures
            try:
                answer = yield asked
            except Exception as error:
                returned = ()  # the model's, not the program's
                program.throw(error)
                raise
    except StopIteration as stop:
        return stop.value
    except returned as error:
        return error


def _clamped(sigma: Sigma, low: float, high: float) -> Sigma:
    if isinstance(sigma, Tensor):
        return sigma.to(finest_dtype(sigma.device)).clamp(low, high)
    return min(max(sigma, low), high)


def _outside(sigma: Sigma, low: float, high: float) -> float | None:
    if isinstance(sigma, Tensor):
        if sigma.device.type != "cpu":
            return None
        bad = sigma[(sigma < low * (1 - ROUNDED)) | (sigma > high * (1 + ROUNDED)) | sigma.isnan()]
        return bad[0].item() if len(bad) else None
    return None if low * (1 - ROUNDED) <= sigma <= high * (1 + ROUNDED) else sigma


def together(*programs: Program[T]) -> Program[list[T]]:
    """Run programs side by side, each on its own block of rows of one larger batch, merging what they ask.

    A round asks about every program that is still under way. The first question of a program must be about its whole
    batch: it tells how many rows the program owns.
    """
    results: dict[int, T] = {}
    pending: dict[int, Request] = {}
    blocks: list[Tensor] = []  # the rows of each program

    def advance(i: int, answer: Tensor | None) -> Program[None]:
        """Let program i run to its next request; noise is drawn for it alone, on the way."""
        pending.pop(i, None)
        try:
            asked = question(programs[i].send(cast(Tensor, answer)))
            if i == len(blocks):
                first = sum(len(b) for b in blocks)
                blocks.append(torch.arange(first, first + len(asked[0]), device=asked[0].device))
            while isinstance(asked, Draw):
                noise = yield asked._replace(rows=_rows_in(blocks[i], asked.rows))
                asked = question(programs[i].send(noise))
            pending[i] = asked
        except StopIteration as stop:
            results[i] = stop.value

    for i in range(len(programs)):
        yield from advance(i, None)
    while pending:
        order = list(pending)
        asked = [pending[i] for i in order]
        try:
            answers = yield _merged(asked, [blocks[i] for i in order])
        except Exception as error:
            programs[order[0]].throw(error)  # so that the traceback shows which line of which solver asked
            raise
        for i, answer in zip(order, torch.split(answers, [len(a.x) for a in asked]), strict=True):
            yield from advance(i, answer)
    return [results[i] for i in range(len(programs))]


def _rows_in(block: Tensor, rows: Tensor | None) -> Tensor:
    return block if rows is None else block[rows]


def _merged(asked: Sequence[Request], blocks: Sequence[Tensor]) -> Request:
    rows, xs = torch.cat([_rows_in(b, a.rows) for a, b in zip(asked, blocks, strict=True)]), [a.x for a in asked]
    told = None
    if any(a.told is not None for a in asked):
        told = one_sigma([a.sigma if a.told is None else a.told for a in asked], xs)
    return Request(torch.cat(xs), one_sigma([a.sigma for a in asked], xs), rows, told)


class _Abandoned(BaseException):
    """Tells the thread of a function that nobody waits for its result any more."""


def inverted(work: Callable[[Callable[[Tensor, Sigma], Tensor]], T]) -> Program[T]:
    """Turn a function that calls `ask(x, sigma)`, such as a foreign ODE solver, into a program that asks the same.

    The function runs in a thread of its own and waits there while the driver has the word; only one of the two ever
    runs. Gradient mode is per thread in torch, so it is carried over.
    """
    asked: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    answered: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    grad = torch.is_grad_enabled()

    def ask(x: Tensor, sigma: Sigma) -> Tensor:
        asked.put(("question", Request(x, sigma)))
        kind, value = answered.get()
        if kind == "error":
            raise value
        return cast(Tensor, value)

    def body() -> None:
        try:
            with torch.set_grad_enabled(grad):
                asked.put(("result", work(ask)))
        except BaseException as error:  # handed to the program's caller, whatever it is
            asked.put(("error", error))

    thread = Thread(target=body, daemon=True, name="odesampler.inverted")
    thread.start()
    try:
        while True:
            kind, value = asked.get()
            if kind == "error":
                raise value
            if kind == "result":
                return cast(T, value)
            try:
                answer = yield value
            except Exception as error:
                answered.put(("error", error))
            else:
                answered.put(("answer", answer))
    finally:
        answered.put(("error", _Abandoned()))
        thread.join()
