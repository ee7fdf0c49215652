"""Stable Diffusion 3 and Flux: transformers on flows, x_t = (1 - u) x0 + u noise, that hear text.

    network(x_t, t, text, pooled)                  Stable Diffusion 3: text (tokens, width), pooled (width,)
    network(x_t, t, text, pooled, guidance)        Flux: guidance is a number where the network was distilled with it

Flux sees squares of 2 x 2 latents as one token with four times the channels, and is told where each is. That is done
here: a model's data are latents (channels, height, width). Both clocks run to 1000; Flux multiplies by 1000 itself.

References:
    Esser et al. 2024, Scaling Rectified Flow Transformers, arXiv:2403.03206.
    Meng et al. 2023, On Distillation of Guided Diffusion Models, arXiv:2210.03142 (guidance as a condition).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from odesampler.adapters.diffusers.families import Conditions, Family, checked_scale, named
from odesampler.adapters.diffusers.schedules import FLOWS, Reading

SIDE = 2  # of Flux's squares
CLOCK = 1000.0  # what Flux multiplies time by


class JointTransformer(nn.Module):
    """An SD3Transformer2DModel."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, x_t: Tensor, t: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        out: Tensor = self.transformer(
            hidden_states=x_t,
            timestep=t,
            encoder_hidden_states=text.to(x_t.dtype),
            pooled_projections=pooled.to(x_t.dtype),
            return_dict=False,
        )[0]
        return out


class PackedTransformer(nn.Module):
    """A FluxTransformer2DModel, on latents that are not packed."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, x_t: Tensor, t: Tensor, text: Tensor, pooled: Tensor, guidance: Tensor | None = None) -> Tensor:
        squares = functional.pixel_unshuffle(x_t, SIDE)  # (batch, channels * 4, height / 2, width / 2)
        high, wide = squares.shape[-2:]
        out = self.transformer(
            hidden_states=squares.flatten(2).transpose(1, 2),
            timestep=t / CLOCK,
            guidance=guidance,
            encoder_hidden_states=text.to(x_t.dtype),
            pooled_projections=pooled.to(x_t.dtype),
            txt_ids=torch.zeros(text.shape[1], 3, device=x_t.device),
            img_ids=places(high, wide, x_t.device),
            return_dict=False,
        )[0]
        return functional.pixel_shuffle(out.transpose(1, 2).unflatten(2, (high, wide)), SIDE)


def places(height: int, width: int, device: torch.device) -> Tensor:
    """(height * width, 3) float32: 0, row and column of each square, row by row."""
    rows = torch.arange(height, device=device, dtype=torch.float32).repeat_interleave(width)
    columns = torch.arange(width, device=device, dtype=torch.float32).repeat(height)
    return torch.stack([torch.zeros_like(rows), rows, columns], 1)


class StableDiffusion3(Family):
    """Stable Diffusion 3 and 3.5. Without `text_encoder_3` its part of the text is zeros, as in the pipeline."""

    pipelines = ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline")
    part = "transformer"
    encoders = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    absent = ()

    def network(self) -> nn.Module:
        return JointTransformer(self.net)

    def check(self) -> None:
        super().check()
        if getattr(self.net, "image_proj", None) is not None:
            raise ValueError("transformer: image_proj is an IP-Adapter's, which is not supported: unload_ip_adapter()")

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
    encoders = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    absent = ()
    packing = SIDE

    @property
    def sample_size(self) -> Any:
        return self.pipe.default_sample_size

    def network(self) -> nn.Module:
        return PackedTransformer(self.net)

    def check(self) -> None:
        super().check()
        if getattr(self.net, "encoder_hid_proj", None) is not None:
            raise ValueError(
                "transformer: encoder_hid_proj is an IP-Adapter's, which is not supported: unload_ip_adapter()"
            )

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
