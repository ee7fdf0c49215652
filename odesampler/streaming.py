"""Any number of samples, in constant memory: shard after shard, on any number of processes.

    sample_many: seeds [i * size, (i + 1) * size) -> images;     encode_many: pictures, likewise -> latents

What a run is, and why it can be killed at any moment, is in `shards`. Here is what the shards hold. The same command
goes on with a run that was begun, skips what is done, and ends with the same files as one that was never interrupted,
bit for bit on the same kind of machine with the same `max_batch`. That should be a number then: "auto" depends on the
memory that is free, and each shard's record says how many samples a call had.

A shard is written beside the computation of the next, which waits for it before it is written itself: two shards are in
memory at most.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odesampler import images
from odesampler.adaptive import Status
from odesampler.conventions import upward
from odesampler.files import written_whole
from odesampler.guidance import rows_a_sample, usual_guidance, warn_of_nothing_to_guide_to
from odesampler.inputs import checked_cond, checked_count, checked_shape
from odesampler.inversion import encode
from odesampler.latent import Latent, Recipe
from odesampler.lossless import in_whole_numbers, place_of, rows_at_once
from odesampler.model import Model
from odesampler.noise import AnySeed, noise_for, seed_row
from odesampler.picture_files import PictureFiles
from odesampler.plan import Plan, make_plan, refuse_what_cannot_be_encoded
from odesampler.precision import finest_dtype
from odesampler.room import AnyBatch, check_max_batch
from odesampler.run_facts import fact_of_seeds, facts_of
from odesampler.sampling import sample
from odesampler.shards import Beside, Shards, World
from odesampler.tensor_file import write_tensors

SHARD = 1024
KINDS = ("safetensors", "png")

Make = Callable[[int, range], "tuple[Callable[[], list[Path]], dict[str, Any]]"]  # what writes a shard; what is noted


@dataclass(frozen=True, repr=False)
class Run:
    """How a run ended, as far as this process knows."""

    folder: Path
    count: int  # samples, of all processes
    shards: int  # likewise
    made: tuple[int, ...]  # shards that this process made now; the others stood, or are others' work
    complete: bool  # all shards are done
    late: tuple[int, ...]  # samples of this process that did not arrive, and are NaN
    skipped: Mapping[str, str]  # pictures of this process that could not be read -> why
    seconds: float

    def __repr__(self) -> str:
        state = "complete" if self.complete else "not complete yet"
        trouble = f", {len(self.late)} samples did not arrive" if self.late else ""
        trouble += f", {len(self.skipped)} pictures skipped" if self.skipped else ""
        made = f"{len(self.made)} of {self.shards} shards made now"
        return f"Run({self.folder}: {self.count} items, {made}, {state}{trouble}, {self.seconds:.3g} s)"


def sample_many(
    model: Model,
    num_samples: int,
    out: str | Path,
    *,
    shard_size: int = SHARD,
    kind: str = "safetensors",
    seed: AnySeed = 0,
    cond: Mapping[str, Any] | None = None,
    max_batch: AnyBatch = None,
    rank: int | None = None,
    world: int | None = None,
    progress: bool = False,
    **how: Any,
) -> Run:
    """Draw any number of images into a folder, shard after shard; go on where an earlier run stopped.

    Args:
        model: The model.
        num_samples: How many, of all processes together.
        out: The folder: new, empty, or that of this very run.
        shard_size: Samples a file; two files of them are in memory at once.
        kind: "safetensors", tensors `x` (n, *shape) and `seed` (n,) in 00000.safetensors, ...; or "png", pictures
            00000/00000000.png, ...
        seed: As for `sample`.
        cond: As for `sample`, one value or `num_samples`.
        max_batch: As for `sample`. The last bits depend on it: a number makes them the same in every run.
        rank: Which process this is, of `world`; by default what torchrun or Slurm say, else the only one.
        world: How many there are. The files are the same whatever their number.
        progress: Show a progress bar.
        **how: solver, num_steps, grid, noise, guidance_scale, rtol, atol, clip_denoised, state_dtype, as for `sample`.

    Returns:
        A `Run`. Samples that did not arrive are NaN, and listed.

    Raises:
        ValueError: What cannot be meant, before the model is called; a folder that holds another run.
        OSError: The disk is full, or the folder cannot be written; what is done stands.

    Examples:
        >>> run = ods.sample_many(ods.load("digits"), 10, "samples", shard_size=4, num_steps=5)
        >>> run.made, run.complete
        ((0, 1, 2), True)
        >>> from safetensors.torch import load_file
        >>> tuple(load_file("samples/00000.safetensors")["x"].shape)
        (4, 1, 8, 8)
        >>> ods.sample_many(ods.load("digits"), 10, "samples", shard_size=4, num_steps=5).made  # nothing is left to do
        ()
    """
    here = World.of(rank, world)
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, KINDS))}; got {kind!r}")
    how["guidance_scale"] = usual_guidance(model, how.get("guidance_scale"))
    numbers = {k: v for k, v in how.items() if k != "noise"}
    plan = _planned("sample_many", model, max_batch, into_zero=True, **numbers)
    shards = Shards(Path(out), checked_count(num_samples, None), _checked_size(shard_size))
    noise_for(how.get("noise", "independent"), [0])
    warn_of_nothing_to_guide_to(model, cond, plan.guidance_scale)
    checked_shape(model)
    if kind == "png" and (model.image_shape or ())[:-2] not in ((1,), (3,)):
        raise ValueError(f"png takes images, (1 or 3, height, width); {model.name} makes {model.image_shape}")
    seeds, conditions = seed_row(seed, shards.count), checked_cond(model, cond, shards.count)
    shards.begin(
        {
            "kind": kind,
            "noise": how.get("noise", "independent"),
            "seeds": fact_of_seeds(seeds),
            **facts_of("sample", model, plan, max_batch, conditions),
        }
    )

    def make(i: int, items: range) -> tuple[Callable[[], list[Path]], dict[str, Any]]:
        mine = {k: v[items.start : items.stop] for k, v in conditions.items()}
        part = list(seeds[items.start : items.stop])
        found = sample(model, len(items), seed=part, cond=mine, max_batch=max_batch, **how)
        late = [item for item, status in zip(items, found.status, strict=True) if status is not Status.ARRIVED]
        x = (found.images if kind == "png" else found.x).cpu()  # here: there it would wait for the next shard's work
        return partial(_written, shards, i, kind, x, part), {"late": late}

    return _carry_out(
        shards, here, partial(_place, model, shards, max_batch, plan), make, "sampling" if progress else None
    )


def encode_many(
    model: Model,
    paths: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    shard_size: int = SHARD,
    cond: Mapping[str, Any] | None = None,
    max_batch: AnyBatch = None,
    rank: int | None = None,
    world: int | None = None,
    progress: bool = False,
    **how: Any,
) -> Run:
    """Turn any number of pictures into latents in a folder, shard after shard; go on where an earlier run stopped.

    Args:
        model: The model.
        paths: Picture files or folders of them, as `ods.images.load` takes them.
        out: As for `sample_many`. Each shard is a latent file, which `ods.Latent.load` reads; the names of its pictures
            are in the record beside it, in the same order: their paths below the folder that holds all of them.
        shard_size: Pictures a file; two files of them are in memory at once.
        cond: As for `encode`, one value or one a picture.
        max_batch: As for `encode`.
        rank: As for `sample_many`.
        world: As for `sample_many`.
        progress: Show a progress bar.
        **how: solver, num_steps, grid, convention, exact, ..., as for `encode`.

    Returns:
        A `Run`. A picture that cannot be read is skipped, and listed with the reason.

    Raises:
        FileNotFoundError: A path that does not exist.
        ValueError: What cannot be meant, before the model is called; a folder that holds another run, or a picture that
            is not the one that was encoded.
        OSError: The disk is full, or the folder cannot be written; what is done stands.

    Examples:
        >>> files = ods.images.save_each(ods.held_out("digits").images[:5], "pictures")
        >>> run = ods.encode_many(ods.load("digits"), "pictures", "latents", shard_size=4, num_steps=5)
        >>> run.made, run.skipped
        ((0, 1), {})
        >>> len(ods.Latent.load("latents/00000.safetensors")), len(ods.Latent.load("latents/00001.safetensors"))
        (4, 1)
    """
    here = World.of(rank, world)
    files = PictureFiles(images.find([paths] if isinstance(paths, (str, Path)) else list(paths)))
    if not files.paths:
        raise ValueError("paths must name a picture or a folder of pictures; got none")
    exact, micro_batch = how.get("exact"), how.get("micro_batch")
    numbers = {k: v for k, v in how.items() if k not in ("convention", "exact", "micro_batch")}
    numbers["state_dtype"] = numbers.get("state_dtype") or finest_dtype(model.device)
    if exact == "bits":
        numbers["solver"] = in_whole_numbers(numbers.get("solver"))
    plan = _planned("encode_many", model, max_batch, into_zero=False, **numbers)
    refuse_what_cannot_be_encoded(plan)
    upward(plan.loop, how.get("convention"))
    Recipe.of(plan, model).plan()  # a solver that has no name could not be saved
    warn_of_nothing_to_guide_to(model, cond, plan.guidance_scale)
    rows = rows_at_once(exact, micro_batch, max_batch, rows_a_sample(model, plan.guidance_scale), grad=False)
    checked_shape(model)
    if (model.image_shape or (3, 0, 0))[:-2] not in ((1,), (3,)):
        raise ValueError(f"pictures are images, (1 or 3, height, width); {model.name} takes {model.image_shape}")
    shards = Shards(Path(out), len(files.paths), _checked_size(shard_size))
    conditions = checked_cond(model, cond, shards.count)
    shards.begin(
        {
            **{k: repr(how.get(k)) for k in ("convention", "exact", "micro_batch")},
            **facts_of("encode", model, plan, max_batch, conditions),
            "pictures": files.fingerprint(),
        }
    )
    _refuse_changed(shards, here, files)

    def make(i: int, items: range) -> tuple[Callable[[], list[Path]], dict[str, Any]]:
        read = {item: files.read(item, model.image_shape, exact is not None) for item in items}
        good = {item: found.picture for item, found in read.items() if found.picture is not None}
        noted = {
            "pictures": [files.names[item] for item in good],
            "skipped": {str(files.paths[item]): found.why for item, found in read.items() if item not in good},
            "seen": {files.names[item]: found.seen for item, found in read.items()},
        }
        if not good:
            return list, noted
        mine = {k: v[list(good)] for k, v in conditions.items()}
        latent = encode(model, torch.stack([*good.values()]), cond=mine, max_batch=max_batch, **how)
        late = [item for item, x in zip(good, latent.x, strict=True) if not bool(x.isfinite().all())]
        return partial(_saved, latent, shards.path(i, ".safetensors")), {**noted, "late": late}

    return _carry_out(shards, here, partial(_place, model, shards, rows, plan), make, "encoding" if progress else None)


def _refuse_changed(shards: Shards, world: World, files: PictureFiles) -> None:
    """Raises: ValueError: a picture that was encoded here is another one now."""
    for i in shards.of(world):
        record = shards.record(i) or {}
        path = files.changed(record.get("seen", {}))
        if path is not None:
            raise ValueError(
                f"{path} is not the picture that was encoded in shard {i} of {shards.folder}: take another folder, or "
                f"remove {shards.path(i, '.json')}, and the shard is made again"
            )


def _carry_out(
    shards: Shards, world: World, place: Callable[[], Mapping[str, Any]], make: Make, progress: str | None
) -> Run:
    """Make the shards that this process has to, one after another, each written while the next is computed."""
    from tqdm.auto import tqdm

    began = time.perf_counter()
    missing = shards.missing(world)
    total = sum(len(shards.span(i)) for i in missing)
    with tqdm(total=total, desc=progress, disable=progress is None) as bar, Beside() as beside:

        def finish(i: int, done: int, write: Callable[[], list[Path]], noted: dict[str, Any]) -> None:
            with shards.naming(i, done):
                shards.finish(i, write(), **noted)
            bar.update(len(shards.span(i)))

        for done, i in enumerate(missing):
            with shards.naming(i, done):
                write, noted = make(i, shards.span(i))
            beside.begin(partial(finish, i, done, write, {"place": place(), **noted}))
    records = shards.end()
    _warn_of_places(records or [])
    mine = [record for i in shards.of(world) if (record := shards.record(i))]
    return Run(
        shards.folder,
        shards.count,
        len(shards),
        tuple(missing),
        records is not None,
        tuple(item for record in mine for item in record.get("late", [])),
        {path: why for record in mine for path, why in record.get("skipped", {}).items()},
        time.perf_counter() - began,
    )


def _warn_of_places(records: Sequence[Mapping[str, Any]]) -> None:
    """Warns of shards that would have come out with other bits elsewhere in the same run."""
    places = [r["place"] for r in records]
    differ = sorted({k for place in places for k in place if place[k] != places[0].get(k)})
    if differ:
        warnings.warn(
            f"the shards of this run were made on machines or settings that differ in {', '.join(differ)}: "
            "made again elsewhere they may differ in their last bits",
            stacklevel=4,
        )


def _planned(verb: str, model: Model, max_batch: AnyBatch, *, into_zero: bool, **how: Any) -> Plan:
    """The plan that every shard will have.

    Raises:
        TypeError: An argument that `verb` does not take.
        ValueError: What cannot be meant.
    """
    numbers: dict[str, Any] = {"solver": None, "num_steps": None, "grid": None, "rtol": None, "atol": None}
    known = {*numbers, "guidance_scale", "clip_denoised", "state_dtype"}
    for name in how.keys() - known:
        raise TypeError(f"{verb}() takes no argument {name!r}; of how to solve it takes {', '.join(sorted(known))}")
    plan = make_plan(model, into_zero=into_zero, **{**numbers, **how})
    check_max_batch(max_batch, rows_a_sample(model, plan.guidance_scale))
    return plan


def _place(model: Model, shards: Shards, max_batch: AnyBatch, plan: Plan) -> dict[str, Any]:
    return place_of(model, shards.size, max_batch, rows_a_sample(model, plan.guidance_scale))


def _checked_size(size: int) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"shard_size must be a whole number of 1 or more; got {size!r}")
    return size


def _written(shards: Shards, i: int, kind: str, x: Tensor, seeds: Sequence[int]) -> list[Path]:
    """The samples `x` of shard `i`, in files that are whole."""
    if kind == "png":
        return images.save_each(x, shards.path(i), first=shards.span(i).start, digits=8)
    path = shards.path(i, ".safetensors")
    with written_whole(path) as file:
        write_tensors(file, {"x": x, "seed": torch.tensor(seeds)})
    return [path]


def _saved(latent: Latent, path: Path) -> list[Path]:
    latent.save(path)
    return [path]
