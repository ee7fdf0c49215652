"""A solve as the step API sees it: samples in the network's scale go out, and come back with what it said.

Whether what comes back is what went out is looked at, since pipelines edit it. Between two steps of a method an edited
sample takes the place of the state's x, and what the method remembers stays: inpainting half
of 8 digits in 20 steps of the Karras grid, it makes the error of dpmpp_2m 2.2 times smaller than forgetting would, of
unipc 3.3 times, of the default 4.4 times. Elsewhere an edit would leave two halves that do not belong together, and is
refused.
Knows walks, neither networks nor configs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field

import torch
from torch import Tensor

from odesampler.adapters.diffusers.walk import Noise, Question, Route, Stand, ahead, answered, invertible, questions
from odesampler.program import State

EDITABLE = "take one with one evaluation a step, such as 'ddim', 'dpmpp_2m' or 'unipc', or edit between its steps"


@dataclass
class Steps:
    """A solve under way along a route.

    Args:
        route: Where it goes.
        clock: What the network is told at a sigma.
        carried: Where the solve from the other end ended, which this one undoes; None: begin from a sample.
    """

    route: Route
    clock: InitVar[Callable[[Tensor], Tensor]]
    carried: State | None = None
    asked: tuple[Question, ...] = field(init=False)  # one for each time of the layout
    times: list[float] = field(init=False)  # likewise, what the network is told, as float32 has it
    idle: int = field(init=False)  # so many of the first answers are of no use
    stand: Stand | None = None  # None: not begun
    index: int | None = None  # of what was shown last among `asked`
    shown: Tensor | None = None
    begun: int = 0  # where among `asked`
    version: int = 0  # how often `shown` had been written to

    def __post_init__(self, clock: Callable[[Tensor], Tensor]) -> None:
        start, found = self.route.sigmas[0], questions(self.route, carried=self.carried is not None)
        if found and found[0].plain:
            self.idle = _missing(found) if math.isinf(start) else 0
            self.asked = (*[found[0]._replace(first=i == 0) for i in range(self.idle + 1)], *found[1:])
        else:  # the solver first asks about another point than the one that it is given
            self.idle, self.asked = 1, (Question(0, True, start, start, False), *found)
        told = torch.tensor([asked.told for asked in self.asked], dtype=torch.float64)
        self.times = clock(told).to(torch.float32).tolist()

    @property
    def arrived(self) -> State | None:
        """The state at the end, if it is there."""
        return self.stand.state if self.stand is not None and self.stand.asked is None else None

    @property
    def left(self) -> tuple[Route, int] | None:
        """The route, and where among its questions the step begins within which the solve stands, after others."""
        if self.index is None or self.index >= len(self.asked) or self.asked[self.index].first:
            return None
        step = next(i for i, asked in enumerate(self.asked) if asked.step == self.asked[self.index].step)
        return (self.route, step) if step > self.begun else None

    def find(self, t: float) -> int:
        """The index of the time nearest to `t`, at the beginning of a step if there is one.

        Raises:
            ValueError: It is none of them.
        """
        found = [i for i, time in enumerate(self.times) if _same_time(time, t)]
        if not found:
            raise ValueError(
                f"timestep={t:g} is none of timesteps, {_brief(self.times)}, at one of which a solve begins"
            )
        least = min(abs(self.times[i] - t) for i in found)
        found = [i for i in found if abs(self.times[i] - t) == least]
        return next((i for i in found if self.asked[i].first), found[0])

    def check_time(self, index: int, t: float) -> None:
        """Raises: ValueError: it is not the turn of `t`."""
        if index < len(self.times) and not _same_time(self.times[index], t):
            raise ValueError(
                f"timestep={t:g} is out of turn: the solve stands at timesteps[{index}] = {self.times[index]:g}; each "
                f"of timesteps, {_brief(self.times)}, has its turn once"
            )

    def even(self, evaluations: int) -> bool:
        """Whether every step but the last has so many evaluations."""
        counts = Counter(question.step for question in self.asked)
        return all(counts[step] == evaluations for step in range(self.asked[-1].step))

    def check_start(self, index: int) -> None:
        """Raises: ValueError: the solve cannot begin at `asked[index]`."""
        if not 0 <= index < len(self.asked):
            raise ValueError(
                f"there are {len(self.asked)} timesteps, so a solve cannot begin at index {index}; img2img ends up "
                "there where strength x num_inference_steps is below 1, so that no step is left"
            )
        if index == 0:
            return
        at, name = self.asked[index], self.route.solver
        if not at.first:
            firsts = [i for i, asked in enumerate(self.asked) if asked.first]
            raise ValueError(
                f"timesteps[{index}] is an inner evaluation of a step of {name}, where no solve can begin: begin at "
                f"one of {firsts}; pipelines find them by strength, but with denoising_start, timesteps or sigmas "
                "they count evaluations for steps: take a solver with one a step, such as 'dpmpp_2m'"
            )
        tail = questions(self.route, at.step)
        begins = tail[0].plain and tail[0].honest and self.carried is None
        if not begins or [_place(q) for q in tail] != [_place(q) for q in self.asked[index:]]:
            raise ValueError(
                f"{name} begins otherwise than it goes on, so it cannot begin at timesteps[{index}], in the middle of "
                "times that were laid out for the whole (img2img, strength below 1): take 'heun', 'dpmpp_2m' or 'unipc'"
            )

    def advance(self, sample: Tensor, start: int, eps: Callable[[Tensor, float], Tensor], noise: Noise) -> Tensor:
        """What to show the network next, x_t in the dtype of `sample`.

        Args:
            sample: What it was shown, (batch, *shape).
            start: Where to begin, if the solve has not begun.
            eps: Called with x and sigma of the question, returns what the network said about them.
            noise: For solvers that draw it.
        """
        index = start if self.index is None else self.index
        if index >= len(self.asked):
            raise ValueError("the solve has arrived at its end: call set_timesteps before another one")
        if self.stand is None:
            stand, self.begun = self._begun(index, sample, noise), index
        else:
            stand = self._resumed(self.stand, index, sample, noise)
        if index >= self.idle:
            assert stand.asked is not None
            x, sigma = stand.asked.x, float(stand.asked.sigma)
            stand = answered(self.route, stand, eps(x, sigma), noise)
        shown = self._visible(stand, sample.dtype)
        self.stand, self.index, self.shown = stand, index + 1, shown
        self.version = 0 if shown.is_inference() else shown._version
        return shown

    def _begun(self, index: int, sample: Tensor, noise: Noise) -> Stand:
        """Before the first question, from `sample` at `asked[index]`."""
        self.check_start(index)
        if self.carried is not None:
            if not _same(self._visible(Stand(0, self.carried), sample.dtype), sample):
                raise ValueError(
                    f"this scheduler carries what {self.route.solver} needs to undo the steps that led to one sample, "
                    "and was given another: to solve from any sample, OdeScheduler.from_config(scheduler.config)"
                )
            return ahead(self.route, Stand(0, self.carried), noise)
        at = self.asked[index]
        return ahead(self.route, Stand(at.step, State(self._state(sample, at.level))), noise)

    def _resumed(self, stand: Stand, index: int, sample: Tensor, noise: Noise) -> Stand:
        """`stand`, or with `sample` in place of its x if that has been edited."""
        assert self.shown is not None
        if sample.shape != self.shown.shape:
            raise ValueError(f"sample must keep its shape, {tuple(self.shown.shape)}; got {tuple(sample.shape)}")
        untouched = sample is self.shown and not sample.is_inference() and sample._version == self.version
        if untouched or _same(self._visible(stand, self.shown.dtype), sample):
            return stand
        if invertible(self.route):
            raise ValueError(
                f"sample is not what step returned, and {self.route.solver}, which undoes its own steps, keeps a "
                f"second value that belongs to it: {EDITABLE}"
            )
        if not (self.asked[index].plain and self.asked[index].honest):
            raise ValueError(
                f"sample is not what step returned, and timesteps[{index}] is an inner evaluation of a step of "
                f"{self.route.solver}, or one that noise was drawn for, so it cannot be edited here: {EDITABLE}"
            )
        state = stand.state._replace(x=self._state(sample, self.asked[index].level))
        return ahead(self.route, Stand(stand.step, state), noise)

    def _state(self, sample: Tensor, sigma: float) -> Tensor:
        """x of a sample, in float32 or finer."""
        fine = sample.to(torch.promote_types(sample.dtype, torch.float32))
        return self.route.schedule.from_model_scale(fine, sigma)

    def _visible(self, stand: Stand, dtype: torch.dtype) -> Tensor:
        """What the network is shown of it."""
        x, sigma = (stand.state.x, self.route.sigmas[stand.step]) if stand.asked is None else stand.asked[:2]
        return self.route.schedule.to_model_scale(x, float(sigma)).to(dtype)


def _missing(asked: tuple[Question, ...]) -> int:
    """By how many evaluations the first step falls short of the others, if those are alike.

    Pipelines reckon with as many in each, to find where to begin; the step out of sigma = infinity has one.
    """
    counts = Counter(question.step for question in asked)
    others = {counts[step] for step in range(1, asked[-1].step)}
    return max(0, others.pop() - counts[0]) if len(others) == 1 else 0


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether `other` is `one`, perhaps in another dtype."""
    return one.device == other.device and torch.equal(one.to(other.dtype), other)


def _same_time(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-6)  # to half precision


def _brief(times: list[float]) -> str:
    shown = [f"{t:g}" for t in times]
    return ", ".join(shown if len(shown) < 8 else [*shown[:4], "...", *shown[-2:]])


def _place(asked: Question) -> tuple[int, float, float]:
    return asked.step, asked.level, asked.told
