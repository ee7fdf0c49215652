"""Tuning: tables of solvers, gradients through a solve, knots by dynamic programming, the verb."""

import json
import math
import shlex
import weakref
from contextlib import nullcontext
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
import torch
from torch import nn

import odesampler as ods
from odesampler.cli import main
from odesampler.drive import run
from odesampler.frames import log
from odesampler.integrate import OnGrid, solve
from odesampler.program import State
from odesampler.solvers import Euler, Fitted, Multistep, TwoStep
from odesampler.solvers.weights import exact
from odesampler.tuning import encoder, fitting, sampler
from odesampler.tuning.fitting import Clock, Goals, Recomputed, by_table, frozen, gradient
from odesampler.tuning.knots import FRAME, cheapest, costs
from odesampler.tuning.resumable import Resumable
from odesampler.tuning.sampler import _refusal, _warning
from odesampler.tuning.shapes import FreeTable, Knots
from odesampler.tuning.task import as_json, unclear
from odesampler.tuning.weight_tables import table_of
from tests.problems import BOTH_WAYS, COURSE, DRAWING, Spy, geometric, labelled, mixture, noise

QUICK = {"num_samples": 12, "iterations": 30, "reference_steps": 60}
NODES = geometric(6)


def mixture8():
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    return ods.exact.GaussianMixture(means, torch.full((5,), 0.05))


def ring():
    return ods.exact.GaussianMixture.ring(std=0.1).model()


def fresh(model, count=20):
    return torch.randn(count, *model.data_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(77))


def error(model, x, truth, **how):
    found = ods.sample(model, x=x, state_dtype=torch.float64, **how).x
    return (found - truth).square().mean(1).sqrt().log().mean().exp().item()


def truth_of(model, x, **how):
    return ods.sample(model, x=x, solver="rk4", num_steps=200, grid="log_snr", state_dtype=torch.float64, **how).x


# ---- tables


@pytest.mark.parametrize("solver", BOTH_WAYS, ids=repr)
def test_a_table_from_unit_vectors_is_the_solver_itself_or_the_solver_has_none(solver):
    spy, sigmas = Spy(mixture()), [*NODES, 0.0]
    x = run(solve(OnGrid(solver), State(noise(1)), sigmas), model=spy)[0].state.x
    try:
        table = table_of(solver, NODES)
    except ValueError:
        turns = "frame='v'" in repr(solver) or isinstance(solver, TwoStep)
        assert turns or len(spy.sigmas) != len(NODES) or spy.sigmas != pytest.approx(NODES, rel=1e-12)
        return
    assert spy.sigmas == pytest.approx(NODES, rel=1e-12)
    [again] = run(by_table(noise(1), torch.tensor(NODES, dtype=torch.float64), table), model=mixture())
    torch.testing.assert_close(again, x, rtol=0, atol=1e-12)


def test_predictor_corrector_methods_have_tables_and_those_that_ask_elsewhere_have_none():
    table = table_of(Multistep(), NODES)
    assert (table[3, :4] != 0).all()
    assert (table.triu(1) == 0).all()
    lengths = torch.tensor([b - a for a, b in pairwise([*NODES, 0.0])], dtype=torch.float64)
    torch.testing.assert_close(table.sum(1), lengths)
    for solver in (ods.Heun(), ods.RK4(), DRAWING[0], Multistep("v", "phi"), ods.ALF("angle").prepared(COURSE)):
        with pytest.raises(ValueError, match="is no table of weights"):
            table_of(solver, NODES)


@pytest.mark.parametrize("solver", [Multistep(), Multistep("data", rule="bh2"), Multistep("noise", "log1p", 3, 0)])
def test_the_table_is_differentiable_in_the_sigmas(solver):
    sigmas = torch.tensor(NODES, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: table_of(solver, s), sigmas)


# ---- what a fit may change


def test_knots_stay_in_order_in_range_and_the_first_where_it_is():
    knots = Knots((8.0, 4.0, 2.0, 1.0, 0.5), low=0.4, high=8.0)
    assert knots.made(torch.zeros(4)).tolist() == pytest.approx([8, 4, 2, 1, 0.5], rel=1e-15)
    wild = torch.tensor([5.0, -5.0, 3.0, -9.0], dtype=torch.float64)
    sigmas = knots.made(knots.allowed(wild)).tolist()
    assert sigmas[0] == 8
    assert all(a > 1.01 * b for a, b in pairwise(sigmas))
    assert min(sigmas) >= 0.4 * (1 - 1e-12)
    fine = torch.tensor([0.2, -0.3, 0.1, 0.2], dtype=torch.float64)
    torch.testing.assert_close(knots.allowed(fine), fine)


def test_a_free_table_starts_as_the_solver_and_is_always_consistent():
    shape = FreeTable(Multistep(), Knots(tuple(NODES), 0.2, 3.0))
    sigmas, weights = shape(shape.start())
    torch.testing.assert_close(weights, table_of(Multistep(), NODES))
    theta = 0.1 * torch.randn(len(shape.start()), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sigmas, weights = shape(shape.allowed(theta))
    torch.testing.assert_close(weights.sum(1), torch.cat([sigmas[1:], torch.zeros(1)]) - sigmas)
    assert (weights.triu(1) == 0).all()
    assert (weights - table_of(Multistep(), sigmas)).abs().max() > 0.01


def goals(model, sigmas, chunk=None, eps=None, cond=None):
    x = noise(7)
    return Goals(Recomputed(eps or model), x, torch.zeros_like(x), cond or {}, chunk=chunk)


def test_the_gradient_is_that_of_finite_differences_whatever_the_chunks():
    shape = FreeTable(Multistep(), Knots(tuple(NODES[:4]), 0.1, 3.0))
    theta = 0.02 * torch.arange(len(shape.start()), dtype=torch.float64)
    loss, slope = gradient(goals(mixture(), NODES), shape, theta)
    spy = Spy(mixture())
    again, in_parts = gradient(goals(mixture(), NODES, chunk=3, eps=spy), shape, theta)
    assert max(spy.rows) == 3
    torch.testing.assert_close(in_parts, slope)
    assert again == pytest.approx(loss)
    for i in range(len(theta)):
        step = torch.zeros_like(theta)
        step[i] = 1e-5
        ends = [goals(mixture(), NODES).errors(*shape(theta + sign * step)).log().mean() for sign in (1, -1)]
        assert ((ends[0] - ends[1]) / 2e-5).item() == pytest.approx(slope[i].item(), rel=1e-4, abs=1e-6)


class Wide(nn.Module):
    """A network that knows how many of its hidden layers are alive, and whether its weights want gradients."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layer = nn.Parameter(torch.randn(2, 50, generator=generator, dtype=torch.float64) / 9)
        self.fixed = nn.Parameter(torch.ones((), dtype=torch.float64), requires_grad=False)
        self.hidden, self.most, self.wanting = [], 0, set()

    def forward(self, x_t, t):
        hidden = torch.tanh(x_t @ self.layer) * self.fixed
        self.hidden.append(weakref.ref(hidden))
        self.most = max(self.most, sum(h() is not None for h in self.hidden))
        self.wanting.add(self.layer.requires_grad)
        return torch.tanh(hidden) @ self.layer.T + x_t / 2


@pytest.mark.parametrize("steps", [4, 12])
def test_what_the_network_keeps_does_not_grow_with_the_steps(steps):
    network = Wide()
    model = ods.Model(network, ods.VE(), sigma_min=0.1, sigma_max=3.0, data_shape=(2,))
    shape = FreeTable(Multistep(), Knots(tuple(geometric(steps - 1)), 0.1, 3.0))
    with frozen(model):
        gradient(goals(model, NODES), shape, shape.start())
    assert network.most <= 3


def test_the_weights_are_frozen_meanwhile_and_as_they_were_afterwards(monkeypatch):
    network = Wide()
    model = ods.Model(network, ods.VE(), sigma_min=0.1, sigma_max=3.0, data_shape=(2,))
    before = network.layer.detach().clone()
    with frozen(model):
        assert not network.layer.requires_grad
    network.wanting.clear()
    ods.tune(model, 3, **QUICK)
    assert torch.equal(network.layer, before)
    assert network.layer.grad is None
    assert [p.requires_grad for p in (network.layer, network.fixed)] == [True, False]

    def fails(*_):
        raise MemoryError

    monkeypatch.setattr(fitting, "gradient", fails)
    with pytest.raises(MemoryError):
        ods.tune(model, 3, **QUICK)
    assert [p.requires_grad for p in (network.layer, network.fixed)] == [True, False]


def test_the_validation_samples_choose_the_point_and_not_those_that_are_fitted():
    shape = FreeTable(Multistep(), Knots(tuple(NODES[:4]), 0.1, 3.0))
    start, base = shape.start(), goals(mixture(), NODES)
    [x] = run(by_table(base.start, *shape(start)), model=mixture())
    [other] = run(by_table(base.start, *shape(start + 0.2)), model=mixture())
    # the second is where no step towards the first leads, and further from the start than the first is
    train, away, near = (Goals(base.eps, base.start, truth, {}) for truth in (other, 4 * x - 3 * other, other + 1e-9))
    stage = fitting.Stage("s", shape, 20, 0.01, shape.allowed)
    for judge, stays in ((away, True), (near, False)):
        best, loss = fitting.descend(stage, start, train, judge, Resumable(None, {}), Clock(), lambda _: None)
        assert torch.equal(best, start) == stays
        assert loss == pytest.approx(judge.errors(*shape(best)).log().mean().item())


# ---- knots


def test_costs_are_local_errors_and_the_path_is_the_cheapest():
    generator = torch.Generator().manual_seed(0)
    nodes = geometric(5)
    walked = [tuple(torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)) for _ in nodes]
    cost = costs(walked, nodes)
    seen = [FRAME.seen(k, x, s) for (x, k), s in zip(walked, nodes, strict=True)]
    h, i, j = 1, 2, 4
    weights = exact(FRAME, log, nodes[i], nodes[j], [nodes[i], nodes[h]])
    x = FRAME.carried(nodes[i], nodes[j]) * walked[i][0] + float(weights[0]) * seen[i] + float(weights[1]) * seen[h]
    missed = ((x - walked[j][0]) / (1 + nodes[j])).square().mean(1).sqrt().mean()
    assert cost[h, i, j].item() == pytest.approx(missed.item())
    end = walked[-1][0] - nodes[-1] * walked[-1][1]
    into_zero = (walked[3][0] - nodes[3] * walked[3][1] - end).square().mean(1).sqrt().mean()
    assert cost[0, 3, -1].item() == pytest.approx(into_zero.item())
    assert cost[3, 2, 4].isinf()

    def total(path):
        before = [-1, *path]
        return sum(cost[h, i, j].item() for h, i, j in zip(before, path, path[1:], strict=False))

    last = len(nodes)
    paths = [(0, *inner, last) for inner in combinations(range(1, last), 2)]
    assert tuple(cheapest(cost, 3)) == min(paths, key=total)


# ---- the verb


@pytest.mark.parametrize(("problem", "steps"), [(mixture(), 5), (mixture8(), 8)])
def test_it_is_better_on_latents_that_it_has_not_seen(problem, steps):
    model = problem.model(ods.VP.linear())
    recipe = ods.tune(model, steps, **{**QUICK, "num_samples": 36, "iterations": 80})
    x = fresh(model)
    truth = truth_of(model, x)
    tuned, untuned = error(model, x, truth, solver=recipe), error(model, x, truth, num_steps=steps)
    best = min(error(model, x, truth, solver=s, num_steps=steps) for s in ("multistep", "unipc", "adams_pc"))
    assert tuned < 0.7 * untuned
    assert tuned < best
    assert isinstance(recipe.solver, Fitted)
    assert ods.sample(model, x=x, solver=recipe).nfe.tolist() == [steps] * len(x)
    measured = recipe.measured
    assert measured["validation"]["geometric_mean"] < measured["untuned"]["validation"]["geometric_mean"]
    assert measured["train"]["samples"] + measured["validation"]["samples"] == 36
    drawn = [seed for seeds in measured["seeds"].values() for seed in seeds]
    assert [*measured["seeds"]] == ["train", "validation", "test"]
    assert len(set(drawn)) == len(drawn)
    assert json.dumps(measured, allow_nan=False)


def test_what_it_says_of_itself_is_what_is_measured_again_on_the_same_seeds():
    model, steps = mixture8().model(ods.VP.linear()), 5
    measured = (recipe := ods.tune(model, steps, **QUICK)).measured
    for kind, seeds in measured["seeds"].items():
        rows = [s - seeds[0] for s in seeds]
        drawn = {"num_samples": rows[-1] + 1, "seed": seeds[0], "state_dtype": torch.float64}
        truth = ods.sample(model, solver="rk4", num_steps=200, grid="log_snr", **drawn).x[rows]
        for what, how in ((measured[kind], {"solver": recipe}), (measured["default"][kind], {"num_steps": steps})):
            missed = (ods.sample(model, **drawn, **how).x[rows] - truth).square().mean(1).sqrt()
            assert what["geometric_mean"] == pytest.approx(missed.log().mean().exp().item(), rel=1e-3)
            assert what["largest"] == pytest.approx(missed.max().item(), rel=1e-3)
        both = measured[kind]["median"], measured["default"][kind]["median"]
        assert (measured["ratio"] == pytest.approx(both[0] / both[1])) == (kind == "test")


def test_a_reference_that_is_not_much_more_exact_than_the_errors_is_warned_of():
    recipe = ods.tune(mixture8().model(ods.VP.linear()), 8, **{**QUICK, "reference_steps": 32, "iterations": 0})
    floor, median = recipe.measured["reference_floor"], recipe.measured["test"]["median"]
    assert (floor > median / 10) == ("give more reference_steps" in recipe.warning)
    assert "give more reference_steps" in unclear(2e-4, 1e-3)
    assert not unclear(0.9e-4, 1e-3)
    assert not unclear(1e-16, 1e-17)


def test_the_grid_from_local_errors_races_and_the_guard_compares_with_the_best_of_the_race(monkeypatch):
    raced, compared = [], []
    race, refusal = sampler.raced, sampler._refusal
    monkeypatch.setattr(sampler, "raced", lambda *a, **k: [raced.extend(a[1]), race(*a, **k)][1])
    monkeypatch.setattr(sampler, "_refusal", lambda *a: [compared.extend(a), refusal(*a)][1])
    measured, errors = [], sampler.errors_of  # first of all that ran on all latents, on those that validate
    monkeypatch.setattr(sampler, "errors_of", lambda *a, **k: [measured.append(errors(*a, **k)), measured[-1]][1])
    recipe = ods.tune(mixture8().model(ods.VP.linear()), 8, **QUICK)
    assert {solver for solver, plan in raced if plan.grid.name == "measured"} >= {"multistep", "unipc"}
    tuned, best = compared
    untuned = recipe.measured["untuned"]
    assert isinstance(tuned.solver, Fitted)
    assert (best.name, best.score) == (untuned["name"], untuned["validation"]["geometric_mean"])
    assert best.score == min(error.log().mean().exp().item() for error in measured[0])
    assert best.score < recipe.measured["default"]["validation"]["geometric_mean"]


def test_what_is_held_out_begins_at_latents_that_nothing_else_has(monkeypatch):
    seen, real = [], sampler.measured_held_out
    monkeypatch.setattr(sampler, "measured_held_out", lambda *a: [seen.append(a[0]), real(*a)][1])
    recipe = ods.tune(two_kinds(), 3, cond={"label": 0}, **{**QUICK, "iterations": 0})
    used = {seed for seeds in recipe.measured["seeds"].values() for seed in seeds}
    assert [len(task.seeds) for task in seen[0].values()] == [16, 16]
    assert not used & {seed for task in seen[0].values() for seed in task.seeds}


def test_knots_alone_leave_the_solver_as_it_is():
    recipe = ods.tune(ring(), 6, coefficients=False, **QUICK)
    assert isinstance(recipe.solver, Multistep)
    assert recipe.grid.name == "tuned"
    assert recipe.measured["validation"]["geometric_mean"] < recipe.measured["untuned"]["validation"]["geometric_mean"]


def test_the_same_seed_gives_the_same_recipe_and_another_does_not():
    found = [ods.tune(ring(), 5, seed=seed, **{**QUICK, "iterations": 12}) for seed in (3, 3, 4)]
    assert found[0] == found[1]
    assert found[0].grid != found[2].grid


@pytest.mark.parametrize("stop", [1, 7, 25])
def test_it_goes_on_after_a_kill_and_finds_the_same(stop, tmp_path, monkeypatch):
    path, calls, real = tmp_path / "unfinished.safetensors", [], fitting.gradient
    whole = ods.tune(ring(), 5, **QUICK)
    monkeypatch.setattr("odesampler.tuning.resumable.EVERY", 0.0)

    def killed(*given):
        calls.append(0)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(fitting, "gradient", killed)
    with pytest.raises(KeyboardInterrupt):
        ods.tune(ring(), 5, checkpoint=path, **QUICK)
    assert path.exists()
    with pytest.raises(ValueError, match="of something else, it differs in num_steps"):
        ods.tune(ring(), 6, checkpoint=path, **QUICK)
    before = len(calls)
    found = ods.tune(ring(), 5, checkpoint=path, out=tmp_path / "r.json", **QUICK)
    assert ods.Tuned.load(tmp_path / "r.json") == found
    assert found == whole
    assert found.measured["iterations"] == whole.measured["iterations"]
    assert len(calls) - before <= found.measured["iterations"] - stop + 1
    assert not path.exists()


def test_the_checkpoint_stays_until_the_recipe_is_written(tmp_path, monkeypatch):
    path, out, how = tmp_path / "c.safetensors", tmp_path / "r.json", {**QUICK, "iterations": 5}
    first = ods.tune(ring(), 5, checkpoint=path, **how)
    assert path.exists()  # nobody has the recipe but this process

    def full(*_):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(ods.Tuned, "save", full)
        with pytest.raises(OSError, match="disk is full"):
            ods.tune(ring(), 5, checkpoint=path, out=out, **how)
    assert path.exists()
    monkeypatch.setattr(fitting, "gradient", lambda *_: pytest.fail("it is known"))
    assert ods.tune(ring(), 5, checkpoint=path, out=out, **how) == first == ods.Tuned.load(out)
    assert not path.exists()


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    Resumable(path, {"a": 1}).once("x", lambda: torch.ones(3))
    assert Resumable(path, {"a": 1}).once("x", lambda: pytest.fail("it is known")).tolist() == [1, 1, 1]
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="damaged"):
        Resumable(path, {"a": 1})


def test_where_the_untuned_is_exact_already_it_is_kept_and_that_is_said():
    point = ods.exact.Gaussian(torch.tensor([0.5, -1.0]), 0.0).model()
    recipe = ods.tune(point, 3, **QUICK)
    assert not isinstance(recipe.solver, Fitted)
    assert "no better on the validation samples" in recipe.measured["refused"]
    assert recipe.warning.endswith("this is the best untuned solver")
    with pytest.warns(UserWarning, match="no better"):
        ods.sample(point, 1, solver=recipe)


def found(valid):
    error = torch.tensor(valid, dtype=torch.float64)
    return sampler.Found("", Euler(), ods.Grid((2.0, 1.0, 0.0)), None, error, error)


def test_a_table_that_blows_up_on_one_sample_is_refused_though_most_are_better():
    untuned = found([0.1, 0.2, 0.3])
    assert "blows up" in _refusal(found([0.001, 0.001, 5.0]), untuned)
    assert "blows up" in _refusal(found([0.001, 0.001, math.inf]), untuned)
    lost = replace(found([0.001, 0.001, 0.001]), train=torch.tensor([0.001, math.inf]))
    assert "blows up: inf" in _refusal(lost, untuned)
    assert "no better" in _refusal(found([0.1, 0.2, 0.3]), untuned)
    assert not _refusal(found([0.05, 0.1, 0.31]), untuned)


def two_kinds():
    """Label 0: a mixture; 1: another, much narrower one, at other places."""
    kinds = (mixture8(), ods.exact.GaussianMixture(-2 * mixture8().means, torch.full((5,), 1e-4)))
    networks = [kind.model(ods.VP.linear()).network for kind in kinds]

    def network(x_t, t, label):
        outs = [one(x_t, t) for one in networks]
        return torch.where(label[:, None] == 1, outs[1], outs[0])

    return ods.Model(network, ods.VP.linear(), data_shape=(8,), null_cond={"label": 0}, labels=("wide", "narrow"))


def test_what_was_not_tuned_for_is_measured_and_warned_of():
    model = two_kinds()
    recipe = ods.tune(model, 6, cond={"label": 0}, **QUICK)
    held = recipe.measured["held_out"]
    assert [*held] == ["label 1", "guidance 2"]
    x, cond = fresh(model), {"label": 1}
    truth = truth_of(model, x, cond=cond)
    assert {len(h["classes"]) for h in held.values()} == {0}
    ratios = {}
    for name, h in held.items():
        ratios[name] = h["ratio"]
        assert (name in recipe.warning) == (h["ratio"] > 1)
    with pytest.warns(UserWarning, match="worse than") if recipe.warning else nullcontext():
        tuned = error(model, x, truth, solver=recipe, cond=cond)
    ratio = tuned / error(model, x, truth, num_steps=6, cond=cond)
    assert ratio == pytest.approx(ratios["label 1"], rel=0.5)
    assert _warning({"label 1": {"ratio": 1.2}, "guidance 2": {"ratio": 0.8}}, "") == (
        "worse than the untuned default on what it was not tuned for: label 1 (1.2 times its error)"
    )
    assert not _warning({"label 1": {"ratio": 0.9}}, "")


def test_one_class_that_is_lost_is_warned_of_though_the_mean_is_better():
    lost = {"guidance 2": {"ratio": 0.8, "classes": {"0": 0.5, "1": 1.3}}}
    assert "guidance 2 (0.8 times its error; label 1 alone: 1.3 times)" in _warning(lost, "")
    assert not _warning({"guidance 2": {"ratio": 0.8, "classes": {"0": 0.5, "1": 1.0}}}, "")


def test_what_is_held_out_is_measured_class_by_class_with_four_samples_or_more_of_each():
    model = ods.Model(two_kinds().network, ods.VP.linear(), data_shape=(8,), null_cond={"label": 0}, labels=("a",) * 40)
    recipe = ods.tune(model, 3, cond={"label": [0, 1, 2] * 4}, **{**QUICK, "iterations": 0})
    others, again = recipe.measured["held_out"].values()
    assert [*again["classes"]] == ["0", "1", "2"]
    assert len(others["classes"]) == 13  # every third of the 37 others
    assert again["ratio"] == pytest.approx(math.prod(again["classes"].values()) ** (1 / 3))


def test_the_other_conditions_stay_where_the_class_is_held_out():
    asked = []

    def network(x_t, t, label, size):
        asked.append((label.unique().tolist(), size.unique().tolist()))
        return x_t / 2

    given = {"label": 0, "size": 0.0}
    model = ods.Model(network, ods.VP.linear(), data_shape=(2,), null_cond=given, labels=("a", "b"))
    ods.tune(model, 3, cond={"label": 0, "size": 7.0}, **{**QUICK, "iterations": 0})
    assert ([1], [7.0]) in asked
    assert not any(label == [1] and 7.0 not in size for label, size in asked)


def test_what_is_held_out_keeps_the_conditions_that_it_does_not_name():
    asked = []

    def network(x_t, t, label, size):
        asked.append(set(zip(label.tolist(), size.tolist(), strict=True)))
        return x_t / 2

    model = ods.Model(
        network, ods.VP.linear(), data_shape=(2,), null_cond={"label": 0, "size": 0.0}, labels=("a", "b", "c")
    )
    others = [{"cond": {"label": 1}}, {"cond": {"label": 2}, "guidance_scale": 1.0}, {"cond": {"size": 5.0}}]
    cond = {"label": 0, "size": [7.0, 8.0] * 6}
    recipe = ods.tune(model, 3, cond=cond, held_out=others, **{**QUICK, "iterations": 0})
    assert [*recipe.measured["held_out"]] == ["label 1", "label 2; guidance 1", "size 5.0"]
    assert set.union(*asked) == {(label, size) for label in (0, 1, 2) for size in (7.0, 8.0)} | {(0, 5.0)}


def failing(where):
    """A mixture under a label; of label 1 the answer is NaN where `where` says so of t."""
    kind = mixture8().model(ods.VP.linear()).network

    def network(x_t, t, label):
        bad = (label == 1) & where(t)
        return kind(x_t, t).masked_fill(bad[:, None], math.nan)

    return ods.Model(network, ods.VP.linear(), data_shape=(8,), null_cond={"label": 0}, labels=("a", "b"))


def test_what_is_held_out_and_fails_is_said_and_loses_nothing(tmp_path):
    model = failing(lambda t: t < math.inf)
    path = tmp_path / "c.safetensors"
    out = tmp_path / "r.json"
    recipe = ods.tune(model, 3, cond={"label": 0}, checkpoint=path, out=out, **{**QUICK, "iterations": 5})
    assert "could not be measured on label 1 (the reference solve" in recipe.warning
    assert recipe.measured["held_out"]["guidance 2"]["ratio"] > 0
    assert "failed" in recipe.report.table() + str(recipe.report.sections()[1].table)
    assert ods.Tuned.load(out) == recipe
    assert not path.exists()


def test_settings_that_are_called_the_same_are_numbered_and_both_are_measured():
    model, other = two_kinds(), [{"guidance_scale": ods.Guidance(2.0)}, {"guidance_scale": ods.Guidance(2.0)}]
    recipe = ods.tune(model, 3, cond={"label": 0}, held_out=other, **{**QUICK, "iterations": 0})
    first, second = recipe.measured["held_out"]
    assert second == f"{first} (2)"


def test_where_every_solver_fails_that_is_said_and_numbers_that_are_none_can_be_saved(monkeypatch):
    def lost(model, plans, samples, truth, **_):
        return [torch.full((len(truth),), math.inf, dtype=torch.float64) for _ in plans]

    monkeypatch.setattr(sampler, "errors_of", lost)
    with pytest.raises(FloatingPointError, match="every solver fails"):
        ods.tune(ring(), 3, **QUICK)
    assert as_json({"a": {"b": math.inf}, "c": 1.0, "d": math.nan}) == {"a": {"b": "inf"}, "c": 1.0, "d": "nan"}


@pytest.mark.parametrize("what", ["x", "cond", "held_out"])
def test_a_checkpoint_knows_its_latents_and_conditions_whatever_their_sum(what, tmp_path, monkeypatch):
    model, path, x = two_kinds(), tmp_path / "c.safetensors", torch.zeros(6, 8, dtype=torch.float64)
    how = {"x": x, "cond": {"label": 0}, "held_out": [{"cond": {"label": [0, 1] * 8}}], "checkpoint": path}
    changed = {
        "x": torch.cat([x[:4], x[4:] + torch.tensor([[1.0], [-1.0]])]),
        "cond": {"label": [0, 0, 0, 0, 0, 1]},
        "held_out": [{"cond": {"label": [0] + [1] * 15}}],
    }

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sampler, "_race", killed)
    with pytest.raises(KeyboardInterrupt):
        ods.tune(model, 3, iterations=0, reference_steps=20, **how)
    with pytest.raises(ValueError, match=f"differs in {'samples' if what == 'x' else what}"):
        ods.tune(model, 3, iterations=0, reference_steps=20, **{**how, what: changed[what]})


@pytest.mark.filterwarnings("ignore:worse on the test latents")  # on four; below it is twenty
def test_under_guidance_it_is_the_guided_model_that_is_tuned_for():
    model = two_kinds()
    recipe = ods.tune(model, 5, cond={"label": 1}, guidance_scale=1.5, held_out=(), **QUICK)
    assert recipe.measured["guidance_scale"] == 1.5
    x, how = fresh(model), {"cond": {"label": 1}, "guidance_scale": 1.5}
    truth = truth_of(model, x, **how)
    assert error(model, x, truth, solver=recipe, **how) < error(model, x, truth, num_steps=5, **how)


def test_models_that_start_at_infinity_are_tuned_too():
    model = mixture8().model(ods.RectifiedFlow(), prediction="flow")
    recipe = ods.tune(model, 6, **{**QUICK, "num_samples": 24, "iterations": 60})
    assert recipe.grid[0] == math.inf
    x = fresh(model)
    truth = ods.sample(model, x=x, solver="rk4", num_steps=300, state_dtype=torch.float64).x
    assert error(model, x, truth, solver=recipe) < 0.9 * error(model, x, truth, num_steps=6)


def test_a_budget_ends_it_and_that_is_said():
    recipe = ods.tune(ring(), 5, budget=1e-3, **QUICK)
    assert recipe.measured["cut_short_by_budget"]
    assert recipe.measured["iterations"] == 0
    assert recipe.warning.startswith("nothing was fitted, since the budget was spent before; this is the best untuned")
    clock = Clock(limit=10.0, earlier=11.0)
    assert clock.over()


def test_to_encode_the_latents_alone_become_better():
    model = mixture8().model(ods.VP.linear())
    images = mixture8().sample(24, seed=3)
    recipe = ods.tune(model, 8, task="encode", images=images, iterations=25, reference_steps=60)
    others = mixture8().sample(12, seed=9)
    trips = {}
    for name, how in (("tuned", {"solver": recipe}), ("usual", {"num_steps": 8})):
        latent = ods.encode(model, others, **how)
        assert (ods.decode(model, latent).x - others).abs().max() < 1e-8
        with pytest.warns(UserWarning, match="no memory"):
            back = ods.decode(model, latent.without_memory()).x
        trips[name] = (back - others).square().mean(1).sqrt().log().mean().exp().item()
    assert recipe.measured["ratio"] < 0.9
    assert recipe.measured["evaluations"] == {"encode": 9, "decode": 9}  # where alf begins alone, it asks for its slope
    assert trips["tuned"] < trips["usual"]
    assert len(recipe.report.sections()) == 2
    assert recipe.grid[-1] > 0


def test_the_errors_of_an_encoder_are_of_images_by_which_nothing_was_chosen(monkeypatch):
    model, images = mixture8().model(ods.VP.linear()), mixture8().sample(24, seed=3)
    how = {"task": "encode", "iterations": 20, "reference_steps": 60}
    searched, real = [], encoder._searched
    monkeypatch.setattr(encoder, "_searched", lambda *a: [searched.append(a[2]), real(*a)][1])
    recipe = ods.tune(model, 8, images=images, **how)
    measured = recipe.measured
    assert searched == [[*range(0, 24, 2)]]
    assert [measured[kind]["samples"] for kind in ("train", "validation", "test")] == [12, 6, 6]
    losses = []
    for way in ({"solver": recipe}, {"num_steps": 8}):
        latent = ods.encode(model, images[3::4], **way)
        truth = ods.encode(model, images[3::4], solver="rk4", num_steps=400).x
        with pytest.warns(UserWarning, match="no memory"):
            back = ods.decode(model, latent.without_memory()).x
        both = [(a - b).square().mean(1).sqrt() for a, b in ((back, images[3::4]), (latent.x, truth))]
        losses.append(torch.cat(both).log().mean().item())
        said = measured["test"] if "solver" in way else measured["default"]["test"]
        assert [said[k]["median"] for k in ("round_trip", "latent")] == pytest.approx(
            [v.quantile(0.5).item() for v in both], rel=1e-3
        )
    assert measured["ratio"] == pytest.approx(math.exp(losses[0] - losses[1]), rel=1e-3)
    other = images.clone()
    other[3::4] = mixture8().sample(6, seed=8)
    again = ods.tune(model, 8, images=other, **how)
    assert (again.solver, again.grid) == (recipe.solver, recipe.grid)
    assert again.measured["test"] != measured["test"]


def test_the_encoder_is_the_default_where_nothing_better_was_found():
    model, images = mixture8().model(ods.VP.linear()), mixture8().sample(8, seed=3)
    recipe = ods.tune(model, 8, task="encode", images=images, iterations=0, reference_steps=60)
    assert recipe.solver == ods.ALF()
    assert recipe.measured["ratio"] == 1


SPY = Spy(mixture())
MODEL = ods.Model(SPY, ods.VP.linear(), data_shape=(2,), name="spied")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"num_steps": 1}, "one step leaves nothing to tune"),
        ({"num_steps": 2.5}, "whole number"),
        ({"task": "decode"}, "task must be one of sample, encode"),
        ({"num_samples": 5}, "needs 6 samples or more"),
        ({"task": "encode", "images": torch.zeros(7, 2)}, "needs 8 samples or more"),
        ({"iterations": -1}, "iterations must be"),
        ({"iterations": True}, "iterations must be"),
        ({"budget": 0}, "budget must be"),
        ({"budget": True}, "budget must be"),
        ({"reference_steps": 17}, "must be even"),
        ({"reference_steps": 14}, "4 times num_steps or more"),
        ({"max_batch": "auto"}, "give a number"),
        ({"max_batch": 0}, "max_batch"),
        ({"x": torch.zeros(8, 3)}, "must have shape"),
        ({"images": torch.zeros(8, 2)}, 'for task="encode"'),
        ({"task": "encode"}, "tunes on images"),
        ({"task": "encode", "images": torch.zeros(8, 2), "held_out": [{"guidance_scale": 2}]}, "for samplers"),
        ({"guidance_scale": 2.0}, "null condition"),
        ({"held_out": [{"guidance_scale": 2.0}]}, "null condition"),
        ({"held_out": [{"cond": {"colour": 2}}]}, "has cond colour, but spied is tuned with no conditions"),
        ({"held_out": [{"label": 2}]}, 'a setting of held_out has "cond"'),
        ({"checkpoint": "c.json"}, r"as \.safetensors"),
        ({"out": "r.txt"}, r"as \.json"),
        ({"out": "/nowhere/r.json"}, "folder of /nowhere/r.json does not exist"),
        ({"checkpoint": "/nowhere/c.safetensors"}, "does not exist"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_the_model_is_asked(how, said):
    with pytest.raises(ValueError, match=said):
        ods.tune(MODEL, **{"num_steps": 4, **how})
    assert SPY.calls == 0


def test_a_folder_is_no_place_for_a_recipe_and_that_is_said_before_the_work(tmp_path):
    (tmp_path / "r.json").mkdir()
    with pytest.raises(ValueError, match=r"r\.json is a folder"):
        ods.tune(MODEL, 4, out=tmp_path / "r.json")
    assert SPY.calls == 0


def test_whether_the_weights_are_fitted_is_yes_or_no():
    with pytest.raises(TypeError, match="coefficients must be True or False; got 'no'"):
        ods.tune(MODEL, 4, coefficients="no")


def test_no_call_has_more_rows_than_max_batch_from_the_race_to_the_fit():
    spy = Spy(mixture())
    model = ods.Model(spy, ods.VP.linear(), data_shape=(2,), prediction="eps")
    ods.tune(model, 3, max_batch=3, **{**QUICK, "iterations": 5, "reference_steps": 20})
    assert max(spy.rows) == 3


def test_an_encoder_that_loses_one_image_or_gains_next_to_nothing_is_refused():
    def missed(trip, latent):
        return encoder.Missed(torch.tensor(trip), torch.tensor(latent), torch.zeros(2, 1), (2, 2))

    before = missed([0.1, 0.2], [0.1, 0.2])
    assert "blows up" in encoder._refusal(missed([0.001, 0.7], [0.001, 0.001]), before)
    assert "blows up" in encoder._refusal(missed([0.001, 0.001], [0.001, math.inf]), before)
    assert "no better" in encoder._refusal(missed([0.0995, 0.199], [0.0995, 0.199]), before)
    assert not encoder._refusal(missed([0.098, 0.196], [0.098, 0.196]), before)


def test_conditions_that_are_samples_long_are_split_with_them():
    model = labelled()
    model = ods.Model(model.network, model.schedule, null_cond={"label": 0.0}, data_shape=(2,))
    recipe = ods.tune(model, 4, cond={"label": [0.1 * i for i in range(12)]}, held_out=(), **QUICK)
    assert recipe.measured["held_out"] == {}
    assert recipe.measured["ratio"] < 1


def test_the_report_shows_grids_errors_and_samples(tmp_path):
    recipe = ods.tune(ring(), 5, progress=True, **QUICK)
    report = recipe.report
    assert [s.title for s in report.sections()] == [report.title, "Sample by sample"]
    assert [r["solver"].partition(":")[0] for r in report.records()] == ["default", "best untuned", "tuned"]
    text = report.to_html(tmp_path / "page.html")
    assert text.count("<svg") == 2


def test_the_pictures_are_of_test_latents_each_end_with_its_error_and_what_it_misses():
    eps = mixture8().model(ods.VP.linear()).network

    def network(x_t, t):
        return eps(x_t.flatten(1), t).reshape(x_t.shape)

    model = ods.Model(network, ods.VP.linear(), data_shape=(1, 2, 4))
    recipe = ods.tune(model, 5, **{**QUICK, "iterations": 60})
    images, seeds = recipe.report.images, recipe.measured["seeds"]["test"]
    ways = {"reference": {"solver": "rk4", "num_steps": 200, "grid": "log_snr"}, "tuned": {"solver": recipe}}
    ways |= {"default": {"num_steps": 5}}
    missed = []
    for name, how in ways.items():
        x = ods.sample(model, len(seeds), seed=seeds[0], state_dtype=torch.float64, **how).x
        shown = next(image for key, image in images.items() if key.startswith(name))
        torch.testing.assert_close(shown, x, rtol=0, atol=1e-5)
        missed.append((shown - images["reference"]).square().mean((1, 2, 3)).sqrt().quantile(0.5).item())
    assert [*images] in (
        ["reference", "tuned", "default", "best untuned"],
        ["reference", "tuned", "default\n= best untuned"],
    )
    section = recipe.report.sections()[-1]
    assert section.title == "Pictures at 5 steps"
    names = [axis.get_ylabel() for axis in section.draw().axes if axis.get_ylabel()]
    assert names[0] == "reference"
    assert len(names) == 2 * len(images) - 1
    assert names[1] == f"tuned\n{missed[1]:.1e}"
    assert names[2].endswith(f"\n{missed[2]:.1e}")
    assert missed[1] < missed[2]


@pytest.mark.filterwarnings("ignore::UserWarning")  # so few iterations may find nothing, which is said
def test_the_command_writes_a_recipe_that_sample_takes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(shlex.split("tune --steps 4 --num 9 --iterations 12 --reference-steps 20 --out r.json --report r.html"))
    assert stopped.value.code == 0
    assert "recipe: r.json" in capsys.readouterr().out
    assert (tmp_path / "r.html").read_text().count("<svg") >= 3
    with pytest.raises(SystemExit) as stopped:
        main(["sample", "--solver", "r.json", "--num", "2", "--label", "3"])
    assert stopped.value.code == 0
    assert "4 evaluations each" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["tune", "picture.png", "--steps", "4"])
    assert stopped.value.code == 2
