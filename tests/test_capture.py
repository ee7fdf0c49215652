"""Captured solves: the same samples, nothing read from the device, nothing computed on the host from what is there."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import odesampler as ods
from odesampler import captured as module
from odesampler.solvers import FixedPoint
from tests.counting import Counted, on_device
from tests.problems import SOLVERS

MODEL = ods.load("digits", dtype=torch.float64)
HOW = {"num_steps": 4, "state_dtype": torch.float64}


class Tape(TorchDispatchMode):
    """What a CUDA graph does, on the CPU: records kernels and where they read and write, and runs them there again.

    Python runs once, so numbers are those of the recording. To read a value is not permitted.
    """

    def __init__(self):
        super().__init__()
        self.kernels = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        asked = tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs or {}))  # shaped as they are now
        out = func(*args, **(kwargs or {}))
        if not func.is_view and not any(name in str(func) for name in ("_local_scalar_dense", "squeeze_")):
            self.kernels.append((func, *asked, tree_map_only(torch.Tensor, torch.Tensor.detach, out)))
        return out

    def replay(self):
        for func, args, kwargs, out in self.kernels:
            for place, value in zip(tensors(out), tensors(func(*args, **kwargs)), strict=True):
                if place.data_ptr() != value.data_ptr():
                    place.copy_(value)


def tensors(values):
    return [v for v in tree_leaves(values) if isinstance(v, torch.Tensor)]


@pytest.fixture
def tape(monkeypatch):
    """Graphs are recorded on tape; afterwards Python does not run again."""
    tapes = []

    def recorded(solve, model):
        tape = Tape()
        with tape:
            found = solve()
        tapes.append(tape)

        def launch():
            tape.replay()
            return found

        return launch

    monkeypatch.setattr(module, "recorded", recorded)
    return tapes


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_replay_is_the_solve_of_every_solver(tape, solver):
    draw = ods.capture(MODEL, 3, solver=solver, cond={"label": 1}, **HOW)
    for seed in (5, 7):
        found = draw(seed=seed)
        want = ods.sample(MODEL, 3, solver=solver, seed=seed, cond={"label": 1}, **HOW)
        assert torch.equal(found.x, want.x)
        assert (found.nfe.tolist(), found.calls) == (want.nfe.tolist(), want.calls)
    assert len(tape) == 1, "it was recorded once"


@pytest.mark.parametrize(
    "how",
    [
        {"guidance_scale": 3.0},
        {"guidance_scale": ods.Guidance(3.0, interval=(0.5, 5.0))},
        {"clip_denoised": 1.0},
        {"clip_denoised": ods.DynamicThreshold()},
        {"max_batch": 2},
        {"solver": "ddpm", "noise": "brownian"},
        {"grid": "karras", "solver": "heun"},
    ],
    ids=repr,
)
def test_a_replay_minds_what_else_can_be_asked_for(tape, how):
    draw = ods.capture(MODEL, 3, cond={"label": 1}, **how, **HOW)
    found = draw(seed=2, cond={"label": torch.tensor([4, 5, 6])})
    assert torch.equal(found.x, ods.sample(MODEL, 3, seed=2, cond={"label": torch.tensor([4, 5, 6])}, **how, **HOW).x)
    again = draw(seed=2)
    assert torch.equal(again.x, ods.sample(MODEL, 3, seed=2, cond={"label": 1}, **how, **HOW).x), "its own conditions"


def test_one_result_is_not_the_next():
    draw = ods.capture(MODEL, 2, **HOW)
    first = draw(seed=0).x
    kept = first.clone()
    draw(seed=9)
    assert torch.equal(first, kept)


def test_one_result_is_not_the_next_on_tape(tape):
    test_one_result_is_not_the_next()


def test_latents_are_taken_too(tape):
    draw, x = ods.capture(MODEL, 2, **HOW), torch.randn(2, 1, 8, 8)
    assert torch.equal(draw(x=x).x, ods.sample(MODEL, x=x, **HOW).x)
    with pytest.raises(ValueError, match="num_samples=2, but x holds 3 latents"):
        draw(x=torch.randn(3, 1, 8, 8))


@pytest.mark.parametrize("solver", [s for s in SOLVERS if not isinstance(s, FixedPoint)], ids=repr)
def test_no_solve_reads_what_is_on_the_device(solver):
    """In a recording that would be an error. FixedPoint looks at its values, but on the CPU alone."""
    draw = ods.capture(MODEL, 3, solver=solver, cond={"label": 1}, guidance_scale=2.0, **HOW)
    counts = Counted(draw._x.numel())
    on_device(draw._x, *draw._cond.values(), *(place for place, _ in draw._places._made))
    with torch.no_grad(), counts:
        draw._solve(MODEL)
    assert counts.device_names
    assert counts.device_waits == []


def test_without_a_gpu_it_is_solved_step_by_step():
    draw = ods.capture(MODEL, 3, solver="ddpm", **HOW)
    assert torch.equal(draw(seed=4).x, ods.sample(MODEL, 3, solver="ddpm", seed=4, **HOW).x)
    assert repr(draw) == "Captured(digits, 3 samples, ancestral, 4 steps)"


def test_nan_is_named_with_its_sigma_after_the_launch(tape):
    """Which sigma is known though Python did not run; and the next launch, where all is well, is not blamed."""

    def network(x_t, t):
        return torch.where(x_t > 50, torch.nan, x_t * 0.1)

    model = ods.Model(network, ods.VE(), data_shape=(2,))
    draw = ods.capture(model, 1, solver="ddim", num_steps=3)
    fine, broken = torch.full((1, 2), 0.1), torch.full((1, 2), 2.0) * model.range[1]
    for _ in range(2):
        assert draw(x=fine).x.isfinite().all()
        with pytest.raises(FloatingPointError, match=f"NaN or infinity at sigma = {model.range[1]:g}"):
            draw(x=broken)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"solver": "adaptive:dopri5"}, "capture takes a solver of ours on a fixed grid; got adaptive:dopri5"),
        ({"solver": "torchdiffeq:rk4"}, "capture takes a solver of ours"),
        ({"max_batch": "auto"}, "give a number, or none"),
        ({"noise": "pink"}, "noise must be one of"),
        ({"num_steps": 0}, "num_steps"),
    ],
)
def test_what_cannot_be_recorded_is_refused_before_the_model_is_asked(how, message):
    model = replace(MODEL, network=lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(ValueError, match=message):
        ods.capture(model, 2, **how)


@pytest.mark.parametrize(
    "options", [{"mode": "reduce-overhead"}, {"mode": "max-autotune"}, {"options": {"triton.cudagraphs": True}}]
)
def test_graphs_inside_a_graph_are_refused(options):
    with pytest.raises(ValueError, match="holds no others: compile=True"):
        ods.capture(replace(MODEL, compile=options), 2)


def test_conditions_of_another_shape_are_refused():
    draw = ods.capture(MODEL, 2, cond={"label": 1}, **HOW)
    with pytest.raises(ValueError, match=r"cond\['label'\] must hold one value a sample"):
        draw(cond={"label": torch.tensor([1, 2, 3])})
    wide = ods.Model(lambda x_t, t, hint: x_t + hint.mean(), ods.VP.linear(), data_shape=(2,))
    draw = ods.capture(wide, 2, cond={"hint": torch.zeros(2, 5)}, **HOW)
    with pytest.raises(ValueError, match=r"conditions have the shapes that were captured, {'hint': \(2, 5\)}"):
        draw(cond={"hint": torch.zeros(2, 4)})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="records a real CUDA graph, which needs a GPU")
@pytest.mark.parametrize("solver", ["ddim", "heun", "dpmpp_2m", "unipc", "ddpm"])
def test_on_a_gpu_a_graph_draws_the_same_samples(solver):
    model = ods.load("digits").to("cuda")
    draw = ods.capture(model, 4, solver=solver, num_steps=10, guidance_scale=2.0, cond={"label": 3})
    for seed in (1, 2):
        want = ods.sample(model, 4, solver=solver, seed=seed, num_steps=10, guidance_scale=2.0, cond={"label": 3})
        torch.testing.assert_close(draw(seed=seed).x, want.x, rtol=1e-3, atol=1e-3)
