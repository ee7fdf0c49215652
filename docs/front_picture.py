"""The picture at the top of the README: what solvers make of 5, 10 and 20 evaluations, and what comes back of images.

python docs/front_picture.py        # writes docs/images/front.png, prints the numbers in it; minutes on a CPU
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

import odesampler as ods

HERE = Path(__file__).parent / "images"
BUDGETS = (5, 10, 20)
DRAWN_BY = {"ddim": "DDIM", "heun": "Heun", "dpmpp_2m": "DPM-Solver++ 2M", None: "our default"}
BACK_BY = {"ddim": ("DDIM", 20), "heun": ("Heun", 10), "alf": ("ALF, our default", 19)}  # steps for 20 evaluations
CLASSES = ("face-affection", "cat-face", "heart", "food-fruit")
SEED, GUIDANCE, EXACT = 0, 2.5, 120
ENCODED, EVALUATIONS = 4, 20  # images taken there and back, the most evaluations each way


def steps_for(solver: str | None, evaluations: int) -> int:
    """The most steps that ask no more than so often; the last one, into 0, asks once in every solver."""
    return 1 + (evaluations - 1) // 2 if solver == "heun" else evaluations


def strip(axes: Axes, images: Tensor, colours: str | None = None) -> None:
    """(batch, channels, height, width), side by side, a pixel apart."""
    padded = torch.nn.functional.pad(images.double(), (1, 1, 1, 1), value=1.0 if colours is None else 0.0)
    row = torch.cat(list(padded), dim=-1)
    if colours is None:
        axes.imshow(ods.images.to_bytes(row).permute(1, 2, 0), interpolation="nearest")
    else:
        axes.imshow(row.mean(0), cmap=colours, vmin=-1, vmax=1, interpolation="nearest")
    axes.axis("off")


def drawn(model: ods.Model, rows: list[list[Axes]]) -> None:
    """Each solver's samples from the same latents, beside the exact ones; the error of each budget under it."""
    cond = {"label": [model.labels.index(name) for name in CLASSES]}
    how = {"seed": SEED, "cond": cond, "guidance_scale": GUIDANCE, "state_dtype": torch.float64}
    exact, half = (ods.sample(model, len(CLASSES), solver="rk4", num_steps=n, **how).x for n in (EXACT, EXACT // 2))
    print(f"exact: rk4, {EXACT} steps; half as many differ by {rms(half - exact):.1e}")
    for (solver, name), axes in zip(DRAWN_BY.items(), rows, strict=True):
        found = [ods.sample(model, len(CLASSES), solver=solver, num_steps=steps_for(solver, n), **how) for n in BUDGETS]
        for one, n, at in zip(found, BUDGETS, axes, strict=False):
            error = rms(one.x - exact)
            strip(at, one.x)
            label(at, f"error {error:.2g}")
            print(f"{name}, {n} evaluations ({one.nfe.max().item()} taken): {error:.2e}")
        strip(axes[-1], exact)
        axes[0].text(-0.04, 0.5, name, transform=axes[0].transAxes, ha="right", va="center", fontsize=12)


def back(model: ods.Model, rows: list[list[Axes]]) -> None:
    """Held-out images, their latents, what comes back and what is missing, by solver."""
    held = ods.held_out("emoji")
    pick = torch.linspace(0, len(held.images) - 1, ENCODED).long()
    images, cond = held.images[pick].double(), {"label": held.labels[pick]}
    for (solver, (name, steps)), axes in zip(BACK_BY.items(), rows, strict=True):
        latent = ods.encode(model, images, solver=solver, num_steps=steps, cond=cond)
        found = ods.decode(model, latent)
        wrong, error = found.x - images, rms(found.x - images)
        full = wrong.abs().quantile(0.99).item()  # the largest alone would leave the rest white
        for at, shown in zip(axes, (images, latent.x / 3, found.x), strict=False):
            strip(at, shown)
        strip(axes[3], wrong / full, "RdBu_r")
        label(axes[3], f"error {error:.2g}, full colour ±{full:.1g}")
        axes[0].text(-0.04, 0.5, name, transform=axes[0].transAxes, ha="right", va="center", fontsize=12)
        print(
            f"there and back by {name}, {steps} steps each way ({found.nfe.max().item()} evaluations down): {error:.2e}"
        )


def rms(difference: Tensor) -> float:
    """Median over the samples of their root mean square."""
    return difference.square().flatten(1).mean(1).sqrt().median().item()


def label(axes: Axes, text: str) -> None:
    """Small words under a strip."""
    axes.text(0.5, -0.04, text, transform=axes.transAxes, ha="center", va="top", fontsize=9.5, color="#555555")


def main() -> None:
    """Draw both halves and write the file."""
    model = ods.load("emoji")
    figure = plt.figure(figsize=(14.4, 8.6), dpi=110)
    sizes = {"ncols": 4, "left": 0.125, "right": 0.995, "wspace": 0.04, "hspace": 0.2}
    above = figure.add_gridspec(len(DRAWN_BY), top=0.93, bottom=0.47, **sizes).subplots()
    below = figure.add_gridspec(len(BACK_BY), top=0.375, bottom=0.03, **sizes).subplots()
    for axes, title in zip(above[0], (*(f"{n} evaluations" for n in BUDGETS), "exact"), strict=True):
        axes.set_title(title, fontsize=12)
    for axes, title in zip(below[0], ("original", "latent", "reconstruction", "what is missing"), strict=True):
        axes.set_title(title, fontsize=12)
    drawn(model, [list(row) for row in above])
    back(model, [list(row) for row in below])
    titles = "The same latents", f"There and back, at most {EVALUATIONS} evaluations each way"
    for y, words in zip((0.985, 0.425), titles, strict=True):
        figure.text(0.01, y, words, fontsize=13.5, weight="bold", va="top")
    figure.savefig(HERE / "front.png")
    print(f"written: {HERE / 'front.png'}")


if __name__ == "__main__":
    main()
