"""Stable Diffusion and Stable Diffusion XL: U-Nets that hear text through cross-attention.

References:
    Rombach et al. 2022, High-Resolution Image Synthesis with Latent Diffusion Models, arXiv:2112.10752.
    Podell et al. 2023, SDXL, arXiv:2307.01952, section 2.2 (sizes as conditions).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from odesampler.adapters.diffusers.families import Conditions, Family, named


class StableDiffusion(Family):
    """Stable Diffusion 1 and 2, predicting noise or v."""

    pipelines = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")
    part = "unet"
    encoders = ("text_encoder", "tokenizer")

    def check(self) -> None:
        super().check()
        if self.net.config.addition_embed_type is not None:
            self.refuse("addition_embed_type", "wants more than text, which this pipeline does not give")

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
