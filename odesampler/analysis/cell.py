"""A cell of a comparison: one solver on one grid at one number of steps, and what it cost.

error = rms over a sample of (x - reference),     in units of the data
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from odesampler.analysis.errors import quantile


@dataclass(frozen=True)
class Cell:
    """One solver at one grid and number of steps."""

    solver: str  # as the user named it
    grid: str  # "own" where the solver chooses its own steps
    num_steps: int | None  # transitions; None: it chose its own
    tolerance: float | None  # rtol = atol, where it was set by the comparison
    x: Tensor  # (batch, *shape), what came out, as `sample` gives it
    error: Tensor  # (batch,) root mean square difference from the reference, in units of the data
    nfe: Tensor  # (batch,) int64, evaluations of eps for each sample
    calls: int  # batched calls of the model in which it took part
    order: int | None  # as the solver states it; None: it does not, or it is stochastic

    @property
    def cost(self) -> float:
        """Evaluations a sample, the mean over the samples."""
        return self.nfe.double().mean().item()

    @property
    def median(self) -> float:
        """The median error over the samples."""
        return quantile(self.error, 0.5)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The errors below which a quarter and three quarters of the samples are."""
        return quantile(self.error, 0.25), quantile(self.error, 0.75)

    @property
    def steps(self) -> str:
        """Steps, or the tolerance that chose them, for tables."""
        if self.num_steps is not None:
            return str(self.num_steps)
        return "own" if self.tolerance is None else f"tol {self.tolerance:g}"
