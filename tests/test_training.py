"""Training: it learns, and a run that was interrupted ends in the same weights as one that was not."""

from dataclasses import replace

import pytest
import torch

import odesampler as ods
from odesampler import prediction as predictions
from odesampler.zoo.training import Recipe, Run, draw, train
from odesampler.zoo.unet import UNet, UNetConfig
from odesampler.zoo.weights import load_unet, save_unet

ALPHA_BAR = torch.tensor(ods.VP.linear().alpha_bar, dtype=torch.float64)
RECIPE = Recipe(steps=8, batch_size=8, warmup=2)
IMAGES, LABELS = ods.held_out("digits").images[:32], ods.held_out("digits").labels[:32]


def network() -> UNet:
    torch.manual_seed(0)
    return UNet(UNetConfig(channels=1, num_classes=10, width=8))


def trained(checkpoint, recipe: Recipe = RECIPE) -> UNet:
    return train(network(), IMAGES, LABELS, 10, ALPHA_BAR, recipe, checkpoint)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_an_interrupted_run_ends_in_the_same_weights(tmp_path, prediction):
    recipe = replace(RECIPE, prediction=prediction)
    whole = trained(tmp_path / "whole.checkpoint", recipe)
    run = Run(network().train(), recipe)
    for _ in range(3):
        run.advance(draw(IMAGES, LABELS, ALPHA_BAR, recipe, 10, run.generator))
    run.save(tmp_path / "half.checkpoint")
    resumed = trained(tmp_path / "half.checkpoint", recipe)
    for (name, one), two in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


def test_another_recipe_does_not_continue_a_run(tmp_path):
    trained(tmp_path / "run.checkpoint")
    with pytest.raises(ValueError, match="was made with"):
        trained(tmp_path / "run.checkpoint", replace(RECIPE, learning_rate=1e-4))


def test_the_loss_falls(tmp_path):
    run = Run(network().train(), replace(RECIPE, steps=60, batch_size=32))
    losses = [run.advance(draw(IMAGES, LABELS, ALPHA_BAR, run.recipe, 10, run.generator)) for _ in range(60)]
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_a_batch_is_what_the_equation_says():
    """x_t and the target, solved for the image, give a training image back."""
    for prediction in ("eps", "v"):
        recipe = replace(RECIPE, prediction=prediction)
        batch = draw(IMAGES, LABELS, ALPHA_BAR, recipe, 10, torch.Generator().manual_seed(1))
        alpha = ALPHA_BAR[batch.t.long()].sqrt().reshape(-1, 1, 1, 1)
        std = (1 - alpha**2).sqrt()
        x0 = predictions.to_denoised(prediction, batch.target.double(), batch.x_t.double(), alpha, std)
        known = alpha.flatten() > 0.1  # where the noise does not drown float32
        nearest = torch.cdist(x0.flatten(1), IMAGES.double().flatten(1)).min(1).values
        assert nearest[known].max() < 1e-3


def test_weights_survive_the_disk_in_half_precision(tmp_path):
    saved = network()
    save_unet(tmp_path / "w.safetensors", saved, {"note": "of the test"})
    loaded, metadata = load_unet(tmp_path / "w.safetensors")
    assert metadata["note"] == "of the test"
    for one, two in zip(saved.state_dict().values(), loaded.state_dict().values(), strict=True):
        assert torch.equal(one.half().float(), two)
