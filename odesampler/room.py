"""Room: how many rows of the network fit into memory, found out by trying.

    rows -> rows / 2 -> ... until they fit;     what did not fit is not tried again

A model owns one, so that the next call and the next verb begin where the last one ended. It never grows: a new Model
begins anew. Knows numbers and errors, no models: the driver asks in calls of the size that is said here.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from odesampler.precision import is_whole

AnyBatch: TypeAlias = Literal["auto"] | int | None  # the most rows to give the network at once

# Of CUDA, ROCm and Metal; of the CPU on Linux and Windows; of cuBLAS and cuDNN.
TEXTS = ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")


@dataclass(eq=False)
class Room:
    """The most rows of the network that are worth trying, for each shape of a sample and device."""

    known: dict[tuple[tuple[int, ...], str], int] = field(default_factory=dict)

    def rows(self, shape: tuple[int, ...], device: torch.device) -> int | None:
        """For samples of `shape`; None: any number, as far as is known."""
        return self.known.get((tuple(shape), str(device)))

    def halve(self, shape: tuple[int, ...], device: torch.device, rows: int) -> None:
        """Note that `rows` did not fit."""
        self.known[tuple(shape), str(device)] = rows // 2


def attempted(ask: Callable[[], Tensor], device: torch.device) -> Tensor | str:
    """What `ask` returns; or, where memory runs out in it, what the error says, with memory freed."""
    try:
        return ask()
    except Exception as error:
        if not of_memory(error):
            raise
        said = str(error) or type(error).__name__
    # Not before here is the traceback gone, and with it what the failed call held.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return said


def of_memory(error: Exception) -> bool:
    """Whether `error` says that memory ran out. Only CUDA has a class for it; the others are told by their text."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in TEXTS)


def too_large(shape: tuple[int, ...], rows: int, device: torch.device, said: str) -> Exception:
    """The error of one sample that does not fit."""
    return torch.cuda.OutOfMemoryError(
        f"not even one sample of shape {tuple(shape)} fits into the memory of {device} ({rows} rows of the network): "
        "take a network in half precision (Model(network.to(torch.bfloat16), ...) or "
        "Model(..., autocast=torch.bfloat16)), no guidance, or another device; "
        f"the last attempt ended with: {said.splitlines()[0]}"
    )


def check_max_batch(max_batch: AnyBatch, width: int) -> AnyBatch:
    """`max_batch`, a number of numpy as one of Python.

    Raises:
        ValueError: No size of a batch, or not room for one sample, which takes `width` rows.
    """
    if max_batch is None or (isinstance(max_batch, str) and max_batch == "auto"):
        return max_batch
    if not is_whole(max_batch) or max_batch < 1:
        raise ValueError(f'max_batch must be a whole number of 1 or more, "auto", or None; got {max_batch!r}')
    if max_batch < width:
        raise ValueError(
            f"guidance needs {width} rows for one sample: max_batch must be {width} or more; got {max_batch}"
        )
    return int(max_batch)
