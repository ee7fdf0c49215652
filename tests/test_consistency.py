"""More steps make the same images of an ODE better, and other images where noise is drawn anew."""

import math

import pytest
import torch

import odesampler as ods
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
