"""Implicit inversion: the equations of decoding hold, sample by sample, or the latent says that they do not."""

import math
from itertools import pairwise

import pytest
import torch

import odesampler as ods
from odesampler.conventions import upward
from odesampler.drive import Tally, run
from odesampler.integrate import OnGrid
from odesampler.roots import PATIENCE, Search, find_roots
from tests.problems import by_hand, gaussian, geometric, labelled, mixture, noise

MODEL = mixture().model(sigma_min=0.1, sigma_max=20.0)
TIGHT = ods.Implicit(tolerance=1e-11)
ONE_STEP = ["ddim", "heun", "midpoint", "rk4", "dpmpp_2s", "dpmpp_3s", "bosh3", "dopri5"]
WITH_MEMORY = ["dpmpp_2m", "unipc", "plms", "multistep"]


def images(n: int = 5) -> torch.Tensor:
    return mixture().sample(n, seed=1)


@pytest.mark.parametrize("solver", [*ONE_STEP, *WITH_MEMORY])
@pytest.mark.parametrize("method", ["anderson", "newton"])
def test_what_was_encoded_comes_back_to_the_tolerance(solver, method):
    how = ods.Implicit(method, tolerance=1e-11)
    latent = ods.encode(MODEL, images(), solver=solver, num_steps=12, convention=how)
    back = ods.decode(MODEL, latent).x
    assert latent.converged.all()
    assert (back - images()).abs().max() < 1e-8
    naive = ods.decode(MODEL, ods.encode(MODEL, images(), solver=solver, num_steps=12)).x
    assert (naive - images()).abs().max() > 1e-6


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpmpp_2m"])
@pytest.mark.parametrize("schedule", [ods.RectifiedFlow(), ods.VP.linear().with_zero_snr()], ids=["flow", "zero SNR"])
def test_the_step_out_of_infinity_is_solved_for_too(solver, schedule):
    model = mixture().model(schedule, "v", sigma_min=0.1)
    latent = ods.encode(model, images(), solver=solver, num_steps=12, convention=TIGHT)
    assert latent.converged.all()
    assert (ods.decode(model, latent).x - images()).abs().max() < 1e-8
    assert latent.x.std() < 3


def test_of_a_gaussian_eulers_step_is_undone_as_the_formula_has_it():
    eps, x, want, sigmas = gaussian(0.5), noise(3), noise(3), geometric(6)[::-1]
    for s1, s0 in pairwise(sigmas):
        mean = eps.means[0]
        want = mean + (want - mean) / (1 + (s1 - s0) * s0 / (0.5 + s0**2))
    loop, name = upward(OnGrid(ods.Euler()), ods.Implicit(tolerance=1e-13))
    [solved] = run(loop.across(ods.State(x), sigmas), model=eps)
    assert name == "implicit(tolerance=1e-13)"
    torch.testing.assert_close(solved.state.x, want, rtol=1e-11, atol=1e-11)


def test_no_sample_depends_on_its_batch_mates():
    """Neither what it becomes nor how many evaluations it takes."""
    for solver in ("heun", "dpmpp_2m"):
        options = {"solver": solver, "num_steps": 6, "convention": ods.Implicit(tolerance=1e-9)}
        together = ods.encode(MODEL, images(8), **options)
        assert together.nfe.unique().numel() > 1
        for i in (0, 3, 7):
            alone = ods.encode(MODEL, images(8)[[i]], **options)
            assert alone.nfe[0] == together.nfe[i]
            assert torch.allclose(alone.x[0], together.x[i], atol=1e-7)


def missed(latent):
    """What decoding misses, in units of x / hypot(1, sigma)."""
    low = latent.recipe.sigmas[-1]
    back = ods.decode(MODEL, latent).x - images()
    return (MODEL.schedule.from_model_scale(back, low)).abs().amax(1) / math.hypot(1, low)


def test_a_budget_that_is_too_small_is_kept_and_told():
    how = ods.Implicit(tolerance=1e-11, max_evaluations=3)
    with pytest.warns(RuntimeWarning, match=r"5 of 5 samples did not converge \(sample 0: "):
        latent = ods.encode(MODEL, images(), solver="ddim", grid=[5.0, 0.1], convention=how)
    assert latent.nfe.tolist() == [3 + 1] * 5, "one of them to see what decoding gives"
    assert not latent.converged.any()
    assert torch.allclose(latent.defect, missed(latent), rtol=1e-9)


def test_the_defect_of_steps_with_memory_is_what_decoding_misses():
    how = ods.Implicit(tolerance=1e-11, max_evaluations=6)
    with pytest.warns(RuntimeWarning, match="did not converge"):
        latent = ods.encode(MODEL, images(), solver="dpmpp_2m", num_steps=5, convention=how)
    sizes = math.hypot(1, latent.recipe.sigmas[-1])
    assert torch.allclose(latent.defect, missed(latent), rtol=1e-6)
    assert sizes > 1


def test_equations_that_hold_while_decoding_magnifies_what_they_miss_are_told_too():
    """Near the boundary of two components of the data, an error of 1e-6 at high sigma becomes one of the image."""
    means = 0.7 * torch.randn(10, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mix = ods.exact.GaussianMixture(means, torch.linspace(0.02, 0.5, 10, dtype=torch.float64) ** 2)
    model, x = mix.model(), mix.sample(32)
    with pytest.warns(RuntimeWarning, match="did not converge"):
        latent = ods.encode(model, x, solver="heun", num_steps=50, convention="implicit")
    error = (ods.decode(model, latent).x - x).abs().amax(1)
    assert error.max() > 0.1
    assert error[latent.converged].max() < 0.01
    assert latent.converged.sum() >= 30


def test_the_mean_of_late_iterates_is_that_of_renoise():
    s0, s1, x = 8.0, 0.3, noise(2, scale=1.0)
    iterates = [x + (s0 - s1) * mixture()(x, s1)]
    for _ in range(5):
        iterates.append(x + (s0 - s1) * mixture()(iterates[-1], s0))
    how = ods.Implicit("fixed_point", tolerance=0.0, max_evaluations=7, average=3)
    loop, _ = upward(OnGrid(ods.Euler()), how)
    tally = Tally()
    [solved] = run(loop.across(ods.State(x), [s1, s0]), model=mixture(), tally=tally)
    torch.testing.assert_close(solved.state.x, torch.stack(iterates[-3:]).mean(0), rtol=0, atol=1e-12)
    off = solved.state.x + (s1 - s0) * mixture()(solved.state.x, s0) - x
    assert torch.allclose(solved.defect, off.abs().amax(1) / math.hypot(1, s1))
    assert tally.nfe.tolist() == [7 + 1, 7 + 1]


def test_float32_does_not_search_below_its_own_rounding():
    options = {"solver": "ddim", "num_steps": 10, "convention": ods.Implicit(tolerance=0.0)}
    latent = ods.encode(MODEL, images(), state_dtype=torch.float32, **options)
    assert latent.converged.all()
    assert latent.nfe.max() < 15 * 10
    fine = ods.encode(MODEL, images(), **options)
    assert fine.converged.all()
    assert fine.nfe.sum() > latent.nfe.sum()


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpmpp_2m"])
def test_guided_encoding_comes_back(solver):
    options = {"grid": geometric(15), "guidance_scale": 3.0, "cond": {"label": 0.25}}
    latent = ods.encode(labelled(), images(), solver=solver, convention=TIGHT, **options)
    assert latent.converged.all()
    assert (ods.decode(labelled(), latent).x - images()).abs().max() < 1e-9


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m"])
def test_of_guided_digits_those_that_do_not_come_back_are_named(solver):
    model, (x, labels) = ods.load("digits"), (part[:8] for part in ods.held_out("digits"))
    options = {"solver": solver, "num_steps": 10, "cond": {"label": labels}, "guidance_scale": 3.0}
    with pytest.warns(RuntimeWarning, match="did not converge"):
        latent = ods.encode(model, x, convention=ods.Implicit(max_evaluations=50), **options)
    error = (ods.decode(model, latent).x - x).abs().flatten(1).amax(1)
    assert 0 < latent.converged.sum() < 8
    assert error[latent.converged].max() < 1e-3
    assert error[~latent.converged].max() > 1 / 255


def test_digits_take_about_seven_evaluations_a_step_of_ddim():
    model, x = ods.load("digits"), ods.held_out("digits").images[:8]
    latent = ods.encode(model, x, solver="ddim", num_steps=20, convention="implicit")
    assert latent.converged.all()
    assert latent.nfe.double().mean() < 9 * 20
    assert (ods.decode(model, latent).x - x).abs().max() < 1e-3


def test_a_latent_keeps_what_is_known_of_its_equations(tmp_path):
    with pytest.warns(RuntimeWarning, match="did not converge"):
        latent = ods.encode(
            MODEL, images(), solver="ddim", grid=[5.0, 0.1], convention=ods.Implicit(tolerance=1e-9, max_evaluations=10)
        )
    assert 0 < latent.converged.sum() < 5
    assert f"{int(latent.converged.sum())} of 5 converged, defect {latent.defect.max():.1e} at most" in repr(latent)
    latent.save(tmp_path / "z.safetensors")
    loaded = ods.Latent.load(tmp_path / "z.safetensors").select([4, 1])
    assert torch.equal(loaded.converged, latent.converged[[4, 1]])
    assert torch.equal(loaded.defect, latent.defect[[4, 1]])
    assert loaded.recipe.convention == "implicit(tolerance=1e-09, max_evaluations=10)"
    assert "converged" not in repr(ods.encode(MODEL, images(), num_steps=2))
    assert ods.interpolate(latent.select([0]), latent.select([1]), 3).converged is None, "nothing is known of those"


def test_a_recipes_words_make_the_same_convention_again():
    how = ods.Implicit("newton", tolerance=1e-9)
    one, other = (ods.encode(MODEL, images(), solver="ddim", num_steps=4, convention=c) for c in (how, str(how)))
    assert str(how) == "implicit(method='newton', tolerance=1e-09)" == one.recipe.convention
    assert torch.equal(one.x, other.x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "secant"}, "method must be one of anderson"),
        ({"memory": -1}, "memory must be a whole number"),
        ({"max_evaluations": 0}, "max_evaluations must be a whole number"),
        ({"tolerance": math.nan}, "tolerance must be finite"),
        ({"average": 3}, "average is of fixed-point iterates"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ods.Implicit(**arguments)


@pytest.mark.parametrize(
    ("solver", "message"),
    [("reversible", "only make it worse"), ("scipy:RK45", "steps of its own"), ("adaptive:heun", "steps of its own")],
)
def test_solvers_that_have_no_equations_to_solve_are_refused(solver, message):
    with pytest.raises(ValueError, match=message):
        ods.encode(MODEL, images(), solver=solver, convention="implicit")


# ---- roots -------------------------------------------------------------------------------------------------------

LINEAR = torch.tensor([[2.0, 0.3, 0.0], [0.0, -1.5, 0.4], [0.1, 0.0, 0.7]], dtype=torch.float64)


def linear(asked, nan_for=()):
    """A correction whose fixed-point iteration diverges: f(w) = b - w A, with b of the sample's own."""

    def correction(w, rows, _wanted):
        asked.append(rows.tolist())
        f = (rows + 1.0)[:, None].to(w.dtype) - w @ LINEAR.T.to(w.dtype)
        f[[r in nan_for for r in rows.tolist()]] = math.nan
        return f, f.abs().amax(1)
        yield

    return correction


def searched(method, *, limit=60, tolerance=1e-11, nan_for=(), batch=3, dtype=torch.float64):
    asked = []
    start, allowed = torch.zeros(batch, 3, dtype=dtype), torch.full((batch,), tolerance, dtype=dtype)
    program = find_roots(linear(asked, nan_for), start, allowed, limit, Search(method))
    return by_hand(program, None), [sum(i in rows for rows in asked) for i in range(batch)], asked


@pytest.mark.parametrize("method", ["anderson", "newton"])
def test_a_linear_equation_is_solved_where_the_fixed_point_diverges(method):
    found, corrections, _ = searched(method)
    want = torch.linalg.solve(LINEAR, torch.arange(1.0, 4.0, dtype=torch.float64).expand(3, 3)).T
    torch.testing.assert_close(found.x, want, rtol=0, atol=1e-10)
    assert found.converged.all()
    assert max(corrections) <= 12
    lost, corrections, _ = searched("fixed_point")
    assert not lost.converged.any()
    assert max(corrections) <= 2 * PATIENCE, "a search that gets nowhere ends"
    assert torch.equal(lost.x, torch.zeros_like(lost.x)), "the best that was seen"


@pytest.mark.parametrize("method", ["anderson", "newton", "fixed_point"])
def test_a_sample_without_a_root_leaves_and_holds_up_no_other(method):
    alone, corrections, _ = searched(method)
    found, others, _ = searched(method, nan_for=(1,))
    assert not found.converged[1]
    assert found.defect[1] == math.inf
    assert torch.equal(found.converged[[0, 2]], alone.converged[[0, 2]])
    assert torch.allclose(found.x[[0, 2]], alone.x[[0, 2]], atol=1e-9)
    assert [others[0], others[2]] == [corrections[0], corrections[2]]


@pytest.mark.parametrize("limit", [1, 2, 4, 5])
@pytest.mark.parametrize("method", ["anderson", "newton", "fixed_point"])
def test_no_more_is_asked_than_may_be(method, limit):
    _, corrections, _ = searched(method, limit=limit)
    assert max(corrections) <= limit


def test_samples_that_are_found_are_not_asked_about_again():
    _, corrections, asked = searched("anderson", tolerance=1.5)
    assert corrections[0] == 1, "0 misses 1, which is allowed"
    assert all(0 not in rows for rows in asked[1:])


def test_newton_shortens_steps_that_lead_away():
    """Of the arc tangent: from 3 whole steps grow without end."""

    def correction(w, rows, _wanted):
        return -torch.atan(w), torch.atan(w).abs().amax(1)
        yield

    start = torch.full((1, 1), 3.0, dtype=torch.float64)
    found = by_hand(find_roots(correction, start, torch.tensor([1e-10]), 40, Search("newton")), None)
    assert found.converged.all()


def test_newton_does_without_an_answer_where_there_is_none():
    """Of sample 1 nothing is known but at its start."""

    def correction(w, rows, _wanted):
        f = 1 - w - w**3
        f[(rows[:, None] == 1) & (w != 0).any(1, keepdim=True).expand_as(w)] = math.nan
        return f, f.abs().amax(1)
        yield

    start = torch.zeros(3, 2, dtype=torch.float64)
    found = by_hand(find_roots(correction, start, torch.full((3,), 1e-10), 40, Search("newton")), None)
    assert found.converged.tolist() == [True, False, True]
    assert found.defect[1] == 1


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m"])
def test_an_image_of_zeros_converges_like_its_neighbours(solver):
    model = ods.exact.Gaussian(torch.ones(2), 0.5).model(sigma_min=0.1, sigma_max=20.0)
    x = torch.tensor([[0.0, 0.0], [1.0, 0.5]])
    latent = ods.encode(model, x, solver=solver, num_steps=30, convention="implicit")
    assert latent.converged.all()
    assert latent.nfe[0] < 2 * latent.nfe[1]
