"""Traits: what tells one network from another, to be hashed.

    module      name, shape, dtype and some 256 values of each weight, what `odesampler_traits()` of its parts says
    function    its code and defaults; numbers, tensors, modules and functions that it names from outside itself
    object      that can be called: tensors and modules among its attributes
    other       numbers and words themselves; of all, what kind it is

Knows nothing of schedules, scales and models.
"""

from __future__ import annotations

import dis
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from numbers import Number
from types import CodeType, FunctionType, MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn

VALUES = 256  # of a weight, about, evenly spaced: two checkpoints differ in nearly all of them


def traits(value: Any, known: frozenset[int] = frozenset()) -> Iterator[bytes]:
    """What tells `value`, a network or what belongs to one, from others; `known` are those around it, by identity."""
    if id(value) in known:
        return
    inside = known | {id(value)}
    if isinstance(value, nn.Module):
        for name, tensor in value.state_dict().items():
            yield _weight(name, tensor)
        inside |= {id(part) for part in value.modules()}
        for part in value.modules():
            if hasattr(part, "odesampler_traits"):
                yield from traits(cast(Any, part).odesampler_traits(), inside)
    elif isinstance(value, Tensor):
        yield _weight("", value)
    elif isinstance(value, FunctionType):
        yield from _code(value)
        yield from traits((value.__defaults__, value.__kwdefaults__, *_named(value)), inside)
    elif isinstance(value, MethodType):
        yield from traits((value.__func__, value.__self__), inside)
    elif isinstance(value, partial):
        yield from traits((value.func, value.args, value.keywords), inside)
    elif isinstance(value, Mapping):
        yield from traits([*value.items()], inside)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from traits(each, inside)
    elif value is None or isinstance(value, (Number, str)):
        yield repr(value).encode()
    elif callable(value):
        yield from traits(
            [v for v in getattr(value, "__dict__", {}).values() if isinstance(v, (Tensor, nn.Module))], inside
        )
    kind: Any = value if hasattr(value, "__qualname__") else type(value)
    yield f"{kind.__module__}.{kind.__qualname__}".encode()


def _weight(name: str, tensor: Tensor) -> bytes:
    flat = tensor.detach().flatten()
    values = flat[:: max(1, len(flat) // VALUES)].to("cpu", torch.float64)
    return f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode() + values.numpy().tobytes()


def _code(function: FunctionType) -> Iterator[bytes]:
    """What it does, and with which names and constants; of functions inside it too."""
    for code in _codes(function.__code__):
        yield code.co_code + repr(code.co_names).encode()
        for constant in code.co_consts:
            if isinstance(constant, frozenset):  # in another order in each process
                yield repr(sorted(map(repr, constant))).encode()
            elif not isinstance(constant, CodeType):
                yield repr(constant).encode()


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _named(function: FunctionType) -> Iterator[Any]:
    """What it names from outside itself, where that belongs to it.

    Numbers that it sets are counters, and what is neither number, tensor, module nor function may be a log of calls:
    with those it would be another network at every call. Functions of other files are libraries.
    """
    steps = [step for code in _codes(function.__code__) for step in dis.get_instructions(code)]
    counted = {step.argval for step in steps if step.opname in ("STORE_DEREF", "STORE_GLOBAL")}
    around = {step.argval for step in steps if step.opname == "LOAD_GLOBAL"} & function.__globals__.keys()
    named = {name: function.__globals__[name] for name in around}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # nothing is there yet, or any more
            named[name] = cell.cell_contents
    for name, value in sorted(named.items()):
        number = isinstance(value, Number) and not isinstance(value, bool) and name not in counted
        own = isinstance(value, FunctionType) and value.__module__ == function.__module__
        if number or own or isinstance(value, (Tensor, nn.Module)):
            yield value
