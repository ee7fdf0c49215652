"""Images outside a model's data range: far ones are refused, a little is said once, what decoding leaves is not."""

import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import odesampler as ods
from odesampler.data_range import overshoot

DIGITS = ods.load("digits")
IMAGES = ods.held_out("digits").images[:4]


def never(x_t, t):
    raise AssertionError("the model was called")


def model(data_range, shape=(1, 8, 8), network=None):
    return ods.Model(network or (lambda x_t, t: x_t), ods.VP.linear(), data_shape=shape, data_range=data_range)


def encode(images, data_range, **options):
    return ods.encode(model(data_range, tuple(images.shape[1:]), **options), images, num_steps=1)


@pytest.mark.parametrize("name", ods.models())
def test_the_embedded_models_range_is_that_of_their_images_and_of_to_float(name):
    low, high = ods.load(name).data_range
    images = ods.held_out(name).images
    assert (images.min(), images.max()) == (low, high)
    assert ods.images.to_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [low, high]


def test_the_range_is_no_part_of_the_fingerprint_so_old_latents_stay_readable():
    assert replace(DIGITS, data_range=None).fingerprint() == DIGITS.fingerprint()


@pytest.mark.parametrize(
    ("images", "data_range", "message"),
    [
        (127.5 * (IMAGES + 1), (-1, 1), r"run from 0 to 255.*-1 to 1: 4 of 4.*give ods.images.to_float\(images.to"),
        (16 * (IMAGES + 1) / 2, (-1, 1), r"to_float"),
        (127.5 * (IMAGES + 1), (0, 1), r"give images / 255 \* 1 \+ 0"),
        (IMAGES, (0, 1), r"run from -1 to 1.*from 0 to 1: 4 of 4.*scale them to \[0, 1\]"),
        (3 * IMAGES, (-1, 1), r"images.clamp\(-1, 1\)"),
        (torch.cat([IMAGES, 3 * IMAGES[:1]]), (-1, 1), r"1 of 5 are far outside, the first at 4;"),
    ],
)
def test_images_of_another_scale_are_refused_before_the_model_is_called(images, data_range, message):
    with pytest.raises(ValueError, match=message):
        encode(images, data_range, network=never)
    with pytest.raises(ValueError, match=message):
        ods.round_trip(model(data_range, network=never), images, ["ddim", "heun"], 2)


def test_what_the_messages_say_to_do_does_it():
    pixels = (127.5 * (IMAGES + 1)).round()
    for data_range, mended in [((-1, 1), ods.images.to_float(pixels.to(torch.uint8))), ((0, 1), pixels / 255 * 1 + 0)]:
        encode(mended, data_range)
    encode((3 * IMAGES).clamp(-1, 1), (-1, 1))


def test_a_model_that_knows_no_range_takes_what_comes():
    encode(1000 * IMAGES, None)


@pytest.mark.parametrize("data_range", [(-1.0, 1.0), (0.0, 1.0), (-3.0, 7.0)])
@given(beyond=st.floats(0, 2), low_end=st.booleans())
def test_by_the_overshoot_images_pass_or_are_said_or_are_refused(data_range, beyond, low_end):
    low, high = data_range
    value = low - beyond * (high - low) if low_end else high + beyond * (high - low)
    images = torch.full((2, 2), (low + high) / 2, dtype=torch.float64)
    images[1, 0] = value
    if beyond > 0.5 + 1e-9:
        with pytest.raises(ValueError, match="far outside, the first at 1"):
            encode(images, data_range)
    elif 0.1 + 1e-9 < beyond < 0.5 - 1e-9:
        with pytest.warns(UserWarning, match="1 of 2 images leave the data range") as told:
            encode(images, data_range)
        assert f"{beyond * (high - low):.2g} (" in str(told[0].message)
    elif beyond < 0.1 - 1e-9:
        encode(images, data_range)  # warnings are errors


def test_a_few_hot_pixels_are_no_other_scale_but_one_in_fifty_is():
    images = torch.zeros(2, 1, 40, 40)
    images[1, 0, 0, :16] = 30.0
    assert overshoot(images, (-1, 1)).tolist() == [-1, -1]
    images[1, 0, 1, :16] = 30.0
    assert overshoot(images, (-1, 1)).tolist() == [-1, 29]


@pytest.mark.parametrize(("name", "num"), [("digits", 32), ("emoji", 4)])
def test_what_was_decoded_can_be_encoded_again_without_a_word(name, num):
    embedded = ods.load(name)
    latent = ods.encode(embedded, ods.held_out(name).images[:num], solver="heun", num_steps=10)
    back = ods.decode(embedded, latent).x
    assert (overshoot(back, (-1, 1)) > 0).any(), "nothing would be shown"
    ods.encode(embedded, back, solver="ddim", num_steps=1)


def test_round_trip_says_it_once_however_many_solvers():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        report = ods.round_trip(DIGITS, 1.3 * IMAGES, ["ddim", "heun"], [1, 2])
    assert len(report.trips) == 4
    assert [str(w.message).split(" leave")[0] for w in told] == ["4 of 4 images"]
    assert ods.decode(DIGITS, report.trips[0].latent).x.shape == IMAGES.shape


def test_the_warning_points_at_who_called():
    with pytest.warns(UserWarning, match="leave the data range") as told:
        ods.encode(DIGITS, 1.3 * IMAGES, num_steps=1)
    assert told[0].filename == __file__


@pytest.mark.parametrize("wrong", [(1, -1), (0, 0), (0,), 1.0, (0, float("inf")), ("a", "b")])
def test_a_range_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match="data_range is"):
        model(wrong)
