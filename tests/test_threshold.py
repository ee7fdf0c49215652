"""Thresholds: on the predicted image, after guidance, at every sigma; against their formula and diffusers."""

import math

import pytest
import torch

import odesampler as ods
from odesampler.guidance import Guidance, guided
from odesampler.model import Model
from odesampler.schedule import VP, RectifiedFlow
from odesampler.threshold import DynamicThreshold, thresholded
from tests.problems import labelled, mixture, noise
from tests.test_peers import in_float64

LABEL = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
THRESHOLDS = [0.3, DynamicThreshold(0.6), DynamicThreshold(0.9, largest=1.5)]
every_threshold = pytest.mark.parametrize("threshold", THRESHOLDS, ids=str)


def bounded(image, threshold):
    """As the papers have it, with a quantile counted by hand."""
    if not isinstance(threshold, DynamicThreshold):
        return image.clamp(-threshold, threshold)
    rows = []
    for row in image:
        sizes = row.abs().flatten().sort().values
        at = threshold.percentile * (len(sizes) - 1)
        below, above = sizes[math.floor(at)], sizes[math.ceil(at)]
        s = min(max((below + (at - math.floor(at)) * (above - below)).item(), 1.0), threshold.largest)
        rows.append(row.clamp(-s, s) / s)
    return torch.stack(rows)


@every_threshold
@pytest.mark.parametrize("prediction", ["eps", "denoised", "v", "flow"])
@pytest.mark.parametrize("sigma", [1.2, torch.tensor([0.5, 1.2, 3.0] * 2)], ids=["shared", "each"])
def test_a_threshold_bounds_the_predicted_image_and_nothing_else(threshold, prediction, sigma):
    model, x = mixture().model(VP.linear(), prediction), 3 * noise()
    s = torch.as_tensor(sigma, dtype=torch.float64).expand(6)[:, None]
    image = x - s * model(x, sigma)
    found = x - s * thresholded(model, threshold)(x, sigma)
    torch.testing.assert_close(found, bounded(image, threshold), rtol=0, atol=1e-9)
    assert not torch.allclose(found, image, atol=0.01)


@pytest.mark.parametrize("threshold", [1e6, DynamicThreshold(largest=1.0)], ids=str)
def test_where_nothing_is_cut_off_eps_keeps_its_bits(threshold):
    model, x = ods.exact.Gaussian(torch.zeros(2), 1e-4).model(VP.linear(), "v"), noise()
    for sigma in (1.2, torch.linspace(0.5, 3, 6)):
        assert torch.equal(thresholded(model, threshold)(x, sigma), model(x, sigma))


@every_threshold
@pytest.mark.parametrize("prediction", ["denoised", "v", "flow"])
def test_at_infinity_it_is_the_answer_that_is_bounded(threshold, prediction):
    sigma = torch.tensor([math.inf, 2.0, math.inf, 0.5, 1.0, math.inf])
    image = torch.linspace(-4, 4, 12, dtype=torch.float64).reshape(6, 2)

    def network(x_t, t):
        return {"denoised": image, "v": -image, "flow": x_t - image}[prediction]

    schedule = RectifiedFlow() if prediction == "flow" else VP.linear().with_zero_snr()
    wrapped = thresholded(Model(network, schedule, prediction), threshold)
    expected = bounded(image, threshold)
    torch.testing.assert_close(wrapped(noise(), math.inf), expected, rtol=0, atol=1e-12)
    each = wrapped(noise(), sigma)
    assert each.isfinite().all()
    torch.testing.assert_close(each[sigma.isinf()], expected[sigma.isinf()], rtol=0, atol=1e-12)


@every_threshold
def test_gradients_are_finite_where_some_samples_are_at_infinity(threshold):
    weight = torch.ones(2, dtype=torch.float64, requires_grad=True)
    model = Model(lambda x_t, t: x_t * weight, RectifiedFlow(), "flow")
    thresholded(model, threshold)(noise(2), torch.tensor([math.inf, 1.0])).sum().backward()
    assert weight.grad.isfinite().all()


@every_threshold
def test_a_sample_from_infinity_in_one_step_is_the_bounded_image(threshold):
    image = torch.linspace(-4, 4, 12, dtype=torch.float64).reshape(6, 2)
    model = Model(lambda x_t, t: x_t - image, RectifiedFlow(), "flow", data_shape=(2,))
    drawn = ods.sample(model, 6, grid=[math.inf, 0.0], clip_denoised=threshold, state_dtype=torch.float64)
    torch.testing.assert_close(drawn.x, bounded(image, threshold), rtol=0, atol=1e-12)


@every_threshold
@pytest.mark.parametrize("sigma", [1.5, torch.tensor([0.5, 1.0, 2.0])], ids=["shared", "each"])
def test_it_is_the_guided_image_that_is_bounded(threshold, sigma):
    x, s = noise(3), torch.as_tensor(sigma).expand(3)[:, None].double()
    eps = guided(labelled(), 4.0)
    conditional, free = (x - s * labelled()(x, sigma, **cond) for cond in ({"label": LABEL}, {}))
    late = bounded(free + 4.0 * (conditional - free), threshold)
    early = bounded(free, threshold) + 4.0 * (bounded(conditional, threshold) - bounded(free, threshold))
    found = x - s * thresholded(eps, threshold)(x, sigma, label=LABEL)
    torch.testing.assert_close(found, late, rtol=0, atol=1e-9)
    assert (late - early).abs().max() > 0.1, "the two orders must differ for this to say anything"
    assert thresholded(eps, threshold).width == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["DDPMScheduler", "DPMSolverMultistepScheduler"])
def test_dynamic_thresholding_is_that_of_diffusers(diffusers, kind, dtype):
    scheduler = getattr(diffusers, kind)(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=2.5)
    spread = torch.tensor([0.2, 1.0, 2.0, 4.0]).reshape(4, 1, 1, 1)  # s = 1, two in between, and the largest
    image = (spread * torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))).to(dtype)
    ours, theirs = DynamicThreshold(0.9, largest=2.5).bounded(image), scheduler._threshold_sample(image)
    tolerance = max(1e-6, 2 * torch.finfo(dtype).eps)
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("threshold", [1.0, DynamicThreshold(0.8, largest=1.5)], ids=str)
def test_guided_rescaled_thresholded_ddim_is_that_of_diffusers(diffusers, prediction, threshold):
    rescale_noise_cfg = pytest.importorskip("diffusers.guiders.guider_utils").rescale_noise_cfg
    dynamic = isinstance(threshold, DynamicThreshold)
    scheduler = diffusers.DDIMScheduler(
        timestep_spacing="trailing",
        prediction_type={"eps": "epsilon", "v": "v_prediction"}[prediction],
        clip_sample=not dynamic,
        thresholding=dynamic,
        dynamic_thresholding_ratio=0.8,
        sample_max_value=1.5,
    )
    schedule = VP.linear()
    in_float64(scheduler, schedule).set_timesteps(10)

    def network(x_t, t, label):
        return (x_t + t[:, None, None, None] / 1000).sin() + label[:, None, None, None] * x_t.flip(1)

    label = torch.tensor([0.5, -1.0], dtype=torch.float64)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x_t, both = x, torch.cat([label, torch.zeros_like(label)])
    for t in scheduler.timesteps:
        conditional, free = network(torch.cat([x_t, x_t]), t.expand(4), both).chunk(2)
        out = rescale_noise_cfg(free + 5 * (conditional - free), conditional, 0.7)
        x_t = scheduler.step(out, t, x_t, use_clipped_model_output=True).prev_sample
    model = Model(network, schedule, prediction, null_cond={"label": 0.0})
    ours = ods.sample(
        model,
        x=x,
        solver="ddim",
        grid="trailing",
        num_steps=10,
        cond={"label": label},
        guidance_scale=Guidance(5, rescale=0.7),
        clip_denoised=threshold,
        state_dtype=torch.float64,
    )
    torch.testing.assert_close(ours.x, x_t, rtol=1e-6, atol=1e-6)


# ---- the device, the disk, and what is refused ---------------------------------------------------------------------


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2, device="meta")

    def forward(self, x_t, t, label):
        return self.layer(x_t) * t[:, None] + label[:, None]


@every_threshold
@pytest.mark.parametrize("each", [False, True], ids=["shared", "each"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_guidance_and_threshold_keep_the_dtype_and_never_read_a_value_from_the_device(threshold, each, dtype):
    """On the meta device tensors have no values: reading one raises, as it would wait on an accelerator."""
    model = Model(Net(), VP.linear().with_zero_snr(), "v", null_cond={"label": 0})
    eps = thresholded(guided(model, Guidance(3.0, rescale=0.7, interval=(0.5, 5.0))), threshold)
    x, sigma = torch.empty(4, 2, device="meta", dtype=dtype), torch.empty(4, device="meta") if each else 1.5
    answer = eps(x, sigma, label=torch.empty(4, device="meta", dtype=torch.int64))
    assert (answer.shape, answer.dtype, answer.device.type) == (x.shape, dtype, "meta")


def test_a_latent_keeps_its_threshold_on_disk(tmp_path):
    model = mixture().model(VP.linear())
    for threshold in (1, DynamicThreshold(0.9), DynamicThreshold(0.9, largest=2)):
        with pytest.warns(UserWarning, match="floor"):
            latent = ods.encode(model, noise(), num_steps=4, clip_denoised=threshold)
        latent.save(tmp_path / "z.safetensors")
        loaded = ods.Latent.load(tmp_path / "z.safetensors")
        assert loaded.recipe == latent.recipe
        assert loaded.recipe.clip_denoised == threshold
        assert torch.equal(ods.decode(model, loaded).x, ods.decode(model, latent).x)


def test_numbers_of_numpy_go_to_disk_as_numbers(tmp_path):
    numpy = pytest.importorskip("numpy")
    one, two = numpy.float32(1), numpy.float32(2)
    model = Model(lambda x_t, t, label: x_t, VP.linear(), null_cond={"label": 0}, data_shape=(2,))
    for threshold in (two, DynamicThreshold(one, two)):
        guidance = Guidance(two, one, (one, two))
        with pytest.warns(UserWarning, match="floor"):
            latent = ods.encode(
                model, noise(), num_steps=2, cond={"label": 1}, guidance_scale=guidance, clip_denoised=threshold
            )
        latent.save(tmp_path / "z.safetensors")
        assert ods.Latent.load(tmp_path / "z.safetensors").recipe == latent.recipe


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan])
def test_a_clip_that_is_not_positive_is_refused(clip):
    with pytest.raises(ValueError, match="clip_denoised must be positive"):
        thresholded(labelled(), clip)


@pytest.mark.parametrize("clip", ["1", True, (1, 2)])
def test_a_clip_that_is_no_number_is_a_type_error(clip):
    with pytest.raises(TypeError, match="clip_denoised must be a number"):
        ods.sample(mixture().model(VP.linear()), 1, clip_denoised=clip)


BAD = [
    ({"percentile": 99.5}, ValueError, "such as 0.995"),
    ({"percentile": 0.0}, ValueError, "such as 0.995"),
    ({"percentile": math.nan}, ValueError, "such as 0.995"),
    ({"largest": 0.5}, ValueError, "largest must be 1 or more"),
    ({"largest": math.nan}, ValueError, "largest must be 1 or more"),
    ({"largest": None}, TypeError, "are numbers"),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), BAD, ids=str)
def test_a_dynamic_threshold_that_cannot_be_meant_is_refused(arguments, kind, message):
    with pytest.raises(kind, match=message):
        DynamicThreshold(**arguments)
