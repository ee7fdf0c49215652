"""Training: it learns, and a run that was interrupted ends in the same weights as one that was not."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import odesampler as ods
from odesampler import prediction as predictions
from odesampler.zoo import train_emoji
from odesampler.zoo.train_emoji_data import Emoji
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


def begun(steps: int, path) -> Run:
    """A run that stopped after `steps` steps, saved at `path`."""
    run = Run(network().train(), RECIPE)
    for _ in range(steps):
        run.advance(draw(IMAGES, LABELS, ALPHA_BAR, RECIPE, 10, run.generator))
    run.save(path)
    return run


def test_a_run_from_other_first_weights_is_not_continued(tmp_path):
    begun(2, tmp_path / "run.checkpoint")
    other = network()
    other.label.weight.data[0, 0] += 1e-6
    with pytest.raises(ValueError, match="began from other weights"):
        train(other, IMAGES, LABELS, 10, ALPHA_BAR, RECIPE, tmp_path / "run.checkpoint")


def test_a_checkpoint_that_does_not_name_its_first_weights_is_not_continued(tmp_path):
    path = tmp_path / "run.checkpoint"
    begun(2, path)
    state = torch.load(path, weights_only=True)
    del state["start"]
    torch.save(state, path)
    with pytest.raises(ValueError, match="began from other weights"):
        trained(path)


def test_ctrl_c_in_the_middle_of_a_step_finishes_it_and_saves(tmp_path):
    whole = trained(tmp_path / "whole.checkpoint")
    path, interrupted, steps = tmp_path / "run.checkpoint", network(), []

    def interrupt(*_):
        steps.append(1)
        if len(steps) == 3:
            signal.raise_signal(signal.SIGINT)

    interrupted.middle.register_forward_hook(interrupt)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(interrupted, IMAGES, LABELS, 10, ALPHA_BAR, RECIPE, path)
    assert signal.getsignal(signal.SIGINT) is before
    assert torch.load(path, weights_only=True)["step"] == len(steps) == 3
    for one, two in zip(whole.parameters(), trained(path).parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_second_ctrl_c_acts_at_once(tmp_path):
    interrupted = network()
    interrupted.middle.register_forward_hook(lambda *_: [signal.raise_signal(signal.SIGINT) for _ in range(2)] and None)
    with pytest.raises(KeyboardInterrupt):
        train(interrupted, IMAGES, LABELS, 10, ALPHA_BAR, RECIPE, tmp_path / "run.checkpoint")
    assert not (tmp_path / "run.checkpoint").exists()


@pytest.fixture
def small_emoji(monkeypatch):
    """`train_emoji` with a small network, small batches, and the held-out pictures as its data."""
    held_out, meta = ods.held_out("emoji"), load_unet(train_emoji.HERE / "emoji.safetensors")[1]
    pictures = ((held_out.images + 1) * 127.5).round().to(torch.uint8)
    classes, groups = (tuple(json.loads(meta[key])) for key in ("classes", "groups"))
    data = Emoji(pictures, held_out.labels.to(torch.uint8), ("",) * len(pictures), classes, groups)
    monkeypatch.setattr(train_emoji, "emoji", lambda: data)
    monkeypatch.setattr(train_emoji, "WIDTH", 8)
    stages = tuple(replace(stage, batch_size=2, bf16=False) for stage in train_emoji.STAGES)
    monkeypatch.setattr(train_emoji, "STAGES", stages)


def stopped_in_stage(number: int, monkeypatch) -> list[int]:
    """Let Ctrl-C come at the beginning of a stage; the list says how long each training call's recipe is."""
    calls: list[int] = []

    def stops(*args):
        calls.append(args[5].steps)
        if len(calls) == number:
            raise KeyboardInterrupt
        return train(*args)

    monkeypatch.setattr(train_emoji, "train", stops)
    return calls


def weights(path) -> dict[str, torch.Tensor]:
    return load_unet(path)[0].state_dict()


def test_one_command_makes_both_stages_interrupted_or_not(tmp_path, small_emoji, monkeypatch, capsys):
    whole, out = tmp_path / "whole.safetensors", tmp_path / "emoji.safetensors"
    train_emoji.main(["--out", str(whole), "--steps", "2"])
    about = json.loads(load_unet(whole)[1]["training"])
    assert [(stage["steps"], stage["seed"]) for stage in about["stages"]] == [(2, 0), (2, 1)]

    stopped_in_stage(2, monkeypatch)
    with pytest.raises(SystemExit) as done:
        train_emoji.main(["--out", str(out), "--steps", "2"])
    assert done.value.code == 130
    assert "repeat the same command" in capsys.readouterr().err
    assert (tmp_path / "emoji.stage1.safetensors").exists()
    assert not out.exists()

    calls = stopped_in_stage(0, monkeypatch)
    train_emoji.main(["--out", str(out), "--steps", "2"])
    assert len(calls) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [out.name, whole.name, "emoji_heldout.safetensors", "whole_heldout.safetensors"]
    )
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(out).values(), strict=True))


def test_the_second_stage_begins_where_the_first_ended(tmp_path, small_emoji, monkeypatch):
    first, both = tmp_path / "first.safetensors", tmp_path / "both.safetensors"
    train_emoji.main(["--out", str(first), "--stages", "1", "--steps", "3"])
    stopped_in_stage(2, monkeypatch)
    with pytest.raises(SystemExit):
        train_emoji.main(["--out", str(both), "--steps", "3"])
    found = weights(tmp_path / "both.stage1.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(weights(first).values(), found.values(), strict=True))
    starts = []
    monkeypatch.setattr(train_emoji, "train", lambda net, *rest: starts.append(net.state_dict()) or net)
    train_emoji.main(["--out", str(both), "--steps", "3"])
    assert all(torch.equal(a, b) for a, b in zip(found.values(), starts[0].values(), strict=True))


def test_stages_of_another_recipe_are_one_line_and_exit_2(tmp_path, small_emoji, monkeypatch, capsys):
    out = str(tmp_path / "emoji.safetensors")
    stopped_in_stage(2, monkeypatch)
    with pytest.raises(SystemExit):
        train_emoji.main(["--out", out, "--steps", "2"])
    capsys.readouterr()
    with pytest.raises(SystemExit) as done:
        train_emoji.main(["--out", out, "--steps", "3"])
    told = capsys.readouterr().err
    assert done.value.code == 2
    assert told.count("\n") == 1
    assert "delete the file to start again" in told


@pytest.mark.parametrize("more", [[], ["--evaluate"]])
def test_weights_for_a_folder_that_is_missing_are_refused_at_once(tmp_path, monkeypatch, capsys, more):
    monkeypatch.setattr(train_emoji, "emoji", lambda: pytest.fail("the data were drawn"))
    with pytest.raises(SystemExit) as done:
        train_emoji.main(["--out", str(tmp_path / "missing" / "emoji.safetensors"), *more])
    assert done.value.code == 2
    assert "make it first" in capsys.readouterr().err


def test_the_picture_of_an_evaluation_never_lies_in_the_package(tmp_path):
    assert train_emoji.picture_of(train_emoji.HERE / "emoji.safetensors") == Path("emoji.png")
    assert train_emoji.picture_of(tmp_path / "mine.safetensors") == tmp_path / "mine.png"
