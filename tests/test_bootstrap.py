"""The bootstrap: medians of resamples are medians, its intervals hold the truth as often as they say."""

import math

import pytest
import torch

from odesampler.analysis.bootstrap import Resamples, basis, interval
from odesampler.analysis.orders import measured_order
from odesampler.analysis.reach import reached

STEPS = [10, 20, 40, 80]
RUNS = 200
WITHIN = (0.90, 0.985)  # of 200 runs, three standard deviations around 95 %, of which the hits are 0.015 each


def draws(seed: int, samples: int, *, noise: float = 0.3, order: float = 2.0) -> torch.Tensor:
    """(samples, steps) errors c_i N^-order with c_i and each point lognormal, of median N^-order."""
    generator = torch.Generator().manual_seed(seed)
    size, own = (torch.randn(samples, n, generator=generator, dtype=torch.float64) for n in (1, len(STEPS)))
    return (0.5 * size + noise * own - order * torch.tensor(STEPS, dtype=torch.float64).log()).exp()


@pytest.mark.parametrize("samples", [1, 2, 7, 16])
def test_a_resample_is_drawn_with_replacement_and_its_median_and_mean_are_those_of_what_it_holds(samples):
    resamples = Resamples.of(samples, 300, seed=3)
    values = torch.randn(samples, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values[:, 1] = values[:, 1].round()  # with ties
    assert (resamples.times.sum(1) == samples).all()
    held = torch.stack([values[torch.arange(samples).repeat_interleave(times)] for times in resamples.times])
    torch.testing.assert_close(resamples.medians(values), held.quantile(0.5, 1), rtol=0, atol=1e-15)
    torch.testing.assert_close(resamples.means(values), held.mean(1), rtol=0, atol=1e-14)
    if samples == 16:
        absent = (resamples.times == 0).double().mean().item()  # (1 - 1/16)^16
        assert absent == pytest.approx((15 / 16) ** 16, abs=0.02)


def test_equal_seeds_draw_equal_resamples_and_others_do_not():
    first, again, other = (Resamples.of(8, 50, seed).times for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)
    state = torch.random.get_rng_state()
    Resamples.of(8, 50)
    assert torch.random.get_rng_state().equal(state)  # nobody else's noise is touched


def test_an_interval_holds_the_middle_and_knows_infinity():
    values = torch.arange(1001.0, dtype=torch.float64)
    assert [end.item() for end in interval(values)] == [25, 975]
    values[-30:] = math.inf
    assert [end.item() for end in interval(values)] == [25, math.inf]


@pytest.mark.parametrize("noise", [0.02, 0.3])
@pytest.mark.parametrize("samples", [8, 33])
def test_the_interval_of_an_order_holds_it_in_about_95_of_100_runs(samples, noise):
    hits = 0
    for seed in range(RUNS):
        order = measured_order(STEPS, draws(seed, samples, noise=noise), Resamples.of(samples, 1000, seed), 2)
        hits += order.low <= 2.0 <= order.high
    assert WITHIN[0] < hits / RUNS < WITHIN[1]


def test_the_interval_of_evaluations_for_an_error_holds_the_truth_in_about_95_of_100_runs():
    hits, costs = 0, torch.tensor(STEPS)
    for seed in range(RUNS):
        errors, resamples = draws(seed, 33), Resamples.of(33, 1000, seed)
        found = reached(30.0**-2, costs, errors.quantile(0.5, 0), costs.expand(1000, 4), resamples.medians(errors), 33)
        hits += found.low <= 30 <= found.high
    assert WITHIN[0] < hits / RUNS < WITHIN[1]


def test_an_interval_is_narrower_with_more_samples_and_there_is_none_of_a_few():
    widths = []
    for samples in (8, 32, 128, 512):
        order = measured_order(STEPS, draws(0, samples), Resamples.of(samples), 2)
        widths.append(order.high - order.low)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.25 * widths[0]
    few = measured_order(STEPS, draws(0, 5), Resamples.of(5), 4)
    assert (few.low, few.high) == (-math.inf, math.inf)
    assert not few.flagged
    assert basis(5) == "5 samples are too few for intervals, 6 the fewest."
    assert "resamples of the 6 samples" in basis(6)
