"""Models in closed form: the truth that solvers are tested against.

    p0 = sum_k w_k N(m_k, v_k I)   =>   eps(x, sigma) = sigma * sum_k r_k(x, sigma) (x - m_k) / (v_k + sigma^2)

with r_k the posterior weights of the components at noise level sigma. One Gaussian has its whole trajectory in closed
form, x(s1) = m + (x(s0) - m) sqrt((v + s1^2) / (v + s0^2)). Points are (batch, *shape), computed in the dtype of x.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from odesampler import prediction as predictions
from odesampler.model import Model
from odesampler.prediction import Prediction
from odesampler.schedule import VP, Schedule


class Distribution(nn.Module, ABC):
    """Data whose eps is known exactly.

    Examples:
        >>> ring = ods.exact.GaussianMixture.ring()
        >>> x, eps, flow = torch.ones(1, 2), ring.model(), ring.model(ods.RectifiedFlow(), "flow")
        >>> eps(x, 0.5).allclose(flow(x, 0.5), atol=1e-4)  # whatever a network puts out, eps is the same
        True
    """

    shape: tuple[int, ...]  # of one sample

    @abstractmethod
    def eps(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Exact dx/dsigma at `x` (batch, *shape), `sigma` (a number, or (batch,))."""

    @abstractmethod
    def sample(self, num_samples: int, seed: int = 0) -> Tensor:
        """Data, (num_samples, *shape), float64."""

    def forward(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """As `eps`, so that a distribution can stand where a model is called."""
        return self.eps(x, sigma)

    def model(self, schedule: Schedule | None = None, prediction: Prediction = "eps", **options: Any) -> Model:
        """A `Model` whose network is exact, in any family and prediction; `options` as for `Model`.

        By default the table of DDPM, `VP.linear()`, and eps.
        """
        schedule = VP.linear() if schedule is None else schedule
        network = _ExactNetwork(self, schedule, prediction)
        options = {"name": f"exact {type(self).__name__}", "data_shape": self.shape, **options}
        return Model(network, schedule, prediction, **options)


class GaussianMixture(Distribution):
    """Isotropic Gaussians, sum_k w_k N(m_k, v_k I).

    Args:
        means: (k, *shape).
        variances: (k,) or a number; 0 makes a component a point.
        weights: (k,), positive; equal by default.

    Examples:
        >>> ring = ods.exact.GaussianMixture.ring(components=8, radius=1.0, std=0.1)
        >>> tuple(ring.sample(5).shape)
        (5, 2)
        >>> radius = ods.sample(ring.model(), 4, num_steps=20).x.norm(dim=1)
        >>> bool(((radius - 1).abs() < 0.5).all())
        True
    """

    means: Tensor
    variances: Tensor
    log_weights: Tensor

    def __init__(self, means: Tensor, variances: Tensor | float, weights: Tensor | None = None) -> None:
        super().__init__()
        k = len(means)
        weights = torch.ones(k) if weights is None else weights
        self.shape = tuple(means.shape[1:])
        self.register_buffer("means", means.double())
        self.register_buffer("variances", torch.as_tensor(variances, dtype=torch.float64).expand(k).clone())
        self.register_buffer("log_weights", (weights.double() / weights.double().sum()).log())

    @classmethod
    def ring(cls, components: int = 8, radius: float = 1.0, std: float = 0.1) -> GaussianMixture:
        """Gaussians on a circle in the plane."""
        angle = torch.arange(components, dtype=torch.float64) * 2 * torch.pi / components
        return cls(radius * torch.stack([angle.cos(), angle.sin()], 1), std**2)

    def eps(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        means, variances, log_weights = (v.to(x.dtype) for v in (self.means, self.variances, self.log_weights))
        flat, centres = x.flatten(1), means.flatten(1)
        s = sigma.to(x.dtype).reshape(-1, 1) if isinstance(sigma, Tensor) else torch.full_like(flat[:, :1], sigma)
        total = variances + s**2  # (batch, k)
        away = flat[:, None, :] - centres  # (batch, k, d)
        logits = log_weights - away.square().sum(-1) / total / 2 - flat.shape[1] / 2 * total.log()
        pull = logits.softmax(-1) / total
        return (pull[..., None] * away).sum(1).mul(s).reshape(x.shape)

    def sample(self, num_samples: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        which = torch.multinomial(self.log_weights.cpu().exp(), num_samples, replacement=True, generator=generator)
        noise = torch.randn((num_samples, *self.shape), generator=generator, dtype=torch.float64)
        std = self.variances.cpu()[which].sqrt().reshape(-1, *[1] * len(self.shape))
        return self.means.cpu()[which] + std * noise


class Gaussian(GaussianMixture):
    """One isotropic Gaussian N(m, v I): its trajectories are known in closed form.

    Args:
        mean: (*shape).
        variance: Of every coordinate.

    Examples:
        >>> normal = ods.exact.Gaussian(torch.zeros(2), 4.0)
        >>> x = torch.tensor([[3.0, 1.0]])
        >>> round(normal.trajectory(x, 0.0, 1.5)[0, 0].item(), 6)  # 3 sqrt((4 + 1.5^2) / 4)
        3.75
    """

    def __init__(self, mean: Tensor, variance: float) -> None:
        super().__init__(mean[None], variance)

    def trajectory(self, x: Tensor, s0: float, s1: float) -> Tensor:
        """Where the point `x` (batch, *shape) at sigma `s0` is at `s1`, exactly."""
        mean, variance = self.means[0].to(x.dtype), self.variances[0].item()
        growth = math.sqrt((variance + s1**2) / (variance + s0**2))
        return mean + (x - mean) * growth


class Empirical(GaussianMixture):
    """The data themselves, each smeared by a Gaussian of standard deviation `bandwidth`.

    What a network would learn that memorised its training set.

    Args:
        data: (n, *shape).
        bandwidth: 0 or more.

    Examples:
        >>> data = ods.held_out("digits").images[:20]
        >>> found = ods.sample(ods.exact.Empirical(data).model(), 1, num_steps=40).x
        >>> bool((data - found).abs().flatten(1).amax(1).min() < 0.05)  # a copy of one of them
        True
    """

    def __init__(self, data: Tensor, bandwidth: float = 0.0) -> None:
        super().__init__(data, bandwidth**2)


class _ExactNetwork(nn.Module):
    """What a perfectly trained network of this schedule and prediction would put out at (x_t, t)."""

    def __init__(self, distribution: Distribution, schedule: Schedule, prediction: Prediction) -> None:
        super().__init__()
        self.distribution, self.schedule, self.prediction = distribution, schedule, prediction

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        sigma = self.schedule.sigma(t.double())
        column = sigma.reshape(-1, *[1] * (x_t.ndim - 1))
        pure_noise = torch.isinf(column)
        alpha, std = (f(column).to(x_t.dtype) for f in (self.schedule.alpha, self.schedule.std))
        finite = torch.where(pure_noise, 1.0, column)
        x = x_t / torch.where(pure_noise, 1.0, alpha)
        eps = torch.where(pure_noise, x_t, self.distribution(x, finite.flatten()))
        denoised = torch.where(pure_noise, self._mean(x_t), x - finite.to(x.dtype) * eps)
        return predictions.from_eps(self.prediction, eps, denoised, alpha, std)

    def _mean(self, like: Tensor) -> Tensor:
        """The mean of the data: the best guess when nothing but noise is seen."""
        far = torch.zeros((1, *like.shape[1:]), dtype=torch.float64, device=like.device)
        huge = 1e8  # at such noise every component weighs what it weighs a priori
        mean: Tensor = far - huge * self.distribution(far, huge)
        return mean.to(like.dtype).expand_as(like)
