"""What a comparison concludes: orders, evaluations for an error, ranks, the reference; and what it must not."""

import math
from dataclasses import replace

import pytest
import torch

import odesampler as ods
from odesampler.analysis.cell import Cell
from odesampler.analysis.reference import Reference
from odesampler.program import Solver, State
from tests.problems import mixture

RING = ods.exact.GaussianMixture.ring(std=0.3).model(ods.VE(0.05, 5.0))
SAMPLES = 16


class Lopsided(Solver):
    """Heun's method with a wrong coefficient, which makes it one of the first order."""

    order = 2
    evaluations = 2

    def __init__(self, weight: float = 0.55) -> None:
        self.weight = weight

    def __repr__(self) -> str:
        return "Lopsided()"

    def step(self, state: State, s0, s1):
        k0 = yield state.x, s0
        k1 = yield state.x + (s1 - s0) * k0, s1
        return State(state.x + (s1 - s0) * ((1 - self.weight) * k0 + self.weight * k1))


def made(floor: float = 0.0, samples: int = SAMPLES, **series: tuple[list[int], torch.Tensor, int | None]):
    """A comparison of solvers with these steps, errors (samples, steps) and stated orders; one evaluation a step."""
    x = torch.tensor([100.0, -100.0]).repeat(samples, 1)
    difference = torch.full((samples,), floor) if floor else None
    reference = Reference(x, "made", difference, x, {}, 1.0, None, "")
    cells = tuple(
        Cell(solver, "one", n, None, x, error, torch.full((samples,), n), n, stated)
        for solver, (steps, errors, stated) in series.items()
        for n, error in zip(steps, errors.unbind(1), strict=True)
    )
    return ods.Comparison(cells, {}, reference, "nothing", 1, 1.0)


def power_law(order: float, steps: list[int], *, size: float = 1.0, samples: int = SAMPLES) -> torch.Tensor:
    """(samples, steps) errors size * c_i * N^-order; the median of the c_i is 1."""
    c = torch.linspace(-1, 1, samples, dtype=torch.float64).exp()
    return size * c[:, None] / c.quantile(0.5) * torch.tensor(steps, dtype=torch.float64) ** -order


def lognormal(columns: int, seed: int, samples: int = SAMPLES) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, columns, generator=generator, dtype=torch.float64).exp()


def text(found: ods.Comparison, title: str) -> str:
    """A section as it is read."""
    [section] = [s for s in found.sections() if s.title == title]
    return "\n".join([section.words, *map(" ".join, section.table.rows), *section.table.notes])


@pytest.fixture(scope="module")
def planted() -> ods.Comparison:
    solvers = ["ddim", "euler", "heun", Lopsided(), "rk4", "dpmpp_2m"]
    return ods.compare(RING, solvers, [40, 80, 160], num_samples=SAMPLES, reference_steps=1200)


def test_a_solver_with_a_wrong_coefficient_is_flagged_and_the_true_ones_are_not(planted):
    flagged = [solver for (solver, _), order in planted.orders.items() if order.flagged]
    assert flagged == ["Lopsided()"]
    order = planted.orders["Lopsided()", "default"]
    assert order.high < 1.65
    claim = f"measured {order.value:.1f} [{order.low:.2f}, {order.high:.2f}], stated 2"
    assert f"Lopsided() is NOT of the order that it states: {claim}" in planted.table()
    assert f"Lopsided(): {claim}" in text(planted, "Orders")
    assert text(planted, "Orders").count("NOT as stated") == 1
    assert text(planted, "Orders").count(" as stated") == 6
    assert "NOT as stated" in planted.to_html()


@pytest.mark.parametrize(
    ("weight", "steps"),
    [
        (1.0, [10, 20, 40]),
        (0.55, [20, 40, 80]),
        (0.55, [10, 20, 40, 80]),
        (0.6, [20, 30, 40]),
        (0.55, [10, 15, 20, 30, 40]),
    ],
)
def test_a_wrong_coefficient_that_long_steps_hide_is_never_as_stated_and_a_true_solver_is_not_flagged(weight, steps):
    model = ods.exact.GaussianMixture.ring(8, std=0.1).model()
    solvers = [Lopsided(weight), "ddim", "heun", "rk4", "dpmpp_2m", "unipc"]
    found = ods.compare(model, solvers, steps, num_samples=8, reference_steps=800)
    wrong, *true = found.orders.values()
    assert wrong.verdict.startswith("cannot tell: slopes still")
    assert wrong.sinking
    assert not any(order.flagged or order.sinking for order in true)


def test_a_last_step_other_than_the_references_keeps_a_solver_from_its_order():
    solvers = ["adams_bashforth", "adams_bashforth(full_end=False)"]
    found = ods.compare(RING, solvers, [40, 80, 160], num_samples=8, reference_steps=800)
    assert [order.verdict for order in found.orders.values()] == ["NOT as stated", "as stated"]


def test_orders_are_stated_by_deterministic_solvers_of_ours_on_a_grid():
    solvers = ["default", "heun", "ancestral", "torchdiffeq:midpoint", "rk4"]
    found = ods.compare(mixture().model(), solvers, [4, 8], num_samples=2, reference=torch.zeros(2, 2))
    assert [found.cells[i].order for i in range(0, 10, 2)] == [None, 2, None, None, 4]


def test_an_order_is_the_median_of_the_samples_own_by_least_squares():
    steps = [10, 20, 50]
    errors = lognormal(3, 1) * power_law(2.0, steps)
    n = torch.tensor(steps, dtype=torch.float64).log()
    design = torch.stack([n, torch.ones_like(n)], 1)
    slopes = torch.linalg.lstsq(design, errors.log().T).solution[0]
    order = made(heun=(steps, errors, 2)).orders["heun", "one"]
    assert order.value == pytest.approx(-slopes.quantile(0.5).item())
    assert order.low < order.value < order.high
    assert order.steps == (10, 20, 50)


def test_steps_that_are_too_long_for_the_order_take_no_part_in_it():
    steps = [5, 10, 20, 40, 80]
    errors = power_law(2.0, steps)
    errors[:, 0] *= 8  # local slope 5, then 2, 2, 2
    order = made(heun=(steps, errors, 2)).orders["heun", "one"]
    assert order.steps == (10, 20, 40, 80)
    assert order.value == pytest.approx(2)
    assert order.slopes == pytest.approx((5, 2, 2, 2))
    assert order.verdict == "as stated"


@pytest.mark.parametrize(
    ("steps", "slopes", "verdict"),
    [
        ([10, 20, 40], (1.0, 1.0), "NOT as stated"),
        ([10, 20, 40], (1.6, 1.6), "NOT as stated"),
        ([10, 20, 40], (1.7, 1.9), "as stated"),
        ([10, 20, 40], (1.97, 1.85), "cannot tell: slopes still fall; take more steps"),
        ([10, 20, 40, 80], (2.6, 1.97, 1.66), "cannot tell: slopes still fall; take more steps"),
        ([10, 20, 40], (1.8, 1.5), "cannot tell: slopes still fall; take more steps"),
        ([10, 20, 40], (2.02, 1.95), "as stated"),
        ([10, 20, 40], (2.2, 2.1), "as stated"),
        ([10, 20, 40], (1.3, 1.55), "cannot tell: slopes still rise"),
        ([10, 20, 40], (2.9, 2.9), "more than stated"),
        ([10, 20, 40], (1.5, 1.0), "cannot tell: slopes still change"),
        ([10, 20], (1.0,), "cannot tell: two numbers of steps"),
        ([10, 11, 12], (1.0, 1.0), "cannot tell: slopes still change"),  # too near to each other
    ],
)
def test_only_an_order_that_can_be_read_and_is_too_low_is_flagged(steps, slopes, verdict):
    logs = torch.tensor([0.0, *(s * math.log(b / a) for s, a, b in zip(slopes, steps, steps[1:], strict=False))])
    errors = lognormal(1, 0) * (-logs.double().cumsum(0)).exp()
    order = made(heun=(steps, errors, 2)).orders["heun", "one"]
    assert order.verdict == verdict
    assert order.flagged == (verdict == "NOT as stated")


def test_an_order_of_samples_that_disagree_is_not_flagged():
    steps = [10, 20, 40]
    slopes = torch.linspace(-0.2, 3.2, SAMPLES, dtype=torch.float64)[:, None] - 0.5
    errors = torch.tensor(steps, dtype=torch.float64) ** -slopes
    order = made(heun=(steps, errors, 2)).orders["heun", "one"]
    assert order.value == pytest.approx(1.0, abs=1e-6)
    assert order.high > 1.65
    assert (order.flagged, order.verdict) == (False, "cannot tell: wide interval")


def test_evaluations_for_an_error_are_those_of_the_power_law_within_and_none_beyond():
    steps = [10, 20, 40, 80]
    found = made(heun=(steps, power_law(2.0, steps), 2), rk4=([20, 40], power_law(4.0, [20, 40], size=100.0), 4))
    for nfe in (10.5, 20, 33, 79):
        assert found.evaluations_for(nfe**-2.0)["heun", "one"].value == pytest.approx(nfe)
    assert found.evaluations_for(81**-2.0)["heun", "one"] is None
    cheap = found.evaluations_for(9**-2.0)
    assert str(cheap["heun", "one"]) == "<= 10"
    assert cheap["rk4", "one"].at_most
    assert found.evaluations_for(100 * 30**-4.0)["rk4", "one"].value == pytest.approx(30)
    assert [row[0] for row in found.sections()[3].table.rows] == ["heun", "rk4"]
    assert found.sections()[3].table.head == ("solver", "error 1e-02", "error 1e-03", "error 1e-04")
    assert text(found, "Evaluations to reach an error").splitlines()[1].startswith("heun <= 10 32 [")


def test_an_error_that_some_resamples_do_not_reach_has_no_upper_end():
    steps = [10, 20]
    found = made(heun=(steps, power_law(2.0, steps), 2)).evaluations_for(1.01 * 20**-2.0)["heun", "one"]
    assert found.value == pytest.approx(20, rel=0.01)
    assert math.isinf(found.high)
    assert str(found).endswith(", more]")


def test_an_error_that_is_reached_and_lost_again_is_reached_where_it_first_is():
    errors = torch.tensor([[0.1, 0.01, 0.05, 0.001]]).repeat(SAMPLES, 1)
    found = made(odd=([10, 20, 40, 80], errors, None)).evaluations_for(0.02)["odd", "one"]
    assert 10 < found.value < 20


@pytest.mark.parametrize("error", [0.0, -1.0, math.nan, math.inf, 9e-5])
def test_evaluations_are_refused_for_errors_that_the_reference_cannot_tell(error):
    steps = [10, 20]
    found = made(floor=1e-5, heun=(steps, power_law(2.0, steps), 2))
    assert found.evaluations_for(1e-2)
    with pytest.raises(ValueError, match=r"at least 1\.0e-04 with this reference; got"):
        found.evaluations_for(error)


def test_two_copies_of_a_solver_are_not_told_apart_and_a_better_one_is(planted):
    copies = replace(planted, cells=tuple(c for c in planted.cells if c.solver in ("ddim", "euler")))
    for nfe in (40, 80, 160):
        ranking = copies.ranking(nfe)
        assert ranking.verdict == "cannot be told apart: ddim, euler"
        assert [(p.rank, p.low, p.high, p.best) for p in ranking.places] == [(1, 1, 2, 0.5)] * 2
    assert {row[4] for row in copies.sections()[1].table.rows} == {"no"}
    ranking = planted.ranking(160)
    assert ranking.verdict == "best: rk4, in 100% of the resamples"
    assert [p.solver for p in ranking.places][:2] == ["rk4", "dpmpp_2m"]
    assert [(p.low, p.high) for p in ranking.places][-2:] == [(5, 6), (5, 6)]
    assert f"at most 160 evaluations: {ranking.verdict}" in text(planted, "Ranking")
    assert ranking.records()[0]["best"] == 1.0


def test_solvers_are_resampled_together_so_that_what_their_samples_share_cancels():
    shared = lognormal(1, 5)
    ranking = made(a=([10], 1.02 * shared, None), b=([10], shared, None)).ranking(10)
    assert ranking.verdict == "best: b, in 100% of the resamples"
    apart = made(a=([10], 1.02 * lognormal(1, 6), None), b=([10], shared, None)).ranking(10)
    assert apart.verdict.startswith("cannot be told apart")


def test_of_equal_solvers_one_is_rarely_called_the_best():
    runs, said = 200, 0
    for seed in range(runs):
        errors = lognormal(2, seed)
        said += len(made(a=([10], errors[:, :1], None), b=([10], errors[:, 1:], None)).ranking(10).contenders) == 1
    assert said / runs < 0.1 + 3 * math.sqrt(0.1 * 0.9 / runs)  # either may be, each in 5 % of the runs
    assert said > 0


def test_errors_that_the_reference_cannot_tell_apart_are_equal():
    shared = 1 + lognormal(1, 5)
    found = made(a=([10], 1.02 * shared, None), b=([10], shared, None))
    assert len(found.ranking(10).contenders) == 1
    vague = replace(found, reference=replace(found.reference, difference=torch.full((SAMPLES,), 0.1)))
    assert vague.ranking(10).verdict == "cannot be told apart: b, a"
    assert [p.rank for p in vague.ranking(10).places] == [1, 1]


def test_errors_that_are_not_clear_of_the_reference_are_told_apart_from_none_but_clear_ones_and_every_section_says_so():
    with pytest.warns(UserWarning, match="raise reference_steps"):
        found = ods.compare(RING, ["heun", "rk4"], [40, 80, 160], num_samples=8, reference_steps=10)
    assert found.converged is False
    assert "  yes  " not in found.best_table()
    assert "79 evaluations: the error of heun is not clear of the reference" in found.best_table()
    for nfe in (159, 319, 640):
        assert found.ranking(nfe).verdict.startswith("cannot be told apart")
        assert "; not clear of the reference: " in found.ranking(nfe).verdict
        assert [p.rank for p in found.ranking(nfe).places] == [1, 1]
    assert text(found, "Ranking").count("not clear of the reference") >= 3
    shared = 1 + lognormal(1, 5)
    errors = {"a": ([10], 0.001 * shared, None), "b": ([10], 0.005 * shared, None), "c": ([10], 9 * shared, None)}
    ranking = made(floor=0.01, **errors).ranking(10)
    assert [(p.solver, p.rank, p.clear) for p in ranking.places] == [("a", 1, False), ("b", 1, False), ("c", 3, True)]
    assert ranking.verdict == "cannot be told apart: a, b; not clear of the reference: a, b"


def test_the_best_for_a_budget_is_told_apart_where_the_ranking_says_so_and_only_there():
    errors = torch.tensor([1.0, 2.0]).repeat(SAMPLES, 1)[:, :, None]
    for samples, told, said in ((3, "no", "cannot be told from 3 samples"), (SAMPLES, "yes", "best: a")):
        a, b = errors[:samples].unbind(1)
        found = made(samples=samples, a=([10], a, None), b=([10], b, None))
        assert text(found, "Best for a budget").splitlines()[1].split()[4] == told
        assert said in text(found, "Ranking")
        assert ("3 samples are too few" in found.best_table()) == (samples == 3)
        alone = made(samples=samples, a=([10], a, None))
        assert text(alone, "Best for a budget").splitlines()[1].split()[4] == "-"
        assert "only a, nothing to tell it from" in text(alone, "Ranking")


def test_an_error_less_by_under_a_thousandth_is_no_better():
    shared = lognormal(1, 5)
    for factor, contenders in ((0.9995, 2), (0.998, 1)):
        ranking = made(a=([10], factor * shared, None), b=([10], shared, None)).ranking(10)
        assert len(ranking.contenders) == contenders


def test_a_few_samples_rank_solvers_and_prove_nothing():
    errors = torch.ones(5, 1)
    ranking = made(samples=5, a=([10], errors, None), b=([10], 2 * errors, None)).ranking(10)
    assert [(p.solver, p.rank, p.low, p.high, p.best) for p in ranking.places] == [
        ("a", 1, 1, 2, None),
        ("b", 2, 1, 2, None),
    ]
    assert ranking.verdict == "cannot be told from 5 samples; 6 are the fewest"
    assert "-" in ranking.table()


def test_solvers_are_ranked_by_their_best_solve_within_the_budget():
    found = made(a=([10, 20], power_law(1.0, [10, 20]), None), b=([15, 30], power_law(2.0, [15, 30]), None))
    assert [p.solver for p in found.ranking(14).places] == ["a"]
    assert [p.solver for p in found.ranking(29).places] == ["b", "a"]
    assert found.ranking(29).places[0].error == pytest.approx(15**-2)
    assert found.ranking(29).places[1].error == pytest.approx(1 / 20)
    with pytest.raises(ValueError, match="at most 9 evaluations; the cheapest took 10"):
        found.ranking(9)
    between = made(a=([10, 20], power_law(1.0, [10, 20]), None), b=([12], power_law(1.0, [14]), None)).ranking(20)
    assert [(p.solver, p.best) for p in between.places] == [("a", 1.0), ("b", 0.0)]


def test_a_reference_of_too_few_steps_is_flagged_in_table_page_and_columns():
    with pytest.warns(UserWarning, match="raise reference_steps=30"):
        found = ods.compare(RING, ["ddim", "rk4"], [5, 20, 40, 80], num_samples=8, reference_steps=30)
    near = [c for c in found.cells if c.median < 10 * found.reference.floor]
    assert found.converged is False
    assert {c.solver for c in near} == {"rk4"}
    assert f"NOT converged for {len(near)} of 8 errors" in found.table()
    marks = [f"NO, {c.median / found.reference.floor:.2g}x" for c in near]
    column = found.head.index("clear")
    assert [row[column] for row in found.rows()] == ["yes"] * (8 - len(near)) + marks
    assert found.to_html().count(">NO, ") == len(near)
    head, *rows = [line.split(",") for line in found.to_csv().splitlines()]
    assert [row[head.index("clear")] for row in rows].count("False") == len(near)
    assert float(rows[-1][head.index("of_reference")]) == near[-1].median / found.reference.floor
    lines = found.plot().axes[0].lines
    hollow = [line for line in lines if line.get_markerfacecolor() == "none" and len(line.get_xdata())]
    assert hollow[0].get_xydata().tolist() == [[c.cost, c.median] for c in near]
    assert lines[1].get_markevery() == list(range(4 - len(near)))


def test_a_converged_reference_says_so_and_one_that_was_given_says_that_nobody_knows(planted):
    assert planted.converged is True
    assert "converged: all errors are 10 times that or more" in planted.table()
    assert "NO" not in [row[planted.head.index("clear")] for row in planted.rows()]
    assert [line.get_markerfacecolor() for line in planted.plot().axes[0].lines].count("none") == 0
    given = made(heun=([10, 20], power_law(2.0, [10, 20]), 2))
    assert given.converged is None
    assert "not checked; whether it is converged is not known" in given.table()


def test_each_conclusion_is_a_section_and_there_are_none_without_solves(planted):
    titles = [s.title for s in planted.sections()]
    assert titles[1:] == ["Best for a budget", "Orders", "Evaluations to reach an error", "Ranking"]
    assert [s.title for s in replace(planted, cells=()).sections()] == titles[:1]
    alone = made(samples=2, heun=([10], torch.ones(2, 1), 2))
    assert [s.title for s in alone.sections()][1:] == ["Best for a budget", "Evaluations to reach an error", "Ranking"]


def test_budgets_are_what_was_spent_with_similar_ones_taken_together():
    steps = [9, 10, 11, 17, 20, 22, 40]
    found = made(heun=(steps, power_law(2.0, steps), 2))
    assert found.sections()[-1].table.head == ("solver", "nfe 11", "nfe 20", "nfe 22", "nfe 40")


def test_names_with_dollars_and_long_names_leave_the_figure_readable_and_each_series_has_its_own_marker():
    steps = [10, 20]
    long = "Weighed(" + ", ".join(f"factor_{i}=0.5" for i in range(8)) + ")"
    found = replace(
        made(**{long: (steps, power_law(2.0, steps), 2), "b": (steps, power_law(1.0, steps), 1)}), model=r"$\frac{$"
    )
    other = tuple(replace(c, grid="two", error=2 * c.error) for c in found.cells)
    figure = replace(found, cells=found.cells + other).plot()
    figure.draw_without_rendering()  # lays out, and reads formulas
    [axis] = figure.axes
    assert axis.get_title() == r"\$\frac{\$, 16 samples"
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert max(len(line) for label in labels for line in label.split("\n")) <= 40
    assert axis.get_position().width > 0.35
    lines = [line for line in axis.lines if len(line.get_xdata()) and not line.get_label().startswith("_")]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 4
