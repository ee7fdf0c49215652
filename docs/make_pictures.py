"""Make the pictures of README and docs anew: `python docs/make_pictures.py`."""

from pathlib import Path

import front_picture
import torch

import odesampler as ods
from odesampler.cli import main

HERE = Path(__file__).parent / "images"
CLASSES = (
    *("face-smiling", "face-affection", "face-tongue", "face-unwell", "cat-face", "heart", "person", "person-role"),
    *(
        "food-fruit",
        "food-vegetable",
        "plant-flower",
        "person-fantasy",
        "zodiac",
        "animal-reptile",
        "time",
        "award-medal",
    ),
)

model = ods.load("emoji")
labels = torch.tensor([model.labels.index(name) for name in CLASSES]).repeat_interleave(8)
drawn = ods.sample(
    model, len(labels), num_steps=25, seed=100, cond={"label": labels}, guidance_scale=2.5, progress=True
)
ods.images.save_grid(drawn.x, HERE / "emoji.png", columns=16)
front_picture.main()
for command in ("compare", "roundtrip"):
    try:
        main([command, "--out", str(HERE / f"{command}.png")])
    except SystemExit as done:
        if done.code:
            raise
