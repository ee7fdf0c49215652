"""Networks: what can be told of one without asking it. A torch module, or any function.

    traits = name, shape, dtype and some 256 values of each weight, or the code of a function; the name of its class

Knows nothing of schedules, scales and models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


def device_of(network: Callable[..., Tensor]) -> torch.device:
    """Where its parameters are, or else its buffers; the CPU for a plain function."""
    tensors = chain(network.parameters(), network.buffers()) if isinstance(network, nn.Module) else iter(())
    tensor = next(tensors, None)
    return torch.device("cpu") if tensor is None else tensor.device


def first_weight(network: Callable[..., Tensor]) -> tuple[nn.Module, str] | None:
    """The module that keeps the first floating-point tensor, and under which name; a parameter if there is one."""
    modules = [*network.modules()] if isinstance(network, nn.Module) else []
    kinds = (nn.Module.named_parameters, nn.Module.named_buffers)  # a table of the schedule may be finer
    found = (
        (m, name) for kind in kinds for m in modules for name, p in kind(m, recurse=False) if p.dtype.is_floating_point
    )
    return next(found, None)


def addresses(network: Callable[..., Tensor]) -> list[int]:
    """Where each of its parameters and buffers lies in memory."""
    tensors = chain(network.parameters(), network.buffers()) if isinstance(network, nn.Module) else iter(())
    return [tensor.data_ptr() for tensor in tensors]


def answers_by_chance(network: Callable[..., Tensor]) -> bool:
    """Whether it has layers that, as it stands, answer the same question in other ways each time."""
    kinds = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
    modules = network.modules() if isinstance(network, nn.Module) else ()
    return any(m.training and isinstance(m, kinds) and getattr(m, "p", 1) > 0 for m in modules)


def traits(network: Callable[..., Tensor]) -> Iterator[bytes]:
    """What tells it from others, to be hashed.

    Of each weight a few hundred evenly spaced values are read: two checkpoints differ in nearly all of them. Of code
    only the names are known, and the byte code of a plain function.
    """
    if isinstance(network, nn.Module):
        for name, tensor in network.state_dict().items():
            flat = tensor.detach().flatten()
            values = flat[:: max(1, len(flat) // 256)].to("cpu", torch.float64)
            yield f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode() + values.numpy().tobytes()
    else:
        code = getattr(network, "__code__", None)
        yield b"" if code is None else code.co_code + repr(code.co_consts).split(" at 0x")[0].encode()
    kind: Any = network if hasattr(network, "__qualname__") else type(network)
    yield f"{kind.__module__}.{kind.__qualname__}".encode()
