"""Precision: what a device can do, what a dtype is called, and what is a number."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from numbers import Integral, Real
from typing import Any, TypeGuard

import torch
from torch import Tensor

_FINE = (torch.float32, torch.float64)  # told apart without a call of torch, which would be one at every evaluation


def finest_dtype(device: torch.device) -> torch.dtype:
    """The finest floating dtype of `device`: float64, but on Apple's Metal, which has none, float32."""
    return torch.float32 if device.type == "mps" else torch.float64


def at_least_single(dtype: torch.dtype) -> torch.dtype:
    """`dtype`, or float32 if that is finer."""
    return dtype if dtype in _FINE else torch.promote_types(dtype, torch.float32)


def autocasting(network: Callable[..., Tensor], dtype: torch.dtype) -> Callable[..., Tensor]:
    """`network`, under torch.autocast with `dtype`, on the device of its first argument. Can be copied and pickled."""
    return partial(_autocast, network, dtype)


def _autocast(network: Callable[..., Tensor], dtype: torch.dtype, x_t: Tensor, /, *args: Any, **cond: Any) -> Tensor:
    with torch.autocast(x_t.device.type, dtype):
        return network(x_t, *args, **cond)


def dtype_name(dtype: torch.dtype) -> str:
    """Such as "float32"; `getattr(torch, name)` is the dtype again."""
    return str(dtype).removeprefix("torch.")


def is_number(value: object) -> bool:
    """Whether `value` is a real number, of Python or numpy; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: object) -> TypeGuard[int]:
    """Whether `value` is a whole number, likewise; 3.0 is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_dtypes(dtype: Any, autocast: Any) -> None:
    """What a network is to be called with, and what torch.autocast is to use; None: as it comes.

    Raises:
        TypeError: No dtype.
        ValueError: Whole numbers; a dtype that torch.autocast does not cast to, which it would ignore.
    """
    for name, given in (("dtype", dtype), ("autocast", autocast)):
        if given is not None and not isinstance(given, torch.dtype):
            raise TypeError(f"{name} must be a dtype such as torch.bfloat16; got {given!r}")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point dtype; got {dtype}")
    if autocast not in (None, torch.bfloat16, torch.float16):
        raise ValueError(
            f"autocast must be torch.bfloat16 or torch.float16; got {autocast} "
            "(for a whole network in another precision convert its weights and give Model.dtype)"
        )
