"""Networks: what can be told of one without asking it. A torch module, or any function.

    device, dtype     of its first weight
    addresses         of all of them

Knows nothing of schedules, scales and models.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

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
