"""Drawing any number of images, shard after shard: item i is the sample of seed i."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odesampler import images
from odesampler.adaptive import Status
from odesampler.files import written_whole
from odesampler.guidance import usual_guidance, warn_of_nothing_to_guide_to
from odesampler.inputs import checked_cond, checked_count, checked_shape
from odesampler.model import Model
from odesampler.noise import AnySeed, noise_for, seed_row
from odesampler.room import AnyBatch
from odesampler.sampling import sample
from odesampler.streaming.facts import fact_of_seeds, facts_of
from odesampler.streaming.runs import SHARD, Run, Write, carry_out, checked_size, place, planned
from odesampler.streaming.shards import Shards, World
from odesampler.tensor_file import write_tensors
from odesampler.transfer import to_host

KINDS = ("safetensors", "png")


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
            00000/00000000.png, ... of the samples that arrived.
        seed: As for `sample`.
        cond: As for `sample`, one value or `num_samples`.
        max_batch: As for `sample`. The last bits depend on it: a number makes them the same in every run.
        rank: Which process this is, of `world`; by default what torchrun or Slurm say, else the only one.
        world: How many there are. The files are the same whatever their number.
        progress: Show a progress bar.
        **how: solver, num_steps, grid, noise, guidance_scale, rtol, atol, clip_denoised, state_dtype, as for `sample`.

    Returns:
        A `Run`. Samples that did not arrive are listed; as tensors they are NaN, as pictures left out.

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
    plan = planned("sample_many", model, max_batch, into_zero=True, **numbers)
    shards = Shards(Path(out), checked_count(num_samples, None), checked_size(shard_size))
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

    def make(i: int, items: range) -> tuple[Write, dict[str, Any]]:
        mine = {k: v[items.start : items.stop] for k, v in conditions.items()}
        part = list(seeds[items.start : items.stop])
        found = sample(model, len(items), seed=part, cond=mine, max_batch=max_batch, **how)
        late = [item for item, status in zip(items, found.status, strict=True) if status is not Status.ARRIVED]
        x = to_host(found.images if kind == "png" else found.x)
        return partial(_written, shards, i, kind, x, part), {"late": late}

    return carry_out(
        shards, here, partial(place, model, shards, max_batch, plan), make, "sampling" if progress else None
    )


def _written(shards: Shards, i: int, kind: str, copied: Callable[[], Tensor], seeds: Sequence[int]) -> list[Path]:
    """The samples of shard `i`, in files that are whole."""
    x = copied()
    if kind == "png":
        paths = images.save_each(x, shards.path(i), first=shards.span(i).start, digits=8)
        for late in {shards.path(i) / f"{item:08d}.png" for item in shards.span(i)}.difference(paths):
            late.unlink(missing_ok=True)  # of an earlier making, that did arrive
        return paths
    path = shards.path(i, ".safetensors")
    with written_whole(path) as file:
        write_tensors(file, {"x": x, "seed": torch.tensor(seeds)})
    return [path]
