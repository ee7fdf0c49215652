"""A task of tuning: the model, the samples and how they are split; what is held out."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from odesampler.analysis import reference
from odesampler.analysis.errors import quantile
from odesampler.analysis.side_by_side import Samples
from odesampler.guidance import AnyGuidance, Guidance, checked_guidance, guided
from odesampler.inputs import checked_cond
from odesampler.model import Model
from odesampler.tuning.race import plan_for
from odesampler.tuning.resumable import Resumable

HELD = 16  # samples of what is held out, or more:
A_CLASS, CLASSES = 4, 16  # samples of each class, of so many classes at most
ROUNDING = 1e-12  # of a reference in float64: no more steps make it better
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
        """The latents to tune on, or those to validate on: every third, and of the same conditions every third too."""
        return [i for i, turn in enumerate(self._turns()) if (turn % 3 == 2) == validation]

    def images(self) -> dict[str, list[int]]:
        """The images to tune on, half of them; every fourth validates, and by every fourth nothing is chosen."""
        those = [*enumerate(self._turns())]
        return {
            "train": [i for i, turn in those if turn % 4 in (0, 2)],
            "validation": [i for i, turn in those if turn % 4 == 1],
            "test": [i for i, turn in those if turn % 4 == 3],
        }

    def _turns(self) -> list[int]:
        """Numbers (n,) by which samples are split, one more from each to the next of the same conditions.

        The place of a sample is none: of three classes in turn every third is one class.
        """
        last: dict[tuple[str, ...], int] = {}
        found = []
        for i in range(self.shape[0]):
            same = tuple(_digest(values[i]) for values in self.cond.values())
            last[same] = last.get(same, len(last) - 1) + 1  # the first of the next conditions: how many came before
            found.append(last[same])
        return found

    def samples(self, validation: bool) -> Samples:
        """The latents to tune or to validate on."""
        rows = self.rows(validation)
        x = None if self.given is None else self.given[rows]
        cond = {k: v[rows] for k, v in self.cond.items()}
        return Samples([self.seeds[i] for i in rows], (len(rows), *self.shape[1:]), x, cond)

    def unseen(self) -> Samples:
        """Latents that nothing is chosen by, as many as validate and under their conditions."""
        rows = self.rows(validation=True)
        seeds = [max(self.seeds) + 2 * LATER + i for i in range(len(rows))]
        return Samples(seeds, (len(rows), *self.shape[1:]), None, {k: v[rows] for k, v in self.cond.items()})

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
        """Tasks that are not tuned for, by what they are in words; a second one of the same words is number 2.

        Raises:
            TypeError: Not a sequence of settings.
            ValueError: A setting that this model cannot have.
        """
        if isinstance(given, Mapping) or not isinstance(given, (Sequence, type(None))):
            raise TypeError(f'held_out is a sequence of settings such as {{"guidance_scale": 2}}; got {given!r}')
        found: dict[str, Task] = {}
        for words, task in self._usually_held_out() if given is None else map(self._asked_for, given):
            name, number = words, 2
            while name in found:
                name, number = f"{words} ({number})", number + 1
            found[name] = task
        return found

    def _usually_held_out(self) -> Iterator[tuple[str, Task]]:
        """The classes that were not tuned on, all else as it was, and another guidance scale."""
        model = self.model
        if "label" in self.cond and model.labels:
            others = sorted({*range(len(model.labels))} - {*self.cond["label"].tolist()})
            if others:
                labels = _spread(others)
                label = torch.tensor(labels, dtype=self.cond["label"].dtype, device=model.device)
                rows = [i % self.shape[0] for i in range(len(labels))]
                cond = {k: v[rows] for k, v in self.cond.items()} | {"label": label}
                told = {**(self.told or {}), "label": labels}
                yield _words({"cond": {"label": labels}}), self._later(cond, told, self.guidance_scale)
        scale = self.guidance_scale.scale if isinstance(self.guidance_scale, Guidance) else self.guidance_scale
        if model.null_cond and self.told:
            other = 2.0 if scale == 1 else 1.0
            yield _words({"guidance_scale": other}), self._later(self._again(), self.told, other)

    def _asked_for(self, setting: Mapping[str, Any]) -> tuple[str, Task]:
        """A setting of the user's, in words, and as a task."""
        if not isinstance(setting, Mapping) or not setting or setting.keys() - {"cond", "guidance_scale"}:
            raise ValueError(f'a setting of held_out has "cond", "guidance_scale" or both; got {setting!r}')
        if "cond" not in setting:
            return _words(setting), self._later(self._again(), self.told, setting["guidance_scale"])
        told, scale = setting["cond"], setting.get("guidance_scale", self.guidance_scale)
        cond = checked_cond(self.model, told, HELD)
        unknown = sorted(cond.keys() - self.cond.keys())
        if unknown:
            known = ", ".join(self.cond) or "no conditions"
            raise ValueError(f"held_out has cond {', '.join(unknown)}, but {self.model.name} is tuned with {known}")
        rows = [i % self.shape[0] for i in range(HELD)]
        rest = {k: v[rows] for k, v in self.cond.items() if k not in told}
        return _words(setting), self._later(cond | rest, {**(self.told or {}), **told}, scale)

    def _again(self) -> dict[str, Tensor]:
        """The conditions tuned with, for samples that are held out: of each class as many."""
        rows = [i % self.shape[0] for i in range(HELD)]
        if "label" in self.cond and self.model.labels:
            each = self.cond["label"].tolist()
            labels = _spread(sorted({*each}))
            of = {k: cycle([i for i, one in enumerate(each) if one == k]) for k in labels}
            rows = [next(of[k]) for k in labels]
        return {k: v[rows] for k, v in self.cond.items()}

    def _later(self, cond: Mapping[str, Tensor], told: Mapping[str, Any] | None, scale: Any) -> Task:
        """This task with other conditions and guidance, on latents that were not tuned on."""
        scale = checked_guidance(scale)
        guided(self.model, scale)
        count = len(next(iter(cond.values()))) if cond else HELD
        return replace(
            self,
            seeds=[max(self.seeds) + LATER + i for i in range(count)],
            shape=(count, *self.shape[1:]),
            given=None,
            cond=cond,
            told=told,
            guidance_scale=scale,
        )

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
            "split": self._turns(),
            "samples": None if self.given is None else _digest(self.given),
            "cond": {k: _digest(v) for k, v in self.cond.items()},
            "guidance_scale": scale_as_json(self.guidance_scale),
            "coefficients": self.coefficients,
            "iterations": self.iterations,
            "reference_steps": self.reference_steps,
            "held_out": {
                name: [scale_as_json(o.guidance_scale), {k: _digest(v) for k, v in o.cond.items()}]
                for name, o in others.items()
            },
        }
        return facts


def scale_as_json(scale: AnyGuidance) -> Any:
    """A guidance scale, as JSON can hold it."""
    return json.loads(json.dumps(asdict(scale))) if isinstance(scale, Guidance) else float(scale)


def summary(error: Tensor) -> dict[str, float]:
    """What a recipe says of errors (n,)."""
    return {
        "median": quantile(error, 0.5),
        "geometric_mean": error.log().mean().exp().item(),
        "largest": error.max().item(),
    }


def times(after: Mapping[str, float], before: Mapping[str, float]) -> float:
    """How many times another error one is, both as of `summary`: by the median or the mean, where it is more."""
    return max(after[kind] / before[kind] for kind in ("median", "geometric_mean"))


def unclear(floor: float, error: float) -> str:
    """What is to be said where the reference is not much more exact than the errors measured from it; else nothing."""
    if floor < ROUNDING or floor * reference.CLEAR <= error:
        return ""
    return (
        f"errors of {error:.1e} were measured, and fitted, from a reference that is itself only known to {floor:.1e}: "
        "give more reference_steps"
    )


def as_json(found: Any) -> Any:
    """`found` as JSON can hold it: numbers that are not finite become words, "inf" or "nan"."""
    if isinstance(found, Mapping):
        return {k: as_json(v) for k, v in found.items()}
    return str(found) if isinstance(found, float) and not math.isfinite(found) else found


def _digest(values: Tensor) -> str:
    """SHA-256 of a tensor's bytes, dtype and shape."""
    data = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{values.dtype} {tuple(values.shape)} ".encode() + data).hexdigest()


def _spread(classes: Sequence[int]) -> list[int]:
    """Labels of samples, `HELD` or more: as many of each class, of `CLASSES` at most that are evenly spaced."""
    few = classes[:: math.ceil(len(classes) / CLASSES)]
    return [*few] * max(A_CLASS, math.ceil(HELD / len(few)))


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
