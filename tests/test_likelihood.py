"""Likelihood: equal to densities in closed form, unbiased where estimated, and able to tell digits from others."""

import csv
import gc
import io
import math
import warnings

import pytest
import torch

import odesampler as ods
from tests.problems import gaussian, labelled, mixture

LN2 = math.log(2)
EDM = ods.VE(0.1, 20.0)
TIGHT = {"rtol": 1e-8, "atol": 1e-8}


def unchecked(*args, **how):
    """A likelihood, solved again with half the steps only for the tests of that."""
    return ods.log_likelihood(*args, **{"check": False, **how})


def log_density(mixture, x, sigma):
    """log of the mixture's density with noise of standard deviation `sigma`, (batch,)."""
    total, d = mixture.variances + sigma**2, x[0].numel()
    away = (x.flatten(1)[:, None] - mixture.means.flatten(1)).square().sum(-1)
    return (mixture.log_weights - away / total / 2 - d / 2 * (2 * math.pi * total).log()).logsumexp(-1)


def truth(data, model, x_t):
    """log p(x_t) under the model's ODE from N(0, 1 + s^2): the data's density, but for what it is not normal at s."""
    low, high = model.range
    alpha = [model.schedule.alpha(torch.tensor(s, dtype=torch.float64)).item() for s in model.range]
    d, x = x_t[0].numel(), x_t / alpha[0]
    own = log_density(data, x, low) - d * math.log(alpha[0])
    if math.isinf(high):
        return own
    latent = ods.encode(model, x_t, solver="dopri5", rtol=1e-10, atol=1e-10).x / alpha[1]
    assumed = -(latent.flatten(1).square().sum(1) / (1 + high**2) + d * math.log(2 * math.pi * (1 + high**2))) / 2
    return own + assumed - log_density(data, latent, high)


@pytest.mark.parametrize("data", [gaussian(), mixture()], ids=["gaussian", "mixture"])
@pytest.mark.parametrize(
    ("schedule", "prediction"),
    [(ods.VP.linear(), "eps"), (ods.ContinuousVP(), "v"), (EDM, "denoised"), (ods.RectifiedFlow(), "flow")],
    ids=["vp", "continuous vp", "ve", "flow"],
)
def test_it_is_the_density_in_closed_form(data, schedule, prediction):
    model, x = data.model(schedule, prediction), data.sample(3, seed=1)
    found = unchecked(model, x, divergence="exact", **TIGHT)
    assert torch.allclose(found.log_p, truth(data, model, x), rtol=0, atol=1e-6)
    assert found.error.tolist() == [0, 0, 0]
    assert torch.allclose(found.bits_per_dim, -found.log_p / 2 / LN2)


def test_data_that_are_normal_need_no_steps():
    """The latent's scale, the prior's and what is subtracted from the divergence agree: nothing is left to solve."""
    data = ods.exact.Gaussian(torch.zeros(1, 3, 4), 1.0)
    model, x = data.model(), data.sample(2)
    found = unchecked(model, x, solver="dopri5", num_steps=60)
    expected = -(x.flatten(1).square().sum(1) + 12 * math.log(2 * math.pi)) / 2  # of x_t, N(0, 1) at every level
    assert torch.allclose(found.log_p, expected, rtol=1e-6)


ON_GRID = ["euler", "heun", "rk4", "multistep", "dpmpp_2m", "unipc", "dpm_solver_3", "deis", "v_adams", "plms"]


@pytest.mark.parametrize("solver", [*ON_GRID, "scipy:DOP853", "torchdiffeq:dopri5", "adaptive:bosh3"])
def test_any_solver_of_the_ode_carries_it(solver):
    """Whatever its frame and memory, the error falls with the steps as that of a first-order method does, or faster."""
    data = mixture()
    model, x = data.model(EDM), data.sample(3, seed=2)
    right = truth(data, model, x)

    def error(**how):
        return (unchecked(model, x, solver=solver, **how).log_p - right).abs().max().item()

    if solver in ON_GRID:
        few, many = error(num_steps=30), error(num_steps=60)
        assert many < (0.2 if solver == "euler" else 0.05)
        assert few / many > 1.7
    else:
        assert error() < 2e-3


def test_chunks_companions_and_order_change_nothing():
    """Probes and conditions follow their samples, also where each takes its own steps."""
    model, x = labelled(), mixture().sample(4)
    how = {"cond": {"label": [0.0, 0.5, 0.0, -0.5]}, "divergence": "hutchinson", "probes": 3, "seed": [3, 4, 5, 6]}
    whole = unchecked(model, x, probe="gaussian", **how)
    assert torch.equal(unchecked(model, x, probe="gaussian", max_batch=1, **how).log_p, whole.log_p)
    how |= {"cond": {"label": [-0.5, 0.5]}, "seed": [6, 4]}
    two = unchecked(model, x[[3, 1]], probe="gaussian", **how)
    assert torch.allclose(two.log_p, whole.log_p[[3, 1]], rtol=1e-12)
    assert two.nfe.tolist() == whole.nfe[[3, 1]].tolist()


def test_guidance_is_part_of_the_flow_whose_density_it_is():
    """The labelled model's eps is mixture + label: guided by 3, as if the label were three times as large."""
    x = mixture().sample(2)
    guided = unchecked(labelled(), x, cond={"label": 0.1}, guidance_scale=3.0, max_batch=2, **TIGHT)
    plain = unchecked(labelled(), x, cond={"label": 0.3}, **TIGHT)
    other = unchecked(labelled(), x, cond={"label": 0.1}, **TIGHT)
    assert torch.allclose(guided.log_p, plain.log_p, atol=1e-6)
    assert (guided.log_p - other.log_p).abs().min() > 1e-3
    with pytest.raises(ValueError, match="guidance needs 2 rows"):
        unchecked(labelled(), x, cond={"label": 0.1}, guidance_scale=3.0, max_batch=1)


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_estimates_scatter_about_the_exact_one_by_their_standard_error(probe):
    data = ods.exact.GaussianMixture(torch.eye(6, dtype=torch.float64), 0.05)
    model, x = data.model(EDM), data.sample(1).repeat(300, 1)
    how = {"solver": "rk4", "num_steps": 16}
    exact = unchecked(model, x[:1], divergence="exact", **how).log_p.item()
    found = unchecked(model, x, divergence="hutchinson", probes=8, probe=probe, **how)
    off = (found.log_p - exact) / found.error
    assert abs(off.mean().item()) < 0.3  # of 300: 5 standard errors; errors from 8 probes have tails
    assert 0.85 < found.log_p.std().item() / found.error.square().mean().sqrt().item() < 1.15
    assert found.log_p.std() > 1e-3


def test_probes_stay_the_same_along_the_trajectory_and_come_from_the_seed():
    data = mixture()
    model, x = data.model(EDM), data.sample(2)
    how = {"divergence": "hutchinson", "probes": 2, "rtol": 1e-8, "atol": 1e-8}
    first, again, other = (unchecked(model, x, seed=s, **how) for s in (1, 1, 7))
    assert torch.equal(first.log_p, again.log_p)
    assert not torch.allclose(first.log_p, other.log_p, atol=1e-6)
    assert max(first.nfe.tolist()) < 1500  # new probes at each step would never pass the error control


def cell_log_probability(data, x, width):
    """log of the probability of the cells of that width around x, for one value a sample."""
    std = data.variances.sqrt()
    ends = [torch.special.ndtr((x + side * width / 2 - data.means[:, 0]) / std) for side in (1, -1)]
    return (data.log_weights.exp() * (ends[0] - ends[1])).sum(1).log()


def test_the_bounds_of_the_probability_of_levels():
    """One value a sample, five levels: the mean lies below the truth, the weighted mean tends to it."""
    data = ods.exact.GaussianMixture(torch.tensor([[-0.5], [0.5]]), 0.04)
    model = data.model(ods.VE(0.002, 20.0), data_range=(-1, 1))
    x = torch.tensor([[-1.0], [-0.5], [0.0], [0.5]], dtype=torch.float64)
    found = unchecked(model, x, dequantise=5, draws=80, solver="multistep", num_steps=40)
    right = cell_log_probability(data, x, 0.5)
    assert found.width == 0.5
    weighted = found.importance_weighted + math.log(0.5)
    assert torch.allclose(weighted, right, atol=0.15)
    assert ((weighted - right).abs() < (found.log_p + math.log(0.5) - right).abs())[[0, 2]].all()  # where p is steep
    assert (found.log_p + math.log(0.5) < right + 4 * found.error).all()
    assert torch.allclose(found.bits_per_dim, -(found.log_p + math.log(0.5)) / LN2)
    assert torch.allclose(found.error, found.draws.std(0) / math.sqrt(80))
    assert found.nfe.tolist() == [80 * 40] * 4


def test_held_out_digits_are_likelier_than_shifted_noisy_and_inverted_ones():
    model, x = ods.load("digits"), ods.held_out("digits").images[:40]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    noisy = ((x + 0.25 * noise).clamp(-1, 1) * 8).round() / 8
    how = {"dequantise": 17, "divergence": "hutchinson", "probes": 2, "solver": "multistep", "num_steps": 20}
    bits = [unchecked(model, y, **how).bits_per_dim for y in (x, x.roll(2, 3), noisy, -x)]
    areas = [(bits[0][:, None] < other).double().mean().item() for other in bits[1:]]
    assert areas[0] > 0.95
    assert areas[1] > 0.97
    assert areas[2] == 1
    assert 2 < bits[0].mean().item() < 2.6  # of log2(17) = 4.1


def test_a_network_in_whole_numbers_of_its_clock_and_float32_agrees_with_itself_in_exact_and_estimated_form():
    model, x = ods.load("digits"), ods.held_out("digits").images[:1].repeat(12, 1, 1, 1)
    how = {"solver": "multistep", "num_steps": 15}
    exact = unchecked(model, x[:1], **how)  # 64 values: exact unless told otherwise
    assert exact.exact
    found = unchecked(model, x, divergence="hutchinson", probes=8, **how)
    assert abs((found.log_p.mean() - exact.log_p).item()) < 4 * found.error.mean().item() / math.sqrt(12)


def test_no_graph_is_kept():
    model, x = ods.load("digits"), ods.held_out("digits").images[:2].requires_grad_()
    how = {"divergence": "hutchinson", "probes": 1, "solver": "heun"}

    def graphs():  # other tests may have left some
        gc.collect()
        return {id(o) for o in gc.get_objects() if isinstance(o, torch.Tensor) and o.grad_fn is not None}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of objects that gc touches
        before = graphs()
        found = unchecked(model, x, num_steps=4, **how)
        assert not found.log_p.requires_grad
        assert graphs() <= before
    flow = mixture().model(ods.RectifiedFlow(), "flow")
    assert not unchecked(flow, mixture().sample(2).requires_grad_(), num_steps=3).log_p.requires_grad
    assert x.grad is None
    assert all(p.grad is None for p in model.network.parameters())


def counted(model):
    """The model, with a list that gets longer by each call of its network."""
    calls = []

    def network(x_t, t, **cond):
        calls.append(len(x_t))
        return model.network(x_t, t, **cond)

    return ods.Model(network, model.schedule, model.prediction, data_range=(-1, 1)), calls


@pytest.mark.parametrize("how", [{"dequantise": 17}, {"divergence": "hutchinson", "probes": 1}])
def test_what_is_drawn_once_has_no_standard_error(how):
    x = ods.held_out("digits").images[:2]
    found = unchecked(ods.load("digits"), x, solver="multistep", num_steps=20, **how)
    assert found.error.isnan().all()
    assert found.log_p.isfinite().all()


def test_the_step_out_of_infinity_is_right_on_average_to_second_order():
    """Of normal data: its error is (|u|^2 - d) / (2 s^2), for u ~ N(0, I), and what is of the order of 1 / s^4."""
    data, s = ods.exact.Gaussian(torch.zeros(2), 1.0), 5.0
    x = data.sample(400)
    found = unchecked(data.model(ods.RectifiedFlow(), "flow"), x, grid=[math.inf, s, 2, 1, 0.5, 0.1])
    right = truth(data, data.model(ods.RectifiedFlow(u_min=1 / 11), "flow"), x)
    u = x * 1.1 / math.hypot(1, 0.1)
    off = found.log_p - right - (u.square().sum(1) - 2) / (2 * s**2)
    assert off.abs().mean().item() < 4 / s**4
    assert off.abs().max().item() < 40 / s**4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "ancestral", "num_steps": 5}, "draws noise"),
        ({"solver": "alf", "num_steps": 5}, "not exactly invertible"),
        ({"solver": "rex", "num_steps": 5}, "not exactly invertible"),
        ({"solver": "fixed_point", "num_steps": 5}, "not exactly invertible"),
        ({"divergence": "jacobian"}, '"exact" or "hutchinson"'),
        ({"probe": "uniform"}, "rademacher, gaussian"),
        ({"probes": 0}, "probes must be a whole number of 1 or more; got 0"),
        ({"draws": 2}, "give dequantise"),
        ({"dequantise": 1}, "dequantise must be a whole number of 2 or more"),
        ({"dequantise": 256}, "image 1 is up to 0.5 of a step away from the 256 levels between -1 and 1"),
        ({"dequantise": 2}, "image 1 is up to 0.5 of a step"),
        ({"solver": "scipy:DOP853", "check": True}, "our own adaptive solvers; got scipy:DOP853"),
        ({"solver": "heun", "num_steps": 1}, "takes 2 steps or more"),
        ({"solver": "adaptive:dopri5(coordinate='angle')"}, "'asinh' or 'sigma'; got adaptive:dopri5"),
        ({"seed": [1]}, "2 samples, got 1 seeds"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_the_model_is_called(options, message):
    model, calls = counted(mixture().model(EDM))
    with pytest.raises(ValueError, match=message):
        unchecked(model, torch.tensor([[1.0, -1.0], [0.0, 1.0]]), **options)
    assert calls == []


@pytest.mark.parametrize("how", [{"solver": "heun", "num_steps": 101}, {"solver": "unipc", "num_steps": 100}, {}])
@pytest.mark.parametrize("schedule", [EDM, ods.RectifiedFlow()], ids=["ve", "flow"])
def test_the_difference_to_half_the_steps_bounds_the_error_from_above(how, schedule):
    data = mixture()
    model, x = data.model(schedule, "flow"), data.sample(8, seed=4)
    found = unchecked(model, x, check=True, **how)
    error = (found.log_p - truth(data, model, x)).abs()
    assert found.head[3] == "half steps"
    assert 1 < (found.difference.mean() / error.mean()).item() < 40
    plain = unchecked(model, x, **how)
    assert plain.difference is None
    assert torch.equal(found.log_p, plain.log_p)
    assert (found.nfe > plain.nfe).all()
    assert not found.unsettled.any()


def test_too_few_steps_are_flagged():
    model, x = ods.load("digits"), ods.held_out("digits").images[:2]
    how = {"dequantise": 17, "divergence": "hutchinson", "probes": 1, "solver": "heun"}
    with pytest.warns(RuntimeWarning, match="2 of 2 images have a probability above 1"):
        found = unchecked(model, x, num_steps=5, **how)
    assert found.impossible.tolist() == [True, True]
    assert "above 1, which cannot be" in repr(found)
    with pytest.warns(RuntimeWarning, match="2 of 2 images change by more than 0.05 bits/dim with half the steps"):
        found = unchecked(model, x, num_steps=30, check=True, **how)
    assert found.unsettled.tolist() == [True, True]
    assert not found.impossible.any()
    assert found.bits_per_dim.min() > 1.5


def test_a_density_may_be_above_1():
    data = ods.exact.Gaussian(torch.zeros(4), 1e-4)
    found = unchecked(data.model(ods.VE(0.001, 20.0)), data.sample(2))
    assert (found.log_p > 8).all()
    assert (found.bits_per_dim < -3).all()
    assert not found.impossible.any()


def test_two_steps_out_of_infinity_have_no_half_to_be_checked_with():
    model = mixture().model(ods.RectifiedFlow(), "flow")
    with pytest.raises(ValueError, match="3 steps or more"):
        unchecked(model, mixture().sample(1), solver="heun", num_steps=2)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_a_network_without_a_graph_is_refused(prediction):
    """Its v-prediction would still depend on x, by its conversion to eps, and the answer would look like one."""
    inner = mixture().model(ods.VP.linear(), prediction)
    model = ods.Model(torch.no_grad()(inner.network.forward), inner.schedule, prediction)
    with pytest.raises(ValueError, match="without a graph"):
        unchecked(model, mixture().sample(2))
    with pytest.raises(ValueError, match="without a graph"), torch.inference_mode():
        unchecked(inner, mixture().sample(2))
    with torch.no_grad():
        assert unchecked(inner, mixture().sample(2)).log_p.isfinite().all()


def test_a_sample_that_does_not_arrive_has_no_likelihood_and_the_others_have():
    model, x = mixture().model(ods.RectifiedFlow(), "flow"), mixture().sample(3, seed=1)
    how = {"divergence": "hutchinson", "probes": 2, "seed": [2, 1, 0]}
    whole = unchecked(model, x, **how)
    few = int(whole.nfe.min()) // 6  # evaluations a step; those beside steps are fewer than 6
    arrive = whole.nfe < 6 * (few + 1)
    assert arrive.tolist() == [False, True, True]  # the rows of those that go on are not the first
    with pytest.warns(RuntimeWarning, match="did not arrive"):
        found = unchecked(model, x, solver=f"adaptive:dopri5(max_steps={few})", **how)
    assert torch.allclose(found.log_p[arrive], whole.log_p[arrive])
    assert found.log_p[~arrive].isnan().all()
    assert torch.equal(found.nfe[arrive], whole.nfe[arrive])
    assert f"{3 - arrive.sum()} of 3 images did not arrive, and have no likelihood" in repr(found)


def test_the_report_says_what_was_found_with_all_digits_in_the_csv():
    found = unchecked(mixture().model(EDM), mixture().sample(2), divergence="hutchinson", probes=2)
    head, *rows = csv.reader(io.StringIO(found.to_csv()))
    assert head == ["image", "log_p", "log_p_error", "bits_per_dim", "bits_error", "nfe"]
    assert [float(r[1]) for r in rows] == found.log_p.tolist()
    assert [float(r[4]) for r in rows] == pytest.approx((found.error / 2 / LN2).tolist())
    assert [int(r[5]) for r in rows] == found.nfe.tolist()
    text = found.table()
    assert "of a density" in text
    assert "2 rademacher probes" in text
    assert f"{found.log_p[1].item():.2f}" in text
    assert found._repr_html_().count("<tr>") == 3
    with pytest.raises(ValueError, match="exact"):
        _ = found.importance_weighted


def test_likelihoods_are_checked_unless_told_otherwise_or_the_steps_are_not_ours():
    """Of too few steps one looks like any other: 11,568 bits less than nothing, without a word."""
    model, x = ods.load("digits"), ods.held_out("digits").images[:1]
    with pytest.warns(RuntimeWarning, match="change by more than"):
        found = ods.log_likelihood(model, x, solver="ddim", num_steps=2)
    assert found.unsettled.all()
    data = mixture()
    assert ods.log_likelihood(data.model(EDM), data.sample(1)).difference is not None
    assert ods.log_likelihood(data.model(EDM), data.sample(1), solver="scipy:DOP853").difference is None


@pytest.mark.parametrize("num_steps", [3, 4, 5, 8])
def test_half_the_steps_from_infinity_take_the_same_first_one(num_steps):
    data = mixture()
    model, x = data.model(ods.RectifiedFlow(), "flow"), data.sample(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # few steps
        found = ods.log_likelihood(model, x, solver="heun", num_steps=num_steps, check=True)
    assert found.difference.isfinite().all()
    assert (found.difference > 0).all()
