"""Make the embedded model of 8x8 handwritten digits: data, training, measurement, with one command.

    python -m odesampler.zoo.train_digits              # writes digits.safetensors, digits_heldout.safetensors
    python -m odesampler.zoo.train_digits --evaluate   # measures the weights that are there

Needs scikit-learn, which carries the data; nothing is downloaded. An interrupted run goes on when the command is
repeated. See DIGITS.md for the data's origin and licence and for what was measured.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC
from torch import Tensor

from odesampler.analysis.distances import frechet_distance, nearest_distance
from odesampler.sampling import sample
from odesampler.schedule import VP
from odesampler.zoo.models import model_from
from odesampler.zoo.training import Recipe, train
from odesampler.zoo.unet import UNet, UNetConfig
from odesampler.zoo.weights import save_tensors, save_unet

HERE = Path(__file__).parent
NUM_CLASSES = 10
LEVELS = 16  # grey values run from 0 to 16
HELD_OUT = 360
SPLIT_SEED = 0
CONFIG = UNetConfig(channels=1, num_classes=NUM_CLASSES, width=16, multipliers=(1, 2))
RECIPE = Recipe(steps=12_000, weight_decay=0.0, average=0.9995, label_dropout=0.2)


@dataclass(frozen=True)
class Digits:
    """Grey images 0 .. 16, uint8, (n, 1, 8, 8), and their labels, uint8, (n,); a training and a held-out part."""

    train_images: Tensor
    train_labels: Tensor
    images: Tensor
    labels: Tensor


def digits() -> Digits:
    """Load scikit-learn's digits, split at random but with every class in the same proportion."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=HELD_OUT, stratify=labels, random_state=SPLIT_SEED)
    train_images, images, train_labels, labels = (torch.from_numpy(part.astype(np.uint8)) for part in parts)
    return Digits(train_images.reshape(-1, 1, 8, 8), train_labels, images.reshape(-1, 1, 8, 8), labels)


def scaled(images: Tensor) -> Tensor:
    """Map grey values 0 .. 16 to the model's data range, -1 .. 1."""
    return images.float() / (LEVELS / 2) - 1


def train_and_save(out: Path, recipe: Recipe, config: UNetConfig) -> None:
    """Train the model and write its weights, and beside them the images it was and was not trained on."""
    data = digits()
    torch.manual_seed(recipe.seed)
    checkpoint = out.with_suffix(".checkpoint")
    network = UNet(config)
    average = train(
        network,
        scaled(data.train_images),
        data.train_labels.long(),
        NUM_CLASSES,
        torch.tensor(VP.linear().alpha_bar, dtype=torch.float64),
        recipe,
        checkpoint,
    )
    network.load_state_dict(average.state_dict())
    schedule = {"family": "VP.linear", "steps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
    metadata = {
        "description": "8x8 grey handwritten digits, class-conditional; see DIGITS.md",
        "prediction": recipe.prediction,
        "schedule": json.dumps(schedule),
        "data_shape": json.dumps([1, 8, 8]),
        "data_range": json.dumps([-1, 1]),
        "classes": json.dumps([str(digit) for digit in range(NUM_CLASSES)]),
        "null_label": str(NUM_CLASSES),
        "training": json.dumps({**asdict(recipe), "images": len(data.train_images), "split_seed": SPLIT_SEED}),
        "licence": "weights: MIT; data: CC BY 4.0, Alpaydin and Kaynak 1998, doi:10.24432/C50P49",
    }
    save_unet(out, network, metadata)
    about = {
        "description": "handwritten digits; images and labels were held out from training, train_* were trained on",
        "images": "uint8, 0 to 16, (n, 1, 8, 8); the model's data range is images / 8 - 1",
        "labels": "uint8, 0 to 9, (n,)",
        "licence": "CC BY 4.0, Alpaydin and Kaynak 1998, doi:10.24432/C50P49",
    }
    save_tensors(out.with_name(out.stem + "_heldout.safetensors"), vars(data), about)
    checkpoint.unlink()


def evaluate(path: Path, count: int, seed: int) -> None:
    """Sample from saved weights and print how far the samples are from real digits."""
    model = model_from(path, "digits")
    data = digits()
    seen, held_out = (scaled(images).flatten(1).numpy() for images in (data.train_images, data.images))
    real = np.concatenate([seen, held_out])
    features = PCA(20, svd_solver="full").fit(real).transform
    judge = SVC().fit(seen, data.train_labels.numpy())

    shuffled = features(np.random.default_rng(seed).permutation(real))
    half = len(real) // 2
    unseen = frechet_distance(features(seen), features(held_out))
    distance = nearest_distance(held_out, seen)
    print(f"real data: Frechet distance of two halves {frechet_distance(shuffled[:half], shuffled[half:]):.3f}")
    print(f"held-out images: Frechet distance from training images {unseen:.3f}")
    print(f"  SVC accuracy {judge.score(held_out, data.labels.numpy()):.1%}")
    print(f"  nearest training image: median {np.median(distance):.2f}, least {distance.min():.2f}")
    # Samples that favour no image they were trained on lie nearest to a held-out one this often.
    print(f"proportion of the real data that is held out: {len(held_out) / len(real):.1%}")

    labels = torch.arange(count) % NUM_CLASSES
    heads = ("steps", "guidance", "FD real", "FD held-out", "SVC", "nearest seen", "least", "nearest is held-out")
    print("  ".join(heads))
    for num_steps, guidance_scale in [(5, 1.0), (10, 1.0), (50, 1.0), (10, 2.0), (50, 2.0)]:
        found = sample(
            model,
            count,
            solver="ddim",
            grid="trailing",
            num_steps=num_steps,
            seed=seed,
            cond={"label": labels},
            guidance_scale=guidance_scale,
        )
        samples = found.x.flatten(1).numpy()
        to_seen, to_held_out = nearest_distance(samples, seen), nearest_distance(samples, held_out)
        cells = (
            f"{num_steps}",
            f"{guidance_scale}",
            f"{frechet_distance(features(samples), features(real)):.3f}",
            f"{frechet_distance(features(samples), features(held_out)):.3f}",
            f"{judge.score(samples, labels.numpy()):.1%}",
            f"{np.median(to_seen):.2f}",
            f"{to_seen.min():.2f}",
            f"{np.mean(to_held_out < to_seen):.1%}",
        )
        print("  ".join(cell.rjust(len(head)) for cell, head in zip(cells, heads, strict=True)))


def main() -> None:
    """Read the command line, then train, or measure what is there."""
    parser = argparse.ArgumentParser(description="Train the embedded digits model, or measure it.")
    parser.add_argument("--out", type=Path, default=HERE / "digits.safetensors", help="the weights (default: in place)")
    parser.add_argument("--steps", type=int, default=RECIPE.steps, help="optimiser steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=RECIPE.seed, help="of training, or of the samples with --evaluate")
    parser.add_argument("--evaluate", action="store_true", help="measure the weights at --out instead of training")
    parser.add_argument("--samples", type=int, default=1024, help="images to measure (default: %(default)s)")
    args = parser.parse_args()
    # One thread: sums are then made in one order, and images this small gain nothing from more.
    torch.set_num_threads(1)
    if args.evaluate:
        evaluate(args.out, args.samples, args.seed)
    else:
        train_and_save(args.out, Recipe(**{**asdict(RECIPE), "steps": args.steps, "seed": args.seed}), CONFIG)


if __name__ == "__main__":
    main()
