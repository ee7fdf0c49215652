"""Divergence: how fast the flow of the equation spreads its points, carried along as further coordinates of the state.

    y = (x, c_1 .. c_m),    dx / dsigma = eps,    dc_j / dsigma = v_j . (d eps / dx) v_j - d sigma / (1 + sigma^2)

d is the number of values of a sample, the v_j are its probes, with mean 0 and covariance I: each c_j is right on
average (Hutchinson). Exactly: one c, its sum taken over the unit vectors. What is subtracted is the divergence of data
that are N(0, I), whose c stays 0: what is left to integrate is small, and bounded up to sigma = infinity.

To a solver y is a state as any other, of shape (d + m,): it knows nothing of densities. The probes are a condition, so
that they follow their samples through chunks and per-sample steps, the same along the whole trajectory.

References:
    Grathwohl et al. 2019, FFJORD, arXiv:1810.01367, equations 3 and 8. Song et al. 2021, arXiv:2011.13456, D.2.
    Hutchinson 1990, A stochastic estimator of the trace of the influence matrix (Rademacher probes).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from odesampler.drive import Eps
from odesampler.model import Model
from odesampler.noise import Streams
from odesampler.program import column

PROBES = "divergence_probes"  # the condition that holds them
KINDS = ("rademacher", "gaussian")


@dataclass(frozen=True, eq=False)
class Spreading:
    """eps and the slopes of the c_j, as the eps of the longer state; asks about graphs, and leaves none behind."""

    eps: Eps
    shape: tuple[int, ...]  # of one sample

    @property
    def width(self) -> int:
        """Rows of the network for one sample."""
        return getattr(self.eps, "width", 1)

    @property
    def base(self) -> Model | None:
        """The model under all that wraps it; None: a plain function."""
        return getattr(self.eps, "base", None)

    def __call__(self, y: Tensor, sigma: float | Tensor, **cond: Tensor) -> Tensor:
        """dy / dsigma at `y` (batch, d + m); without probes m is 1, and the divergence exact."""
        probes = cond.pop(PROBES, None)
        d = math.prod(self.shape)
        with torch.enable_grad():
            flat = y[:, :d].detach().requires_grad_()
            eps = self.eps(flat.reshape(-1, *self.shape), sigma, **cond).flatten(1)
            spread = _trace(eps, flat) if probes is None else _along(eps, flat, probes)
        s = column(sigma, y)
        return torch.cat([eps.detach(), spread - (d * s / (1 + s**2)).to(y.dtype)], 1)


def draw_probes(streams: Streams, like: Tensor, num: int, kind: str) -> Tensor:
    """`num` probes a sample for points `like` (batch, d): (batch, num, d)."""
    drawn = streams.draw(like[:, None].expand(-1, num, -1))
    return drawn if kind == "gaussian" else torch.where(drawn < 0, -1.0, 1.0).to(drawn.dtype)


def followed(model: Model) -> Model:
    """`model`, whose network is refused where it answers without a graph: its divergence would be taken for 0."""
    return replace(model, network=_Followed(model.network, model.name))


def _trace(eps: Tensor, flat: Tensor) -> Tensor:
    """The divergence of `eps` (batch, d), (batch, 1): one pass back through the network for each value.

    In a loop: batched by vmap they took half as long again on a CPU, and not every network can be.
    """
    last = flat.shape[1] - 1
    parts = [_back(eps[:, i].sum(), flat, None, i < last)[:, i] for i in range(last + 1)]
    return torch.stack(parts).sum(0)[:, None]


def _along(eps: Tensor, flat: Tensor, probes: Tensor) -> Tensor:
    """v . (d eps / dx) v for each probe v, (batch, m): one pass back for each."""
    last = probes.shape[1] - 1
    parts = [(_back(eps, flat, v, i < last) * v).sum(1) for i, v in enumerate(probes.unbind(1))]
    return torch.stack(parts, 1)


def _back(out: Tensor, at: Tensor, weights: Tensor | None, keep: bool) -> Tensor:
    return torch.autograd.grad(out, at, weights, retain_graph=keep)[0]


class _Followed(nn.Module):
    """A network that is looked after: see `followed`."""

    def __init__(self, network: Any, name: str) -> None:
        super().__init__()
        self.network, self.name = network, name

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        out: Tensor = self.network(x_t, t, **cond)
        if isinstance(out, Tensor) and not out.requires_grad:
            raise ValueError(
                f"{self.name} answers without a graph back to x, as under torch.no_grad or inference_mode: a "
                "likelihood needs the derivatives of the network; give Model a network that can be differentiated"
            )
        return out
