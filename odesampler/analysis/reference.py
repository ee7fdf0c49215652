"""The reference solve that solvers are compared with, which checks itself.

    x: RK4 with N steps in log sigma over the model's whole range;     difference = rms(x with N / 2 steps - x)

For a fourth-order method the half's error is sixteen times the whole's, so the difference bounds the error of x from
above, until rounding rules both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from odesampler.analysis.errors import quantile, rms
from odesampler.analysis.side_by_side import Samples, side_by_side
from odesampler.grid import Grid, check_num_steps, make_grid
from odesampler.guidance import AnyGuidance, checked_guidance
from odesampler.model import Model
from odesampler.plan import AnyGrid, Plan
from odesampler.precision import finest_dtype
from odesampler.room import AnyBatch
from odesampler.threshold import AnyThreshold, checked_threshold

CLEAR = 10  # an error this many times the reference's own is the solver's


@dataclass(frozen=True, repr=False)
class Reference:
    """The solve that all others are compared with, and what tells whether another comparison may use it."""

    x: Tensor  # (batch, *shape), on the CPU
    how: str
    difference: Tensor | None  # (batch,), from the same solve with half the steps; None: given, unchecked
    latents: Tensor  # (batch, *shape), where it started, in the model's own scale
    cond: Mapping[str, Tensor]
    guidance_scale: AnyGuidance
    clip_denoised: AnyThreshold
    fingerprint: str  # of the model

    @property
    def floor(self) -> float:
        """The median of `difference`, below which an error says nothing about a solver; 0 where it is not known."""
        return 0.0 if self.difference is None else quantile(self.difference, 0.5)

    def __repr__(self) -> str:
        checked = "not checked" if self.difference is None else f"half as many differ by {self.floor:.1e}"
        return f"{self.how}; {checked}"


def plans(model: Model, num_steps: int, plan: Callable[[AnyGrid], Plan]) -> list[Plan]:
    """The reference's with `num_steps` and with half of them; `plan` makes one of RK4 on a grid.

    Raises:
        ValueError: Not an even number of steps.
    """
    return [plan(grid) for grid in grids_between(model, *model.range, num_steps, into_zero=True)]


def grids_between(model: Model, low: float, high: float, num_steps: int, *, into_zero: bool) -> list[Grid]:
    """The reference's grid with `num_steps` and with half of them, from `high` to `low`, or through `low` into 0.

    Raises:
        ValueError: Not an even number of steps.
    """
    check_num_steps(num_steps)
    if num_steps % 2:
        raise ValueError(f"reference_steps must be even, since the check takes half of them; got {num_steps}")
    return [_grid(model, low, high, n, into_zero) for n in (num_steps, num_steps // 2)]


def _grid(model: Model, low: float, high: float, num_steps: int, into_zero: bool) -> Grid:
    """log_snr over the whole range. Out of infinity it starts where the Euler step's error, 1 / (2 sigma^2), is small.

    That sigma grows with the number of steps, so that the check sees this error too.
    """
    named = partial(make_grid, "log_snr", model.schedule, into_zero=into_zero, sigma_min=low)
    if math.isfinite(high):
        return named(num_steps, sigma_max=high)
    top = max(250.0, 2 * low) * num_steps
    return Grid((high, *named(max(num_steps - 1, 1), sigma_max=top)), "log_snr")


def solved(
    model: Model, both: list[Plan], samples: Samples, *, max_batch: AnyBatch = None, progress: str | None = None
) -> Reference:
    """Carry out both of `plans`, side by side.

    Raises:
        FloatingPointError: One failed.
    """
    how = f"rk4, {both[0].grid.num_steps} steps on log_snr"
    found, _ = side_by_side(model, both, samples, max_batch=max_batch, progress=progress)
    failure = next((ran.failure for ran in found if ran.failure is not None), None)
    if failure is not None:
        raise FloatingPointError(
            f"the reference solve ({how}) failed: {failure}; give another, or other reference_steps"
        )
    whole, half = (ran.x for ran in found)
    return _described(model, whole, how, rms(half - whole), samples, (both[0].guidance_scale, both[0].clip_denoised))


def checked_reference(
    model: Model,
    given: Tensor | Reference,
    samples: Samples,
    guidance_scale: AnyGuidance,
    clip_denoised: AnyThreshold,
) -> Reference:
    """What was given as reference, if it is one of these very solves.

    Raises:
        TypeError: Neither a tensor nor a Reference.
        ValueError: A tensor of another shape, or a reference for another model, other latents or conditions.
    """
    settings = (checked_guidance(guidance_scale), checked_threshold(clip_denoised))
    if isinstance(given, Tensor):
        if tuple(given.shape) != samples.shape or not bool(given.isfinite().all()):
            raise ValueError(f"reference must be finite, of shape {samples.shape}; got {tuple(given.shape)}")
        return _described(model, given.detach().cpu(), "given", None, samples, settings)
    if not isinstance(given, Reference):
        raise TypeError(f"reference must be a tensor or an earlier Comparison; got {type(given).__name__}")
    here = _described(model, given.x, "", None, samples, settings)
    facts = {
        "model": here.fingerprint == given.fingerprint,
        "latents": here.latents.shape == given.latents.shape and torch.allclose(here.latents, given.latents, atol=1e-6),
        "cond": here.cond.keys() == given.cond.keys() and all(v.equal(given.cond[k]) for k, v in here.cond.items()),
        "guidance_scale": here.guidance_scale == given.guidance_scale,
        "clip_denoised": here.clip_denoised == given.clip_denoised,
    }
    wrong = [name for name, same in facts.items() if not same]
    if wrong:
        raise ValueError(f"the reference was solved for another {' and '.join(wrong)}: leave it out to solve anew")
    return given


def _described(
    model: Model,
    x: Tensor,
    how: str,
    difference: Tensor | None,
    samples: Samples,
    settings: tuple[AnyGuidance, AnyThreshold],
) -> Reference:
    [latents], _ = samples.latents(model, [model.range[1]], finest_dtype(model.device))
    cond = {k: v.cpu() for k, v in samples.cond.items()}
    return Reference(x, how, difference, latents.cpu(), cond, *settings, model.fingerprint())
