"""Several solves of the same samples side by side, sharing the calls of the model. None can lose the others.

The model's batch is the samples once for each solve, plan by plan. Where it answers NaN or infinity a solve is told
eps = 0 instead and has failed: the driver would otherwise stop them all, and running them one by one would give up what
they share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from odesampler.adaptive import Status
from odesampler.combine import surviving
from odesampler.drive import Tally, run
from odesampler.model import Model
from odesampler.noise import Streams
from odesampler.observe import Progress
from odesampler.plan import Plan, eps_of, program_of
from odesampler.precision import finest_dtype
from odesampler.program import Observer, Solved, State, column
from odesampler.room import AnyBatch

FAILURES = (ArithmeticError, RuntimeError, ValueError, AssertionError)  # the last is how torchdiffeq gives up
HUGE = 1e30  # as good as infinity, and the sum of a batch of smaller ones is still a float32
ROW = "row of the batch"  # the condition that tells which row an answer is for


@dataclass(frozen=True)
class Samples:
    """What the solves start from."""

    seeds: Sequence[int]  # one a sample
    shape: tuple[int, ...]  # (batch, *shape)
    x_t: Tensor | None  # given latents, (batch, *shape), in the model's own scale; None: drawn from the seeds
    cond: Mapping[str, Tensor]

    def latents(self, model: Model, tops: Sequence[float], dtype: torch.dtype) -> tuple[list[Tensor], Streams]:
        """The latents (batch, *shape) for a start at each of `tops`, and streams that go on from there.

        Each start has streams of its own with the same seeds, so that it gets what `sample` gives it alone.
        """
        noise = Streams([*self.seeds] * len(tops))
        like = torch.empty((self.shape[0] * len(tops), *self.shape[1:]), dtype=dtype, device=model.device)
        drawn = torch.split(noise.draw(like), self.shape[0])  # passed over where latents are given, as `sample` does
        if self.x_t is not None:
            return [self.x_t.to(model.device, dtype)] * len(tops), noise
        return [z * model.schedule.latent_scale(top) for z, top in zip(drawn, tops, strict=True)], noise


@dataclass(frozen=True)
class Ran:
    """How one solve ended."""

    x: Tensor  # (batch, *shape), on the CPU, in the model's own scale at the lower end of its grid
    nfe: Tensor  # (batch,) int64
    calls: int  # batched calls of the model in which it took part
    failure: str | None  # why `x` cannot be used


def side_by_side(
    model: Model,
    plans: Sequence[Plan],
    samples: Samples,
    *,
    max_batch: AnyBatch = None,
    progress: str | None = None,
) -> tuple[list[Ran], int]:
    """Carry out `plans`, of equal guidance and dtype, down their grids. Returns how each ended, and all calls."""
    latents, noise = samples.latents(model, [plan.grid.down()[0] for plan in plans], plans[0].state_dtype)
    batch, tally = samples.shape[0], Tally()
    rows = torch.arange(len(plans) * batch, device=model.device)
    cond = {k: torch.cat([v] * len(plans)) for k, v in samples.cond.items()}
    eps = _Forgiving(eps_of(plans[0], model), len(plans), batch, model.device)
    with torch.no_grad(), _bar(plans, progress) as bar:
        steps = count(1)

        def observe(step: int, sigma: Any, x: Tensor, of: Tensor | None) -> None:
            bar(next(steps), sigma, x, None)

        programs = []
        for plan, x_t in zip(plans, latents, strict=True):
            start = State(model.schedule.from_model_scale(x_t, plan.grid.down()[0]))
            watcher: Observer | None = observe if progress is not None and _counted(plan) else None
            programs.append(surviving(program_of(plan, model, start, plan.grid.down(), watcher), FAILURES))
        ended = run(*programs, model=eps, cond={**cond, ROW: rows}, noise=noise, max_batch=max_batch, tally=tally)
    assert tally.nfe is not None  # every plan asks at least once
    nfe = torch.split(tally.nfe.cpu(), batch)
    given = zip(plans, ended, nfe, eps.calls.tolist(), eps.reasons(), strict=True)
    return [_ran(model, *one, batch) for one in given], tally.calls


def _ran(
    model: Model, plan: Plan, ended: Solved | Exception, nfe: Tensor, calls: int, reason: str | None, batch: int
) -> Ran:
    if isinstance(ended, Exception):
        return Ran(torch.empty(0), nfe, calls, reason or str(ended))
    x = model.schedule.to_model_scale(ended.state.x, plan.grid.down()[-1]).cpu()
    codes = [] if ended.status is None else ended.status.tolist()
    late = [Status(code).name for code in codes if code]
    if reason is None and late:
        reason = f"{len(late)} of {batch} samples did not arrive ({', '.join(sorted(set(late)))})"
    if reason is None and not bool(x.isfinite().all()):
        reason = "its images have NaN or infinity"
    return Ran(x, nfe, calls, reason)


def _counted(plan: Plan) -> bool:
    return plan.loop.takes_steps and plan.loop.observable


def _bar(plans: Sequence[Plan], progress: str | None) -> Progress:
    total = sum(plan.grid.num_steps for plan in plans if _counted(plan))
    return Progress(total, show=progress is not None, what=progress or "")


class _Forgiving:
    """A model that answers 0 in place of NaN and infinity, and remembers where that was.

    Nothing is read from the device before the end.
    """

    def __init__(self, eps: Callable[..., Tensor], solves: int, batch: int, device: torch.device) -> None:
        self.eps, self.batch = eps, batch
        self.width, self.base = getattr(eps, "width", 1), getattr(eps, "base", None)  # as the driver asks of wrappers
        self.width_at = getattr(eps, "width_at", None)
        self.where = torch.full((solves * batch,), math.nan, dtype=finest_dtype(device), device=device)  # (rows,) sigma
        self.calls = torch.zeros(solves, dtype=torch.int64, device=device)

    def __call__(self, x: Tensor, sigma: float | Tensor, /, *told: float | Tensor, **cond: Tensor) -> Tensor:
        row = cond.pop(ROW)
        self.calls += torch.zeros_like(self.calls).index_fill_(0, row // self.batch, 1)
        eps = self.eps(x, sigma, *told, **cond)
        fine = eps.abs().flatten(1).amax(1) < HUGE  # NaN is not
        before = self.where[row]
        first = ~fine & before.isnan()
        self.where[row] = torch.where(first, column(sigma, x).flatten(), before)
        return eps.where(fine.reshape(-1, *[1] * (x.ndim - 1)), 0)

    def reasons(self) -> Iterator[str | None]:
        """For each solve, why it failed, if the model failed it."""
        for where in torch.split(self.where.cpu(), self.batch):
            bad = where[~where.isnan()]
            said = f"the model's answer has NaN or infinity at sigma = {bad.max():g}" if len(bad) else None
            yield f"{said}, for {len(bad)} of {self.batch} samples" if said else None
