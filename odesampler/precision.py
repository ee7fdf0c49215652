"""Precision: what a device can do, and what is a number."""

from __future__ import annotations

from numbers import Real

import torch


def finest_dtype(device: torch.device) -> torch.dtype:
    """The finest floating dtype of `device`: float64, but on Apple's Metal, which has none, float32."""
    return torch.float32 if device.type == "mps" else torch.float64


def is_number(value: object) -> bool:
    """Whether `value` is a real number, of Python or numpy; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)
