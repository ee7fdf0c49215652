"""Standing conditions: what a network is told where nobody says, kept on its device.

    value, one for all samples -> (batch, ...) on the device

A model owns one of these, since a copy from the host waits for the device: each value is copied there once, not at
every evaluation. A value that is being learned is read anew each time, so that gradients reach it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(eq=False)
class Standing:
    """Values without a batch dimension as tensors, each device's own."""

    # By the identity of the value, which is kept beside, so that no other value can take its place.
    kept: dict[tuple[int, str], tuple[Any, Tensor]] = field(default_factory=dict)

    def repeated(self, values: Mapping[str, Any], batch: int, device: torch.device) -> dict[str, Tensor]:
        """Each of `values` for `batch` samples. Numbers are filled in there, which waits for nothing."""
        made = {}
        for key, value in values.items():
            if isinstance(value, (bool, int, float)):
                made[key] = torch.full((batch,), value, device=device)
            else:
                one = self._one(value, device)
                made[key] = one.expand(batch, *one.shape)
        return made

    def _one(self, value: Any, device: torch.device) -> Tensor:
        if isinstance(value, Tensor) and (value.requires_grad or value.device == device):
            return value.to(device)
        known, one = self.kept.get((id(value), str(device)), (None, None))
        if one is None or known is not value:
            with torch.inference_mode(False):  # or a later solve with gradients could not use it
                one = torch.as_tensor(value, device=device)
            self.kept[id(value), str(device)] = value, one
        return one


def check_values(what: str, values: Mapping[str, Any]) -> None:
    """Raises: TypeError: no mapping of names, or a value that is neither a number nor a tensor nor made of numbers."""
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise TypeError(f'{what} is a mapping from names, such as {{"label": 10}}; got {values!r}')
    for key, value in values.items():
        try:
            torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{what}[{key!r}] must be a number or a tensor; got {value!r}") from error
