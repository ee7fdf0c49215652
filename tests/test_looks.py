"""Pictures tell the truth: a planted error shows in its pixel, a plane holds what lies in it, marks are the sigmas."""

import math
from dataclasses import replace
from itertools import pairwise

import matplotlib
import pytest
import torch

import odesampler as ods

MODEL = ods.load("digits")


@pytest.fixture(scope="module")
def compared():
    """DDIM and Heun on two digits; the error of the first is then planted by hand."""
    found = ods.compare(MODEL, ["ddim", "heun"], [3, 6], num_samples=2, reference_steps=60)
    assert [cell.solver for cell in found.cells] == ["ddim", "ddim", "heun", "heun"]
    return found


def with_error(compared, error):
    first, *others = compared.cells
    return replace(compared, cells=(replace(first, x=compared.reference.x + error), *others))


def test_an_error_in_one_pixel_shows_in_that_pixel_only(compared):
    error = torch.zeros(2, 1, 8, 8)
    error[0, 0, 2, 5] = -0.3  # of one of two samples
    found = ods.error_maps(with_error(compared, error))
    assert found.maps[0, 2, 5].item() == pytest.approx(0.15)
    assert (found.maps[0] > 1e-12).sum() == 1
    first = found.records()[0]
    assert (first["solver"], first["steps"], first["row"], first["column"]) == ("ddim", "3", 2, 5)
    assert first["half_in"] == 1 / 64
    assert "gathered in few pixels: ddim at 3" in found.table()


def test_an_even_error_is_gathered_nowhere(compared):
    found = ods.error_maps(with_error(compared, torch.full((2, 1, 8, 8), 0.1)))
    assert found.gathered[0].item() == 0.5
    assert "gathered" not in found.table()
    assert found.maps[1].mean().item() == pytest.approx(
        (compared.cells[1].x - compared.reference.x).abs().mean().item(), rel=1e-6
    )


def test_no_error_at_all_is_gathered_nowhere(compared):
    found = ods.error_maps(with_error(compared, torch.zeros(2, 1, 8, 8)))
    assert found.maps[0].max() == 0
    assert found.gathered[0].item() == 0.5
    assert "gathered" not in found.table()
    assert found.plot().axes[0].images[0].get_clim() == (0, 1)


def test_the_colours_of_each_map_go_up_to_its_own_largest_error(compared):
    found = ods.error_maps(compared)
    drawn = [axis.images[0].get_clim() for axis in found.plot().axes if axis.images]
    assert drawn == [(0, m.max().item()) for m in found.maps]
    assert len(set(drawn)) > 1


def test_the_maps_are_drawn_a_row_a_solver_with_their_largest_error(compared):
    figure = ods.error_maps(compared).plot()
    maps = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in maps] == ["3 steps", "6 steps"] * 2
    found = ods.error_maps(compared)
    assert [axis.get_xlabel() for axis in maps] == [f"largest {m.max():.1e}" for m in found.maps]
    assert torch.equal(torch.tensor(maps[2].images[0].get_array()), found.maps[2])


def test_error_maps_of_no_images_are_refused(compared):
    flat = ods.compare(
        ods.exact.Gaussian(torch.zeros(4), 1.0).model(), ["ddim"], [3], num_samples=2, reference_steps=20
    )
    with pytest.raises(ValueError, match=r"its samples are \(4,\)"):
        ods.error_maps(flat)
    with pytest.raises(ValueError, match="no solver came back"):
        ods.error_maps(replace(compared, cells=()))
    with pytest.raises(TypeError, match=r"takes what ods\.compare returns"):
        ods.error_maps(compared.reference)


def test_paths_of_a_gaussian_lie_in_one_plane_and_go_straight_where_its_mean_is_0():
    """x - mean only changes its length: every path is in the plane of the mean and the latent."""
    mean = torch.linspace(-1, 1, 16, dtype=torch.float64)
    found = ods.trajectory_plane(ods.exact.Gaussian(mean, 0.3).model(), ["ddim", "rk4"], 6)
    assert max(path.outside.max().item() for path in found.paths) < 1e-6
    assert found.held == pytest.approx(1)
    straight = ods.trajectory_plane(ods.exact.Gaussian(torch.zeros(16), 0.3).model(), ["ddim"], 6)
    assert straight.paths[0].place[:, 1].abs().max() < 1e-6
    end, start = straight.paths[-1].place[[-1, 0], 0].tolist()
    assert straight.paths[-1].length == pytest.approx(end - start, rel=1e-6)


def test_places_are_isometric_and_the_finest_end_is_the_exact_one():
    mean = torch.linspace(-1, 1, 16, dtype=torch.float64)
    gaussian = ods.exact.Gaussian(mean, 0.3)
    model = gaussian.model()
    z = torch.randn(1, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = ods.trajectory_plane(model, ["ddim"], 6, x=z)
    top = found.paths[-1].sigmas[0]
    x = model.schedule.from_model_scale(z, top)
    image = gaussian.trajectory(x, top, 0.0)
    apart = (image - x / math.hypot(1, top)).square().mean().sqrt().item()
    place = found.paths[-1].place
    assert (place[-1] - place[0]).norm().item() == pytest.approx(apart, rel=1e-4)
    ddim = ods.sample(model, x=z, solver="ddim", num_steps=6, state_dtype=torch.float64).x
    assert found.paths[0].miss == pytest.approx((ddim - image).square().mean().sqrt().item(), rel=1e-3)
    assert [len(path.place) for path in found.paths] == [7, 201]


def test_a_path_that_leaves_the_plane_is_said():
    """In 12 dimensions of as many scales paths bend each way; those of digits hardly do."""

    def network(x_t, t):  # turns in six planes, at six speeds
        speeds = torch.arange(1, 7, dtype=x_t.dtype)
        pairs = x_t.unflatten(1, (6, 2))
        return (pairs.flip(2) * torch.tensor([1.0, -1.0], dtype=x_t.dtype) * speeds[:, None]).flatten(1)

    model = ods.Model(network, ods.VE(0.1, 3.0), data_shape=(12,))
    turning = ods.trajectory_plane(model, ["heun"], 40)
    assert turning.curved
    assert "the picture misses something" in turning.table()
    digits = ods.trajectory_plane(MODEL, ["heun", ods.RK4()], 12, cond={"label": 3}, reference_steps=60)
    assert not digits.curved
    assert digits.records()[0]["outside"] > digits.records()[-1]["outside"]
    plane, outside = digits.plot().axes
    assert plane.lines[1].get_xdata() == pytest.approx(digits.paths[1].place[:, 0].tolist())
    assert outside.lines[0].get_ydata() == pytest.approx(digits.paths[0].outside.tolist())


def test_a_path_out_of_infinity_starts_at_the_noise():
    model = ods.exact.Gaussian(torch.zeros(8), 0.5).model(ods.RectifiedFlow(), "flow")
    z = torch.randn(1, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = ods.trajectory_plane(model, ["ddim"], 8, x=z)
    assert found.paths[0].sigmas[0] == math.inf
    end = ods.sample(model, x=z, solver="rk4", num_steps=200, state_dtype=torch.float64).x
    whole = (found.paths[-1].place[-1] - found.paths[-1].place[0]).norm().item()
    assert whole == pytest.approx((end - z).square().mean().sqrt().item(), rel=1e-2)


def test_a_grid_of_ones_own_is_walked_as_it_is_and_the_finest_path_ends_where_it_ends():
    """Whatever its number of transitions; and an end above 0 is no error of the solver."""
    gaussian = ods.exact.Gaussian(torch.linspace(-1, 1, 16, dtype=torch.float64), 0.3)
    model = gaussian.model()
    z = torch.randn(1, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    top = model.range[1] / 2
    own = tuple(top * (0.4 / top) ** (i / 40) for i in range(41))
    for grid in (own, ods.Grid(own)):
        found = ods.trajectory_plane(model, ["rk4"], grid=grid, x=z)
        assert found.paths[0].sigmas == own
        assert found.paths[-1].sigmas[:: len(found.paths[-1].sigmas) - 1] == pytest.approx((own[0], 0.4), rel=1e-12)
        assert found.paths[0].miss < 1e-3
    exact = gaussian.trajectory(model.schedule.from_model_scale(z, top), top, 0.4)
    start = model.schedule.from_model_scale(z, top) / math.hypot(1, top)
    apart = (exact / math.hypot(1, 0.4) - start).square().mean().sqrt().item()
    place = found.paths[-1].place
    assert (place[-1] - place[0]).norm().item() == pytest.approx(apart, rel=1e-4)
    assert len(ods.trajectory_plane(model, ["ddim"], grid=(*own, 0.0), x=z).paths[0].place) == 42
    assert [len(ods.trajectory_plane(model, "ddim", grid=name, x=z).paths[0].place) for name in (None, "karras")] == [
        7,
        7,
    ]
    with pytest.raises(ValueError, match="leave num_steps out"):
        ods.trajectory_plane(model, ["rk4"], 6, grid=own, x=z)


def test_the_plane_is_that_of_most_variance_with_the_image_up_and_to_the_right():
    """Against a principal component analysis of its own; the record has the point farthest from the plane."""

    def network(x_t, t):
        speeds = torch.arange(1, 7, dtype=x_t.dtype)
        pairs = x_t.unflatten(1, (6, 2))
        return (pairs.flip(2) * torch.tensor([1.0, -1.0], dtype=x_t.dtype) * speeds[:, None]).flatten(1)

    model = ods.Model(network, ods.VE(0.1, 3.0), data_shape=(12,))
    for seed in range(4):
        found = ods.trajectory_plane(model, ["heun"], 40, seed=seed, reference_steps=60)
        path = found.paths[-1]
        kept = ods.sample(
            model, 1, seed=seed, solver="rk4", grid=path.sigmas, trajectory=True, state_dtype=torch.float64
        )
        points = torch.stack([x / math.hypot(1, s) for x, s in zip(kept.trajectory.x_t, path.sigmas, strict=True)])
        variance = torch.linalg.eigvalsh(points.flatten(1).double().T.cov())
        assert found.held == pytest.approx((variance[-2:].sum() / variance.sum()).item(), rel=1e-4)
        assert (path.place[-1] - path.place[0]).min() >= 0
        assert found.records()[0]["outside"] == found.paths[0].outside.max().item()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"solvers": []}, "needs solvers; got none"),
        ({"x": torch.zeros(2, 1, 8, 8)}, "follows one latent"),
        ({"reference_steps": 7}, "reference_steps must be even"),
        ({"solvers": "adaptive:dopri5"}, "chooses its own steps: take solvers that walk a grid"),
    ],
)
def test_a_plane_that_cannot_be_meant_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        ods.trajectory_plane(MODEL, **change)


def test_a_path_that_draws_noise_is_said_to_be_one_of_many():
    found = ods.trajectory_plane(MODEL, ["ddim", "ancestral"], 3, reference_steps=20)
    assert "ancestral: draws noise, so that its path is one of many" in found.table()
    assert "draws noise" not in ods.trajectory_plane(MODEL, ["ddim"], 3, reference_steps=20).table()


def test_data_of_one_value_have_no_plane():
    with pytest.raises(ValueError, match="no plane"):
        ods.trajectory_plane(ods.exact.Gaussian(torch.zeros(1), 0.5).model(), ["ddim"], 3)


def test_the_marks_of_a_grid_are_its_sigmas():
    model = ods.exact.Gaussian(torch.zeros(2), 1.0).model(ods.VE(0.01, 100.0))
    found = ods.grid_picture(model, ["log_snr", [50.0, 5.0, 0.5, 0.0]], 5)
    assert found.grids[0].sigmas == pytest.approx([100, 10, 1, 0.1, 0.01, 0], rel=1e-9)
    marks, factors = found.plot().axes
    assert marks.lines[0].get_xdata() == pytest.approx([100, 10, 1, 0.1, 0.01], rel=1e-9)
    custom = [line for line in factors.lines if line.get_label() == "custom"]
    assert custom[0].get_ydata() == pytest.approx([10, 10])
    assert custom[0].get_xdata() == pytest.approx([math.sqrt(250), math.sqrt(2.5)])
    assert found.gaps == pytest.approx((1, 1))
    assert found.records()[1]["last_above_0"] == 0.5
    assert ods.grid_picture(model, (3.0, 1.0, 0.5)).grids == (ods.Grid((3.0, 1.0, 0.5)),)


def test_a_grid_with_a_gap_is_said():
    gap = ods.Grid((100.0, 90.0, 80.0, 70.0, 60.0, 50.0, 0.5, 0.4, 0.3), "with a gap")
    found = ods.grid_picture(MODEL, ["log_snr", gap], 8)
    assert found.gaps[1] == pytest.approx(math.log(100) / (math.log(100 / 0.3) / 8))
    assert "as long as 4 even ones or more: with a gap" in found.table()
    assert "or more" not in ods.grid_picture(MODEL, "log_snr").table()


def test_grids_from_infinity_are_drawn_and_grids_for_encoding_end_above_0():
    flow = ods.exact.Gaussian(torch.zeros(2), 1.0).model(ods.RectifiedFlow(), "flow")
    found = ods.grid_picture(flow, "linspace", 4, into_zero=False)
    assert found.grids[0][0] == math.inf
    assert found.grids[0][-1] > 0
    _, *inner = found.grids[0]
    assert found.records()[0]["longest_factor"] == pytest.approx(max(a / b for a, b in pairwise(inner)))
    assert [line.get_marker() for line in found.plot().axes[0].lines] == ["|", ">"]
    assert [grid.name for grid in ods.grid_picture(flow).grids] == ["linspace", "angle"]
    assert len(ods.grid_picture(MODEL).grids) == 4
    with pytest.raises(ValueError, match="needs grids; got none"):
        ods.grid_picture(flow, [])
    with pytest.raises(ValueError, match="unknown grid"):
        ods.grid_picture(flow, "straight")


def test_grids_of_one_step_are_drawn_without_steps_and_have_no_longest_one():
    flow = ods.exact.Gaussian(torch.zeros(2), 1.0).model(ods.RectifiedFlow(), "flow")
    for model in (MODEL, flow):
        found = ods.grid_picture(model, num_steps=1)
        (marks,) = found.plot().axes
        assert marks.lines[-1].get_marker() == "<"
        assert {row[-2:] for row in found.rows()} == {("-", "-")}
        assert {record["longest_factor"] for record in found.records()} == {None}
    assert len(ods.grid_picture(MODEL, ["log_snr", [100.0, 0.0]], 2).plot().axes) == 2


def test_pictures_do_not_depend_on_the_layout_that_a_user_has_set(compared):
    """A figure placed by hand would warn, and its colour bar lie on the maps."""
    between = ods.interpolation_grid(ods.load("digits"), (0, 1), 3, num_steps=3)
    with matplotlib.rc_context({"figure.constrained_layout.use": True}):
        assert ods.error_maps(compared).plot().get_layout_engine() is None
        assert between.plot().get_layout_engine() is None
