"""Codecs: images to what the equation is about, and back, where that is not the images themselves.

    image -> encode -> x0 -> the equation -> x_T,        x_T -> the equation -> x0 -> decode -> image

The variational autoencoder of a latent diffusion model, for example. A codec loses something of most images; what the
equation loses between x0 and x_T and back comes on top, and is what the analyses measure.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class Codec(ABC):
    """Images to x0, the data of the equation, and back; both ways without chance."""

    image_shape: tuple[int, ...] | None = None  # (channels, height, width), where only one fits
    data_range: tuple[float, float] | None = (-1.0, 1.0)  # of the images

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """`images` (batch, channels, height, width) as x0 (batch, *data_shape), in the dtype and place of the model."""

    @abstractmethod
    def decode(self, x: Tensor) -> Tensor:
        """x0 (batch, *data_shape) as images (batch, channels, height, width)."""
