"""Stable Diffusion 3 and Flux: transformers on flows, x_t = (1 - u) x0 + u noise, that hear text.

References:
    Esser et al. 2024, Scaling Rectified Flow Transformers, arXiv:2403.03206.
    Meng et al. 2023, On Distillation of Guided Diffusion Models, arXiv:2210.03142 (guidance as a condition).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from odesampler.adapters.diffusers.families import Conditions, Family, checked_scale, named
from odesampler.adapters.diffusers.kinds import FLOWS
from odesampler.adapters.diffusers.networks import SIDE
from odesampler.adapters.diffusers.schedules import Reading


class StableDiffusion3(Family):
    """Stable Diffusion 3 and 3.5. Without `text_encoder_3` its part of the text is zeros, as in the pipeline."""

    pipelines = ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline")
    part = "transformer"
    flows = True
    encoders = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")

    def embedded(
        self, prompts: list[str], negative: list[str] | None, guided: bool, encoding: Mapping[str, Any]
    ) -> tuple[Conditions, Conditions]:
        more = {"prompt_2": None, "prompt_3": None, **encoding}
        text, null, pooled, null_pooled = self.pipe.encode_prompt(
            prompts, do_classifier_free_guidance=guided, negative_prompt=negative, **more
        )
        return named(["text", "pooled"], [text, pooled]), named(["text", "pooled"], [null, null_pooled])


class Flux(Family):
    """Flux.1: guidance is a condition, with `guidance_embeds`, or not there; true guidance is possible besides."""

    pipelines = ("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline")
    part = "transformer"
    flows = True
    encoders = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    packing = SIDE

    @property
    def sample_size(self) -> Any:
        return self.pipe.default_sample_size

    def scales(self, guidance_scale: float | None, true_cfg_scale: float | None) -> tuple[float, dict[str, Any]]:
        scale = checked_scale("true_cfg_scale", 1.0 if true_cfg_scale is None else true_cfg_scale)
        if self.net.config.guidance_embeds:
            return scale, {"guidance": self.usual_scale if guidance_scale is None else guidance_scale}
        if guidance_scale is not None:
            self.refuse("guidance_embeds", "hears no guidance_scale; guidance against a prompt is true_cfg_scale")
        return scale, {}

    def reading(self, tokens: int) -> Reading:
        """As the base; but the pipeline gives its scheduler even times, 1 - i / N, which are shifted once."""
        found, scheduler = super().reading(tokens), self.pipe.scheduler
        if type(scheduler).__name__ not in FLOWS or scheduler.config.get("use_dynamic_shifting"):
            return found
        return replace(found, grid=f"shift(shift={float(scheduler.config.shift)!r})")

    def embedded(
        self, prompts: list[str], negative: list[str] | None, guided: bool, encoding: Mapping[str, Any]
    ) -> tuple[Conditions, Conditions]:
        text, pooled, _ = self.pipe.encode_prompt(prompts, **{"prompt_2": None, **encoding})
        found = {"text": text, "pooled": pooled}
        if not guided:
            return found, {}
        more = {**encoding, "prompt_2": None}
        null_text, null_pooled, _ = self.pipe.encode_prompt(negative or [""] * len(prompts), **more)
        return found, {"text": null_text, "pooled": null_pooled}
