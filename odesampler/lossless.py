"""Lossless round trips: what is kept beside a latent so that the very image comes back, and how one knows that it did.

    image = levels[nearest(levels, decoded) + residual]      images of at most 256 values, as files have
    image = (decoded + r1) + r2                              others

The residual is what decoding misses; where it misses nothing it is not kept. Levels forgive a network that answers with
other bits than before; without them the network's bits must be the same, so what they depend on is kept too, and
compared. A checksum a sample tells the truth in the end. This module knows tensors and models; it never encodes.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from odesampler.model import Model
from odesampler.plan import AnySolver
from odesampler.precision import dtype_name
from odesampler.registry import find_solver, spec_of
from odesampler.room import AnyBatch, check_max_batch
from odesampler.solvers.alf import ALF
from odesampler.solvers.fixed_point import FixedPoint

MOST_LEVELS = 256
KINDS = ("bits", "residual")


@dataclass(frozen=True, eq=False)
class SideCar:
    """What is kept beside a latent of images that shall come back to the bit."""

    checksum: Tensor  # (batch,) int64, of each image's bytes
    dtype: str  # of the images
    place: Mapping[str, Any]  # what the network's bits depend on, as JSON can hold it
    levels: Tensor | None = None  # (n,) the values that the images have, rising
    residual: tuple[Tensor, ...] = field(default=())  # each (batch, *shape)

    @classmethod
    def of(cls, images: Tensor, decoded: Tensor, place: Mapping[str, Any]) -> SideCar:
        """What `decoded`, all (batch, *shape), misses of `images`.

        Raises:
            ArithmeticError: What was decoded is not finite.
        """
        images = images.detach().cpu() + 0.0  # -0 becomes 0
        kept = cls(_checksum(images), dtype_name(images.dtype), place)
        levels = torch.unique(images)
        if len(levels) <= min(MOST_LEVELS, images.numel() // 2):
            missed = torch.searchsorted(levels, images) - _nearest(levels, decoded)
            kept = replace(kept, levels=levels, residual=(missed.to(torch.int16),) if bool(missed.any()) else ())
        else:
            residual: tuple[Tensor, ...] = ()
            found = kept._based(decoded)
            if not bool(found.isfinite().all()):
                raise ArithmeticError(
                    f"what was decoded is not finite in {kept.dtype}: nothing can be added to it, take more steps"
                )
            while not torch.equal(found, images.double()):  # twice at most: the second difference has no rounding
                residual = (*residual, images.double() - found)
                found = found + residual[-1]
            kept = replace(kept, residual=residual)
        return kept

    def restored(self, decoded: Tensor) -> Tensor:
        """The images, of what was `decoded`, both (batch, *shape), in its dtype or, if that is finer, their own."""
        if self.levels is not None:
            found = self.levels[(_nearest(self.levels, decoded) + sum(self.residual)).clamp(0, len(self.levels) - 1)]
        else:
            found = self._based(decoded)
            for part in self.residual:
                found = found + part
        return found.to(decoded.device, torch.promote_types(decoded.dtype, getattr(torch, self.dtype)))

    def checked(self, decoded: Tensor) -> Tensor:
        """What `restored` gives. Warns of samples that did not come back to the bit."""
        found = self.restored(decoded)
        same = _checksum(found.detach().cpu().to(getattr(torch, self.dtype)) + 0.0) == self.checksum
        if lost := torch.nonzero(~same).flatten().tolist():
            warnings.warn(
                f"samples {lost[:8]} ({len(lost)} of {len(same)}) did not come back to the bit: the network answered "
                "otherwise than when they were encoded, or their latents were changed",
                RuntimeWarning,
                stacklevel=3,
            )
        return found

    def select(self, rows: Any) -> SideCar:
        """The samples `rows`."""
        return replace(self, checksum=self.checksum[rows], residual=tuple(r[rows] for r in self.residual))

    def packed(self) -> tuple[dict[str, Tensor], str]:
        """Tensors by name, and the rest as JSON."""
        tensors = {"sidecar.checksum": self.checksum}
        tensors |= {} if self.levels is None else {"sidecar.levels": self.levels}
        tensors |= {f"sidecar.residual.{i}": part for i, part in enumerate(self.residual)}
        return tensors, json.dumps({"dtype": self.dtype, "place": dict(self.place)})

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor], text: str) -> SideCar:
        """What `packed` gave, on the CPU.

        Raises:
            KeyError, ValueError: Something is missing, or not of the images' size.
        """
        own = {k: v.cpu() for k, v in tensors.items() if k.startswith("sidecar.")}
        parts = [own[f"sidecar.residual.{i}"] for i in range(sum("residual" in k for k in own))]
        shape = tensors["x"].shape
        if len(own["sidecar.checksum"]) != shape[0] or any(part.shape != shape for part in parts):
            raise ValueError("its side-car does not belong to it")
        return cls(own["sidecar.checksum"], **json.loads(text), levels=own.get("sidecar.levels"), residual=tuple(parts))

    def check_place(self, place: Mapping[str, Any], insist: bool) -> None:
        """Compare `place` with where this was made. With levels another place is likely to do, and warned of.

        Raises:
            ValueError: The network would answer with other bits, there are no levels, and `insist` is not given.
        """
        other = [f"{k} was {v} and is {place.get(k)}" for k, v in self.place.items() if v != place.get(k)]
        if not other:
            return
        message = (
            f"this latent comes back to the bit for sure only where it was made: {'; '.join(other)}; decode it there, "
            "with as many samples in a call (micro_batch=1 in encode makes that possible for any number of samples)"
        )
        if not insist and self.levels is None:
            raise ValueError(f"{message}, or insist=True and risk the last bits")
        warnings.warn(message, stacklevel=4)

    def _based(self, decoded: Tensor) -> Tensor:
        """`decoded` in the images' precision, as float64."""
        return decoded.detach().cpu().to(getattr(torch, self.dtype)).double()


def place_of(model: Model, batch: int, max_batch: AnyBatch, width: int) -> dict[str, Any]:
    """What the bits of the network's answers depend on, for `batch` samples of `width` rows each.

    With "auto", what is known by now of how many fit.
    """
    device = model.device
    rows = model.room.rows(model.data_shape or (), device) if max_batch == "auto" else max_batch
    at_once = batch if rows is None else min(batch, max(1, rows // width))
    place = {
        "samples in a call": at_once,
        "samples": None if at_once == 1 else batch,  # the last call may hold fewer
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "network dtype": str(model.network_dtype),
        "autocast": str(model.autocast),
        "torch": torch.__version__,
        "compiled": model.compile is not False,
        "channels last": model.channels_last,
    }
    cpu = {
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "mkldnn": torch.backends.mkldnn.enabled,
    }
    cuda = {
        "TF32 in matmul": torch.backends.cuda.matmul.allow_tf32,
        "TF32 in cudnn": torch.backends.cudnn.allow_tf32,
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "float32 matmul": torch.get_float32_matmul_precision(),
        "bf16 sums in matmul": torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        "fp16 sums in matmul": torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
    }
    return place | {"cpu": cpu, "cuda": cuda}.get(device.type, {})


def rows_at_once(exact: str | None, micro_batch: int | None, max_batch: AnyBatch, width: int, grad: object) -> AnyBatch:
    """The most rows to give the network at once, `width` a sample.

    Raises:
        ValueError: An unknown kind of exactness; what does not go together; as `check_max_batch`.
    """
    if exact not in (None, *KINDS):
        raise ValueError(f"exact must be one of {', '.join(map(repr, KINDS))}, or None; got {exact!r}")
    if exact and grad:
        raise ValueError(f"exact={exact!r} gives the images themselves back, which have no gradient: leave one out")
    if exact:
        refuse_auto(max_batch)
    if micro_batch is None:
        return check_max_batch(max_batch, width)
    if exact is None or max_batch is not None:
        raise ValueError(
            "micro_batch fixes the number of samples in a call for exact='bits' or 'residual', instead of max_batch; "
            f"got exact={exact!r}, max_batch={max_batch!r}"
        )
    if isinstance(micro_batch, bool) or not isinstance(micro_batch, int) or micro_batch < 1:
        raise ValueError(f"micro_batch must be a whole number of samples, 1 or more; got {micro_batch!r}")
    return micro_batch * width


def refuse_auto(max_batch: AnyBatch) -> None:
    """Raises: ValueError: a `max_batch` that depends on the memory that is free, where bits depend on it."""
    if max_batch == "auto":
        raise ValueError(
            'max_batch="auto" depends on the memory that is free, and what comes back to the bit on max_batch: give a '
            "number, or micro_batch=1 in encode"
        )


def check_lattice(x: Tensor) -> None:
    """Raises: OverflowError: an encoded `x` (batch, *shape) is NaN, as what left the lattice is in the end."""
    if not bool(x.isfinite().all()):
        rows = torch.nonzero(~x.isfinite().flatten(1).all(1)).flatten().tolist()
        raise OverflowError(
            f"samples {rows[:8]} left the lattice: take fewer bits (ods.FixedPoint(bits=32)) or more steps"
        )


def check_unchanged(solver: FixedPoint, x: Tensor, point: Tensor, sigma: float) -> None:
    """Raises: ValueError: `x` (batch, *shape) at `sigma` is not what `point`, which decoding starts from, says."""
    shown = solver.shown(point, sigma, x.dtype)
    refuse_changed(((x - shown).abs() > 1e-5 * (1 + shown.abs())).flatten(1).any(1))


def checksums(x: Tensor) -> Tensor:
    """(batch,) int64, of latents (batch, *shape), the same in every precision."""
    return _checksum(x.detach().cpu().float() + 0.0)


def refuse_changed(changed: Tensor) -> None:
    """Raises: ValueError: some latents are `changed` (batch,), but not the memory from which they are decoded."""
    if bool(changed.any()):
        rows = torch.nonzero(changed).flatten().tolist()
        raise ValueError(
            f"latent.x of samples {rows[:8]} has been changed, but its memory, from which it is decoded, has not: "
            "decode latent.without_memory()"
        )


def in_whole_numbers(solver: AnySolver | None) -> FixedPoint:
    """The solver that undoes `solver`'s steps to the bit.

    Raises:
        ValueError: There is none.
    """
    found = ALF() if solver is None else find_solver(solver)
    if isinstance(found, ALF):
        return FixedPoint(found)
    if isinstance(found, FixedPoint):
        return found
    raise ValueError(
        f'exact="bits" needs the solver "alf", with any settings, or "fixed_point"; got {spec_of(found)} '
        '(exact="residual" is lossless with any deterministic solver)'
    )


def _nearest(levels: Tensor, decoded: Tensor) -> Tensor:
    """The index of the nearest of `levels` (n,) to each value of `decoded`."""
    middles = (levels[1:].double() + levels[:-1].double()) / 2
    return torch.bucketize(decoded.detach().cpu().double(), middles)


def _checksum(images: Tensor) -> Tensor:
    """(batch,) of the bytes of each."""
    rows = images.contiguous().flatten(1).view(torch.uint8).numpy()
    found = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows]
    return torch.tensor([int.from_bytes(d, "little", signed=True) for d in found])
