"""Cases: one way to carry images up and down, and what they are compared with where they are lost."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odesampler.analysis.errors import quantile, rms
from odesampler.conventions import AnyConvention, upward
from odesampler.guidance import AnyGuidance, rows_a_sample
from odesampler.inputs import checked_cond
from odesampler.inversion import decode, encode
from odesampler.latent import Latent
from odesampler.model import Model
from odesampler.plan import AnyGrid, AnySolver, Plan, make_plan, refuse_what_cannot_be_encoded
from odesampler.precision import dtype_name, finest_dtype
from odesampler.registry import spec_of
from odesampler.room import AnyBatch, check_max_batch


class Walked(NamedTuple):
    """What a round trip gave."""

    latent: Latent
    x: Tensor  # (batch, *shape), what came back, on the CPU
    evaluations: Tensor  # (batch,) int64, both ways
    seconds: float


@dataclass(frozen=True)
class Case:
    """One round trip: a solver, and how it is used; the rest as `encode` takes it."""

    solver: AnySolver
    num_steps: int | None  # None: it chooses its own, or the grid says
    grid: AnyGrid | None = None
    cond: Mapping[str, Any] | None = None
    guidance_scale: AnyGuidance = 1.0
    convention: AnyConvention = None
    state_dtype: torch.dtype | None = None
    max_batch: AnyBatch = None

    @property
    def name(self) -> str:
        """The solver, as the user named it."""
        return self.solver if isinstance(self.solver, str) else spec_of(self.solver)

    @property
    def settings(self) -> str:
        """What is not as it is by default, but for the solver and its steps; nothing: all is."""
        grid = self.grid if isinstance(self.grid, str) else getattr(self.grid, "name", "of given sigmas")
        dtype = "" if self.state_dtype is None else dtype_name(self.state_dtype)
        found = {
            f"guidance {self.guidance_scale}": self.guidance_scale != 1,
            f"grid {grid}": self.grid is not None,
            f"state {dtype}": self.state_dtype is not None,
            f"convention {self.convention}": self.convention is not None,
            f"cond {' '.join(self.cond or ())}": bool(self.cond),
        }
        return ", ".join(words for words, said in found.items() if said)

    def plan(self, model: Model) -> Plan:
        """How it will be decoded. Raises as `encode`, before any model is called."""
        plan = make_plan(
            model,
            self.solver,
            num_steps=self.num_steps,
            grid=self.grid,
            rtol=None,
            atol=None,
            into_zero=False,
            guidance_scale=self.guidance_scale,
            state_dtype=self.state_dtype or finest_dtype(model.device),
        )
        refuse_what_cannot_be_encoded(plan)
        upward(plan.loop, self.convention)
        check_max_batch(self.max_batch, rows_a_sample(model, self.guidance_scale))
        return plan

    def walked(self, model: Model, images: Tensor) -> Walked:
        """Carry `images` (batch, *shape) up and down again."""
        began = time.perf_counter()
        latent = self.encoded(model, images)
        back = decode(model, latent, max_batch=self.max_batch)
        assert latent.nfe is not None  # fresh from encode
        return Walked(latent, back.x.cpu(), latent.nfe + back.nfe, time.perf_counter() - began)

    def encoded(self, model: Model, images: Tensor) -> Latent:
        """Carry `images` (batch, *shape) up."""
        return encode(
            model,
            images,
            solver=self.solver,
            num_steps=self.num_steps,
            grid=self.grid,
            cond=checked_cond(model, self.cond, len(images)),  # in full: of missing ones the analysis has warned
            guidance_scale=self.guidance_scale,
            convention=self.convention,
            state_dtype=self.state_dtype,
            max_batch=self.max_batch,
        )


def missed_by_grey(images: Tensor, data_range: tuple[float, float] | None) -> float:
    """Median rmse of plain grey, the middle of the data, for `images`: what is farther off than that is lost."""
    return quantile(rms(images.cpu().double() - sum(data_range or (0.0, 0.0)) / 2), 0.5)
