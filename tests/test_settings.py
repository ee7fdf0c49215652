"""Settings: every analysis says what it was told that its numbers do not show."""

import pytest
import torch

import odesampler as ods
from odesampler.analysis.settings import made_with

MODEL = ods.load("digits")
HELD = ods.held_out("digits").images
HOW = {"cond": {"label": 3}, "guidance_scale": 7.5}
LATENT = ods.encode(MODEL, HELD[:2], num_steps=3, solver="ddim", **HOW)
REPORTS = {
    "compare": lambda: ods.compare(MODEL, "ddim", 3, num_samples=1, reference_steps=20, seed=77, **HOW),
    "consistency": lambda: ods.consistency(MODEL, (2, 3, 4), 1, seed=77, **HOW),
    "trajectory_plane": lambda: ods.trajectory_plane(MODEL, "ddim", 3, reference_steps=20, seed=77, **HOW),
    "interpolation_grid": lambda: ods.interpolation_grid(MODEL, (77, 0), 3, num_steps=2, **HOW),
    "of latents": lambda: ods.interpolation_grid(MODEL, LATENT, 3),
    "log_likelihood": lambda: ods.log_likelihood(MODEL, HELD[:1], solver="heun", num_steps=4, **HOW),
    "diagnose": lambda: ods.diagnose(MODEL, LATENT),
}


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:the smallest error")
def test_a_report_says_the_guidance_the_condition_and_the_seed_that_it_was_made_with(name):
    report = REPORTS[name]()
    notes = report.table().splitlines()[3:]
    said = next(line for line in notes if "made with" in line)
    assert "guidance_scale=7.5" in said
    assert "cond label=" in said
    assert "3" in said.split("cond label=")[1]
    if name in ("compare", "consistency", "trajectory_plane"):
        assert "seed=77" in said
    assert "guidance_scale=7.5" in report.to_html()


def test_what_was_left_off_is_left_out():
    assert made_with(seed=None, cond={}, guidance_scale=1.0, x=None) == ""
    assert made_with(guidance_scale=ods.Guidance(1.0)) == ""
    assert made_with(cond={"label": torch.arange(3)}, seed=0) == "made with cond label=[0, 1, 2], seed=0"
    assert made_with(seed=range(20)) == "made with seed=[0, 1, 2, 3, 4, 5, 6, 7] and 12 more"
    assert (
        made_with(x=torch.zeros(2, 3), state_dtype=torch.float32) == "made with x of shape (2, 3), state_dtype=float32"
    )


def test_the_quality_says_how_its_halves_were_drawn():
    assert "halves of 5 images, seed=4" in ods.quality(HELD[:10], HELD[10:20], seed=4).table()
