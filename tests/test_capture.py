"""Captured solves: the same samples, nothing read from the device, nothing computed on the host from what is there."""

import gc
import weakref
from contextlib import contextmanager
from dataclasses import replace
from threading import Thread
from types import SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import odesampler as ods
from odesampler import captured as module
from odesampler.program import Draw
from tests.counting import Uploads
from tests.problems import SOLVERS

MODEL = ods.load("digits", dtype=torch.float64)
HOW = {"num_steps": 4, "state_dtype": torch.float64}


class Tape(TorchDispatchMode):
    """What a CUDA graph does, on the CPU: records kernels and where they read and write, and runs them there again.

    Python runs once, so numbers are those of the recording. Unlike a graph it keeps all that was made on the way, and
    does not notice when values are read or brought from the host: both are looked for below, on a device without any.
    """

    def __init__(self):
        super().__init__()
        self.kernels, self.replays = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        asked = tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs or {}))  # shaped as they are now
        out = func(*args, **(kwargs or {}))
        if not func.is_view and not any(name in str(func) for name in ("_local_scalar_dense", "squeeze_")):
            self.kernels.append((func, *asked, tree_map_only(torch.Tensor, torch.Tensor.detach, out)))
        return out

    def replay(self):
        self.replays += 1
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
    assert [one.replays for one in tape] == [2], "it was recorded once, and never solved again"


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


@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
def test_latents_are_taken_too(tape, solver):
    draw, x = ods.capture(MODEL, 2, solver=solver, **HOW), torch.randn(2, 1, 8, 8)
    assert torch.equal(draw(x=x, seed=5).x, ods.sample(MODEL, x=x, seed=5, solver=solver, **HOW).x)
    with pytest.raises(ValueError, match="num_samples=2, but x holds 3 latents"):
        draw(x=torch.randn(3, 1, 8, 8))


def test_noise_for_some_samples_is_drawn_from_their_streams(tape):
    class Some(ods.Solver):
        order = evaluations = 1
        stochastic = True

        def step(self, state, s0, s1):
            k0 = yield state.x, s0
            rows = torch.tensor([2, 0])
            noise = yield Draw(state.x[rows], rows)
            return ods.State((state.x + (s1 - s0) * k0).index_add(0, rows, noise))

    found = ods.capture(MODEL, 3, solver=Some(), **HOW)(seed=4)
    assert torch.equal(found.x, ods.sample(MODEL, 3, solver=Some(), seed=4, **HOW).x)


def test_a_replay_computes_with_weights_as_they_are(tape):
    model = ods.load("digits", dtype=torch.float64)
    draw = ods.capture(model, 2, **HOW)
    with torch.no_grad():
        for weight in model.network.parameters():
            weight.mul_(0.9)
    assert torch.equal(draw(seed=1).x, ods.sample(model, 2, seed=1, **HOW).x)


class Made(TorchFunctionMode):
    """Tensors of Python's numbers, which on the meta device are no operation."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        makes = func in (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor)
        if makes and out.is_meta and not (isinstance(args[-1], torch.Tensor) and args[-1].is_meta):
            self.found.append(func.__name__)
        return out


def test_uploads_and_reads_are_seen():
    place = torch.zeros(2, device="meta")
    with Made() as made, Uploads() as uploads:
        torch.tensor([1.0, 2.0], device="meta")
        torch.as_tensor(2.0, device="meta")
        place.new_tensor([1.0])
        torch.zeros(2).to("meta")
        place.copy_(torch.zeros(2))
        torch.full((2,), 3.0, device="meta")  # a kernel, which is told a number
        torch.as_tensor(place)
    assert made.found == ["tensor", "as_tensor", "new_tensor"]
    assert len(uploads.found) == 2
    with pytest.raises((RuntimeError, NotImplementedError)):
        place.sum().item()


HOWS = [*({"solver": solver} for solver in SOLVERS), {"clip_denoised": ods.DynamicThreshold()}, {"max_batch": 2}]
HOWS += [{"guidance_scale": ods.Guidance(3.0, rescale=0.5, interval=(0.5, 5.0))}]


@pytest.mark.parametrize("how", HOWS, ids=repr)
def test_no_solve_reads_from_the_device_or_brings_anything_there(how):
    """In a recording both would be errors."""
    model = replace(ods.load("digits"), labels=()).to("meta")  # what labels there are is read, beforehand
    draw = ods.capture(model, 3, num_steps=4, **{"guidance_scale": 2.0, **how})
    with torch.no_grad(), Made() as made, Uploads() as uploads:
        draw._solve()
    assert uploads.made > 100
    assert made.found + uploads.found == []


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
    "options",
    [
        {"mode": "reduce-overhead"},
        {"mode": "max-autotune"},
        {"options": {"triton.cudagraphs": True}},
        {"backend": "cudagraphs"},
    ],
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


def test_conditions_of_another_kind_are_refused_not_rounded():
    model = ods.Model(lambda x_t, t, power: x_t * power.reshape(-1, 1), ods.VP.linear(), data_shape=(2,))
    draw = ods.capture(model, 2, cond={"power": 1}, **HOW)
    with pytest.raises(ValueError, match=r"cond\['power'\] was captured as torch.int64, which cannot hold torch.float"):
        draw(cond={"power": 0.5})


def test_conditions_are_those_of_the_moment_of_capture():
    label = torch.tensor([1, 2])
    draw = ods.capture(MODEL, 2, cond={"label": label}, **HOW)
    want = draw().x
    label.fill_(5)
    assert torch.equal(draw().x, want)


def test_conditions_that_cannot_be_guided_away_from_are_refused_beforehand():
    model = ods.Model(
        lambda *_, **__: pytest.fail("asked"), ods.VP.linear(), data_shape=(2,), null_cond={"hint": torch.zeros(3)}
    )
    with pytest.raises(ValueError, match="both must have one shape"):
        ods.capture(model, 2, cond={"hint": torch.zeros(2, 5)}, guidance_scale=2.0)


def test_whoever_draws_without_a_condition_is_told_that_guidance_does_nothing():
    draw = ods.capture(MODEL, 2, guidance_scale=2.0, **HOW)  # conditions come later
    draw(cond={"label": 3})
    with pytest.warns(UserWarning, match="guidance_scale=2 has no effect") as told:
        draw()
    assert told[0].filename == __file__
    ods.capture(MODEL, 2, guidance_scale=2.0, cond={"label": 3}, **HOW)()


def test_what_is_captured_in_inference_mode_draws_outside_it_too(tape):
    with torch.inference_mode():
        draw = ods.capture(MODEL, 2, solver="ddpm", cond={"label": 1}, **HOW)
        inside = draw(seed=3).x
    assert torch.equal(draw(seed=3).x, inside)


def test_a_model_of_unknown_shape_is_refused():
    with pytest.raises(ValueError, match=r"shape of net's data is not known: give Model\(data_shape=...\)$"):
        ods.capture(replace(MODEL, data_shape=None, name="net"), 2)


@pytest.mark.parametrize("solver", ["ddpm", "heun"])
def test_without_a_gpu_capture_asks_nobody(solver):
    ods.capture(replace(MODEL, network=lambda *_, **__: pytest.fail("asked")), 2, solver=solver, num_steps=3)


def test_threads_take_turns():
    """A second one would write its latents where the first is still reading; here it tries to, in the network."""

    def network(x_t, t):
        if not others and draw is not None:
            others.append(Thread(target=lambda: found.append(draw(seed=50).x)))
            others[0].start()
            others[0].join(0.2)
        return x_t * 0.3

    draw, others, found = None, [], []
    model = ods.Model(network, ods.VE(), data_shape=(2,))
    draw = ods.capture(model, 2, solver=ods.Churn(), num_steps=3)
    first = draw(seed=0).x
    others[0].join()
    for seed, x in ((0, first), (50, found[0])):
        assert torch.equal(x, ods.sample(model, 2, solver=ods.Churn(), num_steps=3, seed=seed).x)


def test_memory_is_given_back_with_the_last_reference():
    draw = ods.capture(MODEL, 2, solver="ddpm", **HOW)
    draw()
    there = weakref.ref(draw)
    gc.disable()
    try:
        del draw
        assert there() is None
    finally:
        gc.enable()


def test_a_schedule_that_hands_back_what_it_is_given_does_not_hand_out_the_places(tape):
    class Same(ods.VE):
        def to_model_scale(self, x, sigma):
            return x

    model = ods.Model(lambda x_t, t: x_t * 0.1, Same(), data_shape=(2,))
    draw = ods.capture(model, 2, num_steps=3)
    first = draw(seed=0).x
    kept = first.clone()
    draw(seed=9)
    assert torch.equal(first, kept)


def test_a_model_that_has_moved_is_refused():
    model = ods.load("digits")
    draw = ods.capture(model, 2, num_steps=3)
    model.to("meta")
    with pytest.raises(RuntimeError, match="digits was captured on cpu and is on meta: capture again"):
        draw()


class Cuda:
    """Stands for torch.cuda: streams, devices and graphs that note what they are told. A recording runs once."""

    def __init__(self, monkeypatch):
        self.said, self.streams, self.current, self.fails = [], 0, "main", None
        for name in ("Stream", "stream", "device", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.named(self.current))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: self.said.append("replay")))

    def named(self, name):
        return SimpleNamespace(name=name, wait_stream=lambda other: self.said.append(f"{name} waits for {other.name}"))

    def Stream(self):
        self.streams += 1
        return self.named(f"stream {self.streams}")

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def device(self, device):
        self.said.append(f"on {device}")
        yield

    @contextmanager
    def graph(self, graph, *, stream, capture_error_mode):
        self.current = stream.name  # and, as in torch, not brought back if the recording fails
        yield self.said.append(f"records, {capture_error_mode}")
        self.current = "stream 1"


@pytest.fixture
def cuda(monkeypatch):
    return Cuda(monkeypatch)


def on_gpu(network):
    return SimpleNamespace(name="net", network=network, device=torch.device("cuda", 1))


def test_a_graph_is_recorded_after_trials_on_streams_of_its_own(cuda):
    """The order of calls, with a GPU that is none."""

    def solve():
        cuda.said.append(f"solve on {cuda.current}, casts kept: {torch.is_autocast_cache_enabled()}")
        return 7

    with torch.autocast("cpu", torch.bfloat16):  # whose casts of weights the graph would read when they are gone
        launch = module.recorded(solve, on_gpu(torch.nn.Linear(2, 2)))
        assert torch.is_autocast_cache_enabled()
    assert cuda.said == [
        "on cuda:1",
        "stream 1 waits for main",
        "solve on stream 1, casts kept: False",
        "solve on stream 1, casts kept: False",
        "records, thread_local",
        "solve on stream 2, casts kept: False",
        "main waits for stream 1",
    ]
    assert [launch(), launch()] == [7, 7]
    assert cuda.said[7:] == ["replay", "replay"]
    assert cuda.current == "main"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("operation not permitted when stream is capturing"), "solve of net could not be recorded; its"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "^CUDA out of memory"),
        (TypeError("of the network's own"), "^of the network's own"),
    ],
)
def test_what_fails_while_it_is_recorded_leaves_streams_as_they_were(cuda, error, message):
    def solve():
        if cuda.current == "stream 2":
            raise error

    with pytest.raises(type(error), match=message):
        module.recorded(solve, on_gpu(torch.nn.Linear(2, 2)))
    assert cuda.current == "main"
    assert torch.is_autocast_cache_enabled()
    module.recorded(lambda: None, on_gpu(torch.nn.Linear(2, 2)))  # nobody waits for the one that failed


def moved(network):
    network.weight.data = network.weight.data.clone()


def replaced(network):
    network.bias = torch.nn.Parameter(torch.zeros(2))


def grown(network):
    network.register_buffer("scale", torch.ones(1))


@pytest.mark.parametrize("change", [moved, replaced, grown])
def test_weights_that_are_no_longer_where_a_graph_reads_them_are_noticed(cuda, change):
    network = torch.nn.Linear(2, 2)
    launch = module.recorded(lambda: None, on_gpu(network))
    with torch.no_grad():
        network.weight.mul_(2)
    launch()
    change(network)
    with pytest.raises(RuntimeError, match="weights of net were moved or replaced since it was captured"):
        launch()
    assert cuda.said.count("replay") == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="records a real CUDA graph, which needs a GPU")
@pytest.mark.parametrize("solver", ["ddim", "heun", "dpmpp_2m", "unipc", "ddpm"])
def test_on_a_gpu_a_graph_draws_the_same_samples(solver):
    model = ods.load("digits").to("cuda")
    draw = ods.capture(model, 4, solver=solver, num_steps=10, guidance_scale=2.0, cond={"label": 3})
    for seed in (1, 2):
        want = ods.sample(model, 4, solver=solver, seed=seed, num_steps=10, guidance_scale=2.0, cond={"label": 3})
        torch.testing.assert_close(draw(seed=seed).x, want.x, rtol=1e-3, atol=1e-3)
