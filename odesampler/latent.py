"""Latents: where images went, and how, so that they can come back without anything being said again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odesampler.files import written_whole
from odesampler.grid import Grid
from odesampler.guidance import AnyGuidance, Guidance, checked_guidance
from odesampler.integrate import OnGrid
from odesampler.lossless import SideCar
from odesampler.model import Model
from odesampler.plan import Plan, course_of
from odesampler.precision import dtype_name
from odesampler.program import Solver
from odesampler.registry import find_solver, spec_of
from odesampler.tensor_file import read_tensors, write_tensors
from odesampler.threshold import AnyThreshold, DynamicThreshold, checked_threshold
from odesampler.version import __version__

FORMAT = "odesampler.latent/2"
_MEASURED = ("converged", "defect", "untouched")


@dataclass(frozen=True)
class Recipe:
    """How a latent was made: all of it but the weights, as JSON can hold it.

    Examples:
        >>> model, images = ods.load("digits"), ods.held_out("digits").images[:1]
        >>> recipe = ods.encode(model, images, solver=ods.Heun(), num_steps=5).recipe
        >>> recipe.solver, recipe.model, recipe.convention, recipe.state_dtype, len(recipe.sigmas)
        ('heun', 'digits', 'source', 'float64', 6)
    """

    solver: str  # a name that `find_solver` reads
    sigmas: tuple[float, ...]  # falling
    grid: str
    guidance_scale: AnyGuidance  # a number where it is no more than a scale
    clip_denoised: AnyThreshold
    state_dtype: str
    convention: str  # how it was encoded, see `conventions`
    model: str
    fingerprint: str
    schedule: str  # its family
    polished: bool = False  # corrected by `polish` afterwards
    version: str = field(default=__version__, compare=False)

    @classmethod
    def of(cls, plan: Plan, model: Model) -> Recipe:
        """The recipe of `plan` on `model`."""
        return cls(
            solver=spec_of(plan.loop),
            sigmas=plan.grid.down().sigmas,
            grid=plan.grid.name,
            guidance_scale=plan.guidance_scale,
            clip_denoised=plan.clip_denoised,
            state_dtype=dtype_name(plan.state_dtype),
            convention="source",
            model=model.name,
            fingerprint=model.fingerprint(),
            schedule=type(model.schedule).__name__,
        )

    def check_model(self, model: Model, insist: bool = False) -> None:
        """Raises: ValueError: this belongs to another model, and `insist` is not given."""
        found = model.fingerprint()
        if found != self.fingerprint and not insist:
            raise ValueError(
                f"this latent was made with {self.model} ({self.fingerprint}), not with this {model.name} ({found}); "
                "decode it with the same weights, dtype and schedule, or insist=True"
            )

    def plan(self, model: Model | None = None) -> Plan:
        """The plan that this is the recipe of; ready to be carried out where `model` is given."""
        solver = find_solver(self.solver)
        loop = OnGrid(solver) if isinstance(solver, Solver) else solver
        grid = Grid(self.sigmas, self.grid)
        if model is not None:
            loop = loop.prepared(course_of(model, grid))
        return Plan(loop, grid, self.guidance_scale, self.clip_denoised, getattr(torch, self.state_dtype))


@dataclass(frozen=True, repr=False, eq=False)
class Latent:
    """Encoded images.

    Examples:
        >>> model, images = ods.load("digits"), ods.held_out("digits").images[:4]
        >>> latent = ods.encode(model, images, num_steps=10)
        >>> tuple(latent.x.shape), [tuple(m.shape) for m in latent.memory]
        ((4, 1, 8, 8), [(4, 1, 8, 8)])
        >>> latent.save("latent.safetensors")
        >>> back = ods.decode(model, ods.Latent.load("latent.safetensors")).x  # in another process, say
        >>> bool((back - images).abs().max() < 1e-10)
        True
        >>> len(latent.select([2]))
        1
    """

    x: Tensor  # (batch, *shape), x_T in the model's own scale: about N(0, 1) for VP models
    recipe: Recipe
    # Each (batch, ...): what an exactly invertible solver must keep besides. Where sigma_max is infinite it is the
    # whole state at the last finite sigma, and decoding goes on from there: to decode an edited `x`, drop it first.
    memory: tuple[Tensor, ...] = ()
    cond: Mapping[str, Tensor] = field(default_factory=dict)  # each (batch, ...)
    nfe: Tensor | None = None  # (batch,) evaluations that encoding took; not saved
    plan: Plan | None = None  # what the recipe describes, alive; not saved
    # (batch,) each, on the CPU, where equations were solved (`implicit`, `polishing`): whether they hold to the
    # tolerance, and the most that decoding misses of the image, in its units, but for a factor near 1 for `implicit`.
    converged: Tensor | None = None
    defect: Tensor | None = None
    untouched: Tensor | None = None  # (batch,) checksum of x, where sigma_max is infinite and memory says all
    sidecar: SideCar | None = None  # what `encode(exact=...)` keeps so that the images come back to the bit
    null: Mapping[str, Tensor] | None = None  # each (batch, steps, ...): null conditions that `null_text` found

    def __repr__(self) -> str:
        kept = f", memory={[tuple(m.shape) for m in self.memory]}" if self.memory else ""
        kept += f", null={list(self.null)}" if self.null else ""
        steps = len(self.recipe.sigmas) - 1
        return (
            f"Latent(x={tuple(self.x.shape)}{kept}, {self.recipe.solver}, {steps} transitions, "
            f"grid {self.recipe.grid}, model {self.recipe.model}{self._how_well})"
        )

    @property
    def _how_well(self) -> str:
        if self.defect is None:
            return ""
        far = "" if self.converged is None else f", {int(self.converged.sum())} of {len(self)} converged"
        return f"{far}, defect {self.defect.max().item():.1e} at most"

    def __len__(self) -> int:
        return len(self.x)

    def without_memory(self) -> Latent:
        """This latent without what makes an exactly invertible solver exact: one tensor, of the images' size.

        What is lost: decoding is approximate then, and with few steps worse than the solver that it is made of. What
        was kept to come back to the bit goes too.
        """
        return replace(self, memory=(), sidecar=None, untouched=None)

    def without_null(self) -> Latent:
        """This latent without the null conditions that `null_text` found: decoding is guided away from the model's own.

        What is lost: the way back to the images.
        """
        return replace(self, null=None)

    def elsewhere(self, x: Tensor, memory: tuple[Tensor, ...] = ()) -> Latent:
        """Latents at other points `x` (batch, *shape), to be decoded as these are.

        What was measured of these points, or kept so that their images come back to the bit, is not of those.
        """
        return replace(self, x=x, memory=memory, nfe=None, converged=None, defect=None, untouched=None, sidecar=None)

    @property
    def blendable(self) -> tuple[Tensor, ...]:
        """The memory, as far as there is something between two: nothing, where it is whole numbers."""
        return self.memory if all(m.is_floating_point() for m in self.memory) else ()

    def select(self, rows: Tensor | list[int] | slice) -> Latent:
        """The samples `rows` of this latent."""
        return replace(
            self,
            x=self.x[rows],
            memory=tuple(m[rows] for m in self.memory),
            cond={k: v[rows] for k, v in self.cond.items()},
            nfe=None if self.nfe is None else self.nfe[rows],
            untouched=None if self.untouched is None else self.untouched[rows],
            sidecar=None if self.sidecar is None else self.sidecar.select(rows),
            null=None if self.null is None else {k: v[rows] for k, v in self.null.items()},
            converged=None if self.converged is None else self.converged[rows],
            defect=None if self.defect is None else self.defect[rows],
        )

    def save(self, path: str | Path) -> None:
        """Write to `path` as safetensors, whole or not at all.

        Raises:
            OSError: The file cannot be written.
            ValueError: The solver is your own and has no name by which another process could find it.
        """
        self.recipe.plan()
        tensors = {"x": self.x}
        tensors |= {f"memory.{i}": m for i, m in enumerate(self.memory)}
        tensors |= {f"cond.{k}": v for k, v in self.cond.items()}
        facts = {"format": FORMAT, "recipe": json.dumps(asdict(self.recipe))}
        if self.sidecar is not None:
            kept, text = self.sidecar.packed()
            tensors |= kept
            facts["sidecar"] = text
        tensors |= {f"null.{k}": v for k, v in (self.null or {}).items()}
        tensors |= {k: v for k in _MEASURED if (v := getattr(self, k)) is not None}
        with written_whole(path) as file:
            write_tensors(file, tensors, facts)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Latent:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not a latent of this library, or damaged.
        """
        if Path(path).is_dir():
            first = min(Path(path).glob("*.safetensors"), default="a file in it")
            raise FileNotFoundError(f"{path} is a folder; latents are read from a file: name {first}, for example")
        if not Path(path).is_file():
            raise FileNotFoundError(f"no such latent file: {path}")
        tensors, meta = read_tensors(path, device)
        if meta.get("format") != FORMAT or "x" not in tensors:
            raise ValueError(f"{path} is not a latent of this library: format {meta.get('format')!r}, not {FORMAT!r}")
        try:
            memory = tuple(tensors[f"memory.{i}"] for i in range(sum(t.startswith("memory.") for t in tensors)))
            cond = {k.removeprefix("cond."): v for k, v in tensors.items() if k.startswith("cond.")}
            null = {k.removeprefix("null."): v for k, v in tensors.items() if k.startswith("null.")}
            x = tensors["x"]
            rows = [*cond.values(), *null.values(), *(tensors[k] for k in _MEASURED if k in tensors)]
            together = all(m.shape == x.shape for m in memory) and all(len(v) == len(x) for v in rows)
            if not (together and x.is_floating_point()):
                raise ValueError("its tensors do not belong together")
            recipe = _recipe(json.loads(meta["recipe"]))
            recipe.plan()
            sidecar = SideCar.unpacked(tensors, meta["sidecar"]) if "sidecar" in meta else None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} is damaged, or its recipe cannot be read: {error}") from error
        measured: dict[str, Any] = {k: tensors[k] for k in _MEASURED if k in tensors}
        return cls(x, recipe, memory, cond, sidecar=sidecar, null=null or None, **measured)


def _recipe(facts: dict[str, Any]) -> Recipe:
    if facts["state_dtype"] not in ("float32", "float64"):
        raise ValueError(f"state_dtype {facts['state_dtype']!r}")
    scale, clip = facts["guidance_scale"], facts["clip_denoised"]
    return Recipe(
        **{
            **facts,
            "sigmas": tuple(float(s) for s in facts["sigmas"]),
            "guidance_scale": checked_guidance(Guidance(**scale) if isinstance(scale, dict) else scale),
            "clip_denoised": checked_threshold(DynamicThreshold(**clip) if isinstance(clip, dict) else clip),
        }
    )
