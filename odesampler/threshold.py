"""Thresholds: a bound on the predicted image, and on that alone.

    denoised = x - sigma * eps,     eps' = eps + (denoised - bounded(denoised)) / sigma

    by a number c:      bounded(d) = min(max(d, -c), c)
    dynamic:            bounded(d) = min(max(d, -s), s) / s,    s = max(1, quantile of |d| over each sample)

It wraps what answers with eps, guided or not, so that the guided image is bounded, as in Imagen and diffusers.

References:
    Saharia et al. 2022 (Imagen), arXiv:2205.11487, section 2.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from odesampler.precision import is_number


@dataclass(frozen=True)
class DynamicThreshold:
    """A bound that follows the pixels of each image, wherever a verb takes `clip_denoised`. For data in [-1, 1].

    Args:
        percentile: Of the absolute values of an image's pixels, as a fraction: what lies beyond it is clamped, and the
            whole image divided by it, if it is above 1.
        largest: The most that an image is divided by: `sample_max_value` of diffusers, where it is 1 by default, which
            is a clamp to [-1, 1]. Imagen has no such limit.

    Raises:
        TypeError: Not numbers.
        ValueError: A percentile outside (0, 1], as those in percent are, or a largest below 1.

    Examples:
        >>> threshold = ods.DynamicThreshold(percentile=1.0)
        >>> threshold.bounded(torch.tensor([[-4.0, 2.0], [-0.5, 0.25]])).tolist()  # only the first is too bright
        [[-1.0, 0.5], [-0.5, 0.25]]
        >>> found = ods.sample(ods.load("digits"), 2, clip_denoised=threshold, num_steps=5)
        >>> bool(found.x.abs().max() <= 1)
        True
    """

    percentile: float = 0.995
    largest: float = math.inf

    def __post_init__(self) -> None:
        for value in (self.percentile, self.largest):
            if not is_number(value):
                raise TypeError(f"percentile and largest of a DynamicThreshold are numbers; got {value!r}")
        if not 0 < self.percentile <= 1:
            raise ValueError(f"percentile is a fraction above 0, up to 1, such as 0.995; got {self.percentile}")
        if not self.largest >= 1:
            raise ValueError(f"largest must be 1 or more, since data lie in [-1, 1]; got {self.largest}")
        object.__setattr__(self, "percentile", float(self.percentile))
        object.__setattr__(self, "largest", float(self.largest))

    def bounded(self, denoised: Tensor) -> Tensor:
        """`denoised` (batch, *shape) brought into [-1, 1], each image by its own s."""
        sizes = denoised.abs().flatten(1)
        sizes = sizes.to(torch.promote_types(sizes.dtype, torch.float32))  # no quantiles in half precision
        s = sizes.quantile(self.percentile, dim=1).clamp(1, self.largest).to(denoised.dtype)
        return (denoised / s.reshape(-1, *[1] * (denoised.ndim - 1))).clamp(-1, 1)


AnyThreshold: TypeAlias = "float | DynamicThreshold | None"


@dataclass(frozen=True, eq=False)
class Thresholded:
    """A model whose predicted image is bounded."""

    model: Callable[..., Tensor]  # eps(x, sigma, **cond): a Model, a Guided, or any function of that form
    threshold: float | DynamicThreshold

    @property
    def width(self) -> int:
        """Rows of the network for one sample."""
        return getattr(self.model, "width", 1)

    @property
    def base(self) -> Any:
        """The model under all that wraps it; None: a plain function."""
        return getattr(self.model, "base", None)

    def width_at(self, sigma: float | Tensor) -> int:
        """Rows for one sample at `sigma`."""
        inner = getattr(self.model, "width_at", None)
        return self.width if inner is None else inner(sigma)

    def __call__(self, x: Tensor, sigma: float | Tensor, /, *told: float | Tensor, **cond: Any) -> Tensor:
        """Noise that points at the bounded image; arguments as for `Model.__call__`.

        At sigma = infinity the model answers with the image, and so does this.
        """
        answer = self.model(x, sigma, *told, **cond)
        if not isinstance(sigma, Tensor):
            if math.isinf(sigma):
                return self.bounded(answer)
            denoised = x - sigma * answer
            return answer + (denoised - self.bounded(denoised)) / sigma  # where nothing is cut off, to the last bit eps
        s = sigma.to(x.device, x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        pure_noise = s.isinf()
        s = torch.where(pure_noise, 1.0, s)
        denoised = torch.where(pure_noise, answer, x - s * answer)
        bounded = self.bounded(denoised)
        return torch.where(pure_noise, bounded, answer + (denoised - bounded) / s)

    def bounded(self, denoised: Tensor) -> Tensor:
        """`denoised` (batch, *shape) within the threshold."""
        if isinstance(self.threshold, DynamicThreshold):
            return self.threshold.bounded(denoised)
        return denoised.clamp(-self.threshold, self.threshold)


def thresholded(model: Callable[..., Tensor], threshold: AnyThreshold) -> Callable[..., Tensor]:
    """`model` with its predicted image bounded; itself for None, which is off.

    Raises:
        TypeError: Neither a number nor a DynamicThreshold nor None.
        ValueError: A number that is not positive.
    """
    wanted = checked_threshold(threshold)
    return model if wanted is None else Thresholded(model, wanted)


def checked_threshold(threshold: AnyThreshold) -> AnyThreshold:
    """`threshold` itself. Raises as above."""
    if threshold is None or isinstance(threshold, DynamicThreshold):
        return threshold
    if not is_number(threshold):
        raise TypeError(f"clip_denoised must be a number, an ods.DynamicThreshold, or None; got {threshold!r}")
    if not threshold > 0:
        raise ValueError(f"clip_denoised must be positive, or None for off; got {threshold}")
    return float(threshold)
