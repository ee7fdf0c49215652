"""Weights from the files that people have: safetensors, and what torch.save wrote, of tensors and plain values only.

    network = Network(...);     into(network, "model.pt");     model = ods.Model(network, schedule, ...)

A file may hold several sets of weights, under keys that vary: averaged ones (EMA) are taken before raw ones, and which
was taken is said. No code of a file is ever run: `torch.load(weights_only=True)`, which refuses what needs more.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

AVERAGED = (
    "ema", "ema_state_dict", "model_ema", "params_ema", "ema_model", "ema_params", "state_dict_ema", "ema_weights",
    "network_ema", "unet_ema", "g_ema",
)  # fmt: skip
RAW = ("state_dict", "model_state_dict", "model", "params", "network", "net", "unet", "weights", "module")
EMA = re.compile(r"(?i)(?<![a-z])ema(?![a-z])")
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
DEPTH = 3  # of keys within keys


class Weights(dict[str, Tensor]):
    """Tensors by name, and where they come from.

    Args:
        tensors: Name to tensor.
        key: Under which key of the file they were, "ema" or "ema/model"; "": the file is nothing else.
        others: The keys of other sets of weights in the file.
    """

    def __init__(self, tensors: Mapping[str, Tensor], key: str = "", others: tuple[str, ...] = ()) -> None:
        super().__init__(tensors)
        self.key, self.others = key, others

    def __repr__(self) -> str:
        place = f" from {self.key!r}" if self.key else ""
        beside = f", beside {', '.join(map(repr, self.others))}" if self.others else ""
        return f"Weights({len(self)} tensors{place}{beside})"


class Loaded(NamedTuple):
    """What `into` did."""

    key: str  # of the weights that were taken, as in Weights
    missing: tuple[str, ...]  # names of the network that the file lacks
    unexpected: tuple[str, ...]  # names of the file that the network lacks
    misshapen: tuple[str, ...]  # names of both, with the two shapes


def load_weights(path: str | Path, *, key: str | None = None, prefix: str = "") -> Weights:
    """The weights in a file, on the CPU.

    Names lose what wrappers put before them: "module." of all (DataParallel, AveragedModel), "_orig_mod." anywhere
    (torch.compile).

    Args:
        path: A file of tensors: .safetensors, or .pt, .pth, .ckpt, .bin of torch.save.
        key: Which set of weights, where a file holds several: "ema", or "ema/model" within it.
        prefix: Take only what begins with it, and drop it: "model.diffusion_model." of a whole pipeline's file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A file of another kind, a damaged one, one that would run code, or several sets of weights without
            a key: lists them.

    Examples:
        >>> torch.save({"model_ema": torch.nn.Linear(2, 3).state_dict(), "step": 7}, "checkpoint.pt")
        >>> ods.adapters.checkpoints.load_weights("checkpoint.pt")
        Weights(2 tensors from 'model_ema')
    """
    file = Path(path)
    found = _read(file)
    weights = _chosen(found, key, file)
    names = Counter(_plain_names(weights).values())
    if doubled := [name for name, times in names.items() if times > 1]:
        raise ValueError(f"{file.name}: without the names of wrappers {doubled[0]!r} is there twice")
    plain = {new: weights[old] for old, new in _plain_names(weights).items()}
    if prefix:
        plain = {name[len(prefix) :]: tensor for name, tensor in plain.items() if name.startswith(prefix)}
        if not plain:
            raise ValueError(
                f"{file.name}: no name begins with prefix={prefix!r}; names are such as {_some(_plain_names(weights))}"
            )
    return Weights(plain, weights.key, weights.others)


def into(network: nn.Module, weights: str | Path | Mapping[str, Tensor], strict: bool = True, **options: Any) -> Loaded:
    """Put the weights of a file into a network, all or none.

    Args:
        network: Made by the code that it was trained with. Keeps its device and dtype.
        weights: A path, or what `load_weights` gave.
        strict: Refuse names that are missing, unexpected or of another shape. If not, what fits is loaded, and the rest
            is returned.
        options: As for `load_weights`: key, prefix.

    Returns:
        Which weights were taken, and what did not fit.

    Raises:
        TypeError: Not a torch module.
        ValueError: As for `load_weights`; weights that do not fit: says which, and leaves the network as it was.

    Examples:
        >>> trained, network = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
        >>> torch.save({"module." + name: value for name, value in trained.state_dict().items()}, "weights.pt")
        >>> ods.adapters.checkpoints.into(network, "weights.pt").missing
        ()
        >>> network.weight.equal(trained.weight)
        True
        >>> ods.adapters.checkpoints.into(torch.nn.Linear(2, 5), "weights.pt")
        Traceback (most recent call last):
            ...
        ValueError: the weights do not fit Linear...
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a torch module, to put weights into; got {network!r}")
    if isinstance(weights, Mapping) and options:
        raise ValueError(f"{', '.join(options)} choose from a file; weights that are read already are taken whole")
    read = weights if isinstance(weights, Mapping) else load_weights(weights, **options)
    own = network.state_dict()
    if bare := [name for name, tensor in own.items() if not isinstance(tensor, Tensor)]:
        raise ValueError(f"the network keeps more than tensors: {_some(bare)}")
    both = own.keys() & read.keys()
    misshapen = {name for name in both if own[name].shape != read[name].shape}
    report = Loaded(
        getattr(read, "key", ""),
        tuple(name for name in own if name not in read),
        tuple(name for name in read if name not in own),
        tuple(f"{n}: {tuple(own[n].shape)}, in the file {tuple(read[n].shape)}" for n in own if n in misshapen),
    )
    fits = {name: read[name] for name in own if name in both - misshapen}
    if (strict and any(report[1:])) or not fits:
        raise ValueError(_complaint(network, report, len(fits)))
    network.load_state_dict(fits, strict=False)
    return report


def _read(file: Path) -> Any:
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {os.fspath(file)!r}")
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(
            f"{file.name}: weights are read from {', '.join(SUFFIXES)}; a .pkl or another pickle runs code of its own "
            "when it is loaded, so load it where you trust it and save its state_dict() as safetensors"
        )
    if suffix == ".safetensors":
        try:
            return load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file.name} is no whole safetensors file: {error}") from error
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds: torch's, pickle's, of zip files, and what damage provokes in them
        asks = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = f"it asks for {asks[1]}" if asks else f"damaged, or of another kind: {type(error).__name__}"
        raise ValueError(
            f"{file.name} cannot be read as tensors and plain values alone ({why}), and nothing more is ever loaded, "
            "since it could run code. If you trust it, load it where it was made, and save its state_dict()"
        ) from error


def _chosen(found: Any, key: str | None, file: Path) -> Weights:
    """The set of weights under `key`, or the only one that can be meant."""
    if key is not None:
        return _under(found, key, file)
    if _is_weights(found):
        return Weights(found)
    for names in (AVERAGED, RAW):
        candidates = dict(_candidates(found, names))
        if names is RAW and candidates and (unread := [*_of_averages(found)]):
            raise ValueError(
                f"{file.name} holds averages under {_list(unread)} in a form that is not known here: give "
                f"key={next(iter(candidates))!r} for the raw weights, or the key of named tensors within"
            )
        if len(candidates) == 1:
            [(taken, tensors)] = candidates.items()
            others = tuple(k for k, _ in _candidates(found, (*AVERAGED, *RAW)) if k != taken)
            return Weights(tensors, taken, others)
        if candidates:
            raise ValueError(f"{file.name} holds several sets of weights: give key=, one of {_list(candidates)}")
    keys = [str(k) for k in found] if isinstance(found, Mapping) else []
    raise ValueError(
        f"{file.name} holds no weights under a known key; give key= if one of its own is: "
        f"{_list(keys[:30]) if keys else f'it is a {type(found).__name__}'}"
    )


def _under(found: Any, key: str, file: Path) -> Weights:
    inner = found
    for part in key.split("/"):
        if not isinstance(inner, Mapping) or part not in inner:
            keys = [str(k) for k in inner] if isinstance(inner, Mapping) else []
            raise ValueError(f"{file.name} has no key {key!r}: {part!r} is not among {_list(keys[:30]) or 'none'}")
        inner = inner[part]
    if not _is_weights(inner):
        inner_keys = _list([str(k) for k in inner][:30]) if isinstance(inner, Mapping) else type(inner).__name__
        raise ValueError(f"{file.name}: what is under {key!r} is no set of named tensors, but holds {inner_keys}")
    return Weights(inner, key)


def _candidates(found: Any, names: tuple[str, ...], depth: int = DEPTH) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Every set of weights whose key, or that of something around it, is one of `names`; averaged ones by any path."""
    if not isinstance(found, Mapping) or depth == 0:
        return
    for key in (*AVERAGED, *RAW):
        if key not in found:
            continue
        inner = found[key]
        if _is_weights(inner):
            if key in names:
                yield key, inner
        else:
            deeper = (*AVERAGED, *RAW) if key in names else names
            yield from ((f"{key}/{path}", tensors) for path, tensors in _candidates(inner, deeper, depth - 1))


def _of_averages(found: Mapping[Any, Any]) -> list[str]:
    """Keys that by their name hold averages, whatever their form; among names of tensors too (latent-diffusion)."""
    inner = {k: [*v] for k, v in found.items() if isinstance(k, str) and isinstance(v, Mapping)}
    named = [k for k, v in found.items() if isinstance(k, str) and EMA.search(k) and _has_tensors(v)]
    beside = [f"{k}/model_ema.*" for k, names in inner.items() if any(str(n).startswith("model_ema.") for n in names)]
    return named + beside


def _has_tensors(found: Any, depth: int = DEPTH) -> bool:
    if isinstance(found, Tensor):
        return found.ndim > 0
    inner = [*found.values()] if isinstance(found, Mapping) else found if isinstance(found, (list, tuple)) else ()
    return depth > 0 and any(_has_tensors(one, depth - 1) for one in inner)


def _is_weights(found: Any) -> bool:
    named = isinstance(found, Mapping) and len(found) > 0
    return named and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items())


def _plain_names(names: Mapping[str, Any]) -> dict[str, str]:
    """Each name, and what it is without wrappers."""
    plain = {name: name.replace("_orig_mod.", "") for name in names if name != "n_averaged"}
    while plain and all(name.startswith("module.") for name in plain.values()):
        plain = {old: new.removeprefix("module.") for old, new in plain.items()}
    return plain


def _complaint(network: nn.Module, report: Loaded, fit: int) -> str:
    parts = [
        f"{len(names)} {what} ({_some(names)})"
        for what, names in zip(("missing", "unexpected", "of another shape"), report[1:], strict=True)
        if names
    ]
    place = f" under {report.key!r}" if report.key else ""
    return (
        f"the weights{place} do not fit {type(network).__name__}: {fit} do; {'; '.join(parts)}. Nothing was loaded."
        f"{_hint(report)}"
    )


def _hint(report: Loaded) -> str:
    """What to do, if all that is missing is there behind a prefix, or several."""
    if not report.missing:
        return ""
    first, there = report.missing[0], set(report.unexpected)
    prefixes = [name.removesuffix(first) for name in report.unexpected if name.endswith(f".{first}")]
    fitting = [prefix for prefix in prefixes if all(prefix + name in there for name in report.missing)]
    return (
        f" All that is missing is there behind a prefix: give prefix={' or '.join(map(repr, fitting))}."
        if fitting
        else ""
    )


def _some(names: Any) -> str:
    shown = list(names)
    return ", ".join(shown[:5]) + (", ..." if len(shown) > 5 else "")


def _list(keys: Any) -> str:
    return ", ".join(map(repr, keys))
