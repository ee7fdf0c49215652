"""Encoding any number of pictures, shard after shard: each shard is a latent file, and says which pictures it is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from odesampler import images
from odesampler.conventions import upward
from odesampler.guidance import rows_a_sample, warn_of_nothing_to_guide_to
from odesampler.inputs import checked_cond, checked_shape
from odesampler.inversion import encode
from odesampler.latent import Latent, Recipe
from odesampler.lossless import in_whole_numbers, rows_at_once
from odesampler.model import Model
from odesampler.plan import refuse_what_cannot_be_encoded
from odesampler.precision import finest_dtype
from odesampler.room import AnyBatch
from odesampler.streaming.facts import facts_of
from odesampler.streaming.pictures import PictureFiles
from odesampler.streaming.runs import SHARD, Run, Write, carry_out, checked_size, place, planned
from odesampler.streaming.shards import Shards, World


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
        OSError: The disk is full, the folder cannot be written or a picture not be read now; what is done stands.

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
    plan = planned("encode_many", model, max_batch, into_zero=False, **numbers)
    refuse_what_cannot_be_encoded(plan)
    upward(plan.loop, how.get("convention"))
    Recipe.of(plan, model).plan()  # a solver that has no name could not be saved
    warn_of_nothing_to_guide_to(model, cond, plan.guidance_scale)
    rows = rows_at_once(exact, micro_batch, max_batch, rows_a_sample(model, plan.guidance_scale), grad=False)
    checked_shape(model)
    if (model.image_shape or (3, 0, 0))[:-2] not in ((1,), (3,)):
        raise ValueError(f"pictures are images, (1 or 3, height, width); {model.name} takes {model.image_shape}")
    shards = Shards(Path(out), len(files.paths), checked_size(shard_size))
    conditions = checked_cond(model, cond, shards.count)
    _refuse_renamed(shards, here, files)
    shards.begin(
        {
            **{k: repr(how.get(k)) for k in ("convention", "exact", "micro_batch")},
            **facts_of("encode", model, plan, max_batch, conditions),
            "pictures": files.fingerprint(),
        }
    )
    _refuse_changed(shards, here, files)

    def make(i: int, items: range) -> tuple[Write, dict[str, Any]]:
        read = {item: files.read(item, model.image_shape, exact is not None) for item in items}
        good = {item: found.picture for item, found in read.items() if found.picture is not None}
        noted = {
            "pictures": [files.names[item] for item in good],
            "skipped": {str(files.paths[item]): found.why for item, found in read.items() if item not in good},
            "seen": {files.names[item]: found.seen for item, found in read.items()},
        }
        if not good:
            return partial(_removed, shards.path(i, ".safetensors")), noted
        mine = {k: v[list(good)] for k, v in conditions.items()}
        latent = encode(model, torch.stack([*good.values()]), cond=mine, max_batch=max_batch, **how)
        late = [item for item, x in zip(good, latent.x, strict=True) if not bool(x.isfinite().all())]
        return partial(_saved, latent, shards.path(i, ".safetensors")), {**noted, "late": late}

    return carry_out(shards, here, partial(place, model, shards, rows, plan), make, "encoding" if progress else None)


def _refuse_renamed(shards: Shards, world: World, files: PictureFiles) -> None:
    """Raises: ValueError: a picture that is done had another name: the records have them, the manifest a hash."""
    for i in shards.of(world):
        seen = (shards.record(i) or {}).get("seen", {})
        names = dict.fromkeys(files.names[item] for item in shards.span(i))  # one may be named twice
        for was, name in zip(seen, names, strict=False):
            if was != name:
                raise ValueError(
                    f"{shards.folder} holds another run (pictures: {was} there, {name} asked): take another folder"
                )


def _refuse_changed(shards: Shards, world: World, files: PictureFiles) -> None:
    """Raises: ValueError: a picture that was encoded here is another one now."""
    for i in shards.of(world):
        record = shards.record(i) or {}
        path = files.changed(shards.span(i), record.get("seen", {}))
        if path is not None:
            raise ValueError(
                f"{path} is not the picture that was encoded in shard {i} of {shards.folder}: take another folder, or "
                f"remove {shards.path(i, '.json')}, and the shard is made again"
            )


def _removed(path: Path) -> list[Path]:
    """No files: what is there is of an earlier making, when pictures of the shard were good."""
    path.unlink(missing_ok=True)
    return []


def _saved(latent: Latent, path: Path) -> list[Path]:
    latent.save(path)
    return [path]
