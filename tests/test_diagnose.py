"""Diagnoses of latents: noise passes at the stated rate, each fault is named, and the error is the exact one."""

import csv
import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import odesampler as ods
from odesampler.analysis.normality import measures

SHAPE = (1, 8, 8)
MEAN = torch.linspace(-0.5, 0.5, 64, dtype=torch.float64).reshape(SHAPE)
GAUSSIAN = ods.exact.Gaussian(MEAN, 0.3)
MODEL = GAUSSIAN.model()


def draws(num, shape=SHAPE, seed=0):
    return torch.randn(num, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def latent_of(x, model=MODEL):
    """A latent that holds `x`, as if `encode` had given it."""
    made = ods.encode(model, torch.zeros_like(x), solver="ddim", num_steps=1)
    return replace(made, x=x, nfe=None)


def smoothed(z, axis):
    """Sums of neighbours along `axis`, brought back to mean 0 and std 1: still normal, no more independent."""
    z = z + z.roll(1, axis)
    z = z - z.mean((1, 2, 3), keepdim=True)
    return z / z.flatten(1).std(1).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize(
    ("shape", "num", "least"), [((1, 8, 8), 2000, 0.5), ((3, 16, 16), 400, 0.2), ((5,), 4000, 0.5)]
)
@pytest.mark.parametrize("level", [0.01, 0.1])
def test_noise_is_called_none_at_the_stated_rate(shape, num, least, level):
    """At most `level`, but for the chance of so many draws, and not much below it, or it would see little."""
    model = ods.exact.Gaussian(torch.zeros(shape), 1.0).model()
    false_alarms = (
        1 - ods.diagnose(model, latent_of(draws(num, shape), model), level=level).normal.double().mean().item()
    )
    chance = 3 * math.sqrt(level * (1 - level) / num)
    assert least * level <= false_alarms <= level + chance


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 12), (2, 2, 20)])
def test_what_is_expected_of_noise_is_what_noise_has(shape):
    for measure in measures(draws(4000, shape)):
        at = measure.value.mean().item()
        assert at == pytest.approx(measure.expected, abs=5 * measure.error / math.sqrt(4000) + 1e-3), measure.name
        assert measure.value.std().item() == pytest.approx(measure.error, rel=0.06), measure.name
        if measure.p is not None:
            assert (measure.p < 0.1).double().mean().item() == pytest.approx(0.1, abs=0.025), measure.name


def test_the_spread_of_the_lag_is_that_of_a_random_direction_in_the_space_of_mean_zero():
    n, lines = 4, 6
    d, pairs = n * lines, (n - 1) * lines
    a = torch.kron(torch.eye(lines, dtype=torch.float64), torch.diag(torch.full((n - 1,), 0.5, dtype=torch.float64), 1))
    away = torch.eye(d, dtype=torch.float64) - 1 / d
    b = away @ (a + a.T) @ away
    variance = 2 * ((b @ b).trace() - b.trace() ** 2 / (d - 1)) / ((d - 1) * (d + 1))
    found = {m.name: m for m in measures(draws(1, (2, 3, n)))}["lag_x"]
    assert found.error == pytest.approx(d / pairs * variance.sqrt().item(), rel=1e-12)


def test_the_measures_are_scipys_and_the_textbooks():
    z = 1.1 * draws(3, (2, 4, 6)) + 0.1
    found = {m.name: m for m in measures(z)}
    for i, sample in enumerate(z.numpy()):
        flat = sample.ravel()
        ks, kurtosis = stats.kstest(flat, "norm", method="exact"), stats.kurtosistest(flat)
        c = sample - flat.mean()
        expected = {
            "mean": (flat.mean(), 2 * stats.norm.sf(abs(flat.mean()) * math.sqrt(48))),
            "std": (flat.std(ddof=1), None),
            "kurtosis": (stats.kurtosis(flat), kurtosis.pvalue),
            "ks": (ks.statistic, ks.pvalue),
            "ks_p": (ks.pvalue, None),
            "radius": (np.linalg.norm(flat) / math.sqrt(48), None),
            "lag_x": ((c[:, :, 1:] * c[:, :, :-1]).mean() / (c**2).mean(), None),
            "lag_y": ((c[:, 1:] * c[:, :-1]).mean() / (c**2).mean(), None),
        }
        assert found.keys() == expected.keys()
        for name, (value, p) in expected.items():
            assert found[name].value[i].item() == pytest.approx(value, rel=1e-10), name
            if p is not None:
                assert found[name].p[i].item() == pytest.approx(p, rel=1e-8), name


Z = draws(16, (3, 16, 16), seed=1)
MODEL_3 = ods.exact.Gaussian(torch.zeros(3, 16, 16), 1.0).model()


@pytest.mark.parametrize(
    ("z", "reasons"),
    [
        (Z, set()),
        (1.2 * Z, {"std"}),
        (Z / 1.2, {"std"}),
        (Z + 0.3, {"mean"}),
        (math.sqrt(12) * (torch.special.ndtr(Z) - 0.5), {"kurtosis"}),
        (Z.sign(), {"kurtosis", "ks"}),
        (smoothed(Z, 3), {"lag_x"}),
        (smoothed(Z, 2), {"lag_y"}),
        (smoothed(smoothed(Z, 3), 2), {"lag_x", "lag_y"}),
    ],
    ids=["noise", "wide", "narrow", "shifted", "uniform", "signs", "smooth x", "smooth y", "smooth both"],
)
def test_each_fault_is_found_for_its_own_reason(z, reasons):
    found = ods.diagnose(MODEL_3, latent_of(z, MODEL_3))
    assert set.intersection(*map(set, found.reasons)) >= reasons
    assert found.normal.tolist() == [not reasons] * 16
    unrelated = {"mean", "std", "kurtosis", "ks", "lag_x", "lag_y"} - reasons - {"ks"}  # ks sees most of them too
    said = [reason for of in found.reasons for reason in of]
    assert sum(said.count(name) for name in unrelated) <= 1  # a false alarm among 16


def test_one_odd_latent_does_not_touch_the_others():
    z = Z.clone()
    z[3] *= 1.5
    z[5, 0, 0, 0] = torch.nan
    z[7] = 0.7
    found = ods.diagnose(MODEL_3, latent_of(z, MODEL_3))
    assert [i for i, fine in enumerate(found.normal) if not fine] == [3, 5, 7]
    assert found.reasons[5] == ("not finite",)
    assert {"mean", "std", "ks"} <= set(found.reasons[7])
    others = [0, 1, 2, 4, 6, *range(8, 16)]
    for alone in measures(Z[others]):
        assert torch.allclose(found.measures[alone.name].value[others], alone.value, rtol=1e-12), alone.name


@pytest.mark.parametrize("shape", [(1,), (2,), (30,), (4, 6), (1, 1, 30)])
def test_what_means_nothing_for_a_shape_is_a_dash_and_no_reason(shape):
    model = ods.exact.Gaussian(torch.zeros(shape), 1.0).model()
    found = ods.diagnose(model, latent_of(draws(2, shape), model))
    shown = {
        "std": shape != (1,),
        "kurtosis": math.prod(shape) >= 20,
        "lag_x": shape == (1, 1, 30),
        "lag_y": False,
    }
    for name, is_shown in shown.items():
        at = found.head.index(name)
        assert [(row[at] != "-") for row in found.rows()] == [is_shown] * 4, name
    assert found.normal.all()


def test_latents_are_judged_in_units_of_the_noise_that_the_model_starts_from():
    model = GAUSSIAN.model(ods.VE())
    assert ods.diagnose(model, latent_of(80 * draws(8), model)).normal.all()
    assert not ods.diagnose(model, latent_of(draws(8), model)).normal.any()


@pytest.mark.parametrize(
    ("schedule", "prediction", "grid"),
    [
        (ods.VP.linear(), "eps", None),
        (ods.VP.linear(), "eps", "leading"),  # stops short of sigma_max
        (ods.VP.linear(), "v", "trailing"),  # starts above sigma_min
        (ods.VE(), "denoised", None),
        (ods.RectifiedFlow(), "flow", None),  # starts at infinity
    ],
)
def test_the_latent_error_is_that_to_the_closed_form(schedule, prediction, grid):
    model = GAUSSIAN.model(schedule, prediction)
    images = GAUSSIAN.sample(3)
    latent = ods.encode(model, images, solver="ddim", num_steps=7, grid=grid)
    high, low = latent.recipe.sigmas[0], latent.recipe.sigmas[-1]
    start = schedule.from_model_scale(images, low)
    if math.isinf(high):  # alpha x = x / (1 + sigma), in the limit
        exact = (start - MEAN) / math.sqrt(0.3 + low**2)
    else:
        exact = schedule.to_model_scale(GAUSSIAN.trajectory(start, low, high), high)
    found = ods.diagnose(model, latent, images).error
    scale = schedule.latent_scale(high)
    assert (found.exact - exact).abs().max() / scale < 1e-5
    off = (latent.x - exact).flatten(1)
    assert torch.allclose(found.rmse, off.square().mean(1).sqrt(), rtol=1e-4)
    assert torch.allclose(found.largest, off.abs().amax(1), rtol=1e-4)
    assert (found.rmse > 0.01 * scale).all()


def test_what_the_reference_leaves_open_is_more_than_its_error_and_a_latent_as_good_is_said_to_be():
    images = GAUSSIAN.sample(2)
    latent = ods.encode(MODEL, images, solver="rk4", num_steps=200, grid="log_snr")
    with pytest.warns(UserWarning, match="not well above what the reference leaves open.*reference_steps=40"):
        found = ods.diagnose(MODEL, latent, images, reference_steps=40).error
    low, high = MODEL.range
    exact = MODEL.schedule.to_model_scale(
        GAUSSIAN.trajectory(MODEL.schedule.from_model_scale(images, low), low, high), high
    )
    off = (found.exact - exact).flatten(1).square().mean(1).sqrt()
    assert (found.difference > off).all()
    assert (found.difference < 100 * off).all()


def test_the_reference_takes_the_latents_own_conditions_and_guidance():
    model, images = ods.load("digits"), ods.held_out("digits").images[:2]
    how = {"cond": {"label": [1, 2]}, "guidance_scale": 1.5}
    tight = ods.encode(model, images, solver="rk4", num_steps=30, grid="log_snr", **how)
    coarse = ods.encode(model, images, solver="ddim", num_steps=10, **how)
    found = ods.diagnose(model, coarse, images, reference_steps=30).error
    assert (found.exact - tight.x).abs().max() < 1e-9  # the very same solve
    other = ods.encode(model, images, solver="rk4", num_steps=30, grid="log_snr")
    assert (found.exact - other.x).abs().max() > 0.1


def test_the_report_shows_what_was_found(tmp_path):
    images = GAUSSIAN.sample(3)
    latent = ods.encode(MODEL, images, solver="ddim", num_steps=5)
    bare, found = ods.diagnose(MODEL, latent), ods.diagnose(MODEL, latent, images, reference_steps=20)
    assert bare.error is None
    assert "rmse" not in bare.table()
    assert repr(found) == found.table()
    odd = int((~found.normal).sum())
    assert f"{odd} of 3 latents are not 64 draws of N(0, 1)" in found.table()
    assert "errors from rk4, 20 steps on log_snr" in found.table()
    rows = list(csv.DictReader(io.StringIO(found.to_csv(tmp_path / "d.csv"))))
    assert (tmp_path / "d.csv").read_text().split() == found.to_csv().split()
    assert [float(row["std"]) for row in rows] == found.measures["std"].value.tolist()
    assert [float(row["rmse"]) for row in rows] == found.error.rmse.tolist()
    assert found._repr_html_().count("<tr>") == 1 + 2 + 3
    assert {len(row) for row in found.rows()} == {len(found.head)}


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"latent": torch.zeros(2, *SHAPE)}, TypeError, "takes a Latent"),
        ({"model": "digits"}, TypeError, "must be an ods.Model"),
        ({"model": GAUSSIAN.model(ods.VE())}, ValueError, "made with"),
        ({"images": torch.zeros(3, *SHAPE)}, ValueError, "those that were encoded"),
        ({"images": torch.zeros(2, 64)}, ValueError, "must have shape"),
        ({"images": torch.zeros(2, *SHAPE), "reference_steps": 7}, ValueError, "must be even"),
        ({"level": 0}, ValueError, "level is the rate"),
        ({"level": 5}, ValueError, "level is the rate"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, kind, message):
    with pytest.raises(kind, match=message):
        ods.diagnose(**{"model": MODEL, "latent": latent_of(draws(2)), **arguments})


def test_images_of_another_scale_are_refused():
    model = replace(MODEL, data_range=(-1, 1))
    with pytest.raises(ValueError, match="far outside"):
        ods.diagnose(model, latent_of(draws(2)), torch.full((2, *SHAPE), 255.0))


def test_images_a_little_outside_are_said_once_and_where():
    model = replace(MODEL, data_range=(-1, 1))
    with pytest.warns(UserWarning, match="2 of 2 images leave") as told:
        ods.diagnose(model, latent_of(draws(2)), torch.full((2, *SHAPE), 1.4), reference_steps=100)
    assert [w.filename for w in told] == [__file__]
