"""Weights: what each known value of g counts in a step, x1 = carried * x0 + sum_j weights_j g_j.

    exact      weights_j = scale1 * integral from s0 to s1 of density * L_j(u)
    bh1, bh2   UniPC's: a line through two points counts as at one place in the step; through more, exact
    dpm        DPM-Solver's: two points as bh2; through three, half of the curvature
    equal      the classical Adams weights, as if all steps had one length

L_j are the basis polynomials, in a variable u(sigma), of the `points` at which g is known (newest first). On a fixed
grid weights are numbers, computed in float64 on the host; where each sample has its own sigma, tensors.

References:
    Zhao et al. 2023, UniPC, arXiv:2302.04867, Algorithms 1 and 2 (B(h) is h in bh1, e^h - 1 in bh2; from three points
    on it cancels). Lu et al. 2022, DPM-Solver++, arXiv:2211.01095, Algorithm 2; its authors' code for three points.
    Liu et al. 2022, Pseudo Numerical Methods, arXiv:2202.09778 (equal).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from odesampler.frames import Frame, Variable, log, plus, times
from odesampler.program import Sigma

Points: TypeAlias = Sequence[Sigma]
Weights: TypeAlias = "list[Any]"  # one a point: a number, or a tensor that broadcasts against x
LEAST = 0.05  # of sums of weights by which to divide: twenty times the rounding at most
Rule: TypeAlias = Callable[[Frame, Variable, Sigma, Sigma, Points], Weights]

# One step over all of sigma = 157 .. 0.01 is right to 1e-11.
_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(64)


def exact(frame: Frame, u: Variable, s0: Sigma, s1: Sigma, points: Points) -> Weights:
    """The polynomial through `points`, integrated by Gauss-Legendre in log sigma: to rounding, but for huge steps.

    Into sigma = 0 in sigma itself, for frames and variables that are finite there.
    """
    if len(points) == 1:
        return [frame.total(s0, s1)]
    x, w = _quadrature(s0)
    start, stop = _last_axis(s0), _last_axis(s1)
    if isinstance(s1, Tensor) or s1 > 0:
        sigma = start * (stop / start) ** x
        w = w * log(stop / start) * sigma
    else:
        sigma, w = start * (1 - x), -w * start
    w = w * frame.scale(stop) * frame.density(sigma)
    return [(w * basis).sum(-1) for basis in _basis(u(sigma), [u(_last_axis(p)) for p in points])]


def bh1(frame: Frame, u: Variable, s0: Sigma, s1: Sigma, points: Points) -> Weights:
    """Two points: the slope counts as much as if the integrand had its final size all along."""
    if len(points) != 2:
        return exact(frame, u, s0, s1, points)
    final = frame.scale(s1) * frame.density(s1) * s1 * log(s1 / s0)
    return _at(final / frame.total(s0, s1) / 2, frame, u, s0, s1, points)


def bh2(frame: Frame, u: Variable, s0: Sigma, s1: Sigma, points: Points) -> Weights:
    """Two points: the line's value in the middle of the step, where u is half-way."""
    return _at(0.5, frame, u, s0, s1, points) if len(points) == 2 else exact(frame, u, s0, s1, points)


def dpm(frame: Frame, u: Variable, s0: Sigma, s1: Sigma, points: Points) -> Weights:
    """As bh2, but of the curvature through three points only half, as their authors' code has it."""
    weights = bh2(frame, u, s0, s1, points)
    if len(points) != 3:
        return weights
    at = [(u(p) - u(s0)) / (u(s1) - u(s0)) for p in points]
    curvature = [1 / math.prod([one - other for other in at if other is not one]) for one in at]  # of u^2
    counts = sum(w * one**2 for w, one in zip(weights, at, strict=True))  # the integral of u^2
    return [w - counts / 2 * c for w, c in zip(weights, curvature, strict=True)]


def equal(frame: Frame, u: Variable, s0: Sigma, s1: Sigma, points: Points) -> Weights:
    """Adams-Bashforth's weights, or Adams-Moulton's where the newest point is the end of the step."""
    x, w = _quadrature(1.0)
    newest = 1.0 if points[0] is s1 else 0.0
    basis = _basis(x, [newest - j for j in range(len(points))])
    return [frame.total(s0, s1) * float((w * b).sum()) for b in basis]


RULES: dict[str, Rule] = {"exact": exact, "bh1": bh1, "bh2": bh2, "dpm": dpm, "equal": equal}


def combined(carried: Any, x: Tensor, weights: Weights, g: Sequence[Tensor]) -> Tensor:
    """carried * x + sum_j weights_j g_j over as many g as there are weights, one operation a term that counts.

    Where all weights sum to 1, as in the data and flow frames, what is summed so far is kept divided by its weights, so
    that x need not be scaled first: one operation less.
    """
    counting = [(w, one) for w, one in zip(weights, g, strict=False) if isinstance(w, Tensor) or w != 0]
    sums = [] if isinstance(carried, Tensor) else [*accumulate((w for w, _ in counting), initial=float(carried))]
    numbers = bool(sums) and not any(isinstance(s, Tensor) for s in sums)
    alike = all(one.dtype == x.dtype for _, one in counting)  # the only ones that torch.lerp takes
    if numbers and alike and abs(sums[-1] - 1) < 1e-12 and min(sums) > LEAST:
        for (weight, one), so_far in zip(counting, sums[1:], strict=True):
            x = torch.lerp(x, one, float(weight / so_far))
        return x
    total = x if not isinstance(carried, Tensor) and carried == 1 else times(carried, x)
    for weight, one in counting:
        total = plus(total, weight, one)
    return total


def _at(place: Any, frame: Frame, u: Variable, s0: Sigma, s1: Sigma, points: Points) -> Weights:
    """The polynomial's value at one place for all of the step; `place` 0 is its start, 1 its end."""
    at = u(s0) + place * (u(s1) - u(s0))
    return [frame.total(s0, s1) * basis for basis in _basis(at, [u(p) for p in points])]


def _basis(u: Any, known: Sequence[Any]) -> list[Any]:
    """The basis polynomials of the nodes `known`, at `u`."""
    return [
        math.prod([(u - other) / (one - other) for k, other in enumerate(known) if k != j])
        for j, one in enumerate(known)
    ]


def _quadrature(like: Sigma) -> tuple[Any, Any]:
    """Nodes and weights on 0 .. 1."""
    nodes, weights = (_NODES + 1) / 2, _NODE_WEIGHTS / 2
    if not isinstance(like, Tensor):
        return nodes, weights
    return tuple(torch.tensor(v, dtype=like.dtype, device=like.device) for v in (nodes, weights))  # type: ignore[return-value]


def _last_axis(sigma: Sigma) -> Any:
    """Room for the nodes, behind the axes of the samples."""
    return sigma[..., None] if isinstance(sigma, Tensor) else np.float64(sigma)
