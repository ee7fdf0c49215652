"""Tensors as a file: safetensors, whose bytes are the same whenever they are written.

    8 bytes: the length of the header;     the header: JSON, padded with spaces to a multiple of 8;     the tensors

The library that writes them puts the metadata into the header in an order of chance; here they are sorted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import torch
from torch import Tensor


def write_tensors(file: IO[bytes], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write `tensors`, each copied to the CPU, and `metadata` into an open file."""
    from safetensors.torch import save

    # Copied always: tensors that are one, or one value repeated, cannot be written otherwise.
    own = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    data = save(own, None if metadata is None else dict(metadata))
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    if metadata:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(math.ceil(len(text) / 8) * 8)
    file.write(len(text).to_bytes(8, "little") + text)
    file.write(memoryview(data)[end:])


def read_tensors(path: str | Path, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, on `device`, and its metadata.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no safetensors file, or damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with safe_open(str(path), "pt", device=str(device)) as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118  # not a dict
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a safetensors file, or damaged: {error}") from error
