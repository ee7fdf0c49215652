"""Models whose equation is about something else than images, and what verbs take where they are told nothing."""

from dataclasses import replace

import pytest
import torch

import odesampler as ods
from odesampler.codec import Codec
from tests.problems import mixture

DIGITS = ods.load("digits", dtype=torch.float64)
IMAGES = ods.held_out("digits").images[:3].double()


class Folded(Codec):
    """Images twice as large, in colour, of which the data are a part. Notes what it was asked."""

    image_shape = (3, 16, 16)

    def __init__(self):
        self.asked = []

    def encode(self, images):
        self.asked.append("encode")
        return images[:, :1, ::2, ::2]

    def decode(self, x):
        self.asked.append("decode")
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3).expand(-1, 3, -1, -1)


def folded(**more):
    return replace(DIGITS, codec=Folded(), **more)


def latent_of(model, images):
    return ods.encode(model, images, solver="multistep", num_steps=20)


LARGE = Folded().decode(IMAGES)


def test_images_and_what_the_codec_makes_of_them_are_encoded_alike():
    model = folded()
    by_images, by_data = ods.encode(model, LARGE, num_steps=4), ods.encode(model, IMAGES, num_steps=4)
    assert model.codec.asked == ["encode"]
    assert torch.equal(by_images.x, by_data.x)


def test_decoded_images_go_through_the_codec_once_when_asked_for():
    model = folded()
    back = ods.decode(model, ods.encode(model, LARGE, num_steps=4))
    assert model.codec.asked == ["encode"]
    assert back.x.shape == IMAGES.shape
    assert back.images is back.images
    assert torch.allclose(back.images, LARGE)
    assert model.codec.asked == ["encode", "decode"]


def test_without_a_codec_the_data_are_the_images():
    found = ods.sample(DIGITS, 2, num_steps=2)
    assert found.images is found.x
    assert DIGITS.image_shape == DIGITS.data_shape
    assert folded().image_shape == (3, 16, 16)


def test_what_the_codec_made_comes_back_to_the_bit():
    model = replace(ods.load("digits"), codec=Folded())
    latent = ods.encode(model, LARGE.float(), num_steps=4, exact="bits", micro_batch=1)
    assert torch.equal(ods.decode(model, latent).x, Folded().encode(LARGE.float()))


@pytest.mark.parametrize(
    "verb",
    [
        lambda model, x: ods.round_trip(model, x, solvers="ddim", num_steps=3).records(),
        lambda model, x: ods.error_sources(model, x, solver="ddim", num_steps=4, iterations=0).records(),
        lambda model, x: ods.estimate_round_trip(model, x, solver="ddim", num_steps=4).records(),
        lambda model, x: ods.log_likelihood(model, x, solver="heun", num_steps=3, check=False).records(),
        lambda model, x: ods.diagnose(model, ods.encode(model, x, num_steps=3), x).records(),
        lambda model, x: ods.polish(model, x, latent_of(model, x), tolerance=9.0).x.tolist(),
    ],
)
def test_every_verb_that_takes_images_takes_them_large_or_as_data(verb):
    large, data = ([untimed(row) for row in verb(folded(), x[:1])] for x in (LARGE, IMAGES))
    assert large
    assert str(large) == str(data)


def untimed(row):
    """Without what no two runs have in common: seconds, and the last digits."""
    if not isinstance(row, dict):
        return row
    return {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items() if k != "seconds"}


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(2, 3, 8, 16), r"\(3, 16, 16\), or \(1, 8, 8\) for what the codec makes"),
        (torch.zeros(3, 16, 16), r"got \(3, 16, 16\)"),
        (torch.full((2, 3, 16, 16), 200.0), "if they are bytes"),
        (torch.full((2, 3, 16, 16), torch.nan), "finite"),
    ],
)
def test_pictures_that_the_codec_cannot_take_are_refused(images, said):
    with pytest.raises(ValueError, match=said):
        ods.encode(folded(), images, num_steps=3)


def test_pictures_in_files_have_the_codecs_size(tmp_path):
    model = folded()
    run = ods.sample_many(model, 3, tmp_path / "drawn", kind="png", num_steps=3)
    assert run.complete
    pictures = ods.images.load(tmp_path / "drawn" / "00000")
    assert pictures.shape == (3, 3, 16, 16)
    kept = ods.encode_many(model, tmp_path / "drawn" / "00000", tmp_path / "encoded", num_steps=3)
    assert kept.complete
    assert not kept.skipped
    latent = ods.Latent.load(tmp_path / "encoded" / "00000.safetensors")
    assert torch.equal(latent.x, ods.encode(model, pictures, num_steps=3).x)


def test_a_usual_condition_is_taken_where_none_is_given_and_given_ones_replace_it():
    model = replace(DIGITS, cond={"label": 3})
    told = [ods.sample(DIGITS, 2, num_steps=3, cond={"label": label}).x for label in (3, 4)]
    assert torch.equal(ods.sample(model, 2, num_steps=3).x, told[0])
    assert torch.equal(ods.sample(model, 2, num_steps=3, cond={"label": 4}).x, told[1])
    assert torch.equal(ods.encode(model, IMAGES, num_steps=3).cond["label"], torch.full((3,), 3))


def test_guidance_leads_from_none_to_the_usual_condition_by_the_usual_scale():
    model = replace(DIGITS, cond={"label": 3}, guidance_scale=2.0)
    wanted = ods.sample(DIGITS, 2, num_steps=3, cond={"label": 3}, guidance_scale=2.0).x
    assert torch.equal(ods.sample(model, 2, num_steps=3).x, wanted)
    assert not torch.equal(ods.sample(model, 2, num_steps=3, guidance_scale=1.0).x, wanted)
    assert ods.encode(model, IMAGES, num_steps=3).recipe.guidance_scale == 1


def test_long_runs_and_comparisons_are_guided_as_usual(tmp_path):
    model = replace(DIGITS, cond={"label": 3}, guidance_scale=2.0)
    ods.sample_many(model, 2, tmp_path / "usual", num_steps=3)
    ods.sample_many(DIGITS, 2, tmp_path / "told", num_steps=3, cond={"label": 3}, guidance_scale=2.0)
    usual, told = ((tmp_path / folder / "00000.safetensors").read_bytes() for folder in ("usual", "told"))
    assert usual == told
    found = ods.compare(model, "ddim", [3], num_samples=1, reference_steps=80)
    told = ods.compare(DIGITS, "ddim", [3], num_samples=1, reference_steps=80, cond={"label": 3}, guidance_scale=2.0)
    assert [c.error.tolist() for c in found.cells] == [c.error.tolist() for c in told.cells]


def test_a_condition_without_a_null_one_is_the_same_on_both_sides_of_guidance():
    """Such as the size of a picture, or what a flow model is told of its own guidance."""

    def network(x_t, t, label, size):
        return x_t * 0 + (label + 10 * size).reshape(-1, 1, 1, 1)

    model = ods.Model(network, ods.VP.linear(), null_cond={"label": 0.0}, cond={"size": 2.0}, data_shape=(1, 2, 2))
    asked = ods.sample(model, 1, num_steps=1, cond={"label": 1.0}, guidance_scale=3.0, x=torch.zeros(1, 1, 2, 2)).x
    s, alpha = model.range[1], 1.0
    assert torch.allclose(asked, torch.full_like(asked, -(20 + 3.0) * s * alpha), rtol=1e-4)
    assert torch.equal(model(torch.zeros(1, 1, 2, 2), 1.0), torch.full((1, 1, 2, 2), 20.0))


def test_a_usual_grid_is_taken_where_none_is_given():
    model = replace(mixture().model(ods.VP.linear()), grid="karras(rho=3)")
    x = torch.randn(2, *model.data_shape, dtype=torch.float64)
    wanted = ods.sample(replace(model, grid=None), x=x, num_steps=5, grid="karras(rho=3)").x
    assert torch.equal(ods.sample(model, x=x, num_steps=5).x, wanted)
    assert ods.encode(model, x, num_steps=5).recipe.grid == "karras(rho=3)"
    assert ods.encode(model, x, num_steps=5, grid="log_snr").recipe.grid == "log_snr"


@pytest.mark.parametrize("scale", [torch.inf, "much", None])
def test_a_usual_guidance_that_is_none_is_refused(scale):
    with pytest.raises(ValueError, match="guidance_scale"):
        replace(DIGITS, guidance_scale=scale)


def test_a_grid_may_be_a_tensor_of_sigmas():
    model = mixture().model(ods.VP.linear())
    x = torch.randn(2, *model.data_shape, dtype=torch.float64)
    sigmas = torch.tensor([10.0, 1.0, 0.1])
    assert torch.equal(ods.sample(model, x=x, grid=sigmas).x, ods.sample(model, x=x, grid=sigmas.tolist()).x)


def test_labels_without_a_null_one_are_only_those_that_there_are():
    def network(x_t, t, label):
        return x_t * label.reshape(-1, 1, 1, 1)

    model = ods.Model(network, ods.VP.linear(), data_shape=(1, 2, 2), labels=("one", "two"))
    assert ods.sample(model, 2, num_steps=2, cond={"label": 1}).x.shape == (2, 1, 2, 2)
    with pytest.raises(ValueError, match="label 2 does not exist"):
        ods.sample(model, 2, num_steps=2, cond={"label": 2})


def test_a_grid_may_miss_the_range_by_the_rounding_of_float32():
    digits = ods.load("digits")
    sigmas = torch.tensor(ods.make_grid("karras", digits.schedule, 4, into_zero=True).sigmas)
    assert sigmas[0].item() > digits.range[1]
    assert ods.sample(digits, 1, grid=sigmas.tolist(), solver="euler").x.isfinite().all()
    with pytest.raises(ValueError, match="outside the range"):
        ods.sample(digits, 1, grid=[digits.range[1] * 1.0001, 1.0, 0.0])


BAD = {
    "encode": [
        {"solver": "nonsense"},
        {"solver": "euler_ancestral"},
        {"num_steps": 0},
        {"grid": "nonsense"},
        {"convention": "nonsense"},
        {"cond": {"label": 99}},
        {"guidance_scale": "a"},
        {"state_dtype": torch.int64},
        {"max_batch": 0},
        {"exact": "nonsense"},
        {"clip_denoised": -1.0},
    ],
    "null_text": [
        {"solver": "nonsense"},
        {"guidance_scale": 1.0},
        {"inner_steps": 0},
        {"learning_rate": -1.0},
        {"key": "nonsense"},
        {"max_batch": 1},
        {"cond": {"nonsense": 1}},
    ],
    "round_trip": [{"solvers": "nonsense"}, {"num_steps": 0}, {"cond": {"label": 99}}, {"max_batch": 0}],
    "error_sources": [{"solver": "nonsense"}, {"iterations": -1}, {"conventions": ("nonsense",)}, {"max_batch": 0}],
    "estimate_round_trip": [{"solver": "alf"}, {"sweeps": -1}, {"cond": {"label": 99}}, {"max_batch": 0}],
    "log_likelihood": [
        {"solver": "alf"},
        {"divergence": "nonsense"},
        {"probes": 0},
        {"draws": 2},
        {"cond": {"label": 99}},
        {"seed": [1]},
        {"max_batch": 0},
        {"solver": "scipy_rk45", "rtol": 1e-3, "check": True},
    ],
    "polish": [{"sweeps": -1}, {"tolerance": -1.0}, {"encoder": "nonsense"}, {"max_batch": 0}],
    "diagnose": [{"level": 2.0}, {"reference_steps": 3}, {"max_batch": 0}],
}


@pytest.mark.parametrize(
    ("verb", "bad"), [(verb, bad) for verb, all_bad in BAD.items() for bad in all_bad], ids=lambda x: str(x)
)
def test_a_codec_is_not_asked_where_arguments_are_bad(verb, bad):
    embedded = verb == "null_text"
    model = replace(ods.load("digits", embedded=True, dtype=torch.float64), codec=Folded()) if embedded else folded()
    given = {"cond": {}, "guidance_scale": 3.0} if embedded else {}
    more = [latent_of(DIGITS, IMAGES)] if verb in ("polish", "diagnose") else []
    order = [more[0], LARGE] if verb == "diagnose" else [LARGE, *more]
    with pytest.raises((ValueError, TypeError)):
        getattr(ods, verb)(model, *order, **{**given, **bad})
    assert model.codec.asked == []


@pytest.mark.parametrize("bad", [LARGE.to(torch.uint8), LARGE[:0], LARGE * torch.nan], ids=["bytes", "none", "nan"])
def test_a_codec_is_not_asked_about_images_that_are_none(bad):
    model = folded()
    with pytest.raises((ValueError, TypeError), match=r"images (must be|holds no)"):
        ods.encode(model, bad)
    assert model.codec.asked == []
