"""Fitted tables of weights, and recipes that bring their grid along."""

import json
from itertools import pairwise

import pytest
import torch

import odesampler as ods
from odesampler.drive import run
from odesampler.integrate import OnGrid, solve
from odesampler.plan import make_plan
from odesampler.program import State
from odesampler.registry import find_solver, spec_of
from odesampler.solvers import Fitted, Multistep
from odesampler.tuned import Tuned
from tests.problems import geometric, mixture, noise

MODEL = mixture().model(ods.VP.linear())
GRID = ods.make_grid("log_snr", MODEL.schedule, 6, into_zero=True)
X = torch.randn(3, *MODEL.data_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def adams(sigmas, slope=0.5):
    """A table: Euler's first step, and then two points."""
    lengths = [b - a for a, b in pairwise(sigmas)]
    return Fitted(tuple(sigmas), ((lengths[0],), *(((1 + slope) * h, -slope * h) for h in lengths[1:])))


def tuned(solver=None, grid=GRID, **more):
    told = {"model": MODEL.name, "fingerprint": MODEL.fingerprint(), **more}
    return Tuned(adams(grid.sigmas) if solver is None else solver, grid, **told)


def solved(solver, sigmas, x=None):
    return run(solve(OnGrid(solver), State(noise() if x is None else x), sigmas), model=mixture())[0].state.x


def test_a_table_is_what_it_says():
    sigmas, eps = [3.0, 1.0, 0.4, 0.0], mixture()
    table = Fitted(tuple(sigmas), ((-2.0,), (-1.0, 0.4), (-0.5, 0.3, -0.2)))
    x0 = noise()
    k0 = eps(x0, 3.0)
    x1 = x0 - 2 * k0
    k1 = eps(x1, 1.0)
    x2 = x1 - k1 + 0.4 * k0
    k2 = eps(x2, 0.4)
    torch.testing.assert_close(solved(table, sigmas), x2 - 0.5 * k2 + 0.3 * k1 - 0.2 * k0, rtol=0, atol=1e-13)


@pytest.mark.parametrize("sigmas", [geometric(5), geometric(4)[::-1], [2.0, 1.0, 0.5]], ids=["other", "up", "few"])
def test_off_its_table_it_is_the_exponential_adams_method(sigmas):
    off = solved(adams([5.0, 3.0, 2.0, 0.1]), sigmas)
    torch.testing.assert_close(off, solved(Multistep("noise", "log_sigma", 2, 0), sigmas), rtol=0, atol=1e-13)


def test_a_solve_that_joins_the_grid_in_the_middle_counts_no_eps_that_it_has_not_seen():
    table = Fitted((3.0, 1.0, 0.4, 0.2), ((-2.0,), (-1.0, 0.4), (-0.2,)))
    joined = solved(table, [1.0, 0.4, 0.2])
    euler = solved(ods.Euler(), [1.0, 0.4])
    torch.testing.assert_close(joined, solved(ods.Euler(), [0.4, 0.2], euler), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("sigmas", "weights", "said"),
    [
        ((3.0, 1.0), (), "2 sigmas, 0 rows"),
        ((1.0, 3.0), ((2.0,),), "must fall"),
        ((3.0, 1.0, -1.0), ((-2.0,), (-2.0,)), "0 or more"),
        ((float("inf"), 1.0), ((-2.0,),), "finite"),
        ((3.0, 1.0), ((-1.9,),), "not consistent: step 0 from 3 to 1 has -1.9"),
        ((3.0, 1.0), ((float("nan"),),), "not consistent"),
        ((3.0, 1.0), ((-1.0, -1.0),), "step 0 has 1 values of eps to count; got 2"),
        ((3.0, 1.0, 0.5), ((-2.0,), ()), "step 1 has 2 values of eps to count; got 0"),
    ],
)
def test_a_table_that_is_none_is_refused(sigmas, weights, said):
    with pytest.raises(ValueError, match=said):
        Fitted(sigmas, weights)


def test_a_table_has_a_name_from_which_it_is_found():
    table = adams([3.0, 1.0, 0.4, 0.0])
    assert find_solver(spec_of(table)) == table


def test_a_tuned_solver_brings_its_grid_along():
    found = ods.sample(MODEL, x=X, solver=tuned(), state_dtype=torch.float64)
    wanted = ods.sample(MODEL, x=X, solver=adams(GRID.sigmas), grid=GRID, state_dtype=torch.float64)
    assert torch.equal(found.x, wanted.x)
    assert found.nfe.tolist() == [6] * 3


def test_it_works_from_its_file_and_is_the_same(tmp_path):
    path, made = tmp_path / "recipe.json", tuned(measured={"error": 0.1}, start="unipc on log_snr")
    made.save(path)
    back = Tuned.load(path)
    assert back == made
    assert back.measured == {"error": 0.1}
    assert json.loads(path.read_text())["solver"] == "fitted"
    found = ods.sample(MODEL, x=X, solver=str(path), state_dtype=torch.float64).x
    assert torch.equal(found, ods.sample(MODEL, x=X, solver=made, state_dtype=torch.float64).x)


def test_a_solver_with_a_name_is_kept_by_it(tmp_path):
    made = tuned(ods.ALF(coordinate="flow_asinh", delta=0.05), GRID)
    made.save(tmp_path / "r.json")
    assert Tuned.load(tmp_path / "r.json") == made


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"format": "odesampler.tuned/9"}',
        '{"format": "odesampler.tuned/1", "sigmas": [1, 2, 0]}',
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ValueError, match=r"r\.json is no tuned solver, or a damaged one"):
        ods.sample(MODEL, 1, solver=str(tmp_path / "r.json"))
    with pytest.raises(FileNotFoundError):
        ods.sample(MODEL, 1, solver=str(tmp_path / "none.json"))
    with pytest.raises(ValueError, match=r"as \.json"):
        tuned().save(tmp_path / "r.txt")


def test_a_damaged_table_is_refused(tmp_path):
    tuned().save(tmp_path / "r.json")
    held = json.loads((tmp_path / "r.json").read_text())
    held["fitted"]["weights"][2][0] *= 1.01
    (tmp_path / "r.json").write_text(json.dumps(held))
    with pytest.raises(ValueError, match=r"damaged one: .*not consistent"):
        Tuned.load(tmp_path / "r.json")


@pytest.mark.parametrize("damage", ["moved", "cut", "reversed", "no table"])
def test_a_table_that_is_not_of_its_grid_is_refused_and_not_walked_by_another_method(damage, tmp_path):
    tuned().save(tmp_path / "r.json")
    held = json.loads((tmp_path / "r.json").read_text())
    sigmas = held["sigmas"]
    others = {"moved": [*sigmas[:2], 1.01 * sigmas[2], *sigmas[3:]], "cut": sigmas[:-1], "reversed": sigmas[::-1]}
    held |= {"sigmas": others[damage]} if damage in others else {"fitted": {}}
    (tmp_path / "r.json").write_text(json.dumps(held))
    with pytest.raises(ValueError, match=r"damaged one: its table of weights is for other sigmas"):
        Tuned.load(tmp_path / "r.json")


@pytest.mark.parametrize(
    ("how", "said"),
    [({"num_steps": 7}, "6 transitions"), ({"grid": "karras"}, "brings its grid"), ({"rtol": 1e-3}, "fixed grid")],
)
def test_what_would_have_no_effect_is_refused(how, said):
    with pytest.raises(ValueError, match=said):
        ods.sample(MODEL, 1, solver=tuned(), **how)


def test_another_model_than_it_was_tuned_for_is_told_of():
    with pytest.warns(UserWarning, match="was tuned for Other"):
        ods.sample(MODEL, x=X, solver=tuned(model="Other", fingerprint="f"))


def test_what_its_user_should_know_is_said():
    with pytest.warns(UserWarning, match="held out"):
        ods.sample(MODEL, x=X, solver=tuned(warning="worse than untuned on classes held out"))


def test_a_grid_that_starts_at_infinity_is_kept(tmp_path):
    model = mixture().model(ods.RectifiedFlow(), prediction="flow")
    grid = ods.make_grid("power(rho=1.5)", model.schedule, 5, into_zero=True)
    made = Tuned(adams(grid.sigmas[1:]), grid, model=model.name, fingerprint=model.fingerprint())
    made.save(tmp_path / "r.json")
    found = ods.sample(model, x=X, solver=str(tmp_path / "r.json"), state_dtype=torch.float64)
    assert Tuned.load(tmp_path / "r.json") == made
    assert found.nfe.tolist() == [5] * 3


def test_every_verb_takes_it():
    recipe, images = tuned(task="encode"), X[:2]
    latent = ods.encode(MODEL, images, solver=recipe)
    assert ods.decode(MODEL, latent).x.shape == images.shape
    table = ods.compare(MODEL, [tuned(), "unipc"], [6], num_samples=2, reference_steps=200)
    assert {c.nfe.max().item() for c in table.cells} == {6}
    assert len(ods.round_trip(MODEL, images, solvers=[recipe, "heun"], num_steps=[5]).records()) == 2
    assert ods.estimate_round_trip(MODEL, images, solver=recipe).records()
    with pytest.raises(ValueError, match="cannot be doubled"):
        ods.error_sources(MODEL, images, solver=recipe)


def test_a_latent_remembers_the_table(tmp_path):
    images = X
    recipe = tuned(task="encode")
    latent = ods.encode(MODEL, images, solver=recipe)
    latent.save(tmp_path / "l.safetensors")
    back = ods.Latent.load(tmp_path / "l.safetensors")
    assert torch.equal(ods.decode(MODEL, back).x, ods.decode(MODEL, latent).x)
    assert make_plan(MODEL, recipe, num_steps=None, grid=None, rtol=None, atol=None, into_zero=False).grid[-1] > 0


def test_a_recipe_that_was_tuned_for_the_other_direction_says_so():
    with pytest.warns(UserWarning, match='upward its table says nothing.*task="encode"'):
        ods.encode(MODEL, X, solver=tuned())
    with pytest.warns(UserWarning, match='tuned to sample; to encode, tune with task="encode"'):
        ods.encode(MODEL, X, solver=tuned(ods.ALF()))
    down = ods.Grid(GRID.sigmas[:-1], "tuned")
    with pytest.warns(UserWarning, match=f"samples end at its sigma_min, {down[-1]:g}"):
        ods.sample(MODEL, x=X, solver=tuned(ods.ALF(), down, task="encode"))


def test_the_task_is_in_the_file_and_files_of_before_were_tuned_to_sample(tmp_path):
    path = tmp_path / "r.json"
    tuned(task="encode").save(path)
    assert Tuned.load(path).task == "encode"
    held = json.loads(path.read_text())
    path.write_text(json.dumps({**held, "task": "decode"}))
    with pytest.raises(ValueError, match="its task is 'decode'"):
        Tuned.load(path)
    del held["task"]
    path.write_text(json.dumps(held))
    assert Tuned.load(path).task == "sample"


def test_a_file_that_names_a_file_as_its_solver_is_damaged(tmp_path):
    path = tmp_path / "r.json"
    tuned().save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "solver": str(path)}))
    with pytest.raises(ValueError, match=r"damaged one: its solver is .*another file"):
        Tuned.load(path)
