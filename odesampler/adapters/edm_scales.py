"""The scales that EDM puts around a network: D = c_skip x + c_out F(c_in x).

    c_in = (s^2 + d^2)^-1/2,    c_skip = (d c_in)^2,    c_out = s d c_in,        s = sigma, d the deviation of the data

References:
    Karras et al. 2022, Elucidating the Design Space, arXiv:2206.00364, Table 1.
"""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

Level = TypeVar("Level", float, Tensor)  # of one sigma, or elementwise of many, in their dtype


def edm_scales(sigma: Level, data: float) -> tuple[Level, Level, Level]:
    """c_skip, c_out and c_in at `sigma`, for data of standard deviation `data`."""
    into: Level = (sigma**2 + data**2) ** -0.5
    return (data * into) ** 2, sigma * data * into, into
