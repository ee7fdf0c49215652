"""Transfers: what is made on one side comes to the other while both go on.

    device, this stream:   shard i | shard i + 1                 host:   launches i | launches i + 1
    device, another:                | shard i to pinned memory                       | waits for i, writes it

    host:   draws z | launches its copy, and what comes after             device:   ... | copies z | ...

Pinned memory is what a GPU can read and write while nobody waits. From other devices a copy is made at once: later it
would wait for what is computed next, and a second thread is more than some of them stand.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def to_host(x: Tensor) -> Callable[[], Tensor]:
    """Begin to copy `x` to the host; the result, called from any thread, waits for the copy and returns it."""
    if x.device.type != "cuda":
        copy = x.cpu()
        return lambda: copy
    here, beside = torch.cuda.current_stream(x.device), torch.cuda.Stream(x.device)  # type: ignore[no-untyped-call]
    there = _pinned(x)
    beside.wait_stream(here)
    with torch.cuda.stream(beside):
        there.copy_(x, non_blocking=True)
        x.record_stream(beside)  # its memory is not given to others before the copy is done
        done = beside.record_event()

    def copied() -> Tensor:
        done.synchronize()
        return there

    return copied


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """`x`, made on the host, on `device`. A GPU goes on with what it was given before: nobody waits for it."""
    if device.type != "cuda":
        return x.to(device)
    return _pinned(x).copy_(x).to(device, non_blocking=True)  # torch keeps pinned memory until it has been read


def _pinned(x: Tensor) -> Tensor:
    """A place on the host as large as `x`; where no more memory can be pinned an ordinary one, whose copies wait."""
    try:
        return torch.empty(x.shape, dtype=x.dtype, device="cpu", pin_memory=True)
    except RuntimeError:
        return torch.empty(x.shape, dtype=x.dtype, device="cpu")
