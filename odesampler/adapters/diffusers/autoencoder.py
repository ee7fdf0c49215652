"""Autoencoders of diffusers as codecs: images to scaled latents and back, without chance.

    x0 = (mode of q(z | image) - shift) * scale,        image = decoder(x0 / scale + shift)

`scale` and `shift` are the configuration's: `scaling_factor` and `shift_factor` or, channel by channel, `latents_mean`
and `latents_std`. The mode is the mean of the encoder's Gaussian, so that an image has one latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odesampler.codec import Codec

KINDS = ("AutoencoderKL", "AsymmetricAutoencoderKL", "AutoencoderTiny")


@dataclass(frozen=True, eq=False)
class Autoencoder(Codec):
    """An image autoencoder of diffusers, as the pipelines of diffusers use it, but that `encode` takes the mode.

    Computes where the autoencoder is, in its dtype; one in float16 whose configuration says `force_upcast` is brought
    to float32 for each call, and back. Latents come in float32 at least. Gradients flow if what is given requires them.

    Args:
        vae: An AutoencoderKL, AsymmetricAutoencoderKL or AutoencoderTiny.
        image_shape: (3, height, width), if but one fits.
        max_batch: The most images to encode or decode at once.
        name: What to call it in messages.

    Raises:
        TypeError: Not one of these.
        ValueError: A configuration that scales in two ways, or by half of one; names the key.

    Examples:
        >>> from diffusers import AutoencoderKL
        >>> codec = ods.adapters.diffusers.Autoencoder(AutoencoderKL())  # untrained, and of one block only
        >>> latents = codec.encode(torch.zeros(1, 3, 16, 16))
        >>> tuple(latents.shape), tuple(codec.decode(latents).shape)
        ((1, 4, 16, 16), (1, 3, 16, 16))
    """

    vae: Any
    image_shape: tuple[int, ...] | None = None
    max_batch: int = 4
    name: str = "vae"

    def __post_init__(self) -> None:
        if not {kind.__name__ for kind in type(self.vae).__mro__} & {*KINDS}:
            raise TypeError(f"{self.name} must be one of {', '.join(KINDS)}; got {type(self.vae).__name__}")
        if type(self.max_batch) is not int or self.max_batch < 1:
            raise ValueError(f"max_batch must be a whole number of 1 or more; got {self.max_batch!r}")
        means, stds, shift = (self._config(key) for key in ("latents_mean", "latents_std", "shift_factor"))
        if (means is None) != (stds is None):
            raise ValueError(
                f"{self.name} config: latents_mean={means!r} and latents_std={stds!r} go together: give both or neither"
            )
        if means is not None and shift:
            raise ValueError(
                f"{self.name} config: shift_factor={shift!r} and latents_mean say where latents are centred in two "
                "ways: keep one"
            )

    def encode(self, images: Tensor) -> Tensor:
        """The scaled latents of `images` (batch, 3, height, width) in (-1, 1), on the autoencoder's device."""
        return self._in_parts(self._latents, images)

    def decode(self, x: Tensor) -> Tensor:
        """The images of scaled latents; not clamped, so that they may leave (-1, 1) a little."""
        return self._in_parts(self._images, x)

    def _latents(self, images: Tensor) -> Tensor:
        found = self.vae.encode(images)
        latents = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents
        latents = latents.to(torch.promote_types(latents.dtype, torch.float32))
        scaled: Tensor = (latents - self._shift(latents)) * self._scale(latents)
        return scaled

    def _images(self, x: Tensor) -> Tensor:
        images: Tensor = self.vae.decode(x / self._scale(x) + self._shift(x), return_dict=False)[0]
        return images

    def _in_parts(self, function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and batch.requires_grad), self._upcast():
            place = {"device": self.vae.device, "dtype": self.vae.dtype}
            return torch.cat([function(part.to(**place)) for part in torch.split(batch, self.max_batch)])

    @contextmanager
    def _upcast(self) -> Iterator[None]:
        if self.vae.dtype != torch.float16 or not self._config("force_upcast"):
            yield
            return
        self.vae.to(dtype=torch.float32)
        try:
            yield
        finally:
            self.vae.to(dtype=torch.float16)

    def _scale(self, like: Tensor) -> float | Tensor:
        scale = float(self._config("scaling_factor") or 1.0)
        stds = self._config("latents_std")
        return scale if stds is None else scale / _by_channel(stds, like)

    def _shift(self, like: Tensor) -> float | Tensor:
        means = self._config("latents_mean")
        return float(self._config("shift_factor") or 0.0) if means is None else _by_channel(means, like)

    def _config(self, key: str) -> Any:
        return getattr(self.vae.config, key, None)


def _by_channel(values: Any, like: Tensor) -> Tensor:
    return torch.as_tensor(values, device=like.device, dtype=like.dtype).reshape(1, -1, 1, 1)
