"""Tuned solvers in pipelines of diffusers: the config holds all of them."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline

import odesampler as ods
from odesampler.adapters.diffusers import OdeScheduler, from_pipeline
from tests.pipelines import sd, sd3
from tests.test_ode_scheduler_pipelines import GUIDED, LATENT, ran

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs, with numpy 2


def recipe(model, steps=4):
    """A table on a grid of five sigmas: Euler's first step, and then two points."""
    sigmas = ods.make_grid(model.grid or "log_snr", model.schedule, steps, into_zero=True).sigmas
    inner = [s for s in sigmas if s < float("inf")]
    lengths = [b - a for a, b in pairwise(inner)]
    table = ods.Fitted(tuple(inner), ((lengths[0],), *((1.3 * h, -0.3 * h) for h in lengths[1:])))
    return ods.Tuned(table, ods.Grid(sigmas), model=model.name, fingerprint=model.fingerprint())


@pytest.mark.parametrize("make", [sd, sd3])
@pytest.mark.parametrize("form", ["object", "file", "loaded"])
def test_a_tuned_solver_in_a_pipeline_is_that_of_the_library(make, form, tmp_path):
    pipe = make()
    model = from_pipeline(pipe, **GUIDED)
    made = recipe(model)
    made.save(tmp_path / "recipe.json")
    given = str(tmp_path / "recipe.json") if form == "file" else made
    pipe.scheduler = OdeScheduler.from_config(pipe.scheduler.config, solver=given)
    if form == "loaded":  # and its file is needed no more
        pipe.save_pretrained(tmp_path / "pipe")
        pipe = DiffusionPipeline.from_pretrained(tmp_path / "pipe")
        pipe.set_progress_bar_config(disable=True)
        assert json.loads((tmp_path / "pipe" / "scheduler" / "scheduler_config.json").read_text())["grid"]
    first, last = ran(pipe, num_inference_steps=4, **({"height": 16, "width": 16} if make is sd3 else {}), **LATENT)
    scale = model.schedule.latent_scale(made.grid[0])
    wanted = ods.sample(model, x=first / pipe.scheduler.init_noise_sigma * scale, solver=made).x
    assert (last - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_a_number_of_steps_that_it_was_not_tuned_for_is_refused():
    pipe = sd()
    made = recipe(from_pipeline(pipe))
    scheduler = OdeScheduler.from_config(pipe.scheduler.config, solver=made)
    with pytest.raises(ValueError, match="num_inference_steps=7, but the grid of the config has 4 transitions"):
        scheduler.set_timesteps(7)


def test_upward_it_walks_the_same_grid_but_for_the_step_into_zero():
    pipe = sd()
    made = recipe(from_pipeline(pipe))
    with pytest.warns(UserWarning, match="upward its table says nothing"):
        scheduler = OdeScheduler.from_config(pipe.scheduler.config, solver=made, rising=True)
    scheduler.set_timesteps(4)
    assert len(scheduler.timesteps) == 3
    assert isinstance(pipe, StableDiffusionPipeline)
    assert bool((torch.as_tensor(scheduler.timesteps).diff() > 0).all())


def test_what_a_recipe_has_to_say_is_said_in_a_pipeline_too():
    pipe = sd()
    made = recipe(from_pipeline(pipe))
    with pytest.warns(UserWarning, match="worse than the default"):
        OdeScheduler.from_config(pipe.scheduler.config, solver=replace(made, warning="worse than the default"))
    encoder = replace(made, solver=ods.ALF(), grid=made.grid_to_encode, task="encode")
    with pytest.warns(UserWarning, match="tuned to encode: samples end at its sigma_min"):
        OdeScheduler.from_config(pipe.scheduler.config, solver=encoder)
