"""Grids: one object for both directions, strictly monotone; the named ones that live on a table of timesteps."""

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odesampler.grid import Grid, concatenate, make_grid
from odesampler.schedule import VE, VP, RectifiedFlow


def times(grid, schedule):
    """The whole times of a grid on a table that ends in 0."""
    assert grid[-1] == 0
    exact = schedule.t(torch.tensor(grid.sigmas[:-1], dtype=torch.float64))
    torch.testing.assert_close(exact, exact.round(), rtol=0, atol=1e-7)
    return exact.round().long().tolist()


def test_times_that_a_narrower_range_leaves_out_are_counted_and_refused():
    with pytest.raises(ValueError, match=r"2 of 6 timesteps fall outside \[1, 50\]; use karras or log_snr"):
        make_grid("leading", VP.linear(), 5, into_zero=False, sigma_min=1.0, sigma_max=50.0)


@given(sigmas=st.lists(st.floats(0, 1e6), min_size=2, max_size=20, unique=True))
def test_reversing_twice_gives_the_same_object(sigmas):
    grid = Grid(tuple(sorted(sigmas, reverse=True)))
    assert grid.reverse().reverse() is grid
    assert grid.reverse().sigmas == grid.sigmas[::-1]
    assert grid.falls is not grid.reverse().falls
    assert grid.down() is grid.reverse().down() is grid
    assert grid.up() is grid.reverse().up() is grid.reverse()
    assert grid == Grid(grid.sigmas)


def test_a_given_grid_is_taken_as_it_is_and_written_downwards():
    grid = Grid((0.1, 1.0, 5.0), "mine")
    assert make_grid(grid, VE(), 99, into_zero=True) is grid.reverse()
    assert make_grid([0.1, 1.0, 5.0], VE(), 99, into_zero=True).sigmas == (5.0, 1.0, 0.1)
    assert make_grid((math.inf, 1.0, 0.0), RectifiedFlow(), 99, into_zero=True).sigmas == (math.inf, 1.0, 0.0)


def times_of_diffusers(diffusers, name, num_steps):
    scheduler = diffusers.DDIMScheduler(timestep_spacing=name)
    scheduler.set_timesteps(num_steps)
    return scheduler.timesteps.tolist()


@pytest.mark.parametrize("num_steps", [2, 4, 5, 8, 10, 20, 25, 40, 50, 100, 125, 200, 250, 500, 1000])
@pytest.mark.parametrize("name", ["leading", "trailing", "linspace"])
def test_equals_the_times_of_diffusers(diffusers, name, num_steps):
    grid = make_grid(name, VP.linear(), num_steps, into_zero=True)
    assert times(grid, VP.linear()) == times_of_diffusers(diffusers, name, num_steps)


def test_a_single_step_of_linspace_starts_at_the_noisy_end_and_not_at_time_0_as_that_of_diffusers(diffusers):
    assert times_of_diffusers(diffusers, "linspace", 1) == [0], "diffusers now starts where it should"
    assert make_grid("linspace", VP.linear(), 1, into_zero=True).sigmas == (VP.linear().sigma_max, 0.0)
    for name in ("leading", "trailing"):
        grid = make_grid(name, VP.linear(), 1, into_zero=True)
        assert times(grid, VP.linear()) == times_of_diffusers(diffusers, name, 1)


def test_differs_from_diffusers_only_where_a_time_lies_halfway_between_two_entries(diffusers):
    """Their float steps round such times up or down by accident; ours are computed exactly, then rounded to even."""
    exact = {
        "trailing": lambda i, n: 1000 - i * Fraction(1000, n) - 1,
        "linspace": lambda i, n: 999 - i * Fraction(999, n - 1),
    }
    for name, n in product(exact, [27, 30, 31, 47, 48, 53, 93, 96, 99, 105, 107, 112, 199]):
        ours = times(make_grid(name, VP.linear(), n, into_zero=True), VP.linear())
        theirs = times_of_diffusers(diffusers, name, n)
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert abs(a - exact[name](i, n)) <= Fraction(1, 2)
            assert a == b or abs(a - exact[name](i, n)) == Fraction(1, 2)


def test_trailing_never_leaves_the_table_as_that_of_diffusers_does(diffusers):
    assert times_of_diffusers(diffusers, "trailing", 61)[-1] == -1, "diffusers now stops where it should"
    assert min(times(make_grid("trailing", VP.linear(), 61, into_zero=True), VP.linear())) >= 0


def ddim_paper(size, n):
    """The sub-sequence of the DDIM paper's code."""
    return [int(s) for s in np.linspace(0, np.sqrt(size * 0.8), n) ** 2]


@pytest.mark.parametrize("num_steps", [2, 3, 5, 10, 20, 25, 28, 29])
def test_quadratic_is_the_sub_sequence_of_the_ddim_paper_where_that_repeats_nothing(num_steps):
    paper = ddim_paper(1000, num_steps)
    assert len(set(paper)) == num_steps
    grid = make_grid("quadratic", VP.linear(), num_steps, into_zero=True)
    assert times(grid, VP.linear()) == paper[::-1]


@pytest.mark.parametrize("num_steps", [50, 100, 200, 1000])
def test_quadratic_has_no_repeats_where_that_of_the_paper_has(num_steps):
    paper = ddim_paper(1000, num_steps)
    assert len(set(paper)) < num_steps
    ours = times(make_grid("quadratic", VP.linear(), num_steps, into_zero=True), VP.linear())[::-1]
    assert len(set(ours)) == num_steps
    assert ours[0] == 0
    assert ours[-1] == (paper[-1] if num_steps < 1000 else 999)
    moved = [i for i, (a, b) in enumerate(zip(ours, paper, strict=True)) if a != b]
    assert all(ours[i] == ours[i - 1] + 1 for i in moved), "an index moved further than to the next free one"


def test_a_flow_model_starts_at_infinity():
    grid = make_grid("linspace", RectifiedFlow(), 4, into_zero=True)
    assert grid[0] == math.inf
    assert all(math.isfinite(s) for s in grid.sigmas[1:])
    assert make_grid("trailing", VP.linear().with_zero_snr(), 4, into_zero=True)[0] == math.inf


@pytest.mark.parametrize("num_steps", [0, -1, 2.5, True, "10", None])
def test_a_number_of_steps_that_is_none_is_refused(num_steps):
    with pytest.raises(ValueError, match=r"whole number from 1 to 1000000; got"):
        make_grid("karras", VE(), num_steps, into_zero=True)


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([1.0], "at least two sigmas"),
        ([], "at least two sigmas"),
        ([2.0, math.nan, 1.0], "got nan at position 1 of 3"),
        ([2.0, 1.0, -0.5], "got -0.5 at position 2 of 3"),
        ([2.0, 1.0, 1.0, 0.5], "sigmas 1 and 2 are 1 and 1"),
        ([2.0, 1.0, 1.5], "sigmas 1 and 2 are 1 and 1.5"),
        ([1.0, 2.0, 0.5], "strictly monotone"),
        ([math.inf, math.inf, 1.0], "sigmas 0 and 1 are inf and inf"),
        ([1.0, 1.0], "strictly monotone"),
    ],
)
def test_a_sequence_that_is_no_grid_is_refused_where_it_goes_wrong(sigmas, message):
    with pytest.raises(ValueError, match=message):
        make_grid(sigmas, VE(), 5, into_zero=True)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown grid 'sgm'; known: leading, .*karras.*ays"):
        make_grid("sgm", VE(), 5, into_zero=True)


@pytest.mark.parametrize("name", ["leading", "trailing", "quadratic", "linspace"])
def test_more_steps_than_the_table_has_are_refused(name):
    with pytest.raises(ValueError, match="has 1000 timesteps to choose from; 1001 are too many"):
        make_grid(name, VP.linear(), 1001, into_zero=True)


def test_a_grid_cannot_be_changed():
    with pytest.raises(AttributeError):
        Grid((2.0, 1.0)).sigmas = (3.0, 1.0)


def test_pieces_that_meet_become_one_grid():
    top = make_grid("karras", VE(), 3, into_zero=False, sigma_min=1.0)
    rest = make_grid("log_snr", VE(), 5, into_zero=True, sigma_max=1.0)
    joined = concatenate(top, rest)
    assert joined.sigmas == (*top.sigmas, *rest.sigmas[1:])
    assert (joined.num_steps, joined.name) == (8, "karras + log_snr")
    assert concatenate(rest.reverse(), top.reverse()).sigmas == joined.reverse().sigmas
    assert concatenate(top).sigmas == top.sigmas
    assert make_grid(joined, VE(), 99, into_zero=True) is joined


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([Grid((3.0, 2.0)), Grid((1.0, 0.5))], "from 3 to 2, custom from 1 to 0.5"),
        ([Grid((3.0, 2.0)), Grid((2.0000000000000004, 0.5))], "from 3 to 2, custom from 2.0000000000000004 to"),
        ([Grid((3.0, 2.0)), Grid((2.0, 2.5))], "meet at one sigma and go one way"),
        ([Grid((1.0, 0.5)), Grid((3.0, 1.0))], "meet at one sigma and go one way"),
        ([(3.0, 2.0), (2.0, 1.0)], "concatenate takes grids"),
        ([], "concatenate takes grids"),
    ],
)
def test_pieces_that_do_not_meet_are_refused(pieces, message):
    with pytest.raises(ValueError, match=message):
        concatenate(*pieces)
