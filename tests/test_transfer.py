"""Transfers: to the host begun at once, waited for where the result is used; to the device nobody waits."""

from contextlib import contextmanager

import pytest
import torch

import odesampler as ods
from odesampler import noise
from odesampler.drive import Watch, run
from odesampler.integrate import OnGrid, solve
from odesampler.program import State
from odesampler.streaming import sample_many as streaming
from odesampler.transfer import to_device, to_host
from tests.counting import Uploads
from tests.problems import DRAWING, geometric


def test_elsewhere_than_on_a_gpu_it_is_the_tensor():
    x = torch.randn(2, 3)
    assert to_host(x)() is x


def test_from_a_device_that_is_no_gpu_of_cuda_it_is_copied_at_once():
    """In the thread that computes: later, the copy would wait behind the next shard."""
    said = []

    class There(torch.Tensor):
        device = torch.device("mps")

        def cpu(self):
            said.append("copied")
            return torch.ones(2)

    copied = to_host(torch.zeros(2).as_subclass(There))
    assert said == ["copied"]
    assert copied().tolist() == [1, 1]
    assert said == ["copied"]


class Device:
    """Stands for torch.cuda: a tensor that says it is on a GPU, streams that note what they are told."""

    def __init__(self):
        self.said = []

    def stream(self, name):
        device = self

        class Stream:
            def wait_stream(self, other):
                device.said.append(f"{name} waits for {other.name}")

            def record_event(self):
                device.said.append(f"event on {name}")
                return Event()

        class Event:
            def synchronize(self):
                device.said.append("host waits")

        made = Stream()
        made.name = name
        return made

    def tensor(self):
        device = self

        class There(torch.Tensor):
            device = torch.device("cuda", 0)

            def record_stream(self, stream):
                device.said.append(f"memory kept for {stream.name}")

        return torch.arange(6.0).reshape(2, 3).as_subclass(There)


@pytest.mark.parametrize("full", [False, True], ids=["pinned", "no more can be pinned"])
def test_on_a_gpu_the_copy_is_begun_on_a_stream_of_its_own_and_the_host_waits_at_the_end_only(monkeypatch, full):
    """The order of calls, with a GPU that is none; the numbers are tested below where there is one."""
    there = Device()

    @contextmanager
    def on(stream):
        there.said.append(f"on {stream.name}")
        yield

    def empty(shape, *, dtype, device, pin_memory=False):
        there.said.append(f"pinned: {pin_memory}, {device}")
        if pin_memory and full:
            raise RuntimeError("CUDA error: out of memory")
        return torch.zeros(shape, dtype=dtype).as_subclass(Pinned)

    class Pinned(torch.Tensor):
        def copy_(self, source, *, non_blocking):
            there.said.append(f"copy, the host waits: {not non_blocking}")
            return self.as_subclass(torch.Tensor).copy_(source.as_subclass(torch.Tensor))

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: there.stream("computing"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: there.stream("copying"))
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch, "empty", empty)
    copied = to_host(there.tensor())
    assert there.said == [
        *(["pinned: True, cpu", "pinned: False, cpu"] if full else ["pinned: True, cpu"]),
        "copying waits for computing",
        "on copying",
        "copy, the host waits: False",
        "memory kept for copying",
        "event on copying",
    ]
    assert copied().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert there.said[-1] == "host waits"


def test_noise_goes_to_a_gpu_from_pinned_memory_and_nobody_waits(monkeypatch):
    """Likewise: the host draws the next noise while the device is still asked."""
    said = []

    class Pinned(torch.Tensor):
        def copy_(self, source):
            said.append("copied on the host")
            return self

        def to(self, device, *, non_blocking):
            said.append(f"to {device}, the host waits: {not non_blocking}")
            return self

    def empty(shape, *, dtype, device, pin_memory):
        said.append(f"pinned: {pin_memory}, {device}")
        return torch.zeros(shape, dtype=dtype).as_subclass(Pinned)

    monkeypatch.setattr(torch, "empty", empty)
    to_device(torch.zeros(2), torch.device("cuda", 1))
    assert said == ["pinned: True, cpu", "copied on the host", "to cuda:1, the host waits: False"]


@pytest.mark.parametrize("kind", ["independent", "brownian"])
@pytest.mark.parametrize("solver", DRAWING, ids=repr)
def test_all_noise_of_a_solve_goes_that_way(monkeypatch, solver, kind):
    """On the meta device, which stands for one: whatever else came from the host would be found."""
    brought = []

    def to_device(x, device):
        brought.append(device.type)
        return torch.empty(x.shape, dtype=x.dtype, device=device)

    monkeypatch.setattr(noise, "to_device", to_device)
    program = solve(OnGrid(solver), State(torch.zeros(2, 3, device="meta")), geometric(3))
    with Uploads() as uploads:
        run(program, model=lambda x, sigma: x * 0.1, noise=noise.noise_for(kind, [0, 1]), watch=Watch(reads=False))
    assert uploads.found == []
    assert {*brought} == {"meta"}


def test_a_shards_samples_are_waited_for_where_they_are_written_not_where_they_are_made(monkeypatch, tmp_path):
    said = []

    def begun(x):
        said.append("begun")
        return lambda: (said.append("waited"), x)[1]

    def written(file, tensors):
        said.append("written")
        return write(file, tensors)

    write = streaming.write_tensors
    monkeypatch.setattr(streaming, "to_host", begun)
    monkeypatch.setattr(streaming, "write_tensors", written)
    run = ods.sample_many(ods.load("digits"), 3, tmp_path / "out", shard_size=3, num_steps=2)
    assert run.complete
    assert said == ["begun", "waited", "written"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="copies from a real GPU")
def test_from_a_real_gpu_the_values_arrive():
    x = torch.randn(64, 3, 32, 32, device="cuda")
    want = x.cpu()
    copied = to_host(x * 2)  # whose memory nobody else holds
    torch.randn(64, 3, 32, 32, device="cuda")
    found = copied()
    assert found.is_pinned()
    assert torch.equal(found, want * 2)
