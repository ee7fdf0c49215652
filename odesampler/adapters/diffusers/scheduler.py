"""Our solvers in their pipelines: any solver of the library as a scheduler of diffusers.

    pipe.scheduler = OdeScheduler.from_config(pipe.scheduler.config, solver="heun")

`step` is told what the network said about the sample and the time that it was shown, and shows those that the solver
asks about next. Samples are in the network's own scale, x_t; the state between is kept in float32 or finer. No solver
is written here: `walk` runs the same programs as every verb.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin as SchedulerMixin  # looked for beside what is loaded
from diffusers.utils.outputs import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from odesampler import defaults
from odesampler.adapters.diffusers.config import Configured
from odesampler.adapters.diffusers.kinds import IN_SIGMA
from odesampler.adapters.diffusers.steps import Steps
from odesampler.adapters.diffusers.terms import eps_of, input_scale, said, t_of
from odesampler.adapters.diffusers.times import ends_of, walked_grid
from odesampler.adapters.diffusers.walk import Route, fixed_grid, invertible
from odesampler.grid import Grid
from odesampler.program import Solver, State
from odesampler.registry import spec_of
from odesampler.schedule import RectifiedFlow


@dataclass
class OdeSchedulerOutput(BaseOutput):
    """What `OdeScheduler.step` returns."""

    prev_sample: Tensor  # what to show the network next, at the next of `timesteps`; after the last, the image
    pred_original_sample: Tensor | None = None  # the image that the network predicted


class OdeScheduler(Configured):
    """Any solver of ours that walks a grid, as a scheduler.

    `timesteps` holds one time an evaluation, inner ones too, and `order` evaluations make a step. Pipelines ask about
    the sample from which they start, so a solver that would first ask elsewhere gets an answer more, which it does not
    use; and they reckon with equal steps, so the step out of sigma = infinity (flows) gets as many as the others.
    Between two steps the sample may be edited (inpainting, callbacks); a solver that remembers what the network said
    before, remembers it still. At an inner evaluation it may not, nor under a solver that undoes its own steps, whose
    state is more than the sample: `step` raises.
    Can be copied and pickled at any time; what is shown may be kept in half precision.

    Its arguments, which are the keys of its config, are those of `Configured`.

    Examples:
        >>> from diffusers import DDPMScheduler
        >>> scheduler = ods.adapters.diffusers.OdeScheduler.from_config(DDPMScheduler().config, solver="heun")
        >>> scheduler.set_timesteps(10)
        >>> len(scheduler.timesteps), scheduler.order
        (19, 2)
    """

    num_inference_steps: int | None = None
    _begin_index: int | None = None
    _steps: Steps | None = None
    _given = False  # timesteps or sigmas were, instead of a number of steps
    _left: tuple[Route, int] | None = None  # the step within which the last solve was left
    _carried: tuple[Route, State] | None = None  # a solve from the other end, and where it ended

    @property
    def order(self) -> int:
        """Evaluations a step, where all but the last have as many; else 1.

        Also 1 where times were given: pipelines then take the number of `timesteps` for that of steps.
        """
        steps = self._steps
        solver = self._solver(defaults.STEPS) if steps is None else fixed_grid(steps.route.solver)
        evaluations = solver.evaluations
        even = steps is None or (steps.even(evaluations) and not self._given)
        return evaluations if even else 1

    @property
    def init_noise_sigma(self) -> float:
        """What noise from N(0, 1) is multiplied by to start from.

        The class whose times are taken over may start from sigma noise, in place of sqrt(1 + sigma^2): then so here.
        """
        schedule = self.reading.schedule
        if isinstance(schedule, RectifiedFlow) or self.facts.rising or self._carried is not None:
            return 1.0
        sigma = schedule.sigma_max if self._steps is None else self._steps.route.sigmas[0]
        scale, config = schedule.latent_scale(sigma), self.facts
        as_theirs = config.grid is None and config.config_of in IN_SIGMA and config.timestep_spacing != "leading"
        return scale * sigma / math.hypot(1, sigma) if as_theirs and math.isfinite(sigma) else scale

    @property
    def begin_index(self) -> int | None:
        """Where among `timesteps` the solve begins, if that has been set."""
        return self._begin_index

    @property
    def step_index(self) -> int | None:
        """Where among `timesteps` the solve stands, once it has begun."""
        return None if self._steps is None else self._steps.index

    @property
    def sigmas(self) -> Tensor:
        """(len(timesteps) + 1,) noise level of each sample that is shown, and of the last: u of flows, else sigma."""
        steps = self._laid_out("sigmas")
        levels = torch.tensor([*(q.level for q in steps.asked), steps.route.sigmas[-1]], dtype=torch.float64)
        schedule = self.reading.schedule
        return (schedule.std(levels) if isinstance(schedule, RectifiedFlow) else levels).float()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Lay out a solve, and forget the one that was under way.

        Args:
            num_inference_steps: Steps; the last one goes into sigma = 0, or to sigma_min.
            device: Where to put `timesteps`.
            timesteps: Where steps begin, as the network is told, in place of a number of steps.
            sigmas: Likewise as noise levels; of a flow, times from 1 down, which are shifted as its config says.
            mu: Shift of a flow with use_dynamic_shifting.

        Raises:
            ValueError: What cannot be walked; names the argument, or the key of the config.
        """
        given = sigmas if timesteps is None else timesteps
        count = (num_inference_steps or defaults.STEPS) if given is None else len(given)
        grid = walked_grid(
            self.facts,
            self.reading,
            self._solver(count),
            num_steps=num_inference_steps,
            timesteps=timesteps,
            sigmas=sigmas,
            mu=mu,
        )
        self._lay_out(grid, spec_of(self._solver(count)), device)
        self.num_inference_steps, self._given = num_inference_steps or grid.num_steps, given is not None

    def _lay_out(self, grid: Grid, solver: str, device: Any) -> None:
        reading, config = self.reading, self.facts
        if config.rising and reading.clip_denoised is not None:
            warnings.warn(
                "scheduler config: clip_sample or thresholding bounds the predicted image, which puts a floor under "
                "the way back of a solver that cannot be undone: from_config(..., clip_sample=False)",
                stacklevel=3,
            )
        if reading.prediction == "eps" and math.isinf(grid[0]):
            raise ValueError(
                "scheduler config: prediction_type='epsilon' says nothing of the image at alpha = 0, where these times "
                "start (rescale_betas_zero_snr=True): timestep_spacing='leading' starts below"
            )
        sigmas = (grid.up() if config.rising else grid.down()).sigmas
        route = Route(solver, reading.schedule, sigmas, *ends_of(reading), config.convention)
        carried = self._carried
        if carried is not None and carried[0].reverse() != route:
            raise ValueError(
                f"this scheduler undoes {len(carried[0].sigmas) - 1} steps of {carried[0].solver}, and these "
                "are other times: give set_timesteps what it was given there"
            )
        self._left = None if self._steps is None else self._steps.left
        self._steps = Steps(route, partial(t_of, reading), None if carried is None else carried[1])
        self.timesteps = torch.tensor(self._steps.times, dtype=torch.float32, device=device)
        self.num_inference_steps, self._begin_index = grid.num_steps, None

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Where among `timesteps` to begin: img2img begins in the middle.

        Raises:
            ValueError: Not between two steps, or the solver cannot begin there, or the last solve was left within the
                step that begins there.
        """
        steps = self._laid_out("set_begin_index")
        steps.check_start(begin_index)
        if self._left == (steps.route, begin_index):
            raise ValueError(
                f"the last solve was left within the step of {steps.route.solver} that begins at "
                f"timesteps[{begin_index}], by a pipeline that counts evaluations for steps (denoising_end): what it "
                "returned is no sample at that time, so denoising_start cannot go on from it: take a solver with one "
                "evaluation a step, such as 'dpmpp_2m'"
            )
        self._begin_index = begin_index

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """`sample` as the network is shown it: itself, but for EDM's."""
        if self.reading.preconditioning is None:
            return sample
        steps = self._laid_out("scale_model_input")
        index = steps.index if steps.index is not None else self._start(timestep)
        if index >= len(steps.asked):
            raise ValueError("the solve has arrived at its end: call set_timesteps before another one")
        return sample * input_scale(self.reading, steps.asked[index].level)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> OdeSchedulerOutput | tuple[Tensor]:
        """Take in what the network said, and say what to show it next.

        Args:
            model_output: (batch, *shape), about `sample`.
            timestep: Of `timesteps`, the one that the network was told.
            sample: (batch, *shape), that it was shown: what the last call returned, or an edit of it.
            generator: One, or one a sample, for solvers that draw noise.
            return_dict: Return an `OdeSchedulerOutput`, else only its first, in a tuple.

        Raises:
            ValueError: Out of turn, of the wrong shape, or an edit where the method allows none; the solve stands as
                it stood.
        """
        steps, seen = self._laid_out("step"), list[Tensor]()
        start = self._start(timestep) if steps.index is None else steps.index
        if not isinstance(timestep, Tensor) or timestep.device.type == "cpu":  # to read it elsewhere would wait
            steps.check_time(start, _number(timestep))
        out = said(self.facts, model_output, sample)

        def eps(x: Tensor, sigma: float) -> Tensor:
            answer = eps_of(self.reading, out.to(x.dtype), x, sigma)
            seen.append(answer if math.isinf(sigma) else x - sigma * answer)
            return answer

        shown = steps.advance(sample, start, eps, partial(_drawn, generator))
        return OdeSchedulerOutput(shown, *(s.to(shown.dtype) for s in seen)) if return_dict else (shown,)

    def inverse(self) -> OdeScheduler:
        """A scheduler for the way back over the same times: up, if this one goes down, and the other way round.

        Where this one has arrived with a solver that undoes its own steps, what that needs goes along: given the sample
        at which this one ended, `inverse` leads to the one at which it began, to rounding. The times are laid out, as
        those of this one end at sigma_min (rising, or final_sigmas_type="sigma_min"); else call set_timesteps.
        """
        steps, config = self._steps, self.facts
        solver = config.solver if steps is None else steps.route.solver
        made = type(self).from_config(config, solver=solver, rising=not config.rising, final_sigmas_type="sigma_min")
        if steps is not None and steps.route.sigmas[-1] > 0:
            if steps.arrived is not None and steps.arrived.memory and invertible(steps.route):
                made._carried = (steps.route, steps.arrived)
            made._lay_out(Grid(steps.route.sigmas), steps.route.solver, self.timesteps.device)
        return made  # type: ignore[no-any-return]  # from_config is theirs

    def __copy__(self) -> OdeScheduler:
        made = type(self).__new__(type(self))
        made.__dict__ = {**self.__dict__, "_steps": copy.copy(self._steps)}  # where a solve stands is each one's own
        return made

    def _solver(self, num_steps: int) -> Solver:
        """The solver for a number of steps. Raises as `fixed_grid`."""
        name = self.facts.solver
        if name is None:
            name = defaults.solver_for(num_steps, adaptive=False, encoding=self.facts.rising)
        return fixed_grid(name)

    def _laid_out(self, what: str) -> Steps:
        if self._steps is None:
            raise ValueError(f"{what} needs to know where the solve goes: call set_timesteps before")
        return self._steps

    def _start(self, timestep: float | Tensor | None) -> int:
        """The index at which a solve that begins with `timestep` begins."""
        if self._begin_index is not None or timestep is None:
            return self._begin_index or 0
        return self._laid_out("step").find(_number(timestep))


def _number(timestep: float | Tensor) -> float:
    """A time, which may have been repeated for a batch."""
    return float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)


def _drawn(generator: torch.Generator | list[torch.Generator] | None, like: Tensor) -> Tensor:
    noise: Tensor = randn_tensor(like.shape, generator=generator, device=like.device, dtype=like.dtype)
    return noise
