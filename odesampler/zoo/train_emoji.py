"""Make the embedded model of 32x32 colour emoji: data, training, measurement, with one command.

    python -m odesampler.zoo.train_emoji              # writes emoji.safetensors, emoji_heldout.safetensors
    python -m odesampler.zoo.train_emoji --evaluate   # measures the weights that are there

Needs the Debian packages fonts-noto-color-emoji and unicode-data, and fontTools; nothing is downloaded. An interrupted
run goes on when the command is repeated. See EMOJI.md for the data's origin and licence and for what was measured.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from odesampler.images import save_grid
from odesampler.sampling import sample
from odesampler.schedule import VP
from odesampler.zoo.models import model_from
from odesampler.zoo.quality import nearest_distance
from odesampler.zoo.train_emoji_data import SHAPE, Emoji, emoji, split
from odesampler.zoo.training import Recipe, train
from odesampler.zoo.unet import UNet, UNetConfig
from odesampler.zoo.weights import load_unet, save_tensors, save_unet

HERE = Path(__file__).parent
# Mirrored, these would be wrong: letters, arrows, clock faces, calendars.
NOT_MIRRORED = ("time", "money", "mail", "writing", "office", "Symbols")
LICENCE = "weights: MIT; pictures: Noto Color Emoji, font SIL OFL 1.1, image sources Apache-2.0, Copyright Google Inc."
WIDTH, MULTIPLIERS, ATTENTION, PATCH = 48, (1, 2, 3), (1, 2), 2
RECIPE = Recipe(steps=15_000, batch_size=64, learning_rate=1e-3, warmup=300, average=0.9995, prediction="v", bf16=True)
NOISE_LEVELS = (50, 200, 400, 600, 800, 950)  # t at which the held-out loss is measured
COPIED = (0.05, 0.1)  # root mean square differences, black to white being 1, that are counted
COLUMNS = 16  # of the picture that --evaluate writes


class Sampling(NamedTuple):
    """How to make the samples that are measured."""

    each: int  # samples of each group
    solver: str
    num_steps: int
    guidance_scale: float
    seed: int


def scaled(images: Tensor) -> Tensor:
    """Map 0 .. 255 to the model's data range, -1 .. 1."""
    return images.float() / 127.5 - 1


def with_mirrored(data: Emoji) -> tuple[Tensor, Tensor]:
    """Images in the model's data range and labels, every picture twice, the second time mirrored where harmless."""
    kept = [
        name in NOT_MIRRORED or group in NOT_MIRRORED for name, group in zip(data.classes, data.groups, strict=True)
    ]
    images, labels = scaled(data.images), data.labels.long()
    fixed = torch.tensor(kept)[labels].reshape(-1, 1, 1, 1)
    return torch.cat([images, torch.where(fixed, images, images.flip(-1))]), labels.repeat(2)


def alpha_bar_table() -> Tensor:
    """Return the squared signal scale of the linear variance-preserving schedule at t = 0 .. 999, float64."""
    return torch.tensor(VP.linear().alpha_bar, dtype=torch.float64)


def train_and_save(out: Path, recipe: Recipe, start: Path | None) -> None:
    """Train the model, from new weights or from those at `start`, and write its weights and the held-out pictures."""
    seen, held_out = split(emoji())
    classes = len(seen.classes)
    torch.manual_seed(recipe.seed)
    network = UNet(UNetConfig(3, classes, WIDTH, MULTIPLIERS, attention=ATTENTION, patch=PATCH))
    if start is not None:
        network.load_state_dict(load_unet(start)[0].state_dict())
    checkpoint = out.with_suffix(".checkpoint")
    images, labels = with_mirrored(seen)
    average = train(network, images, labels, classes, alpha_bar_table(), recipe, checkpoint)
    network.load_state_dict(average.state_dict())
    schedule = {"family": "VP.linear", "steps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
    metadata = {
        "description": "32x32 colour emoji, class-conditional; see EMOJI.md",
        "prediction": recipe.prediction,
        "schedule": json.dumps(schedule),
        "data_shape": json.dumps(SHAPE),
        "data_range": json.dumps([-1, 1]),
        "classes": json.dumps(seen.classes),
        "groups": json.dumps(seen.groups),
        "null_label": str(classes),
        "training": json.dumps({**asdict(recipe), "images": len(seen.images), "continued": start is not None}),
        "licence": LICENCE,
    }
    save_unet(out, network, metadata)
    about = {
        "description": "Noto Color Emoji 2.042 at 32x32 on white, held out from training",
        "images": "uint8, 0 to 255, (n, 3, 32, 32); the model's data range is images / 127.5 - 1",
        "labels": "uint8, (n,)",
        "names": json.dumps(held_out.names),
        "licence": LICENCE,
    }
    tensors = {"images": held_out.images, "labels": held_out.labels}
    save_tensors(out.with_name(out.stem + "_heldout.safetensors"), tensors, about)
    checkpoint.unlink()


@torch.no_grad()
def losses(network: Callable[..., Tensor], data: Emoji, seed: int, repeats: int = 4) -> list[float]:
    """Mean squared error of v at each of `NOISE_LEVELS`, on pictures with their labels.

    Args:
        network: Takes (x_t, t, label).
        data: The pictures.
        seed: Fixes the noise, which is the same at every level.
        repeats: Draws of noise for each picture.
    """
    x0, labels = scaled(data.images).repeat(repeats, 1, 1, 1), data.labels.long().repeat(repeats)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed))
    table = alpha_bar_table()
    result = []
    for level in NOISE_LEVELS:
        alpha, std = float(table[level].sqrt()), float((1 - table[level]).sqrt())
        t = torch.full((len(x0),), float(level))
        x_t = alpha * x0 + std * noise
        parts = [slice(i, i + 256) for i in range(0, len(x0), 256)]
        answer = torch.cat([network(x_t[part], t[part], labels[part]) for part in parts])
        result.append(float(((answer - (alpha * noise - std * x0)) ** 2).mean()))
    return result


def labels_by_group(groups: Sequence[str], each: int) -> Tensor:
    """Labels to sample, int64: `each` of every group in turn, spread over its classes."""
    of_group: dict[str, list[int]] = {}
    for label, group in enumerate(groups):
        of_group.setdefault(group, []).append(label)
    spread = [labels[i * len(labels) // each] for labels in of_group.values() for i in range(each)]
    return torch.tensor(spread)


def apart(images: Tensor, reference: Tensor) -> NDArray[np.float64]:
    """Root mean square difference of each image from its nearest in `reference`, black to white being 1."""
    distance = nearest_distance(images.clamp(-1, 1).numpy(), reference.numpy())
    return np.asarray(distance / (2 * images[0].numel() ** 0.5))


def describe(name: str, distance: NDArray[np.float64]) -> str:
    """One line on distances from training pictures."""
    close = ", ".join(f"within {limit} {np.mean(distance < limit):.1%}" for limit in COPIED)
    return f"  {name:<20} median {np.median(distance):.3f}, least {distance.min():.3f}, {close}"


def evaluate(path: Path, options: Sampling) -> None:
    """Measure saved weights: loss on held-out pictures, samples by group as a PNG, distance from training pictures."""
    model = model_from(path, "emoji")
    seen, held_out = split(emoji())
    rows = {
        "held-out pictures": losses(model.network, held_out, options.seed),
        "training pictures": losses(model.network, seen, options.seed, repeats=1),
        "answer 0": losses(lambda x_t, t, label: torch.zeros_like(x_t), held_out, options.seed),
    }
    print("mean squared error of v at t =".ljust(32) + "".join(f"{level:>8}" for level in NOISE_LEVELS))
    for name, row in rows.items():
        print(f"  {name:<30}" + "".join(f"{loss:8.4f}" for loss in row))

    groups = seen.groups
    labels = labels_by_group(groups, options.each)
    began = time.perf_counter()
    samples = sample(
        model,
        len(labels),
        solver=options.solver,
        num_steps=options.num_steps,
        seed=options.seed,
        cond={"label": labels},
        guidance_scale=options.guidance_scale,
        max_batch=128,
    ).x
    print(f"{len(labels)} samples, {options}: {time.perf_counter() - began:.1f} s")
    shown = torch.arange(len(labels)).reshape(-1, options.each)[:, :: max(1, options.each // COLUMNS)][:, :COLUMNS]
    picture = path.with_suffix(".png")
    save_grid(samples[shown.flatten()], picture, columns=shown.shape[1])
    print(f"{picture}: a row for each of {', '.join(dict.fromkeys(groups))}")

    reference = with_mirrored(seen)[0]
    print("distance from the nearest training picture (root mean square, black to white being 1):")
    print(describe("held-out pictures", apart(scaled(held_out.images), reference)))
    print(describe("samples", apart(samples, reference)))
    for group, part in zip(dict.fromkeys(groups), samples.reshape(-1, options.each, *SHAPE), strict=True):
        print(describe(group, apart(part, reference)))


def main() -> None:
    """Read the command line, then train, or measure what is there."""
    parser = argparse.ArgumentParser(description="Train the embedded emoji model, or measure it.")
    parser.add_argument("--out", type=Path, default=HERE / "emoji.safetensors", help="the weights (default: in place)")
    parser.add_argument("--steps", type=int, default=RECIPE.steps, help="optimiser steps (default: %(default)s)")
    parser.add_argument("--start", type=Path, help="weights to train further, instead of new ones")
    parser.add_argument("--seed", type=int, default=RECIPE.seed, help="of training, or of the samples with --evaluate")
    parser.add_argument("--evaluate", action="store_true", help="measure the weights at --out instead of training")
    parser.add_argument("--samples", type=int, default=64, help="of each group (default: %(default)s)")
    parser.add_argument("--solver", default="ddim", help="to sample with (default: %(default)s)")
    parser.add_argument("--sampling-steps", type=int, default=50, help="default: %(default)s")
    parser.add_argument("--guidance", type=float, default=2.5, help="guidance scale (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)  # sums are then made in one order
    try:
        if args.evaluate:
            options = Sampling(args.samples, args.solver, args.sampling_steps, args.guidance, args.seed)
            evaluate(args.out, options)
        else:
            recipe = Recipe(**{**asdict(RECIPE), "steps": args.steps, "seed": args.seed})
            train_and_save(args.out, recipe, args.start)
    except (FileNotFoundError, ModuleNotFoundError) as error:
        sys.exit(f"train_emoji: {error}")


if __name__ == "__main__":
    main()
