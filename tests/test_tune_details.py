"""Tuning: what ends a fit and what it may look at, how many starts it has, where knots may be, clocks, axes."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

import odesampler as ods
from odesampler.solvers import Multistep
from odesampler.tuning import encoder, fitting, sampler
from odesampler.tuning.fitting import Clock, Goals, Recomputed, Stage, descend
from odesampler.tuning.resumable import Resumable
from odesampler.tuning.shapes import FreeTable, Knots
from tests.problems import geometric, mixture, noise
from tests.test_tune import QUICK, mixture8, ring, two_kinds

NODES = geometric(4)
SHAPE = FreeTable(Multistep(), Knots(tuple(NODES), 0.1, 3.0))


def question_of(path):
    with safe_open(str(path), "pt") as file:
        return json.loads(file.metadata()["question"])


def goals():
    x = noise(6)
    return Goals(Recomputed(mixture()), x, torch.zeros_like(x), {})


def fitted(stage, valid=None, saved=None):
    saved = saved or Resumable(None, {})
    best, loss = descend(stage, SHAPE.start(), goals(), valid or goals(), saved, Clock(), lambda _: None)
    return best, loss, saved.facts[stage.name]


def test_a_fit_that_gets_no_better_ends_after_half_of_its_iterations(monkeypatch):
    monkeypatch.setattr(fitting, "_valued", lambda *_: 1.0)
    *_, state = fitted(Stage("s", SHAPE, 20, 0.01, SHAPE.allowed))
    assert state["done"] == 11  # the first that is more than half of them behind the best, the start


def test_what_is_fitted_has_no_gradients_of_the_validation_latents(monkeypatch):
    slopes, real, valid = [], fitting.gradient, goals()
    monkeypatch.setattr(fitting, "gradient", lambda *a: [slopes.append(a[0]), real(*a)][1])
    fitted(Stage("s", SHAPE, 4, 0.01, SHAPE.allowed), valid)
    assert len(slopes) == 4
    assert not any(one is valid for one in slopes)


def test_steps_go_where_the_shape_allows():
    *_, state = fitted(Stage("s", SHAPE, 3, 0.01, lambda theta: 0 * theta))
    assert state["at"] == 0  # nothing moved, so that nothing was better
    held = Resumable(None, {})
    fitted(Stage("s", SHAPE, 5, 50.0, SHAPE.allowed), saved=held)
    sigmas, _ = SHAPE(held.tensors["s.theta"])
    assert (sigmas.diff() < 0).all()
    assert sigmas.min() >= 0.1 * (1 - 1e-12)


def test_three_starts_of_the_race_are_fitted_a_tenth_of_the_iterations_each(monkeypatch):
    stages, real = [], sampler.descend
    monkeypatch.setattr(sampler, "descend", lambda stage, *a: [stages.append(stage), real(stage, *a)][1])
    ods.tune(ring(), 5, **QUICK)
    assert [(s.name, s.iterations) for s in stages] == [("knots 0", 3), ("knots 1", 3), ("knots 2", 3), ("last", 21)]
    assert len({(s.shape.solver, s.shape.knots.sigmas) for s in stages[:3]}) == 3


def test_the_fit_asks_no_more_rows_at_once_than_max_batch(monkeypatch):
    made, real = [], sampler._goals
    monkeypatch.setattr(sampler, "_goals", lambda *a: [made.append(real(*a)), made[-1]][1])
    ods.tune(ring(), 3, max_batch=5, **{**QUICK, "iterations": 0})
    assert [g.chunk for g in made] == [5, 5]


def test_a_run_that_goes_on_counts_the_time_of_before(tmp_path):
    path, how = tmp_path / "c.safetensors", {**QUICK, "iterations": 5}
    ods.tune(ring(), 5, checkpoint=path, **how)
    kept = Resumable(path, question_of(path))
    kept.facts["seconds"] = 1e6
    kept.write()
    assert ods.tune(ring(), 5, checkpoint=path, **how).measured["seconds"] > 1e6


def test_the_scatter_has_the_default_across_and_the_tuned_upward():
    report = ods.tune(ring(), 5, **QUICK).report
    first, last = report.cases[0].errors, report.cases[-1].errors
    for axis in report.scatter().axes:
        x, y = axis.lines[1].get_data()
        kind = axis.get_title()
        assert (list(x), list(y)) == (first[kind].tolist(), last[kind].tolist())
        assert axis.get_xlabel() == "error of the untuned default"
    assert report.scatter().axes[0].get_ylabel() == "error of the tuned solver"


def test_where_a_model_starts_at_infinity_the_grid_is_measured_along_its_own_noise(monkeypatch):
    seen, real = [], sampler.measured_grid
    monkeypatch.setattr(sampler, "measured_grid", lambda eps, x, *a, **k: [seen.append(x), real(eps, x, *a, **k)][1])
    model = mixture().model(ods.RectifiedFlow(), prediction="flow")
    ods.tune(model, 4, **{**QUICK, "iterations": 0})
    [x] = seen
    assert x.square().mean().sqrt().item() == pytest.approx(sampler.TOP, rel=0.5)
    assert math.isinf(model.range[1])


def many_kinds(count):
    model = two_kinds()
    return ods.Model(model.network, model.schedule, data_shape=(8,), null_cond={"label": 0}, labels=("a",) * count)


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_classes_in_turn_are_all_tuned_on_validated_and_tested(classes):
    label, how = [i % classes for i in range(24)], {"iterations": 0, "reference_steps": 20, "held_out": ()}
    seeds = ods.tune(many_kinds(classes), 3, num_samples=24, cond={"label": label}, **how).measured["seeds"]
    for kind in ("train", "validation"):
        assert {label[seed] for seed in seeds[kind]} == {*range(classes)}
    assert [len(some) for some in seeds.values()] == [16, 8, 8]


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_classes_of_images_in_turn_are_in_every_part(classes, monkeypatch):
    parts, real = [], encoder._searched
    monkeypatch.setattr(encoder, "_searched", lambda task, *a: [parts.append(task.images()), real(task, *a)][1])
    label, images = [i % classes for i in range(24)], mixture8().sample(24, seed=3)
    how = {"iterations": 0, "reference_steps": 20, "held_out": ()}
    ods.tune(many_kinds(classes), 3, task="encode", images=images, cond={"label": label}, **how)
    for rows in parts[0].values():
        assert {label[i] for i in rows} == {*range(classes)}
    assert sorted(i for rows in parts[0].values() for i in rows) == [*range(24)]


def missing(errors):
    test = torch.tensor(errors, dtype=torch.float64)
    return sampler.Found("", ods.Euler(), ods.Grid((2.0, 0.0)), None, test, test, test)


def test_what_is_worse_on_latents_not_seen_is_warned_of_by_the_median_or_the_mean(monkeypatch):
    usual, said = missing([1.0, 1.0, 1.0]), "worse on the test latents than the untuned "
    assert sampler._worse(missing([1.3, 1.3, 0.1]), usual) == f"{said}default (1.3 times its error)"
    assert sampler._worse(missing([0.9, 0.9, 9.0]), usual) == f"{said}default (1.94 times its error)"
    assert not sampler._worse(missing([0.5] * 3), usual)
    errors = [9.0, 3.0, 2.0]  # the default's, the best of the race's and those of what was taken

    def altered(task, found, *_):
        return tuple(replace(f, test=torch.full((4,), e)) for f, e in zip(found, errors, strict=True))

    monkeypatch.setattr(sampler, "_tested", altered)
    assert "test latents" not in ods.tune(ring(), 3, **{**QUICK, "iterations": 0}).warning
    errors.reverse()
    assert f"{said}default (4.5 times its error)" in ods.tune(ring(), 3, **{**QUICK, "iterations": 0}).warning


def test_an_encoder_whose_latents_or_round_trips_are_worse_says_so(monkeypatch):
    def missed(trip, latent):
        return encoder.Missed(torch.tensor(trip), torch.tensor(latent), torch.zeros(2, 1), (2, 2))

    before = missed([0.1, 0.1], [0.1, 0.1])
    said = "worse on the test images than the default: latent (1.2 times its error)"
    assert encoder._worse(missed([0.01, 0.01], [0.12, 0.12]), before) == said
    assert encoder._worse(missed([0.2, 0.2], [0.01, 0.01]), before) == said.replace("latent (1.2", "round trip (2")
    assert not encoder._worse(before, before)
    monkeypatch.setattr(encoder, "_searched", lambda task, *_: ({**encoder._first(task), "grid_delta": 9.0}, 1))
    monkeypatch.setattr(encoder, "_refusal", lambda *_: "")
    images = mixture8().sample(8, seed=3)
    recipe = ods.tune(many_kinds(2), 4, task="encode", images=images, iterations=1, reference_steps=40)
    assert recipe.measured["ratio"] > 1
    assert "worse on the test images than the default: round trip (" in recipe.warning
