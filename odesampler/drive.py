"""The driver: the only code that calls a model.

It answers programs: conditions follow their rows, large batches are cut into chunks, noise comes from one stream a
sample, evaluations are counted, answers are checked. It never sees a solver.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias, TypeVar, cast

import torch
from torch import Tensor

from odesampler.combine import question, together
from odesampler.compiled import bucket, padded
from odesampler.model import Cond
from odesampler.noise import Noise
from odesampler.precision import at_least_single
from odesampler.program import Draw, Program, Request, Sigma, column
from odesampler.room import AnyBatch, Room, attempted, check_max_batch, too_large

T = TypeVar("T")
READ = 16  # answers that are looked at together, on the CPU
Eps: TypeAlias = Callable[..., Tensor]  # eps(x, sigma, **cond): a Model, or any function of that form


class Tally:
    """What a run cost.

    Args:
        nfe: (batch,) evaluations to begin with, if there were any.
    """

    def __init__(self, nfe: Tensor | None = None) -> None:
        self.calls = 0  # batched calls of the model that it answered
        self._each, self._all = nfe, 0  # evaluations of some samples, (batch,), and of all: a number costs no operation

    @property
    def nfe(self) -> Tensor | None:
        """(batch,) evaluations of eps for each sample; a guided one counts once. None: nothing was asked."""
        return None if self._each is None else self._each + self._all

    def count(self, x: Tensor, rows: Tensor | None) -> None:
        """An evaluation for `rows`, or for all of `x`; the first question of a program is about its whole batch."""
        if self._each is None:
            self._each = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        if rows is None:
            self._all += 1
        else:
            self._each[rows] += 1


@dataclass
class Watch:
    """Looks for NaN and infinity in the model's answers.

    Sums are kept and read together, since to read one costs an operation: on the CPU the first at once and then a few
    at a time, so that a solve which has gone wrong ends soon; elsewhere at the end, since it would wait for the device.
    The first that is not finite names where it happened.
    """

    reads: bool = True  # False: nothing, until someone calls `check`
    kept: list[tuple[Sigma, Tensor]] = field(default_factory=list)  # where it was asked -> the sum of the answer
    seen: int = 0

    def see(self, answer: Tensor, sigma: Sigma) -> None:
        """Take note of an answer (batch, *shape), asked for at `sigma`."""
        # Finite numbers may sum to infinity: those of half precision easily, those of float32 where nothing is right
        # any more. A sum in float64 would take five times as long.
        self.kept.append((sigma, answer.sum(dtype=at_least_single(answer.dtype))))
        self.seen += 1
        if self.seen % READ == 1 and answer.is_cpu:  # to ask for its device costs as much as a small operation
            self.settle()

    def settle(self) -> None:
        """Check what is kept, once."""
        if self.reads:
            try:
                self.check()
            finally:
                self.kept = []

    def check(self) -> None:
        """Raises: FloatingPointError: a total is not finite."""
        totals = torch.stack([total for _, total in self.kept]).tolist() if self.kept else []
        for (sigma, _), total in zip(self.kept, totals, strict=True):
            if not math.isfinite(total):
                raise FloatingPointError(
                    f"the model's answer has NaN or infinity at {_where(sigma)}; "
                    "if this is half precision, try autocast=torch.bfloat16 or a float32 network"
                )


def run(
    *programs: Program[T],
    model: Eps,
    cond: Cond | Sequence[Cond] = (),
    noise: Noise | None = None,
    max_batch: AnyBatch = None,
    tally: Tally | None = None,
    watch: Watch | None = None,
) -> list[T]:
    """Answer programs until all have returned, asking the model about all of them in one call a round.

    Args:
        programs: Each on a batch of its own. Several run side by side, on one batch that joins theirs in order.
        model: Called as `model(x, sigma, **cond)`, sigma a float where all rows share it, else (rows,); where a request
            has `told` as `model(x, sigma, told, **cond)`, of the same form.
        cond: Conditions of the whole batch, or one mapping a program, each value batch first.
        noise: Streams for the samples of the whole batch; only stochastic solvers need them.
        max_batch: The most rows to give the network at once; more are cut into chunks. None: no limit. "auto": no limit
            but memory; where it runs out, half as many are tried, and remembered (`room`).
        tally: Counts evaluations, if given.
        watch: Looks at the answers; by default one that raises.

    Returns:
        What each program returned, in order.

    Raises:
        ValueError: `max_batch` below 1; conditions of other programs than these; an answer of the wrong shape.
        torch.cuda.OutOfMemoryError: Not even one sample fits into memory ("auto").
        FloatingPointError: An answer with NaN or infinity; names the sigma.

    Examples:
        >>> from odesampler.drive import run
        >>> gauss, x = ods.exact.Gaussian(torch.zeros(1), 1.0), torch.tensor([[3.0]])
        >>> (state,) = run(ods.RK4().step(ods.State(x), 2.0, 1.5), model=gauss)  # one step, by hand
        >>> bool((state.x - gauss.trajectory(x, 2.0, 1.5)).abs().max() < 1e-3)
        True
    """
    calls = _Calls.of(model, max_batch)
    joined: Program[Any] = programs[0] if len(programs) == 1 else together(*programs)
    conds = _joined_cond(cond, len(programs))
    watch, tally = Watch() if watch is None else watch, Tally() if tally is None else tally
    answer: Tensor | None = None
    while True:
        try:
            asked = question(joined.send(cast(Tensor, answer)))
        except StopIteration as stop:
            watch.settle()
            return [stop.value] if len(programs) == 1 else cast("list[T]", stop.value)
        except Exception:
            watch.settle()  # a program may fail because of an answer that has not been looked at
            raise
        try:
            if isinstance(asked, Draw):
                answer = _draw(asked, noise)
            else:
                answer = _evaluate(calls, asked, conds, tally)
                watch.see(answer, asked.sigma)
        except Exception as error:
            joined.throw(error)  # so that the traceback also shows which line of which solver asked
            raise


@dataclass(frozen=True)
class _Calls:
    """How the model is called: with how many samples at once."""

    model: Eps
    width: int  # rows of the network for one sample
    max_batch: AnyBatch
    room: Room
    pads: bool  # a compiled model: its calls are padded to a few sizes
    width_at: Callable[[Sigma], int] | None = None  # rows for one sample at a sigma, where that differs

    @classmethod
    def of(cls, model: Eps, max_batch: AnyBatch) -> _Calls:
        """As `model` needs it, or the model that it wraps."""
        base, width = getattr(model, "base", None), getattr(model, "width", 1)
        max_batch = check_max_batch(max_batch, width)
        room, pads = (Room(), False) if base is None else (base.room, base.pads)
        return cls(model, width, max_batch, room, pads, getattr(model, "width_at", None))

    def most(self, x: Tensor, width: int) -> int | None:
        """The most samples in a call, of `width` rows each; None: any number."""
        rows = self.room.rows(x.shape[1:], x.device) if self.max_batch == "auto" else self.max_batch
        return None if rows is None else max(1, rows // width)

    def answers(self, cond: Cond, x: Tensor, sigma: Sigma, *told: Sigma) -> list[Tensor]:
        """What the model answers about `x` (batch, *shape), in chunks; what is answered is not asked again."""
        answers, done, total = list[Tensor](), 0, x.shape[0]  # len() of a tensor takes longer than an operation on it
        if (self.max_batch is None and not self.pads) or total == 0:
            return [self.model(x, sigma, *told, **cond)]
        width = self.width if self.width_at is None else self.width_at(sigma)
        while done < total:
            most = self.most(x, width)
            size = min(total - done, most or total)
            rows = bucket(size, most) if self.pads else size
            part = slice(done, done + size)
            given = {k: padded(_cut(v, part), rows) for k, v in cond.items()}
            ask = partial(self.model, *(padded(_cut(v, part), rows) for v in (x, sigma, *told)), **given)
            answer = attempted(ask, x.device) if self.max_batch == "auto" else ask()
            if isinstance(answer, str):
                if rows == 1:
                    raise too_large(x.shape[1:], width, x.device, answer)
                self.room.halve(x.shape[1:], x.device, rows * width)
            else:
                answers.append(answer[:size] if rows > size else answer)
                done += size
        return answers


def _evaluate(calls: _Calls, asked: Request, cond: Cond, tally: Tally) -> Tensor:
    x, sigma, rows, told = asked
    if isinstance(sigma, Tensor):
        sigma = column(sigma, x).flatten()
    mine: Mapping[str, Any] = cond if rows is None else {k: v[rows.to(v.device)] for k, v in cond.items()}
    if isinstance(told, Tensor):
        told = column(told, x).flatten()
    answers = calls.answers(mine, x, sigma) if told is None else calls.answers(mine, x, sigma, told)
    tally.calls += len(answers)
    answer = answers[0] if len(answers) == 1 else torch.cat(answers)
    if answer.shape != x.shape:
        raise ValueError(
            f"eps must have the shape of x: asked at {_where(sigma)} with {tuple(x.shape)}, got {tuple(answer.shape)}"
        )
    tally.count(x, rows)
    return answer


def _cut(value: Any, part: slice) -> Any:
    """`value[part]`; itself if that is all of it, or a number: cutting nothing off would still be an operation."""
    return value[part] if isinstance(value, Tensor) and len(value) > part.stop - part.start else value


def _joined_cond(cond: Cond | Sequence[Cond], programs: int) -> Cond:
    if not isinstance(cond, Sequence):
        return cond
    if len(cond) not in (0, programs):
        raise ValueError(f"conditions are one mapping a program: {programs} programs, {len(cond)} mapping(s)")
    keys = {frozenset(c) for c in cond}
    if len(keys) > 1:
        raise ValueError(f"programs side by side need the same conditions; got {[sorted(k) for k in keys]}")
    return {k: torch.cat([c[k] for c in cond]) for k in (cond[0] if cond else ())}


def _draw(asked: Draw, noise: Noise | None) -> Tensor:
    if noise is None:
        raise ValueError("a stochastic solver drew noise, and no streams were given: pass noise=Streams(seeds)")
    return noise.draw(*asked)


def _where(sigma: Sigma) -> str:
    if not isinstance(sigma, Tensor):
        return f"sigma = {sigma:g}" if math.isfinite(sigma) else "sigma = infinity"
    if sigma.device.type != "cpu":
        return "one of the sigmas of this round (per-sample steps)"
    return f"a sigma in [{sigma.min().item():g}, {sigma.max().item():g}] ({sigma.numel()} samples, each at its own)"
