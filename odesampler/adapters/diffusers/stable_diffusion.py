"""Stable Diffusion and Stable Diffusion XL: U-Nets that hear text through cross-attention.

    network(x_t, t, text)                          text (tokens, width)
    network(x_t, t, text, pooled, size)            pooled (width,), size (6,): height and width of the picture before it
                                                   was cropped, its crop's top and left, height and width asked for

References:
    Rombach et al. 2022, High-Resolution Image Synthesis with Latent Diffusion Models, arXiv:2112.10752.
    Podell et al. 2023, SDXL, arXiv:2307.01952, section 2.2 (sizes as conditions).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from odesampler.adapters.diffusers.families import Conditions, Family, named

_ABSENT = ("time_cond_proj_dim", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type")


class TextUNet(nn.Module):
    """A UNet2DConditionModel of Stable Diffusion."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        out: Tensor = self.unet(x_t, t, encoder_hidden_states=text.to(x_t.dtype), return_dict=False)[0]
        return out


class TextAndSizeUNet(nn.Module):
    """A UNet2DConditionModel of Stable Diffusion XL."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x_t: Tensor, t: Tensor, text: Tensor, pooled: Tensor, size: Tensor) -> Tensor:
        added = {"text_embeds": pooled.to(x_t.dtype), "time_ids": size}  # sizes have no room in half precision
        text = text.to(x_t.dtype)
        out: Tensor = self.unet(x_t, t, encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False)[0]
        return out


class StableDiffusion(Family):
    """Stable Diffusion 1 and 2, predicting noise or v."""

    pipelines = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")
    part = "unet"
    encoders = ("text_encoder", "tokenizer")
    absent = ("addition_embed_type", *_ABSENT)

    def network(self) -> nn.Module:
        return TextUNet(self.net)

    def embedded(
        self, prompts: list[str], negative: list[str] | None, guided: bool, encoding: Mapping[str, Any]
    ) -> tuple[Conditions, Conditions]:
        text, null = self.pipe.encode_prompt(
            prompts, self.pipe._execution_device, 1, guided, negative_prompt=negative, **encoding
        )
        return named(["text"], [text]), named(["text"], [null])


class StableDiffusionXL(Family):
    """Stable Diffusion XL, without its refiner."""

    pipelines = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline")
    part = "unet"
    encoders = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    absent = _ABSENT

    def network(self) -> nn.Module:
        return TextAndSizeUNet(self.net)

    def check(self) -> None:
        super().check()
        if self.net.config.addition_embed_type != "text_time":
            self.refuse("addition_embed_type", "must be 'text_time', as Stable Diffusion XL has it")
        if getattr(self.pipe.config, "requires_aesthetics_score", False):
            raise ValueError(
                "pipeline config: requires_aesthetics_score=True is the refiner, which takes over from another model "
                "on the way; take the base model"
            )

    def told(self, height: int, width: int) -> dict[str, Any]:
        return {"size": [float(n) for n in (height, width, 0, 0, height, width)]}

    def embedded(
        self, prompts: list[str], negative: list[str] | None, guided: bool, encoding: Mapping[str, Any]
    ) -> tuple[Conditions, Conditions]:
        text, null, pooled, null_pooled = self.pipe.encode_prompt(
            prompts, do_classifier_free_guidance=guided, negative_prompt=negative, **encoding
        )
        return named(["text", "pooled"], [text, pooled]), named(["text", "pooled"], [null, null_pooled])
