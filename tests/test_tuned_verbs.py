"""Recipes in every verb: what comes out is what their solver gives on their grid, or the verb says why it cannot."""

import shlex

import pytest
import torch
from safetensors.torch import load_file

import odesampler as ods
from odesampler.cli import main
from tests.test_tuned import adams

MODEL, EMBEDDED = ods.load("digits"), ods.load("digits", embedded=True)
IMAGES = ods.held_out("digits").images[:2]
DOWN = ods.Grid(ods.make_grid("power", MODEL.schedule, 5, into_zero=True).sigmas, "tuned")  # no verb's default
UP = ods.Grid(DOWN.sigmas[:-1], "tuned")


def recipe(solver, grid, model=MODEL, task="encode"):
    return ods.Tuned(solver, grid, model=model.name, fingerprint=model.fingerprint(), task=task)


SAMPLER, EULER = recipe(adams(DOWN.sigmas), DOWN, task="sample"), recipe(ods.Euler(), UP, EMBEDDED)
ALF, ADAMS = recipe(ods.ALF(), UP), recipe(ods.Multistep("noise"), UP)


def sampled(folder, how):
    ods.sample_many(MODEL, 2, folder, kind="safetensors", **how)
    return load_file(folder / "00000.safetensors")["x"]


def encoded(folder, how):
    ods.images.save_each(IMAGES, folder / "in")
    ods.encode_many(MODEL, folder / "in", folder / "out", **how)
    return ods.Latent.load(folder / "out" / "00000.safetensors").x


def between(how):
    a, b = (ods.encode(MODEL, image[None], **how) for image in IMAGES)
    return ods.decode(MODEL, ods.interpolate(a, b, 3)).x


def plane(how):
    found = ods.trajectory_plane(MODEL, [how["solver"]], grid=how.get("grid"), reference_steps=50)
    return found.paths[0].outside


def null_text(how):
    cond = {"embedding": EMBEDDED.network.embed(torch.tensor([0, 1]))}
    return ods.null_text(EMBEDDED, IMAGES, cond=cond, guidance_scale=2.0, inner_steps=2, **how)


def both(**how):
    return ods.encode(MODEL, IMAGES, **how)


SAME = {  # verb -> a recipe, and what comes of a way to solve
    "sample": (SAMPLER, lambda how, _: ods.sample(MODEL, 2, **how).x),
    "sample_many": (SAMPLER, lambda how, folder: sampled(folder, how)),
    "interpolation_grid": (SAMPLER, lambda how, _: ods.interpolation_grid(MODEL, (0, 1), 3, **how).x),
    "trajectory_plane": (SAMPLER, lambda how, _: plane(how)),
    "encode": (ALF, lambda how, _: both(**how).x),
    "decode": (ALF, lambda how, _: ods.decode(MODEL, both(**how).without_memory()).x),
    "interpolate": (ADAMS, lambda how, _: between(how)),
    "encode_many": (ADAMS, lambda how, folder: encoded(folder, how)),
    "log_likelihood": (ADAMS, lambda how, _: ods.log_likelihood(MODEL, IMAGES, check=False, **how).log_p),
    "estimate_round_trip": (ADAMS, lambda how, _: ods.estimate_round_trip(MODEL, IMAGES, **how).records()),
    "diagnose": (ADAMS, lambda how, _: ods.diagnose(MODEL, both(**how)).records()),
    "polish": (ADAMS, lambda how, _: ods.polish(MODEL, IMAGES, both(**how), sweeps=1).x),
    "polish, encoder": (
        ADAMS,
        lambda how, _: ods.polish(
            MODEL, IMAGES, both(solver="ddim", grid=UP), encoder=how["solver"], sweeps=1
        ).x,
    ),
    "null_text": (EULER, lambda how, _: null_text(how).null["embedding"]),
}  # fmt: skip
REFUSED = {  # verb -> how it is asked, and why it cannot
    "consistency": (lambda: ods.consistency(MODEL, solver=SAMPLER), "tuned for the steps of its grid, and latents are"),
    "error_sources": (lambda: ods.error_sources(MODEL, IMAGES, solver=ADAMS), "its grid, which cannot be doubled"),
    "null_text": (lambda: null_text({"solver": ADAMS}), "each step alone, .* one-step solver, solver='ddim', grid="),
    "null_text, reversible": (lambda: null_text({"solver": ALF}), "for each step alone"),
    "log_likelihood": (lambda: ods.log_likelihood(MODEL, IMAGES, solver=ALF), "not exactly invertible"),
    "estimate_round_trip": (lambda: ods.estimate_round_trip(MODEL, IMAGES, solver=ALF), "undoes its own steps exactly"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")  # so few steps
@pytest.mark.parametrize("verb", SAME)
def test_a_recipe_gives_what_its_solver_gives_on_its_grid(verb, tmp_path):
    tuned, ask = SAME[verb]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    tuned.save(tmp_path / "r.json")
    found = ask({"solver": str(tmp_path / "r.json")}, tmp_path / "a")
    wanted = ask({"solver": tuned.solver, "grid": tuned.grid}, tmp_path / "b")
    if isinstance(found, torch.Tensor):
        assert torch.equal(found, wanted)
        assert found.abs().max() > 0
    else:
        assert str(found) == str(wanted)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tables_of_solvers_walk_a_recipe_in_its_own_number_of_steps():
    compared = ods.compare(MODEL, [SAMPLER, "ddim"], [7], num_samples=2, reference_steps=40)
    assert [c.nfe.max().item() for c in compared.cells] == [5, 7]
    assert ods.error_maps(compared).maps.shape == (2, 8, 8)
    trips = ods.round_trip(MODEL, IMAGES, solvers=[ADAMS, "ddim"], num_steps=[7])
    assert [t.nfe for t in trips.trips] == [2 * (len(UP) - 1), 14]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("verb", REFUSED)
def test_where_a_recipe_cannot_be_taken_that_is_said(verb, monkeypatch):
    ask, said = REFUSED[verb]
    monkeypatch.setattr(ods.Model, "__call__", lambda *_, **__: pytest.fail("the model was asked"))
    with pytest.raises(ValueError, match=said):
        ask()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "command",
    [
        "sample --solver down.json --num 2",
        "encode --solver up.json --num 2",
        "roundtrip --solver up.json --solver ddim --steps 5 --num 2",
        "compare --solvers down.json,ddim --steps 6 --num 2 --reference-steps 40",
        "likelihood --solver up.json --num 2 --no-check",
        "interpolate --solver down.json --seeds 0,1 --num 3",
    ],
)
def test_commands_take_recipes(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    SAMPLER.save("down.json")
    ADAMS.save("up.json")
    with pytest.raises(SystemExit) as stopped:
        main(shlex.split(command))
    assert stopped.value.code == 0, capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(shlex.split(command.replace("down.json", "none.json").replace("up.json", "none.json")))
    assert stopped.value.code == 2
