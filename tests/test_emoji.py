"""The emoji model is really trained: its loss on held-out pictures is below bounds that broken ones pass."""

from importlib.resources import files

import pytest
import torch

import odesampler as ods

T = (50, 200, 400, 600, 800, 950)


@pytest.fixture
def model() -> ods.Model:
    return ods.load("emoji")


def losses(model: ods.Model) -> list[float]:
    """Mean squared error of v at each t of `T`, on held-out pictures with their labels and fixed noise."""
    held_out = ods.held_out("emoji")
    x0, noise = held_out.images, torch.randn(held_out.images.shape, generator=torch.Generator().manual_seed(0))
    alpha_bar = ods.VP.linear().alpha_bar
    found = []
    for t in T:
        alpha, std = alpha_bar[t] ** 0.5, (1 - alpha_bar[t]) ** 0.5
        answer = model.network(alpha * x0 + std * noise, torch.full((len(x0),), float(t)), held_out.labels)
        found.append((answer - (alpha * noise - std * x0)).square().mean().item())
    return found


def is_trained(found: list[float]) -> bool:
    """Bounds a tenth above the shipped model's; one of 1,000 steps of training fails them at t = 50 and on the mean."""
    return sum(found) / len(found) < 0.167 and found[0] < 0.181


@pytest.mark.slow
def test_held_out_pictures_are_denoised_at_every_noise_level(model):
    assert is_trained(losses(model))


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["silent", "shaken", "deaf to time"])
def test_a_broken_model_fails_the_same_bounds(model, broken):
    torch.manual_seed(0)
    if broken == "silent":
        model.network.out.weight.zero_()
    elif broken == "shaken":
        for weight in model.network.parameters():
            weight += 0.3 * weight.std(correction=0) * torch.randn_like(weight)
    else:
        model.network.time[0].weight.zero_()
    assert not is_trained(losses(model))


@pytest.mark.slow
def test_hearts_are_red_or_at_least_coloured_and_lie_on_white(model):
    label = model.labels.index("heart")
    x = ods.sample(model, 4, num_steps=10, cond={"label": label}, guidance_scale=2.5).x.clamp(-1, 1)
    corners = x[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    middle = x[:, :, 12:20, 12:20].mean((2, 3))
    assert (corners > 0.6).double().mean() > 0.9
    assert ((middle.amax(1) - middle.amin(1)) > 0.2).sum() >= 3


def test_real_emoji_come_back(model):
    images = ods.held_out("emoji").images[:2]
    back = ods.decode(model, ods.encode(model, images, solver="heun", num_steps=20)).x
    assert (back - images).square().mean().sqrt() < 0.02


def test_classes_have_names_and_the_null_class_is_the_last(model):
    assert len(model.labels) == len(set(model.labels)) == 96
    assert {"face-smiling", "heart", "food-fruit"} <= set(model.labels)
    assert model.null_cond == {"label": 96}
    assert ods.held_out("emoji").labels.max() < 96


def test_the_weights_and_their_licences_travel_with_the_package():
    folder = files("odesampler.zoo")
    assert (folder / "emoji.safetensors").stat().st_size < 10_000_000
    assert "SIL Open Font License" in (folder / "EMOJI.md").read_text()
    assert "SIL OPEN FONT LICENSE" in (folder / "LICENSE-NotoColorEmoji.txt").read_text()


def test_training_pictures_that_are_not_shipped_are_an_error_that_says_where_they_come_from():
    from odesampler.zoo.models import training_images

    with pytest.raises(ValueError, match="train_emoji makes them"):
        training_images("emoji")
