"""The emoji model is really trained: its loss on held-out pictures is below bounds that broken ones pass."""

from importlib.resources import files

import pytest
import torch
from torch import Tensor

import odesampler as ods

T = (50, 200, 400, 600, 800, 950)
NULL = 96
# A tenth above the shipped model's. One of 1,000 steps of training has 0.277 with labels at t = 50.
WITH_LABELS = (0.182, 0.116, 0.124, 0.160, 0.205, 0.215)
WITHOUT = (0.169, 0.084, 0.090, 0.152, 0.257, 0.276)
NOISY = (800, 950)  # where the label must help: there the picture alone says little of what it is


@pytest.fixture
def model() -> ods.Model:
    return ods.load("emoji")


def losses(model: ods.Model, labels: Tensor) -> dict[int, float]:
    """Mean squared error of v by t, on held-out pictures with these labels and fixed noise."""
    x0 = ods.held_out("emoji").images
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    alpha_bar = ods.VP.linear().alpha_bar
    found = {}
    for t in T:
        alpha, std = alpha_bar[t] ** 0.5, (1 - alpha_bar[t]) ** 0.5
        answer = model.network(alpha * x0 + std * noise, torch.full((len(x0),), float(t)), labels)
        found[t] = (answer - (alpha * noise - std * x0)).square().mean().item()
    return found


def faults(model: ods.Model) -> set[str]:
    """What is wrong with a model: its loss with labels, without, or what the label adds."""
    labels = ods.held_out("emoji").labels
    true, null = losses(model, labels), losses(model, torch.full_like(labels, NULL))
    wrong = losses(model, labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))])
    return {
        *(f"loss at t = {t}" for t, bound in zip(T, WITH_LABELS, strict=True) if not true[t] < bound),
        *(f"null loss at t = {t}" for t, bound in zip(T, WITHOUT, strict=True) if not null[t] < bound),
        *("label no better than none" for t in NOISY if not true[t] < 0.88 * null[t]),
        *("label no better than a wrong one" for t in NOISY if not true[t] < 0.75 * wrong[t]),
    }


def break_it(model: ods.Model, how: str) -> None:
    network, rows = model.network, model.network.label.weight
    torch.manual_seed(0)
    if how == "silent":
        network.out.weight.zero_()
    elif how == "shaken":
        for weight in network.parameters():
            weight += 0.3 * weight.std(correction=0) * torch.randn_like(weight)
    elif how == "deaf to time":
        network.time[0].weight.zero_()
    elif how == "dead labels":
        rows.copy_(rows[NULL].expand_as(rows).clone())
    elif how == "shuffled labels":
        rows[:NULL] = rows[torch.randperm(NULL)]
    elif how == "ruined null":
        rows[NULL] = 50


@pytest.mark.slow
def test_held_out_pictures_are_denoised_at_every_noise_level_and_the_label_helps(model):
    assert faults(model) == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "fault"),
    [
        ("silent", "loss at t = 50"),
        ("shaken", "loss at t = 600"),
        ("deaf to time", "loss at t = 800"),
        ("dead labels", "label no better than none"),
        ("dead labels", "label no better than a wrong one"),
        ("shuffled labels", "loss at t = 950"),
        ("ruined null", "null loss at t = 400"),
    ],
)
def test_a_broken_model_is_found_out(model, how, fault):
    break_it(model, how)
    assert fault in faults(model)


def likeness_to_hearts(model: ods.Model) -> float:
    """How well what is not white in samples of "heart" covers a held-out heart: overlap over union, the mean of 16."""
    label = model.labels.index("heart")
    held_out = ods.held_out("emoji")
    x = ods.sample(model, 16, solver="ddim", grid="log_snr", num_steps=10, cond={"label": label}, guidance_scale=2.5).x
    drawn, real = (images.amin(1).flatten(1) < 0.4 for images in (x, held_out.images[held_out.labels == label]))
    both, either = drawn[:, None] & real, drawn[:, None] | real
    return (both.sum(2) / either.sum(2)).amax(1).mean().item()


@pytest.mark.slow
def test_hearts_have_the_shape_of_hearts(model):
    assert likeness_to_hearts(model) > 0.83


@pytest.mark.slow
def test_without_labels_they_have_not(model):
    break_it(model, "dead labels")
    assert likeness_to_hearts(model) < 0.7


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
