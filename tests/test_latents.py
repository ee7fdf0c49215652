"""Latents: they know how they were made, survive the disk, and refuse what is not theirs."""

import json
from dataclasses import fields, replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import odesampler as ods

RING = ods.exact.GaussianMixture.ring()
MODEL = RING.model()


def images(n: int = 6) -> torch.Tensor:
    return RING.sample(n, seed=3)


def test_a_latent_survives_the_disk_and_decodes_to_the_same_bits(tmp_path):
    latent = ods.encode(MODEL, images(), solver="reversible(base='midpoint')", num_steps=8, grid="log_snr")
    latent.save(tmp_path / "z.safetensors")
    loaded = ods.Latent.load(tmp_path / "z.safetensors")
    assert loaded.recipe == latent.recipe
    assert torch.equal(ods.decode(MODEL, loaded).x, ods.decode(MODEL, latent).x)


@pytest.mark.parametrize("solver", ["deis_tab", "alf(damping=3.0)", "reversible(base='euler')"])
def test_a_loaded_latent_tells_its_solver_the_models_clock_and_the_grid(tmp_path, solver):
    latent = ods.encode(MODEL, images(), solver=solver, num_steps=5)
    latent.save(tmp_path / "z.safetensors")
    assert torch.equal(ods.decode(MODEL, ods.Latent.load(tmp_path / "z.safetensors")).x, ods.decode(MODEL, latent).x)


def test_another_model_is_refused_unless_one_insists():
    latent = ods.encode(MODEL, images(), num_steps=3)
    other = ods.exact.GaussianMixture.ring(radius=1.5).model()
    with pytest.raises(ValueError, match="made with"):
        ods.decode(other, latent)
    assert ods.decode(other, latent, insist=True).x.shape == images().shape


@pytest.mark.parametrize("schedule", [ods.RectifiedFlow(), ods.VP.linear().with_zero_snr()], ids=["flow", "zero SNR"])
def test_an_exactly_invertible_solver_is_exact_where_sigma_is_infinite_too(schedule):
    model = RING.model(schedule, "v")
    latent = ods.encode(model, images(), solver="reversible", num_steps=12)
    assert latent.x.std() < 3
    assert (ods.decode(model, latent).x - images()).abs().max() < 1e-9


def test_two_conditions_that_are_one_tensor_can_be_saved(tmp_path):
    shared = torch.zeros(6)
    model = ods.Model(lambda x_t, t, a, b: x_t, ods.VP.linear(), data_shape=(2,))
    latent = ods.encode(model, images(), num_steps=2, cond={"a": shared, "b": shared})
    latent.save(tmp_path / "z.safetensors")
    assert set(ods.Latent.load(tmp_path / "z.safetensors").cond) == {"a", "b"}


def test_a_file_is_written_through_a_link_and_not_over_it(tmp_path):
    latent = ods.encode(MODEL, images(), num_steps=2)
    (tmp_path / "there").mkdir()
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "there" / "z.safetensors")
    latent.save(tmp_path / "link.safetensors")
    assert (tmp_path / "link.safetensors").is_symlink()
    assert len(ods.Latent.load(tmp_path / "there" / "z.safetensors")) == 6


@pytest.mark.parametrize("from_disk", [False, True], ids=["live", "from disk"])
def test_a_latent_keeps_its_conditions_and_its_guidance(tmp_path, from_disk):
    model = ods.load("digits", dtype=torch.float64)
    x, labels = (part[:4] for part in ods.held_out("digits"))
    asked = []
    model.network.register_forward_pre_hook(
        lambda _, inputs, named: asked.append(named["label"].tolist()), with_kwargs=True
    )
    latent = ods.encode(model, x, solver="rk4", num_steps=20, cond={"label": labels}, guidance_scale=1.5)
    if from_disk:
        latent.save(tmp_path / "z.safetensors")
        latent = ods.Latent.load(tmp_path / "z.safetensors")
    encoding, asked[:] = list(asked), []
    back = ods.decode(model, latent).x
    assert encoding[0] == asked[0] == [*labels.tolist(), 10, 10, 10, 10]
    assert (back - x).abs().max() < 0.05


def test_interpolated_latents_take_the_conditions_of_the_nearer_end():
    model = ods.Model(lambda x_t, t, label: x_t, ods.VP.linear(), data_shape=(2,))
    latent = ods.encode(model, images(2), num_steps=2, cond={"label": [3, 7]})
    path = ods.interpolate(latent.select([0]), latent.select([1]), 5)
    assert path.cond["label"].tolist() == [3, 3, 7, 7, 7]


DAMAGES = {
    "no recipe": lambda tensors, recipe: (tensors, None),
    "a list": lambda tensors, recipe: (tensors, []),
    "a key too few": lambda tensors, recipe: (tensors, {k: v for k, v in recipe.items() if k != "solver"}),
    "a key too many": lambda tensors, recipe: (tensors, {**recipe, "more": 1}),
    "no sigmas": lambda tensors, recipe: (tensors, {**recipe, "sigmas": None}),
    "words for numbers": lambda tensors, recipe: (tensors, {**recipe, "guidance_scale": "much"}),
    "a dtype for counting": lambda tensors, recipe: (tensors, {**recipe, "state_dtype": "int32"}),
    "a solver nobody knows": lambda tensors, recipe: (tensors, {**recipe, "solver": "nobody's"}),
    "memory of another shape": lambda tensors, recipe: ({**tensors, "memory.0": torch.zeros(1)}, recipe),
    "a gap in memory": lambda tensors, recipe: ({**tensors, "memory.1": tensors["x"].clone()}, recipe),
    "one condition for all": lambda tensors, recipe: ({**tensors, "cond.label": torch.tensor(1)}, recipe),
    "whole numbers": lambda tensors, recipe: ({**tensors, "x": tensors["x"].long()}, recipe),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_a_value_error_that_names_it(tmp_path, damage):
    path = tmp_path / "z.safetensors"
    ods.encode(MODEL, images(), num_steps=2).save(path)
    with safe_open(path, "pt") as file:
        meta, tensors = file.metadata(), {"x": file.get_tensor("x")}
    tensors, recipe = DAMAGES[damage](tensors, json.loads(meta.pop("recipe")))
    save_file(tensors, path, meta if recipe is None else {**meta, "recipe": json.dumps(recipe)})
    with pytest.raises(ValueError, match=r"z\.safetensors"):
        ods.Latent.load(path)


def test_networks_without_weights_are_told_apart_by_their_code():
    class One(torch.nn.Module):
        def forward(self, x_t, t):
            return x_t

    class Two(torch.nn.Module):
        def forward(self, x_t, t):
            return -x_t

    networks = [One(), Two(), lambda x_t, t: x_t, lambda x_t, t: 2 * x_t]
    prints = {ods.Model(network, ods.VP.linear()).fingerprint() for network in networks}
    assert len(prints) == 4
    again = ods.Model(One(), ods.VP.linear()).fingerprint()
    assert again == ods.Model(One(), ods.VP.linear()).fingerprint()


@pytest.mark.parametrize("solver", ["alf", "alf(coordinate='angle', damping=10.0)", "deis_tab"])
def test_a_latent_from_disk_is_decoded_by_a_solver_that_knows_the_clock_and_the_grid(tmp_path, solver):
    latent = ods.encode(MODEL, images(), solver=solver, num_steps=8)
    latent.save(tmp_path / "z.safetensors")
    loaded = ods.Latent.load(tmp_path / "z.safetensors")
    assert torch.equal(ods.decode(MODEL, loaded).x, ods.decode(MODEL, latent).x)


def test_a_latent_is_written_with_the_same_bytes_every_time(tmp_path):
    latent = ods.encode(MODEL, images(), num_steps=3, exact="residual")
    for i in range(8):
        latent.save(tmp_path / f"{i}.safetensors")
    files = [(tmp_path / f"{i}.safetensors").read_bytes() for i in range(8)]
    assert set(files) == {files[0]}
    assert int.from_bytes(files[0][:8], "little") % 8 == 0  # the tensors begin where they can be mapped
    back = ods.decode(MODEL, ods.Latent.load(tmp_path / "0.safetensors")).x
    assert torch.equal(back, ods.decode(MODEL, latent).x)


def test_names_of_any_letters_survive_the_disk(tmp_path):
    model = ods.Model(MODEL.network, MODEL.schedule, data_shape=(2,), name='ein "Modell" \u00e4\u6587')
    ods.encode(model, images(), num_steps=2).save(tmp_path / "z.safetensors")
    assert ods.Latent.load(tmp_path / "z.safetensors").recipe.model == model.name


def test_of_a_latent_that_is_moved_stays_how_it_is_decoded_and_nothing_of_where_it_was():
    latent = ods.encode(MODEL, images(2), solver="alf", num_steps=3, exact="residual")
    latent = replace(latent, converged=torch.ones(len(latent)), defect=latent.x[:, 0], untouched=latent.nfe)
    moved = latent.elsewhere(latent.x + 1, (latent.x,))
    assert torch.equal(moved.x, latent.x + 1)
    assert moved.memory[0] is latent.x
    for field in fields(ods.Latent):
        if field.name in ("recipe", "cond", "plan", "null"):
            assert getattr(moved, field.name) is getattr(latent, field.name)
        elif field.name not in ("x", "memory"):
            assert getattr(latent, field.name) is not None
            assert getattr(moved, field.name) is None
