"""Text pipelines of diffusers as models: prompts become conditions, once, and the network is asked alone.

    pipe   = StableDiffusionPipeline.from_pretrained(...)
    model  = text_model(pipe, prompt="a cat", guidance_scale=7.5)
    latent = ods.encode(model, images)                         image -> VAE -> x_T
    images = ods.decode(model, latent).images                  and back

The model's network is the U-Net or transformer; text encoders are used here and then no more, so that they may be moved
away or deleted. The safety checker and the watermark of a pipeline are no part of a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from odesampler.adapters.diffusers.autoencoder import Autoencoder
from odesampler.adapters.diffusers.families import Conditions, Family
from odesampler.adapters.diffusers.flows import Flux, StableDiffusion3
from odesampler.adapters.diffusers.networks import prepared
from odesampler.adapters.diffusers.stable_diffusion import StableDiffusion, StableDiffusionXL
from odesampler.model import Model

FAMILIES: tuple[type[Family], ...] = (StableDiffusion, StableDiffusionXL, StableDiffusion3, Flux)


def text_model(
    pipe: Any,
    *,
    prompt: str | None = "",
    negative_prompt: str | None = None,
    guidance_scale: float | None = None,
    true_cfg_scale: float | None = None,
    height: int | None = None,
    width: int | None = None,
    encoding: Mapping[str, Any] | None = None,
    **options: Any,
) -> Model:
    """A text-to-image pipeline as a model.

    Args:
        pipe: A pipeline of Stable Diffusion 1 or 2, Stable Diffusion XL or 3, or Flux, also one for img2img or
            inpainting whose network is that of text-to-image.
        prompt: What verbs take where they are given no `cond`. For many prompts see `conditions`. None reads no text:
            give `cond` and `null_cond` instead.
        negative_prompt: What guidance leads away from; by default what the pipeline takes for none.
        guidance_scale: What `ods.sample` takes where it is given none, u + scale * (c - u); as in diffusers 1 or below
            is off, and left out it is the pipeline's own. For Flux it is a condition, "guidance", which the network
            hears, and no guidance in this sense.
        true_cfg_scale: Guidance for Flux, off by default.
        height: Of images, in pixels. By default what the pipeline makes.
        width: Likewise.
        encoding: More arguments of `pipe.encode_prompt`: {"clip_skip": 1}, {"max_sequence_length": 128}.
        **options: Of `ods.Model`: `name`, `grid`, ... `cond` and `null_cond` add to what prompts give. With little
            memory, `codec=Autoencoder(pipe.vae, max_batch=1)`.

    Returns:
        A `Model` whose data are latents, with the pipeline's autoencoder as its codec. Of its conditions, batch first,
        "text" are the tokens; "pooled" is the text in one vector, "size" SDXL's height, width, crop and target.

    Raises:
        TypeError: Not such a pipeline.
        ValueError: A configuration or a component that is not supported, a text encoder that is missing; names the key.
    """
    family = family_of(pipe)
    family.check()
    height, width = checked_size(family, height, width)
    high, wide = (n // pipe.vae_scale_factor for n in (height, width))
    reading = family.reading((high // family.patch) * (wide // family.patch))
    network, facts = prepared(family.net, reading)
    scale, told = family.scales(guidance_scale, true_cfg_scale)
    cond, null = prompted(family, prompt, negative_prompt, encoding)
    codec = None if pipe.vae is None else Autoencoder(pipe.vae, (3, height, width))
    settings = {
        **facts,
        "data_shape": (family.channels, high, wide),
        "guidance_scale": scale,
        "name": type(pipe).__name__,
        "codec": codec,
        **options,
        "cond": {**cond, **family.told(height, width), **told, **options.get("cond", {})},
        "null_cond": {**null, **options.get("null_cond", {})},
    }
    return Model(network, reading.schedule, **settings)


def conditions(pipe: Any, prompts: Sequence[str], *, encoding: Mapping[str, Any] | None = None) -> Conditions:
    """The conditions of many prompts, one a sample, to pass as `cond`.

        model = text_model(pipe, guidance_scale=7.5)
        found = ods.sample(model, 2, cond=conditions(pipe, ["a cat", "a dog"]))

    Args:
        pipe: As for `text_model`.
        prompts: One or more.
        encoding: As for `text_model`.

    Returns:
        Tensors by name, each (len(prompts), ...).

    Raises:
        TypeError: Not such a pipeline, or not texts.
        ValueError: A text encoder is missing.
    """
    if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise TypeError(f'prompts must be a list of texts, such as ["a cat", "a dog"]; got {prompts!r}')
    return family_of(pipe).conditions(list(prompts), encoding=encoding)[0]


def family_of(pipe: Any) -> Family:
    """What there is to know of a pipeline of this kind.

    Raises:
        TypeError: Not a text pipeline that is known here.
        ValueError: One with a ControlNet or another network beside.
    """
    kinds = [kind.__name__ for kind in type(pipe).__mro__]
    for name in ("controlnet", "adapter"):
        if getattr(pipe, name, None) is not None:
            raise ValueError(
                f"pipeline component: {name} is a network beside the one that is solved for, which is not supported; "
                "load the text-to-image pipeline"
            )
    for family in FAMILIES:
        if {*kinds} & {*family.pipelines}:
            return family(pipe)
    known = ", ".join(name for family in FAMILIES for name in family.pipelines)
    raise TypeError(f"text_model takes a pipeline of diffusers, one of {known}; got {kinds[0]}")


def prompted(
    family: Family, prompt: str | None, negative_prompt: str | None, encoding: Mapping[str, Any] | None
) -> tuple[Conditions, Conditions]:
    """Conditions and null conditions, each one value without a batch dimension.

    Raises:
        TypeError: Not texts.
        ValueError: A negative prompt without a prompt, or a text encoder is missing.
    """
    for name, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
        if not isinstance(text, (str, type(None))):
            raise TypeError(f"{name} must be one text; got {text!r}. Many prompts: cond=conditions(pipe, prompts)")
    if prompt is None:
        if negative_prompt is not None or encoding:
            raise ValueError("with prompt=None no text is read: leave negative_prompt and encoding out too")
        return {}, {}
    negative = None if negative_prompt is None else [negative_prompt]
    cond, null = family.conditions([prompt], negative, True, encoding)
    return {k: v[0] for k, v in cond.items()}, {k: v[0] for k, v in null.items()}


def checked_size(family: Family, height: int | None, width: int | None) -> tuple[int, int]:
    """Height and width of images in pixels, by default the pipeline's.

    Raises: ValueError: not whole numbers of latents and of what the network sees as one.
    """
    scale, usual = family.pipe.vae_scale_factor, family.sample_size
    pair = usual if isinstance(usual, (tuple, list)) else (usual, usual)
    found = []
    for name, given, own in zip(("height", "width"), (height, width), pair, strict=True):
        if given is None and own is None:
            raise ValueError(f"{family.part} config: sample_size=None says no {name}: give it, in pixels")
        value, unit = own * scale if given is None else given, scale * family.patch
        if type(value) is not int or value < 1 or value % unit:
            raise ValueError(f"{name} must be a multiple of {unit} pixels; got {value!r}")
        found.append(value)
    return found[0], found[1]
