"""A network's own terms, as a reading of its scheduler has them: its clock, its scale, and what its output means.

x_t = alpha x = alpha x0 + std noise,      EDM: told log(sigma) / 4, shown c_in x_t, denoised = c_skip x_t + c_out out
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from odesampler import prediction
from odesampler.adapters.diffusers.schedules import Reading
from odesampler.adapters.edm_scales import edm_scales
from odesampler.threshold import thresholded


def t_of(reading: Reading, sigma: Tensor) -> Tensor:
    """What the network is told at `sigma`, elementwise, float64."""
    return reading.schedule.t(sigma) if reading.preconditioning is None else sigma.log() / 4


def sigma_of(reading: Reading, t: Tensor) -> Tensor:
    """The sigma at which the network is told `t`, elementwise, float64."""
    return reading.schedule.sigma(t) if reading.preconditioning is None else (4 * t).exp()


def input_scale(reading: Reading, sigma: float) -> float:
    """What the network is shown at `sigma`, in units of x_t: c_in."""
    return 1.0 if reading.preconditioning is None else edm_scales(sigma, reading.preconditioning.data)[2]


def eps_of(reading: Reading, out: Tensor, x: Tensor, sigma: float) -> Tensor:
    """The predicted noise, of what the network said about `x`, (batch, *shape) both; the image at sigma = infinity."""
    at = torch.tensor(sigma, dtype=torch.float64)
    alpha, std = reading.schedule.alpha(at).item(), reading.schedule.std(at).item()
    if (edm := reading.preconditioning) is not None:
        skip, around, _ = edm_scales(sigma, edm.data)
        out = skip * x + edm.sign * around * out
    to = prediction.to_denoised if math.isinf(sigma) else prediction.to_eps
    eps = to(reading.prediction, out, reading.schedule.to_model_scale(x, sigma), alpha, std)
    return thresholded(lambda x, sigma: eps, reading.clip_denoised)(x, sigma)


def said(config: Any, out: Tensor, sample: Tensor) -> Tensor:
    """What the network said, (batch, *shape), without a learned variance.

    Raises:
        ValueError: Not of the shape of `sample`, about which it was said.
    """
    learned = (config.variance_type or "").startswith("learned")
    if learned and out.ndim == sample.ndim and out.ndim > 1 and out.shape[1] == 2 * sample.shape[1]:
        out = out.chunk(2, dim=1)[0]
    if out.shape != sample.shape:
        raise ValueError(
            f"model_output must have the shape of sample, {tuple(sample.shape)}; got {tuple(out.shape)} (a learned "
            "variance is dropped where the config says variance_type='learned' or 'learned_range')"
        )
    return out
