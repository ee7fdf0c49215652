"""Interpolation of latents.

    slerp(a, b, w) = (sin((1 - w) theta) a + sin(w theta) b) / sin(theta),    cos(theta) = a.b / (|a| |b|)

Points between two draws of N(0, 1) should have the length of a draw, which a straight line has not.

References:
    Shoemake 1985, Animating rotation with quaternion curves. Song, Meng, Ermon 2021, arXiv:2010.02502, appendix D.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from odesampler.latent import Latent


def slerp(a: Tensor, b: Tensor, weight: float | Tensor) -> Tensor:
    """Between `a` (weight 0) and `b` (weight 1) along the great circle, each sample by itself.

    Args:
        a: (batch, *shape).
        b: The same shape.
        weight: A number, or (batch,). Outside [0, 1] it extrapolates.

    Returns:
        (batch, *shape). For parallel vectors, where no great circle is defined, the straight line.

    Raises:
        ValueError: Different shapes.

    Examples:
        >>> a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> round(ods.slerp(a, b, 0.5).norm().item(), 6), round(a.lerp(b, 0.5).norm().item(), 6)
        (1.0, 0.707107)
    """
    if a.shape != b.shape:
        raise ValueError(f"slerp needs two tensors of one shape; got {tuple(a.shape)} and {tuple(b.shape)}")
    column = (-1,) + (1,) * (a.ndim - 1)
    w = torch.as_tensor(weight, dtype=a.dtype, device=a.device).reshape(column)
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    cos = (flat_a * flat_b).sum(1) / (flat_a.norm(dim=1) * flat_b.norm(dim=1))
    theta = cos.clamp(-1, 1).acos().reshape(column)
    sin = theta.sin()
    tiny = torch.finfo(a.dtype).eps ** 0.5
    parallel = ~(sin > tiny)  # also where a vector is zero, and cos NaN
    sin = torch.where(parallel, 1.0, sin)
    circle = ((1 - w) * theta).sin() / sin * a + (w * theta).sin() / sin * b
    return torch.where(parallel, a + w * (b - a), circle)


def interpolate(a: Latent, b: Latent, num: int) -> Latent:
    """`num` latents from `a` to `b`, ends included, by slerp: decode them to see what lies between two images.

    Args:
        a: A latent of one sample.
        b: Another, made by the same recipe.
        num: How many, 2 or more.

    Returns:
        A latent of `num` samples. Conditions, null ones too, are those of `a` for the first half, of `b` for the
        second; the memory of exactly invertible solvers is interpolated too, but left out if it is whole numbers.

    Raises:
        ValueError: More than one sample, different recipes, `num` below 2.

    Examples:
        >>> model = ods.load("digits")
        >>> latent = ods.encode(model, ods.held_out("digits").images[:2], num_steps=10)
        >>> between = ods.interpolate(latent.select([0]), latent.select([1]), 5)
        >>> tuple(ods.decode(model, between).x.shape)
        (5, 1, 8, 8)
        >>> between.x[0].allclose(latent.x[0]) and between.x[4].allclose(latent.x[1])
        True
    """
    if len(a) != 1 or len(b) != 1:
        raise ValueError(
            f"interpolate takes latents of one sample each (latent.select([i])); got {len(a)} and {len(b)}"
        )
    if a.recipe != b.recipe:
        raise ValueError(f"latents made by different recipes have nothing between them: {a} and {b}")
    if num < 2:
        raise ValueError(f"num counts both ends, so it is 2 or more; got {num}")
    weights = torch.linspace(0, 1, num, dtype=a.x.dtype, device=a.x.device)

    def between(p: Tensor, q: Tensor) -> Tensor:
        shape = (num, *p.shape[1:])
        return slerp(p.expand(shape), q.expand(shape), weights)

    def nearer(p: Mapping[str, Tensor], q: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {k: torch.cat([p[k] if w < 0.5 else q[k] for w in weights.tolist()]) for k in p}

    memory = tuple(between(p, q) for p, q in zip(a.blendable, b.blendable, strict=True))
    null = None if a.null is None or b.null is None else nearer(a.null, b.null)
    return replace(a.elsewhere(between(a.x, b.x), memory), cond=nearer(a.cond, b.cond), null=null)
