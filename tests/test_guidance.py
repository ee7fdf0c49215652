"""Guidance: scale, rescaling and interval, against their formulas, diffusers, and the rows that the network sees."""

import math
import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import odesampler as ods
from odesampler import drive
from odesampler import prediction as predictions
from odesampler.drive import run
from odesampler.guidance import Guidance, Guided, guided
from odesampler.integrate import OnGrid, solve
from odesampler.model import Model
from odesampler.program import State
from odesampler.schedule import VE, VP, RectifiedFlow
from odesampler.solvers import Heun
from tests.problems import labelled, mixture, noise

LABEL = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
EACH = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
shared_and_each = pytest.mark.parametrize("sigma", [1.5, EACH], ids=["shared", "each"])
DIGITS = ods.load("digits", dtype=torch.float64)
HELD = ods.held_out("digits").images[:2]
LABELLED = {"label": 1}


@shared_and_each
@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0, -1.0])
def test_guidance_goes_from_unconditional_past_conditional_in_one_call(scale, sigma):
    calls, x = [], noise(3)
    free, conditional = mixture()(x, sigma), mixture()(x, sigma) + LABEL[:, None]
    eps = guided(labelled(calls), scale)(x, sigma, label=LABEL)
    torch.testing.assert_close(eps, free + scale * (conditional - free), rtol=0, atol=1e-13)
    assert calls == [[1.0, 2.0, 3.0, 0.0, 0.0, 0.0]]


def test_guidance_of_1_is_off_and_costs_nothing():
    model = labelled()
    assert guided(model, 1.0) is guided(model, Guidance(1, rescale=0.7, interval=(0.1, 1.0))) is model
    assert isinstance(guided(model, 1.5), Guided)


def test_guidance_of_no_condition_goes_nowhere():
    calls = []
    eps = guided(labelled(calls), 2.0)(noise(3), 1.0)
    torch.testing.assert_close(eps, mixture()(noise(3), 1.0), rtol=0, atol=1e-13)
    assert calls == [[0.0] * 6]


def test_conditions_without_a_null_are_given_to_both_halves():
    seen = []

    def network(x_t, t, label, size):
        seen.append((label.tolist(), size.tolist()))
        return x_t

    model = guided(Model(network, VE(), null_cond={"label": 9}), 2.0)
    model(noise(2), 1.0, label=torch.tensor([1, 2]), size=torch.tensor([5, 6]))
    assert seen == [([1, 2, 9, 9], [5, 6, 5, 6])]


def test_a_null_condition_may_be_a_number_a_truth_value_or_a_tensor():
    null = {"label": 3, "wide": True, "embedding": torch.tensor([1.0, 2.0])}
    made = Model(lambda x_t, t, **cond: x_t, VE(), null_cond=null).nothing(2)
    assert {k: v.tolist() for k, v in made.items()} == {
        "label": [3, 3],
        "wide": [True, True],
        "embedding": [[1.0, 2.0], [1.0, 2.0]],
    }
    assert [v.dtype for v in made.values()] == [torch.int64, torch.bool, torch.float32]


# ---- at any sigma and with any prediction --------------------------------------------------------------------------


def flow_to_label(null=0.5):
    return Model(lambda x_t, t, label: x_t - label[:, None], RectifiedFlow(), "flow", null_cond={"label": null})


def test_guidance_is_linear_at_infinity_too():
    start, image = State(noise(3)), 0.5 + 3.0 * (LABEL - 0.5)
    program = solve(OnGrid(Heun()), start, [math.inf, 0.0])
    [done] = run(program, model=guided(flow_to_label(), 3.0), cond={"label": LABEL})
    torch.testing.assert_close(done.state.x, image[:, None].expand(3, 2), rtol=0, atol=1e-12)


def test_samples_at_infinity_and_below_are_guided_together_as_apart():
    eps, x = guided(flow_to_label(), Guidance(3.0, rescale=0.7)), noise(3)
    together = eps(x, torch.tensor([math.inf, 2.0, 0.5], dtype=torch.float64), label=LABEL)
    apart = [eps(x[i : i + 1], s, label=LABEL[i : i + 1]) for i, s in enumerate((math.inf, 2.0, 0.5))]
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-12, atol=1e-12)


@shared_and_each
@pytest.mark.parametrize("prediction", ["eps", "denoised", "v", "flow"])
def test_without_rescaling_it_does_not_matter_what_the_network_predicts(prediction, sigma):
    """The same network told in other words; its label shifts eps."""
    schedule = VP.linear()

    def network(x_t, t, label):
        s = schedule.sigma(t)[:, None]
        alpha, std = schedule.alpha(s), schedule.std(s)
        eps = mixture()(x_t / alpha, s.flatten()) + label[:, None]
        return predictions.from_eps(prediction, eps, x_t / alpha - s * eps, alpha, std)

    x = noise(3)
    eps = guided(Model(network, schedule, prediction, null_cond={"label": 0.0}), 3.0)(x, sigma, label=LABEL)
    torch.testing.assert_close(eps, mixture()(x, sigma) + 3.0 * LABEL[:, None], rtol=1e-9, atol=1e-9)


# ---- rescaling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rescale", [0.0, 0.3, 1.0])
def test_rescaling_is_that_of_diffusers(rescale):
    theirs = pytest.importorskip("diffusers.guiders.guider_utils").rescale_noise_cfg
    conditional, unconditional = torch.randn(2, 4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    raw = unconditional + 7.5 * (conditional - unconditional)
    ours = Guidance(7.5, rescale).combined(conditional, unconditional)
    torch.testing.assert_close(ours, theirs(raw, conditional, rescale), rtol=1e-6, atol=1e-6)


@shared_and_each
@pytest.mark.parametrize("prediction", ["eps", "denoised", "v", "flow"])
def test_what_is_rescaled_is_what_the_network_puts_out(prediction, sigma):
    outs, schedule = [], VP.linear()

    def network(x_t, t, label):
        outs.append(torch.tanh(x_t) + label[:, None] * x_t.flip(1))
        return outs[-1]

    x, model = noise(3), Model(network, schedule, prediction, null_cond={"label": 0.0})
    eps = guided(model, Guidance(4.0, rescale=1.0))(x, sigma, label=LABEL)
    s = torch.as_tensor(sigma, dtype=torch.float64).expand(3)[:, None]
    alpha, std = schedule.alpha(s), schedule.std(s)
    out = predictions.from_eps(prediction, eps, x - s * eps, alpha, std)
    torch.testing.assert_close(out.std(1), outs[0][:3].std(1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(3, 4), (3, 1)], ids=["zeros", "one value a sample"])
def test_a_prediction_without_a_std_is_left_as_it_is(shape):
    constant = torch.zeros(shape) if shape[1] > 1 else torch.tensor([[1.0], [2.0], [3.0]])
    assert torch.equal(Guidance(3.0, rescale=0.7).combined(constant, constant), constant)


# ---- interval ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.5, 2.0, 2.5])
def test_outside_the_interval_only_the_conditions_are_asked_about(sigma):
    calls, x = [], noise(3)
    eps = guided(labelled(calls), Guidance(3.0, interval=(1.0, 2.0)))(x, sigma, label=LABEL)
    inside = 1.0 <= sigma <= 2.0
    assert calls == [[1.0, 2.0, 3.0, *([0.0] * 3 if inside else [])]]
    torch.testing.assert_close(eps, mixture()(x, sigma) + (3 if inside else 1) * LABEL[:, None], rtol=0, atol=1e-13)


@pytest.mark.parametrize("clip_denoised", [None, 1.0])
def test_outside_the_interval_a_call_takes_as_many_samples_as_it_has_room_for(clip_denoised):
    rows = []
    handle = DIGITS.network.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    how = {"guidance_scale": Guidance(3.0, interval=(0.5, 5.0)), "clip_denoised": clip_denoised, "cond": LABELLED}
    ods.sample(DIGITS, 4, solver="ddim", grid=[20.0, 5.0, 0.4, 0.0], max_batch=4, **how)
    handle.remove()
    assert rows == [4, 4, 4, 4], "one call above, two inside, one below"


def test_so_it_is_where_solves_are_compared():
    rows = []
    handle = DIGITS.network.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    how = {"guidance_scale": Guidance(3.0, interval=(0.5, 5.0)), "cond": LABELLED, "reference": torch.zeros(4, 1, 8, 8)}
    ods.compare(DIGITS, "ddim", grid=ods.Grid((20.0, 5.0, 0.4, 0.0), "mine"), num_samples=4, max_batch=4, **how)
    handle.remove()
    assert rows == [4, 4, 4, 4]


def test_each_sample_is_guided_where_its_own_sigma_is_inside():
    sigma = torch.tensor([0.99, 1.0, 1.5, 2.0, 2.01], dtype=torch.float64)
    x, label = noise(5), torch.ones(5, dtype=torch.float64)
    model = guided(labelled(), Guidance(3.0, rescale=0.5, interval=(1.0, 2.0)))
    eps = model(x, sigma, label=label)
    apart = torch.cat([model(x[i : i + 1], s, label=label[:1]) for i, s in enumerate(sigma.tolist())])
    torch.testing.assert_close(eps, apart, rtol=1e-12, atol=1e-12)
    shift = (eps - mixture()(x, sigma)).mean(1)
    assert [s == pytest.approx(1.0) for s in shift.tolist()] == [True, False, False, False, True]


def test_an_interval_saves_rows_but_counts_one_evaluation_a_sample_all_the_same():
    rows = []
    handle = DIGITS.network.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    guidance = Guidance(3.0, interval=(0.5, 5.0))
    drawn = ods.sample(
        DIGITS, 2, solver="ddim", grid=[20.0, 6.0, 5.0, 1.0, 0.5, 0.4, 0.0], guidance_scale=guidance, cond=LABELLED
    )
    handle.remove()
    assert rows == [2, 2, 4, 4, 4, 2]
    assert drawn.nfe.tolist() == [6, 6]


@pytest.mark.parametrize("solver", ["reversible", "rk4"])
@pytest.mark.parametrize("from_disk", [False, True], ids=["live", "from disk"])
def test_a_round_trip_makes_the_same_decisions_both_ways(tmp_path, solver, from_disk):
    images, labels = (part[:3] for part in ods.held_out("digits"))
    asked = set()  # (t, rows)
    handle = DIGITS.network.register_forward_pre_hook(
        lambda _, inputs: asked.add((round(inputs[1][0].item(), 6), len(inputs[1])))
    )
    guidance = Guidance(1.5, rescale=0.5, interval=(0.3, 4.0))
    latent = ods.encode(
        DIGITS, images.double(), solver=solver, num_steps=30, cond={"label": labels}, guidance_scale=guidance
    )
    up = asked.copy()
    asked.clear()
    if from_disk:
        latent.save(tmp_path / "z.safetensors")
        latent = ods.Latent.load(tmp_path / "z.safetensors")
    back = ods.decode(DIGITS, latent).x
    handle.remove()
    assert latent.recipe.guidance_scale == guidance
    assert {rows for _, rows in up} == {3, 6}
    assert asked == up
    assert (back - images).abs().max() < (1e-6 if solver == "reversible" else 0.3)


def test_round_trips_are_measured_under_an_interval():
    images, labels = (part[:2] for part in ods.held_out("digits"))
    guidance = Guidance(1.5, interval=(0.3, 4.0))
    report = ods.round_trip(DIGITS, images, "reversible", 8, cond={"label": labels}, guidance_scale=guidance)
    assert report.trips[0].worst < 1e-6
    assert report.trips[0].latent.recipe.guidance_scale == guidance


@pytest.mark.parametrize("how", [{"num_steps": 6}, {"rtol": 1e-2, "solver": "bosh3"}], ids=["fixed", "adaptive"])
def test_a_guided_sample_does_not_depend_on_its_batch_mates(how):
    guidance = Guidance(3.0, rescale=0.7, interval=(0.5, 5.0))
    how = {**how, "guidance_scale": guidance, "clip_denoised": ods.DynamicThreshold(), "state_dtype": torch.float64}
    together = ods.sample(DIGITS, 3, seed=[5, 6, 7], cond={"label": [1, 2, 3]}, **how)
    for i in range(3):
        alone = ods.sample(DIGITS, 1, seed=[5 + i], cond={"label": [1 + i]}, **how)
        torch.testing.assert_close(alone.x[0], together.x[i], rtol=1e-6, atol=1e-6)
        assert alone.nfe[0] == together.nfe[i]


# ---- what is refused -----------------------------------------------------------------------------------------------

BAD = [
    (lambda: Guidance(math.inf), ValueError, "finite number"),
    (lambda: Guidance("3"), TypeError, "must be a number"),
    (lambda: Guidance(True), TypeError, "must be a number"),
    (lambda: Guidance(3, rescale=1.1), ValueError, "rescale must be from 0"),
    (lambda: Guidance(3, rescale=math.nan), ValueError, "rescale must be from 0"),
    (lambda: Guidance(3, rescale=None), TypeError, "rescale must be a number"),
    (lambda: Guidance(3, interval=5.0), TypeError, "a pair of sigmas"),
    (lambda: Guidance(3, interval=(1.0, 2.0, 3.0)), TypeError, "a pair of sigmas"),
    (lambda: Guidance(3, interval="12"), TypeError, "a pair of sigmas"),
    (lambda: Guidance(3, interval=(2.0, 1.0)), ValueError, "0 <= low < high"),
    (lambda: Guidance(3, interval=(-1.0, 1.0)), ValueError, "0 <= low < high"),
    (lambda: Guidance(3, interval=(0.0, math.nan)), ValueError, "0 <= low < high"),
    (lambda: ods.sample(DIGITS, 1, guidance_scale="much"), TypeError, "guidance_scale must be a number"),
    (lambda: ods.sample(DIGITS, 1, guidance_scale=Guidance(3, interval=(500, 900))), ValueError, "leave guidance out"),
    (lambda: ods.sample(DIGITS, 1, guidance_scale=Guidance(3, interval=(0, 1e-5))), ValueError, "leave guidance out"),
    (lambda: ods.round_trip(mixture().model(VE()), noise(2), guidance_scale=3), ValueError, "with a null condition"),
    (lambda: guided(mixture().model(VE()), 3), ValueError, "guidance_scale=3 needs a model with a null condition"),
]


@pytest.mark.parametrize(("call", "kind", "message"), BAD, ids=range(len(BAD)))
def test_guidance_that_cannot_be_meant_is_refused(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_a_guidance_that_is_no_more_than_a_scale_makes_the_same_recipe():
    images = ods.held_out("digits").images[:1]
    plain, object_, listed, paired = (
        ods.encode(DIGITS, images, num_steps=2, cond=LABELLED, guidance_scale=g).recipe
        for g in (2, Guidance(2), Guidance(2, interval=[1, 5]), Guidance(2.0, interval=(1.0, 5.0)))
    )
    assert plain == object_
    assert plain.guidance_scale == 2.0
    assert listed == paired != plain


QUICK = ods.Model(
    lambda x_t, t, label: 0.5 * x_t, ods.VP.linear(), null_cond={"label": 10}, data_shape=(1, 8, 8), data_range=(-1, 1)
)
VERBS = {
    "sample": lambda **how: ods.sample(DIGITS, 2, num_steps=2, **how),
    "encode": lambda **how: ods.encode(DIGITS, HELD, num_steps=2, **how),
    "round_trip": lambda **how: ods.round_trip(DIGITS, HELD, ["ddim", "heun"], 2, **how),
    "round_trip with sources": lambda **how: ods.round_trip(QUICK, HELD[:1], "ddim", 2, sources=True, **how),
    "estimate": lambda **how: ods.estimate_round_trip(DIGITS, HELD, solver="ddim", num_steps=2, **how),
    "error_sources": lambda **how: ods.error_sources(QUICK, HELD, solver="ddim", num_steps=2, iterations=0, **how),
    "compare": lambda **how: ods.compare(DIGITS, ["ddim"], [2, 3], num_samples=2, reference_steps=20, **how),
    "likelihood": lambda **how: ods.log_likelihood(DIGITS, HELD, num_steps=4, solver="multistep", **how),
    "consistency": lambda **how: ods.consistency(DIGITS, (2, 3, 4), 2, **how),
    "interpolation_grid": lambda **how: ods.interpolation_grid(DIGITS, (0, 1), 3, num_steps=2, **how),
    "trajectory_plane": lambda **how: ods.trajectory_plane(DIGITS, ["ddim", "heun"], 2, reference_steps=20, **how),
}


@pytest.mark.parametrize("verb", VERBS)
def test_guidance_without_a_condition_is_said_to_have_no_effect_once_a_call(verb):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        VERBS[verb](guidance_scale=ods.Guidance(5.0))
        said = [str(w.message) for w in caught if "no effect" in str(w.message)]
        places = {w.filename for w in caught if "no effect" in str(w.message)}
        VERBS[verb](guidance_scale=1.0)
        VERBS[verb](guidance_scale=2.0, cond={"label": 3})
    assert said == [
        "guidance_scale=5 has no effect: no condition is given, so there is nothing to guide towards; "
        "give cond={'label': ...}"
    ]
    assert places == {__file__}
    assert sum("no effect" in str(w.message) for w in caught) == 1


class Copies(TorchDispatchMode):
    """Notes what is copied from one device to another."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        read, made = ({v.device for v in tree_leaves(v) if isinstance(v, torch.Tensor)} for v in ((args, kwargs), out))
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_) and len(read | made) > 1:
            self.seen.append(str(func))
        return out


class Embedded(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x_t, t, label, prompt, mask):
        return self.layer(x_t) + label[:, None] + prompt.mean(1, keepdim=True) + mask


@pytest.mark.parametrize("given", [{}, {"label": torch.ones(3)}], ids=["no condition", "one of three"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_null_conditions_kept_on_the_host_go_to_the_device_once(scale, given, monkeypatch):
    """A copy to it waits. On the meta device, where a read would raise."""
    monkeypatch.setattr(drive.Watch, "settle", lambda self: self.kept.clear())
    null = {"label": 0.0, "prompt": torch.zeros(4), "mask": [1.0, 0.0]}
    model = Model(Embedded(), VP.linear(), null_cond=null).to("meta")
    eps, given = guided(model, scale), {k: v.to("meta") for k, v in given.items()}

    start = State(noise(3).to("meta"))

    def copies():
        with torch.no_grad(), Copies() as counted:
            run(solve(OnGrid(Heun()), start, [3.0, 2.0, 1.0]), model=eps, cond=given)
        return counted.seen

    assert len(copies()) == 1, "of the prompt; that of the list is not seen"
    assert copies() == []
    masks = [model.nothing(n)["mask"]._base for n in (2, 3)]
    assert masks[0] is masks[1], "the list became a tensor once more"


def test_null_conditions_follow_the_network_to_another_device_and_a_learned_one_is_read_anew():
    learned = torch.zeros(2, requires_grad=True)
    model = Model(torch.nn.Linear(2, 2), VE(), null_cond={"prompt": learned, "mask": [1.0, 2.0]})
    with torch.inference_mode():
        assert model.nothing(2)["mask"].tolist() == [[1.0, 2.0]] * 2
    assert not model.nothing(2)["mask"].is_inference()
    with torch.no_grad():
        model.to("meta").nothing(2)
    assert {v.device.type for v in model.nothing(3).values()} == {"meta"}
    prompts = [model.nothing(3)["prompt"] for _ in range(2)]
    assert all(prompt.requires_grad for prompt in prompts)
    assert prompts[0]._base is not prompts[1]._base
