"""Inputs: what users hand to verbs, checked before any model is called, in the form with which verbs go on.

    images -> checked_images -> coded: what the model is about        cond -> checked_cond: (batch, ...) on its device

Knows models; neither solvers nor grids.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from odesampler.data_range import check_images
from odesampler.model import Model
from odesampler.precision import is_whole


def checked_model(model: Any) -> Model:
    """Raises: TypeError: not a Model."""
    if not isinstance(model, Model):
        raise TypeError(f"model must be an ods.Model, such as ods.load('digits') gives; got {model!r}")
    return model


def checked_batch(model: Model, x: object, what: str) -> Tensor:
    """`x` as a batch that this model can take.

    Raises:
        TypeError: Not a floating-point tensor.
        ValueError: Wrong shape, empty, or not finite.
    """
    x = _floats(x, what)
    shape = model.data_shape
    if x.ndim < 2 or (shape is not None and tuple(x.shape[1:]) != tuple(shape)):
        wanted = f"(batch, {', '.join(map(str, shape))})" if shape else "(batch, *shape)"
        raise ValueError(f"{what} must have shape {wanted}; got {tuple(x.shape)}")
    _check_values(x, what)
    return x


def checked_images(model: Model, images: object) -> Tensor:
    """`images`, as what the model is about or as its codec takes them; the codec is not asked: see `coded`.

    Raises as `checked_batch`, and for images far outside the range; warns of those a little outside.
    """
    codec = model.codec
    if codec is None or not isinstance(images, Tensor) or tuple(images.shape[1:]) == model.data_shape:
        x_t = checked_batch(model, images, "images")
        check_images(x_t, model.data_range, model.name)
        return x_t
    if images.ndim != 4 or codec.image_shape not in (None, tuple(images.shape[1:])):
        wanted = f"{codec.image_shape or '(channels, height, width)'}, or {model.data_shape} for what the codec makes"
        raise ValueError(
            f"images of {model.name} must have shape (batch, *shape) with {wanted} of them; got {tuple(images.shape)}"
        )
    found = _floats(images, "images")
    _check_values(found, "images")
    check_images(found, codec.data_range, model.name)
    return found


def coded(model: Model, images: Tensor) -> Tensor:
    """Checked images as what the model is about, themselves or what its codec makes of them: slow, and asked last."""
    if model.codec is None or tuple(images.shape[1:]) == model.data_shape:
        return images
    return checked_batch(model, model.codec.encode(images), "what the codec made of images")


def checked_cond(model: Model, cond: Mapping[str, Any] | None, batch: int) -> dict[str, Tensor]:
    """Conditions of `batch` samples on the model's device: a single value is repeated, missing ones are as usual.

    Raises:
        ValueError: A condition that the model does not take, not one value a sample, or a label that does not exist.
    """
    made = {key: one.expand(batch, *one.shape[1:]) for key, one in model.usual(1).items()}  # in the memory of one
    if not isinstance(cond, (Mapping, type(None))):
        raise TypeError(f'cond must be a mapping such as {{"label": 3}}; got {cond!r}')
    for key, value in (cond or {}).items():
        if not isinstance(key, str):
            raise TypeError(f'conditions have names, such as {{"label": 3}}; got {key!r}')
        if model.null_cond and key not in made:
            raise ValueError(f"{model.name} takes the conditions {', '.join(made)}; got {key!r}")
        try:
            one = torch.as_tensor(value, device=model.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"cond[{key!r}] must be a number, or one a sample; got {value!r}") from error
        one = one.expand(batch, *one.shape) if one.ndim == (made[key].ndim - 1 if key in made else 0) else one
        if len(one) != batch:
            raise ValueError(
                f"cond[{key!r}] must hold one value a sample: {batch} samples, got shape {tuple(one.shape)}"
            )
        made[key] = one
    if "label" in made and model.labels:
        _check_labels(model, made["label"])
    return made


def _check_labels(model: Model, labels: Tensor) -> None:
    """Raises: ValueError: not whole numbers, one a sample, or one that `model` does not have."""
    labels = labels[:1] if labels.stride()[:1] == (0,) else labels  # one for all samples
    if labels.ndim != 1 or labels.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"labels are whole numbers, one a sample; got {_some(labels)}")
    null = labels.new_tensor(model.null_cond.get("label", [])).flatten()
    bad = labels[((labels < 0) | (labels >= len(model.labels))) & ~torch.isin(labels, null)]
    if len(bad):
        raise ValueError(f"label {int(bad.min())} does not exist: {model.name} has 0 .. {len(model.labels) - 1}")


def _some(values: Tensor) -> str:
    return f"{values[:8].tolist()}" + (f" and {len(values) - 8} more" if len(values) > 8 else "")


def checked_count(num_samples: int | None, x: Tensor | None) -> int:
    """Raises: ValueError: neither says how many samples, or they disagree."""
    if num_samples is None and x is None:
        raise ValueError("say how many samples to draw (num_samples), or give latents to start from (x)")
    if num_samples is None and x is not None and len(x) == 0:
        raise ValueError("x holds no latents: give one or more")
    count = len(x) if num_samples is None and x is not None else num_samples
    if not is_whole(count) or count < 1:
        raise ValueError(f"num_samples must be a whole number of 1 or more; got {num_samples!r}")
    if x is not None and len(x) != count:
        raise ValueError(f"num_samples={count}, but x holds {len(x)} latents")
    return int(count)


def checked_shape(model: Model, instead: str = "") -> tuple[int, ...]:
    """Raises: ValueError: the shape of the model's data is not known; `instead` is what else could be given."""
    if model.data_shape is None:
        raise ValueError(f"the shape of {model.name}'s data is not known: give Model(data_shape=...){instead}")
    return model.data_shape


def _floats(x: object, what: str) -> Tensor:
    if isinstance(x, Tensor) and x.is_floating_point():
        return x
    raise TypeError(
        f"{what} must be a floating-point tensor in the model's data range; got "
        f"{x.dtype if isinstance(x, Tensor) else type(x).__name__} (ods.images.load reads files, "
        "ods.images.to_float converts bytes)"
    )


def _check_values(x: Tensor, what: str) -> None:
    if len(x) == 0:
        raise ValueError(f"{what} holds no samples: shape {tuple(x.shape)}")
    if not bool(torch.isfinite(x).all()):
        bad = torch.nonzero(~torch.isfinite(x).flatten(1).all(1)).flatten().tolist()
        raise ValueError(f"{what} must be finite; samples {bad[:8]} have NaN or infinity")
