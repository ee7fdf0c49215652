"""Round trips to the bit: in whole numbers, and with a residual kept beside the latent."""

import warnings
from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import odesampler as ods
from odesampler import cli
from odesampler.drive import run
from odesampler.integrate import back_along, on_grid
from odesampler.lossless import SideCar
from odesampler.program import Course, State
from odesampler.solvers.fixed_point import _over, _times
from tests.problems import geometric, mixture, noise

RING = ods.exact.GaussianMixture.ring()
HELD = ods.held_out("digits")
X, LABEL = HELD.images[:4], {"label": HELD.labels[:4]}


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize(
    ("dtype", "num_steps"),
    [(torch.float16, 20), *product([torch.float32, torch.bfloat16], [10, 20, 50, 100])],
    ids=str,
)
def test_held_out_digits_come_back_to_the_bit(dtype, num_steps, guidance):
    model = ods.load("digits", dtype=dtype)
    how = {"num_steps": num_steps, "cond": LABEL, "guidance_scale": guidance}
    latent = ods.encode(model, X, exact="bits", **how)
    assert latent.sidecar.residual == ()  # the lattice alone brought them back
    assert torch.equal(ods.decode(model, latent).x, X.double())
    bare = replace(latent, sidecar=None)
    assert torch.equal(ods.decode(model, bare).x.float(), X)


@pytest.mark.parametrize("num_steps", [10, 20, 50, 100])
@pytest.mark.parametrize("damping", [1.0, 3.0, 10.0])
@pytest.mark.parametrize("schedule", [ods.VP.linear(), ods.VE(), ods.RectifiedFlow()], ids=lambda s: type(s).__name__)
def test_exact_problems_come_back_to_the_bit_also_damped_and_in_float64(schedule, damping, num_steps):
    x, model = RING.sample(8).double() + 1e-9, RING.model(schedule, "v")
    latent = ods.encode(model, x, exact="bits", solver=ods.ALF(damping=damping), num_steps=num_steps)
    assert torch.equal(ods.decode(model, latent).x, x)
    assert 0.2 < latent.x.std() / schedule.latent_scale(model.range[1]) < 3


@pytest.mark.parametrize("damping", [1.0, 3.0, 10.0])
@pytest.mark.parametrize("coordinate", ["sigma", "data", "angle", "flow", "asinh", "angle_asinh", "flow_asinh"])
def test_the_lattice_is_walked_up_and_down_without_losing_a_unit(coordinate, damping):
    sigmas = geometric(30)
    solver = ods.FixedPoint(ods.ALF(coordinate, damping=damping)).prepared(Course(torch.log, tuple(sigmas)))
    bottom = run(on_grid(solver, noise(scale=1.0), sigmas[:2]), model=mixture())[0]
    start = State(bottom.x, bottom.memory)
    [up] = run(back_along(solver, start, sigmas[::-1]), model=mixture())
    state = up
    for s0, s1 in pairwise(sigmas):
        state = run(on_grid(solver, state, [s0, s1]), model=mixture())[0]
    assert all(torch.equal(a, b) for a, b in zip(state.memory, start.memory, strict=True))
    assert not torch.equal(up.memory[0], start.memory[0])


@given(st.lists(st.integers(-(2**60), 2**60), min_size=1, max_size=20), st.integers(1, 2**20))
def test_a_damped_slope_is_divided_and_multiplied_back_to_itself(numbers, kappa):
    slope = torch.tensor(numbers) // 2 ** max(0, 20 - kappa.bit_length())  # the quotient must have 64 bits
    assert torch.equal(_times(kappa, _over(kappa, slope)), slope)
    exact = [round(-n * kappa / 2**20) for n in slope.tolist() if abs(n) < 2**30]
    found = _times(kappa, slope[slope.abs() < 2**30]).tolist()
    assert all(abs(a - b) <= 1 for a, b in zip(exact, found, strict=True))


def test_what_leaves_the_lattice_is_an_error_that_names_the_samples():
    solver = ods.FixedPoint(ods.ALF("sigma"), bits=52)
    x = torch.tensor([[1.0, 2.0], [600.0, 0.0]])
    with pytest.raises(OverflowError, match=r"samples \[1\] left the lattice, which ends at 512: take fewer bits"):
        run(on_grid(solver, x, geometric(3)), model=lambda x, sigma: x)
    with pytest.raises(OverflowError, match=r"samples \[0, 1\] left the lattice"):
        run(on_grid(solver, x / 10, geometric(3)), model=lambda x, sigma: 1e4 + x)


@pytest.mark.parametrize(("damping", "most"), [(1.0, 1e-8), (2.0, 1e-5)])  # damping is a fraction of 2^20
def test_whole_numbers_sample_as_well_as_floats(damping, most):
    model, alf = ods.load("digits", dtype=torch.float64), ods.ALF(damping=damping)
    how = {"num_steps": 12, "grid": "asinh(last=0.02)", "state_dtype": torch.float64}
    usual, whole = (ods.sample(model, 4, solver=s, **how).x for s in (alf, ods.FixedPoint(alf)))
    assert 0 < (usual - whole).abs().max() < most


@pytest.mark.parametrize("solver", ["ddim", "multistep", "reversible", "adaptive:heun", "scipy:RK23"])
@pytest.mark.parametrize("kind", ["bytes", "float32", "float64", "float16"])
def test_a_residual_makes_any_solver_lossless(solver, kind, tmp_path):
    x = RING.sample(20)
    x = {
        "bytes": (x * 4).round() / 4,
        "float32": x.float(),
        "float64": x.double() + torch.rand(x.shape, dtype=torch.float64),
        "float16": x.half(),
    }[kind]
    model = RING.model()
    steps = {} if ":" in solver else {"num_steps": 7}
    latent = ods.encode(model, x, solver=solver, exact="residual", **steps)
    assert (latent.sidecar.levels is not None) == (kind == "bytes")
    latent.save(tmp_path / "z.safetensors")
    back = ods.decode(model, ods.Latent.load(tmp_path / "z.safetensors")).x
    assert torch.equal(back, x.to(back.dtype))
    assert back.dtype == torch.float64


def test_float_images_of_many_values_are_restored_by_addition():
    x = torch.randn(40, 50, dtype=torch.float64) * torch.logspace(-12, 0, 50, dtype=torch.float64)
    x[0, 0] = -0.0
    decoded = x + torch.randn_like(x)
    kept = SideCar.of(x, decoded, {})
    assert kept.levels is None
    assert len(kept.residual) == 2
    assert torch.equal(kept.checked(decoded), x)
    tiny = SideCar.of(x * 1e-30, decoded, {})
    assert torch.equal(tiny.checked(decoded), x * 1e-30)
    with pytest.raises(ArithmeticError, match="not finite"):
        SideCar.of(x, decoded / 0, {})


def test_with_levels_small_changes_of_the_decoded_images_are_forgiven():
    decoded = X + 0.1 * (torch.rand_like(X) - 0.5)
    kept = SideCar.of(X, decoded, {})
    assert kept.residual == ()
    assert torch.equal(kept.checked(decoded + 1e-4), X)
    far = SideCar.of(X, -X, {})
    assert far.residual[0].dtype == torch.int16
    assert torch.equal(far.checked(-X), X)


def test_a_network_that_answers_otherwise_is_found_by_the_checksum():
    model = ods.load("digits")
    latent = ods.encode(model, X + 0.01 * torch.rand_like(X), exact="bits", num_steps=5, cond=LABEL)
    memory = (latent.memory[0], latent.memory[1].clone())
    memory[1][2] += 2**30
    with pytest.warns(RuntimeWarning, match=r"samples \[2\] \(1 of 4\) did not come back to the bit"):
        ods.decode(model, replace(latent, memory=memory))


def test_bits_that_depend_on_the_batch_are_not_decoded_in_another_one_unless_told_one_by_one():
    model, x = ods.load("digits"), X + 0.01 * torch.rand_like(X)
    latent = ods.encode(model, x, exact="bits", num_steps=5, cond=LABEL)
    with pytest.raises(ValueError, match=r"samples in a call was 4 and is 2.*micro_batch=1 in encode"):
        ods.decode(model, latent.select([1, 2]))
    with pytest.raises(ValueError, match="samples in a call was 4 and is 3"):
        ods.decode(model, latent, max_batch=3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "samples .* did not come back", RuntimeWarning)
        with pytest.warns(UserWarning, match="only where it was made"):
            near = ods.decode(model, latent.select([1, 2]), insist=True).x
    assert (near - x[1:3]).abs().max() < 1e-4
    for guidance in (1.0, 3.0):
        single = ods.encode(model, x, exact="bits", num_steps=5, cond=LABEL, micro_batch=1, guidance_scale=guidance)
        back = ods.decode(model, single.select([2, 1]))
        assert torch.equal(back.x, x[[2, 1]].double())
        assert back.calls == 2 * 5 if guidance == 1 else back.calls > 0


def test_another_dtype_or_flag_is_another_place():
    model = ods.load("digits")
    latent = ods.encode(model, X + 0.01 * torch.rand_like(X), exact="bits", num_steps=3)
    moved = replace(latent, sidecar=replace(latent.sidecar, place={**latent.sidecar.place, "mkldnn": False}))
    with pytest.raises(ValueError, match="mkldnn was False and is True"):
        ods.decode(model, moved)
    with pytest.raises(ValueError, match="have no gradient"):
        ods.decode(model, latent, grad=True)
    on_levels = ods.encode(model, X, exact="bits", num_steps=3)
    moved = replace(on_levels, sidecar=replace(on_levels.sidecar, place={**on_levels.sidecar.place, "torch": "1.0"}))
    with pytest.warns(UserWarning, match=r"torch was 1\.0"):
        assert torch.equal(ods.decode(model, moved).x, X.double())


def test_a_changed_latent_is_not_decoded_from_its_old_memory():
    model = ods.load("digits")
    latent = ods.encode(model, X, exact="bits", num_steps=3)
    changed = replace(latent, x=latent.x + torch.tensor([0, 0.1, 0, 0])[:, None, None, None])
    with pytest.raises(ValueError, match=r"samples \[1\] has been changed.*without_memory"):
        ods.decode(model, changed)
    with pytest.warns(UserWarning, match="has no memory"):
        ods.decode(model, changed.without_memory())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"exact": "byte"}, "exact must be one of 'bits', 'residual', or None; got 'byte'"),
        ({"exact": "bits", "solver": "heun"}, 'needs the solver "alf".*got heun.*residual'),
        ({"micro_batch": 1}, "micro_batch fixes"),
        ({"exact": "bits", "micro_batch": 1, "max_batch": 4}, "micro_batch fixes"),
        ({"exact": "bits", "micro_batch": 0}, "whole number of samples, 1 or more; got 0"),
        ({"exact": "residual", "solver": "ddpm"}, "draws noise"),
        ({"exact": "residual", "grad": True}, "have no gradient"),
        ({"solver": "fixed_point", "grad": "reversible"}, "in whole numbers, so its result cannot be differentiated"),
    ],
)
def test_what_cannot_be_exact_is_refused_before_any_call(wrong, message):
    def network(x_t, t):
        raise AssertionError("called")

    model = ods.Model(network, ods.VP.linear(), data_shape=(2,))
    with pytest.raises(ValueError, match=message):
        ods.encode(model, torch.zeros(1, 2), **wrong)


@pytest.mark.parametrize("wrong", [{"base": ods.Euler()}, {"base": "alf"}, {"bits": 60}, {"bits": 1.5}])
def test_a_lattice_takes_a_leapfrog_and_a_whole_number_of_bits(wrong):
    with pytest.raises((TypeError, ValueError), match=r"takes an ALF|whole number from 8 to 52"):
        ods.FixedPoint(**wrong)


def test_pictures_come_back_from_the_command_line_byte_for_byte(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures = ods.images.save_each(HELD.images[4:10], "in")
    made = ["--exact", "bits", "--micro-batch", "1", "--steps", "6", "--out", "z.safetensors"]
    for command in (["encode", "in", *made], ["decode", "z.safetensors", "--each", "out"]):
        with pytest.raises(SystemExit, match="0"):
            cli.main(command)
    assert torch.equal(ods.images.load(pictures), ods.images.load("out"))
    assert [p.name for p in pictures] == sorted(p.name for p in (tmp_path / "out").iterdir())
