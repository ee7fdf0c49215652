"""EDM's networks: preconditioning against table 1 of the paper, networks that hold theirs, and what is refused."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import odesampler as ods
from odesampler.adapters import edm
from odesampler.exact import Gaussian
from odesampler.schedule import VE, VP, ContinuousVP
from tests.problems import mixture, noise

F64 = torch.float64
SIGMA = torch.tensor([0.03, 0.1, 0.5, 2.0, 10.0, 60.0], dtype=F64)


class Recorded(nn.Module):
    """A raw network that notes what it is given and answers with some function of it."""

    def __init__(self, channels=1):
        super().__init__()
        self.seen, self.channels = [], channels

    def forward(self, x, c_noise, **cond):
        self.seen.append((x, c_noise, cond))
        return torch.cat([x.cos()] * self.channels, 1)


def test_coefficients_are_those_of_table_1():
    net, x = Recorded(), noise()
    d = 0.7
    found = edm.Preconditioned(net, "edm", d)(x, SIGMA)
    ((into, c_noise, _),) = net.seen
    s = SIGMA[:, None]
    torch.testing.assert_close(into, x / (s**2 + d**2).sqrt())
    torch.testing.assert_close(c_noise, SIGMA.log() / 4)
    expected = d**2 / (s**2 + d**2) * x + s * d / (d**2 + s**2).sqrt() * into.cos()
    torch.testing.assert_close(found, expected)

    net.seen.clear()
    found = edm.Preconditioned(net, "vp")(x, SIGMA)
    ((into, c_noise, _),) = net.seen
    t = c_noise / 999
    torch.testing.assert_close((torch.exp(19.9 * t**2 / 2 + 0.1 * t) - 1).sqrt(), SIGMA)
    torch.testing.assert_close(into, x / (s**2 + 1).sqrt())
    torch.testing.assert_close(found, x - s * into.cos())

    net.seen.clear()
    found = edm.Preconditioned(net, "ve")(x, SIGMA)
    ((into, c_noise, _),) = net.seen
    torch.testing.assert_close(c_noise, (SIGMA / 2).log())
    torch.testing.assert_close(found, x + s * x.cos())
    assert torch.equal(into, x)


def iddpm_levels():
    """u_j of table 1, j = 0 .. 1000."""
    a = [math.sin(math.pi / 2 * j / (1000 * 1.008)) ** 2 for j in range(1001)]
    u = [0.0] * 1001
    for j in range(1000, 0, -1):
        u[j - 1] = math.sqrt((u[j] ** 2 + 1) / max(a[j - 1] / a[j], 0.001) - 1)
    return torch.tensor(u, dtype=F64)


def test_improved_ddpm_is_asked_at_the_nearest_level_and_its_variance_dropped():
    net, x, u = Recorded(channels=2), noise(), iddpm_levels()
    found = edm.Preconditioned(net, "iddpm")(x, SIGMA)
    ((into, c_noise, _),) = net.seen
    nearest = torch.tensor([999 - (u - s).abs().argmin().item() for s in SIGMA], dtype=F64)
    assert torch.equal(c_noise, nearest)
    torch.testing.assert_close(found, x - SIGMA[:, None] * into.cos())
    assert edm.from_raw(net, kind="iddpm").range == pytest.approx((u[999].item(), u[8].item()), rel=1e-6)


KINDS = {
    "vp": (ContinuousVP(), "eps", lambda t: t / 999, 1.0),
    "ve": (VE(0.02, 100.0), "eps", lambda t: 2 * t.exp(), -1.0),
    "iddpm": (VP.cosine(), "eps", lambda t: t, 1.0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_preconditioned_network_is_the_model_of_that_schedule(kind):
    """The same network, asked through table 1, and through our own schedule and prediction."""
    schedule, prediction, clock, sign = KINDS[kind]
    exact = mixture().model(schedule, prediction)
    model = edm.from_raw(lambda x_t, c_noise: sign * exact.network(x_t, clock(c_noise)), kind=kind)
    at = [0.1, 1.0, 10.0] if kind != "iddpm" else schedule.sigma(torch.tensor([20.0, 500.0, 900.0], dtype=F64)).tolist()
    for sigma in at:
        torch.testing.assert_close(model(noise(), sigma), exact(noise(), sigma), rtol=1e-7, atol=1e-9)


def test_an_ideal_raw_network_of_a_gaussian_samples_it():
    """F of the ideal denoiser, solved from equation 7, brings noise to the Gaussian's exact trajectory."""
    d, target = 0.5, Gaussian(torch.tensor([0.3, -0.2]), 0.25)

    def raw(scaled, c_noise):
        s = (4 * c_noise).exp()[:, None]
        x = scaled * (s**2 + d**2).sqrt()
        denoised = x - s * target(x, s.flatten())
        return (denoised - d**2 / (s**2 + d**2) * x) * (s**2 + d**2).sqrt() / (s * d)

    model = edm.from_raw(raw, sigma_data=d, data_shape=(2,))
    assert model.range == (0.002, 80.0)
    x = noise(scale=80)
    found = ods.sample(model, x=x, solver="rk4", num_steps=60, grid="karras", state_dtype=F64)
    torch.testing.assert_close(found.x, target.trajectory(x, 80.0, 0.0), rtol=0, atol=1e-3)


class Net(nn.Module):
    """As NVLabs' networks: called (x, sigma, class_labels), with attributes that say what they are."""

    img_channels, img_resolution, sigma_min, sigma_max = 3, 4, 0, float("inf")

    def __init__(self, label_dim=0, label_dropout=0.0):
        super().__init__()
        self.label_dim, self.seen = label_dim, []
        self.model = nn.Linear(2, 2)
        self.model.label_dropout = label_dropout

    def forward(self, x, sigma, class_labels=None):
        assert x.dtype == torch.float32
        assert class_labels is None or class_labels.dtype == torch.float32
        self.seen.append(class_labels)
        s = sigma.reshape(-1, 1, 1, 1)
        shift = 0 if class_labels is None else class_labels.argmax(1).reshape(-1, 1, 1, 1) * class_labels.sum()
        return x / (1 + s**2) + shift


def test_a_network_says_what_it_is():
    model = edm.from_net(Net())
    assert model.range == (0.002, 80.0)
    assert model.data_shape == (3, 4, 4)
    assert model.name == "Net"
    found = ods.sample(model, 2, solver="heun", num_steps=4, state_dtype=F64)
    assert found.x.shape == (2, 3, 4, 4)
    assert set(model.network.net.seen) == {None}
    narrow = Net()
    narrow.sigma_min, narrow.sigma_max = 0.02, 50.0
    assert edm.from_net(narrow).range == (0.02, 50.0)
    assert edm.from_net(narrow, sigma_max=20.0, name="mine").range == (0.02, 20.0)


def test_labels_become_rows_and_the_null_label_a_row_of_zeros():
    net = Net(label_dim=3, label_dropout=0.1)
    model = edm.from_net(net)
    ods.sample(model, 2, solver="euler", num_steps=1, cond={"label": [2, 0]}, guidance_scale=2.0)
    expected = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 0, 0], [0, 0, 0]])
    assert torch.equal(net.seen[0], expected)
    assert model.labels == ("0", "1", "2")
    with pytest.raises(ValueError, match="label 4 does not exist"):
        ods.sample(model, 2, num_steps=1, cond={"label": 4})


@pytest.mark.parametrize("null_label", [False, True])
def test_no_call_looks_at_labels_that_are_on_a_device(null_label):
    """The meta device stands for one: to read a value there raises, where on a GPU it would wait."""
    asked = edm.from_net(lambda x, sigma, rows: x + rows.sum(), label_dim=3, null_label=null_label).network
    x, sigma, label = (torch.zeros(*shape, device="meta") for shape in ((2, 1, 4, 4), (2,), (2,)))
    assert asked(x, sigma, label=label.long()).shape == x.shape


def test_without_a_null_label_a_label_must_be_given_and_guidance_is_refused():
    net = Net(label_dim=3)
    model = edm.from_net(net)
    refused = [(3, "label 3 does not exist"), (-1, "label -1 does not"), (0.5, "labels are whole numbers")]
    for cond, why in [(None, "label_dim = 3: give cond"), *(({"label": label}, why) for label, why in refused)]:
        with pytest.raises(ValueError, match=why):
            ods.sample(model, 1, num_steps=1, cond=cond)
    for label in (3, -1, 0.5):
        with pytest.raises(ValueError, match="label_dim = 3: give cond"):
            model(torch.zeros(1, 1, 4, 4), 1.0, label=torch.tensor([label]))
    with pytest.raises(ValueError, match="null condition"):
        ods.sample(model, 1, num_steps=1, cond={"label": 1}, guidance_scale=2.0)
    with pytest.raises(ValueError, match="label_dim = 0"):
        ods.sample(edm.from_net(Net()), 1, num_steps=1, cond={"label": 1})
    assert net.seen == []
    ods.sample(model, 1, num_steps=1, cond={"label": 2})
    assert net.seen[0].tolist() == [[0, 0, 1]]
    assert edm.from_net(net, null_label=True).null_cond == {"label": 3}


def test_what_is_refused():
    for make in (edm.from_net, edm.from_raw):
        for path in ("edm-cifar10-32x32-cond-vp.pkl", Path("edm.pkl")):
            with pytest.raises(TypeError, match=r"pickles.*none is ever loaded"):
                make(path)
        with pytest.raises(TypeError, match="is called as"):
            make(None)
    with pytest.raises(ValueError, match="no attribute label_dim"):
        edm.from_net(nn.Linear(2, 2))
    net = Net()
    net.sigma_min = 0.1
    with pytest.raises(ValueError, match=r"network's own sigma_min=0\.1"):
        edm.from_net(net, sigma_min=0.01)
    with pytest.raises(ValueError, match="kind must be one of edm, vp, ve, iddpm"):
        edm.from_raw(Recorded(), kind="karras")
    for d in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="sigma_data"):
            edm.from_raw(Recorded(), sigma_data=d)
    with pytest.raises(ValueError, match="sigma_min"):
        edm.from_raw(Recorded(), sigma_min=100.0)
