"""Brownian paths: exact increments, one path whatever the steps, and what solvers make of it."""

import math
from itertools import pairwise

import pytest
import torch

import odesampler as ods
from odesampler.drive import run
from odesampler.exact import Gaussian
from odesampler.integrate import on_grid
from odesampler.noise import BrownianPath, Streams, noise_for
from odesampler.solvers import Ancestral, Multistep, StochasticMidpoint
from tests.problems import by_hand, geometric, mixture, noise, slope

ONE = torch.empty(1, 2, dtype=torch.float64)
TIMES = [1e-5, 0.3, 0.75, 1.0, 1.7, 2.0, 2.0001, 17.0, 1e4 / 3]


def increment(a, b, like=ONE, seeds=(7,), rows=None):
    """W(b) - W(a), from a path that was asked nothing before."""
    return BrownianPath(seeds).draw(like, rows, (a, b)) * math.sqrt(abs(b - a))


def test_increments_over_adjacent_spans_add_up():
    whole = increment(TIMES[0], TIMES[-1])
    parts = sum(increment(a, b) for a, b in pairwise(TIMES))
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6 * TIMES[-1] ** 0.5)  # times are rounded to 32 bits


def test_a_span_backwards_is_the_increment_with_the_other_sign():
    assert torch.equal(increment(0.3, 1.7), -increment(1.7, 0.3))


def test_answers_do_not_depend_on_what_was_asked_before():
    spans = [(0.3, 0.4), (0.1, 8.0), (0.35, 0.36), (0.3, 0.4)]
    path = BrownianPath([7])
    asked = [path.draw(ONE, None, span) for span in spans]
    back = BrownianPath([7])
    assert all(map(torch.equal, asked[::-1], [back.draw(ONE, None, span) for span in spans[::-1]]))
    assert torch.equal(asked[0], asked[3])
    assert not torch.equal(asked[0], asked[1])


SPANS = [(0.5, 1.0), (0.3, 0.7), (0.7, 0.9), (0.9, 1.0), (1.0, 5.3), (5.3, 5.30001), (5.30001, 100.0)]


def test_increments_are_standard_normal_and_those_of_disjoint_spans_independent():
    """Over 2^17 pixels. The first span overlaps the next three, by as much as Brownian motion says."""
    like, path = torch.empty(1, 2**17, dtype=torch.float64), BrownianPath([11])
    drawn = torch.cat([path.draw(like, None, span) for span in SPANS])
    overlap = torch.eye(len(SPANS), dtype=torch.float64)
    for i, (a, b) in enumerate(SPANS[1:4], 1):
        shared = max(0.0, min(b, 1.0) - max(a, 0.5))
        overlap[0, i] = overlap[i, 0] = shared / math.sqrt(0.5 * (b - a))
    spread = 2**-8.5  # standard deviation of a correlation, estimated
    torch.testing.assert_close(torch.cov(drawn), overlap, rtol=0, atol=5 * math.sqrt(2) * spread)
    assert drawn.mean(1).abs().max() < 5 * spread
    assert ((drawn**4).mean(1) - 3).abs().max() < 5 * math.sqrt(96) * spread


def test_seeds_do_not_share_a_path():
    like = torch.empty(2, 2**14, dtype=torch.float64)
    a, b = BrownianPath([1, 2]).draw(like, None, (0.3, 5.0))
    assert abs((a * b).mean()) < 5 / 2**7


def test_a_sample_keeps_its_path_in_any_batch_row_and_dtype():
    like = torch.empty(3, 2, dtype=torch.float64)
    drawn = BrownianPath([5, 6, 7]).draw(like, None, (0.3, 1.7))
    assert torch.equal(drawn[1:2], BrownianPath([6]).draw(ONE, None, (0.3, 1.7)))
    chosen = BrownianPath([5, 6, 7]).draw(like[:2], torch.tensor([2, 0]), (0.3, 1.7))
    assert torch.equal(chosen, drawn[[2, 0]])
    assert torch.equal(BrownianPath([5, 6, 7]).draw(like.float(), None, (0.3, 1.7)), drawn.float())


def test_each_sample_may_have_its_own_span():
    like, (a, b) = torch.empty(2, 2, dtype=torch.float64), torch.tensor([[[0.3], [0.5]], [[1.7], [0.9]]])
    drawn = BrownianPath([5, 6]).draw(like, None, (a, b))
    for i in (0, 1):
        alone = BrownianPath([5 + i]).draw(ONE, None, (a[i].item(), b[i].item()))
        assert torch.equal(drawn[i : i + 1], alone)


def test_noise_of_no_path_is_that_of_streams():
    like = torch.empty(2, 2)
    path, streams = BrownianPath([3, 4]), Streams([3, 4])
    assert torch.equal(path.draw(like), streams.draw(like))
    path.draw(like, None, (1.0, 2.0))
    assert torch.equal(path.draw(like), streams.draw(like))


def test_a_path_does_not_follow_the_defaults_of_torch():
    before = BrownianPath([1]).draw(ONE, None, (0.3, 1.7))
    torch.set_default_dtype(torch.float64)
    try:
        after = BrownianPath([1]).draw(ONE, None, (0.3, 1.7))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    "span", [(0.0, 1.0), (1.0, math.inf), (1.0, 1.0), (1.0, 1 + 1e-12), (math.nan, 1.0), (-1.0, 1.0)]
)
def test_a_span_that_is_none_is_refused(span):
    with pytest.raises(ValueError, match="between two times, finite, above 0"):
        BrownianPath([1]).draw(ONE, None, span)


def on_the_path(solver, num_steps, x, eps):
    return run(on_grid(solver, x, geometric(num_steps)), model=eps, noise=BrownianPath(range(len(x))))[0].x


ON_A_PATH = [
    Ancestral(),
    Ancestral(eta=0.5),
    Multistep("data", predictor=1, corrector=0, eta=1.0),
    Multistep("data", predictor=2, corrector=0, rule="dpm", eta=1.0),
    Multistep("data", predictor=2, corrector=2, eta=0.5),
    StochasticMidpoint(),
]


@pytest.mark.parametrize("solver", ON_A_PATH, ids=repr)
def test_on_one_path_errors_fall_with_the_strong_order_1(solver):
    """Root mean square over the pixels of one sample, against a fine solve on the same path.

    The noise is additive, so that even the method of Euler and Maruyama has order 1, and not 1/2.
    """
    steps, eps, x = [8, 32], Gaussian(torch.full((500,), 0.7), 0.5), noise(250).reshape(1, 500)
    fine = on_the_path(solver, 256, x, eps)
    errors = [(on_the_path(solver, n, x, eps) - fine).pow(2).mean().sqrt().item() for n in steps]
    assert slope(errors, steps) == pytest.approx(1, abs=0.35), errors


def test_programs_side_by_side_keep_to_their_paths():
    x = noise(4)
    programs = (on_grid(Ancestral(), x[:2], geometric(3)), on_grid(Ancestral(), x[2:], geometric(5)))
    first, second = run(*programs, model=mixture(), noise=BrownianPath(range(4)))
    whole = (on_the_path(Ancestral(), n, x, mixture()) for n in (3, 5))
    for got, want, rows in zip((first, second), whole, (slice(2), slice(2, 4)), strict=True):
        torch.testing.assert_close(got.x, want[rows], rtol=1e-12, atol=1e-12)


def test_with_independent_noise_more_steps_make_another_sample():
    def sampled(n):
        return run(on_grid(Ancestral(), noise(), geometric(n)), model=mixture(), noise=Streams(range(6)))[0].x

    assert (sampled(64) - sampled(128)).abs().max() > 0.3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Ancestral(), Multistep("data", predictor=2, corrector=0, eta=1.0)),
        (Ancestral(eta=0.5), Multistep("data", predictor=2, corrector=2, eta=0.25)),
        (StochasticMidpoint(eta=0.25), Multistep("data", predictor=2, corrector=0, eta=0.25)),
    ],
    ids=repr,
)
def test_solvers_of_one_equation_meet_on_one_path(one, other):
    eps, x = mixture(), noise(2)
    apart = [(on_the_path(one, n, x, eps) - on_the_path(other, n, x, eps)).norm() for n in (16, 128)]
    assert apart[1] < 0.05
    assert apart[1] < apart[0] / 4


def test_sampling_along_a_path_gives_the_same_images_with_more_steps():
    model = ods.load("digits")

    def images(noise, num_steps):
        return ods.sample(model, 1, solver="dpmpp_2m_sde", num_steps=num_steps, noise=noise).x

    same = (images("brownian", 40) - images("brownian", 80)).norm()
    other = (images("independent", 40) - images("independent", 80)).norm()
    assert same < other / 2


def test_the_noise_of_a_verb_makes_no_difference_to_an_ode_solver():
    model = ods.load("digits")
    a, b = (ods.sample(model, 2, solver="ddim", num_steps=3, noise=kind).x for kind in ("brownian", "independent"))
    assert torch.equal(a, b)


def test_another_kind_of_noise_is_refused_by_name():
    with pytest.raises(ValueError, match="noise must be one of independent, brownian; got 'pink'"):
        noise_for("pink", [0])


def test_solvers_ask_for_adjacent_spans():
    """The end of one step is the beginning of the next, to the last bit; and per sample as for all."""

    class Listening(Streams):
        def draw(self, like, rows=None, span=None):
            spans.append(span)
            return super().draw(like, rows, span)

    for solver in ON_A_PATH:
        spans = []
        by_hand(on_grid(solver, noise(), geometric(4)), mixture(), Listening(range(6)))
        assert all(first[1] == second[0] for first, second in pairwise(spans))
        assert len(spans) == (8 if isinstance(solver, StochasticMidpoint) else 4)
