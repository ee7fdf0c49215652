"""Pipelines of diffusers as models: the network, what its scheduler says, and what goes in and out around them.

    model = from_pretrained("a folder or a hub id")        or from_pipeline(pipe), or from_unet(unet, scheduler)

The scheduler's solver and the pipeline's number of steps stay behind: verbs have their own. Guidance is the pipeline's,
unless one says otherwise; clipping is off, unless one asks a verb for it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging
from torch import nn

from odesampler.adapters.diffusers.autoencoder import Autoencoder
from odesampler.adapters.diffusers.families import checked_scale, usual_scale
from odesampler.adapters.diffusers.networks import prepared
from odesampler.adapters.diffusers.prompts import FAMILIES, text_model
from odesampler.adapters.diffusers.schedules import read
from odesampler.model import Model
from odesampler.precision import is_whole


def from_unet(unet: nn.Module, scheduler: Any, **options: Any) -> Model:
    """A network of diffusers, and the scheduler that it was trained with, as a model.

    Args:
        unet: A UNet2DModel or UNet2DConditionModel, or a transformer of DiT, Stable Diffusion 3 or Flux.
        scheduler: A scheduler, or its configuration: for the schedule, the clock and the prediction type.
        options: Any argument of `ods.Model`, in place of what the two say: name, null_cond, cond, round_t, ...

    Returns:
        A model with the conditions "label", or "text" (tokens, width) and for Stable Diffusion XL "pooled" (width,) and
        "size" (6,). A flow model takes its scheduler's shift for its grid, others our own default.

    Raises:
        TypeError: A network that is not known here, or no scheduler.
        ValueError: A configuration that cannot be served; names its key.

    Examples:
        >>> from diffusers import DDPMScheduler, UNet2DModel
        >>> blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
        >>> unet = UNet2DModel(8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, **blocks)
        >>> model = ods.adapters.diffusers.from_unet(unet, DDPMScheduler())
        >>> model.prediction, model.data_shape
        ('eps', (3, 8, 8))
        >>> tuple(ods.sample(model, 2, num_steps=5).x.shape)
        (2, 3, 8, 8)
    """
    reading = read(scheduler)
    network, facts = prepared(unet, reading)
    return Model(network, reading.schedule, **{"name": type(unet).__name__, **facts, **options})


def from_pipeline(pipe: Any, **given: Any) -> Model:
    """A pipeline of diffusers as a model.

    Args:
        pipe: A pipeline; its networks are used as they are, not copied.
        given: What the kind of pipeline takes, and any argument of `ods.Model`. For text see `text_model`: `prompt`,
            `negative_prompt`, `guidance_scale`, ... DiT: `label`, a class by number or name, and `guidance_scale`.

    Returns:
        A model. What was given as a prompt or label is its usual condition, `Model.cond`; verbs take others. Its
        autoencoder, where there is one, is its codec.

    Raises:
        TypeError: An argument that this kind of pipeline does not take.
        ValueError: A pipeline or a configuration that cannot be served.
    """
    kinds = [base.__name__ for base in type(pipe).__mro__]
    kind = next((k for k in kinds if k in MAKERS), None)
    if kind is None:
        raise ValueError(
            f"{kinds[0]} is not one of the pipelines that are known: {', '.join(MAKERS)}; its network and scheduler "
            "alone may do, from_unet(pipe.unet, pipe.scheduler)"
        )
    maker = MAKERS[kind]
    own = [p.name for p in inspect.signature(maker).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if unknown := given.keys() - {*own, *(f.name for f in fields(Model) if f.init)}:
        raise TypeError(
            f"{kind} takes {', '.join([*own, 'the arguments of ods.Model'])}; got {', '.join(sorted(unknown))}"
        )
    return maker(pipe, **{"name": kinds[0], **given})


def from_pretrained(
    source: str | PathLike[str],
    *,
    device: str | torch.device | None = None,
    load: Mapping[str, Any] | None = None,
    progress: bool = False,
    **given: Any,
) -> Model:
    """A pipeline in a folder or on the hub, as a model. Weights are read from safetensors only.

    Args:
        source: A folder, as `pipe.save_pretrained` writes it, or a hub id such as "google/ddpm-cifar10-32".
        device: Where to put its networks.
        load: What `DiffusionPipeline.from_pretrained` takes: {"dtype": torch.float16, "variant": "fp16"}.
        progress: Show a progress bar.
        given: As for `from_pipeline`.

    Raises:
        ValueError: Pickled weights are asked for, or as for `from_pipeline`.
    """
    wanted = {"use_safetensors": True, **(load or {})}
    if wanted["use_safetensors"] is not True:
        raise ValueError(
            f"load={{'use_safetensors': {wanted['use_safetensors']!r}}} would let pickled weights in, which can run "
            "code: have them converted to safetensors"
        )
    loader: Any = DiffusionPipeline  # of which no types are known
    with _bar(progress):
        pipe = loader.from_pretrained(source, **wanted)
    if device is not None:
        pipe.to(device)
    return from_pipeline(pipe, **{"name": Path(source).name, **given})


@contextmanager
def _bar(shown: bool) -> Iterator[None]:
    """Their progress bar, which is on or off for all of diffusers, shown or not."""
    before = logging.is_progress_bar_enabled()
    (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
    try:
        yield
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()


def _of_pixels(pipe: Any, **options: Any) -> Model:
    return from_unet(pipe.unet, pipe.scheduler, **{"data_range": (-1.0, 1.0), **options})


def _of_classes(
    pipe: Any, *, label: int | str | None = None, guidance_scale: float | None = None, **options: Any
) -> Model:
    """DiT. Its pipeline guides all channels of the prediction, where the authors' code guides three."""
    scale = usual_scale(pipe) if guidance_scale is None else guidance_scale
    facts: dict[str, Any] = {"guidance_scale": checked_scale("guidance_scale", scale), "codec": _codec(pipe)}
    if names := _class_names(pipe.labels):
        facts["labels"] = names
    if isinstance(label, str):
        if label not in pipe.labels:
            raise ValueError(f"label {label!r} is not one of the {len(pipe.labels)} classes in pipe.labels")
        label = pipe.labels[label]
    if label is not None:
        classes = int(pipe.transformer.config.num_embeds_ada_norm)
        if not is_whole(label) or not 0 <= label <= classes:
            raise ValueError(
                f"label must be a class by number, 0 to {classes - 1} or {classes} for none, or by name; got {label!r}"
            )
        facts["cond"] = {"label": int(label)}
    return from_unet(pipe.transformer, pipe.scheduler, **{**facts, **options})


def _codec(pipe: Any) -> Autoencoder | None:
    if pipe.vae is None:
        return None
    side = pipe.transformer.config.sample_size * 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    return Autoencoder(pipe.vae, (pipe.vae.config.out_channels, side, side))


def _class_names(numbers: Mapping[str, int]) -> tuple[str, ...]:
    """The first name of each class, in order; none, where classes have none or numbers are missing."""
    names: dict[int, str] = {}
    for name, number in numbers.items():
        names.setdefault(number, name)
    return tuple(names[i] for i in range(len(names))) if names.keys() == {*range(len(names))} else ()


MAKERS: dict[str, Callable[..., Model]] = {  # by the name of the pipeline's class; what each takes is keyword-only
    "DDPMPipeline": _of_pixels,
    "DDIMPipeline": _of_pixels,
    "DiTPipeline": _of_classes,
    **{name: text_model for family in FAMILIES for name in family.pipelines},
}
