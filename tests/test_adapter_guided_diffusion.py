"""Networks of guided-diffusion: channels, clocks, tables, labels, and guidance by a classifier of exact posteriors."""

import math

import pytest
import torch
from torch import nn

import odesampler as ods
from odesampler.adapters import guided_diffusion
from odesampler.exact import GaussianMixture
from odesampler.schedule import VP
from tests.problems import noise

F64 = torch.float64


class Unet(nn.Module):
    """As theirs: called (x, timesteps, y), and says what it is. With twice the channels: eps and variance."""

    def __init__(self, out=2, num_classes=None):
        super().__init__()
        self.in_channels, self.out_channels, self.image_size, self.num_classes = 1, out, 4, num_classes
        self.seen = []

    def forward(self, x, timesteps, y=None, **others):
        assert (y is not None) == (self.num_classes is not None)
        self.seen.append((timesteps.tolist(), None if y is None else y.tolist(), others))
        eps = torch.tanh(x + timesteps.to(x.dtype).reshape(-1, 1, 1, 1) / 1000)
        return torch.cat([eps, torch.full_like(x, torch.nan)], 1) if self.out_channels == 2 else eps


@pytest.mark.parametrize("out", [1, 2])
def test_the_variance_is_dropped_and_the_rest_is_eps(out):
    net = Unet(out)
    model = guided_diffusion.from_network(net)
    assert model.data_shape == (1, 4, 4)
    x = torch.linspace(-1, 1, 32, dtype=F64).reshape(2, 1, 4, 4)
    place = model.place(x, 1.5)
    torch.testing.assert_close(model(x, 1.5), torch.tanh(place.x_t + place.t / 1000))
    assert net.seen[0][0] == [place.t] * 2
    assert ods.sample(model, 2, num_steps=4).x.isfinite().all()


def linear(steps):
    """Their table: DDPM's, stretched so that any number of steps adds the same noise."""
    scale = 1000 / steps
    return torch.cumprod(1 - torch.linspace(scale * 1e-4, scale * 0.02, steps, dtype=F64), 0)


def cosine(steps):
    def level(u):
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - level((i + 1) / steps) / level(i / steps), 0.999) for i in range(steps)]
    return torch.cumprod(1 - torch.tensor(betas, dtype=F64), 0)


@pytest.mark.parametrize("steps", [100, 1000, 4000])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_tables_and_rescaled_timesteps(name, steps):
    expected = {"linear": linear, "cosine": cosine}[name](steps)
    for rescale in (False, True):
        net = Unet()
        model = guided_diffusion.from_network(
            net, schedule=name, num_train_timesteps=steps, rescale_timesteps=rescale, round_t=True
        )
        found = torch.tensor(model.schedule.alpha_bar, dtype=F64)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-15)
        at = steps // 3
        sigma = ((1 - expected[at]) / expected[at]).sqrt().item()
        model(torch.zeros(1, 1, 4, 4), sigma)
        assert net.seen[0][0] == pytest.approx([at * 1000 / steps if rescale else at])


def test_labels_go_by_the_name_y_and_others_by_their_own():
    net = Unet(num_classes=5)
    model = guided_diffusion.from_network(net)
    model(torch.zeros(2, 1, 4, 4), 1.0, label=torch.tensor([4, 0]), low_res=torch.ones(2))
    assert net.seen[0][1] == [4, 0]
    assert list(net.seen[0][2]) == ["low_res"]
    refused = [(5, "label 5 does not exist"), (-1, "label -1 does not"), (1.0, "labels are whole numbers")]
    for cond, why in [(None, "num_classes = 5: give cond"), *(({"label": label}, why) for label, why in refused)]:
        with pytest.raises(ValueError, match=why):
            ods.sample(model, 1, num_steps=1, cond=cond)
    for label in (5, -1, 1.0):
        with pytest.raises(ValueError, match="num_classes = 5: give cond"):
            model(torch.zeros(1, 1, 4, 4), 1.0, label=torch.tensor([label]))
    with pytest.raises(ValueError, match="null condition"):
        ods.sample(model, 1, num_steps=1, cond={"label": 1}, guidance_scale=2.0)
    assert len(net.seen) == 1
    with pytest.raises(ValueError, match="num_classes = None"):
        ods.sample(guided_diffusion.from_network(Unet()), 1, num_steps=1, cond={"label": 1})


@pytest.mark.parametrize("null_label", [None, 5])
def test_no_call_looks_at_labels_that_are_on_a_device(null_label):
    """The meta device stands for one: to read a value there raises, where on a GPU it would wait."""
    asked = guided_diffusion.from_network(lambda x, t, y: x, num_classes=5, null_label=null_label).network
    x, t, label = (torch.zeros(*shape, device="meta") for shape in ((2, 1, 4, 4), (2,), (2,)))
    assert asked(x, t, label=label.long()).shape == x.shape
    with pytest.raises(ValueError, match="does not exist"):
        ods.sample(guided_diffusion.from_network(Unet(num_classes=5)), 1, num_steps=1, cond={"label": 9})


def test_with_a_null_label_it_is_guided():
    net = Unet(num_classes=5)
    model = guided_diffusion.from_network(net, null_label=5)
    ods.sample(model, 2, num_steps=1, cond={"label": [4, 0]}, guidance_scale=2.0)
    assert net.seen[0][1] == [4, 0, 5, 5]
    with pytest.raises(ValueError, match="label 6 does not exist"):
        ods.sample(model, 2, num_steps=1, cond={"label": 6})


MEANS = torch.tensor([[1.0, 0.0], [-0.6, 0.8], [-0.2, -1.1]])
VARIANCES = torch.tensor([0.3, 0.2, 0.4])


class Posterior(nn.Module):
    """The exact classifier of noisy points of a mixture: log p(k | x_t), up to a constant."""

    def __init__(self, schedule, scale):
        super().__init__()
        self.schedule, self.scale = schedule, scale

    def forward(self, x_t, timesteps):
        sigma = self.schedule.sigma(timesteps.double() / self.scale)[:, None]
        alpha, std = self.schedule.alpha(sigma), self.schedule.std(sigma)
        variances = alpha**2 * VARIANCES.double() + std**2  # (batch, k)
        away = (x_t.double()[:, None] - alpha[..., None] * MEANS.double()).square().sum(-1)
        return 17.0 - away / variances / 2 - variances.log()


@pytest.mark.parametrize("rescale", [False, True])
def test_guided_by_the_exact_classifier_the_mixture_becomes_the_component(rescale):
    """grad log p(x_t) + grad log p(k | x_t) = grad log p(x_t | k): the guided eps is that of the component."""
    schedule = VP.linear(500, 2e-4, 0.04)
    scale = 2.0 if rescale else 1.0
    exact = GaussianMixture(MEANS, VARIANCES).model(schedule)

    def network(x_t, timesteps, y):
        return exact.network(x_t, timesteps / scale)

    model = guided_diffusion.from_network(
        network,
        num_train_timesteps=500,
        rescale_timesteps=rescale,
        num_classes=3,
        null_label=3,
        classifier=Posterior(schedule, scale),
    )
    for k in range(3):
        alone = GaussianMixture(MEANS[k : k + 1], VARIANCES[k : k + 1]).model(schedule)
        for sigma in (0.05, 1.0, 20.0):
            label = torch.full((6,), k)
            torch.testing.assert_close(model(noise(), sigma, label=label), alone(noise(), sigma), rtol=0, atol=1e-8)
    mixed = torch.tensor([0, 3, 1, 3, 3, 2])
    found = model(noise(), 1.0, label=mixed)
    torch.testing.assert_close(found[mixed == 3], exact(noise(), 1.0)[mixed == 3], rtol=0, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(model(noise(), 1.0, label=mixed), found)


def test_a_classifier_guides_by_its_scale_and_gradients_go_through():
    schedule = VP.linear()
    options = {"num_classes": 3, "classifier": Posterior(schedule, 1.0)}

    def network(x_t, timesteps, y):
        return x_t

    once, twice = (
        guided_diffusion.from_network(network, classifier_scale=s, **options)(noise(), 1.0, label=torch.ones(6).long())
        for s in (1.0, 2.0)
    )
    bare = noise() / 2**0.5  # x_t at sigma = 1
    torch.testing.assert_close(twice - bare, 2 * (once - bare))
    assert not torch.allclose(once, bare, atol=1e-2)
    model = guided_diffusion.from_network(network, **options)
    torch.testing.assert_close(model(noise().float(), 1.0, label=torch.ones(6).long()), once.float())
    label = torch.tensor([0])
    assert torch.autograd.gradcheck(lambda x: model(x, 1.0, label=label), noise(1).requires_grad_())


def test_what_is_refused():
    def from_network(**options):
        return guided_diffusion.from_network(Unet(num_classes=5), **options)

    with pytest.raises(TypeError, match="is called as"):
        guided_diffusion.from_network("64x64_diffusion.pt")
    with pytest.raises(ValueError, match="schedule must be one of linear, cosine"):
        from_network(schedule="sigmoid")
    for steps in (0, 20, 10.5, True):
        with pytest.raises(ValueError, match="num_train_timesteps"):
            from_network(num_train_timesteps=steps)
    with pytest.raises(ValueError, match="prediction must be"):
        from_network(prediction="epsilon")
    with pytest.raises(ValueError, match="predicts eps"):
        from_network(prediction="denoised", classifier=lambda x, t: x)
    with pytest.raises(ValueError, match="num_classes a number"):
        guided_diffusion.from_network(Unet(), classifier=lambda x, t: x)
    with pytest.raises(ValueError, match="num_classes is None"):
        guided_diffusion.from_network(Unet(), null_label=3)
    with pytest.raises(ValueError, match="in_channels = 1 and out_channels = 3"):
        guided_diffusion.from_network(Unet(out=3))
    with pytest.raises(ValueError, match="shape of its question"):
        guided_diffusion.from_network(lambda x, t: torch.cat([x] * 3, 1))(torch.zeros(1, 1, 4, 4), 1.0)
