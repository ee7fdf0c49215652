"""Schedules: the change of variables between a model's scale and clock and the equation's.

    x_t = alpha * x0 + std * noise,      x = x_t / alpha,      sigma = std / alpha

A schedule knows alpha and std at any sigma, and the model's clock `t` at any sigma and back. All functions take and
return float64 tensors of any shape, elementwise. It knows nothing of networks, grids or solvers.

Where alpha = 0 (flow models at t = 1, tables of zero terminal SNR) sigma is infinite: never clamped. There `x` means
`x_t`, the one point that both scales can name.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from odesampler.precision import finest_dtype


@dataclass(frozen=True)
class Schedule(ABC):
    """The change of variables of one family of models.

    Examples:
        >>> round(ods.VP.linear().from_model_scale(torch.ones(1), 1.0).item(), 3)  # x_t / alpha at sigma = 1
        1.414
    """

    @property
    @abstractmethod
    def sigma_min(self) -> float:
        """The least sigma at which a network of this family is asked, unless the model says otherwise."""

    @property
    @abstractmethod
    def sigma_max(self) -> float:
        """The greatest; may be infinite."""

    @abstractmethod
    def alpha(self, sigma: Tensor) -> Tensor:
        """Signal scale at `sigma`."""

    @abstractmethod
    def std(self, sigma: Tensor) -> Tensor:
        """Noise standard deviation in the model's scale; alpha * sigma, but right at sigma = infinity too."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Sigma at the model's clock `t`; rises with t."""

    @abstractmethod
    def t(self, sigma: Tensor) -> Tensor:
        """The model's clock at `sigma`, the inverse of `Schedule.sigma`."""

    def to_model_scale(self, x: Tensor, sigma: float) -> Tensor:
        """`x_t` for the point `x` (batch, *shape) at `sigma`."""
        return x if math.isinf(sigma) else x * self.alpha(_scalar(sigma)).item()

    def from_model_scale(self, x_t: Tensor, sigma: float) -> Tensor:
        """`x` for the point `x_t` (batch, *shape) at `sigma`."""
        return x_t if math.isinf(sigma) else x_t / self.alpha(_scalar(sigma)).item()

    def latent_scale(self, sigma: float) -> float:
        """Standard deviation of x_t at `sigma` for data of unit variance: what to multiply N(0, 1) noise by."""
        at = _scalar(sigma)
        return math.hypot(self.alpha(at).item(), self.std(at).item())

    def describe(self) -> dict[str, Any]:
        """Family and parameters, as JSON can hold them."""
        return {"family": type(self).__name__, **asdict(self)}


class _VariancePreserving(Schedule):
    """alpha^2 + std^2 = 1."""

    def alpha(self, sigma: Tensor) -> Tensor:
        return (1 + sigma**2) ** -0.5

    def std(self, sigma: Tensor) -> Tensor:
        return (1 + sigma**-2) ** -0.5


@dataclass(frozen=True, repr=False)
class VP(_VariancePreserving):
    """Variance preserving, from a table: alpha^2 + std^2 = 1, alpha^2 = alpha_bar[t] at t = 0 .. T - 1 (DDPM, Stable
    Diffusion, any beta table).

    Between the table's entries, log sigma is linear in t. If the last entry is 0 (zero terminal SNR), 1 / sigma is
    linear over the last interval instead, where log sigma is infinite at one end.

    Examples:
        >>> schedule, t = ods.VP.linear(), torch.tensor([0.0, 500.5, 999.0], dtype=torch.float64)
        >>> [round(s, 2) for s in schedule.sigma(t).tolist()], schedule.with_zero_snr().sigma_max
        ([0.01, 3.45, 157.41], inf)

    References:
        Ho et al. 2020, Denoising Diffusion Probabilistic Models, arXiv:2006.11239.
        Lin et al. 2023, Common Diffusion Noise Schedules and Sample Steps Are Flawed, arXiv:2305.08891 (zero SNR).
    """

    alpha_bar: tuple[float, ...]  # (T,) signal power at the integer clock, falling

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha_bar", table := _one_of_each(tuple(float(a) for a in self.alpha_bar)))
        if len(table) < 2 or not all(a > b for a, b in pairwise(table)) or not (table[0] < 1 and table[-1] >= 0):
            raise ValueError(
                f"alpha_bar must fall strictly from below 1 to 0 or above, over at least 2 entries; got {_brief(table)}"
            )
        if len(table) == 2 and table[-1] == 0:
            raise ValueError(f"alpha_bar needs two entries above 0 to interpolate between; got {_brief(table)}")

    def __repr__(self) -> str:
        return f"VP({_brief(self.alpha_bar)})"

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Taken once: of a thousand numbers it costs more than the rest of a step, and each evaluation looks it up."""
        return hash(self.alpha_bar)

    @classmethod
    def from_betas(cls, betas: Sequence[float] | Tensor) -> VP:
        """From DDPM's beta table: alpha_bar = cumulative product of 1 - beta, in float64."""
        betas = torch.as_tensor(betas, dtype=torch.float64)
        if betas.ndim != 1 or not bool(((betas > 0) & (betas <= 1)).all()):
            raise ValueError(f"betas must be one row of numbers in (0, 1]; got {_brief(betas.flatten().tolist())}")
        return cls(tuple(torch.cumprod(1 - betas, 0).tolist()))

    @classmethod
    def linear(cls, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> VP:
        """DDPM's: betas linear in t."""
        return cls.from_betas(torch.linspace(beta_start, beta_end, steps, dtype=torch.float64))

    @classmethod
    def scaled_linear(cls, steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> VP:
        """Stable Diffusion's: the square root of beta linear in t."""
        return cls.from_betas(torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64) ** 2)

    @classmethod
    def cosine(cls, steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> VP:
        """Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17, with their cap on beta."""
        u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        power = torch.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
        return cls.from_betas((1 - power[1:] / power[:-1]).clamp(max=max_beta))

    def with_zero_snr(self) -> VP:
        """This table, its alpha shifted and scaled to end at 0. Lin et al. 2023, arXiv:2305.08891, Algorithm 1."""
        alpha = torch.tensor(self.alpha_bar, dtype=torch.float64).sqrt()
        rescaled = ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2
        return VP((*rescaled[:-1].tolist(), 0.0))

    @cached_property
    def _table(self) -> Tensor:
        """(T,) sigma at the integer clock."""
        alpha_bar = torch.tensor(self.alpha_bar, dtype=torch.float64)
        return ((1 - alpha_bar) / alpha_bar).sqrt()

    @cached_property
    def _finite(self) -> int:
        """How many entries of the table are finite: all, or all but the last."""
        return len(self.alpha_bar) - (self.alpha_bar[-1] == 0)

    @cached_property
    def _log_tables(self) -> dict[torch.device, Tensor]:
        return {}

    def _log_table(self, device: torch.device) -> Tensor:
        """The finite entries of log sigma on `device`, moved there once: a copy at every evaluation would wait."""
        if device not in self._log_tables:
            self._log_tables[device] = self._table[: self._finite].log().to(device, finest_dtype(device))
        return self._log_tables[device]

    @property
    def sigma_min(self) -> float:
        return self._table[0].item()

    @property
    def sigma_max(self) -> float:
        return self._table[-1].item()

    def sigma(self, t: Tensor) -> Tensor:
        table = self._log_table(t.device)
        low = t.floor().long().clamp(0, len(table) - 2)
        inside = torch.lerp(table[low], table[low + 1], (t - low).to(table.dtype)).exp()
        if self._finite == len(self.alpha_bar):
            return inside
        beyond = table[-1].exp() / (self._finite - t)  # sigma_last / (1 - u), u in (0, 1] along the last interval
        return torch.where(t > self._finite - 1, beyond, inside)

    def t(self, sigma: Tensor) -> Tensor:
        table = self._log_table(sigma.device)
        log_sigma = sigma.log()
        low = (torch.searchsorted(table, log_sigma) - 1).clamp(0, len(table) - 2)
        inside = low + (log_sigma - table[low]) / (table[low + 1] - table[low])
        if self._finite == len(self.alpha_bar):
            return inside
        return torch.where(log_sigma > table[-1], self._finite - table[-1].exp() / sigma, inside)


@dataclass(frozen=True)
class ContinuousVP(_VariancePreserving):
    """Variance preserving in continuous time, t in (0, 1]: alpha^2 = exp(-beta_min t - (beta_max - beta_min) t^2 / 2).

    Examples:
        >>> round(ods.ContinuousVP().sigma(torch.tensor(1.0)).item(), 1)  # sqrt(exp(0.1 + 19.9 / 2) - 1)
        152.2

    References:
        Song et al. 2021, Score-Based Generative Modeling through SDEs, arXiv:2011.13456, eq. 33.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3  # networks are trained down to about here

    @property
    def sigma_min(self) -> float:
        return self.sigma(_scalar(self.t_min)).item()

    @property
    def sigma_max(self) -> float:
        return self.sigma(_scalar(1.0)).item()

    def sigma(self, t: Tensor) -> Tensor:
        return torch.expm1(self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2).sqrt()

    def t(self, sigma: Tensor) -> Tensor:
        integral = torch.log1p(sigma**2)  # = beta_min t + (beta_max - beta_min) t^2 / 2; below its stable root
        root = (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral).sqrt()
        return 2 * integral / (self.beta_min + root)


@dataclass(frozen=True)
class VE(Schedule):
    """Variance exploding, as EDM writes it: alpha = 1, and the clock is sigma itself.

    Latents are then about N(0, sigma_max^2), not N(0, 1): they are in the model's own scale.

    Examples:
        >>> round(ods.VE(0.002, 80.0).latent_scale(80.0), 2)  # std of x_t there, for data of unit variance
        80.01

    References:
        Karras et al. 2022, Elucidating the Design Space, arXiv:2206.00364.
    """

    lowest: float = 0.002
    highest: float = 80.0

    @property
    def sigma_min(self) -> float:
        return self.lowest

    @property
    def sigma_max(self) -> float:
        return self.highest

    def alpha(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def std(self, sigma: Tensor) -> Tensor:
        return sigma

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def t(self, sigma: Tensor) -> Tensor:
        return sigma


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """Straight paths: alpha = 1 - u, std = u, u in [0, 1]; the model's clock is `clock_scale * u`. At u = 1 sigma is
    infinite.

    Examples:
        >>> ods.RectifiedFlow(clock_scale=1000).t(torch.tensor(1.0)).item(), ods.RectifiedFlow().sigma_max
        (500.0, inf)

    References:
        Liu et al. 2022, Flow Straight and Fast, arXiv:2209.03003; Lipman et al. 2022, Flow Matching, arXiv:2210.02747.
    """

    clock_scale: float = 1.0  # 1000 for networks that count as Stable Diffusion 3 and Flux do
    u_min: float = 1e-3

    @property
    def sigma_min(self) -> float:
        return self.u_min / (1 - self.u_min)

    @property
    def sigma_max(self) -> float:
        return math.inf

    def alpha(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + sigma)

    def std(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + 1 / sigma)  # not sigma / (1 + sigma), which is inf / inf where the model starts

    def sigma(self, t: Tensor) -> Tensor:
        return 1 / (self.clock_scale / t - 1)

    def t(self, sigma: Tensor) -> Tensor:
        return self.clock_scale * self.std(sigma)


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _brief(values: Sequence[float]) -> str:
    shown = ", ".join(f"{v:g}" for v in values[:3])
    return f"[{shown}, ..., {values[-1]:g}] ({len(values)} entries)" if len(values) > 4 else str(list(values))


@lru_cache(maxsize=256)
def _one_of_each(table: tuple[float, ...]) -> tuple[float, ...]:
    """`table`, or the equal one before it: to compare schedules, as look-ups do, is then to compare no numbers."""
    return table
