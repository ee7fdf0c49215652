"""Gradients of a solve: checkpointed and reversible equal plain backpropagation, and need less memory."""

from itertools import product

import pytest
import torch
from torch import Tensor, nn

import odesampler as ods
from odesampler.program import Invertible
from tests.problems import BOTH_WAYS, DRAWING, SOLVERS, mixture

INVERTIBLE = [s for s in SOLVERS if isinstance(s, Invertible) and s.differentiable]
OPTIONS = {"num_steps": 5, "grid": "log_snr", "state_dtype": torch.float64}


class Network(nn.Module):
    """A small network, float64, with a parameter that is used twice, one that never is, and one that is no float."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Linear(4, 5, dtype=torch.float64)
        self.last = nn.Linear(5, 2, dtype=torch.float64)
        self.same = self.first
        self.unused = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.count = nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)
        self.frozen = nn.Parameter(torch.tensor(0.7, dtype=torch.float64), requires_grad=False)
        for parameter in (*self.first.parameters(), *self.last.parameters()):
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)

    def forward(self, x_t: Tensor, t: Tensor, tag: Tensor) -> Tensor:
        seen = torch.cat([x_t, tag[:, None], (t / 1000)[:, None]], 1)
        return x_t * self.frozen + self.last(torch.tanh(self.same(torch.tanh(self.first(seen))[:, :4])))


def model(schedule: ods.Schedule | None = None, prediction: str = "eps") -> ods.Model:
    return ods.Model(
        Network(),
        schedule or ods.ContinuousVP(),
        prediction=prediction,
        sigma_min=0.1,
        sigma_max=8.0 if schedule is None else None,
        data_shape=(2,),
        null_cond={"tag": 0.0},
    )


def points(batch: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(batch, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def tags(batch: int = 3) -> Tensor:
    return torch.linspace(-1, 1, batch, dtype=torch.float64).requires_grad_()


def weighed(x: Tensor) -> Tensor:
    """A scalar with a gradient that differs from pixel to pixel."""
    return (x * torch.arange(1, x.numel() + 1, dtype=x.dtype).reshape(x.shape)).sum() + x.square().sum()


def slopes(found: Tensor, wanted: list[Tensor]) -> list[Tensor | None]:
    return list(torch.autograd.grad(weighed(found), wanted, allow_unused=True))


def compare(solve, wanted, how):
    """Gradients by `how` are those of plain backpropagation, and so is the value."""
    plain, other = solve(True), solve(how)
    torch.testing.assert_close(other, plain, rtol=1e-12, atol=1e-12)
    for one, truth in zip(slopes(other, wanted), slopes(plain, wanted), strict=True):
        assert (one is None) == (truth is None)
        if truth is not None:
            assert truth.abs().sum() > 0
            assert (one - truth).norm() <= 1e-6 * truth.norm()


def trained(network: nn.Module) -> list[Tensor]:
    return [p for p in network.parameters() if p.requires_grad]


WAYS = [*product(["checkpointed"], [s for s in SOLVERS if s.differentiable]), *product(["reversible"], INVERTIBLE)]
TWO_WAYS = [(how, s) for how, s in WAYS if s in BOTH_WAYS]


@pytest.mark.parametrize(("how", "solver"), WAYS, ids=repr)
def test_gradients_of_a_sample_equal_plain_backpropagation(how, solver):
    one, x, tag = model(), points(), tags()

    def solve(grad):
        return ods.sample(one, x=x, cond={"tag": tag}, solver=solver, grad=grad, **OPTIONS).x

    compare(solve, [x, tag, *trained(one.network)], how)


@pytest.mark.parametrize(("how", "solver"), TWO_WAYS, ids=repr)
def test_gradients_of_an_encoding_equal_plain_backpropagation(how, solver):
    one, x, tag = model(), points(), tags()

    def solve(grad):
        latent = ods.encode(one, x, cond={"tag": tag}, solver=solver, grad=grad, **OPTIONS)
        return torch.cat([latent.x, *latent.memory])

    compare(solve, [x, tag, *trained(one.network)], how)


@pytest.mark.parametrize(("how", "solver"), TWO_WAYS, ids=repr)
def test_gradients_of_a_decoding_reach_the_latent_with_its_memory(how, solver):
    one, tag = model(), tags()
    latent = ods.encode(one, points(), cond={"tag": tag}, solver=solver, **OPTIONS)
    x, memory = latent.x.requires_grad_(), [m.requires_grad_() for m in latent.memory]
    compare(lambda grad: ods.decode(one, latent, grad=grad).x, [x, tag, *memory, *trained(one.network)], how)


@pytest.mark.parametrize("infinite", [False, True], ids=["finite", "infinite"])
@pytest.mark.parametrize("solver", ["ddim", "heun", "multistep", "plms"])
def test_gradients_of_an_encoding_by_another_convention(solver, infinite):
    one, x, tag = model(*([ods.RectifiedFlow(), "flow"] if infinite else [])), points(), tags()
    options = {"cond": {"tag": tag}, "solver": solver, "num_steps": 5}

    def solve(grad):
        return ods.encode(one, x, convention="target", grad=grad, **options).x

    compare(solve, [x, tag, *trained(one.network)], "checkpointed")
    with pytest.raises(ValueError, match=r"solving equations .* cannot be differentiated"):
        ods.encode(one, x, convention="implicit", grad=True, **options)


BOTH = [("checkpointed", "heun"), ("checkpointed", "multistep"), ("reversible", "reversible")]
both = pytest.mark.parametrize(("how", "solver"), BOTH)


@both
@pytest.mark.parametrize(
    "options", [{"max_batch": 2}, {"clip_denoised": 0.6}, {"guidance_scale": ods.Guidance(3, 0.5)}]
)
def test_gradients_flow_through_guidance_thresholds_and_chunks(how, solver, options):
    one, x, tag = model(), points(), tags()

    def solve(grad):
        given = {"guidance_scale": 2.5, **OPTIONS, **options}
        return ods.sample(one, x=x, cond={"tag": tag}, solver=solver, grad=grad, **given).x

    compare(solve, [x, tag, *trained(one.network)], how)


@both
def test_gradients_flow_where_sigma_is_infinite(how, solver):
    one, x, tag = model(ods.RectifiedFlow(), "flow"), points(), tags()
    options = {"cond": {"tag": tag}, "solver": solver, "num_steps": 5, "state_dtype": torch.float64}
    wanted = [x, tag, *trained(one.network)]
    compare(lambda grad: ods.sample(one, x=x, grad=grad, **options).x, wanted, how)

    def there_and_back(grad):
        latent = ods.encode(one, x, grad=grad, **options)
        return torch.cat([latent.x, *latent.memory, ods.decode(one, latent, grad=grad).x])

    compare(there_and_back, wanted, how)


@both
def test_the_step_into_zero_alone_is_differentiated(how, solver):
    one, x = model(), points()
    options = {"grid": [2.0, 0.0], "solver": solver, "state_dtype": torch.float64}
    compare(lambda grad: ods.sample(one, x=x, grad=grad, **options).x, [x, *trained(one.network)], how)


@both
def test_the_gradient_is_that_of_finite_differences(how, solver):
    field = ods.Model(lambda x_t, t: mixture()(x_t, t), ods.VE(), sigma_min=0.2, sigma_max=3.0)
    options = {"solver": solver, "num_steps": 3, "state_dtype": torch.float64}
    assert torch.autograd.gradcheck(lambda x: ods.sample(field, x=x, grad=how, **options).x, points(2))


@both
def test_a_condition_made_from_a_parameter_counts_it_once(how, solver):
    one, x = model(), points()

    def solve(grad):
        tag = (one.network.last.bias.sum() * 3).expand(3)
        return ods.sample(one, x=x, cond={"tag": tag}, solver=solver, grad=grad, **OPTIONS).x

    compare(solve, [x, *trained(one.network)], how)


@both
def test_a_null_condition_can_be_trained(how, solver):
    null = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    one = ods.Model(Network(), ods.ContinuousVP(), sigma_min=0.1, sigma_max=8.0, null_cond={"tag": null})
    options = {"cond": {"tag": 1.0}, "guidance_scale": 2.0, "solver": solver, **OPTIONS}
    compare(lambda grad: ods.sample(one, x=points(), grad=grad, **options).x, [null], how)


@pytest.mark.parametrize("noise", ["independent", "brownian"])
@pytest.mark.parametrize("solver", [s for s in DRAWING if not isinstance(s, ods.Churn)][:4], ids=repr)
def test_noise_is_played_again_not_drawn_again(solver, noise):
    one, x = model(), points()

    def solve(grad):
        return ods.sample(one, x=x, solver=solver, noise=noise, seed=5, grad=grad, **OPTIONS).x

    compare(solve, [x, *trained(one.network)], "checkpointed")


@both
def test_all_but_the_gradient_is_as_without(how, solver):
    options = {"x": points().detach(), "solver": solver, "trajectory": True, **OPTIONS}
    usual, found = (ods.sample(model(), grad=grad, **options) for grad in (False, how))
    assert torch.equal(found.x, usual.x)
    assert torch.equal(found.trajectory.x_t, usual.trajectory.x_t)
    counted = found.nfe.clone()
    assert torch.equal(counted, usual.nfe)
    assert found.calls == usual.calls
    found.x.sum().backward()
    assert torch.equal(found.nfe, counted), "what the backward pass asks is not a cost of the solution"
    assert not usual.x.requires_grad


def test_only_what_needs_gradients_gets_a_graph():
    one = model()
    one.network.requires_grad_(False)
    assert not ods.sample(one, x=points().detach(), grad="checkpointed", **OPTIONS).x.requires_grad
    x = points()
    compare(lambda grad: ods.sample(one, x=x, solver="reversible", grad=grad, **OPTIONS).x, [x], "reversible")


def kept_bytes(how: bool | str, solver: str, num_steps: int) -> int:
    """Bytes that autograd keeps for the backward pass, each storage once."""
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    wide = nn.Sequential(nn.Linear(2, 256), nn.Tanh(), nn.Linear(256, 2)).double()
    one = ods.Model(lambda x_t, t: wide(x_t), ods.ContinuousVP(), sigma_min=0.1, sigma_max=8.0)
    wide.requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ods.sample(one, x=points(50), solver=solver, grad=how, **{**OPTIONS, "num_steps": num_steps})
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_memory_grows_with_the_steps_unless_states_are_rebuilt():
    plain, checkpointed, reversible = (
        [kept_bytes(how, "reversible", n) for n in (5, 20)] for how in (True, "checkpointed", "reversible")
    )
    assert reversible[0] == reversible[1]
    assert plain[1] > 4 * plain[0]
    state = 2 * 50 * 2 * 8  # x and its second copy
    assert checkpointed[1] - checkpointed[0] == 15 * state
    assert plain[1] - plain[0] > 50 * 15 * state
    activations = 50 * 256 * 8  # of one evaluation
    assert max(checkpointed[0], reversible[0]) < activations < plain[0]


@both
def test_what_is_kept_may_be_kept_elsewhere(how, solver):
    one, x, tag = model(), points(), tags()

    def solve(grad):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t):
            return ods.sample(one, x=x, cond={"tag": tag}, solver=solver, grad=grad, **OPTIONS).x

    compare(solve, [x, tag, *trained(one.network)], how)


def test_second_derivatives_are_refused():
    for how in ("checkpointed", "reversible"):
        x = points()
        found = ods.sample(model(), x=x, solver="reversible", grad=how, **OPTIONS).x
        with pytest.raises(RuntimeError, match="first derivatives only"):
            torch.autograd.grad(found.sum(), x, create_graph=True)


@both
def test_parameters_that_a_plain_function_hides_are_not_lost_silently(how, solver):
    hidden = nn.Linear(2, 2, dtype=torch.float64)
    one = ods.Model(lambda x_t, t: hidden(x_t), ods.ContinuousVP(), sigma_min=0.1, sigma_max=8.0)
    x = points()
    found = ods.sample(one, x=x, solver=solver, grad=how, **OPTIONS).x
    with pytest.raises(RuntimeError, match="none of its parameters"):
        found.sum().backward()
    hidden.requires_grad_(False)
    found = ods.sample(one, x=x, solver=solver, grad=how, **OPTIONS).x
    assert torch.autograd.grad(found.sum(), x)[0].isfinite().all()


def test_a_parameter_changed_before_the_backward_pass_is_noticed():
    one = model()
    found = ods.sample(one, x=points(), solver="reversible", grad="reversible", **OPTIONS).x
    with torch.no_grad():
        one.network.last.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.sum().backward()


BAD = [
    ({"grad": "adjoint"}, "one of plain, checkpointed, reversible"),
    ({"grad": 1.5}, "one of plain, checkpointed, reversible"),
    ({"grad": "reversible", "solver": "heun"}, "heun cannot: use one of .*reversible"),
    ({"grad": "reversible", "solver": "ddpm"}, "undoing a step, which ancestral cannot"),
    ({"grad": "reversible", "rtol": 1e-3}, r"adaptive:dopri5\(rtol=0.001\) chooses its own steps"),
    ({"grad": "checkpointed", "rtol": 1e-3}, r"adaptive:dopri5\(rtol=0.001\) chooses its own steps"),
    ({"grad": "checkpointed", "solver": "torchdiffeq:rk4", "num_steps": 3}, "in another library"),
    ({"grad": "checkpointed", "solver": "scipy:RK45"}, "computes outside torch"),
    ({"grad": "plain", "solver": "scipy:RK45"}, "computes outside torch"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_requests_are_refused_before_the_model_is_called(arguments, message):
    def never(x_t, t):
        raise AssertionError("the model was called")

    one = ods.Model(never, ods.VP.linear(), data_shape=(2,))
    with pytest.raises(ValueError, match=message):
        ods.sample(one, 2, **arguments)
    if arguments.get("solver") != "ddpm":
        with pytest.raises(ValueError, match=message):
            ods.encode(one, torch.zeros(2, 2), **arguments)
