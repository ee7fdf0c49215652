"""Quality of samples: distances with known answers, real samples that pass, and each fault named."""

import math

import numpy as np
import pytest
import torch

import odesampler as ods
from odesampler.analysis.distances import frechet_distance, nearest_distance, sliced_wasserstein
from odesampler.zoo.models import training_images

HELD = ods.held_out("digits")


def draws(num, d, seed):
    return torch.randn(num, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_covariance(num, seed, mean, covariance):
    """Points whose mean and covariance are exactly these."""
    z = draws(num, len(mean), seed).numpy()
    z = z - z.mean(0)
    white = z @ np.linalg.inv(np.linalg.cholesky(np.cov(z, rowvar=False))).T
    return white @ np.linalg.cholesky(covariance).T + mean


def test_the_frechet_distance_of_gaussians_is_the_closed_form():
    a = with_covariance(50, 0, np.array([1.0, 0.0]), np.diag([4.0, 1.0]))
    b = with_covariance(70, 1, np.array([0.0, 2.0]), np.diag([1.0, 9.0]))
    assert frechet_distance(a, b) == pytest.approx(5 + (2 - 1) ** 2 + (1 - 3) ** 2, rel=1e-9)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    assert frechet_distance(a @ turn.T, b @ turn.T) == pytest.approx(10, rel=1e-9)  # covariances no longer diagonal
    assert frechet_distance(a[:, :1], b[:, :1]) == pytest.approx(1 + 1, rel=1e-9)


def test_the_sliced_distance_of_a_shift_is_its_length_over_root_d():
    x, shift = draws(200, 5, 0).numpy(), np.array([3.0, 0, 0, 4.0, 0])
    assert sliced_wasserstein(x, x + shift, directions=20_000) == pytest.approx(5 / math.sqrt(5), rel=0.02)
    assert sliced_wasserstein(x[:, :1], x[:, :1] + 2) == pytest.approx(2, rel=1e-12)


def test_the_sliced_distance_takes_sets_of_unequal_sizes():
    """Each point three times over is the same set; and two against three points, worked out by hand."""
    x, y = draws(40, 3, 0).numpy(), draws(40, 3, 1).numpy()
    assert sliced_wasserstein(np.repeat(x, 3, 0), y) == pytest.approx(sliced_wasserstein(x, y), rel=1e-12)
    a, b = np.array([[0.0], [6.0]]), np.array([[0.0], [3.0], [6.0]])
    assert sliced_wasserstein(a, b) == pytest.approx(math.sqrt(2 * 9 / 6), rel=1e-12)


def test_samples_of_the_same_law_pass():
    """Twenty times, each with its own data: hardly ever does a measure accuse them."""
    accused = [ods.quality(draws(120, 6, s), draws(160, 6, 100 + s), seed=s, splits=10).doubts() for s in range(20)]
    assert sum(map(bool, accused)) <= 1


def bad(samples, **options):
    return {mark.name for mark in ods.quality(samples, HELD.images, **options).marks if mark.bad}


def test_real_digits_pass_and_each_planted_fault_is_named():
    seen = training_images("digits").images
    assert bad(seen[:200]) == set()
    assert {"frechet", "sliced"} <= bad(seen[:200] + 0.3)
    assert {"frechet", "sliced", "nearest other"} <= bad(seen[:1].repeat(200, 1, 1, 1))
    one = HELD.images[:1].repeat(200, 1, 1, 1)
    assert "nearest real" not in bad(one)  # near to a real one they are, though most real ones are far from them
    assert "nearest real" in bad(torch.rand(200, 1, 8, 8) * 2 - 1)


def test_exact_copies_of_any_real_images_are_copies_all_of_them():
    """Also where there are far more real images than samples, of which each half holds few of the originals."""
    found = ods.quality(HELD.images[:60], HELD.images[:200])
    assert found["copies"].samples.tolist() == [1.0] * 20
    assert found["copies"].real.max() < 0.2
    assert "copies are looked for among all real images" in found.table()
    half = ods.quality(torch.cat([HELD.images[:30], training_images("digits").images[:30]]), HELD.images[:200])
    assert half["copies"].samples.mean() == pytest.approx(0.5, abs=0.06)


def test_noise_that_few_images_cannot_tell_from_real_ones_is_not_called_real():
    noise = draws(20, 64, 0).reshape(20, 1, 8, 8)
    found = ods.quality(noise, HELD.images[:200])
    row = next(row for row in found.rows() if row[0] == "frechet")
    assert row[-1] == "too few images"
    assert "too few images: real halves of 10 have Frechet distances of up to" in found.table()
    more = ods.quality(noise.repeat(10, 1, 1, 1), HELD.images)
    assert not more.too_few
    centred = (HELD.images - HELD.images.mean(0)).flatten(1).double().numpy()
    leading = np.linalg.svd(centred, compute_uv=False)[: more.dimensions]
    assert more.variance == pytest.approx((leading**2).sum() / (len(centred) - 1), rel=1e-6)


def test_copies_are_found_among_the_data_and_among_what_the_model_was_trained_on():
    seen, new = training_images("digits").images, HELD.images
    assert bad(new[:200]) == {"copies"}
    mixed = torch.cat([new[:60], seen[:140]])  # three in ten are copies
    assert bad(mixed) == {"copies"}
    assert bad(seen[:200], training=seen[600:]) == set()
    assert bad(torch.cat([seen[:40], seen[800:960]]), training=seen[:800]) == {"copies"}  # one in five
    near = seen[:200] + 0.2 * draws(200, 64, 0).float().reshape(200, 1, 8, 8)
    assert bad(near, training=seen) == {"nearer to training", "nearest real"}  # too far off for copies


def test_wrong_labels_are_found_whatever_the_classifier_is_called():
    from sklearn.svm import SVC

    seen = training_images("digits")
    svc = SVC().fit(seen.images[300:].flatten(1).numpy(), seen.labels[300:].numpy())
    x, y = seen.images[:200], seen.labels[:200]
    known = {"classifier": svc, "data_labels": HELD.labels}
    assert bad(x, labels=y, **known) == set()
    assert bad(x, labels=(y + (torch.arange(200) < 40)) % 10, **known) == {"accuracy"}
    found = ods.quality(x, HELD.images, labels=y, classifier=lambda images: svc.predict(images.flatten(1).numpy()))
    assert found["accuracy"].samples.mean() == pytest.approx(svc.score(x.flatten(1).numpy(), y.numpy()), abs=0.02)
    assert not found["accuracy"].bad  # of real ones nothing is known
    assert found.records()[-1]["real"] is None


def test_too_few_images_for_the_features_are_said():
    pixels = {"features": lambda images: images.flatten(1)}
    few, enough = (ods.quality(HELD.images[n:], HELD.images[:n], **pixels) for n in (80, 180))
    assert few.too_few
    assert few["frechet"].real.median() > 1.5 * enough["frechet"].real.median()  # the bias that it warns of
    assert "needs 128 or more, and these halves have 40" in few.table()
    assert "too few images" in few.table().splitlines()[2]
    assert not ods.quality(HELD.images[80:], HELD.images[:80]).too_few  # its own features are as many as they bear


def test_supplied_features_are_what_is_measured():
    """Of features that no fault reaches, no measure of features speaks; the pixels do."""
    shifted = HELD.images + torch.linspace(0, 0.5, 8)
    found = ods.quality(shifted[:180], HELD.images[180:], features=lambda images: images[..., :1].flatten(1))
    assert not found["frechet"].bad
    assert not found["sliced"].bad
    assert ods.quality(shifted[:180], HELD.images[180:])["sliced"].bad


def test_features_may_be_a_torch_module_which_sees_few_images_at_once_and_keeps_no_gradients():
    torch.manual_seed(0)
    module, seen = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)), []
    module.register_forward_hook(lambda _m, x, y: seen.append((len(x[0]), y.requires_grad)))
    data = HELD.images.repeat(2, 1, 1, 1)[:600]
    found = ods.quality(HELD.images[:100], data, features=module)
    assert seen == [(100, False), (256, False), (256, False), (88, False)]
    weight, bias = (p.detach() for p in module.parameters())
    by_hand = ods.quality(
        HELD.images[:100], data, features=lambda x: (x.flatten(1).double() @ weight.T.double() + bias).numpy()
    )
    assert torch.allclose(found["frechet"].samples, by_hand["frechet"].samples, rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match=r"\(n, d\) of 256 images; got \(255, 64\)"):
        ods.quality(HELD.images[:100], data, features=lambda x: x[:255].flatten(1))


def test_what_a_device_returns_is_brought_back():
    """A tensor on another device has no `numpy` of its own; here one that refuses until it is on the CPU."""

    class Elsewhere(torch.Tensor):
        def __array__(self, *_args, **_kwargs):
            raise TypeError("can't convert a tensor of another device")

        def cpu(self):
            return self.as_subclass(torch.Tensor)

    x = HELD.images[:100]
    found = ods.quality(
        x,
        HELD.images[100:],
        features=lambda images: images[..., 0].flatten(1).as_subclass(Elsewhere),
        labels=HELD.labels[:100],
        classifier=lambda images: torch.zeros(len(images), dtype=torch.long).as_subclass(Elsewhere),
    )
    assert found["accuracy"].samples.mean() == pytest.approx((HELD.labels[:100] == 0).double().mean().item(), abs=0.05)


def test_the_report_shows_the_samples_nearest_to_real_images():
    found = ods.quality(HELD.images[:100], HELD.images[50:])
    samples, real = found.nearest
    assert torch.equal(samples, real)  # the fifty copies come first
    assert [section.title for section in found.sections()][1] == "Nearest real images"
    assert len(found.plot().axes) == len(found.marks)
    assert len(found.plot_nearest().axes) == 2
    flat = ods.quality(draws(20, 3, 0), draws(20, 3, 1))
    assert len(flat.sections()) == 1
    with pytest.raises(ValueError, match="only images can be shown"):
        flat.plot_nearest()


def test_the_nearest_distance_is_that_of_the_nearest():
    assert nearest_distance([[0.0, 0.0], [4.0, 3.0]], [[0.0, 3.0], [9.0, 9.0]]).tolist() == [3.0, 4.0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"samples": HELD.images[:3]}, "samples are 3: halves"),
        ({"samples": HELD.images.flatten(1)}, r"data are of shape \(1, 8, 8\), the samples of \(64,\)"),
        ({"samples": HELD.images.long()}, "floating-point tensor"),
        ({"data": HELD.images.where(HELD.images < 1, math.nan)}, "data have NaN or infinity"),
        ({"labels": HELD.labels}, "go together"),
        ({"data_labels": HELD.labels}, "go together"),
        ({"splits": 1}, "splits must be 2 or more"),
        ({"features": lambda images: images}, r"features must return \(n, d\)"),
        ({"labels": HELD.labels[:5], "classifier": len}, "labels must be one an image"),
        ({"labels": HELD.labels, "classifier": lambda x: torch.zeros(len(x), 10)}, "take scores.argmax"),
    ],
)
def test_what_cannot_be_meant_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        ods.quality(**{"samples": HELD.images, "data": HELD.images, **change})
