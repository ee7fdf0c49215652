"""Comparisons: their numbers are those of separate solves, calls are shared, and a failing solve loses no other."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import odesampler as ods
from odesampler.program import Loop, State
from tests.problems import Spy, gaussian, mixture

MODEL = gaussian().model()
RING = ods.exact.GaussianMixture.ring(std=0.3).model(ods.VE(0.05, 5.0))
QUICK = {"num_samples": 3, "reference_steps": 200}


def counted(model: ods.Model) -> tuple[ods.Model, Spy]:
    spy = Spy(model.network)
    return replace(model, network=spy), spy


def by_label(found: ods.Comparison) -> dict:
    return {(c.solver, c.grid, c.num_steps): c for c in found.cells}


def closed_form(sigmas, exact_to: float | None = None) -> float:
    """By what Euler's steps along `sigmas`, or the exact solution and one last step, multiply x - mean."""
    v, factor = 0.5, 1.0
    if exact_to is not None:
        factor = math.sqrt((v + exact_to**2) / (v + sigmas[0] ** 2))
        sigmas = [exact_to, 0.0]
    for s0, s1 in pairwise(sigmas):
        factor *= 1 + (s1 - s0) * s0 / (v + s0**2)
    return factor


@pytest.mark.parametrize("num_steps", [1, 7, 30])
def test_eulers_error_on_a_gaussian_is_that_of_its_closed_form(num_steps):
    found = ods.compare(MODEL, "ddim", num_steps, grid="log_snr", num_samples=3)
    low, high = MODEL.range
    grid = ods.make_grid("log_snr", MODEL.schedule, num_steps, into_zero=True)
    start = MODEL.schedule.from_model_scale(found.reference.latents, high) - gaussian().means[0]
    off = closed_form(list(grid)) - closed_form([high], exact_to=low)
    expected = (start * off).square().mean(1).sqrt()
    torch.testing.assert_close(found.cells[0].error, expected, rtol=1e-5, atol=0)
    assert found.cells[0].median == pytest.approx(expected.median().item(), rel=1e-5)
    assert found.cells[0].quartiles == pytest.approx([expected.quantile(q).item() for q in (0.25, 0.75)], rel=1e-5)


@pytest.mark.parametrize("schedule", [ods.VP.linear(), ods.RectifiedFlow()])
def test_the_references_difference_bounds_its_error(schedule):
    """Also out of infinity, where the exact solution is the limit of x_t / alpha for large sigma."""
    model = gaussian().model(schedule, "denoised")
    low, high = model.range
    found = ods.compare(model, "ddim", 3, num_samples=3).reference
    top = min(high, 1e9)
    x = model.schedule.from_model_scale(found.latents, top) if math.isfinite(high) else top * found.latents
    mean = gaussian().means[0] if math.isfinite(high) else 0  # at infinity noise is noise around the mean
    exact = gaussian().means[0] + (x - mean) * closed_form([top], exact_to=low)
    error = (found.x - exact).square().mean(1).sqrt()
    assert found.difference.min() > 0
    assert (error < found.difference).all()
    assert (error < 1e-7).all()


def test_fitted_orders_are_those_of_the_methods():
    found = ods.compare(RING, ["ddim", "heun", "rk4"], [40, 80, 160], num_samples=8, reference_steps=1200)
    orders = {solver: order.value for (solver, _), order in found.orders.items()}
    assert orders == pytest.approx({"ddim": 1, "heun": 2, "rk4": 4}, abs=0.2)
    assert f"orders: ddim {orders['ddim']:.1f}; heun {orders['heun']:.1f}; rk4" in found.table()


@pytest.mark.filterwarnings("ignore:the smallest error found")
def test_errors_at_the_references_own_or_as_large_as_the_data_take_no_part_in_the_order():
    found = ods.compare(RING, ["rk4"], [2, 8, 12, 60], grid="log_snr", num_samples=4, reference_steps=60)
    cells = by_label(found)
    clear = [n for n in (2, 8, 12, 60) if cells["rk4", "log_snr", n].median > 10 * found.reference.floor]
    assert clear == [2, 8, 12]
    large = replace(cells["rk4", "log_snr", 2], error=torch.full((4,), 100.0))
    changed = replace(found, cells=(large, *found.cells[1:]))
    coarse, fine = (cells["rk4", "log_snr", n].error for n in (8, 12))
    order = changed.orders["rk4", "log_snr"]
    assert order.value == pytest.approx((coarse / fine).log().quantile(0.5).item() / math.log(12 / 8))
    assert order.steps == (8, 12)


CASES = [
    ("ddim", {"num_steps": 4, "grid": "karras"}),
    ("ddim", {"num_steps": 4, "grid": "leading"}),  # starts below the others
    (ods.RK4(), {"num_steps": 6, "grid": "leading"}),
    ("ancestral", {"num_steps": 4, "grid": "karras"}),
    ("ancestral(eta=0.5)", {"num_steps": 6, "grid": "leading"}),
    ("reversible", {"num_steps": 4, "grid": "karras"}),
    ("torchdiffeq:midpoint", {"num_steps": 4, "grid": "karras"}),
    (ods.RK4(), {"grid": ods.Grid((50.0, 3.0, 0.4, 0.0), "mine")}),
    ("adaptive:dopri5", {}),
    ("scipy:RK45", {}),
]


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("max_batch", [None, 5])
def test_every_cell_equals_a_sample_call_with_the_same_arguments(given, max_batch):
    model = mixture().model()
    latents = {"x": torch.randn(3, 2, generator=torch.Generator().manual_seed(5))} if given else {}
    solvers = list(dict.fromkeys(solver for solver, _ in CASES))
    grids = ["karras", "leading", ods.Grid((50.0, 3.0, 0.4, 0.0), "mine")]
    options = {"num_samples": 3, "seed": [7, 1, 30], **latents}
    reference = torch.zeros(3, 2)
    found = ods.compare(model, solvers, [4, 6], grid=grids, reference=reference, max_batch=max_batch, **options)
    assert len(found.cells) == 6 * (2 * 2 + 1) + 2
    for solver, how in CASES:
        alone = ods.sample(model, solver=solver, state_dtype=torch.float64, **how, **options)
        name = solver if isinstance(solver, str) else "rk4"
        grid = how.get("grid", "own")
        steps = how.get("num_steps", 3 if isinstance(grid, ods.Grid) else None)
        cell = by_label(found)[name, getattr(grid, "name", grid), steps]
        torch.testing.assert_close(cell.x, alone.x, rtol=1e-11, atol=1e-11)
        assert cell.nfe.tolist() == alone.nfe.tolist()
        if max_batch is None:
            assert cell.calls == alone.calls


def test_conditions_guidance_and_infinity_reach_every_cell():
    digits = ods.load("digits", dtype=torch.float64)
    how = {"cond": {"label": [3, 8]}, "guidance_scale": 2.0, "num_samples": 2}
    found = ods.compare(digits, ["ddim", "heun"], [2, 4], reference=torch.zeros(2, 1, 8, 8), **how)
    flow = mixture().model(ods.RectifiedFlow(), "flow")
    from_infinity = ods.compare(flow, ["ddim", "rk4"], [2, 4], reference=torch.zeros(2, 2), num_samples=2)
    for model, cells, options in ((digits, found.cells, how), (flow, from_infinity.cells, {"num_samples": 2})):
        assert len(cells) == 4
        for cell in cells:
            options = {**options, "solver": cell.solver, "num_steps": cell.num_steps}
            alone = ods.sample(model, state_dtype=torch.float64, **options)
            torch.testing.assert_close(cell.x, alone.x, rtol=0, atol=1e-10)
            assert torch.equal(cell.error, alone.x.flatten(1).square().mean(1).sqrt())


def test_each_cell_starts_at_the_noise_of_its_own_grid():
    model = mixture().model(ods.VE(0.05, 60.0))
    low = ods.Grid((3.0, 1.0, 0.2, 0.0), "low")
    found = ods.compare(model, "heun", 3, grid=["log_snr", low], num_samples=2, reference=torch.zeros(2, 2))
    for cell, grid in zip(found.cells, ("log_snr", low), strict=True):
        alone = ods.sample(model, 2, solver="heun", num_steps=3, grid=grid, state_dtype=torch.float64)
        torch.testing.assert_close(cell.x, alone.x, rtol=1e-12, atol=1e-12)


def test_calls_are_shared_and_counted():
    model, spy = counted(MODEL)
    found = ods.compare(model, ["ddim", "heun", "rk4"], [3, 6], reference=torch.zeros(4, 2), num_samples=4)
    longest = 5 * 4 + 1
    assert spy.calls == found.calls == longest
    assert max(spy.rows) == 6 * 4
    assert [c.calls for c in found.cells] == [c.nfe[0] for c in found.cells] == [3, 6, 5, 11, 9, 21]
    assert sum(spy.rows) == sum(int(c.nfe.sum()) for c in found.cells)
    spy.rows.clear()
    chunked = ods.compare(model, ["ddim", "heun"], 3, reference=torch.zeros(4, 2), num_samples=4, max_batch=3)
    assert max(spy.rows) == 3
    assert chunked.calls == spy.calls
    spy.rows.clear()
    ods.compare(model, "ddim", 3, num_samples=4, reference_steps=20)
    assert spy.calls == 3 + 4 * 19 + 1  # both reference solves share theirs, too


class Wild(ods.Solver):
    """Euler's method that goes astray after some steps."""

    order = 1
    evaluations = 1

    def __init__(self, how: str) -> None:
        self.how = how

    def __repr__(self) -> str:
        return f"Wild({self.how})"

    def step(self, state: State, s0, s1):
        k0 = yield state.x, s0
        if s1 < 1:
            if self.how == "raises":
                raise ArithmeticError("gave up here")
            if self.how == "overflows":
                return State(state.x * torch.inf)
            return State(state.x * 1e12)  # which the network answers with NaN
        return State(state.x + (s1 - s0) * k0)


class Late(Loop):
    """Refuses in its first moment, or after a question."""

    takes_steps = False

    def __init__(self, when: int) -> None:
        self.when = when

    def across(self, state, sigmas, observe=None):
        for _ in range(self.when):
            yield state.x, sigmas[0]
        raise ValueError("not on this model")


def fragile() -> ods.Model:
    """A network that answers NaN to what is too large."""

    def network(x_t, t):
        large = x_t.abs().flatten(1).amax(1) > 1e4
        return MODEL.network(x_t, t).where(~large[:, None], torch.nan)

    return ods.Model(network, ods.VP.linear(), data_shape=(2,))


def test_a_solve_that_fails_says_why_and_the_others_are_what_they_are_without_it():
    loop = ods.Adaptive(ods.Dopri5(), 1e-9, 1e-9, max_steps=3)
    solvers = ["ddim", Wild("diverges"), "heun", Wild("raises"), Wild("overflows"), loop, Late(1), "ancestral", "rk4"]
    model = fragile()
    found = ods.compare(model, solvers, 20, grid="log_snr", **QUICK)
    assert [c.solver for c in found.cells] == ["ddim", "heun", "ancestral", "rk4"]
    failures = {name.split(" on ")[0]: why for name, why in found.failures.items()}
    assert len(failures) == 5
    astray = next(s for s in ods.make_grid("log_snr", model.schedule, 20, into_zero=True) if s < 1)
    assert failures["Wild(diverges)"].startswith(f"the model's answer has NaN or infinity at sigma = {astray:g},")
    assert failures["Wild(diverges)"].endswith("for 3 of 3 samples")
    assert failures["Wild(raises)"] == "gave up here"
    assert "NaN or infinity" in failures["Wild(overflows)"]
    assert failures["adaptive:dopri5(rtol=1e-09, atol=1e-09, max_steps=3)"] == (
        "3 of 3 samples did not arrive (STEP_LIMIT)"
    )
    assert "not on this model" in failures.values()
    assert "Wild(raises) on log_snr at 20 steps failed: gave up here" in found.table()
    alone = ods.compare(model, ["ddim", "heun", "ancestral", "rk4"], 20, grid="log_snr", **QUICK)
    for a, b in zip(found.cells, alone.cells, strict=True):
        torch.testing.assert_close(a.x, b.x, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(a.error, b.error, rtol=1e-9, atol=1e-12)


def test_an_answer_that_is_finite_but_not_its_sum_fails_its_own_solve_only():
    def network(x_t, t):
        return torch.where(x_t.abs() > 1e4, 1e308, MODEL.network(x_t, t))

    model = ods.Model(network, ods.VP.linear(), data_shape=(2,))
    found = ods.compare(model, ["ddim", Wild("diverges")], 10, **QUICK)
    assert [c.solver for c in found.cells] == ["ddim"]


def test_images_that_are_not_finite_are_a_failure_although_every_answer_was():
    grid = ods.Grid((3.0, 0.5))  # no question follows its last step
    found = ods.compare(MODEL, ["ddim", Wild("overflows")], grid=grid, num_samples=2, reference=torch.zeros(2, 2))
    assert list(found.failures.values()) == ["its images have NaN or infinity"]


def test_one_failing_sample_is_told_from_the_others():
    x = torch.tensor([[0.1, 0.1], [2e4, 0.0], [0.3, -1.0]])
    found = ods.compare(fragile(), "ddim", 5, x=x, reference=torch.zeros(3, 2))
    [why] = found.failures.values()
    assert why.endswith("for 1 of 3 samples")


def test_errors_of_the_model_are_raised_and_not_put_down_to_solvers():
    def network(x_t, t):
        if len(calls) == 4:
            raise RuntimeError("out of memory")
        calls.append(1)
        return x_t

    calls: list[int] = []
    with pytest.raises(RuntimeError, match="out of memory"):
        ods.compare(ods.Model(network, ods.VP.linear(), data_shape=(2,)), ["heun", "rk4"], 5, **QUICK)


def test_a_reference_that_fails_says_so():
    def network(x_t, t):
        return torch.full_like(x_t, torch.nan)

    with pytest.raises(FloatingPointError, match=r"the reference solve .* failed: the model's answer has NaN"):
        ods.compare(ods.Model(network, ods.VP.linear(), data_shape=(2,)), "ddim", 5, **QUICK)


def test_batch_mates_and_other_solvers_do_not_matter():
    many = ods.compare(MODEL, ["ddim", "adaptive:dopri5", "ancestral", "rk4"], 10, num_samples=5, seed=3)
    few = ods.compare(MODEL, ["ancestral", "adaptive:dopri5"], 10, num_samples=2, seed=4)
    mates = {c.solver: c for c in many.cells}
    for cell in few.cells:
        torch.testing.assert_close(cell.x, mates[cell.solver].x[1:3], rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(cell.error, mates[cell.solver].error[1:3], rtol=1e-7, atol=1e-10)
        assert cell.nfe.tolist() == mates[cell.solver].nfe[1:3].tolist()


@pytest.mark.filterwarnings("ignore:the smallest error found")
def test_solvers_that_choose_their_own_steps_get_a_row_a_tolerance():
    found = ods.compare(
        MODEL, ["adaptive:dopri5", ods.Scipy("RK45"), "ddim"], 5, tolerances=[1e-2, 1e-5], num_samples=2
    )
    assert [(c.solver, c.grid, c.steps) for c in found.cells] == [
        ("adaptive:dopri5", "own", "tol 0.01"),
        ("adaptive:dopri5", "own", "tol 1e-05"),
        ("scipy:RK45", "own", "tol 0.01"),
        ("scipy:RK45", "own", "tol 1e-05"),
        ("ddim", "default", "5"),
    ]
    for loose, tight in (found.cells[:2], found.cells[2:4]):
        assert tight.median < loose.median / 10
        assert tight.cost > loose.cost
    alone = ods.sample(MODEL, 2, rtol=1e-5, atol=1e-5, solver="dopri5", state_dtype=torch.float64)
    assert torch.equal(alone.nfe, found.cells[1].nfe)
    assert found.orders["adaptive:dopri5", "own"] is None


@pytest.mark.filterwarnings("ignore:the smallest error found")
def test_by_default_solvers_spend_about_the_same():
    found = ods.compare(MODEL, num_samples=2)
    budgets = [c.nfe[0].item() for c in found.cells]
    assert len(budgets) == 24
    for i, budget in enumerate((10, 20, 50, 100)):
        assert all(budget - 4 < nfe <= budget for nfe in budgets[i::4])
    loops = ods.compare(MODEL, ["torchdiffeq:euler", "reversible"], num_samples=2)
    assert all(c.nfe[0] <= 100 for c in loops.cells)


def test_a_reference_is_used_again_and_only_for_the_same_solves(tmp_path):
    model, spy = counted(MODEL)
    first = ods.compare(model, "ddim", 4, seed=2, **QUICK)
    spy.rows.clear()
    again = ods.compare(model, "heun", 4, seed=2, num_samples=3, reference=first)
    assert spy.calls == again.calls == 7
    assert again.reference is first.reference
    assert ods.compare(model, "heun", 4, seed=2, num_samples=3, reference=first.reference).rows() == again.rows()
    truth = ods.compare(model, "heun", 4, seed=2, num_samples=3, reference=first.reference.x)
    assert torch.equal(truth.cells[0].error, again.cells[0].error)
    assert "given; not checked" in truth.table()
    spy.rows.clear()
    others = [
        (model, {"seed": 3}, "latents"),
        (model, {"num_samples": 2}, "latents"),
        (model, {"cond": {"label": 1}}, "cond"),
        (model, {"clip_denoised": 1.0}, "clip_denoised"),
        (RING, {}, "model and latents"),
    ]
    for other, options, what in others:
        with pytest.raises(ValueError, match=f"solved for another {what}"):
            ods.compare(other, "heun", 4, **{"seed": 2, "num_samples": 3, "reference": first, **options})
    assert spy.calls == 0


def test_a_comparison_warns_where_the_reference_cannot_tell():
    with pytest.warns(UserWarning, match="raise reference_steps=20"):
        found = ods.compare(MODEL, ["ddim", "rk4"], [10, 30], num_samples=3, reference_steps=20)
    assert f"{found.reference.floor:.1e}" in found.table()


def test_the_best_for_a_budget():
    found = ods.compare(MODEL, ["ddim", "heun", "adaptive:dopri5"], [5, 10], num_samples=4)
    by_cost = {int(c.nfe.max()): c for c in found.cells}
    assert sorted(by_cost)[:4] == [5, 9, 10, 19]
    for budget in (5, 8, 9, 12, 10**6):
        cells = [c for c in found.cells if c.nfe.max() <= budget]
        assert found.best(budget) is min(cells, key=lambda c: c.median)
    with pytest.raises(ValueError, match="at most 4 evaluations; the cheapest took 5"):
        found.best(4)
    medians = [float(line.split()[-1]) for line in found.best_table().splitlines()[2:-1]]
    assert medians == sorted(medians, reverse=True)
    assert medians[-1] == pytest.approx(min(c.median for c in found.cells), rel=1e-2)
    assert len(set(medians)) == len(medians) > 1


def test_the_table_prints_is_written_and_is_shown_in_a_notebook(tmp_path):
    found = ods.compare(MODEL, ["ddim", "adaptive:dopri5"], [5, 10], num_samples=4, tolerances=1e-3)
    assert repr(found) == found.table()
    assert f"{found.cells[0].median:.2e}" in found.table()
    assert found.to_csv(tmp_path / "t.csv") == (tmp_path / "t.csv").read_bytes().decode()
    rows = [line.split(",") for line in found.to_csv().splitlines()]
    assert float(rows[2][rows[0].index("median")]) == found.cells[1].median
    assert rows[3][2:4] == ["", "0.001"]
    assert found._repr_html_().count("<tr>") == 4


def test_the_picture_has_a_line_a_solver_and_grid_and_the_references_own_error():
    found = ods.compare(MODEL, ["ddim", "heun"], [5, 10], grid=["log_snr", "karras"], num_samples=4)
    axis = found.plot().axes[0]
    labels = [line.get_label() for line in axis.lines]
    order = found.orders["heun", "karras"]
    assert labels[:2] == [f"ddim, {g} (order {found.orders['ddim', g].value:.1f})" for g in ("log_snr", "karras")]
    assert f"heun, karras (order {order.value:.1f})" in labels
    assert len(labels) == 5
    assert axis.lines[3].get_xydata().tolist() == [[c.cost, c.median] for c in found.cells[6:]]
    assert axis.lines[4].get_ydata()[0] == found.reference.floor
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    figure = found.plot()
    figure.canvas.draw()
    assert figure.axes[0].get_legend().get_window_extent().x0 > figure.axes[0].get_window_extent().x1  # not over curves
    with pytest.raises(ValueError, match="no solver came back"):
        replace(found, cells=()).plot()


@pytest.mark.filterwarnings("ignore:the smallest error found")
def test_a_progress_bar_counts_the_steps_of_all_solves(capsys):
    ods.compare(MODEL, ["ddim", "heun", "adaptive:dopri5"], [5, 10], **QUICK, progress=True)
    err = capsys.readouterr().err
    assert "comparing: " in err
    assert "/30 " in err
    assert "reference: " in err
    assert "/300 " in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"solvers": []}, "needs solvers"),
        ({"num_steps": []}, "needs num_steps"),
        ({"grid": []}, "needs grid"),
        ({"tolerances": []}, "needs tolerances"),
        ({"solvers": ["heun", "nope"]}, "unknown solver"),
        ({"solvers": ["heun", "heun"]}, "asked for twice"),
        ({"num_steps": [5, 0]}, "num_steps is the number"),
        ({"num_steps": 0}, "num_steps is the number"),
        ({"grid": ["log_snr", "karas"]}, "unknown grid"),
        ({"grid": [[3.0, 1.0, 0.0], [2.0, 1.0, 0.0]], "num_steps": None}, "gets a name by"),
        ({"grid": [3.0, 1.0, 0.0]}, "leave num_steps out"),
        ({"grid": [3e9, 1.0, 0.0], "num_steps": None}, "outside the range"),
        ({"tolerances": 1e-3}, "choose their own steps"),
        ({"solvers": ["adaptive:dopri5"]}, "leave num_steps and grid out"),
        ({"solvers": [Late(1)], "num_steps": None, "tolerances": 0.1}, "no rtol and atol"),
        ({"solvers": ["adaptive:dopri5"], "num_steps": None, "tolerances": [0.1, -1.0]}, "must be finite"),
        ({"solvers": ["ddim", Late(0)]}, "not on this model"),
        ({"x": torch.zeros(3, 5)}, "must have shape"),
        ({"x": torch.zeros(1, 2), "num_samples": 2}, "x holds 1"),
        ({"num_samples": 0}, "num_samples must be"),
        ({"seed": [1, 2]}, "seed must be"),
        ({"guidance_scale": 2.0}, "null condition"),
        ({"reference": torch.zeros(2, 2)}, "reference must be finite, of shape"),
        ({"reference": torch.full((3, 2), torch.nan)}, "reference must be finite"),
        ({"reference_steps": 5}, "must be even"),
        ({"reference_steps": 0}, "num_steps is the number"),
        ({"state_dtype": torch.float16}, "state_dtype"),
        ({"max_batch": 0}, "max_batch must be"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_the_model_is_called(arguments, message):
    def never(x_t, t):
        raise AssertionError("the model was called")

    model = ods.Model(never, ods.VP.linear(), data_shape=(2,))
    arguments = {"solvers": ["ddim", "heun"], "num_steps": [3], "num_samples": 3, **arguments}
    with pytest.raises(ValueError, match=message):
        ods.compare(model, **arguments)


def test_a_model_or_a_reference_of_another_kind_is_a_type_error():
    with pytest.raises(TypeError, match=r"must be an ods\.Model"):
        ods.compare("digits")
    with pytest.raises(TypeError, match="reference must be a tensor or an earlier Comparison"):
        ods.compare(MODEL, reference=3)


def test_the_default_is_compared_by_that_name():
    found = ods.compare(MODEL, ["default", "ddim"], [5, 30], num_samples=3)
    assert [c.solver for c in found.cells] == ["default", "default", "ddim", "ddim"]
    for cell, n in zip(found.cells, (5, 30), strict=False):
        alone = ods.sample(MODEL, 3, num_steps=n, state_dtype=torch.float64)
        torch.testing.assert_close(cell.x, alone.x, rtol=0, atol=1e-12)
    assert found.best(30).solver == "default"


@pytest.mark.parametrize("solver", ["adams_bashforth", "plms", "alf", "reversible_heun", "heun"])
def test_budgets_are_spent_as_nearly_as_whole_steps_allow(solver):
    model = mixture().model(sigma_min=0.1, sigma_max=20.0)
    found = ods.compare(model, solver, num_samples=1, reference_steps=1000)
    for cell, budget in zip(found.cells, (10, 20, 50, 100), strict=True):
        assert abs(int(cell.nfe[0]) - budget) < 10 if budget < 20 else abs(int(cell.nfe[0]) - budget) <= 2
