"""The embedded model is really trained: a classifier and Frechet distance say so, by margins that broken ones fail."""

from importlib.resources import files

import numpy as np
import pytest
import torch

import odesampler as ods
from odesampler.analysis.distances import frechet_distance, nearest_distance
from odesampler.zoo.models import training_images

LABELS = torch.arange(500) % 10


@pytest.fixture(scope="module")
def judge():
    """(classifier of images, features of images), fitted to the real training digits."""
    from sklearn.decomposition import PCA
    from sklearn.svm import SVC

    real = training_images("digits")
    flat = real.images.flatten(1).numpy()
    return SVC().fit(flat, real.labels.numpy()), PCA(20, svd_solver="full").fit(flat).transform


def flat(images: torch.Tensor) -> np.ndarray:
    return images.float().flatten(1).numpy()


def drawn(model: ods.Model, num_steps: int, **options) -> np.ndarray:
    options = {"solver": "ddim", "grid": "trailing", "cond": {"label": LABELS}, **options}
    return flat(ods.sample(model, len(LABELS), num_steps=num_steps, **options).x)


def marks(judge, images: np.ndarray) -> tuple[float, float]:
    """(share that the classifier reads as their label, Frechet distance to the real digits)."""
    classifier, features = judge
    real = features(flat(training_images("digits").images))
    return classifier.score(images, LABELS.numpy()), frechet_distance(features(images), real)


def is_good(judge, images: np.ndarray, distance: float) -> bool:
    accuracy, found = marks(judge, images)
    return accuracy >= 0.95 and found <= distance


@pytest.mark.parametrize(("num_steps", "distance"), [(10, 0.4), (50, 0.3)])
def test_samples_are_read_as_their_class_and_spread_as_real_digits_are(judge, num_steps, distance):
    assert is_good(judge, drawn(ods.load("digits"), num_steps), distance)


@pytest.mark.parametrize("broken", ["untrained", "shaken", "deaf to its class", "wrong schedule"])
def test_a_broken_model_fails_the_same_margins(judge, broken):
    model = ods.load("digits")
    torch.manual_seed(0)
    if broken == "untrained":
        for module in model.network.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    elif broken == "shaken":
        for weight in model.network.parameters():
            weight += 0.3 * weight.std(correction=0) * torch.randn_like(weight)
    elif broken == "deaf to its class":
        model.network.label.weight[:] = model.network.label.weight[-1].clone()
    else:
        model = ods.Model(model.network, ods.VP.scaled_linear(), data_shape=(1, 8, 8), null_cond={"label": 10})
    assert not is_good(judge, drawn(model, 10), 0.4)


def test_the_newcomers_64_digits_are_readable(judge):
    """Without a label: the classifier is as sure of most as it is of real digits, and every digit turns up."""
    classifier, _ = judge

    def sureness(images: np.ndarray) -> np.ndarray:
        votes = np.sort(classifier.decision_function(images), axis=1)
        return votes[:, -1] - votes[:, -2]

    samples = flat(ods.sample(ods.load("digits"), 64, solver="ddim", num_steps=50).x)
    usual = np.quantile(sureness(flat(ods.held_out("digits").images)), 0.02)
    assert (sureness(samples) >= usual).mean() > 0.8
    assert len(set(classifier.predict(samples))) == 10


def test_guidance_makes_classes_plainer_in_one_call_of_twice_the_rows(judge):
    model = ods.load("digits")
    rows = []
    model.network.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    guided = drawn(model, 10, guidance_scale=3.0)
    assert rows == [2 * len(LABELS)] * 10
    assert marks(judge, guided)[0] >= marks(judge, drawn(model, 10))[0]


def test_samples_are_no_copies_of_training_images():
    """They lie no nearer to training images than held-out digits do, within a fifth."""
    seen = flat(training_images("digits").images)
    ours = np.median(nearest_distance(drawn(ods.load("digits"), 50), seen))
    theirs = np.median(nearest_distance(flat(ods.held_out("digits").images), seen))
    assert ours > 0.8 * theirs


def test_the_held_out_digits_are_real_and_were_not_trained_on():
    held_out, seen = ods.held_out("digits"), training_images("digits")
    assert held_out.images.shape == (360, 1, 8, 8)
    assert (held_out.images.min(), held_out.images.max()) == (-1, 1)
    known = {image.tobytes() for image in seen.images.numpy()}
    assert sum(image.tobytes() in known for image in held_out.images.numpy()) == 0
    assert set(held_out.labels.tolist()) == set(range(10))


def test_the_network_is_as_smooth_in_float64_as_float64_can_tell():
    """An embedding of time that was made in float32 would be a staircase with steps of 6e-5 at t = 500."""
    network = ods.load("digits", dtype=torch.float64).network
    x_t = ods.held_out("digits").images[:4].double()

    def slope(h: float) -> torch.Tensor:
        ends = [network(x_t, torch.full((4,), 500.3 + d, dtype=torch.float64), LABELS[:4]) for d in (h, -h)]
        return (ends[0] - ends[1]) / (2 * h)

    assert torch.allclose(slope(1e-5), slope(1e-4), rtol=1e-4, atol=1e-8)


def test_the_weights_are_small_and_travel_with_the_package():
    folder = files("odesampler.zoo")
    assert (folder / "digits.safetensors").stat().st_size < 500_000
    assert "CC BY 4.0" in (folder / "DIGITS.md").read_text()


def test_an_unknown_model_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown model 'digit'; embedded are: digits"):
        ods.load("digit")


def test_an_unknown_label_or_condition_is_refused():
    model = ods.load("digits")
    with pytest.raises(ValueError, match="label 11 does not exist"):
        ods.sample(model, 2, cond={"label": 11})
    with pytest.raises(ValueError, match="takes the conditions label; got 'lable'"):
        ods.sample(model, 2, cond={"lable": 1})
    assert ods.sample(model, 1, num_steps=2, cond={"label": 10}).x.shape == (1, 1, 8, 8)  # 10 is the null class
