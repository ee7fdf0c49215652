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
from odesampler.lossless import SideCar, place_of
from odesampler.program import Course, State
from odesampler.solvers import fixed_point
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
    slope = torch.tensor(numbers)[:, None] // 2 ** max(0, 21 - kappa.bit_length())  # the quotient must have 64 bits
    assert torch.equal(_times(kappa, _over(kappa, slope, 0)), slope)
    exact = [round(-n * kappa / 2**20) for n in slope.flatten().tolist() if abs(n) < 2**30]
    found = _times(kappa, slope[slope.abs() < 2**30]).tolist()
    assert all(abs(a - b) <= 1 for a, b in zip(exact, found, strict=True))


@pytest.mark.parametrize("kappa", [1, 2**10, 2**17])
def test_what_a_damped_step_would_carry_beyond_64_bits_is_found_before(kappa):
    slope = torch.tensor([[3], [2**60 + 1]])
    with pytest.raises(OverflowError, match=r"samples \[1\] left the lattice"):
        _over(kappa, slope, 40)
    most = torch.tensor([[2**41 * kappa - 2**20]])
    assert abs(_times(kappa, _over(kappa, most, 40)) - most).max() <= 0


def test_damping_beyond_the_fraction_is_the_most_there_is():
    x, model = RING.sample(3).double(), RING.model()
    latent = ods.encode(model, x, exact="bits", solver=ods.ALF(damping=1e9), num_steps=1)
    assert torch.equal(ods.decode(model, latent).x, x)


@pytest.mark.parametrize("num_steps", [5, 10])
def test_a_point_that_leaves_the_lattice_in_the_last_step_is_an_error_too(num_steps):
    solver = ods.FixedPoint(ods.ALF(coordinate="sigma"), bits=52)
    with pytest.raises(OverflowError, match="left the lattice"):
        ods.encode(ods.load("digits"), HELD.images[:128], solver=solver, num_steps=num_steps, exact="bits")


def test_elsewhere_than_on_the_cpu_what_leaves_the_lattice_is_nan_in_the_end(monkeypatch):
    monkeypatch.setattr(fixed_point, "_inside", lambda values, bits: values)  # as on a device, where it does not look
    solver = ods.FixedPoint(ods.ALF(coordinate="sigma"), bits=52)
    with pytest.raises((OverflowError, FloatingPointError)):
        ods.encode(ods.load("digits"), HELD.images[:128], solver=solver, num_steps=10, exact="bits")
    far = torch.tensor([[2**61]])
    assert solver.shown(far, 1.0, torch.float64).isnan().all()
    assert (solver._moved(0.1, far) == 2**62).all()  # a slope beyond the lattice stays there


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
    with pytest.raises(ArithmeticError, match="not finite in float64"):
        SideCar.of(x, decoded / 0, {})
    with pytest.raises(ArithmeticError, match="not finite in float16"):
        SideCar.of(torch.randn(2, 1, 32, 32).half(), 1e6 * torch.randn(2, 1, 32, 32), {})


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


def test_the_place_knows_what_the_bits_depend_on():
    model, place = ods.load("digits"), lambda **how: place_of(model, 4, how.get("max_batch"), how.get("width", 1))
    usual = place()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TF32", UserWarning)
        with torch.backends.mkldnn.flags(enabled=False):
            assert place() != usual
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    changed = place()
    torch.set_num_threads(threads)
    assert changed != usual
    assert place(max_batch=2) != usual
    assert place(max_batch=2, width=2)["samples"] is None
    assert place_of(ods.load("digits", dtype=torch.float64), 4, None, 1) != usual


def test_float64_images_come_back_from_a_float32_state():
    x, model = RING.sample(5).double() + 1e-9, RING.model()
    for how in ({"exact": "bits"}, {"exact": "residual", "solver": "heun"}):
        latent = ods.encode(model, x, num_steps=5, state_dtype=torch.float32, **how)
        assert torch.equal(ods.decode(model, latent).x, x)


def test_a_side_car_of_another_size_is_damage(tmp_path):
    latent = ods.encode(RING.model(), RING.sample(20), num_steps=4, exact="residual")
    for wrong in ({"checksum": latent.sidecar.checksum[1:]}, {"residual": (latent.sidecar.residual[0][1:],)}):
        replace(latent, sidecar=replace(latent.sidecar, **wrong)).save(tmp_path / "z.safetensors")
        with pytest.raises(ValueError, match=r"damaged.*side-car does not belong"):
            ods.Latent.load(tmp_path / "z.safetensors")


def test_latents_between_others_keep_nothing_that_belongs_to_one_of_them():
    model, x = RING.model(), RING.sample(2)
    for how in ({"exact": "bits"}, {"exact": "residual", "micro_batch": 1}):
        latent = ods.encode(model, x, num_steps=5, **how)
        path = ods.interpolate(latent.select([0]), latent.select([1]), 3)
        assert path.sidecar is None
        assert all(m.is_floating_point() for m in path.memory)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "this latent has no memory", UserWarning)
            back = ods.decode(model, path).x
        assert (back[[0, 2]] - x).abs().max() < (1e-9 if path.memory else 3)


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


@pytest.mark.parametrize("schedule", [ods.RectifiedFlow(), ods.VP.linear().with_zero_snr()], ids=["flow", "zero SNR"])
def test_one_step_from_infinity_cannot_be_undone_and_says_so(schedule):
    model, x = RING.model(schedule, "v"), RING.sample(20)
    for how in ({}, {"exact": "bits"}, {"solver": "edict"}):
        with pytest.raises(ValueError, match=r"cannot be undone exactly: take num_steps=2"):
            ods.encode(model, x, num_steps=1, **how)
    latent = ods.encode(model, x, num_steps=1, solver="ddim", exact="residual")
    assert torch.equal(ods.decode(model, latent).x.float(), x.float())


@pytest.mark.parametrize("how", [{}, {"exact": "bits"}, {"solver": "two_step"}], ids=str)
def test_at_infinity_too_a_changed_latent_is_not_decoded_from_its_old_memory(how, tmp_path):
    model, x = RING.model(ods.RectifiedFlow(), "v"), RING.sample(3)
    alone = {"micro_batch": 1} if "exact" in how else {}
    ods.encode(model, x, num_steps=6, **how, **alone).save(tmp_path / "z.safetensors")
    latent = ods.Latent.load(tmp_path / "z.safetensors")
    assert (ods.decode(model, latent.select([2, 0])).x - x[[2, 0]]).abs().max() < 1e-6
    for changed in (replace(latent, x=latent.x + 1), replace(latent.select([0]), x=latent.x[1:2])):
        with pytest.raises(ValueError, match=r"has been changed.*without_memory"):
            ods.decode(model, changed)


def test_at_infinity_too_the_ends_of_a_path_are_its_images():
    model, x = RING.model(ods.RectifiedFlow(), "v"), RING.sample(2)
    latent = ods.encode(model, x, num_steps=6)
    path = ods.interpolate(latent.select([0]), latent.select([1]), 3)
    assert (ods.decode(model, path).x[[0, 2]] - x).abs().max() < 1e-9


@pytest.mark.parametrize(
    "wrong", [torch.zeros(1, dtype=torch.float64), torch.full((4, 1, 8, 8), torch.nan)], ids=["shape", "nan"]
)
def test_memory_that_does_not_belong_is_refused_before_any_call(wrong):
    model = ods.load("digits")
    latent = ods.encode(model, X, num_steps=2)
    with pytest.raises(ValueError, match=r"latent.memory must be finite and of the shape of latent.x, \(4, 1, 8, 8\)"):
        ods.decode(model, replace(latent, memory=(wrong,)))


def test_a_network_with_dropout_at_work_is_warned_of():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.3))
    model = ods.Model(lambda x_t, t: network(x_t), ods.VP.linear(), data_shape=(2,))
    assert not model.answers_by_chance

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x_t, t):
            return self.inner(x_t)

    model = ods.Model(Net(), ods.VP.linear(), data_shape=(2,))
    with pytest.warns(UserWarning, match=r"training mode.*network\.eval\(\) first"):
        ods.encode(model, RING.sample(2), num_steps=2)
    model.network.eval()
    ods.encode(model, RING.sample(2), num_steps=2)


def test_pictures_that_would_lose_something_are_not_taken_for_exact(tmp_path):
    from PIL import Image

    Image.new("RGBA", (8, 8), (10, 20, 30, 40)).save(tmp_path / "clear.png")
    Image.new("RGB", (8, 8), (10, 20, 30)).save(tmp_path / "red.png")
    Image.new("L", (8, 8), 7).save(tmp_path / "grey.png")
    for name, shape in (("clear.png", (3, 8, 8)), ("red.png", (1, 8, 8))):
        with pytest.raises(ValueError, match=f"{name} has transparency, or colours"):
            ods.images.load(tmp_path / name, shape, whole=True)
        assert ods.images.load(tmp_path / name, shape).shape == (1, *shape)
    assert ods.images.load(tmp_path / "grey.png", (1, 8, 8), whole=True).shape == (1, 1, 8, 8)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["encode", str(tmp_path / "clear.png"), "--exact", "bits", "--out", str(tmp_path / "z.safetensors")])
