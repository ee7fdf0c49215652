"""More steps make the same images of an ODE better, and other images where noise is drawn anew."""

import math

import pytest
import torch

import odesampler as ods
from odesampler.analysis.consistency import Consistency
from tests.problems import gaussian

MODEL = ods.load("digits")
COND = {"label": [0, 1, 2, 3]}


def test_the_distances_are_those_of_single_solves():
    found = ods.consistency(MODEL, (3, 5, 9), 4, solver="heun", cond=COND, seed=7)
    x = [
        ods.sample(MODEL, 4, solver="heun", num_steps=n, seed=7, cond=COND, state_dtype=torch.float64).x
        for n in (3, 5, 9)
    ]
    assert torch.equal(found.x, torch.stack(x))
    assert torch.allclose(found.to_next[1], (x[2] - x[1]).square().mean((1, 2, 3)).sqrt())
    assert torch.allclose(found.to_finest[0], (x[2] - x[0]).square().mean((1, 2, 3)).sqrt())
    assert [r["nfe"] for r in found.records()] == [5, 9, 17]


@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("heun", 2)])
def test_on_a_gaussian_the_rate_is_the_order(solver, order):
    model = gaussian().model(ods.VE(0.1, 5.0), data_shape=(2,))
    found = ods.consistency(model, (16, 32, 64, 128), 3, solver=solver, grid="log_snr")
    assert found.consistent
    assert found.rate.median().item() == pytest.approx(order, abs=0.25)


def test_images_that_noise_makes_anew_are_not_consistent():
    """DDPM is flagged, DDIM is not; along one path of noise DDPM converges too."""
    steps = (10, 20, 40, 80)
    assert ods.consistency(MODEL, steps, 4, cond=COND).consistent
    anew = ods.consistency(MODEL, steps, 4, solver="ddpm", cond=COND)
    assert not anew.consistent
    assert "not consistent: more steps make other images" in anew.table()
    assert ods.consistency(MODEL, steps, 4, solver="ddpm", noise="brownian", cond=COND).consistent


@pytest.mark.parametrize("steps", [(16, 32, 40), (16, 17, 128), (10, 11, 12), (8, 64, 65), (10, 12, 40, 45, 200)])
def test_any_numbers_of_steps_give_the_order_and_noise_drawn_anew_has_none(steps):
    model = gaussian().model(ods.VE(0.1, 5.0), data_shape=(2,))
    found = ods.consistency(model, steps, 3, solver="ddim", grid="log_snr")
    assert found.rate.median().item() == pytest.approx(1, abs=0.2)
    assert found.consistent
    assert not made(steps, lambda n, z: z).consistent


def made(steps, image, batch=5):
    """The report of images that are given by number of steps and by noise of their own."""
    z = torch.randn(len(steps), batch, 4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Consistency(tuple(steps), torch.stack([image(n, z[i]) for i, n in enumerate(steps)]), steps, "s", "m")


@pytest.mark.parametrize(
    ("rate", "law", "said"),
    [
        (0.5, "one direction", "the error falls as steps^-0.5 (median)\nconsistent"),
        (0.5, "each its own", "the error falls as steps^-0.5 (median)\nconsistent"),
        (0.18, "one direction", "the error hardly falls: as steps^-0.2 (median)\nnot consistent"),
        (0.0, "each its own", "the error does not fall\nnot consistent"),
        (-2.0, "one direction", "the error does not fall\nnot consistent"),
        (12.0, "one direction", "the error falls as steps^-10.0 or faster (median)\nconsistent"),
    ],
)
def test_errors_of_a_known_rate_are_said_to_fall_at_it(rate, law, said):
    one = torch.linspace(-1, 1, 4000, dtype=torch.float64).expand(5, 4000)
    found = made((2, 3, 8), lambda n, z: one + (n / 8) ** -rate * (one.cos() if law == "one direction" else z))
    assert said in found.table()


def test_the_largest_distance_is_that_of_the_farthest_sample():
    found = made((10, 20, 40), lambda n, z: torch.arange(1.0, 6)[:, None].expand(5, 3).double() / n)
    assert [r["largest"] for r in found.records()[:2]] == pytest.approx([5 / 10 - 5 / 40, 5 / 20 - 5 / 40])
    assert found.records()[0]["to_finest"] == pytest.approx(3 / 10 - 3 / 40)


def test_distances_down_to_rounding_are_consistent():
    model = ods.Model(lambda x_t, t: torch.zeros_like(x_t), ods.VE(), data_shape=(2,))
    found = ods.consistency(model, (2, 3, 4), 2)
    assert found.consistent
    assert found.rate.tolist() == [math.inf] * 2
    assert "falls to rounding" in found.table()
    assert len(found.sections()) == 1  # no images
    with pytest.raises(ValueError, match="only images can be shown"):
        found.plot_images()


def test_the_figures_have_a_row_a_latent_and_a_line_a_distance():
    found = ods.consistency(MODEL, (2, 3, 4), 2)
    assert len(found.plot_images().axes) == 6
    drawn = found.plot().axes[0]
    assert drawn.lines[0].get_ydata() == pytest.approx(found.to_next.median(1).values, rel=0.5)
    assert [s.title for s in found.sections()][1] == "The images"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_steps": (10, 20)}, "three numbers or more, rising"),
        ({"num_steps": (10, 30, 20)}, "three numbers or more, rising"),
        ({"num_steps": (10, 20.5, 30)}, "num_steps is the number of transitions"),
        ({"solver": "adaptive:dopri5"}, "chooses its own steps"),
        ({"grid": [10.0, 1.0, 0.0]}, "give its name"),
    ],
)
def test_what_cannot_be_meant_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        ods.consistency(MODEL, **change)
