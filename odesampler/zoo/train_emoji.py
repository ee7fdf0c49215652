"""Make the embedded model of 32x32 colour emoji: data, training, measurement, with one command.

    python -m odesampler.zoo.train_emoji              # writes emoji.safetensors, emoji_heldout.safetensors
    python -m odesampler.zoo.train_emoji --evaluate   # measures the weights that are there

Two stages of training; the second begins from the averaged weights of the first, its learning rate at the start of the
schedule again. Needs the Debian packages fonts-noto-color-emoji and unicode-data, and fontTools; nothing is downloaded.
An interrupted run goes on, in either stage, when the command is repeated. See EMOJI.md for the data's origin and
licence and for what was measured.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from odesampler.analysis.distances import nearest_distance
from odesampler.images import save_grid, to_float
from odesampler.sampling import sample
from odesampler.schedule import VP
from odesampler.zoo.models import model_from
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
STAGES = (RECIPE, replace(RECIPE, steps=20_000, seed=1))
NOISE_LEVELS = (50, 200, 400, 600, 800, 950)  # t at which the held-out loss is measured
COPIED = (0.05, 0.1)  # root mean square differences, black to white being 1, that are counted
COLUMNS = 16  # of the picture that --evaluate writes


class Sampling(NamedTuple):
    """How to make the samples that are measured."""

    each: int  # samples of each group
    solver: str
    grid: str
    num_steps: int
    guidance_scale: float
    seed: int


def with_mirrored(data: Emoji) -> tuple[Tensor, Tensor]:
    """Images in the model's data range and labels, every picture twice, the second time mirrored where harmless."""
    kept = [
        name in NOT_MIRRORED or group in NOT_MIRRORED for name, group in zip(data.classes, data.groups, strict=True)
    ]
    images, labels = to_float(data.images), data.labels.long()
    fixed = torch.tensor(kept)[labels].reshape(-1, 1, 1, 1)
    return torch.cat([images, torch.where(fixed, images, images.flip(-1))]), labels.repeat(2)


def alpha_bar_table() -> Tensor:
    """Return the squared signal scale of the linear variance-preserving schedule at t = 0 .. 999, float64."""
    return torch.tensor(VP.linear().alpha_bar, dtype=torch.float64)


def stages_for(count: int, steps: int | None, seed: int) -> list[Recipe]:
    """The first `count` stages, with other numbers of steps if given; the seed of each is one above the last."""
    return [replace(stage, steps=steps or stage.steps, seed=seed + i) for i, stage in enumerate(STAGES[:count])]


def first_weights(classes: int, seed: int) -> UNet:
    """The network before training."""
    torch.manual_seed(seed)
    return UNet(UNetConfig(3, classes, WIDTH, MULTIPLIERS, attention=ATTENTION, patch=PATCH))


def metadata_of(stages: Sequence[Recipe], seen: Emoji) -> dict[str, str]:
    """What the file of weights says of itself after these stages."""
    schedule = {"family": "VP.linear", "steps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
    return {
        "description": "32x32 colour emoji, class-conditional; see EMOJI.md",
        "prediction": stages[-1].prediction,
        "schedule": json.dumps(schedule),
        "data_shape": json.dumps(SHAPE),
        "data_range": json.dumps([-1, 1]),
        "classes": json.dumps(seen.classes),
        "groups": json.dumps(seen.groups),
        "null_label": str(len(seen.classes)),
        "training": json.dumps({"stages": [asdict(recipe) for recipe in stages], "images": len(seen.images)}),
        "licence": LICENCE,
    }


def after_stage(path: Path, metadata: dict[str, str]) -> UNet | None:
    """The weights that a stage left at `path`, or None if it is still to be done.

    Raises:
        ValueError: They are of another training.
    """
    if not path.exists():
        return None
    network, found = load_unet(path)
    if found.get("training") != metadata["training"]:
        raise ValueError(
            f"{path} was made with {found.get('training')}, not with {metadata['training']}; "
            "repeat the command that made it, or delete the file to start again"
        )
    return network


def train_and_save(out: Path, stages: Sequence[Recipe]) -> None:
    """Train the model, stage after stage, and write its weights and the held-out pictures.

    Beside `out` lie a checkpoint of the stage under way and, until the last is done, the weights of those before it.
    """
    seen, held_out = split(emoji())
    classes = len(seen.classes)
    images, labels = with_mirrored(seen)
    network, left = first_weights(classes, stages[0].seed), []
    for number, recipe in enumerate(stages, 1):
        result = out if number == len(stages) else out.with_suffix(f".stage{number}.safetensors")
        checkpoint = out.with_suffix(f".stage{number}.checkpoint")
        metadata = metadata_of(stages[:number], seen)
        done = None if result == out else after_stage(result, metadata)
        if done is None:
            print(f"stage {number} of {len(stages)}: {recipe.steps} steps")
            average = train(network, images, labels, classes, alpha_bar_table(), recipe, checkpoint)
            network.load_state_dict(average.state_dict())
            save_unet(result, network, metadata)
            done = load_unet(result)[0]  # rounded to float16, as a run that stops here and goes on will find them
        left += [checkpoint, result]
        network = done.requires_grad_(True)
    about = {
        "description": "Noto Color Emoji 2.042 at 32x32 on white, held out from training",
        "images": "uint8, 0 to 255, (n, 3, 32, 32); the model's data range is images / 127.5 - 1",
        "labels": "uint8, (n,)",
        "names": json.dumps(held_out.names),
        "licence": LICENCE,
    }
    tensors = {"images": held_out.images, "labels": held_out.labels}
    save_tensors(out.with_name(out.stem + "_heldout.safetensors"), tensors, about)
    for path in reversed(left[:-1]):  # the last checkpoint first: without it the others are still of use
        path.unlink(missing_ok=True)


@torch.no_grad()
def losses(network: Callable[..., Tensor], data: Emoji, seed: int, repeats: int = 4) -> list[float]:
    """Mean squared error of v at each of `NOISE_LEVELS`, on pictures with the labels that they have in `data`.

    Args:
        network: Takes (x_t, t, label).
        data: The pictures.
        seed: Fixes the noise, which is the same at every level.
        repeats: Draws of noise for each picture.
    """
    x0, labels = to_float(data.images).repeat(repeats, 1, 1, 1), data.labels.long().repeat(repeats)
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


def print_losses(network: Callable[..., Tensor], seen: Emoji, held_out: Emoji, seed: int) -> None:
    """Print the loss with labels and without, on pictures held out and trained on, and that of the answer 0."""

    def unlabelled(data: Emoji) -> Emoji:
        return replace(data, labels=torch.full_like(data.labels, len(data.classes)))

    rows = {
        "held-out pictures": losses(network, held_out, seed),
        "held-out, null label": losses(network, unlabelled(held_out), seed),
        "training pictures": losses(network, seen, seed, repeats=1),
        "training, null label": losses(network, unlabelled(seen), seed, repeats=1),
        "answer 0": losses(lambda x_t, t, label: torch.zeros_like(x_t), held_out, seed),
    }
    print("mean squared error of v at t =".ljust(32) + "".join(f"{level:>8}" for level in NOISE_LEVELS))
    for name, row in rows.items():
        print(f"  {name:<30}" + "".join(f"{loss:8.4f}" for loss in row))


def picture_of(path: Path) -> Path:
    """Where the picture of the samples goes: beside the weights, but never into the package."""
    return Path(path.with_suffix(".png").name) if HERE.parent in path.resolve().parents else path.with_suffix(".png")


def evaluate(path: Path, options: Sampling) -> None:
    """Measure saved weights: loss on held-out pictures, samples by group as a PNG, distance from training pictures."""
    model = model_from(path, "emoji")
    seen, held_out = split(emoji())
    print_losses(model.network, seen, held_out, options.seed)
    groups = seen.groups
    labels = labels_by_group(groups, options.each)
    began = time.perf_counter()
    samples = sample(
        model,
        len(labels),
        solver=options.solver,
        grid=options.grid,
        num_steps=options.num_steps,
        seed=options.seed,
        cond={"label": labels},
        guidance_scale=options.guidance_scale,
        max_batch=128,
    ).x
    print(f"{len(labels)} samples, {options}: {time.perf_counter() - began:.1f} s")
    shown = torch.arange(len(labels)).reshape(-1, options.each)[:, :: max(1, options.each // COLUMNS)][:, :COLUMNS]
    picture = picture_of(path)
    save_grid(samples[shown.flatten()], picture, columns=shown.shape[1])
    print(f"{picture}: a row for each of {', '.join(dict.fromkeys(groups))}")

    reference = with_mirrored(seen)[0]
    print("distance from the nearest training picture (root mean square, black to white being 1):")
    print(describe("held-out pictures", apart(to_float(held_out.images), reference)))
    print(describe("samples", apart(samples, reference)))
    for group, part in zip(dict.fromkeys(groups), samples.reshape(-1, options.each, *SHAPE), strict=True):
        print(describe(group, apart(part, reference)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, then train, or measure what is there."""
    parser = argparse.ArgumentParser(prog="train_emoji", description="Train the embedded emoji model, or measure it.")
    parser.add_argument("--out", type=Path, default=HERE / "emoji.safetensors", help="the weights (default: in place)")
    parser.add_argument("--stages", type=int, choices=(1, 2), default=2, help="how many (default: %(default)s)")
    steps = " and ".join(str(recipe.steps) for recipe in STAGES)
    parser.add_argument("--steps", type=int, help=f"of each stage, for a quick trial (default: {steps})")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first stage, the second has the next; or of --evaluate's samples"
    )
    parser.add_argument("--evaluate", action="store_true", help="measure the weights at --out instead of training")
    parser.add_argument("--samples", type=int, default=64, help="of each group (default: %(default)s)")
    parser.add_argument("--solver", default="ddim", help="to sample with (default: %(default)s)")
    parser.add_argument("--grid", default="log_snr", help="to sample on (default: %(default)s)")
    parser.add_argument("--sampling-steps", type=int, default=50, help="default: %(default)s")
    parser.add_argument("--guidance", type=float, default=2.5, help="guidance scale (default: %(default)s)")
    args = parser.parse_args(arguments)
    if not args.out.parent.is_dir():
        parser.error(f"--out {args.out}: there is no folder {args.out.parent}, make it first")
    if args.steps is not None and args.steps < 1:
        parser.error(f"--steps {args.steps}: expected 1 or more")
    torch.set_num_threads(1)  # sums are then made in one order
    try:
        if args.evaluate:
            options = Sampling(args.samples, args.solver, args.grid, args.sampling_steps, args.guidance, args.seed)
            evaluate(args.out, options)
        else:
            train_and_save(args.out, stages_for(args.stages, args.steps, args.seed))
    except (FileNotFoundError, ModuleNotFoundError) as error:
        sys.exit(f"train_emoji: {error}")
    except ValueError as error:
        print(f"train_emoji: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("train_emoji: interrupted; repeat the same command and training goes on where it was", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
