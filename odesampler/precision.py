"""Precision: what a device can do."""

from __future__ import annotations

import torch


def finest_dtype(device: torch.device) -> torch.dtype:
    """The finest floating dtype of `device`: float64, but on Apple's Metal, which has none, float32."""
    return torch.float32 if device.type == "mps" else torch.float64
