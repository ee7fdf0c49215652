"""Traits: what tells one network from another, to be hashed.

    module      name, shape, dtype and some 256 values of each weight; what `odesampler_traits()` of its parts gives
    function    its code and defaults; modules and functions that it names from outside itself
    object      that can be called, or whose method is: its modules

What else a function or an object holds may be a cache, a buffer or a count of calls, with which it would be another
network at every call. Numbers, words and tensors count where they are said to: in `odesampler_traits()`, in defaults
and as arguments of a partial. Knows nothing of schedules, scales and models.
"""

from __future__ import annotations

import dis
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from numbers import Real
from types import CodeType, FunctionType, MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn

VALUES = 256  # of a weight, about, evenly spaced: two checkpoints differ in nearly all of them


def traits(network: Any) -> Iterator[bytes]:
    """What tells `network` from others. The same in every process, for the same files and versions of Python."""
    return _of(network, {})


def _of(value: Any, seen: dict[int, Any]) -> Iterator[bytes]:
    """Of anything; what has been `seen`, by identity, is said once."""
    if isinstance(value, Tensor):
        yield _weight("", value)
    elif isinstance(value, Mapping):
        yield from _of([item for _, item in sorted((repr(item[0]), item) for item in value.items())], seen)
    elif isinstance(value, (list, tuple)):
        yield f"{len(value)}".encode()
        for each in value:
            yield from _of(each, seen)
    elif isinstance(value, Real) and not isinstance(value, bool):
        yield repr(float(value)).encode()  # however it is written
    elif value is None or isinstance(value, (bool, str, bytes, torch.dtype)):
        yield repr(value).encode()
    elif id(value) not in seen:
        seen[id(value)] = value  # kept, or another could have its identity
        kind: Any = value if hasattr(value, "__qualname__") else type(value)
        yield f"{kind.__module__}.{kind.__qualname__}".encode()
        yield from _inside(value, seen)


def _inside(value: Any, seen: dict[int, Any]) -> Iterator[bytes]:
    if isinstance(value, nn.Module):
        for name, tensor in value.state_dict().items():
            yield _weight(name, tensor)
        parts = [*value.modules()]
        seen.update((id(part), part) for part in parts)
        for part in parts:
            if hasattr(part, "odesampler_traits"):
                yield from _of(cast(Any, part).odesampler_traits(), seen)
    elif isinstance(value, FunctionType):
        yield from _code(value)
        yield from _of((value.__defaults__, value.__kwdefaults__, *_named(value)), seen)
    elif isinstance(value, MethodType):
        yield from _of((value.__func__, value.__self__), seen)
    elif isinstance(value, partial):
        yield from _of((value.func, value.args, value.keywords), seen)
    else:
        yield from _of([v for v in getattr(value, "__dict__", {}).values() if _has_modules(v)], seen)


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


def _named(function: FunctionType) -> list[Any]:
    """What it names from outside itself, where that belongs to it. Functions of other files, by name, are libraries."""
    steps = [step for code in _codes(function.__code__) for step in dis.get_instructions(code)]
    known = {step.argval for step in steps if step.opname == "LOAD_GLOBAL"} & function.__globals__.keys()
    values = [function.__globals__[name] for name in sorted(known)]
    values = [v for v in values if not isinstance(v, FunctionType) or v.__module__ == function.__module__]
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # nothing is there yet, or any more
            values.append(cell.cell_contents)
    return [v for v in values if isinstance(v, (FunctionType, MethodType, partial)) or _has_modules(v)]


def _has_modules(value: Any) -> bool:
    """Whether `value` is a module, some of them, or an object that calls one."""
    if isinstance(value, (list, tuple)):
        return any(isinstance(v, nn.Module) for v in value)
    if isinstance(value, (nn.Module, type)):
        return isinstance(value, nn.Module)
    return callable(value) and any(map(_has_modules, getattr(value, "__dict__", {}).values()))
