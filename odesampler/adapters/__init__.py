"""Models and schedulers of other libraries: `ods.adapters.diffusers` and its sisters, each imported when first used."""

from importlib import import_module as _import_module
from typing import Any

_MODULES = ("checkpoints", "diffusers", "edm", "guided_diffusion", "kdiffusion")

__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return _import_module(f"odesampler.adapters.{name}")
    raise AttributeError(f"module 'odesampler.adapters' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
