"""Predictions: what a network's output means.

    x_t = alpha * x0 + std * noise,     v = alpha * noise - std * x0,     flow = noise - x0

Each formula below solves these for the predicted noise (`to_eps`) or image (`to_denoised`) by the denominator that does
not vanish, so that they hold at any alpha and std, 0 included, wherever the output determines the answer at all.
Knows nothing of schedules or networks.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from torch import Tensor

Prediction: TypeAlias = Literal["eps", "denoised", "v", "flow"]
PREDICTIONS: tuple[str, ...] = get_args(Prediction)
Scale: TypeAlias = "float | Tensor"  # a number, or a tensor that broadcasts against x_t


def check(prediction: str) -> None:
    """Raises: ValueError: `prediction` is not one of `PREDICTIONS`."""
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}; got {prediction!r}")


def to_eps(prediction: Prediction, out: Tensor, x_t: Tensor, alpha: Scale, std: Scale) -> Tensor:
    """The predicted noise, from a network's output `out` at `x_t`; both (batch, *shape). Needs std > 0."""
    if prediction == "eps":
        return out
    if prediction == "denoised":
        return (x_t - alpha * out) / std
    if prediction == "v":
        return (alpha * out + std * x_t) / (alpha**2 + std**2)
    return (x_t + alpha * out) / (alpha + std)


def to_denoised(prediction: Prediction, out: Tensor, x_t: Tensor, alpha: Scale, std: Scale) -> Tensor:
    """The predicted clean image, likewise. From eps it needs alpha > 0: pure noise says nothing of the image."""
    if prediction == "eps":
        return (x_t - std * out) / alpha
    if prediction == "denoised":
        return out
    if prediction == "v":
        return (alpha * x_t - std * out) / (alpha**2 + std**2)
    return (x_t - std * out) / (alpha + std)


def from_eps(prediction: Prediction, eps: Tensor, denoised: Tensor, alpha: Scale, std: Scale) -> Tensor:
    """What a network of that prediction would put out: the inverse of the two above."""
    if prediction == "eps":
        return eps
    if prediction == "denoised":
        return denoised
    if prediction == "v":
        return alpha * eps - std * denoised
    return eps - denoised
