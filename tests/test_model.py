"""The model: a network's scale, clock and conditions, and how a latent knows it again."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from odesampler.drive import run
from odesampler.guidance import guided
from odesampler.integrate import on_grid
from odesampler.model import Model
from odesampler.schedule import VE, VP, RectifiedFlow
from odesampler.solvers import Heun
from odesampler.threshold import thresholded
from tests.problems import geometric, labelled, mixture, noise


def test_a_condition_that_is_not_given_is_the_null_condition():
    calls = []
    torch.testing.assert_close(labelled(calls)(noise(3), 1.0), mixture()(noise(3), 1.0), rtol=0, atol=1e-13)
    assert calls == [[0.0] * 3]


def test_of_two_conditions_the_one_that_is_given_is_kept_and_the_other_is_null():
    def network(x_t, t, label, size):
        seen.append((label.tolist(), size.tolist()))
        return x_t

    seen = []
    model = Model(network, VE(), null_cond={"label": 9, "size": 7})
    model(noise(2), 1.0, label=torch.tensor([1, 2]))
    model(noise(2), 1.0, size=torch.tensor([5, 6]))
    assert seen == [([1, 2], [7, 7]), ([9, 9], [5, 6])]


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"autocast": "bfloat16"}, TypeError, "autocast must be a dtype such as torch.bfloat16; got 'bfloat16'"),
        ({"dtype": "float32"}, TypeError, "dtype must be a dtype such as torch.bfloat16; got 'float32'"),
        ({"dtype": torch.int32}, ValueError, "dtype must be a floating-point dtype; got torch.int32"),
        ({"autocast": torch.int8}, ValueError, "autocast must be torch.bfloat16 or torch.float16; got torch.int8"),
        ({"autocast": torch.float32}, ValueError, "autocast must be torch.bfloat16 or torch.float16.*Model.dtype"),
        ({"data_shape": ()}, ValueError, r"data_shape is that of one sample, such as \(3, 32, 32\), or None; got \(\)"),
        ({"data_shape": (3, 0)}, ValueError, r"data_shape is that of one sample.* got \(3, 0\)"),
        ({"data_shape": 3}, ValueError, "data_shape is that of one sample.* got 3"),
        ({"null_cond": ["label"]}, TypeError, r"null_cond is a mapping from names.* got \['label'\]"),
        ({"null_cond": {3: 1}}, TypeError, "null_cond is a mapping from names.* got {3: 1}"),
        ({"null_cond": {"label": "none"}}, TypeError, r"null_cond\['label'\] must be a number or a tensor; got 'none'"),
        ({"cond": {"label": None}}, TypeError, r"cond\['label'\] must be a number or a tensor; got None"),
    ],
)
def test_what_is_none_is_refused_when_the_model_is_made(how, error, message):
    with pytest.raises(error, match=message):
        Model(lambda x_t, t: x_t, VE(), **how)


class Counting(TorchDispatchMode):
    """Notes the tensor operations that are carried out."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_a_plain_model_costs_its_network_its_clock_its_scale_and_nothing_else():
    model = Model(lambda x_t, t: x_t.neg(), VP.linear(), "eps")
    x = noise()
    assert thresholded(guided(model, 1.0), None) is model
    model(x, 1.5)  # what a sigma means to a schedule is computed once, on the host
    with Counting() as counted:
        model(x, 1.5)
    assert sorted(counted.names) == ["mul", "neg", "new_full"]


def test_a_copy_under_autocast_asks_its_own_network():
    model, x = Model(_Timeless(), VP.linear(), autocast=torch.bfloat16), noise(dtype=torch.float32)
    before = model(x, 1.5)
    copied, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    torch.nn.init.zeros_(copied.network.weight)
    assert before.abs().max() > 0
    assert pickled(x, 1.5).equal(before)
    assert copied(x, 1.5).abs().max() == 0


class _Timeless(nn.Linear):
    def __init__(self):
        super().__init__(2, 2, bias=False)

    def forward(self, x_t, t):
        return super().forward(x_t)


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


def test_the_dtype_of_a_network_is_that_of_its_weights_now():
    """Not of a finer table that it keeps, nor what it was when first asked."""

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("betas", torch.linspace(0, 1, 5, dtype=torch.float64))
            self.inner = torch.nn.Linear(2, 2)

        def forward(self, x_t, t):
            return self.inner(x_t)

    model = Model(Network(), VP.linear(), data_shape=(2,))
    assert model.network_dtype == torch.float32
    model.network.half()
    assert model.network_dtype == torch.float16
    model.network.inner = torch.nn.Linear(2, 2)
    model.network.inner.load_state_dict(torch.nn.Linear(2, 2).double().state_dict(), assign=True)
    assert Model(model.network, VP.linear()).network_dtype == torch.float64
    only_a_table = torch.nn.Module()
    only_a_table.register_buffer("betas", torch.ones(3, dtype=torch.float64))
    only_a_table.forward = lambda x_t, t: x_t
    assert Model(only_a_table, VP.linear()).network_dtype == torch.float64


@pytest.mark.parametrize(("t", "told"), [(300.2, 300), (300.7, 301), (0.4, 0)])
@pytest.mark.parametrize("one", [True, False], ids=["one sigma", "one a sample"])
def test_a_clock_of_whole_numbers_is_told_the_nearest(t, told, one):
    asked = []

    def network(x_t, clock):
        asked.append(clock)
        return x_t

    model, schedule = Model(network, VP.linear(), round_t=True), VP.linear()
    sigma = schedule.sigma(torch.tensor([t, t], dtype=torch.float64))
    model(torch.zeros(2, 3), sigma[0].item() if one else sigma)
    assert asked[0].dtype == torch.int64
    assert asked[0].tolist() == [told, told]
