"""Guidance: a model pushed away from what it says without conditions.

    guided = u + scale * (c - u)                                      classifier-free guidance
    guided * (rescale * std(c) / std(guided) + 1 - rescale)           each sample with the std of its own c, in part
    c                                                                 for sigma outside the interval

c and u are what the network puts out with and without conditions, asked in one call. Whether they are noise, images or
velocities is the same to the first line, whose weights sum to 1; to the second it is not.

References:
    Ho & Salimans 2022, arXiv:2207.12598, equation 6 (its w is scale - 1). Lin et al. 2023, arXiv:2305.08891,
    section 3.4, which rescales v (rescale). Kynkaanniemi et al. 2024, arXiv:2404.07724 (interval).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from odesampler.model import Cond, Model
from odesampler.precision import is_number


@dataclass(frozen=True)
class Guidance:
    """How to guide, wherever a verb takes `guidance_scale`.

    Args:
        scale: As in diffusers, u + scale * (c - u); 1 is off.
        rescale: From 0, off, to 1: how far the std of each guided prediction is brought back to that of the conditional
            one. It is taken of what the network puts out, eps, v or other, as `guidance_rescale` of diffusers does.
        interval: (low, high), ends included: guide where sigma = std / alpha lies in it. Elsewhere only the conditions
            are asked about, which on a fixed grid saves half of the rows. The equation jumps at the ends, so adaptive
            solvers take small steps there.

    Raises:
        TypeError: Not numbers, or not a pair.
        ValueError: A scale that is not finite, a rescale outside [0, 1], an interval that is none.

    Examples:
        >>> conditional, unconditional = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]])
        >>> ods.Guidance(3.0).combined(conditional, unconditional).tolist()
        [[4.0, 0.0]]
        >>> ods.Guidance(3.0, rescale=1.0).combined(conditional, unconditional).tolist()  # with the std of conditional
        [[2.0, 0.0]]
        >>> how = ods.Guidance(3.0, rescale=0.7, interval=(0.3, 5.0))
        >>> ods.sample(ods.load("digits"), 2, cond={"label": 3}, guidance_scale=how, num_steps=10).nfe.tolist()
        [10, 10]
    """

    scale: float
    rescale: float = 0.0
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not is_number(self.scale):
            raise TypeError(f"guidance_scale must be a number, or an ods.Guidance; got {self.scale!r}")
        if not math.isfinite(self.scale):
            raise ValueError(f"guidance_scale must be a finite number, 1 for off; got {self.scale}")
        if not is_number(self.rescale):
            raise TypeError(f"rescale must be a number from 0 (off) to 1; got {self.rescale!r}")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale must be from 0 (off) to 1; got {self.rescale}")
        object.__setattr__(self, "scale", float(self.scale))
        object.__setattr__(self, "rescale", float(self.rescale))
        if self.interval is not None:
            object.__setattr__(self, "interval", _pair(self.interval))

    def combined(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """The guided prediction, of the two without it; all (batch, *shape). Knows nothing of the interval."""
        guided = unconditional + self.scale * (conditional - unconditional)
        if self.rescale == 0:
            return guided
        wanted, found = (_spread(prediction) for prediction in (conditional, guided))
        ratio = torch.where(found > 0, wanted / found, 1.0)  # a prediction that is constant has no std to bring back
        return guided * (self.rescale * ratio + (1 - self.rescale))


AnyGuidance: TypeAlias = "float | Guidance"


@dataclass(frozen=True, eq=False)
class Guided:
    """A model under guidance. At sigma = infinity it is the denoised images that are guided, as the model answers."""

    model: Model
    guidance: Guidance
    width: int = 2  # rows of the network for one sample

    @property
    def base(self) -> Model:
        """The model under all that wraps it."""
        return self.model

    def width_at(self, sigma: float | Tensor) -> int:
        """Rows for one sample there: one where all are outside the interval, which can be told of a number only."""
        low, high = self.guidance.interval or (0.0, math.inf)
        return self.width if isinstance(sigma, Tensor) or low <= sigma <= high else 1

    def __call__(
        self, x: Tensor, sigma: float | Tensor, told: float | Tensor | None = None, /, **cond: Tensor
    ) -> Tensor:
        """Guided noise; arguments as for `Model.__call__`. Whether to guide is decided by `sigma`."""
        return self.away_from(self.model.nothing(len(x)), x, sigma, cond, told)

    def away_from(
        self, null: Cond, x: Tensor, sigma: float | Tensor, cond: Cond, told: float | Tensor | None = None
    ) -> Tensor:
        """As a call, with null conditions `null`, each (batch, ...), in place of the model's own."""
        model, interval = self.model, self.guidance.interval
        if self.width_at(sigma) == 1:
            return model(x, sigma, told, **cond)
        place = model.place(x, sigma, told)
        null = {**null, **{k: v for k, v in cond.items() if k not in model.null_cond}}  # told on both sides
        check_sides(null, cond)
        both = {k: torch.cat([cond.get(k, null[k]), null[k]]) for k in null}
        out = model.ask(
            torch.cat([place.x_t] * 2), torch.cat([place.t] * 2) if isinstance(place.t, Tensor) else place.t, both
        )
        conditional, unconditional = out.chunk(2)
        guided = self.guidance.combined(conditional, unconditional)
        if isinstance(sigma, Tensor) and interval is not None:
            low, high = interval
            # Selected after asking: to ask only about those inside, their number would have to come from the device.
            inside = ((sigma >= low) & (sigma <= high)).to(x.device).reshape(-1, *[1] * (x.ndim - 1))
            guided = torch.where(inside, guided, conditional)
        return model.eps(guided, place)


def guided(model: Model, guidance: AnyGuidance) -> Model | Guided:
    """`model` under `guidance`; itself where the scale is 1, which is off.

    Raises:
        TypeError: Neither a number nor a Guidance.
        ValueError: The model has no null condition to guide away from, or is never asked inside the interval.
    """
    wanted = guidance if isinstance(guidance, Guidance) else Guidance(guidance)
    if wanted.scale == 1:
        return model
    if not model.null_cond:
        raise ValueError(
            f"guidance_scale={wanted.scale:g} needs a model with a null condition (Model(null_cond=...)); "
            f"{model.name} has none, so only guidance_scale=1 (off) is possible"
        )
    lowest, highest = model.range
    low, high = wanted.interval or (lowest, highest)
    if high < lowest or low > highest:
        raise ValueError(
            f"the guidance interval [{low:g}, {high:g}] is in sigma = std / alpha, and {model.name} is asked in "
            f"[{lowest:g}, {highest:g}] only, so it would have no effect: leave guidance out"
        )
    return Guided(model, wanted)


def check_sides(null: Cond, cond: Cond) -> None:
    """Raises: ValueError: a condition and the null condition that it is guided away from have not one shape."""
    for key, value in null.items():
        if key in cond and cond[key].shape[1:] != value.shape[1:]:
            raise ValueError(
                f"guidance asks with and without the condition {key!r} in one call, so both must have one shape: a "
                f"sample's is {tuple(cond[key].shape[1:])}, the model's null condition {tuple(value.shape[1:])}"
            )


def usual_guidance(model: Any, guidance: AnyGuidance | None) -> AnyGuidance:
    """`guidance`; where it is None what the model usually takes, so that prompts come with their scale."""
    return getattr(model, "guidance_scale", 1.0) if guidance is None else guidance


def warn_of_nothing_to_guide_to(model: Model, cond: Mapping[str, Any] | None, *guidance: AnyGuidance) -> None:
    """Warns of guidance without a condition, where both predictions are one. Called by the verb that a user calls."""
    scales = [g.scale if isinstance(g, Guidance) else g for g in guidance]
    on = [f"{scale:g}" for scale in scales if scale != 1]
    if on and not cond and not model.cond:
        given = ", ".join(f"{key!r}: ..." for key in model.null_cond)
        warnings.warn(
            f"guidance_scale={', '.join(on)} has no effect: no condition is given, so there is nothing to guide "
            f"towards; give cond={{{given}}}",
            stacklevel=3,
        )


def rows_a_sample(model: Model, guidance: AnyGuidance) -> int:
    """Rows of the network for one sample. Raises as `guided`."""
    return getattr(guided(model, guidance), "width", 1)


def checked_guidance(guidance: AnyGuidance) -> AnyGuidance:
    """`guidance`, as a number where it is no more than a scale: so that equal ones compare equal. Raises as above."""
    wanted = guidance if isinstance(guidance, Guidance) else Guidance(guidance)
    return wanted.scale if wanted == Guidance(wanted.scale) else wanted


def _spread(prediction: Tensor) -> Tensor:
    """Standard deviation of each sample, (batch, 1, ...)."""
    return prediction.std(dim=tuple(range(1, prediction.ndim)), keepdim=True, correction=0)


def _pair(interval: Sequence[float]) -> tuple[float, float]:
    if not isinstance(interval, Sequence) or len(interval) != 2 or not all(map(is_number, interval)):
        raise TypeError(f"a guidance interval is a pair of sigmas, (low, high); got {interval!r}")
    low, high = map(float, interval)
    if not 0 <= low < high:
        raise ValueError(f"a guidance interval must satisfy 0 <= low < high, in sigma; got ({low:g}, {high:g})")
    return low, high
