"""Transfers: what is made on a device comes to the host beside what is computed next.

    device, this stream:   shard i | shard i + 1                 host:   launches i | launches i + 1
    device, another:                | shard i to pinned memory                       | waits for i, writes it

Pinned memory is what a GPU can write to while nobody waits. From other devices a copy is made at once: later it would
wait for what is computed next, and a second thread is more than some of them stand.
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
    there = torch.empty_like(x, device="cpu", memory_format=torch.contiguous_format, pin_memory=True)
    beside.wait_stream(here)
    with torch.cuda.stream(beside):
        there.copy_(x, non_blocking=True)
        x.record_stream(beside)  # its memory is not given to others before the copy is done
        done = beside.record_event()

    def copied() -> Tensor:
        done.synchronize()
        return there

    return copied
