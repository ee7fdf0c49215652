"""The model: a network's scale, clock and conditions, guidance, and how a latent knows it again."""

import pytest
import torch
from torch import nn

from odesampler.drive import run
from odesampler.integrate import OnGrid, on_grid, solve
from odesampler.model import Guided, Model
from odesampler.program import State
from odesampler.schedule import VE, VP, RectifiedFlow
from odesampler.solvers import Heun
from tests.problems import geometric, mixture, noise


def labelled(calls=None):
    """A network of EDM's family that a label shifts."""

    def network(x_t, t, label):
        if calls is not None:
            calls.append(label.tolist())
        return mixture()(x_t, t) + label[:, None]

    return Model(network, VE(), null_cond={"label": 0.0}, name="labelled")


LABEL = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)


@pytest.mark.parametrize("sigma", [1.5, torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)], ids=["shared", "each"])
@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0, -1.0])
def test_guidance_goes_from_unconditional_past_conditional_in_one_call(scale, sigma):
    calls, x = [], noise(3)
    guided = labelled(calls).guided(scale)
    free, conditional = mixture()(x, sigma), mixture()(x, sigma) + LABEL[:, None]
    torch.testing.assert_close(guided(x, sigma, label=LABEL), free + scale * (conditional - free), rtol=0, atol=1e-13)
    assert calls == [[1.0, 2.0, 3.0, 0.0, 0.0, 0.0]]


def test_guidance_of_1_is_off_and_costs_nothing():
    model = labelled()
    assert model.guided(1.0) is model
    assert isinstance(model.guided(1.5), Guided)


def test_guidance_without_a_null_condition_is_refused():
    with pytest.raises(ValueError, match="guidance_scale=3 needs a model with a null condition"):
        mixture().model(VE()).guided(3)


def test_a_condition_that_is_not_given_is_the_null_condition():
    calls = []
    model = labelled(calls)
    torch.testing.assert_close(model(noise(3), 1.0), mixture()(noise(3), 1.0), rtol=0, atol=1e-13)
    guided = model.guided(2.0)
    torch.testing.assert_close(guided(noise(3), 1.0), mixture()(noise(3), 1.0), rtol=0, atol=1e-13)
    assert calls == [[0.0] * 3, [0.0] * 6]


def test_conditions_without_a_null_are_given_to_both_halves():
    seen = []

    def network(x_t, t, label, size):
        seen.append((label.tolist(), size.tolist()))
        return x_t

    model = Model(network, VE(), null_cond={"label": 9})
    model.guided(2.0)(noise(2), 1.0, label=torch.tensor([1, 2]), size=torch.tensor([5, 6]))
    assert seen == [([1, 2, 9, 9], [5, 6, 5, 6])]


def test_guidance_is_linear_at_infinity_too():
    def network(x_t, t, label):
        return x_t - label[:, None]  # a flow whose image is the label

    guided = Model(network, RectifiedFlow(), "flow", null_cond={"label": 0.5}).guided(3.0)
    image = 0.5 + 3.0 * (LABEL - 0.5)
    start = State(noise(3))
    [done] = run(solve(OnGrid(Heun()), start, [float("inf"), 0.0]), model=guided, cond={"label": LABEL})
    torch.testing.assert_close(done.state.x, image[:, None].expand(3, 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("prediction", ["eps", "denoised", "v", "flow"])
def test_clipping_clamps_the_predicted_image_and_nothing_else(prediction):
    model, x, sigma = mixture().model(VP.linear(), prediction), noise(), 1.2
    image = x - sigma * model(x, sigma)
    clipped = model.clipped(0.3)
    torch.testing.assert_close(x - sigma * clipped(x, sigma), image.clamp(-0.3, 0.3), rtol=0, atol=1e-9)
    assert (image.abs() > 0.3).any()
    torch.testing.assert_close(model.clipped(1e6)(x, sigma), model(x, sigma), rtol=0, atol=1e-9)
    assert model.clipped(None) is model
    assert clipped.clipped(None).clip_denoised is None


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan")])
def test_a_clip_that_is_not_positive_is_refused(clip):
    with pytest.raises(ValueError, match="clip_denoised must be positive"):
        mixture().model(VE()).clipped(clip)


@pytest.mark.parametrize("sigma", [2.0, torch.tensor([2.0, 1.0, 3.0])], ids=["shared", "each"])
def test_a_network_that_answers_in_another_shape_is_named_with_the_sigma(sigma):
    model = Model(lambda x_t, t: torch.cat([x_t, x_t], 1), VE(), name="two-headed")
    with pytest.raises(ValueError, match=r"two-headed was asked at sigma = 2 with x of shape \(3, 2\) and .*\(3, 4\)"):
        model(noise(3), sigma)


def test_the_network_sees_the_scale_of_its_family_and_its_clock():
    seen = []
    model = Model(lambda x_t, t: (seen.append((x_t, t)), x_t)[1], RectifiedFlow(1000.0), "v")
    x = noise(2)
    model(x, 3.0)
    model(x, torch.tensor([3.0, 1.0]))
    torch.testing.assert_close(seen[0][0], 0.25 * x)
    assert seen[0][1].tolist() == pytest.approx([750, 750])
    torch.testing.assert_close(seen[1][0], torch.tensor([[0.25], [0.5]]) * x)
    assert seen[1][1].tolist() == pytest.approx([750, 500])


class Net(nn.Module):
    def __init__(self, width=300):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, width)
        self.out = nn.Linear(width, 2)

    def forward(self, x_t, t):
        return self.out(self.layer(x_t).tanh()) * t[:, None]


def test_a_model_has_one_fingerprint_which_any_change_of_it_changes():
    def changed():
        net = Net()
        with torch.no_grad():
            net.layer.bias += 1e-3
        return net

    same = [Model(Net(), VP.linear()).fingerprint() for _ in range(2)]
    others = [
        Model(changed(), VP.linear()),
        Model(Net(299), VP.linear()),
        Model(Net().double(), VP.linear()),
        Model(Net(), VP.scaled_linear()),
        Model(Net(), VP.linear(), "v"),
        Model(Net(), VP.linear(), sigma_min=0.1),
        Model(Net(), VP.linear(), round_t=True),
        Model(Net(), VP.linear(), data_shape=(2,)),
    ]
    assert same[0] == same[1]
    assert len({same[0], *(m.fingerprint() for m in others)}) == 1 + len(others)
    assert Model(Net(), VP.linear(), name="renamed").fingerprint() == same[0]


def test_the_dtype_of_the_parameters_is_the_dtype_of_the_network():
    model = Model(Net(), VE())
    x = noise()
    state = run(on_grid(Heun(), x, geometric(2)), model=model)[0]
    assert state.x.dtype == torch.float64
    assert model(x, 1.0).dtype == torch.float64
    torch.testing.assert_close(model(x, 1.0), Net()(x.float(), torch.ones(6)).double())


def test_gradients_reach_the_parameters_and_none_is_kept_where_none_is_wanted():
    net = Net().double()
    [state] = run(on_grid(Heun(), noise(), geometric(2)), model=Model(net, VE()))
    state.x.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    with torch.no_grad():
        [quiet] = run(on_grid(Heun(), noise(), geometric(2)), model=Model(net, VE()))
    assert not quiet.x.requires_grad
