"""k-diffusion's convention, both ways: denoised = model(x, sigma, **extra_args).

    x = x_t / alpha,     sigma = std / alpha,     denoised = x - sigma * eps(x, sigma)

Its x and sigma are ours, with no clock beside them: schedule VE, prediction "denoised". ComfyUI asks flow models in the
same form, but about x_t = (1 - u) x0 + u noise, and u, from 0 to 1, stands where sigma does: that is `flow=True` here.

References:
    Karras et al. 2022, Elucidating the Design Space, arXiv:2206.00364: the denoiser D(x; sigma), and equation 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from odesampler.adapters.kdiffusion_samplers import Sampler as Sampler
from odesampler.adapters.kdiffusion_samplers import sampler as sampler
from odesampler.grid import check_num_steps
from odesampler.guidance import AnyGuidance, guided, usual_guidance
from odesampler.inputs import checked_batch, checked_cond, checked_model
from odesampler.model import Model
from odesampler.precision import finest_dtype
from odesampler.schedule import VE, RectifiedFlow
from odesampler.threshold import AnyThreshold, thresholded

AnyDenoiser: TypeAlias = Callable[..., Tensor]  # model(x, sigma, **extra_args) -> denoised; sigma (batch,)
SLACK = 1e-5  # by how much a float32 sigma may lie beyond the ends, relatively


def from_denoiser(
    denoiser: AnyDenoiser,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    data_shape: tuple[int, ...] | None = None,
    extra_args: Mapping[str, Any] | None = None,
    flow: bool = False,
    **options: Any,
) -> Model:
    """A model of k-diffusion's convention as one of ours.

    Args:
        denoiser: Called as `denoiser(x, sigma, **cond)`: x (batch, *shape) in units of sigma, sigma (batch,). Returns
            the denoised image.
        sigma_min: The least sigma at which it may be asked, with `flow` the least u; by default its attribute of this
            name, which k-diffusion's wrappers of a table of noise levels have.
        sigma_max: The greatest, likewise.
        data_shape: Shape of one sample, (channels, height, width), if known.
        extra_args: What every call is given besides, as it is: what is not one value a sample, such as ComfyUI's
            `model_options`.
        flow: It is a flow model's, asked about x_t at u.
        options: As for `Model`: name, null_cond, labels, dtype, ...

    Raises:
        TypeError: Nothing to call.
        ValueError: A range that is missing, or no range.

    Examples:
        >>> def normal(x, sigma):  # the denoiser of N(0, 1)
        ...     return x / (1 + sigma[:, None] ** 2)
        >>> model = ods.adapters.kdiffusion.from_denoiser(normal, sigma_min=0.01, sigma_max=80.0, data_shape=(2,))
        >>> model(torch.ones(1, 2), 1.0).tolist()  # eps = (x - denoised) / sigma
        [[0.5, 0.5]]
    """
    if not callable(denoiser):
        raise TypeError(f"a denoiser is called as denoiser(x, sigma, **extra_args); got {denoiser!r}")
    low = _end(denoiser, "sigma_min", sigma_min, 1e-3 if flow else None)
    high = _end(denoiser, "sigma_max", sigma_max, 1.0 if flow else None)
    if not (0 < low < high < math.inf) or (flow and high > 1):
        raise ValueError(
            f"sigma_min and sigma_max must satisfy 0 < sigma_min < sigma_max, {'up to 1' if flow else 'finite'}; "
            f"got sigma_min={low:g}, sigma_max={high:g}"
        )
    network = _With(denoiser, dict(extra_args)) if extra_args else denoiser
    schedule = RectifiedFlow(u_min=low) if flow else VE(low, high)
    top = RectifiedFlow().sigma(torch.tensor(high, dtype=torch.float64)).item() if flow else high
    given = {"name": "denoiser", "data_shape": data_shape, **options}
    return Model(network, schedule, "denoised", sigma_max=top, **given)


def to_denoiser(
    model: Model,
    *,
    cond: Mapping[str, Any] | None = None,
    guidance_scale: AnyGuidance | None = None,
    clip_denoised: AnyThreshold = None,
    flow: bool = False,
) -> Denoiser:
    """One of our models for samplers of k-diffusion's kind.

    Args:
        model: The model.
        cond: Conditions, as for `ods.sample`. Those in a sampler's `extra_args` replace those of the same name.
        guidance_scale: As for `ods.sample`. The rows with and without conditions go through the network in one call.
        clip_denoised: As for `ods.sample`.
        flow: Be asked as ComfyUI asks flow models, about x_t at u; for `RectifiedFlow` models only.

    Raises:
        TypeError: Not a Model.
        ValueError: The model starts at sigma = infinity, where x_t / alpha is no number; or guidance or conditions that
            this model cannot be given.

    Examples:
        >>> denoiser = ods.adapters.kdiffusion.to_denoiser(ods.exact.Gaussian(torch.zeros(2), 1.0).model())
        >>> half = denoiser(torch.ones(1, 2), torch.tensor([1.0]))  # x / (1 + sigma^2)
        >>> half.allclose(torch.full((1, 2), 0.5))
        True
    """
    return Denoiser(model, cond, usual_guidance(checked_model(model), guidance_scale), clip_denoised, flow)


class Denoiser(nn.Module):
    """A model of ours in k-diffusion's convention; see `to_denoiser`.

    Has what k-diffusion's wrappers have: `inner_model`, `sigma_min`, `sigma_max`, `sigma_to_t`, `t_to_sigma`,
    `get_sigmas`.
    """

    def __init__(
        self,
        model: Model,
        cond: Mapping[str, Any] | None,
        guidance_scale: AnyGuidance,
        clip_denoised: AnyThreshold,
        flow: bool,
    ) -> None:
        super().__init__()
        low, high = model.range
        if flow and not isinstance(model.schedule, RectifiedFlow):
            raise ValueError(
                f"flow=True is for models with the schedule RectifiedFlow; that of {model.name} is {model.schedule!r}"
            )
        if math.isinf(high) and not flow:
            raise ValueError(
                f"{model.name} starts at sigma = infinity (alpha = 0), where x = x_t / alpha is no number: "
                "give it a finite end, dataclasses.replace(model, sigma_max=1000.0), or for a flow model flow=True"
            )
        if model.null_cond:
            checked_cond(model, {k: v for k, v in (cond or {}).items() if k not in model.null_cond}, 1)
        self.inner_model = model.network
        self.model, self.flow, self._cond = model, flow, dict(cond or {})
        self._eps = thresholded(guided(model, guidance_scale), clip_denoised)
        self.sigma_min, self.sigma_max = (1 / (1 + 1 / s) if flow else s for s in (low, high))

    def forward(self, x: Tensor, sigma: Tensor | float, **extra_args: Any) -> Tensor:
        """The denoised image (batch, *shape), in the dtype of x.

        Args:
            x: (batch, *shape), in units of sigma; x_t with `flow`.
            sigma: One, or (batch,).
            extra_args: Conditions.

        Raises:
            ValueError: A sigma outside the model's range: no network is asked there.
        """
        checked_batch(self.model, x, "x")
        at = torch.as_tensor(sigma, device=x.device).flatten().to(finest_dtype(x.device)).expand(len(x))
        low, high = self.sigma_min, self.sigma_max
        outside = ~((at >= low * (1 - SLACK)) & (at <= high * (1 + SLACK)))  # NaN is outside too
        if bool(outside.any()):
            raise ValueError(
                f"{self.model.name} was asked at sigma = {at[outside][0].item():g}, outside its range "
                f"[{low:g}, {high:g}]: no network is asked there; k-diffusion's s_churn does so on the first step"
            )
        cond = checked_cond(self.model, {**self._cond, **extra_args}, len(x))
        at = at.clamp(low, high)
        ours = at / (1 - at) if self.flow else at
        column = ours.reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)
        pure_noise = column.isinf()
        finite = torch.where(pure_noise, 0, column)
        x = x * (1 + finite) if self.flow else x
        answer = self._eps(x, ours, **cond)  # at infinity x is x_t, and the answer is the image
        return torch.where(pure_noise, answer, x - finite * answer)

    def sigma_to_t(self, sigma: Tensor) -> Tensor:
        """The network's clock at `sigma`, elementwise; never rounded to the table."""
        at = sigma.to(finest_dtype(sigma.device))
        return self.model.schedule.t(at / (1 - at) if self.flow else at).to(sigma.dtype)

    def t_to_sigma(self, t: Tensor) -> Tensor:
        """`sigma` at the network's clock, elementwise: float32, or float64 for a float64 t."""
        at = self.model.schedule.sigma(t.to(finest_dtype(t.device)))
        at = 1 / (1 + 1 / at) if self.flow else at
        return at.to(torch.promote_types(t.dtype, torch.float32))

    def get_sigmas(self, n: int) -> Tensor:
        """(n + 1,) falling sigmas, float32 on the model's device: n at even distances on the clock, then 0."""
        check_num_steps(n)
        low, high = (self.model.schedule.t(torch.tensor(s, dtype=torch.float64)).item() for s in self.model.range)
        at = self.t_to_sigma(torch.linspace(high, low, n, dtype=torch.float64))
        return torch.cat([at, at.new_zeros(1)]).to(self.model.device, torch.float32)


class _With(nn.Module):
    """A denoiser that is given the same arguments with every call."""

    def __init__(self, denoiser: AnyDenoiser, extra_args: dict[str, Any]) -> None:
        super().__init__()
        self.denoiser, self.extra_args = denoiser, extra_args

    def odesampler_traits(self) -> Any:
        """What tells it from others with the same weights."""
        return self.denoiser, self.extra_args

    def forward(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        return self.denoiser(x, sigma, **{**self.extra_args, **cond})


def _end(denoiser: AnyDenoiser, name: str, given: float | None, otherwise: float | None) -> float:
    """An end of the range of a denoiser: given, or its attribute `name`, a number or a tensor of one."""
    found = getattr(denoiser, name, otherwise) if given is None else given
    if found is None:
        raise ValueError(
            f"{type(denoiser).__name__} has no attribute {name}: say in which range of sigma it was trained, "
            "from_denoiser(denoiser, sigma_min=..., sigma_max=...)"
        )
    try:
        return float(found)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} of {type(denoiser).__name__} must be a number; got {found!r}") from error
