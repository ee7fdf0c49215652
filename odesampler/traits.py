"""Traits: what tells one network from another, to be hashed.

    module      name, shape, dtype and some 256 values of each weight; what `odesampler_traits()` of its parts gives
    function    its code; modules and functions that it names from outside itself; its defaults
    object      modules and functions among its attributes

What else is found in a function or an object may be a cache, a buffer or a count of calls, with which it would be
another network at every call. Of defaults and arguments of a partial, numbers and words count too, which cannot change
in place; in `odesampler_traits()` all does. Knows nothing of schedules, scales and models.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from numbers import Real
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

VALUES = 256  # of a weight, about, evenly spaced: two checkpoints differ in nearly all of them
LIBRARIES = sys.stdlib_module_names | {"odesampler", "torch"}
Seen: TypeAlias = dict[int, Any]  # what has been read, by identity; kept, or another could have its identity


def traits(network: Any) -> Iterator[bytes]:
    """What tells `network` from others. The same in every process, for the same files and version of Python."""
    if isinstance(network, FunctionType) and _of_library(network):
        yield from _code(network)  # elsewhere a name is enough, and does not change with each version
    yield from _found(network, {})


def _said(value: Any, seen: Seen) -> Iterator[bytes]:
    """Of what belongs to a network because it says so."""
    if isinstance(value, Tensor):
        yield _weight("", value)
    elif isinstance(value, Mapping):
        yield from _said(sorted(value.items(), key=repr), seen)
    elif isinstance(value, (list, tuple)):
        yield f"{len(value)}".encode()
        for each in value:
            yield from _said(each, seen)
    else:
        yield from _constant(value, seen)


def _constant(value: Any, seen: Seen) -> Iterator[bytes]:
    """Of a default, or an argument: what cannot change in place, and what is found in all else."""
    if isinstance(value, Real) and not isinstance(value, bool):
        yield repr(float(value)).encode()  # however it is written
    elif value is None or isinstance(value, (bool, str, bytes, torch.dtype)):
        yield repr(value).encode()
    else:
        yield from _found(value, seen)


def _found(value: Any, seen: Seen) -> Iterator[bytes]:
    """Of the network itself, and of modules, functions and what can be called, wherever they are; of nothing else."""
    if id(value) in seen or isinstance(value, (type, ModuleType, Tensor)):
        return
    seen[id(value)] = value
    if isinstance(value, nn.Module):
        yield from _module(value, seen)
    elif isinstance(value, FunctionType):
        yield from _function(value, seen)
    elif isinstance(value, partial):
        yield from _found(value.func, seen)
        for each in (*value.args, *(v for _, v in sorted(value.keywords.items()))):
            yield from _constant(each, seen)
    elif isinstance(value, (Mapping, list, tuple)):
        for each in [*value.values()] if isinstance(value, Mapping) else [*value]:
            yield from _found(each, seen)
    elif isinstance(value, MethodType):
        yield from _found([value.__func__, value.__self__], seen)
    elif type(value).__module__.partition(".")[0] not in LIBRARIES:  # whose objects remember what was compiled
        yield from _found(getattr(value, "__dict__", {}), seen)
    yield from _found(getattr(value, "__wrapped__", ()), seen)
    if callable(value):
        kind: Any = value if hasattr(value, "__qualname__") else type(value)
        yield f"{kind.__module__}.{kind.__qualname__}".encode()


def _module(module: nn.Module, seen: Seen) -> Iterator[bytes]:
    for name, tensor in module.state_dict().items():
        yield _weight(name, tensor)
    parts = [*module.modules()]
    seen.update((id(part), part) for part in parts)
    for part in parts:
        if hasattr(part, "odesampler_traits"):
            yield from _said(cast(Any, part).odesampler_traits(), seen)


def _function(function: FunctionType, seen: Seen) -> Iterator[bytes]:
    if not _of_library(function):
        yield from _code(function)
    for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        yield from _constant(default, seen)
    yield from _found(_named(function), seen)


def _weight(name: str, tensor: Tensor) -> bytes:
    flat = tensor.detach().flatten()
    values = flat[:: max(1, len(flat) // VALUES)].to("cpu", torch.float64)
    return f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode() + values.numpy().tobytes()


def _code(function: FunctionType) -> Iterator[bytes]:
    """What it does, with which names and constants; functions inside it too."""
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
    """What it names from outside itself."""
    steps = [step for code in _codes(function.__code__) for step in dis.get_instructions(code)]
    known = {step.argval for step in steps if step.opname == "LOAD_GLOBAL"} & function.__globals__.keys()
    values = [function.__globals__[name] for name in sorted(known)]
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # nothing is there yet, or any more
            values.append(cell.cell_contents)
    return values


def _of_library(function: FunctionType) -> bool:
    file, package = function.__code__.co_filename, (function.__module__ or "").partition(".")[0]
    return package in LIBRARIES or any(folder in file for folder in ("site-packages", "dist-packages"))
