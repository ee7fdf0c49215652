"""Fitting: the sigmas and the weights of a multistep method, by gradients through the solve.

    x_{i+1} = x_i + sum_j W_ij eps(x_j, s_j),      loss = mean over samples of log rms(x_N - truth)

What is fitted goes through the solve as tensors; the network's weights stay as they are. What a network kept of an
evaluation is not kept but made anew in the backward pass, so that memory is that of one evaluation, for any number of
steps. Updates are Adam's, in float64 on the host; the validation samples decide which of the points passed is taken.

References:
    Kingma, Ba 2015, Adam, arXiv:1412.6980, Algorithm 1. Chen et al. 2016, arXiv:1604.06174 (recomputation).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from odesampler.drive import Eps, run
from odesampler.frames import plus
from odesampler.model import Model
from odesampler.program import Program
from odesampler.tuning.resumable import Resumable

Shape: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]  # parameters -> sigmas above 0 (n,), weights (n, n)
CHECK = 10  # iterations at most between two looks at the validation samples
PATIENCE = 0.5  # of all iterations, without a better one
BETAS = (0.9, 0.95)
TINY = 1e-300


@dataclass(frozen=True, eq=False)
class Goals:
    """Where solves start, and where they should end."""

    eps: Eps
    start: Tensor  # (n, *shape), in the equation's scale, or at infinity in the model's
    truth: Tensor  # (n, *shape), at sigma = 0
    cond: Mapping[str, Tensor]
    out_of_infinity: bool = False
    chunk: int | None = None  # samples at once

    def __len__(self) -> int:
        return len(self.start)

    def parts(self) -> Iterator[Goals]:
        """The same, in pieces that are solved at once."""
        size = self.chunk or len(self)
        for i in range(0, len(self), size):
            cut = slice(i, i + size)
            cond = {k: v[cut] for k, v in self.cond.items()}
            yield Goals(self.eps, self.start[cut], self.truth[cut], cond, self.out_of_infinity)

    def missed(self, sigmas: Tensor, weights: Tensor) -> Tensor:
        """(n,) rms error of a table's solves, differentiable in it."""
        program = by_table(self.start, sigmas, weights, out_of_infinity=self.out_of_infinity)
        [x] = run(program, model=self.eps, cond=self.cond)
        return (x - self.truth).double().flatten(1).square().mean(1).clamp(min=TINY).sqrt()

    def errors(self, sigmas: Tensor, weights: Tensor) -> Tensor:
        """(n,) the same, without gradients, on the CPU; infinite where a solve blows up."""
        at = [v.to(self.start.device, self.start.dtype) for v in (sigmas, weights)]
        try:
            with torch.no_grad():
                found = torch.cat([part.missed(*at) for part in self.parts()]).cpu()
        except FloatingPointError:
            return torch.full((len(self),), math.inf, dtype=torch.float64)
        return found.nan_to_num(nan=math.inf)


def by_table(x: Tensor, sigmas: Tensor, weights: Tensor, *, out_of_infinity: bool = False) -> Program[Tensor]:
    """The solve along `sigmas` (n,) and into 0 with `weights` (n, n), both of which may need gradients."""
    if out_of_infinity:
        denoised = yield x, math.inf
        x = plus(denoised, sigmas[0], x)
    known: list[Tensor] = []
    for i in range(len(sigmas)):
        known.append((yield x, sigmas[i]))
        for j, k in enumerate(known):
            x = plus(x, weights[i, j], k)
    return x


class Recomputed:
    """A model of which nothing is kept for the backward pass but its questions."""

    def __init__(self, eps: Eps) -> None:
        self.eps = eps
        self.width, self.base = getattr(eps, "width", 1), getattr(eps, "base", None)  # as the driver asks of wrappers
        self.width_at = getattr(eps, "width_at", None)

    def __call__(self, *place: Any, **cond: Any) -> Tensor:
        ask = partial(self.eps, **cond)
        answer: Tensor = checkpoint(ask, *place, use_reentrant=False, preserve_rng_state=False)
        return answer


@contextmanager
def frozen(model: Model) -> Iterator[None]:
    """The network's parameters need no gradients meanwhile."""
    network = model.network
    wanting = [p for p in network.parameters() if p.requires_grad] if isinstance(network, nn.Module) else []
    try:
        for p in wanting:
            p.requires_grad_(False)
        yield
    finally:
        for p in wanting:
            p.requires_grad_(True)


def gradient(goals: Goals, shape: Shape, theta: Tensor) -> tuple[float, Tensor]:
    """The loss at `theta`, and its gradient; a part of the samples at a time.

    Raises:
        FloatingPointError: A solve blows up.
    """
    with torch.enable_grad():
        theta = theta.detach().requires_grad_()
        made = shape(theta)
        given = [v.detach().to(goals.start.device, goals.start.dtype).requires_grad_() for v in made]
        total, slopes = 0.0, [torch.zeros_like(v) for v in given]
        for part in goals.parts():
            loss = part.missed(*given).log().sum() / len(goals)
            found = torch.autograd.grad(loss, given, allow_unused=True, materialize_grads=True)  # a network without t
            for slope, one in zip(slopes, found, strict=True):
                slope += one
            total += loss.item()
        slopes = [slope.to(v.device, v.dtype) for slope, v in zip(slopes, made, strict=True)]
        reached = [(v, slope) for v, slope in zip(made, slopes, strict=True) if v.requires_grad]
        [slope] = torch.autograd.grad([v for v, _ in reached], [theta], [slope for _, slope in reached])
    if not math.isfinite(total) or not bool(slope.isfinite().all()):
        raise FloatingPointError("the loss, or its gradient, is not finite")
    return total, slope


@dataclass
class Clock:
    """Processor time that was spent, what was spent before a kill included, and how much there is."""

    limit: float | None = None  # seconds
    earlier: float = 0.0
    cut: bool = False  # whether it ended something

    def __post_init__(self) -> None:
        self._began = time.process_time()

    @property
    def spent(self) -> float:
        """Seconds."""
        return self.earlier + time.process_time() - self._began

    def over(self) -> bool:
        """Whether nothing is left."""
        if self.limit is not None and self.spent > self.limit:
            self.cut = True
            return True
        return False


@dataclass(frozen=True)
class Stage:
    """One run of Adam."""

    name: str
    shape: Shape
    iterations: int
    rate: float  # the first; falls as a cosine to 0
    allowed: Callable[[Tensor], Tensor] = lambda theta: theta  # brings parameters back to where they may be


def descend(
    stage: Stage, theta: Tensor, train: Goals, valid: Goals, saved: Resumable, clock: Clock, tell: Callable[[int], None]
) -> tuple[Tensor, float]:
    """The best point, by the validation samples, that Adam passes from `theta`, and the mean of log errors there."""
    names = [f"{stage.name}.{part}" for part in ("theta", "mean", "square", "best")]
    fact = stage.name
    if fact not in saved.facts:
        start = [theta, torch.zeros_like(theta), torch.zeros_like(theta), theta]
        saved.tensors |= {k: v.clone() for k, v in zip(names, start, strict=True)}
        saved.facts[fact] = {"done": 0, "loss": _valued(valid, stage.shape, theta), "at": 0, "over": False}
    state = saved.facts[fact]
    theta, mean, square, best = (saved.tensors[k] for k in names)
    every = max(1, min(CHECK, stage.iterations // 5))
    tell(state["done"])
    while state["done"] < stage.iterations and not state["over"] and not clock.over():
        i = state["done"] + 1
        try:
            _, slope = gradient(train, stage.shape, theta)
        except FloatingPointError:
            state["over"] = True  # from here no way leads on
            break
        mean = BETAS[0] * mean + (1 - BETAS[0]) * slope
        square = BETAS[1] * square + (1 - BETAS[1]) * slope**2
        rate = stage.rate * 0.5 * (1 + math.cos(math.pi * (i - 1) / stage.iterations))
        step = mean / (1 - BETAS[0] ** i) / ((square / (1 - BETAS[1] ** i)).sqrt() + 1e-12)
        theta = stage.allowed(theta - rate * step)
        if i % every == 0 or i == stage.iterations:
            loss = _valued(valid, stage.shape, theta)
            if loss < state["loss"]:
                best, state["loss"], state["at"] = theta, loss, i
        state |= {"done": i, "over": i - state["at"] > PATIENCE * stage.iterations}
        saved.tensors |= dict(zip(names, (theta, mean, square, best), strict=True))
        saved.facts["seconds"] = clock.spent
        saved.write(sparing=True)
        tell(1)
    saved.write()
    return best, state["loss"]


def _valued(goals: Goals, shape: Shape, theta: Tensor) -> float:
    return goals.errors(*(v.detach() for v in shape(theta.detach()))).log().mean().item()


@contextmanager
def counted(what: str, total: int, *, show: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar, to be told how many more are done."""
    if not show:
        yield lambda more: None
        return
    from tqdm.auto import tqdm  # imported when used, as elsewhere

    with tqdm(total=total, desc=what, unit="iteration", leave=False) as bar:
        yield lambda more: bar.update(more)
