"""Settings: in one line, what an analysis was told that its numbers do not show.

    made with seed=77, cond label=3, guidance_scale=7.5

What was left at None or off is left out: two lines that are equal are two analyses of the same settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from odesampler.guidance import Guidance
from odesampler.model import Model
from odesampler.precision import dtype_name

SHOWN = 8  # values of one setting; of more, the first and how many


def made_with(**given: Any) -> str:
    """The settings that were given, by name, for a table's notes; nothing where there are none."""
    said = [f"{name}{_words(value)}" for name, value in given.items() if not _off(name, value)]
    return f"made with {', '.join(said)}" if said else ""


def shown_cond(model: Model, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The conditions that were given, of those that a latent keeps: without the ones that are all null."""
    null = model.nothing(1)
    return {k: v for k, v in cond.items() if k not in null or not bool((v == null[k].to(v.device)).all())}


def _off(name: str, value: Any) -> bool:
    if isinstance(value, Tensor):
        return False
    off = name == "guidance_scale" and (value.scale if isinstance(value, Guidance) else value) == 1
    return off or value is None or (isinstance(value, (Mapping, list, tuple)) and not value)


def _words(value: Any) -> str:
    """` label=3` for conditions, else `=` and the value; a tensor of many values by its shape."""
    if isinstance(value, Mapping):
        return " " + ", ".join(f"{key}{_words(one)}" for key, one in value.items())
    if isinstance(value, Tensor) and (value.ndim > 1 or value.is_floating_point()):
        return f" of shape {tuple(value.shape)}"
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, (list, tuple, range)) and len(value) > SHOWN:
        return f"={list(value[:SHOWN])} and {len(value) - SHOWN} more"
    if isinstance(value, torch.dtype):
        return f"={dtype_name(value)}"
    return f"={value:g}" if isinstance(value, float) else f"={value}"
