"""max_batch="auto": calls are halved where memory runs out, and nothing else about a run changes."""

import gc
import json
import math
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import odesampler as ods
from odesampler.divergence import Spreading
from odesampler.drive import Tally, run
from odesampler.guidance import guided
from odesampler.integrate import on_grid
from odesampler.model import Model
from odesampler.null_steps import NullGuided
from odesampler.room import Room, attempted, of_memory, too_large
from odesampler.schedule import VE, VP
from odesampler.solvers import Heun
from odesampler.threshold import thresholded
from tests.problems import geometric, mixture, noise

STEPS, CALLS = 3, 6  # Heun's


@pytest.fixture(autouse=True, scope="module")
def little_garbage():
    """Collecting it takes long where many packages are imported: what is there already is left alone."""
    gc.freeze()
    yield
    gc.unfreeze()


class Small:
    """A network on a device with room for so many rows, and a list of the rows of each call."""

    def __init__(self, most, error=torch.cuda.OutOfMemoryError):
        self.most, self.error, self.asked = most, error, []

    def __call__(self, x_t, t, label):
        self.asked.append(len(x_t))
        if len(x_t) > self.most:
            raise self.error("CUDA out of memory. Tried to allocate 7.00 GiB.")
        return mixture()(x_t, t) * (1 + label[:, None])

    def model(self):
        return Model(self, VE(), null_cond={"label": 0.0}, data_shape=(2,))

    @property
    def failed(self):
        return sum(rows > self.most for rows in self.asked)


def solved(eps, batch, max_batch="auto", tally=None):
    cond = {"label": torch.linspace(0, 0.2, batch, dtype=torch.float64)}
    return run(on_grid(Heun(), noise(batch), geometric(STEPS)), model=eps, cond=cond, max_batch=max_batch, tally=tally)[
        0
    ].x


def halved(batch, most):
    """What a batch is halved to until so many rows fit."""
    while batch > most:
        batch //= 2
    return batch


@settings(max_examples=30)
@given(batch=st.integers(1, 70), most=st.integers(1, 70))
def test_the_result_is_that_of_the_chunks_that_fit_and_what_did_not_is_not_tried_again(batch, most):
    network, tally = Small(most), Tally()
    model, fits = network.model(), halved(batch, most)
    found = solved(model, batch, tally=tally)
    assert torch.equal(found, solved(Small(math.inf).model(), batch, fits))
    assert network.failed == sum(batch >> i > most for i in range(8))
    assert tally.calls == CALLS * math.ceil(batch / fits), "a call that failed is none that was answered"
    assert tally.nfe.tolist() == [CALLS] * batch
    failed = network.failed
    solved(model, batch)
    solved(thresholded(guided(model, 1.0), 50.0), batch)
    assert network.failed == failed


def test_rows_that_were_answered_are_not_asked_about_again():
    class Filling(Small):
        """Where half of the memory is taken after the third call."""

        def __call__(self, x_t, t, label):
            self.most = 8 if len(self.asked) < 3 else 4
            return super().__call__(x_t, t, label)

    network = Filling(8)
    found = solved(network.model(), 24)
    assert network.asked == [24, 12, 6, 6] + [3] * 6 + [3] * 8 * (CALLS - 1)
    torch.testing.assert_close(found, solved(Small(math.inf).model(), 24), rtol=1e-12, atol=1e-12)


def test_a_guided_sample_is_tried_where_one_row_alone_is_known_to_fit():
    network = Small(2)
    model = network.model()
    model.room.halve((2,), torch.device("cpu"), 3)
    found = solved(guided(model, 3.0), 4)
    assert set(network.asked) == {2}
    torch.testing.assert_close(found, solved(guided(Small(99).model(), 3.0), 4, 2))


def test_with_a_number_for_max_batch_memory_that_runs_out_is_an_error_at_once():
    class Once(Small):
        def __call__(self, x_t, t, label):
            assert not self.asked, "asked again"
            return super().__call__(x_t, t, label)

    with pytest.raises(torch.cuda.OutOfMemoryError, match=r"Tried to allocate 7\.00 GiB"):
        solved(Once(3).model(), 8, max_batch=4)


@pytest.mark.parametrize("most", [2, 3, 7, 12])
def test_guided_rows_count_and_the_wrapped_model_remembers_for_all_verbs(most):
    network = Small(most)
    model = network.model()
    eps = thresholded(guided(model, 3.0), 50.0)
    found = solved(eps, 6)
    torch.testing.assert_close(found, solved(thresholded(guided(Small(99).model(), 3.0), 50.0), 6))
    assert network.failed == sum(rows > most for rows in (12, 6, 2))
    failed = network.failed
    solved(eps, 6)
    solved(guided(model, 2.0), 6)
    solved(model, most)
    assert network.failed == failed


def test_one_sample_that_does_not_fit_is_an_error_that_says_what_to_do():
    for eps, rows in ((Small(0).model(), 1), (guided(Small(1).model(), 3.0), 2)):
        with pytest.raises(torch.cuda.OutOfMemoryError, match=rf"not even one sample .*\({rows} rows.*7.00 GiB"):
            solved(eps, 5)


def test_what_the_error_of_one_sample_that_does_not_fit_advises_can_be_done():
    network = torch.nn.Linear(2, 2)

    class Takes(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x_t, t):
            return self.inner(x_t)

    said = str(too_large((2,), 1, torch.device("cpu"), "no memory"))
    x, found = noise(3).float(), []
    for advice in ("Model(network.to(torch.bfloat16), ...)", "Model(..., autocast=torch.bfloat16)"):
        assert advice in said
    found.append(Model(Takes(), VE(), autocast=torch.bfloat16)(x, 1.0))
    found.append(Model(Takes().to(torch.bfloat16), VE())(x, 1.0))
    assert all(eps.dtype == x.dtype and eps.isfinite().all() for eps in found)


@pytest.mark.parametrize("error", [RuntimeError, ValueError, FloatingPointError])
def test_an_error_that_is_not_about_memory_is_raised_at_once(error):
    def network(x_t, t):
        asked.append(len(x_t))
        raise error("the shapes of the layers do not fit")

    asked = []
    with pytest.raises(error, match="the layers do not fit"):
        run(on_grid(Heun(), noise(8), geometric(3)), model=Model(network, VE()), max_batch="auto")
    assert asked == [8]


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 20.00 MiB",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "MPS backend out of memory (MPS allocated: 18.13 GB, other allocations: 384.00 KB, max allowed: 18.13 GB)",
        "[enforce fail at alloc_cpu.cpp:83] . DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes",
    ],
)
def test_errors_of_memory_are_known_by_their_text(text):
    assert of_memory(RuntimeError(text))
    assert of_memory(MemoryError())
    assert not of_memory(ValueError(text))


def test_the_error_of_this_allocator_is_one_of_memory():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(10**15)
    assert of_memory(raised.value)


def test_what_a_failed_call_held_is_gone_before_the_next_is_tried():
    held, alive = [], []

    def network(x_t, t):
        alive.append(sum(ref() is not None for ref in held))
        activations = torch.zeros(len(x_t), 100)
        held.append(weakref.ref(activations))
        try:
            if len(x_t) > 3:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        except torch.cuda.OutOfMemoryError as error:
            kept = error  # a cycle: the error, its traceback, this frame, the error
            raise kept from None
        return x_t

    gc.disable()  # so that only the driver collects cycles
    try:
        run(on_grid(Heun(), noise(16), geometric(1)), model=Model(network, VE()), max_batch="auto")
    finally:
        gc.enable()
    assert len(alive) > 8
    assert alive[:4] == [0, 0, 0, 0]


def test_memory_is_given_back_to_other_programs_of_a_cuda_device_only(monkeypatch):
    given_back = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append(1))

    def fails():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    assert attempted(fails, torch.device("cpu")) == "CUDA out of memory"
    assert given_back == []
    assert attempted(fails, torch.device("cuda", 0)) == "CUDA out of memory"
    assert given_back == [1]


def test_room_is_known_by_shape_and_device():
    room = Room()
    room.halve((3, 8, 8), torch.device("cuda", 1), 100)
    assert room.rows(torch.Size((3, 8, 8)), torch.device("cuda", 1)) == 50
    assert room.rows((3, 8, 9), torch.device("cuda", 1)) is None
    assert room.rows((3, 8, 8), torch.device("cuda", 0)) is None


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="how much memory this process has is asked of Linux")
def test_a_process_whose_memory_is_limited_draws_as_many_at_once_as_fit():
    import resource

    def network(x_t, t):
        asked.append(len(x_t))
        torch.empty(len(x_t), 100 << 20, dtype=torch.uint8)  # 100 MiB a row, which nobody touches
        return x_t * 0.5

    asked = []
    model = Model(network, VP.linear(), data_shape=(2,))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (550 << 20), before[1]))
    try:
        found = ods.sample(model, 16, num_steps=2, solver="ddim", max_batch="auto")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert asked == [16, 8, *[4] * 8]
    torch.testing.assert_close(found.x, ods.sample(model, 16, num_steps=2, solver="ddim", max_batch=4).x)


def test_whatever_wraps_a_model_shows_it():
    model = Small(9).model()
    away = guided(model, 3.0)
    for eps in (away, thresholded(model, 1.0), thresholded(away, 1.0), Spreading(away, (2,)), NullGuided(away, (2.0,))):
        assert eps.base is model
    assert thresholded(mixture(), 1.0).base is None
    assert Spreading(mixture(), (2,)).base is None


def test_verbs_share_what_was_learned():
    network = Small(5)
    model = Model(network, VP.linear(), null_cond={"label": 0.0}, data_shape=(2,))
    drawn = ods.sample(model, 16, num_steps=3, max_batch="auto")
    failed = network.failed
    assert failed == 2
    latent = ods.encode(model, drawn.x, num_steps=3, max_batch="auto")
    ods.decode(model, latent, max_batch="auto")
    assert network.failed == failed
    assert max(network.asked[3:]) == 4
    torch.testing.assert_close(drawn.x, ods.sample(model, 16, num_steps=3, max_batch=4).x, rtol=0, atol=0)


def test_a_long_run_notes_how_many_fitted_and_warns_where_that_changed(tmp_path):
    def drawn(most):
        model = Model(Small(most), VP.linear(), null_cond={"label": 0.0}, data_shape=(2,))
        return ods.sample_many(model, 60, tmp_path, shard_size=20, num_steps=2, max_batch="auto")

    assert drawn(7).complete
    notes = [json.loads((tmp_path / f"{i:05d}.json").read_text())["place"] for i in range(3)]
    assert [note["samples in a call"] for note in notes] == [5, 5, 5]
    (tmp_path / "00001.json").unlink()
    with pytest.warns(UserWarning, match="differ in samples in a call"):
        assert drawn(13).made == (1,)


def test_where_bits_or_graphs_depend_on_it_auto_is_refused(tmp_path):
    model = ods.load("digits")
    images = ods.held_out("digits").images[:4]
    ods.images.save_each(images, tmp_path / "in")
    with pytest.raises(ValueError, match="depends on the memory that is free"):
        ods.encode(model, images, num_steps=2, max_batch="auto", exact="bits")
    with pytest.raises(ValueError, match="depends on the memory that is free"):
        ods.encode_many(model, tmp_path / "in", tmp_path / "out", num_steps=2, max_batch="auto", exact="bits")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="depends on the memory that is free"):
        ods.decode(model, ods.encode(model, images, num_steps=2, exact="bits"), max_batch="auto")
    with pytest.raises(ValueError, match="kept until the backward pass"):
        ods.sample(model, 4, num_steps=2, max_batch="auto", grad=True)
    with pytest.raises(ValueError, match="instead of max_batch"):
        ods.encode(model, images, num_steps=2, max_batch="auto", micro_batch=1)


def test_solves_side_by_side_take_auto_too_and_teach_the_same_room():
    small = Small(5)
    model, how = small.model(), {"num_samples": 4, "reference_steps": 20, "cond": {"label": 1.0}}
    found = ods.compare(model, ["ddim", "heun"], [4], max_batch="auto", **how)
    assert model.room.rows((2,), torch.device("cpu")) <= 5
    whole = ods.compare(Small(10**6).model(), ["ddim", "heun"], [4], **how)
    assert [c.median for c in found.cells] == pytest.approx([c.median for c in whole.cells])
    small.asked.clear()
    ods.sample(model, 4, num_steps=3, max_batch="auto", cond={"label": 1.0})
    assert max(small.asked) <= 5, "it had been learned"
