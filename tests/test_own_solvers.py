"""A solver of the user's own is a solver like any other, in every verb."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import odesampler as ods
from odesampler.registry import SOLVERS, find_solver, spec_of

RING = ods.exact.GaussianMixture.ring()
MODEL = RING.model()
IMAGES = RING.sample(4, seed=3)


class Mine(ods.Solver):
    """Euler, with a factor that only an honest recipe remembers."""

    order = 1
    evaluations = 1

    def __init__(self, factor=1.0):
        self.factor = factor

    def step(self, state, s0, s1):
        k0 = yield state.x, s0
        return ods.State(torch.add(state.x, k0, alpha=self.factor * (s1 - s0)))  # in one operation, as ours, to the bit


@dataclass(frozen=True)
class Weighed(ods.Solver):
    factor: float = 1.0

    order = 1
    evaluations = 1

    def step(self, state, s0, s1):
        k0 = yield state.x, s0
        return ods.State(state.x + self.factor * (s1 - s0) * k0)


@pytest.fixture
def registered():
    """Register names for one test."""
    before = dict(SOLVERS)
    yield ods.register
    for name in SOLVERS.keys() - before.keys():
        del SOLVERS[name]


def there_and_back(solver) -> torch.Tensor:
    return ods.decode(MODEL, ods.encode(MODEL, IMAGES, solver=solver, num_steps=5)).x


def test_it_works_in_every_verb_without_a_name():
    assert torch.equal(ods.sample(MODEL, 2, solver=Mine()).x, ods.sample(MODEL, 2, solver="ddim").x)
    assert torch.equal(there_and_back(Mine()), there_and_back("ddim"))
    report = ods.round_trip(MODEL, IMAGES, ["ddim", Mine()], num_steps=5)
    assert torch.equal(report.trips[0].images, report.trips[1].images)


def test_without_a_name_its_latents_cannot_be_saved_and_the_error_says_what_to_do(tmp_path):
    latent = ods.encode(MODEL, IMAGES, solver=Mine(), num_steps=2)
    with pytest.raises(ValueError, match=r"ods\.register"):
        latent.save(tmp_path / "z.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "maker", [Mine, lambda: Mine(), lambda: Mine(0.9)], ids=["class", "function", "with arguments"]
)
def test_registered_its_latents_are_saved_and_decoded_by_name(registered, tmp_path, maker):
    registered("mine_of_the_test", maker)
    latent = ods.encode(MODEL, IMAGES, solver="mine_of_the_test", num_steps=5)
    assert latent.recipe.solver == "mine_of_the_test"
    latent.save(tmp_path / "z.safetensors")
    back = ods.decode(MODEL, ods.Latent.load(tmp_path / "z.safetensors")).x
    assert torch.equal(back, there_and_back(maker()))
    assert "mine_of_the_test" in str(ods.solvers())


def test_arguments_that_a_name_cannot_say_are_not_forgotten_in_silence(registered, tmp_path):
    registered("mine_of_the_test", Mine)
    latent = ods.encode(MODEL, IMAGES, solver=Mine(0.9), num_steps=2)
    with pytest.raises(ValueError, match=r"(cannot read|unknown) solver"):
        latent.save(tmp_path / "z.safetensors")


def test_arguments_of_a_dataclass_are_remembered(registered):
    registered("weighed_of_the_test", Weighed)
    assert find_solver(spec_of(Weighed(0.5))) == Weighed(0.5)
    assert find_solver("weighed_of_the_test(factor=0.5)") == Weighed(0.5)


@pytest.mark.parametrize("maker", [3, int, "heun", lambda: 1], ids=["number", "type", "name", "function"])
def test_what_makes_no_solver_cannot_be_registered(registered, maker):
    with pytest.raises(ValueError, match="makes a Solver"):
        registered("nonsense_of_the_test", maker)


@pytest.mark.parametrize("name", ["heun", "ddim", "two words", ""])
def test_a_name_that_is_taken_or_none_is_refused(registered, name):
    with pytest.raises(ValueError, match="free identifier"):
        registered(name, Mine)


def test_tolerances_from_numpy_are_written_as_numbers_that_can_be_read():
    loop = ods.Adaptive(ods.Dopri5(), rtol=np.float64(1e-3))
    assert find_solver(spec_of(loop)) == loop


def test_what_is_no_solver_is_refused_where_one_is_wrapped():
    with pytest.raises(TypeError, match="takes a solver"):
        ods.Adaptive("dopri5")
    with pytest.raises(TypeError, match="takes a solver"):
        ods.Reversible("heun")


def test_without_a_name_it_is_shown_by_its_class_and_its_settings_and_never_by_its_address():
    assert spec_of(Mine(0.9)) == "Mine(factor=0.9)"
    assert spec_of(Weighed(0.5)) == "Weighed(factor=0.5)"
    found = ods.compare(MODEL, [Mine(0.9), "ddim"], [2, 4], num_samples=2, reference_steps=40)
    assert [c.solver for c in found.cells] == ["Mine(factor=0.9)"] * 2 + ["ddim"] * 2
    assert "0x" not in found.table() + found.to_csv()


def test_two_solvers_of_one_class_name_are_not_taken_for_one_and_one_solver_is_not_taken_for_two():
    class Other(Mine):
        def step(self, state, s0, s1):
            return ods.State(state.x + 0.5 * (s1 - s0) * (yield state.x, s0))

    Other.__name__ = "Mine"
    found = ods.compare(MODEL, [Mine(), Other()], 3, num_samples=2, reference_steps=40)
    assert [c.solver for c in found.cells] == ["Mine(factor=1.0)", "Mine(factor=1.0) #2"]
    assert not torch.equal(found.cells[0].x, found.cells[1].x)
    same = Mine()
    with pytest.raises(ValueError, match="asked for twice"):
        ods.compare(MODEL, [same, same], 3, num_samples=2)


def test_a_class_named_as_one_of_ours_is_not_saved_as_ours(tmp_path):
    kind = type("heun", (Mine,), {"__init__": lambda self: setattr(self, "_f", 1)})
    kind.step = lambda self, state, s0, s1: ods.Euler().step(state, s0, s1)
    assert spec_of(kind()) == "own heun()"
    with pytest.raises(ValueError, match="solver"):
        ods.encode(MODEL, IMAGES, solver=kind(), num_steps=2).save(tmp_path / "z.safetensors")
