"""Programs made of programs: blocks of rows, ranges, and functions turned inside out."""

import gc
import math
import threading
import traceback
from inspect import GEN_CLOSED, getgeneratorstate

import pytest
import torch

from odesampler.combine import for_rows, inverted, knowing, question, surviving, together, within
from odesampler.drive import run
from odesampler.integrate import on_grid
from odesampler.noise import Streams
from odesampler.program import Draw, Request, column
from odesampler.solvers import Ancestral, Dopri5, Euler, Heun
from tests.problems import Spy, by_hand, geometric, mixture, noise


def asking(*sigmas, x=None):
    """A program that asks about `x` at each of `sigmas` and returns the answers."""
    answers = []
    for sigma in sigmas:
        answers.append((yield noise(3) if x is None else x, sigma))
    return answers


def iter_of(request):
    """A program with one question."""
    return (yield request)


def foreign(*sigmas):
    """The same as a function that calls."""
    return lambda ask: [ask(noise(3), sigma) for sigma in sigmas]


def threads():
    """Threads of inverted functions; those of programs that only a cycle still holds do not count."""
    alive = [t for t in threading.enumerate() if t.name == "odesampler.inverted"]
    if alive:
        gc.collect()
    return [t for t in alive if t.is_alive()]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    assert not threads()
    yield
    assert not threads(), "a thread still waits for an answer"


def test_a_question_may_be_written_short():
    x = noise(2)
    assert question((x, 0.5)) == Request(x, 0.5, None)
    assert question(Draw(x)) == Draw(x, None)


@pytest.mark.parametrize("sigma", [0.5, torch.tensor(0.5), torch.tensor([0.5, 0.5]), torch.full((2, 1, 1), 0.5)])
def test_a_sigma_becomes_a_column_whatever_its_form(sigma):
    made = column(sigma, torch.zeros(2, 3, 4))
    assert (made.shape, made.dtype, made.tolist()) == ((2, 1, 1), torch.float64, [[[0.5]], [[0.5]]])


def test_for_rows_renames_the_rows_a_program_asks_about():
    def asks_for_its_last_row():
        yield noise(3), 1.0
        yield Request(noise(1), 1.0, torch.tensor([2]))
        yield Draw(noise(1), torch.tensor([0]))

    program = for_rows(torch.tensor([7, 5, 9]), asks_for_its_last_row())
    assert program.send(None).rows.tolist() == [7, 5, 9]
    assert program.send(noise(3)).rows.tolist() == [9]
    drawn = program.send(noise(1))
    assert isinstance(drawn, Draw)
    assert drawn.rows.tolist() == [7]


def test_for_rows_in_for_rows_names_the_rows_of_the_whole():
    inner = for_rows(torch.tensor([1, 0]), asking(1.0))
    assert for_rows(torch.tensor([4, 6]), inner).send(None).rows.tolist() == [6, 4]


def test_together_asks_for_all_at_once_and_answers_each_its_own():
    spy = Spy(lambda x, sigma: x * column(sigma, x))
    [results] = run(together(asking(1.0, 2.0, 3.0), asking(5.0), asking(2.0, 4.0)), model=spy)
    assert [[(a / noise(3)).mean().item() for a in r] for r in results] == [[1, 2, 3], [5], [2, 4]]
    assert spy.rows == [9, 6, 3]


def test_together_keeps_one_sigma_where_all_share_it():
    assert together(asking(1.0), asking(1.0)).send(None).sigma == 1.0
    assert together(asking(1.0), asking(2.0)).send(None).sigma.flatten().tolist() == [1.0] * 3 + [2.0] * 3


def test_together_nests():
    def programs():
        return [on_grid(s, noise(seed=i), geometric(3)) for i, s in enumerate((Euler(), Heun(), Dopri5()))]

    a, b, c = programs()
    flat = run(*programs(), model=mixture())
    (first, second), third = run(together(a, b), c, model=mixture())
    for got, want in zip((first, second, third), flat, strict=True):
        assert torch.equal(got.x, want.x)


def test_together_draws_from_the_streams_of_each_program():
    programs = [on_grid(Ancestral(), noise(2), geometric(3)) for _ in range(2)]
    first, second = run(*programs, model=mixture(), noise=Streams([1, 2, 3, 4]))
    [alone] = run(on_grid(Ancestral(), noise(2), geometric(3)), model=mixture(), noise=Streams([3, 4]))
    torch.testing.assert_close(second.x, alone.x, rtol=1e-12, atol=1e-12)
    assert (first.x - second.x).abs().max() > 1e-3


@pytest.mark.parametrize(
    "wrong",
    [0.09, 0.0, 3.1, math.nan, torch.tensor([[1.0], [0.09], [2.0]]), torch.tensor([[1.0], [math.nan], [2.0]])],
    ids=str,
)
def test_within_names_the_solver_that_asks_outside_before_any_model_is_called(wrong):
    spy = Spy(mixture())
    with pytest.raises(ValueError, match=r"Wild\(\) asked for eps at sigma = .*outside the model's range \[0\.1, 3\]"):
        run(within(0.1, 3.0, "Wild()", asking(1.0, wrong)), model=spy)
    assert spy.sigmas == [1.0] * 3


def test_within_lets_pass_what_is_inside_and_moves_what_only_rounding_put_outside_to_the_end():
    spy = Spy(mixture())
    sigmas = [0.1, 3.0, torch.tensor([0.1, 3.0, 1.0]).float()[:, None], 0.1 * (1 - 1e-7), 3.0 * (1 + 1e-7)]
    assert len(by_hand(within(0.1, 3.0, "Tame()", asking(*sigmas)), spy)) == 5
    assert spy.asked_outside(0.1, 3.0) == []
    assert {0.1, 1.0, 3.0} <= set(spy.sigmas)


def test_within_moves_the_level_that_the_network_is_told_too():
    sigma = torch.full((3, 1), 3.0 * (1 + 1e-7), dtype=torch.float64)
    for told in (0.1 * (1 - 1e-7), sigma):
        asked = within(0.1, 3.0, "Tame()", iter_of(Request(noise(3), 1.0, told=told))).send(None)
        assert bool(torch.as_tensor((asked.told >= 0.1) & (asked.told <= 3.0)).all())
        assert asked.sigma == 1.0


def test_within_closes_the_program_that_it_refuses():
    program = asking(0.01)
    with pytest.raises(ValueError, match="outside the model's range"):
        within(0.1, 3.0, "Wild()", program).send(None)
    assert getgeneratorstate(program) == GEN_CLOSED


def test_within_lets_draws_and_errors_pass():
    with pytest.raises(ValueError, match="no streams"):
        run(within(0.1, 3.0, "s", on_grid(Ancestral(), noise(), geometric(3))), model=mixture())
    [state] = run(
        within(0.1, 3.0, "s", on_grid(Ancestral(), noise(), geometric(3))), model=mixture(), noise=Streams(range(6))
    )
    assert state.x.isfinite().all()


def failing(after: int):
    """A program that fails after some questions."""
    yield from asking(*[1.0] * after)
    raise ArithmeticError("gave up")


def test_a_program_that_fails_leaves_its_error_in_place_of_its_result_and_the_others_go_on():
    programs = [surviving(p, (ArithmeticError,)) for p in (asking(1.0, 0.5, 0.2), failing(2), asking(1.0, 0.5, 0.2))]
    first, error, last = run(*programs, model=mixture())
    assert isinstance(error, ArithmeticError)
    alone = by_hand(asking(1.0, 0.5, 0.2), mixture())
    for found in (first, last):
        assert all(torch.allclose(a, b, rtol=1e-14) for a, b in zip(found, alone, strict=True))


def test_surviving_lets_pass_refusals_other_errors_and_those_of_the_model():
    with pytest.raises(ArithmeticError, match="gave up"):
        run(surviving(failing(0), (ArithmeticError,)), model=mixture())
    with pytest.raises(ArithmeticError, match="gave up"):
        run(surviving(failing(2), (ValueError,)), model=mixture())

    def broken(x, sigma):
        raise ArithmeticError("the network")

    with pytest.raises(ArithmeticError, match="the network"):
        run(*(surviving(asking(1.0), (ArithmeticError,)) for _ in range(2)), model=broken)


def test_an_inverted_function_asks_what_it_calls():
    [called] = run(inverted(foreign(1.0, 2.0)), model=mixture())
    [asked] = run(asking(1.0, 2.0), model=mixture())
    assert torch.equal(torch.stack(called), torch.stack(asked))


def test_inverted_functions_run_side_by_side_in_one_call_a_round():
    spy = Spy(mixture())
    results = run(*(inverted(foreign(*[1.0] * n)) for n in (4, 2, 3)), model=spy)
    assert [len(r) for r in results] == [4, 2, 3]
    assert spy.rows == [9, 9, 6, 3]


def test_an_error_of_the_model_arrives_in_the_function_and_comes_out_of_it():
    caught = []

    def careful(ask):
        try:
            return ask(noise(3), 1.0)
        except ZeroDivisionError as error:
            caught.append(threading.current_thread().name)
            raise RuntimeError("the model broke") from error

    def broken(x, sigma):
        raise ZeroDivisionError

    with pytest.raises(RuntimeError, match="the model broke") as raised:
        run(inverted(careful), model=broken)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    assert caught == ["odesampler.inverted"]


def test_a_function_may_recover_from_an_error_of_the_model():
    def stubborn(ask):
        try:
            return ask(noise(3), 1.0)
        except ZeroDivisionError:
            return ask(noise(3), 2.0)

    program = inverted(stubborn)
    program.send(None)
    asked = program.throw(ZeroDivisionError())
    assert asked.sigma == 2.0
    program.close()


def test_an_error_of_the_function_comes_out_with_its_own_traceback():
    def wrong(ask):
        ask(noise(3), 1.0)
        raise LookupError("from inside")

    with pytest.raises(LookupError, match="from inside") as raised:
        run(inverted(wrong), model=mixture())
    assert raised.traceback[-1].name == "wrong"


@pytest.mark.parametrize("questions", [0, 1, 2])
def test_closing_the_program_ends_its_thread(questions):
    program = inverted(foreign(*[1.0] * 5))
    for i in range(questions):
        program.send(None if i == 0 else noise(3))
    assert len(threads()) == min(questions, 1)
    program.close()
    assert not threads()


def test_an_error_ends_the_threads_of_all_programs_side_by_side():
    def broken(x, sigma):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(*(inverted(foreign(1.0, 2.0)) for _ in range(3)), model=broken)
    assert not threads()


@pytest.mark.parametrize("grad", [True, False])
def test_gradient_mode_is_carried_into_the_thread(grad):
    seen = []

    def looks(ask):
        seen.append(torch.is_grad_enabled())
        return ask(x * 2, 1.0)

    x = noise(3).requires_grad_()
    with torch.set_grad_enabled(grad):
        [answer] = run(inverted(looks), model=mixture())
    assert seen == [grad]
    assert answer.requires_grad == grad
    if grad:
        [back] = torch.autograd.grad(answer.sum(), x)
        assert back.abs().min() > 0


def test_what_is_known_is_not_asked_again_and_nothing_else_is_taken_for_it():
    x, sigma, known = noise(3), column(0.5, noise(3)), noise(3) + 7
    asked = []

    def eps(x, sigma):
        asked.append((x, sigma))
        return x * sigma

    def program():
        return [(yield x, sigma), (yield x.clone(), sigma), (yield x, 0.5), (yield x, sigma)]

    found = by_hand(knowing(known, x, sigma, program()), eps)
    assert [f is known for f in found] == [True, False, False, True]
    assert len(asked) == 2
    assert torch.equal(found[1], x * sigma)
    assert torch.equal(found[2], x * 0.5)


def test_an_error_of_the_model_shows_the_line_that_asked_through_what_is_known():
    def program():
        yield noise(3), 2.0
        raise AssertionError("the error was not thrown in")

    outer = knowing(noise(3), noise(3), column(0.5, noise(3)), program())
    outer.send(None)
    with pytest.raises(ZeroDivisionError) as raised:
        outer.throw(ZeroDivisionError())
    assert "yield noise(3), 2.0" in "".join(traceback.format_exception(raised.value))
