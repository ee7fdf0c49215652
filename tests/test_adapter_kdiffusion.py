"""k-diffusion's convention, both ways, against loops written anew from the formulas."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import odesampler as ods
from odesampler.adapters import kdiffusion
from odesampler.adapters.kdiffusion import from_denoiser, sampler, to_denoiser
from odesampler.noise import Streams
from odesampler.registry import spec_of
from odesampler.schedule import VE, VP, ContinuousVP, RectifiedFlow
from tests.problems import BOTH_WAYS, DRAWING, SOLVERS, Spy, labelled, mixture, noise

F64 = torch.float64
SIGMAS = torch.tensor([3.0, 2.1, 1.2, 0.9, 0.5, 0.2, 0.0], dtype=F64)


class Theirs(nn.Module):
    """The exact denoiser of a mixture, as k-diffusion asks it."""

    def __init__(self, low=0.05, high=5.0):
        super().__init__()
        self.mixture, self.calls = mixture(), []
        self.sigma_min, self.sigma_max = torch.tensor(low), torch.tensor(high)

    def forward(self, x, sigma, **extra_args):
        assert sigma.shape == (len(x),)
        assert sigma.dtype == x.dtype
        self.calls.append((sigma.tolist(), extra_args))
        return x - sigma[:, None] * self.mixture(x, sigma)


def denoised(x, sigma):
    return x - sigma * mixture()(x, float(sigma))


def euler(x, sigmas):
    """Karras et al., Algorithm 1, its first-order form."""
    for i in range(len(sigmas) - 1):
        d = (x - denoised(x, sigmas[i])) / sigmas[i]
        yield x, sigmas[i]
        x = x + (sigmas[i + 1] - sigmas[i]) * d
    yield x, sigmas[-1]


def heun(x, sigmas):
    """Karras et al., Algorithm 1."""
    for i in range(len(sigmas) - 1):
        d = (x - denoised(x, sigmas[i])) / sigmas[i]
        yield x, sigmas[i]
        y = x + (sigmas[i + 1] - sigmas[i]) * d
        if sigmas[i + 1] > 0:
            d2 = (y - denoised(y, sigmas[i + 1])) / sigmas[i + 1]
            y = x + (sigmas[i + 1] - sigmas[i]) * (d + d2) / 2
        x = y
    yield x, sigmas[-1]


def dpm_2(x, sigmas):
    """DPM-Solver-2, arXiv:2206.00927, Algorithm 1, in x / alpha."""
    for i in range(len(sigmas) - 1):
        d = (x - denoised(x, sigmas[i])) / sigmas[i]
        yield x, sigmas[i]
        if sigmas[i + 1] > 0:
            middle = (sigmas[i] * sigmas[i + 1]).sqrt()
            y = x + (middle - sigmas[i]) * d
            d = (y - denoised(y, middle)) / middle
        x = x + (sigmas[i + 1] - sigmas[i]) * d
    yield x, sigmas[-1]


def dpmpp_2m(x, sigmas):
    """DPM-Solver++ 2M, arXiv:2211.01095, Algorithm 2, in x / alpha, where lambda = -log sigma."""
    before = None
    for i in range(len(sigmas) - 1):
        seen = denoised(x, sigmas[i])
        yield x, sigmas[i]
        used = seen
        if before is not None and sigmas[i + 1] > 0:
            h, h_before = (sigmas[i] / sigmas[i + 1]).log(), (sigmas[i - 1] / sigmas[i]).log()
            used = (1 + h / (2 * h_before)) * seen - h / (2 * h_before) * before
        ratio = sigmas[i + 1] / sigmas[i]
        x, before = ratio * x + (1 - ratio) * used, seen
    yield x, sigmas[-1]


@pytest.mark.parametrize("published", [euler, heun, dpm_2, dpmpp_2m], ids=lambda f: f.__name__)
@pytest.mark.parametrize("last", [0.0, 0.1], ids=["into zero", "not into zero"])
def test_a_sampler_is_the_published_loop_and_its_callback_sees_what_theirs_sees(published, last):
    sigmas = torch.cat([SIGMAS[:-1], SIGMAS.new_tensor([last])])
    *seen, (end, _) = published(noise(), sigmas)
    told, extra = [], {"mask": object()}
    theirs = Theirs()
    found = sampler(published.__name__)(theirs, noise(), sigmas, extra, told.append, True)
    torch.testing.assert_close(found, end, rtol=0, atol=1e-13)
    assert [one["i"] for one in told] == list(range(6))
    for one, (x, sigma), at in zip(told, seen, sigmas, strict=False):
        assert one["sigma"] == one["sigma_hat"] == sigma == at
        torch.testing.assert_close(one["x"], x, rtol=0, atol=1e-13)
        torch.testing.assert_close(one["denoised"], denoised(x, sigma), rtol=0, atol=1e-13)
    assert all(given == extra for _, given in theirs.calls), "extra_args are passed on as they are"


@pytest.mark.parametrize("solver", SOLVERS, ids=spec_of)
def test_every_solver_of_a_fixed_grid_is_a_sampler_and_does_what_the_verb_does(solver):
    theirs, told = Theirs(), []
    drawn = Streams(range(7, 13)).draw(noise())  # what the verb draws first, for data of variance 1
    x = drawn * math.hypot(1, 3) if solver in DRAWING else noise()
    start = {"seed": 7} if solver in DRAWING else {"x": noise()}
    model = from_denoiser(theirs, data_shape=(2,))
    expected = ods.sample(model, 6, solver=solver, grid=SIGMAS.tolist(), state_dtype=F64, **start)
    theirs.calls.clear()
    found = sampler(solver)(theirs, x, SIGMAS, {"seed": 7}, told.append, True)
    assert torch.equal(found, expected.x)
    assert len(theirs.calls) == expected.calls
    assert [one["i"] for one in told] == list(range(6)), "one call a step, also in steps that ask nothing"
    assert [one["sigma"].item() for one in told] == SIGMAS[:-1].tolist()
    for one in told:
        torch.testing.assert_close(one["denoised"], denoised(one["x"], one["sigma_hat"]), rtol=0, atol=1e-12)


def test_with_noise_a_sampler_is_the_published_loop_too():
    """Euler ancestral, in their terms; the noise that of each sample's stream, whose first draw is passed over."""
    x, streams = noise(), Streams(range(7, 13))
    streams.draw(x)
    for s0, s1 in pairwise(SIGMAS):
        up = (s1**2 * (s0**2 - s1**2) / s0**2).sqrt()
        down = (s1**2 - up**2).sqrt()
        x = x + (x - denoised(x, s0)) / s0 * (down - s0)
        x = x + up * streams.draw(x) if s1 > 0 else x
    found = sampler("euler_ancestral")(Theirs(), noise(), SIGMAS, seed=7, disable=True)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-13)


def test_with_churn_the_callback_names_the_level_that_was_asked():
    told, theirs = [], Theirs()
    sampler("churn(s_churn=3.0)")(theirs, noise(), SIGMAS, callback=told.append, disable=True)
    hats = [one["sigma_hat"].item() for one in told]
    assert hats[0] == 3.0, "never above the first sigma"
    assert hats[1:] == pytest.approx([min(3.0, s * min(1 + 3 / 6, 2**0.5)) for s in SIGMAS[1:-1].tolist()])


def test_an_interrupt_in_the_callback_stops_before_the_next_evaluation():
    theirs = Theirs()

    class Interrupted(Exception):
        pass

    def callback(told):
        if told["i"] == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        sampler("euler")(theirs, noise(), SIGMAS, None, callback, True)
    assert len(theirs.calls) == 3


@pytest.mark.parametrize("solver", [s for s in BOTH_WAYS if spec_of(s) in ("euler", "rk4", "dpmpp_2m")], ids=spec_of)
def test_rising_sigmas_encode(solver):
    up = torch.linspace(0.2, 3.0, 200, dtype=F64)
    theirs = Theirs()
    there = sampler(solver)(theirs, noise(scale=1.0), up, disable=True)
    assert theirs.calls[0][0][0] == 0.2
    back = sampler(solver)(theirs, there, up.flip(0), disable=True)
    torch.testing.assert_close(back, noise(scale=1.0), rtol=0, atol=0.05 if spec_of(solver) == "euler" else 2e-3)
    expected = ods.encode(from_denoiser(theirs), noise(scale=1.0), solver=solver, grid=up.tolist(), state_dtype=F64)
    assert torch.equal(there, expected.x)


class Wrapped(nn.Module):
    """As k-diffusion wraps an eps-network of a table: c_in = 1 / sqrt(sigma^2 + 1), c_out = -sigma."""

    def __init__(self, model):
        super().__init__()
        self.network, self.schedule = model.network, model.schedule
        self.sigma_min, self.sigma_max = model.range

    def forward(self, x, sigma):
        column = sigma[:, None]
        return x - column * self.network(x / (column**2 + 1).sqrt(), self.schedule.t(sigma))


FAMILIES = {
    "vp, eps": (VP.linear(), "eps"),
    "vp, v": (VP.cosine(), "v"),
    "continuous, denoised": (ContinuousVP(), "denoised"),
    "ve, eps": (VE(), "eps"),
    "flow": (RectifiedFlow(), "flow"),
}
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def finite(family):
    schedule, prediction = family
    return mixture().model(schedule, prediction, sigma_max=min(schedule.sigma_max, 50.0))


@every_family
def test_there_and_back_a_model_is_itself(family):
    model = finite(family)
    again = from_denoiser(to_denoiser(model))
    assert again.range == pytest.approx(model.range, rel=1e-12)
    x, sigma = noise(), torch.tensor([0.1, 0.3, 1.0, 3.0, 10.0, 40.0], dtype=F64)
    torch.testing.assert_close(again(x, sigma), model(x, sigma), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(again(x, 0.7), model(x, 0.7), rtol=1e-9, atol=1e-12)


def test_there_and_back_a_denoiser_is_itself_and_gets_its_arguments():
    theirs, options = Theirs(), {"patches": []}
    model = from_denoiser(theirs, extra_args={"model_options": options}, null_cond={"label": 0})
    ours = to_denoiser(model, cond={"label": 4})
    x, sigma = noise(), torch.linspace(0.1, 4.0, 6, dtype=F64)
    torch.testing.assert_close(ours(x, sigma), Theirs()(x, sigma), rtol=0, atol=1e-13)
    ours(x, sigma, label=torch.arange(6))
    (_, first), (_, second) = theirs.calls
    assert first["model_options"] is options
    assert first["label"].tolist() == [4] * 6
    assert second["label"].tolist() == list(range(6))


def test_a_wrapper_of_theirs_is_the_model_that_it_wraps():
    model = mixture().model(VP.linear(), data_shape=(2,))
    again = from_denoiser(Wrapped(model), data_shape=(2,))
    for sigma in (0.02, 1.0, 100.0):
        torch.testing.assert_close(again(noise(), sigma), model(noise(), sigma), rtol=1e-9, atol=1e-12)
    high = model.range[1]
    ours, theirs = (
        ods.sample(m, x=x, solver="dpmpp_2m", num_steps=8, grid="karras", state_dtype=F64)
        for m, x in ((model, noise(scale=1)), (again, noise(scale=1) * math.hypot(1, high)))
    )
    torch.testing.assert_close(theirs.x, ours.x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_theirs_is_asked_and_answered_in_the_dtype_of_x(dtype):
    spy = Spy(lambda x, sigma, **_: x / (1 + sigma[:, None] ** 2))
    told = []
    found = sampler("heun")(spy, noise(dtype=dtype), SIGMAS.float(), callback=told.append, disable=True)
    assert found.dtype == dtype
    assert spy.dtypes == {dtype}
    assert {one[key].dtype for one in told for key in ("x", "denoised")} == {dtype}
    exact = sampler("heun")(lambda x, s: x / (1 + s[:, None] ** 2), noise(), SIGMAS, disable=True)
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=5e-3 if dtype == torch.float16 else 1e-6)


def test_guidance_and_clipping_are_those_of_the_verbs():
    model = labelled()
    kwargs = {"cond": {"label": torch.linspace(-1, 1, 6)}, "guidance_scale": 2.5, "clip_denoised": 0.8}
    wrapped = to_denoiser(model, **kwargs)
    grid = [80.0, 20.0, 3.0, 0.5, 0.01, 0.0]
    expected = ods.sample(model, x=noise(scale=80), solver="euler", grid=grid, state_dtype=F64, **kwargs)
    found = sampler("euler")(wrapped, noise(scale=80), grid, disable=True)
    torch.testing.assert_close(found, expected.x, rtol=0, atol=1e-10)
    assert found.abs().max() <= 0.8 + 1e-10
    usual = to_denoiser(dataclasses.replace(model, cond={"label": 1.0}, guidance_scale=3.0))
    explicit = to_denoiser(model, cond={"label": 1.0}, guidance_scale=3.0)
    assert torch.equal(usual(noise(), 1.0), explicit(noise(), 1.0))
    assert not torch.allclose(usual(noise(), 1.0), to_denoiser(model, cond={"label": 1.0})(noise(), 1.0))


@every_family
def test_the_clock_of_a_denoiser_is_the_models(family):
    model = finite(family)
    ours = to_denoiser(model)
    low, high = model.range
    sigma = torch.tensor([low, 0.5, 2.0, high], dtype=F64)
    torch.testing.assert_close(ours.sigma_to_t(sigma), model.schedule.t(sigma))
    torch.testing.assert_close(ours.t_to_sigma(ours.sigma_to_t(sigma)), sigma)
    assert ours.sigma_to_t(sigma.float()).dtype == torch.float32
    sigmas = ours.get_sigmas(9)
    assert sigmas.dtype == torch.float32
    assert len(sigmas) == 10
    assert sigmas[-1] == 0
    assert [sigmas[0].item(), sigmas[-2].item()] == pytest.approx([high, low], rel=1e-6)
    steps = ours.sigma_to_t(sigmas[:-1].double()).diff()
    torch.testing.assert_close(steps, steps.mean().expand(8), rtol=1e-3, atol=1e-4)
    sampler("dpmpp_2m")(ours, noise(dtype=torch.float32, scale=high), sigmas, disable=True)  # no sigma is outside


def test_of_a_table_the_sigmas_are_those_of_its_entries():
    schedule = VP.linear(100)
    sigmas = to_denoiser(mixture().model(schedule)).get_sigmas(100)
    table = torch.tensor(schedule.alpha_bar, dtype=F64)
    torch.testing.assert_close(sigmas[:-1].double().flip(0), ((1 - table) / table).sqrt(), rtol=1e-6, atol=0)


def flow_euler(x_t, times, answers):
    """dx_t/du = (x_t - denoised) / u."""
    for u, v in pairwise(times):
        answer = answers(x_t, u)
        x_t = x_t + (v - u) * (x_t - answer) / u
    return x_t


@pytest.mark.parametrize("last", [0.0, 0.2])
def test_flow_models_are_asked_as_comfyui_asks_them(last):
    model = mixture().model(RectifiedFlow(clock_scale=1000.0), "flow")
    ours = to_denoiser(model, flow=True)
    assert ours.sigma_max == 1.0
    assert ours.sigma_min == pytest.approx(1e-3)
    times = torch.tensor([1.0, 0.8, 0.5, 0.3, last], dtype=F64)
    expected = flow_euler(noise(scale=1), times, ours)
    told = []
    found = sampler("euler", flow=True)(ours, noise(scale=1), times, None, told.append, True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert [one["sigma_hat"].item() for one in told] == pytest.approx(times[:-1].tolist())
    for one in told:
        torch.testing.assert_close(one["denoised"], ours(one["x"], one["sigma_hat"]), rtol=0, atol=1e-12)
    again = from_denoiser(ours, flow=True)
    assert again.range == pytest.approx(model.range)
    assert from_denoiser(ours, flow=True, sigma_max=0.8).range[1] == pytest.approx(4.0)
    torch.testing.assert_close(ours.sigma_to_t(times[:-1]), 1000 * times[:-1])
    torch.testing.assert_close(ours.t_to_sigma(1000 * times[:-1]), times[:-1])
    assert ours.get_sigmas(3).tolist() == pytest.approx([1.0, 0.5005, 1e-3, 0.0])
    found = sampler("euler", flow=True)(ours, noise(scale=1), times[1:], disable=True)  # as from an image
    torch.testing.assert_close(found, flow_euler(noise(scale=1), times[1:], ours), rtol=0, atol=1e-12)
    for sigma in (math.inf, 4.0, torch.tensor([math.inf, 3.0, 2.0, 1.0, 0.5, 0.1], dtype=F64)):
        torch.testing.assert_close(again(noise(), sigma), model(noise(), sigma), rtol=1e-9, atol=1e-11)
    if last == 0:
        verb = ods.sample(model, x=noise(scale=1), solver="heun", grid="shift(shift=2)", num_steps=5, state_dtype=F64)
        u = [
            s / (1 + s) if s < math.inf else 1.0
            for s in ods.make_grid("shift(shift=2)", model.schedule, 5, into_zero=True)
        ]
        there = sampler("heun", flow=True)(ours, noise(scale=1), u, disable=True)
        torch.testing.assert_close(there, verb.x, rtol=0, atol=1e-11)


def test_seeds_belong_to_samples_and_may_be_as_large_as_comfyuis():
    run = sampler("euler_ancestral")
    one = run(Theirs(), noise(), SIGMAS, {"seed": 2**64 - 1}, disable=True)
    assert torch.equal(one, run(Theirs(), noise(), SIGMAS, {"seed": 2**64 - 1}, disable=True))
    assert not torch.allclose(one, run(Theirs(), noise(), SIGMAS, {"seed": 3}, disable=True))
    some = run(Theirs(), noise()[2:4], SIGMAS, seed=[9, 5], disable=True)
    both = run(Theirs(), noise()[1:4], SIGMAS, seed=[1, 9, 5], disable=True)
    torch.testing.assert_close(some, both[1:], rtol=0, atol=1e-13)
    path = sampler("euler_ancestral", noise="brownian")(Theirs(), noise(), SIGMAS, seed=3, disable=True)
    assert not torch.allclose(path, run(Theirs(), noise(), SIGMAS, seed=3, disable=True))


@pytest.mark.parametrize("solver", ["euler", "alf", "unipc", "belm"])
def test_one_step_into_zero_is_the_denoised_image(solver):
    """Also of a function that says nothing of its range, where the grid has one sigma only."""
    told = []
    found = sampler(solver)(lambda x, s: denoised(x, s[0]), noise(), [3.0, 0.0], None, told.append, True)
    torch.testing.assert_close(found, denoised(noise(), 3.0), rtol=0, atol=1e-13)
    assert [one["i"] for one in told] == [0]


def test_no_gradients_are_kept():
    layer = nn.Linear(2, 2).double()
    found = sampler("heun")(lambda x, s: layer(x), noise().requires_grad_(), SIGMAS, disable=True)
    assert not found.requires_grad


def test_the_bar_is_shown_unless_disabled(capsys):
    for disable, shown in ((True, False), (False, True), (None, False)):  # None: only in a terminal
        sampler("euler")(Theirs(), noise(), SIGMAS, disable=disable)
        assert ("0/6" in capsys.readouterr().err) is shown


def nobody(*_, **__):
    raise AssertionError("the model was asked")


REFUSED = {
    "rising from zero": (lambda: SIGMAS.flip(0), "cannot be undone"),
    "not monotone": (lambda: torch.tensor([3.0, 1.0, 2.0, 0.0]), "monotone"),
    "repeated": (lambda: torch.tensor([3.0, 3.0, 0.0]), "monotone"),
    "one": (lambda: torch.tensor([3.0]), "two sigmas"),
    "integers": (lambda: torch.tensor([3, 1, 0]), "floating-point"),
    "a table": (lambda: SIGMAS[None], "one row"),
    "negative": (lambda: torch.tensor([3.0, 1.0, -1.0]), "0 or more"),
    "not a number": (lambda: torch.tensor([3.0, math.nan, 0.0]), "0 or more"),
    "infinity": (lambda: torch.tensor([math.inf, 1.0, 0.0]), "flow=True"),
}


@pytest.mark.parametrize(("sigmas", "why"), REFUSED.values(), ids=REFUSED)
def test_sigmas_that_are_no_grid_are_refused_before_the_model_is_called(sigmas, why):
    with pytest.raises(ValueError, match=why):
        sampler("euler")(nobody, noise(), sigmas(), disable=True)


def test_what_else_a_sampler_refuses_before_the_model_is_called():
    with pytest.raises(ValueError, match="a loop of its own"):
        sampler("scipy:RK45")
    with pytest.raises(ValueError, match="unknown solver"):
        sampler("sample_euler")
    with pytest.raises(ValueError, match="brownian"):
        sampler("euler_a", noise="pink")
    with pytest.raises(ValueError, match="cannot encode"):
        sampler("euler_a")(nobody, noise(), SIGMAS[:-1].flip(0), disable=True)
    with pytest.raises(ValueError, match="times u"):
        sampler("euler", flow=True)(nobody, noise(), SIGMAS, disable=True)
    with pytest.raises(TypeError, match="floating-point"):
        sampler("euler")(nobody, noise().long(), SIGMAS, disable=True)
    with pytest.raises(ValueError, match="finite"):
        sampler("euler")(nobody, noise() / 0, SIGMAS, disable=True)
    with pytest.raises(TypeError, match="model is called as"):
        sampler("euler")(None, noise(), SIGMAS, disable=True)
    with pytest.raises(ValueError, match="seeds"):
        sampler("euler")(nobody, noise(), SIGMAS, seed=[1], disable=True)
    with pytest.raises(ValueError, match="shape of its question"):
        sampler("euler")(lambda x, s: x[:, :1], noise(), SIGMAS, disable=True)


def test_what_from_denoiser_refuses():
    with pytest.raises(ValueError, match="no attribute sigma_min"):
        from_denoiser(nobody, sigma_max=3.0)
    with pytest.raises(ValueError, match="no attribute sigma_max"):
        from_denoiser(nobody, sigma_min=0.1)
    with pytest.raises(ValueError, match="sigma_max=inf"):
        from_denoiser(nobody, sigma_min=0.1, sigma_max=math.inf)
    with pytest.raises(ValueError, match="sigma_min=0,"):
        from_denoiser(Theirs(low=0.0))
    with pytest.raises(ValueError, match="up to 1"):
        from_denoiser(Theirs(), flow=True)
    with pytest.raises(ValueError, match="sigma_min of Theirs must be a number"):
        from_denoiser(Theirs(), sigma_min=torch.zeros(2))
    with pytest.raises(TypeError, match="denoiser"):
        from_denoiser("model.ckpt", sigma_min=0.1, sigma_max=3.0)


def test_what_to_denoiser_refuses_before_the_network_is_called():
    def network(x_t, t, **cond):
        nobody()

    model = ods.Model(network, VP.linear(), null_cond={"label": 0}, name="mine", data_shape=(2,))
    ours = to_denoiser(model)
    for sigma in (200.0, 1e-3, math.nan, 0.0):
        with pytest.raises(ValueError, match="outside its range"):
            ours(noise(), torch.full((6,), sigma))
    with pytest.raises(ValueError, match="got 'lable'"):
        to_denoiser(model, cond={"lable": 3})
    with pytest.raises(ValueError, match="got 'text'"):
        ours(noise(), 1.0, text=torch.zeros(6))
    with pytest.raises(ValueError, match="must have shape"):
        ours(torch.zeros(6, 3), 1.0)
    with pytest.raises(ValueError, match="null condition"):
        to_denoiser(mixture().model(), guidance_scale=2.0)
    with pytest.raises(ValueError, match="flow=True"):
        to_denoiser(mixture().model(RectifiedFlow(), "flow"))
    with pytest.raises(ValueError, match="sigma_max=1000"):
        to_denoiser(mixture().model(VP.linear().with_zero_snr(), "v"))
    with pytest.raises(ValueError, match="RectifiedFlow"):
        to_denoiser(mixture().model(), flow=True)
    with pytest.raises(TypeError, match="model must be an"):
        to_denoiser(network)
    with pytest.raises(ValueError, match="num_steps"):
        ours.get_sigmas(0)


def test_a_float32_sigma_a_rounding_beyond_the_end_is_taken_as_the_end():
    asked = []

    def network(x_t, t):
        asked.append(t.tolist())
        return x_t

    model = ods.Model(network, VP.linear(), dtype=F64)
    ours = to_denoiser(model)
    low, high = model.range
    beyond = torch.tensor([low * (1 - 1e-6), high * (1 + 1e-6)], dtype=F64)
    ours(noise(2), beyond)
    assert asked[0] == pytest.approx([0.0, 999.0], abs=1e-9)


def test_the_names_of_the_page_are_there():
    assert ods.adapters.kdiffusion is kdiffusion
    assert sampler("heun").__name__ == "sample_heun"


def test_a_condition_goes_before_an_extra_argument_of_its_name():
    def denoiser(x, sigma, gain):
        return x * gain

    model = kdiffusion.from_denoiser(denoiser, sigma_min=0.1, sigma_max=10.0, extra_args={"gain": 1.0})
    x = torch.ones(1, 2)
    assert torch.equal(model(x, 1.0), torch.zeros(1, 2))
    assert torch.equal(model(x, 1.0, gain=torch.zeros(1, 1)), torch.ones(1, 2))
