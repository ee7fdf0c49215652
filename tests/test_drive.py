"""The driver: one call a round, chunks, conditions, counts, and errors that name where they happened."""

import math
import re
import traceback

import numpy as np
import pytest
import torch

from odesampler import drive
from odesampler.adaptive import Adaptive, adaptive
from odesampler.combine import within
from odesampler.drive import Tally, run
from odesampler.exact import Gaussian
from odesampler.guidance import guided
from odesampler.integrate import on_grid
from odesampler.model import Model
from odesampler.noise import Streams, seeds_for
from odesampler.program import Request, column
from odesampler.room import check_max_batch
from odesampler.schedule import VE
from odesampler.solvers import RK4, Ancestral, Bosh3, Dopri5, Euler, Heun, Reversible
from tests.problems import HIGH, LOW, Spy, geometric, mixture, noise

SIDE_BY_SIDE = [Euler(), Heun(), RK4(), Dopri5(), Reversible()]


def labelled(x, sigma, label):
    return mixture()(x, sigma) * (1 + label[:, None])


def test_programs_side_by_side_are_answered_in_one_call_a_round():
    spy, tally, n = Spy(mixture()), Tally(), 5
    run(*(on_grid(s, noise(), geometric(n)) for s in SIDE_BY_SIDE), model=spy, tally=tally)
    asked = [s.start_evaluations + n * s.evaluations for s in SIDE_BY_SIDE]
    assert spy.calls == tally.calls == max(asked)
    assert sum(spy.rows) == 6 * sum(asked)
    assert tally.nfe.tolist() == [nfe for nfe in asked for _ in range(6)]


@pytest.mark.parametrize("max_batch", [1, 2, 4, 5, 6, 7])
def test_chunks_give_the_same_results_and_the_network_never_more_rows_than_allowed(max_batch):
    spy, tally = Spy(labelled), Tally()
    cond = {"label": torch.linspace(0, 0.2, 6, dtype=torch.float64)}
    [whole] = run(on_grid(Heun(), noise(), geometric(4)), model=labelled, cond=cond)
    [cut] = run(on_grid(Heun(), noise(), geometric(4)), model=spy, cond=cond, max_batch=max_batch, tally=tally)
    torch.testing.assert_close(cut.x, whole.x, rtol=1e-12, atol=1e-12)
    assert max(spy.rows) == min(max_batch, 6)
    assert spy.calls == tally.calls == 8 * math.ceil(6 / max_batch)
    assert tally.nfe.tolist() == [8] * 6, "a chunk is a call, not an evaluation"


@pytest.mark.parametrize("max_batch", [3, 8])
def test_chunks_of_an_adaptive_solve_and_of_programs_side_by_side_change_nothing(max_batch):
    def programs():
        yield adaptive(Adaptive(Bosh3()), noise(7), HIGH, LOW)
        yield on_grid(Euler(), noise(4), geometric(5))

    conds = [{"label": torch.rand(n, dtype=torch.float64)} for n in (7, 4)]
    spy = Spy(labelled)
    whole = run(*programs(), model=labelled, cond=conds)
    cut = run(*programs(), model=spy, cond=conds, max_batch=max_batch)
    torch.testing.assert_close(cut[0].state.x, whole[0].state.x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(cut[1].x, whole[1].x, rtol=1e-12, atol=1e-12)
    assert max(spy.rows) == max_batch


@pytest.mark.parametrize("max_batch", [2, 3, 5, 12])
def test_guided_rows_count_towards_the_limit_of_a_batch(max_batch):
    rows = []

    def network(x_t, t, label):
        rows.append(len(x_t))
        return mixture()(x_t, t) * (1 + label[:, None])

    model = guided(Model(network, VE(), null_cond={"label": 0.0}), 3.0)
    cond = {"label": torch.linspace(0, 0.2, 6, dtype=torch.float64)}
    [whole] = run(on_grid(Heun(), noise(), geometric(4)), model=model, cond=cond)
    rows.clear()
    tally = Tally()
    [cut] = run(on_grid(Heun(), noise(), geometric(4)), model=model, cond=cond, max_batch=max_batch, tally=tally)
    assert max(rows) <= max_batch
    assert len(rows) == tally.calls == 8 * math.ceil(6 / (max_batch // 2))
    assert tally.nfe.tolist() == [8] * 6, "a guided evaluation counts once"
    torch.testing.assert_close(cut.x, whole.x, rtol=1e-12, atol=1e-12)


def test_a_limit_that_no_guided_sample_fits_in_is_refused():
    model = guided(Model(lambda x_t, t, label: x_t, VE(), null_cond={"label": 0.0}), 3.0)
    with pytest.raises(ValueError, match="max_batch must be 2 or more; got 1"):
        run(on_grid(Heun(), noise(), geometric(4)), model=model, max_batch=1)


def test_each_program_brings_its_own_conditions():
    labels = [torch.full((6,), v, dtype=torch.float64) for v in (0.0, 0.1)]
    programs = [on_grid(Heun(), noise(), geometric(4)) for _ in labels]
    both = run(*programs, model=labelled, cond=[{"label": v} for v in labels])
    for got, label in zip(both, labels, strict=True):
        [alone] = run(on_grid(Heun(), noise(), geometric(4)), model=labelled, cond={"label": label})
        torch.testing.assert_close(got.x, alone.x, rtol=1e-12, atol=1e-12)


def test_conditions_that_differ_in_their_names_are_refused():
    programs = [on_grid(Euler(), noise(), geometric(4)) for _ in range(2)]
    with pytest.raises(ValueError, match=r"need the same conditions; got .*'label'"):
        run(*programs, model=labelled, cond=[{"label": torch.zeros(6)}, {}])


@pytest.mark.parametrize("max_batch", [0, -3, "max"])
def test_a_batch_limit_below_1_is_refused(max_batch):
    with pytest.raises(ValueError, match='max_batch must be a whole number of 1 or more, "auto", or None; got'):
        run(on_grid(Euler(), noise(), geometric(4)), model=mixture(), max_batch=max_batch)


@pytest.mark.parametrize("max_batch", [2.5, 2.0, True, "8", torch.tensor(2), math.nan])
def test_a_batch_limit_that_is_no_whole_number_is_refused(max_batch):
    with pytest.raises(ValueError, match='max_batch must be a whole number of 1 or more, "auto", or None; got'):
        run(on_grid(Euler(), noise(), geometric(4)), model=mixture(), max_batch=max_batch)


@pytest.mark.parametrize("kind", [np.int64, np.uint8])
def test_a_batch_limit_may_be_a_whole_number_of_numpy(kind):
    spy = Spy(mixture())
    run(on_grid(Euler(), noise(), geometric(1)), model=spy, max_batch=kind(4))
    assert spy.rows == [4, 2]
    assert type(check_max_batch(kind(4), 1)) is int


def test_conditions_of_more_or_fewer_programs_are_refused():
    for count in (1, 3):
        programs = [on_grid(Euler(), noise(), geometric(4)) for _ in range(2)]
        with pytest.raises(ValueError, match=f"one mapping a program: 2 programs, {count} mapping"):
            run(*programs, model=labelled, cond=[{"label": torch.zeros(6)}] * count)


@pytest.mark.parametrize("max_batch", [None, 2, "auto"])
def test_a_batch_of_nobody_is_answered_with_nothing(max_batch):
    [state] = run(on_grid(Euler(), noise()[:0], geometric(4)), model=mixture(), max_batch=max_batch)
    assert state.x.shape == (0, 2)


@pytest.mark.parametrize("sigma", [torch.tensor(0.5), torch.tensor([[0.5]]), torch.full((3, 1), 0.5)], ids=str)
def test_the_model_is_told_a_sigma_for_each_sample_where_a_tensor_of_one_is_given(sigma):
    def program():
        return (yield Request(noise(3), sigma, told=sigma))

    def eps(x, sigma, told):
        shapes.append((tuple(sigma.shape), tuple(told.shape)))
        return x

    shapes = []
    run(program(), model=eps)
    assert shapes == [((3,), (3,))]


@pytest.mark.parametrize("shape", [(6, 3), (5, 2), (6,), (6, 2, 1)])
def test_an_answer_of_the_wrong_shape_is_named_with_its_sigma(shape):
    with pytest.raises(ValueError, match=rf"at sigma = 3 with \(6, 2\), got {re.escape(str(shape))}"):
        run(on_grid(Euler(), noise(), geometric(4)), model=lambda x, sigma: torch.zeros(shape))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("max_batch", [None, 2])
def test_nan_and_infinity_are_named_with_the_sigma_at_which_they_came(bad, max_batch):
    def broken(x, sigma):
        answer = mixture()(x, sigma)
        if sigma < 1:
            answer[-1, 0] = bad
        return answer

    grid = [HIGH, 1.25, 0.75, LOW]
    with pytest.raises(FloatingPointError, match=r"NaN or infinity at sigma = 0\.75;"):
        run(on_grid(Euler(), noise(), grid), model=broken, max_batch=max_batch)


def test_nan_among_per_sample_sigmas_is_named_with_their_range():
    def broken(x, sigma):
        return torch.where(column(sigma, x) < 1, math.nan, 1.0) * x

    programs = [on_grid(Euler(), noise(2), grid) for grid in ([3.0, 2.0, 1.0], [0.5, 0.25])]
    with pytest.raises(FloatingPointError, match=r"a sigma in \[0\.5, 3\] \(4 samples, each at its own\)"):
        run(*programs, model=broken)


@pytest.mark.parametrize(
    ("program", "call", "line"),
    [
        (lambda: on_grid(Heun(), noise(), geometric(3)), 2, "k1 = yield euler, s1"),
        (lambda: on_grid(Reversible(), noise(), geometric(3)), 2, "k1 = yield euler, s1"),
        (lambda: adaptive(Adaptive(Heun()), noise(), HIGH, LOW), 2, "f1 = yield from chart.slope(y + probe * f0,"),
        (lambda: adaptive(Adaptive(Heun()), noise(), HIGH, LOW), 3, "k1 = yield euler, s1"),
        (lambda: within(0, 9, "s", on_grid(Heun(), noise(), geometric(3))), 2, "k1 = yield euler, s1"),
    ],
    ids=["grid", "wrapped", "first step", "adaptive", "within"],
)
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "side by side"])
def test_an_error_of_the_model_shows_the_line_of_the_solver_that_asked(program, call, line, alone):
    calls = []

    def breaks_in_the_end(x, sigma):
        calls.append(sigma)
        if len(calls) == call:
            raise RuntimeError("out of memory")
        return mixture()(x, sigma)

    programs = [program()] if alone else [program(), on_grid(Euler(), noise(), geometric(9))]
    with pytest.raises(RuntimeError, match="out of memory") as raised:
        run(*programs, model=breaks_in_the_end)
    shown = "".join(traceback.format_exception(raised.value))
    assert line in shown
    assert "breaks_in_the_end" in shown


def test_an_error_of_the_check_shows_the_line_of_the_solver_too():
    with pytest.raises(FloatingPointError) as raised:
        run(on_grid(Heun(), noise(), geometric(3)), model=lambda x, sigma: x * math.nan)
    assert "k0 = yield state.x, s0" in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize("max_batch", [None, 1, 4])
def test_a_sample_has_its_own_noise_whatever_its_batch_and_chunk(max_batch):
    def sampled(seeds):
        x = torch.stack([noise(1, seed=s)[0] for s in seeds])
        program = on_grid(Ancestral(), x, geometric(6))
        return run(program, model=mixture(), noise=Streams(seeds), max_batch=max_batch)[0].x

    together = sampled([3, 1, 4, 15, 9, 2])
    for i, seed in enumerate([3, 1, 4, 15, 9, 2]):
        torch.testing.assert_close(together[i], sampled([seed])[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(together[[5, 0]], sampled([2, 3]), rtol=1e-12, atol=1e-12)


def test_streams_are_standard_normal_each_its_own_and_go_on_from_draw_to_draw():
    like = torch.empty(3, 5000, dtype=torch.float64)
    streams = Streams([5, 6, 5])
    first, second = streams.draw(like), streams.draw(like)
    assert torch.equal(first[0], first[2])
    for one, other in ((first[0], first[1]), (first[0], second[0])):
        assert torch.corrcoef(torch.stack([one, other]))[0, 1].abs() < 0.06
    assert first.mean(1).abs().max() < 0.06
    assert (first.std(1) - 1).abs().max() < 0.05
    assert torch.equal(Streams([6]).draw(like[:1])[0], first[1])


def test_streams_give_the_same_noise_in_every_dtype_and_for_chosen_rows():
    like = torch.empty(2, 4)
    assert torch.equal(Streams([1, 2]).draw(like).double(), Streams([1, 2]).draw(like.double()))
    chosen = Streams([1, 2, 3]).draw(like, torch.tensor([2, 0]))
    assert torch.equal(chosen, Streams([3, 1]).draw(like))


def test_noise_does_not_depend_on_the_default_dtype_of_torch():
    like = torch.empty(2, 4)
    before = Streams([1, 2]).draw(like)
    torch.set_default_dtype(torch.float64)
    try:
        after = Streams([1, 2]).draw(like)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(before, after)


@pytest.mark.parametrize("seed", [1.5, [1, 2, 3.5], "1"])
def test_a_seed_that_is_no_whole_number_is_a_type_error(seed):
    with pytest.raises(TypeError):
        seeds_for(seed, 3)


def test_one_seed_counts_on_and_a_list_is_taken_as_it_is():
    assert seeds_for(5, 3) == [5, 6, 7]
    assert seeds_for([9, 9, 1], 3) == [9, 9, 1]


@pytest.mark.parametrize(
    ("seed", "message"), [([1, 2], "3 samples, got 2 seeds"), (-1, "from 0 to"), (2**63 - 1, "from 0 to")]
)
def test_seeds_that_do_not_fit_are_refused(seed, message):
    with pytest.raises(ValueError, match=message):
        seeds_for(seed, 3)


def test_gradients_flow_through_a_run_to_the_model():
    variance = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def eps(x, sigma):
        return sigma * x / (variance + sigma**2)

    [state] = run(on_grid(Dopri5(), noise(), geometric(20)), model=eps)
    [slope] = torch.autograd.grad(state.x.sum(), variance)
    problem = [Gaussian(torch.zeros(2), 0.5 + d).trajectory(noise(), HIGH, LOW).sum() for d in (1e-5, -1e-5)]
    assert slope.item() == pytest.approx(((problem[0] - problem[1]) / 2e-5).item(), rel=1e-5)


@pytest.mark.parametrize("bad", range(1, 40))
def test_the_first_answer_that_is_not_finite_is_named_and_the_solve_ends_within_sixteen_more(bad):
    asked = []

    def model(x, sigma):
        asked.append(sigma)
        return x * (math.nan if len(asked) == bad else 1.0)

    with pytest.raises(FloatingPointError, match=f"at sigma = {geometric(40)[bad - 1]:g};"):
        run(on_grid(Euler(), noise(), geometric(40)), model=model)
    assert len(asked) < bad + drive.READ


def test_what_a_program_makes_of_an_answer_that_is_not_finite_does_not_hide_it():
    def program():
        x = torch.ones(2, 3)
        for sigma in (3.0, 2.0, 1.0):
            x = x + (yield x, sigma)
            if x.isnan().any():
                raise ValueError("this solver has its own words for NaN")

    answers = iter((1.0, math.nan))
    with pytest.raises(FloatingPointError, match="at sigma = 2;"):
        run(program(), model=lambda x, sigma: x * next(answers))


@pytest.mark.parametrize(
    ("value", "dtype"), [(6e4, torch.float16), (1e35, torch.bfloat16), (1e35, torch.float32), (1e300, torch.float64)]
)
def test_answers_that_are_finite_pass_though_their_sum_in_half_precision_is_not(value, dtype):
    def program():
        return (yield torch.zeros(2, 500, dtype=dtype), 1.0)

    [answer] = run(program(), model=lambda x, sigma: torch.full_like(x, value))
    assert answer.isfinite().all()
    assert dtype != torch.float16 or answer.sum(dtype=dtype).isinf()
