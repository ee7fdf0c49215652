"""The embedded models by name: no download, weights and real held-out images inside the package."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from odesampler.model import Model
from odesampler.schedule import VP


class Images(NamedTuple):
    """Real images with their labels."""

    images: Tensor  # (n, channels, height, width), float32, in [-1, 1]
    labels: Tensor  # (n,) int64


class Card(NamedTuple):
    """What is to be known of an embedded model before it is loaded."""

    name: str
    shape: tuple[int, ...]
    summary: str
    load: Callable[[torch.device, torch.dtype], Model]
    images: Callable[[bool], Images]


def load(name: str, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Model:
    """An embedded model.

    Args:
        name: One of `ods.models()`.
        device: Where to put its network.
        dtype: What to compute it in; float64 for measurements of order.

    Raises:
        ValueError: An unknown name; lists the known ones.
    """
    return card(name).load(torch.device(device), dtype)


def held_out(name: str = "digits") -> Images:
    """Real images that the model has not been trained on, for encoding."""
    return card(name).images(False)


def training_images(name: str = "digits") -> Images:
    """The images that the model has been trained on, for comparison."""
    return card(name).images(True)


def models() -> list[str]:
    """The names of the embedded models."""
    return list(CARDS)


def card(name: str) -> Card:
    """What is known of the model `name`. Raises: ValueError: there is none; lists the known ones."""
    if name not in CARDS:
        raise ValueError(f"unknown model {name!r}; embedded are: {', '.join(CARDS)}")
    return CARDS[name]


def _path(name: str) -> Path:
    return Path(str(files("odesampler.zoo"))) / name


def digits_from(path: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Model:
    """The digits model whose weights are at `path`, as `train_digits` writes them."""
    from odesampler.zoo.weights import load_unet

    network, meta = load_unet(path)
    classes = json.loads(meta["config"])["num_classes"]
    return Model(
        network.to(device, dtype),
        VP.linear(),
        prediction="eps",
        data_shape=(1, 8, 8),
        null_cond={"label": classes},
        name="digits",
        labels=tuple(str(i) for i in range(classes)),
    )


def _digits(device: torch.device, dtype: torch.dtype) -> Model:
    return digits_from(_path("digits.safetensors"), device, dtype)


def _digit_images(training: bool) -> Images:
    from safetensors.torch import load_file

    data = load_file(str(_path("digits_heldout.safetensors")))
    part = "train_" if training else ""
    return Images(data[f"{part}images"].float() / 8 - 1, data[f"{part}labels"].long())


CARDS: dict[str, Card] = {
    "digits": Card("digits", (1, 8, 8), "handwritten digits by class; eps, VP linear", _digits, _digit_images),
}
