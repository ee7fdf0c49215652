"""A task of tuning: the model, the samples and how they are split; what is held out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from odesampler.analysis import reference
from odesampler.analysis.race import plan_for
from odesampler.analysis.resumable import Resumable
from odesampler.analysis.side_by_side import Samples
from odesampler.guidance import AnyGuidance, Guidance, checked_guidance, guided
from odesampler.model import Model
from odesampler.plan import checked_cond

HELD = 16  # samples of what is held out
LATER = 1_000_000  # from the last seed to those of what is held out


@dataclass(frozen=True)
class Task:
    """What to tune, on what."""

    model: Model
    num_steps: int
    seeds: Sequence[int]
    shape: tuple[int, ...]  # (n, *shape)
    given: Tensor | None  # latents or images, (n, *shape); None: latents drawn from the seeds
    cond: Mapping[str, Tensor]
    told: Mapping[str, Any] | None  # the conditions as the user gave them
    guidance_scale: AnyGuidance
    coefficients: bool
    iterations: int
    reference_steps: int
    max_batch: int | None
    progress: bool

    def rows(self, validation: bool) -> list[int]:
        """The samples to tune on, or those to validate on: every third."""
        return [i for i in range(self.shape[0]) if (i % 3 == 2) == validation]

    def samples(self, validation: bool) -> Samples:
        """The latents to tune or to validate on."""
        rows = self.rows(validation)
        x = None if self.given is None else self.given[rows]
        cond = {k: v[rows] for k, v in self.cond.items()}
        return Samples([self.seeds[i] for i in rows], (len(rows), *self.shape[1:]), x, cond)

    def truth(self, name: str, samples: Samples, saved: Resumable) -> tuple[Tensor, float]:
        """Where `samples` lead (n, *shape), on the CPU, and how far half the steps are from that, the median."""
        floors: list[float] = []

        def solve() -> Tensor:
            make = partial(plan_for, self.model, "rk4", num_steps=None, guidance_scale=self.guidance_scale)
            both = reference.plans(self.model, self.reference_steps, make)
            bar = f"reference, {name}" if self.progress else None
            found = reference.solved(self.model, both, samples, max_batch=self.max_batch, progress=bar)
            floors.append(found.floor)
            return found.x

        x = saved.once(f"truth.{name}", solve)
        floor: float = saved.fact(f"floor.{name}", lambda: floors[0] if floors else 0.0)
        return x, floor

    def held_out(self, given: Sequence[Mapping[str, Any]] | None) -> dict[str, Task]:
        """Tasks that are not tuned for, by what they are in words.

        Raises:
            ValueError: A setting that this model cannot have.
        """
        if given is None:
            given = self._usually_held_out()
        if isinstance(given, Mapping) or not isinstance(given, Sequence):
            raise TypeError(f'held_out is a sequence of settings such as {{"guidance_scale": 2}}; got {given!r}')
        found = {}
        for setting in given:
            if not isinstance(setting, Mapping) or not setting or setting.keys() - {"cond", "guidance_scale"}:
                raise ValueError(f'a setting of held_out has "cond", "guidance_scale" or both; got {setting!r}')
            told = setting.get("cond", self.told)
            scale = checked_guidance(setting.get("guidance_scale", self.guidance_scale))
            guided(self.model, scale)
            if "cond" in setting:
                cond = checked_cond(self.model, told, HELD)
            else:
                cond = {k: v[[i % len(v) for i in range(HELD)]] for k, v in self.cond.items()}
            seeds = [max(self.seeds) + LATER + i for i in range(HELD)]
            task = replace(
                self,
                seeds=seeds,
                shape=(HELD, *self.shape[1:]),
                given=None,
                cond=cond,
                told=told,
                guidance_scale=scale,
            )
            found[str(setting.get("name", _words(setting)))] = task
        return found

    def _usually_held_out(self) -> list[dict[str, Any]]:
        """The classes that were not tuned on, and another guidance scale."""
        model, found = self.model, list[dict[str, Any]]()
        if "label" in self.cond and model.labels:
            others = sorted({*range(len(model.labels))} - {*self.cond["label"].tolist()})
            if others:
                found.append({"cond": {"label": [others[i % len(others)] for i in range(HELD)]}})
        scale = self.guidance_scale.scale if isinstance(self.guidance_scale, Guidance) else self.guidance_scale
        if model.null_cond and self.told:
            found.append({"guidance_scale": 2.0 if scale == 1 else 1.0})
        return found

    def all_of(self) -> Samples:
        """All samples at once."""
        return Samples(self.seeds, self.shape, self.given, self.cond)

    def question(self, task: str, others: Mapping[str, Task]) -> dict[str, Any]:
        """What a checkpoint must agree in, as JSON can hold it."""
        facts: dict[str, Any] = {
            "task": task,
            "model": self.model.fingerprint(),
            "num_steps": self.num_steps,
            "seeds": [*self.seeds],
            "samples": None if self.given is None else self.given.double().sum().item(),
            "cond": {k: v.double().reshape(len(v), -1).sum(1).tolist() for k, v in self.cond.items()},
            "guidance_scale": scale_as_json(self.guidance_scale),
            "coefficients": self.coefficients,
            "iterations": self.iterations,
            "reference_steps": self.reference_steps,
            "held_out": [*others],
        }
        return facts


def scale_as_json(scale: AnyGuidance) -> Any:
    """A guidance scale, as JSON can hold it."""
    return json.loads(json.dumps(asdict(scale))) if isinstance(scale, Guidance) else float(scale)


def summary(error: Tensor) -> dict[str, float]:
    """What a recipe says of errors (n,)."""
    return {
        "median": reference.quantile(error, 0.5),
        "geometric_mean": error.log().mean().exp().item(),
        "largest": error.max().item(),
    }


def _words(setting: Mapping[str, Any]) -> str:
    said = []
    for key, value in (setting.get("cond") or {}).items():
        values = torch.as_tensor(value).flatten().tolist() if not isinstance(value, str) else [value]
        several = list(dict.fromkeys(values))
        said.append(f"{key} {', '.join(map(str, several[:10]))}{' ...' if len(several) > 10 else ''}")
    if "guidance_scale" in setting:
        scale = setting["guidance_scale"]
        said.append(f"guidance {scale if isinstance(scale, Guidance) else format(scale, 'g')}")
    return "; ".join(said) or "no condition"
