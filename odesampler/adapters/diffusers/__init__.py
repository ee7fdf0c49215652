"""diffusers, both ways: its models as `ods.Model`, our solvers in its pipelines.

    model = ods.adapters.diffusers.from_pretrained("a folder or a hub id")

Names are imported when first used; diffusers itself is the extra `odesampler[diffusers]`.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from odesampler.adapters.diffusers.autoencoder import Autoencoder as Autoencoder
    from odesampler.adapters.diffusers.grids import grid_of as grid_of
    from odesampler.adapters.diffusers.pipelines import from_pipeline as from_pipeline
    from odesampler.adapters.diffusers.pipelines import from_pretrained as from_pretrained
    from odesampler.adapters.diffusers.pipelines import from_unet as from_unet
    from odesampler.adapters.diffusers.prompts import conditions as conditions
    from odesampler.adapters.diffusers.prompts import text_model as text_model
    from odesampler.adapters.diffusers.schedules import Reading as Reading
    from odesampler.adapters.diffusers.schedules import read as read

_HOMES = {
    "grids": ("grid_of",),
    "pipelines": ("from_pipeline", "from_pretrained", "from_unet"),
    "autoencoder": ("Autoencoder",),
    "prompts": ("conditions", "text_model"),
    "schedules": ("Reading", "read"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'odesampler.adapters.diffusers' has no attribute {name!r}")
    try:
        return getattr(_import_module(f"odesampler.adapters.diffusers.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name in ("diffusers", "transformers"):
            raise ImportError(
                f"odesampler.adapters.diffusers.{name} needs {error.name}: pip install 'odesampler[diffusers]'"
            ) from error
        raise


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
