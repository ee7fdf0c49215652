"""The error of decoding, from the defects of its steps along the path of the encoding.

    e_i = z_i - y_i,   z_N = y_N            decoding z, encoding y
    d_i = step(y_{i+1}) - y_i               defect: what one step down misses

No d_i waits for another. They are added up by sweeps, each of which takes all steps again, in one go, from where
decoding is thought to be by then:

    e_i' = step(y_{i+1} + e_{i+1}) - y_i + m_i (e'_{i+1} - e_{i+1})
    m_i  = <step(y_{i+1} + e_{i+1}) - step(y_{i+1}), e_{i+1}> / <e_{i+1}, e_{i+1}>

in which only numbers, no networks, go from step to step: m_i, one for each sample, says how much a step magnifies what
arrives at it. N sweeps are decoding itself, few suffice, but for solvers that remember many points.

References:
    Hairer, Norsett, Wanner 1993, Solving Ordinary Differential Equations I, II.3 (local errors, and how they add up).
    Lions, Maday, Turinici 2001, A "parareal" in time discretization (sweeps with a cheap propagator).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from odesampler.analysis.windows import Windows
from odesampler.drive import Tally

SETTLED = 0.2  # a sweep that changes the error by a smaller part is the last: the next would change far less


class Accumulated(NamedTuple):
    """What the defects of the steps add up to."""

    defects: list[Tensor]  # d_i, (batch, *shape) each, in the equation's scale, for all sigmas but the last
    error: Tensor  # e_0, (batch, *shape)
    gains: Tensor  # (steps, batch) float64: m_i, by how much a step magnifies the error that arrives at it
    changed: Tensor  # (batch,) by what part of itself the last sweep changed the error; NaN: none did
    sweeps: int


def accumulated(windows: Windows, most: int, tally: Tally) -> Accumulated:
    """The error of decoding in at most `most` sweeps; infinite answers, far off the path, end them."""
    ends = windows.landed(tally)
    defects = [end - y for end, y in zip(ends, windows.x[:-1], strict=True)]
    batch = len(defects[0])
    units = [math.hypot(1, s) if math.isfinite(s) else 1.0 for s in windows.sigmas]
    gains = [defects[0].new_full((batch,), low / high) for low, high in pairwise(units)]
    nothing = torch.zeros_like(windows.x[-1])
    nowhere = [nothing] * len(windows.x)
    error, sweeps = _swept(defects, nowhere[:-1], nowhere, gains), 0
    changed = torch.full((batch,), math.nan, dtype=torch.float64, device=nothing.device)
    while sweeps < most and not bool((changed < SETTLED).all()):
        there = replace(windows, x=tuple(y + e for y, e in zip(windows.x, error, strict=True)))
        try:
            carried = [after - end for after, end in zip(there.landed(tally), ends, strict=True)]
        except FloatingPointError:
            changed = torch.full_like(changed, math.inf)
            break
        sweeps += 1
        gains = [_gain(after, before) for after, before in zip(carried, error[1:], strict=True)]
        before, error = error, _swept(defects, carried, error, gains)
        changed = _norm(error[0] - before[0]) / _norm(error[0]).clamp(min=torch.finfo(torch.float64).tiny)
    return Accumulated(defects, error[0], torch.stack(gains).double().cpu(), changed.cpu(), sweeps)


def _swept(
    defects: Sequence[Tensor], carried: Sequence[Tensor], before: Sequence[Tensor], gains: Sequence[Tensor]
) -> list[Tensor]:
    """One sweep from the last point to the first."""
    error = [torch.zeros_like(before[-1])]
    for d, c, e, m in zip(*(reversed(v) for v in (defects, carried, before[1:], gains)), strict=True):
        error.append(d + c + m.to(d.dtype).reshape(-1, *[1] * (d.ndim - 1)) * (error[-1] - e))
    return error[::-1]


def _gain(after: Tensor, before: Tensor) -> Tensor:
    a, b = (v.double().flatten(1) for v in (after, before))
    length = b.square().sum(1)
    return torch.where(length > 0, (a * b).sum(1) / length.where(length > 0, 1.0), 0.0)


def _norm(x: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(x.double().flatten(1), dim=1)
    return length
