"""Compiled networks: torch.compile, but not anew for every number of rows.

    rows -> the next power of two, or max_batch if that is less

The driver fills a call up to that with copies of its first sample, and cuts their answers off: so a few sizes serve
all, each compiled for itself. Copies, not zeros: what a network makes of t = 0 may be NaN, and so would be gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, TypeAlias

import torch
from torch import Tensor

Compile: TypeAlias = bool | Mapping[str, Any]  # whether to compile, or with which options of torch.compile

SIZES = 64  # torch gives up after 8, where it can be told


def compiled(network: Callable[..., Tensor], compile: Compile) -> Callable[..., Tensor]:
    """`network` as it is called: itself, or compiled."""
    if compile is False:
        return network
    options = {"dynamic": False, **({} if compile is True else compile)}
    if "recompile_limit" in signature(torch.compile).parameters:
        options = {"recompile_limit": SIZES, **options}
    made: Callable[..., Tensor] = torch.compile(network, **options)
    return made


def check_compile(compile: Compile) -> None:
    """Raises: TypeError: neither yes nor no, nor options. ValueError: an option that torch.compile does not have."""
    if not isinstance(compile, (bool, Mapping)):
        raise TypeError(
            'compile must be True, False, or options of torch.compile such as {"mode": "reduce-overhead"}; '
            f"got {compile!r}"
        )
    known = [*signature(torch.compile).parameters][1:]  # the first is what is compiled
    unknown = [] if isinstance(compile, bool) else [name for name in compile if name not in known]
    if unknown:
        raise ValueError(f"compile has the options of torch.compile, {', '.join(known)}; got {unknown[0]!r}")


def wants_padding(compile: Compile) -> bool:
    """Whether every size is compiled for itself."""
    return compile is True or (compile is not False and not compile.get("dynamic", False))


def bucket(samples: int, most: int | None) -> int:
    """The number of samples to which so many are padded, of at most `most`."""
    size = 1 << (samples - 1).bit_length()
    return size if most is None else min(size, most)


def padded(value: Any, to: int) -> Any:
    """`value`, a tensor of some rows, filled up with its first; a number as it is."""
    if not isinstance(value, Tensor) or len(value) == to:
        return value
    return torch.cat([value, value[:1].expand(to - len(value), *value.shape[1:])])
