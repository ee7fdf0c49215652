"""Roots: points that a correction leaves where they are, sample by sample, as programs.

    f(w) = 0,    w + f(w) being a better guess than w

    fixed_point    w <- w + f
    anderson       w <- w + f - (dW + dF) g,    g = argmin |f - dF g|,    dW, dF the last `memory` differences
    newton         w <- w + t d,    |f + f' d| made small by GMRES,    f' v = (f(w + e v) - f(w)) / e

Every sample is searched for by itself: a batch is only a way to ask about many at once. A sample leaves when it is
found, when nothing gets better any more, or when its budget of corrections is spent; what is kept is the best point
seen. Knows neither models nor solvers.

References:
    Walker, Ni 2011, Anderson Acceleration for Fixed-Point Iterations, SIAM J. Numer. Anal. 49, 1715.
    Knoll, Keyes 2004, Jacobian-free Newton-Krylov methods, J. Comput. Phys. 193, 357.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from odesampler.combine import for_rows
from odesampler.precision import finest_dtype
from odesampler.program import Program

METHODS = ("anderson", "newton", "fixed_point")
PROBE = 1e-4  # size of a finite difference relative to the point: above the noise of a float32 network
FORCING = 0.03  # how far GMRES brings the linear residual down before it stops
KRYLOV = 20  # directions that it takes at most
PATIENCE = 6  # corrections in a row without progress after which a search has stalled
SHRINKS = (1.0, 0.25, 0.0625)  # of a Newton step that makes things worse

Correction: TypeAlias = Callable[[Tensor, Tensor, Tensor], Program[tuple[Tensor, Tensor]]]
"""Given points (n, *shape) of the samples `rows` (n,): f (n, *shape), and how much the points miss, (n,). The third
argument, (n,) bool, says of which samples f is wanted; of the others only what they miss."""


@dataclass(frozen=True)
class Search:
    """How to search."""

    method: str = "anderson"  # goes over to newton where it stalls
    memory: int = 5
    average: int = 0  # of how many late iterates the result is the mean, where a fixed point is not reached


class Found:
    """The best that is known of every sample. Changes while a search is under way."""

    def __init__(self, start: Tensor, tolerance: Tensor, limit: int) -> None:
        self.x = start.clone()  # (n, *shape)
        self.move = torch.zeros_like(start)  # f there
        self.defect = torch.full_like(tolerance, torch.inf)  # (n,) what it misses
        self.tolerance = tolerance  # (n,) what it may miss
        self.left = torch.full_like(tolerance, limit)  # (n,) corrections that may still be asked for

    @property
    def converged(self) -> Tensor:
        """(n,) bool."""
        return self.defect <= self.tolerance

    def ask(self, correction: Correction, w: Tensor, rows: Tensor) -> Program[tuple[Tensor, Tensor]]:
        """The correction of the samples `rows` at `w`, which is kept where nothing better is known."""
        f, missed = yield from for_rows(rows, correction(w, rows, self.left[rows] > 1))
        better = missed < self.defect[rows]  # never for NaN
        here = better.reshape(-1, *[1] * (w.ndim - 1))
        self.x[rows] = torch.where(here, w, self.x[rows])
        self.move[rows] = torch.where(here, f, self.move[rows])
        self.defect[rows] = torch.where(better, missed, self.defect[rows])
        self.left[rows] -= 1
        return f, missed

    def open(self, rows: Tensor) -> Tensor:
        """(n,) bool: which of `rows` are not found, and may be asked about again."""
        return ~self.converged[rows] & (self.left[rows] > 0)


def find_roots(correction: Correction, start: Tensor, tolerance: Tensor, limit: int, search: Search) -> Program[Found]:
    """Search from `start` (n, *shape) until every sample misses `tolerance` (n,) at most, with `limit` corrections."""
    found = Found(start, tolerance.to(start.dtype), limit)
    rows = torch.arange(len(start), device=start.device)
    if search.method == "newton":
        yield from found.ask(correction, start, rows)
    else:
        yield from _iterated(found, correction, rows, search)
    if search.method != "fixed_point":
        yield from _newton(found, correction, rows[found.open(rows) & found.defect.isfinite()])
    return found


def _iterated(found: Found, correction: Correction, rows: Tensor, search: Search) -> Program[None]:
    """Fixed-point or Anderson's iteration."""
    accelerated = search.method == "anderson"
    kept = search.memory + 1 if accelerated else search.average
    w, past = found.x[rows], list[tuple[Tensor, Tensor]]()
    mark, idle = torch.full_like(found.defect, torch.inf), torch.zeros_like(found.defect)
    enough = 0.5 if accelerated else 0.99  # the share that counts as progress: Newton may do better, nothing else
    while len(rows):
        f, missed = yield from found.ask(correction, w, rows)
        progress = missed <= enough * mark
        mark, idle = torch.where(progress, missed, mark), torch.where(progress, 0.0, idle + 1)
        lost = (idle >= PATIENCE) | ~(missed < 1e3 * found.defect[rows])
        past = [*past, (w, f)][-kept:] if kept else []
        going = found.open(rows) & ~lost
        if search.average:
            going &= found.left[rows] > 1  # the last is asked about the mean
        if search.average and len(past) == search.average:
            yield from _averaged(found, correction, rows, past, ~going & ~found.converged[rows])
        stay = torch.nonzero(going).flatten()  # the one wait for the device in a round
        if len(stay) < len(rows):
            rows, w, f, mark, idle = rows[stay], w[stay], f[stay], mark[stay], idle[stay]
            past = [(a[stay], b[stay]) for a, b in past]
        w = _mixed(past) if accelerated else w + f


def _averaged(
    found: Found, correction: Correction, rows: Tensor, past: list[tuple[Tensor, Tensor]], which: Tensor
) -> Program[None]:
    """End the search of `which` of the samples with the mean of their last iterates, whatever it misses."""
    mine = rows[which]
    if len(mine):
        mean = torch.stack([(w + f)[which] for w, f in past]).mean(0)
        found.defect[mine] = torch.inf
        yield from found.ask(correction, mean, mine)


def _mixed(past: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Anderson's next iterate, from (w, f) of the last ones, newest last."""
    w, f = past[-1]
    if len(past) < 2:
        return w + f
    flat = [(a.flatten(1).to(finest_dtype(w.device)), b.flatten(1).to(finest_dtype(w.device))) for a, b in past]
    dw, df = (torch.stack([b[i] - a[i] for a, b in pairwise(flat)], dim=2) for i in (0, 1))
    size = df.norm(dim=1, keepdim=True).clamp(min=torch.finfo(df.dtype).tiny)
    q, r = torch.linalg.qr(df / size)
    g = torch.linalg.pinv(r, rtol=1e-8) @ (q.mT @ flat[-1][1][:, :, None])
    mixed: Tensor = w + f - ((dw + df) / size @ g).reshape(w.shape).to(w.dtype)
    return mixed


def _newton(found: Found, correction: Correction, rows: Tensor) -> Program[None]:
    """Newton's method from the best that is known, until a step no longer makes it better."""
    while len(rows):
        base, before = found.x[rows], found.defect[rows]
        step = yield from _direction(found, correction, rows)
        trying = torch.nonzero(found.open(rows)).flatten()
        for shrink in SHRINKS:
            if len(trying) == 0:
                break
            mine = rows[trying]
            _, missed = yield from found.ask(correction, base[trying] + shrink * step[trying], mine)
            trying = trying[~(missed < before[trying]) & found.open(mine)]
        rows = rows[found.open(rows) & (found.defect[rows] < before)]


def _direction(found: Found, correction: Correction, rows: Tensor) -> Program[Tensor]:
    """d with f + f' d nearly 0, by GMRES without a matrix, at the best that is known of the samples `rows`."""
    x, exact = found.x[rows], finest_dtype(rows.device)
    w, f = (v.flatten(1).to(exact) for v in (x, found.move[rows]))
    tiny = torch.finfo(exact).tiny
    length = f.norm(dim=1)
    probe = (PROBE * w.norm(dim=1)).clamp(min=PROBE)[:, None]
    basis, y = [f / length.clamp(min=tiny)[:, None]], f.new_zeros(len(f), 0)
    table = f.new_zeros(len(f), 0, 0)  # Arnoldi's: f' basis = -basis table
    going = torch.nonzero(found.open(rows)).flatten()
    while len(going) and y.shape[1] < min(KRYLOV, w.shape[1]):
        k = y.shape[1]
        point = (w + probe * basis[k])[going].reshape(-1, *x.shape[1:]).to(x.dtype)
        moved, _ = yield from found.ask(correction, point, rows[going])
        image = ((f[going] - moved.flatten(1).to(exact)) / probe[going]).nan_to_num(0, 0, 0)  # no answer there
        column = f.new_zeros(len(f), k + 2)
        column[:, k + 1] = 1  # of samples that have left: their new direction counts 0
        for j, b in enumerate(basis):
            column[going, j] = (b[going] * image).sum(1)
            image = image - column[going, j, None] * b[going]
        column[going, k + 1] = image.norm(dim=1).clamp(min=tiny)
        table = torch.cat([torch.nn.functional.pad(table, (0, 0, 0, 1 if k else 2)), column[:, :, None]], 2)
        basis.append(torch.zeros_like(f).index_copy(0, going, image / column[going, k + 1, None]))
        goal = torch.nn.functional.pad(length[:, None, None], (0, 0, 0, k + 1))
        y = torch.linalg.lstsq(table, goal).solution[:, :, 0]
        off = (goal[:, :, 0] - (table @ y[:, :, None])[:, :, 0]).norm(dim=1)
        going = going[(off > FORCING * length)[going] & found.open(rows[going])]
    step = sum((y[:, j, None] * basis[j] for j in range(y.shape[1])), torch.zeros_like(w))
    return step.reshape(x.shape).to(x.dtype)
