"""The range of a model's data, (low, high), and images that leave it; the shape of one.

    overshoot of an image = what its values are below low or above high, all but the largest 1 in 100 of them

A network was trained inside the range. Far outside it answers nonsense without saying so, and that is mostly a mistake
of scale: bytes, or [-1, 1] for [0, 1]. A little outside is what decoding and sampling leave, above all in single values
beside edges, which is why those do not count: with ten steps they were up to 0.7 beyond [-1, 1] on 32x32 emoji, while
the overshoot as above stayed within WARNED of the width.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from odesampler.precision import is_whole

COUNTED = 0.99  # of an image's values; fewer than 100 all count
WARNED = 0.1  # overshoot in widths of the range; more is said
REFUSED = 0.5  # likewise; more is no image of this model


def check_data_range(data_range: tuple[float, float] | None) -> None:
    """Raises: ValueError: neither None nor two finite numbers that rise."""
    if data_range is None:
        return
    pair = isinstance(data_range, (tuple, list)) and len(data_range) == 2
    if not pair or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in data_range):
        raise ValueError(f"data_range is two finite numbers such as (-1, 1), or None; got {data_range!r}")
    if not data_range[0] < data_range[1]:
        raise ValueError(f"data_range is the least value of the data and then the greatest; got {data_range!r}")


def check_data_shape(shape: Sequence[int] | None) -> None:
    """Raises: ValueError: neither None nor whole numbers of 1 or more, at least one."""
    if shape is None:
        return
    if not isinstance(shape, Sequence) or not shape or not all(is_whole(size) and size > 0 for size in shape):
        raise ValueError(f"data_shape is that of one sample, such as (3, 32, 32), or None; got {shape!r}")


def overshoot(images: Tensor, data_range: tuple[float, float]) -> Tensor:
    """(batch,) how far each of `images` (batch, *shape) leaves the range, in its own units; not above 0: not at all."""
    low, high = data_range
    beyond = torch.maximum(low - images, images - high).flatten(1)
    return beyond.kthvalue(math.ceil(COUNTED * beyond.shape[1]), dim=1).values


def check_images(images: Tensor, data_range: tuple[float, float] | None, name: str) -> None:
    """Refuse what lies far outside the range of the model called `name`; say what lies a little outside.

    Raises:
        ValueError: An image whose overshoot is more than half of the range's width.
    """
    if data_range is None:
        return
    low, high = data_range
    by = overshoot(images.detach(), data_range)
    far, said = (by > part * (high - low) for part in (REFUSED, WARNED))
    if not bool(said.any()):
        return
    ends = f"from {images.min().item():g} to {images.max().item():g}"
    if bool(far.any()):
        rows = torch.nonzero(far).flatten().tolist()
        raise ValueError(
            f"images run {ends}, and the data of {name} from {low:g} to {high:g}: {len(rows)} of {len(images)} are far "
            f"outside, the first at {rows[0]}; {_remedy(images, low, high)}"
        )
    warnings.warn(
        f"{int(said.sum())} of {len(images)} images leave the data range [{low:g}, {high:g}] of {name}, by up to "
        f"{by.max().item():.2g} (they run {ends}): images.clamp({low:g}, {high:g}) brings them back",
        stacklevel=4,
    )


def _remedy(images: Tensor, low: float, high: float) -> str:
    least, greatest = images.min().item(), images.max().item()
    if least >= 0 and 2 < greatest <= 255:
        bytes_ = "ods.images.to_float(images.to(torch.uint8))"
        if (low, high) == (-1, 1):
            return f"if they are bytes, 0 .. 255, give {bytes_}, or scale them to [-1, 1] in another way"
        return f"if they are bytes, 0 .. 255, give images / 255 * {high - low:g} + {low:g}"
    return f"scale them to [{low:g}, {high:g}], or, if they are meant so, clamp them: images.clamp({low:g}, {high:g})"
