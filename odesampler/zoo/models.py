"""The embedded models by name: no download, weights and real held-out images inside the package."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor

from odesampler.model import Model
from odesampler.prediction import Prediction
from odesampler.schedule import VP
from odesampler.tensor_file import read_tensors
from odesampler.zoo.unet import UNet


class Images(NamedTuple):
    """Real images with their labels."""

    images: Tensor  # (n, channels, height, width), float32, in [-1, 1]
    labels: Tensor  # (n,) int64


class Card(NamedTuple):
    """What is to be known of an embedded model before it is loaded."""

    shape: tuple[int, ...]
    levels: int  # its images are stored as 0 .. levels
    summary: str


CARDS: dict[str, Card] = {
    "digits": Card((1, 8, 8), 16, "handwritten digits by class; eps, VP linear"),
    "emoji": Card((3, 32, 32), 255, "colour emoji by Unicode subgroup; v, VP linear; guidance 2 to 4 looks best"),
}


def load(
    name: str, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, embedded: bool = False
) -> Model:
    """An embedded model.

    Args:
        name: One of `ods.models()`.
        device: Where to put its network.
        dtype: What to compute it in; float64 for measurements of order.
        embedded: Let its condition be "embedding", (batch, width), instead of "label": any vector, and one that
            gradients reach (`ods.null_text` needs that). `model.network.embed(labels)` makes embeddings of labels.

    Raises:
        ValueError: An unknown name; lists the known ones.

    Examples:
        >>> model = ods.load("digits")
        >>> model.data_shape, model.prediction, len(model.labels)
        ((1, 8, 8), 'eps', 10)
        >>> ods.load("digit")
        Traceback (most recent call last):
            ...
        ValueError: unknown model 'digit'; embedded are: digits, emoji
    """
    check(name)
    model = model_from(_path(f"{name}.safetensors"), name, device=device, dtype=dtype)
    if not embedded:
        return model
    null = torch.tensor([model.null_cond["label"]], device=device)
    return replace(model, null_cond={"embedding": cast(UNet, model.network).embed(null)[0]})


def held_out(name: str = "digits") -> Images:
    """Real images that the model has not been trained on, for encoding.

    Examples:
        >>> images, labels = ods.held_out("digits")
        >>> tuple(images.shape[1:]), len(labels) == len(images), images.min().item(), images.max().item()
        ((1, 8, 8), True, -1.0, 1.0)
    """
    return _images(name, "")


def training_images(name: str = "digits") -> Images:
    """The images that the model has been trained on, for comparison.

    Raises:
        ValueError: They are not in the package; its training script makes them.
    """
    return _images(name, "train_")


def models() -> list[str]:
    """The names of the embedded models.

    Examples:
        >>> ods.models()
        ['digits', 'emoji']
    """
    return list(CARDS)


def check(name: str) -> None:
    """Raises: ValueError: there is no model `name`; lists the known ones."""
    if name not in CARDS:
        raise ValueError(f"unknown model {name!r}; embedded are: {', '.join(CARDS)}")


def model_from(
    path: Path, name: str, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Model:
    """The model whose weights are at `path`, as the training scripts write them: the file says all but its name."""
    from odesampler.zoo.weights import load_unet

    network, meta = load_unet(path)
    table = json.loads(meta["schedule"])
    return Model(
        network.to(device, dtype),
        VP.linear(table["steps"], table["beta_start"], table["beta_end"]),
        prediction=cast(Prediction, meta["prediction"]),
        data_shape=tuple(json.loads(meta["data_shape"])),
        null_cond={"label": int(meta["null_label"])},
        name=name,
        labels=tuple(json.loads(meta["classes"])),
        data_range=(-1.0, 1.0),
    )


def _path(name: str) -> Path:
    return Path(str(files("odesampler.zoo"))) / name


def _images(name: str, part: str) -> Images:
    check(name)
    data, _ = read_tensors(_path(f"{name}_heldout.safetensors"))
    if f"{part}images" not in data:
        raise ValueError(
            f"the training images of {name} are not in the package: odesampler.zoo.train_{name} makes them"
        )
    images = data[f"{part}images"].float() * (2 / CARDS[name].levels) - 1
    return Images(images, data[f"{part}labels"].long())
