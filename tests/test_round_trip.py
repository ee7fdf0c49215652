"""The round-trip report: its numbers are those of the images, and it draws itself."""

import math
from dataclasses import replace

import pytest
import torch

import odesampler as ods
from odesampler.analysis.ssim import ssim
from tests.problems import HIGH, LOW, labelled

RING = ods.exact.GaussianMixture.ring()
MODEL = RING.model()


def test_the_report_measures_what_encode_and_decode_give():
    x = RING.sample(4)
    report = ods.round_trip(MODEL, x, solvers=["ddim", ods.Heun()], num_steps=[5, 10])
    assert [(t.solver, t.num_steps) for t in report.trips] == [("ddim", 5), ("ddim", 10), ("heun", 5), ("heun", 10)]
    back = ods.decode(MODEL, ods.encode(MODEL, x, solver="ddim", num_steps=10)).x
    trip = report.trips[1]
    assert torch.equal(trip.images, back)
    assert torch.allclose(trip.rmse, (back - x).square().mean(1).sqrt())
    assert trip.worst == pytest.approx((back - x).abs().max().item())
    assert trip.nfe == 20
    assert torch.allclose(trip.psnr, -10 * torch.log10(trip.rmse**2 / 4))
    assert f"{trip.rmse.quantile(0.5):.2e}" in report.table()
    assert report.to_csv().splitlines()[0].startswith("solver,steps,dtype,guidance,convention,grid,nfe")
    assert report._repr_html_().count("<tr>") == 5


def test_more_steps_and_better_solvers_come_back_closer_and_an_exact_one_exactly():
    report = ods.round_trip(MODEL, RING.sample(4), solvers=["ddim", "heun", "rk4", "reversible"], num_steps=[20, 80])
    error = {(t.solver, t.num_steps): t.rmse.max().item() for t in report.trips}
    for solver in ("ddim", "heun", "rk4"):
        assert error[solver, 80] < error[solver, 20] / 2
    assert error["rk4", 80] < error["heun", 80] < error["ddim", 80]
    assert error["reversible", 80] < 1e-9


def test_solvers_that_choose_their_own_steps_get_one_row():
    report = ods.round_trip(MODEL, RING.sample(2), solvers=["adaptive:dopri5", "scipy:RK23"], num_steps=[5, 10])
    assert [t.num_steps for t in report.trips] == [None, None]
    assert "own" in report.table()


def test_a_solver_that_fails_is_named_and_the_others_rows_stand():
    def network(x_t, t):
        return torch.full_like(x_t, torch.nan) if len(calls) == 3 else calls.append(1) or MODEL.network(x_t, t)

    calls: list[int] = []
    model = ods.Model(network, ods.VP.linear(), data_shape=(2,))
    report = ods.round_trip(model, RING.sample(2), solvers=["ddim", "heun"], num_steps=1)
    assert [t.solver for t in report.trips] == ["ddim"]
    assert "heun at 1 steps failed: the model's answer has NaN" in report.table()


def test_a_solver_that_does_not_arrive_is_named_and_the_others_rows_stand():
    late = ods.Adaptive(ods.Dopri5(), 1e-9, 1e-9, max_steps=3)
    with pytest.warns(RuntimeWarning, match="did not arrive"):
        report = ods.round_trip(MODEL, RING.sample(2), [late, "ddim"], 3)
    assert [t.solver for t in report.trips] == ["ddim"]
    assert "adaptive:dopri5(rtol=1e-09, atol=1e-09, max_steps=3) failed" in report.table()


def test_one_solver_need_not_be_a_list():
    assert len(ods.round_trip(MODEL, RING.sample(2), "ddim", 3).trips) == 1


def test_points_in_the_plane_have_a_picture_of_error_by_evaluations_alone():
    report = ods.round_trip(MODEL, RING.sample(2), ["ddim", "alf"], [5, 10])
    [axis] = report.plot().axes
    assert [line.get_label() for line in axis.lines] == ["ddim", "alf"]
    assert axis.lines[0].get_xdata().tolist() == [10, 20]
    assert axis.lines[0].get_ydata() == pytest.approx([t.rmse.quantile(0.5).item() for t in report.trips[:2]])
    assert "<svg" in report.to_html()
    with pytest.raises(ValueError, match="leave samples out"):
        report.plot(samples=RING.sample(2))
    with pytest.raises(ValueError, match="no solver came back"):
        replace(report, trips=(), failures={"ddim": "NaN"}).plot()


@pytest.mark.parametrize("count", [1, 3])
def test_nothing_that_is_written_in_a_picture_of_few_images_is_cut_off_or_touches_its_neighbour(count):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    x = torch.rand(count, 1, 8, 8, dtype=torch.float64) - 0.5
    figure = ods.round_trip(ods.exact.Empirical(x, 0.3).model(), x, ["ddim", "alf"], [5, 10]).plot()
    FigureCanvasAgg(figure).draw()
    _, strips, errors = figure.subfigs
    written = [t for axis in strips.axes for t in (axis.title, axis.xaxis.label, axis.yaxis.label) if t.get_text()]
    ticks = [t for t in errors.axes[0].get_xticklabels() if t.get_text()]
    assert len(ticks) > 2
    written += [*ticks, errors.axes[0].xaxis.label, *errors.axes[0].get_legend().get_texts()]
    places = [t.get_window_extent() for t in written]
    for i, place in enumerate(places):
        assert place.x0 >= 0
        assert place.x1 <= figure.bbox.x1
        assert not any(place.overlaps(other) for other in places[:i]), written[i].get_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"solvers": []}, "needs solvers"),
        ({"num_steps": []}, "needs solvers and numbers of steps"),
        ({"state_dtype": []}, "got no state_dtype"),
        ({"state_dtype": [torch.float64, torch.float16]}, "state_dtype must be torch.float32"),
        ({"guidance_scale": [1, 3]}, "needs a model with a null condition"),
        ({"convention": ["source", "sauce"]}, "convention must be one of"),
        ({"solvers": "alf", "convention": "target"}, "encodes by undoing its own steps"),
        ({"solvers": ["heun", "ddpm"]}, "draws noise"),
        ({"solvers": ["heun", "nope"]}, "unknown solver"),
        ({"num_steps": [5, 0]}, "num_steps is the number"),
        ({"images": torch.zeros(1, 5)}, "must have shape"),
    ],
)
def test_all_cases_are_checked_before_the_first_is_run(arguments, message):
    def never(x_t, t):
        raise AssertionError("the model was called")

    model = ods.Model(never, ods.VP.linear(), data_shape=(2,))
    arguments = {"images": torch.zeros(2, 2), "solvers": ["heun"], "num_steps": [3], **arguments}
    with pytest.raises(ValueError, match=message):
        ods.round_trip(model, **arguments)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_has_a_row_of_four_strips_for_each_solver(channels):
    data = torch.rand(3, channels, 4, 4, dtype=torch.float64) - 0.5
    model = ods.exact.Empirical(data, 0.3).model()
    report = ods.round_trip(model, data, solvers=["ddim", "heun"], num_steps=[6, 3])
    figure = report.plot(num_images=2, samples=data)
    drawn, strips, errors = figure.subfigs
    assert len(drawn.axes) == 1
    assert len(report.plot(num_images=2).subfigs[0].axes) == 0
    assert len(strips.axes) == 8
    assert len(errors.axes[0].lines) == 2
    assert strips.axes[0].get_ylabel() == "ddim\n6 steps"  # the most, in whatever order they were asked for


def test_every_case_is_the_round_trip_that_encode_makes_with_its_dtype_guidance_and_convention():
    x, model = torch.tensor([[0.3, -0.2], [1.0, 0.5]]), replace(labelled(), sigma_min=LOW, sigma_max=HIGH)
    varied = {"guidance_scale": [1, 2.5], "convention": ["source", "target"]}
    dtypes = [torch.float32, torch.float64]
    report = ods.round_trip(model, x, ["ddim", "alf"], 6, state_dtype=dtypes, cond={"label": 0.5}, **varied)
    cases = [(t.solver, t.guidance, t.convention, t.dtype) for t in report.trips]
    every = [("ddim", g, c, d) for g in ("1", "2.5") for c in ("source", "target") for d in ("float32", "float64")]
    assert cases == [*every, *(("alf", g, "exact", d) for g in ("1", "2.5") for d in ("float32", "float64"))]
    for trip in report.trips[:8]:
        latent = ods.encode(
            model,
            x,
            solver="ddim",
            num_steps=6,
            cond={"label": 0.5},
            guidance_scale=float(trip.guidance),
            convention=trip.convention,
            state_dtype=getattr(torch, trip.dtype),
        )
        assert torch.equal(trip.images, ods.decode(model, latent).x)
    assert report.head[:5] == ("solver", "steps", "dtype", "guidance", "convention")


def test_the_picture_has_a_line_for_everything_that_varies():
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64) - 0.5
    varied = {"convention": ["source", "target"], "state_dtype": [torch.float32, torch.float64]}
    report = ods.round_trip(ods.exact.Empirical(x, 0.3).model(), x, ["ddim", "heun"], [2, 4], **varied)
    _, strips, errors = report.plot(num_images=2).subfigs
    labels = [line.get_label() for line in errors.axes[0].lines]
    assert labels[:3] == ["ddim, float32, source", "ddim, float64, source", "ddim, float32, target"]
    assert len(labels) == 8
    assert len(strips.axes) == 8 * 4
    assert strips.axes[0].get_ylabel() == "ddim\nfloat32, source\n4 steps"


def test_what_does_not_vary_has_no_column_but_is_in_the_records():
    report = ods.round_trip(MODEL, RING.sample(2), ["ddim", "heun", "alf"], 3)  # the last is "exact", as always
    assert not {"dtype", "guidance", "convention", "ssim"} & set(report.head)
    assert report.records()[0]["dtype"] == "float64"
    assert report.records()[0]["convention"] == "source"
    assert report.records()[0]["ssim"] is None


def test_what_holds_for_all_rows_and_is_no_default_is_said_below_the_table_once():
    x, model = torch.tensor([[0.3, -0.2], [1.0, 0.5]]), replace(labelled(), sigma_min=LOW, sigma_max=HIGH)
    how = {"guidance_scale": 2.5, "grid": "karras", "state_dtype": torch.float32, "cond": {"label": 0.5}}
    said = "guidance 2.5, grid karras, state float32"
    report = ods.round_trip(model, x, "ddim", 4, **how, convention=["source", "target"])
    assert report.sections()[0].table.notes[0] == f"{said}, cond label"
    assert {r["grid"] for r in report.records()} == {r["grid"] for r in report.per_sample().records()} == {"karras"}
    several = ods.round_trip(model, x, "ddim", 4, **{**how, "guidance_scale": [1, 2.5]}, convention="target")
    assert several.sections()[0].table.notes[0] == "grid karras, state float32, convention target, cond label"
    for verb, more in ((ods.error_sources, {"iterations": 0, "conventions": ()}), (ods.estimate_round_trip, {})):
        assert verb(model, x, "ddim", 4, **how, **more).sections()[0].table.notes[0] == f"{said}, cond label"
    assert not any("grid" in n for n in ods.round_trip(MODEL, RING.sample(2), "ddim", 4).sections()[0].table.notes)


def test_each_sample_has_its_own_numbers():
    x = torch.rand(3, 1, 6, 5, dtype=torch.float64) - 0.5
    report = ods.round_trip(ods.exact.Empirical(x, 0.3).model(data_range=(-1.0, 0.5)), x, ["ddim", "alf"], [4])
    each = report.per_sample().records()
    assert [(r["solver"], r["sample"]) for r in each] == [(s, i) for s in ("ddim", "alf") for i in range(3)]
    for record in each:
        trip = report.trips[record["solver"] == "alf"]
        error = trip.images[record["sample"]] - x[record["sample"]]
        latent = trip.latent.x[record["sample"]]
        assert record["mse"] == pytest.approx((error**2).mean().item())
        assert record["rmse"] == pytest.approx(record["mse"] ** 0.5)
        assert record["max_error"] == pytest.approx(error.abs().max().item())
        assert record["psnr"] == pytest.approx(10 * math.log10(1.5**2 / record["mse"]))  # the model's range is 1.5 wide
        assert record["ssim"] == pytest.approx(ssim(trip.images, x, (-1.0, 0.5))[record["sample"]].item())
        assert record["latent_std"] == pytest.approx(latent.std().item(), rel=1e-6)
        assert record["nfe"] == (8 if record["solver"] == "ddim" else 9)
    medians = {r["solver"]: r for r in report.records()}
    assert medians["ddim"]["ssim"] == sorted(r["ssim"] for r in each[:3])[1]
    assert medians["ddim"]["latent_p"] == sorted(r["latent_p"] for r in each[:3])[1]
    lines = report.per_sample().to_csv().splitlines()
    assert len(lines) == 7
    assert lines[0].startswith("solver,steps,dtype,guidance,convention,grid,sample,nfe,mse")
    assert len(report.per_sample().rows()) == 6


def test_a_latent_that_is_no_noise_has_no_chance_to_be():
    flat = ods.exact.Gaussian(torch.zeros(1, 8, 8), 1.0)
    good, bad = flat.sample(8, seed=1), torch.full((8, 1, 8, 8), 1.0, dtype=torch.float64)
    chances = [ods.round_trip(flat.model(), x, "heun", 10).records()[0]["latent_p"] for x in (good, bad)]
    assert chances[0] > 0.05
    assert chances[1] < 1e-6


def test_the_table_has_the_medians_of_all_images_and_latents_in_units_of_noise_whatever_the_schedule():
    """Of an even number of images the median lies between two; a latent at sigma = 50 is fifty times noise."""
    ring = ods.exact.GaussianMixture.ring(8, std=0.1)
    report = ods.round_trip(ring.model(ods.VE(0.05, 50.0)), ring.sample(4), "heun", 8)
    [record], [trip] = report.records(), report.trips
    rmse, latents = trip.error.square().flatten(1).mean(1).sqrt().sort().values, trip.latent.x.double() / 50
    assert record["rmse_median"] == pytest.approx(rmse[1:3].mean().item())
    assert record["mse_median"] == pytest.approx(rmse[1:3].square().mean().item())
    assert record["rmse_worst"] == pytest.approx(rmse[3].item())
    assert record["latent_std"] == pytest.approx(latents.std().item(), rel=1e-3)
    assert record["latent_mean"] == pytest.approx(latents.mean().item(), rel=1e-3)
    each = report.per_sample().records()
    assert [r["latent_std"] for r in each] == pytest.approx(latents.std(1).tolist(), rel=1e-3)
    assert "psnr dB" not in report.head, "points have no peak"
