"""Model: a network in the equation's variables, eps(x, sigma).

    x_t = alpha * x,    out = network(x_t, t(sigma), **cond),    eps = what `out` says about the noise

The only place that knows the model's clock, its scale, its prediction type, its dtype and guidance. It never sees a
solver. Guidance is eps_u + scale * (eps_c - eps_u), the conditional and unconditional rows in one call of the network.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from odesampler import prediction as predictions
from odesampler.precision import finest_dtype
from odesampler.prediction import Prediction
from odesampler.schedule import Schedule

Cond: TypeAlias = Mapping[str, Tensor]  # model inputs beside x and sigma, each (batch, ...)


@dataclass(frozen=True, eq=False)
class Model:
    """A network as eps(x, sigma, **cond).

    Args:
        network: Called as `network(x_t, t, **cond)`: x_t (batch, *shape) in the network's dtype, t (batch,) the model's
            clock. Returns (batch, *shape).
        schedule: The noise schedule that it was trained with.
        prediction: What it puts out: "eps", "denoised", "v" or "flow".
        sigma_min, sigma_max: The range in which it may be asked; the schedule's by default.
        data_shape: Shape of one sample, (channels, height, width), if known: lets `sample` start from noise.
        null_cond: What to give for each condition to mean "none", one value without a batch dimension. Missing
            conditions are filled with it, and guidance needs it.
        round_t: Give the network the nearest integer `t` (int64), as diffusers does. By default t is continuous.
        clip_denoised: Clamp the predicted image to [-clip, clip]. Puts a floor under the round trip; None is off.
        dtype: The dtype the network is called with; that of its parameters by default, else that of the state.
        autocast: Run the network under torch.autocast with this dtype.
        name: For reports and recipes.
        labels: Names of the classes, where `cond` has a "label".

    Raises:
        TypeError: A network that cannot be called, or no schedule.
        ValueError: An unknown prediction, or a range that the schedule does not cover.
    """

    network: Callable[..., Tensor]
    schedule: Schedule
    prediction: Prediction = "eps"
    sigma_min: float | None = None
    sigma_max: float | None = None
    data_shape: tuple[int, ...] | None = None
    null_cond: Mapping[str, Any] = field(default_factory=dict)
    round_t: bool = False
    clip_denoised: float | None = None
    dtype: torch.dtype | None = None
    autocast: torch.dtype | None = None
    name: str = "model"
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not callable(self.network) or not isinstance(self.schedule, Schedule):
            raise TypeError(
                "Model takes a network to call and a schedule such as ods.VP.linear(); "
                f"got {type(self.network).__name__} and {self.schedule!r}"
            )
        predictions.check(self.prediction)
        low, high = self.range
        top = self.schedule.sigma_max
        if not (0 < low < high <= top):
            raise ValueError(
                f"sigma_min and sigma_max must satisfy 0 < sigma_min < sigma_max <= {top:g}, the schedule's largest; "
                f"got sigma_min={low:g}, sigma_max={high:g}"
            )
        if self.prediction == "eps" and math.isinf(high):
            raise ValueError(
                "an eps-network says nothing about the image at sigma = infinity (alpha = 0), where this schedule "
                "starts; use a v, flow or denoised network, or give a finite sigma_max"
            )
        if self.clip_denoised is not None and not self.clip_denoised > 0:
            raise ValueError(f"clip_denoised must be positive, or None for off; got {self.clip_denoised}")

    @property
    def range(self) -> tuple[float, float]:
        """(sigma_min, sigma_max): outside it no network is asked."""
        low = self.schedule.sigma_min if self.sigma_min is None else self.sigma_min
        return low, self.schedule.sigma_max if self.sigma_max is None else self.sigma_max

    @property
    def device(self) -> torch.device:
        """Where the network's parameters are; the CPU for a plain function."""
        tensor = next(self._tensors(), None)
        return torch.device("cpu") if tensor is None else tensor.device

    def to(self, device: str | torch.device) -> Model:
        """This model with its network on `device` (the network itself is moved, as torch does)."""
        if isinstance(self.network, nn.Module):
            self.network.to(device)
        return self

    def __call__(self, x: Tensor, sigma: float | Tensor, **cond: Tensor) -> Tensor:
        """Predicted noise at `x` (batch, *shape), `sigma` (a number, or one a sample, (batch,)): dx/dsigma.

        At sigma = infinity `x` is x_t itself, its eps is known without asking, and the answer is the denoised image.

        Raises:
            ValueError: The network's answer has not the shape of its question.
        """
        alpha, std, t = self._scales(x, sigma)
        pure_noise = alpha == 0  # sigma = infinity: for the batch, or sample by sample
        x_t = _either(pure_noise, x, alpha * x)
        out = self._ask(x_t, t, cond)
        if self.clip_denoised is None and not math.isinf(self.range[1]):  # what nearly every model asks for
            return predictions.to_eps(self.prediction, out, x_t, alpha, std)
        denoised = self._clip(predictions.to_denoised(self.prediction, out, x_t, alpha, std))
        if self.clip_denoised is None:
            eps = predictions.to_eps(self.prediction, out, x_t, alpha, std)
        else:
            eps = predictions.to_eps("denoised", denoised, x_t, alpha, std)
        return _either(pure_noise, denoised, eps)

    def guided(self, scale: float) -> Guided | Model:
        """This model under classifier-free guidance; itself for scale 1, which is off.

        Raises:
            ValueError: The model has no null condition to guide away from.
        """
        if scale == 1:
            return self
        if not self.null_cond:
            raise ValueError(
                f"guidance_scale={scale} needs a model with a null condition (Model(null_cond=...)); "
                f"{self.name} has none, so only guidance_scale=1 (off) is possible"
            )
        return Guided(self, scale)

    def clipped(self, clip_denoised: float | None) -> Model:
        """This model with its predicted image clamped to [-clip, clip], or not."""
        return self if clip_denoised == self.clip_denoised else replace(self, clip_denoised=clip_denoised)

    def nothing(self, batch: int) -> dict[str, Tensor]:
        """The null conditions for `batch` samples."""
        values = {k: torch.as_tensor(v, device=self.device) for k, v in self.null_cond.items()}
        return {k: v.expand(batch, *v.shape) for k, v in values.items()}

    def fingerprint(self) -> str:
        """A short hash of schedule, prediction, range and weights, by which a latent knows its model.

        Of each weight a few hundred evenly spaced values are read: two checkpoints differ in nearly all of them. Of
        code only the names are known, and the byte code of a plain function: keep weights in a torch module.
        """
        digest = hashlib.sha256()
        facts = [self.schedule.describe(), self.prediction, self.range, self.data_shape, self.round_t]
        digest.update(json.dumps(facts, default=str).encode())
        if isinstance(self.network, nn.Module):
            for name, tensor in self.network.state_dict().items():
                flat = tensor.detach().flatten()
                values = flat[:: max(1, len(flat) // 256)].to("cpu", torch.float64)
                digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode() + values.numpy().tobytes())
        else:
            code = getattr(self.network, "__code__", None)
            digest.update(b"" if code is None else code.co_code + repr(code.co_consts).split(" at 0x")[0].encode())
        kind = self.network if hasattr(self.network, "__qualname__") else type(self.network)
        digest.update(f"{kind.__module__}.{kind.__qualname__}".encode())
        return digest.hexdigest()[:16]

    def _ask(self, x_t: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        dtype = self.dtype or self._parameter_dtype() or x_t.dtype
        clock = t.round().long() if self.round_t else t.to(torch.promote_types(dtype, torch.float32))
        missing = {} if cond.keys() >= self.null_cond.keys() else self.nothing(len(x_t))
        casting = torch.autocast(x_t.device.type, self.autocast) if self.autocast else nullcontext()
        with casting:
            out = self.network(x_t.to(dtype), clock, **{**missing, **cond})
        if not isinstance(out, Tensor):
            raise TypeError(f"{self.name} answered with {type(out).__name__}; a network must answer with a tensor")
        if out.shape != x_t.shape:
            raise ValueError(
                f"{self.name} was asked at sigma = {self.schedule.sigma(t[:1]).item():g} with x of shape "
                f"{tuple(x_t.shape)} and answered with {tuple(out.shape)}; "
                "a network must answer in the shape of its question (drop a learned variance first)"
            )
        return out.to(x_t.dtype)

    def _scales(self, x: Tensor, sigma: float | Tensor) -> tuple[float | Tensor, float | Tensor, Tensor]:
        """alpha, std (numbers, or broadcasting against x in its dtype) and t (batch,)."""
        if not isinstance(sigma, Tensor):
            alpha, std, t = _levels(self.schedule, sigma)
            return alpha, std, torch.full((len(x),), t, dtype=finest_dtype(x.device), device=x.device)
        s = sigma.to(finest_dtype(sigma.device)).flatten()
        shape = (-1,) + (1,) * (x.ndim - 1)
        alphas, stds = (f(s).to(x.device, x.dtype).reshape(shape) for f in (self.schedule.alpha, self.schedule.std))
        return alphas, stds, self.schedule.t(s).to(x.device)

    def _clip(self, denoised: Tensor) -> Tensor:
        return denoised if self.clip_denoised is None else denoised.clamp(-self.clip_denoised, self.clip_denoised)

    def _parameter_dtype(self) -> torch.dtype | None:
        return next((p.dtype for p in self._tensors() if p.is_floating_point()), None)

    def _tensors(self) -> Iterator[Tensor]:
        if isinstance(self.network, nn.Module):
            yield from self.network.parameters()
            yield from self.network.buffers()


@dataclass(frozen=True, eq=False)
class Guided:
    """A model under classifier-free guidance, eps_u + scale * (eps_c - eps_u). Ho & Salimans 2022, arXiv:2207.12598.

    At sigma = infinity the same combination is taken of the denoised images, in which it is linear too.
    """

    model: Model
    scale: float
    width: int = 2  # rows of the network for one sample

    def __call__(self, x: Tensor, sigma: float | Tensor, **cond: Tensor) -> Tensor:
        """Guided noise; arguments as for `Model.__call__`."""
        null = self.model.nothing(len(x))
        both = {k: torch.cat([cond.get(k, null[k]), null[k]]) for k in null}
        both |= {k: torch.cat([v, v]) for k, v in cond.items() if k not in null}
        sigmas = torch.cat([sigma, sigma]) if isinstance(sigma, Tensor) else sigma
        conditional, unconditional = self.model(torch.cat([x, x]), sigmas, **both).chunk(2)
        return unconditional + self.scale * (conditional - unconditional)


def _either(first: bool | Tensor, a: Tensor, b: Tensor) -> Tensor:
    if isinstance(first, Tensor):
        return torch.where(first, a, b)
    return a if first else b


@lru_cache(maxsize=8192)
def _levels(schedule: Schedule, sigma: float) -> tuple[float, float, float]:
    """(alpha, std, t) at one sigma, on the host: the same few sigmas come back at every call."""
    at = torch.tensor(sigma, dtype=torch.float64)
    return schedule.alpha(at).item(), schedule.std(at).item(), schedule.t(at).item()
