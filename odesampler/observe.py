"""Observers: told about every accepted step, they watch a solve and change nothing.

An observer is called as `observe(step, sigma, x, rows)`: the step's number from 1, the sigma reached, x there in the
equation's scale, and which samples it is about (None: all).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from odesampler.program import Observer, Sigma
from odesampler.schedule import Schedule


@dataclass(frozen=True)
class Trajectory:
    """A solve on a fixed grid, step by step.

    Examples:
        >>> model = ods.exact.GaussianMixture.ring().model()
        >>> found = ods.sample(model, 3, num_steps=5, trajectory=True)
        >>> seen = found.trajectory
        >>> len(seen), tuple(seen.x_t.shape), seen.sigmas[-1]
        (6, (6, 3, 2), 0.0)
        >>> seen.x_t[-1].equal(found.x)
        True
    """

    sigmas: tuple[float, ...]  # (num_steps + 1,)
    x_t: Tensor  # (num_steps + 1, batch, *shape), in the model's own scale

    def __len__(self) -> int:
        return len(self.sigmas)


class Recorder:
    """Keeps x at every sigma of a fixed grid, on the CPU."""

    def __init__(self, x: Tensor, sigma: float) -> None:
        self._seen: list[tuple[float, Tensor]] = [(sigma, x.detach().cpu())]

    def __call__(self, step: int, sigma: Sigma, x: Tensor, rows: Tensor | None) -> None:
        assert not isinstance(sigma, Tensor)  # recorded on fixed grids only; the verbs see to that
        self._seen.append((sigma, x.detach().cpu()))

    def trajectory(self, schedule: Schedule) -> Trajectory:
        """What was seen, in the model's own scale."""
        points = [schedule.to_model_scale(x, sigma) for sigma, x in self._seen]
        return Trajectory(tuple(sigma for sigma, _ in self._seen), torch.stack(points))


class Progress:
    """A progress bar: steps done on a fixed grid, samples arrived in an adaptive solve. Use as a context manager.

    Args:
        total: Steps, or samples where the loop chooses its own steps.
        show: False makes it silent.
        what: What is being done, in front of the bar.
        counts_samples: Whether `total` counts samples.
    """

    def __init__(self, total: int, *, show: bool, what: str = "", counts_samples: bool = False) -> None:
        self._total, self._show, self._what, self._counts_samples = total, show, what, counts_samples
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if self._show:
            from tqdm.auto import tqdm  # imported when used: the import is light, the notebook version is not

            unit = "sample" if self._counts_samples else "step"
            self._bar = tqdm(total=self._total, desc=self._what or None, unit=unit, leave=False)
        return self

    def __call__(self, step: int, sigma: Sigma, x: Tensor, rows: Tensor | None) -> None:
        if self._bar is None:
            return
        if not self._counts_samples:
            self._bar.update(step - self._bar.n)
        elif rows is not None:  # a step of the whole batch, out of infinity or into zero, tells nothing of arrivals
            self._bar.update(self._total - len(rows) - self._bar.n)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()


def tell_all(observers: Sequence[Observer]) -> Observer | None:
    """One observer that tells all of these; None for none, which costs nothing."""
    if not observers:
        return None

    def observe(step: int, sigma: Sigma, x: Tensor, rows: Tensor | None) -> None:
        for one in observers:
            one(step, sigma, x, rows)

    return observe
