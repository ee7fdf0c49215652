"""sample, encode, decode, interpolate: what they promise, on exact models."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import odesampler as ods
from odesampler.noise import Streams
from tests.problems import DRAWING

RING = ods.exact.GaussianMixture.ring()
MODEL = RING.model()


def images(n: int = 6) -> torch.Tensor:
    return RING.sample(n, seed=3)


def test_every_public_name_is_there_and_documented():
    for name in ods.__all__:
        assert getattr(ods, name).__doc__, name


def test_the_names_for_type_checkers_are_the_names_at_run_time():
    import ast
    import inspect

    tree = ast.parse(inspect.getsource(ods))
    block = next(n for n in tree.body if isinstance(n, ast.If))
    declared = {alias.asname for node in block.body for alias in node.names}
    assert declared == set(ods.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = ods.nonsense


def test_solvers_lists_every_name_whether_or_not_its_package_was_imported_first():
    import odesampler.solvers  # binds the package to the name of the function

    assert odesampler.solvers is not None
    names = {facts.name for facts in ods.solvers()}
    assert {"euler", "heun", "dopri5", "reversible", "ancestral", "torchdiffeq:dopri5", "scipy:DOP853"} <= names
    assert "ddim" in str(ods.solvers())


# ---- sample ------------------------------------------------------------------------------------------------------


def test_samples_of_a_gaussian_have_its_mean_and_variance():
    mean = torch.tensor([0.5, -0.3], dtype=torch.float64)
    model = ods.exact.Gaussian(mean, 0.04).model()
    x = ods.sample(model, 2000, solver="heun", num_steps=40, state_dtype=torch.float64).x
    assert (x.mean(0) - mean).abs().max() < 0.02
    assert (x.var(0) - 0.04).abs().max() < 0.005


def test_sample_i_of_seed_s_is_the_same_in_any_batch():
    together = ods.sample(MODEL, 8, solver="ddpm", num_steps=12, seed=5).x
    for i in (0, 3, 7):
        alone = ods.sample(MODEL, 1, solver="ddpm", num_steps=12, seed=5 + i).x
        assert torch.allclose(together[i], alone[0], atol=1e-5)
    shuffled = ods.sample(MODEL, 3, solver="ddpm", num_steps=12, seed=[9, 5, 12]).x
    assert torch.allclose(shuffled, together[[4, 0, 7]], atol=1e-5)


@given(chunk=st.integers(1, 7), order=st.permutations(range(5)))
def test_neither_chunks_nor_the_order_of_the_batch_change_a_sample(chunk, order):
    whole = ods.sample(MODEL, 5, num_steps=6, state_dtype=torch.float64).x
    again = ods.sample(MODEL, 5, num_steps=6, seed=list(order), max_batch=chunk, state_dtype=torch.float64).x
    assert torch.allclose(again, whole[list(order)], atol=1e-12)


@pytest.mark.parametrize("noise", ["independent", "brownian"])
@pytest.mark.parametrize("solver", DRAWING, ids=repr)
def test_latents_of_a_seed_give_its_samples_whether_they_are_drawn_or_given(solver, noise):
    """Else a stochastic step would add the noise that the latents already are."""
    x = Streams([4, 5, 6]).draw(torch.empty(3, 2)) * MODEL.schedule.latent_scale(MODEL.range[1])
    how = {"solver": solver, "num_steps": 3, "seed": 4, "noise": noise}
    assert torch.equal(ods.sample(MODEL, x=x, **how).x, ods.sample(MODEL, 3, **how).x)


def test_evaluations_are_counted_per_sample_and_per_call():
    found = ods.sample(MODEL, 5, solver="heun", num_steps=10, max_batch=2)
    assert found.nfe.tolist() == [19] * 5  # two a step, and one into zero
    assert found.calls == 19 * 3


def test_steps_of_its_own_unless_a_number_is_given():
    assert len(set(ods.sample(MODEL, 3, solver="rk45").nfe.tolist())) > 1
    assert ods.sample(MODEL, 3, solver="adaptive:rk45(coordinate='sigma')").nfe.min() > 60
    assert ods.sample(MODEL, 3, solver="rk45", num_steps=4).nfe.tolist() == [1 + 6 * 3 + 1] * 3
    assert ods.sample(MODEL, 3, solver="heun", rtol=1e-2, atol=1e-2).nfe.max() != 39


def test_a_trajectory_starts_at_the_latent_and_ends_at_the_sample():
    latent = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    found = ods.sample(MODEL, x=latent, num_steps=7, trajectory=True)
    assert len(found.trajectory) == 8
    assert found.trajectory.sigmas[-1] == 0
    assert torch.allclose(found.trajectory.x_t[0], latent, atol=1e-6)
    assert torch.equal(found.trajectory.x_t[-1], found.x)


def test_samples_can_be_differentiated_when_asked_and_carry_no_graph_otherwise():
    latent = torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    options = {"num_steps": 5, "state_dtype": torch.float64}
    assert not ods.sample(MODEL, x=latent, **options).x.requires_grad
    found = ods.sample(MODEL, x=latent, grad=True, **options).x
    [slope] = torch.autograd.grad(found.sum(), latent)
    step = 1e-6
    moved = ods.sample(MODEL, x=(latent + step * slope).detach(), **options).x.sum()
    assert math.isclose((moved - found.sum()).item() / step, slope.square().sum().item(), rel_tol=1e-3)


def test_a_flow_model_starts_at_infinity_with_every_kind_of_loop():
    flow = RING.model(ods.RectifiedFlow(), "flow")
    truth = ods.sample(flow, 4, solver="rk4", num_steps=400, state_dtype=torch.float64).x
    for how in ({"solver": "heun", "num_steps": 100}, {"solver": "rk45", "rtol": 1e-6}, {"solver": "scipy:RK45"}):
        x = ods.sample(flow, 4, state_dtype=torch.float64, **how).x
        assert (x - truth).abs().max() < 5e-3, how


def test_samples_that_cannot_arrive_are_returned_with_a_warning_that_names_them():
    with pytest.warns(RuntimeWarning, match=r"did not arrive \(sample 0: STEP_LIMIT"):
        found = ods.sample(MODEL, 3, solver=ods.Adaptive(ods.Bosh3(), max_steps=3))
    assert found.status == (ods.Status.STEP_LIMIT,) * 3
    assert "3 did not arrive" in repr(found)
    assert found.x.isnan().all()


def test_samples_that_arrive_are_not_touched_by_those_that_cannot():
    free = ods.sample(MODEL, 8, solver=ods.Dopri5(), rtol=1e-4, state_dtype=torch.float64)
    steps = (free.nfe - 3) // 6  # two to find the first step, one into zero
    limit = int(steps.median())
    assert steps.min() <= limit < steps.max()
    with pytest.warns(RuntimeWarning, match="of 8 samples did not arrive"):
        found = ods.sample(
            MODEL, 8, solver=ods.Adaptive(ods.Dopri5(), 1e-4, max_steps=limit), state_dtype=torch.float64
        )
    arrived = steps <= limit
    assert [s is ods.Status.ARRIVED for s in found.status] == arrived.tolist()
    assert torch.allclose(found.x[arrived], free.x[arrived])
    assert found.x[~arrived].isnan().all()


def test_the_network_is_called_in_its_own_dtype_and_the_state_keeps_another():
    seen = set()

    class Half(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones((), dtype=torch.bfloat16), requires_grad=False)

        def forward(self, x_t, t):
            seen.add((x_t.dtype, t.dtype))
            return x_t * self.scale

    found = ods.sample(ods.Model(Half(), ods.VP.linear(), data_shape=(2,)), 2, num_steps=3, state_dtype=torch.float64)
    assert found.x.dtype is torch.float64
    assert seen == {(torch.bfloat16, torch.float32)}  # bfloat16 cannot tell t = 998 from 999


def test_autocast_is_on_around_the_network_and_nowhere_else():
    linear = torch.nn.Linear(2, 2).requires_grad_(False)
    seen = []

    def network(x_t, t):
        seen.append(linear(x_t).dtype)
        return linear(x_t)

    model = ods.Model(network, ods.VP.linear(), data_shape=(2,), autocast=torch.bfloat16)
    assert ods.sample(model, 2, num_steps=3).x.dtype is torch.float32
    assert set(seen) == {torch.bfloat16}


BAD = [
    ({}, "how many samples"),
    ({"num_samples": 0}, "num_samples must be"),
    ({"num_samples": 2, "solver": "huen"}, "unknown solver 'huen'"),
    ({"num_samples": 2, "grid": "karas"}, "unknown grid 'karas'"),
    ({"num_samples": 2, "num_steps": 0}, "num_steps is the number of transitions"),
    ({"num_samples": 2, "num_steps": 5, "rtol": 1e-3}, "give one"),
    ({"num_samples": 2, "solver": "euler", "rtol": 1e-3}, "estimates no error"),
    ({"num_samples": 2, "solver": "scipy:RK45", "num_steps": 5}, "num_steps=5 would have no effect"),
    ({"num_samples": 2, "solver": "scipy:RK45", "grid": [9.0, 0.0]}, "the given grid of 1 transitions would have no"),
    ({"num_samples": 2, "rtol": 1e-3, "grid": [9.0, 0.0]}, "the given grid of 1 transitions asks for a fixed grid"),
    ({"num_samples": 2, "solver": "rk45", "grid": "karras"}, "would have no effect"),
    ({"num_samples": 2, "grid": [200.0, 1.0, 0.0]}, "outside the range"),
    ({"num_samples": 2, "grid": [1.0, 1.0, 0.0]}, "strictly monotone"),
    ({"num_samples": 2, "grid": [1.0, 0.5, 0.0], "num_steps": 3}, "has 2 transitions"),
    ({"num_samples": 2, "seed": [1]}, "one a sample"),
    ({"num_samples": 2, "seed": -1}, "a seed must be"),
    ({"num_samples": 2, "guidance_scale": 2.0}, "null condition"),
    ({"num_samples": 2, "state_dtype": torch.float16}, "state_dtype must be"),
    ({"num_samples": 2, "max_batch": 0}, "max_batch must be"),
    ({"num_samples": 2, "clip_denoised": -1.0}, "clip_denoised must be"),
    ({"x": torch.zeros(2, 3)}, "must have shape"),
    ({"x": torch.full((2, 2), math.nan)}, "samples \\[0, 1\\] have NaN"),
    ({"num_samples": 2, "solver": "rk45", "trajectory": True}, "fixed grid"),
    ({"num_samples": 2, "solver": "torchdiffeq:rk4", "num_steps": 5, "trajectory": True}, "our own solvers"),
    ({"num_samples": 2, "solver": "scipy:RK45", "grad": True}, "cannot be differentiated"),
    ({"num_samples": 2, "guidance_scale": math.nan}, "finite number"),
    ({"num_samples": 2, "rtol": math.inf}, "rtol and atol must be finite"),
    ({"num_samples": 2, "num_steps": 10**9}, "from 1 to 1000000"),
    ({"num_samples": 2, "cond": {"label": object()}}, "one a sample"),
    ({"x": torch.zeros(0, 2)}, "x holds no latents"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_input_is_refused_before_the_model_is_called(arguments, message):
    def never(x_t, t):
        raise AssertionError("the model was called")

    model = ods.Model(never, ods.VP.linear(), data_shape=(2,))
    with pytest.raises(ValueError, match=message):
        ods.sample(model, **arguments)


def test_what_is_no_model_or_no_condition_is_a_type_error():
    for call in (
        lambda: ods.sample("digits", 2),
        lambda: ods.encode("digits", images()),
        lambda: ods.Model(MODEL.network, "linear"),
        lambda: ods.Model(3, ods.VP.linear()),
        lambda: ods.sample(MODEL, 2, cond=3),
        lambda: ods.sample(MODEL, 2, cond={3: 1}),
        lambda: ods.sample(MODEL, 2, seed=1.5),
        lambda: ods.sample(ods.Model(lambda x_t, t: None, ods.VP.linear(), data_shape=(2,)), 2),
    ):
        with pytest.raises(TypeError, match=r"(must|takes|integer|have names)"):
            call()


def test_a_condition_may_have_any_name():
    """Also those that the model's own arguments have."""

    def network(x_t, t, told, x, sigma):
        seen.append((t.tolist(), told.tolist(), x.tolist(), sigma.tolist()))
        return x_t * 0.1

    seen = []
    model = ods.Model(network, ods.VE(0.1, 10.0), data_shape=(2,), null_cond={"told": 0, "x": 0, "sigma": 0})
    for scale in (1.0, 2.0):
        ods.sample(
            model, 1, solver="ddim", grid=[5.0, 2.0], cond={"told": 1, "x": 2, "sigma": 3}, guidance_scale=scale,
            clip_denoised=1.0,
        )  # fmt: skip
    assert seen == [([5.0], [1], [2], [3]), ([5.0] * 2, [1, 0], [2, 0], [3, 0])]


@pytest.mark.parametrize("grad", [True, "plain", "checkpointed"])
def test_gradients_in_a_mode_that_keeps_none_are_refused(grad):
    with torch.inference_mode(), pytest.raises(ValueError, match=r"torch.inference_mode\(\) keeps nothing: leave it"):
        ods.sample(MODEL, 2, num_steps=2, grad=grad)


def test_numbers_from_numpy_are_numbers():
    numpy = pytest.importorskip("numpy")
    one, two, five = (numpy.int64(i) for i in (1, 2, 5))
    assert torch.equal(ods.sample(MODEL, two, num_steps=five, seed=one).x, ods.sample(MODEL, 2, num_steps=5, seed=1).x)


def test_samples_do_not_depend_on_torchs_default_dtype():
    usual = ods.sample(MODEL, 2, solver="ddpm", num_steps=4).x
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(ods.sample(MODEL, 2, solver="ddpm", num_steps=4).x, usual)
    finally:
        torch.set_default_dtype(torch.float32)


def test_gradients_through_adaptive_steps_are_those_of_the_steps_taken():
    linear = torch.nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        linear.weight.zero_()  # eps = 0: every error is exactly 0, where a square root has no slope
    model = ods.Model(lambda x_t, t: linear(x_t), ods.VP.linear(), data_shape=(2,))
    x = ods.sample(model, 2, solver="rk45", grad=True, state_dtype=torch.float64).x
    [slope] = torch.autograd.grad(x.sum(), linear.weight)
    assert slope.isfinite().all()


def test_a_model_refuses_what_it_cannot_mean():
    network = MODEL.network
    for arguments, message in [
        ({"prediction": "epsilon"}, "prediction must be one of"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "sigma_min < sigma_max"),
        ({"sigma_max": 1e4}, "the schedule's largest"),
        ({"schedule": ods.RectifiedFlow()}, "says nothing about the image"),
    ]:
        with pytest.raises(ValueError, match=message):
            ods.Model(network, **{"schedule": ods.VP.linear(), **arguments})


# ---- encode, decode ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["ddim", "heun", "rk4", "adaptive:dopri5(rtol=1e-6, atol=1e-6)", "torchdiffeq:rk4"])
def test_what_was_encoded_comes_back(solver):
    steps = {} if solver.startswith("adaptive") else {"num_steps": 100}
    latent = ods.encode(MODEL, images(), solver=solver, **steps)
    back = ods.decode(MODEL, latent).x
    assert (back - images()).square().mean().sqrt() < (0.02 if solver == "ddim" else 2e-4)


def test_an_exactly_invertible_solver_brings_images_back_to_rounding_and_latents_too():
    latent = ods.encode(MODEL, images(), solver="reversible", num_steps=20)
    assert (ods.decode(MODEL, latent).x - images()).abs().max() < 1e-9
    with pytest.warns(UserWarning, match="no memory"):
        without = ods.decode(MODEL, latent.without_memory()).x
    assert 1e-6 < (without - images()).abs().max() < 2


@settings(max_examples=20)
@given(
    steps=st.integers(20, 40),
    solver=st.sampled_from([("ddim", 1), ("heun", 2), ("rk4", 4)]),
    schedule=st.sampled_from([ods.VP.linear(), ods.VP.cosine(), ods.VE(), ods.ContinuousVP()]),
    prediction=st.sampled_from(["eps", "denoised", "v", "flow"]),
)
def test_the_round_trip_error_falls_with_steps_at_the_solvers_order(steps, solver, schedule, prediction):
    name, order = solver
    gaussian = ods.exact.Gaussian(torch.tensor([0.5, -1.0], dtype=torch.float64), 0.3)
    model = gaussian.model(schedule, prediction, sigma_min=0.05, sigma_max=20.0)
    x = gaussian.sample(4)

    def error(n):
        return (ods.decode(model, ods.encode(model, x, solver=name, num_steps=n)).x - x).square().mean().sqrt().item()

    coarse, fine = error(steps), error(2 * steps)
    assert fine < 1e-9 or math.log2(coarse / fine) > order - 0.35


def test_encoding_and_decoding_walk_the_same_sigmas():
    asked = []

    class Spy(torch.nn.Module):
        def forward(self, x_t, t):
            asked.append(ods.VP.linear().sigma(t.double())[0].item())
            return MODEL.network(x_t, t)

    model = ods.Model(Spy(), ods.VP.linear(), data_shape=(2,))
    latent = ods.encode(model, images(), solver="heun", num_steps=9, grid="log_snr")
    up, asked[:] = list(asked), []
    ods.decode(model, latent)
    assert sorted(up) == pytest.approx(sorted(asked))


def test_the_latent_of_a_gaussian_is_where_its_trajectory_ends():
    gaussian = ods.exact.Gaussian(torch.tensor([0.5, -1.0], dtype=torch.float64), 0.3)
    model = gaussian.model()
    x = gaussian.sample(5)
    low, high = model.range
    truth = gaussian.trajectory(model.schedule.from_model_scale(x, low), low, high)
    latent = ods.encode(model, x, solver="rk4", num_steps=60)
    assert torch.allclose(latent.x, model.schedule.to_model_scale(truth, high), atol=1e-6)


BAD_ENCODE = [
    ({"images": torch.zeros(2, 2, dtype=torch.uint8)}, TypeError, "floating-point"),
    ({"images": [1.0, 2.0]}, TypeError, "floating-point"),
    ({"images": torch.zeros(2, 3)}, ValueError, "must have shape"),
    ({"images": torch.zeros(0, 2)}, ValueError, "no samples"),
    ({"images": torch.full((1, 2), math.inf)}, ValueError, "finite"),
    ({"solver": "ddpm"}, ValueError, "draws noise"),
    ({"grid": [100.0, 1.0, 0.0]}, ValueError, "cannot be undone"),
    ({"cond": {"label": [1, 2, 3]}}, ValueError, "one value a sample"),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), BAD_ENCODE, ids=[m for *_, m in BAD_ENCODE])
def test_bad_images_are_refused_before_the_model_is_called(arguments, kind, message):
    def never(x_t, t):
        raise AssertionError("the model was called")

    model = ods.Model(never, ods.VP.linear(), data_shape=(2,))
    with pytest.raises(kind, match=message):
        ods.encode(model, **{"images": torch.zeros(2, 2), **arguments})


def test_clipping_while_encoding_warns_of_the_floor_it_puts_under_the_round_trip():
    with pytest.warns(UserWarning, match="floor"):
        ods.encode(MODEL, images(), num_steps=2, clip_denoised=1.0)


def test_decode_takes_a_latent_and_nothing_else():
    with pytest.raises(TypeError, match="takes a Latent"):
        ods.decode(MODEL, images())


# ---- interpolation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [torch.tensor([4, 9]), torch.tensor([4, 9]).numpy(), (4, 9)], ids=type)
def test_seeds_may_be_a_list_a_tensor_or_an_array(seed):
    assert torch.equal(ods.sample(MODEL, 2, num_steps=2, seed=seed).x, ods.sample(MODEL, 2, num_steps=2, seed=[4, 9]).x)


@pytest.mark.parametrize(
    "seed",
    [True, [True, 2], "12", torch.tensor([1.0, 2.0]), torch.tensor([[1], [2]]), None, torch.tensor([True, False])],
)
def test_what_is_no_seed_is_refused_and_what_is_one_is_said(seed):
    with pytest.raises(TypeError, match="seed must be a whole number, or one a sample: a list, or a tensor or array"):
        ods.sample(MODEL, 2, num_steps=2, seed=seed)


@given(weight=st.floats(0, 1), seed=st.integers(0, 10**6))
def test_slerp_keeps_the_length_of_vectors_of_one_length(weight, seed):
    a, b = torch.randn(2, 3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    between = ods.slerp(a, b, weight)
    assert torch.allclose(between.norm(dim=1), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(ods.slerp(b, a, 1 - weight), between)


def test_slerp_of_parallel_and_zero_vectors_is_the_straight_line():
    a = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert torch.allclose(ods.slerp(a, 2 * a, 0.5), 1.5 * a)


def test_interpolated_latents_begin_and_end_at_the_two_images():
    latent = ods.encode(MODEL, images(2), solver="reversible", num_steps=10)
    path = ods.interpolate(latent.select([0]), latent.select([1]), 5)
    back = ods.decode(MODEL, path).x
    assert len(path) == 5
    assert torch.allclose(back[[0, -1]], images(2), atol=1e-6)
    with pytest.raises(ValueError, match="one sample each"):
        ods.interpolate(latent, latent, 3)
