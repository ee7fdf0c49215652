"""What the loop itself costs: tensor operations a model evaluation, the model's own excluded. Counts, not seconds."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from odesampler import drive
from odesampler.integrate import OnGrid, solve
from odesampler.program import State
from odesampler.solvers import RK4, Euler, Heun, Multistep
from tests.problems import SOLVERS, SameNoise, geometric

STEPS = 70
READS = ("_local_scalar_dense", "item", "nonzero", "equal.default", "is_nonzero")


class Counted(TorchDispatchMode):
    """Operations on tensors, and those that touch one as large as the state; a model's are left out."""

    def __init__(self, size):
        super().__init__()
        self.size, self.evaluations, self.names, self.big = size, 0, [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.names.append(str(func))
        sizes = [v.numel() for v in tree_leaves((args, kwargs, out)) if isinstance(v, torch.Tensor)]
        if max(sizes, default=0) >= self.size:
            self.big.append(str(func))
        return out

    def model(self, x, sigma):
        """An answer that costs nothing to make."""
        self.evaluations += 1
        with torch.utils._python_dispatch._disable_current_modes():
            return torch.zeros_like(x)


def counted(solver, device="cpu", steps=STEPS, into_zero=False):
    x = torch.zeros(4, 3, 16, 16, device=device)
    counts = Counted(x.numel())
    with counts:
        program = solve(OnGrid(solver), State(x), geometric(steps) + [0.0] * into_zero)
        drive.run(program, model=counts.model, noise=SameNoise())
    return counts


@pytest.fixture
def unwatched(monkeypatch):
    """The driver's look for NaN, at the end on a device, left out: a meta tensor has no values to look at."""
    monkeypatch.setattr(drive._Watch, "settle", lambda self: self.kept.clear())


def test_a_step_of_euler_takes_a_handful_of_operations_and_touches_the_state_three_times():
    """One of the three is the driver's look for NaN. diffusers' Euler: 20 and 7; its DDIM: 36 and 7."""
    counts = counted(Euler())
    assert len(counts.names) / counts.evaluations <= 7
    assert len(counts.big) / counts.evaluations <= 3


@pytest.mark.parametrize("predictor", [1, 2, 3, 4])
@pytest.mark.parametrize("frame", ["noise", "data", "flow"])
def test_a_multistep_predictor_touches_the_state_once_a_point_and_twice_for_the_frame(frame, predictor):
    """And the driver once, to look for NaN. diffusers' DPM-Solver++ 2M: 9.7."""
    counts = counted(Multistep(frame, "log_sigma", predictor, 0))
    of_the_frame = 0 if frame == "noise" else 2
    assert len(counts.big) / counts.evaluations <= predictor + of_the_frame + 1
    assert len(counts.names) / counts.evaluations <= predictor + of_the_frame + 5


@pytest.mark.parametrize("corrector", [2, 3, 4, 5])
def test_a_corrector_touches_the_state_no_more_than_a_predictor_of_as_many_points_would(corrector):
    """The step before is corrected in the same sum. diffusers' UniPC, two points and three: 22.8; ours 6."""
    counts = counted(Multistep("data", "log_sigma", 2, corrector))
    assert len(counts.big) / counts.evaluations <= max(corrector, 2 + 1) + 2 + 1


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_fixed_grid_never_waits_for_the_device(unwatched, solver):
    """On the meta device reading a value raises."""
    counts = counted(solver, "meta", 5, into_zero=True)
    assert counts.evaluations >= 6
    assert not [name for name in counts.names if any(read in name for read in READS)]


@pytest.mark.parametrize("solver", [Euler(), Heun(), RK4(), Multistep()], ids=repr)
def test_on_a_device_nan_is_looked_for_once_when_all_is_done(monkeypatch, solver):
    looked = []

    def settle(self):
        looked.append(len(self.kept))
        self.kept.clear()

    monkeypatch.setattr(drive._Watch, "settle", settle)
    counts = counted(solver, "meta")
    assert looked == [counts.evaluations]
    assert sum(name == "aten.stack.default" for name in counts.names) == 0


def test_the_counter_counts():
    """Or the tests above could not fail."""
    counts = Counted(8)
    with counts:
        x = torch.ones(8)
        (x * 2 + 1).sum().item()
        torch.ones(2) * 3
    assert [name.split(".")[1] for name in counts.names] == [
        "ones", "mul", "add", "sum", "_local_scalar_dense", "ones", "mul",
    ]  # fmt: skip
    assert [name.split(".")[1] for name in counts.big] == ["ones", "mul", "add", "sum"]
