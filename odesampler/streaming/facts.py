"""The facts of a run: all that decides what its shards hold, small enough for a manifest.

    what can be seen (solver, sigmas, guidance, dtypes, sizes): as it is;     what is long (seeds, conditions): a hash

Where two runs differ the manifest names in what, in this order: first what a user has typed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from odesampler.latent import Recipe
from odesampler.model import Model
from odesampler.plan import Plan
from odesampler.room import AnyBatch

FORMAT = "odesampler.run/2"
VALUES = 1 << 20  # of a tensor, looked at together


def facts_of(what: str, model: Model, plan: Plan, max_batch: AnyBatch, cond: Mapping[str, Tensor]) -> dict[str, Any]:
    """What two runs must agree in to be the same; `cond` are all conditions, each (samples, ...)."""
    # The fingerprint is the model's, whose latents may be decoded in any precision. The bits of a run depend on it.
    precision = {"network dtype": str(model.network_dtype), "autocast": str(model.autocast)}
    rows = max_batch if max_batch is None or isinstance(max_batch, str) else int(max_batch)
    facts = {"what": what, **asdict(Recipe.of(plan, model)), **precision, "max batch": rows}
    null = model.nothing(1) if plan.guidance_scale != 1 else {}
    told = {"conditions": _hashes(cond), "null conditions": _hashes(null)}
    return {**facts, "format": FORMAT, **told}


def fact_of_seeds(seeds: Sequence[int]) -> str:
    """Such as "from 5" for the seeds 5, 6, 7, ..., however they were given; of others a hash."""
    in_sequence = isinstance(seeds, range) or all(seed == s for s, seed in enumerate(seeds, seeds[0]))
    return f"from {seeds[0]}" if in_sequence else hash_of(torch.tensor(seeds))


def hash_of(value: Tensor) -> str:
    """A short hash of the rows of `value` (n, ...), a few at a time; of one row repeated, of that row, whatever n."""
    value = value.detach()[:1] if value.stride(0) == 0 else value.detach()
    parts: Sequence[Tensor] = torch.split(value, max(1, VALUES // max(1, value[0].numel())))
    if all(torch.equal(part, value[:1].expand_as(part)) for part in parts):
        parts = [value[:1]]
    digest = hashlib.sha256(f"{value.dtype} {tuple(value.shape[1:])}".encode())
    for part in parts:
        own = part.cpu().clone(memory_format=torch.contiguous_format)
        digest.update(own.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _hashes(cond: Mapping[str, Tensor]) -> dict[str, str]:
    return {k: hash_of(v) for k, v in cond.items()}
