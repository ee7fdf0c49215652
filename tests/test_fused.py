"""Fused solves: the same samples, one kernel between two calls of the network, every array read and written once."""

import shutil
from dataclasses import replace

import pytest
import torch

import odesampler as ods
from odesampler.fused import _Network
from tests.benchmarks import loop_overhead
from tests.benchmarks.loop_overhead import cost_of, fused_cost
from tests.problems import SOLVERS

MODEL = ods.load("digits", dtype=torch.float64)
HOW = {"num_steps": 3, "state_dtype": torch.float64}
needs_a_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="compiles kernels, which needs a C++ compiler",
)


@pytest.fixture
def not_compiled(monkeypatch):
    """Solves are recorded and cut into pieces, which stay as they are."""
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs: graph)


@pytest.mark.parametrize("solver", [s for s in SOLVERS if not isinstance(s, ods.FixedPoint)], ids=repr)
def test_pieces_make_the_solve_of_every_solver(not_compiled, solver):
    """Bit for bit, where nothing is compiled. FixedPoint looks at its values, but on the CPU alone."""
    draw = ods.capture(MODEL, 2, solver=solver, cond={"label": 1}, fuse=True, **HOW)
    for seed in (5, 7):
        want = ods.sample(MODEL, 2, solver=solver, seed=seed, cond={"label": 1}, **HOW)
        found = draw(seed=seed)
        assert torch.equal(found.x, want.x)
        assert (found.nfe.tolist(), found.calls) == (want.nfe.tolist(), want.calls)


@pytest.mark.parametrize(
    "how",
    [
        {"guidance_scale": 3.0},
        {"clip_denoised": ods.DynamicThreshold()},
        {"max_batch": 2},
        {"solver": "ddpm", "noise": "brownian"},
    ],
    ids=repr,
)
def test_it_minds_what_else_can_be_asked_for(not_compiled, how):
    draw = ods.capture(MODEL, 3, cond={"label": 1}, fuse=True, **how, **HOW)
    labels = {"label": torch.tensor([4, 5, 6])}
    assert torch.equal(draw(seed=2, cond=labels).x, ods.sample(MODEL, 3, seed=2, cond=labels, **how, **HOW).x)


@pytest.mark.parametrize(
    "how",
    [
        {"autocast": torch.bfloat16},
        {"channels_last": True},
        {"compile": {"backend": "eager"}},
        {"dtype": torch.float32},
    ],
    ids=repr,
)
def test_the_network_is_called_as_the_model_would_call_it(not_compiled, how):
    """With its own dtype, autocast, layout and compilation, none of them at its recording only."""
    model = replace(ods.load("digits"), **how)
    draw = ods.capture(model, 2, num_steps=3, state_dtype=torch.float64, fuse=True)
    want = ods.sample(model, 2, seed=3, num_steps=3, state_dtype=torch.float64)
    for _ in range(2):
        assert torch.equal(draw(seed=3).x, want.x)


def test_a_network_that_answers_with_its_question_is_told_apart_from_it(not_compiled):
    model = ods.Model(lambda x_t, t: x_t, ods.VP.linear(), data_shape=(2,))
    draw = ods.capture(model, 2, solver="heun", num_steps=3, fuse=True)
    assert torch.equal(draw(seed=1).x, ods.sample(model, 2, seed=1, solver="heun", num_steps=3).x)


def test_weights_that_change_are_those_of_the_network(not_compiled):
    """The network is no part of the recording."""
    model = ods.load("digits")
    draw = ods.capture(model, 2, num_steps=3, fuse=True)
    before = draw(seed=1).x
    with torch.no_grad():
        next(model.network.parameters()).mul_(1.5)
    assert not torch.equal(draw(seed=1).x, before)
    assert torch.equal(draw(seed=1).x, ods.sample(model, 2, seed=1, num_steps=3).x)


def test_networks_that_nobody_has_any_more_are_forgotten(not_compiled):
    import gc

    from odesampler.fused import _ASKED

    before = len(_ASKED)
    draw = ods.capture(MODEL, 2, fuse=True, **HOW)
    assert len(_ASKED) == before + 1
    del draw
    gc.collect()
    assert len(_ASKED) == before


def test_nan_is_named_with_its_sigma(not_compiled):
    model = ods.Model(lambda x_t, t: torch.where(x_t > 50, torch.nan, x_t * 0.1), ods.VE(), data_shape=(2,))
    draw = ods.capture(model, 1, solver="ddim", num_steps=3, fuse=True)
    assert draw(x=torch.full((1, 2), 0.1)).x.isfinite().all()
    with pytest.raises(FloatingPointError, match=f"NaN or infinity at sigma = {model.range[1]:g}"):
        draw(x=torch.full((1, 2), 2.0) * model.range[1])


def test_a_solver_that_looks_at_values_cannot_be_recorded(not_compiled):
    with pytest.raises(RuntimeError, match="reads a value"):
        ods.capture(MODEL, 2, solver=ods.FixedPoint(), fuse=True, **HOW)


def test_what_stands_for_the_network_is_on_its_device():
    """Guidance makes null conditions there, and joins them with those that are given."""
    model = ods.load("digits").to("meta")
    opaque = replace(model, network=_Network(model))
    assert opaque.device == torch.device("meta")
    assert opaque.nothing(2)["label"].is_meta


@pytest.mark.parametrize(
    "error", [torch.cuda.OutOfMemoryError("CUDA out of memory"), RuntimeError("of the network's own")], ids=repr
)
def test_an_error_of_the_network_is_not_taken_for_one_of_the_recording(not_compiled, error):
    def network(x_t, t):
        calls.append(t)
        if len(calls) == 5:
            raise error
        return x_t * 0.1

    calls = []
    with pytest.raises(type(error), match=str(error)):
        ods.capture(ods.Model(network, ods.VP.linear(), data_shape=(2,)), 2, solver="ddim", num_steps=3, fuse=True)
    assert len(calls) == 5


@needs_a_compiler
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own imports, and of diffusers
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("ddim", ("DDIM", "Euler", "k-diffusion euler")),
        ("heun", ("Heun", "k-diffusion heun")),
        ("dpmpp_2m", ("DPM-Solver++ 2M", "k-diffusion dpmpp_2m")),
    ],
)
def test_compiled_it_takes_one_operation_and_a_third_of_the_traffic(ours, theirs):
    """Of that of diffusers and k-diffusion, an evaluation; counted in the kernels that were written."""
    x = torch.randn(1, 3, 8, 8)
    runs = loop_overhead.rivals()[ours]
    with torch.no_grad():
        mine = fused_cost(ours, x)
        assert mine.operations == 1
        for name in theirs:
            other = cost_of(runs[name], x)
            wanted = 2 if "k-diffusion" in name else 3
            assert other.operations >= wanted
            assert other.traffic >= wanted * mine.traffic


@needs_a_compiler
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_the_samples_are_the_same_but_for_rounding():
    how = {"num_steps": 3, "guidance_scale": 2.0, "cond": {"label": 3}}
    draw = ods.capture(MODEL, 3, fuse=True, state_dtype=torch.float64, **how)
    for seed in (1, 2):
        want = ods.sample(MODEL, 3, seed=seed, state_dtype=torch.float64, **how)
        torch.testing.assert_close(draw(seed=seed).x, want.x, rtol=1e-9, atol=1e-9)
