"""diffusers' stochastic schedulers as oracles, in float64 and given the same noise."""

import importlib
import math
from itertools import pairwise

import pytest
import torch

from odesampler.drive import run
from odesampler.integrate import OnGrid, solve
from odesampler.program import Course, State
from odesampler.solvers import Ancestral, Churn, Euler, Multistep, StochasticMidpoint
from tests.problems import Float64, geometric, mixture, noise
from tests.test_peers import Recorded

STEPS = 6
INNER = geometric(STEPS - 1)
INTO_ZERO = [*INNER, 0.0]
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs, of numpy 2
same = pytest.mark.parametrize("eps", [mixture()], ids=["mixture"])


@pytest.fixture
def theirs(diffusers, monkeypatch):
    """Make a scheduler that goes along `sigmas` and draws from `drawn`."""

    def make(name, module, sigmas, drawn, **options):
        scheduler = getattr(diffusers, name)(**options)
        scheduler.set_timesteps(len(sigmas) - 1)
        assert len(scheduler.sigmas) == len(sigmas)
        scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)
        code, left = importlib.import_module(f"diffusers.schedulers.{module}"), list(drawn)
        monkeypatch.setattr(code, "torch", Float64())
        monkeypatch.setattr(code, "randn_tensor", lambda *_args, **_kwargs: left.pop(0))
        return scheduler

    return make


def drawn_for(steps):
    return [noise(4, scale=1.0, seed=i + 1) for i in range(steps)]


def by_them(scheduler, x, sigmas, eps, *, vp=False, **options):
    """Their loop. `x` is ours; a scheduler of VP models takes and returns it times alpha = (1 + sigma^2)^-1/2."""
    for t, (s0, s1) in zip(scheduler.timesteps, pairwise(sigmas), strict=True):
        down, up = ((1 + s0**2) ** -0.5, (1 + s1**2) ** 0.5) if vp else (1, 1)
        x = scheduler.step(eps(x, s0), t, x * down, **options).prev_sample * up
    return x


def by_us(solver, x, sigmas, eps, drawn):
    loop = OnGrid(solver).prepared(Course(torch.log, tuple(sigmas)))
    return run(solve(loop, State(x), sigmas), model=eps, noise=Recorded(*drawn))[0].state.x


@same
def test_ancestral_is_euler_ancestral(theirs, eps):
    drawn, x = drawn_for(STEPS), noise(4)
    scheduler = theirs("EulerAncestralDiscreteScheduler", "scheduling_euler_ancestral_discrete", INTO_ZERO, drawn)
    want = by_them(scheduler, x, INTO_ZERO, eps)
    torch.testing.assert_close(by_us(Ancestral(), x, INTO_ZERO, eps, drawn), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ancestral_with_eta_steps_as_far_down_and_up_as_that_of_k_diffusion(eta):
    """sigma_up = min(s1, eta sqrt(s1^2 (s0^2 - s1^2) / s0^2)), sigma_down^2 = s1^2 - sigma_up^2."""
    s0, s1, eps, x, z = 2.0, 0.7, mixture(), noise(4), noise(4, scale=1.0, seed=1)
    up = min(s1, eta * (s1**2 * (s0**2 - s1**2) / s0**2) ** 0.5)
    want = x + eps(x, s0) * ((s1**2 - up**2) ** 0.5 - s0) + up * z
    torch.testing.assert_close(by_us(Ancestral(eta=eta), x, [s0, s1], eps, [z]), want, rtol=1e-12, atol=1e-12)


def dpm_solver_sde(theirs, order, drawn):
    name, module = "DPMSolverMultistepScheduler", "scheduling_dpmsolver_multistep"
    options = {"algorithm_type": "sde-dpmsolver++", "solver_order": order, "lower_order_final": False}
    return theirs(name, module, INTO_ZERO, drawn, **options)


@same
def test_multistep_sde_is_dpm_solver_pp_2m_sde(theirs, eps):
    drawn, x = drawn_for(STEPS), noise(4)
    want = by_them(dpm_solver_sde(theirs, 2, drawn), x, INTO_ZERO, eps, vp=True)
    solver = Multistep("data", predictor=2, corrector=0, rule="dpm", eta=1.0)
    torch.testing.assert_close(by_us(solver, x, INTO_ZERO, eps, drawn), want, rtol=1e-10, atol=1e-10)


@same
def test_the_3m_sde_of_diffusers_has_one_sign_wrong_and_is_ours_where_it_is_mended(theirs, eps):
    """The weight of their curvature D2 is alpha ((1 - e^-2h - 2h) / (2h)^2 - 1/2); k-diffusion's, and ours, has + 1/2.

    If this fails, diffusers has mended it.
    """
    drawn, x, seen = drawn_for(STEPS), noise(4), []
    solver = Multistep("data", predictor=3, corrector=0, rule="dpm", eta=1.0)
    got = by_us(solver, x, INTO_ZERO, eps, drawn)
    assert (by_them(dpm_solver_sde(theirs, 3, drawn), x, INTO_ZERO, eps, vp=True) - got).abs().max() > 1e-2
    scheduler = dpm_solver_sde(theirs, 3, drawn)
    for i, (t, (s0, s1)) in enumerate(zip(scheduler.timesteps, pairwise(INTO_ZERO), strict=True)):
        k0, alpha = eps(x, s0), (1 + s0**2) ** -0.5
        seen.append(x - s0 * k0)
        x = scheduler.step(k0, t, x * alpha).prev_sample * (1 + s1**2) ** 0.5
        if i >= 2 and s1:
            h1, h0, h = (math.log(a / b) for a, b in pairwise(INTO_ZERO[i - 2 : i + 2]))
            first, second = (seen[-1] - seen[-2]) * h / h0, (seen[-2] - seen[-3]) * h / h1
            x = x + h / (h0 + h1) * (first - second)
    torch.testing.assert_close(got, x, rtol=1e-10, atol=1e-10)


@same
@pytest.mark.parametrize("tau", [0.6, 1.0])
@pytest.mark.parametrize(("predictor", "corrector"), [(1, 2), (2, 2), (3, 3), (3, 4)])
def test_multistep_sde_with_the_rule_bh1_is_sa_solver(theirs, eps, tau, predictor, corrector):
    """Through two points their code, and its authors', takes the slope as bh1 does, not as the paper's integrals."""
    drawn, x = drawn_for(STEPS), noise(4)
    sigmas = geometric(STEPS)
    scheduler = theirs(
        "SASolverScheduler",
        "scheduling_sasolver",
        sigmas,
        drawn,
        predictor_order=predictor,
        corrector_order=corrector,
        tau_func=lambda t: torch.tensor(tau, dtype=torch.float64),
        lower_order_final=False,
    )
    want = by_them(scheduler, x, sigmas, eps, vp=True)
    got, exact = (
        by_us(Multistep("data", predictor=predictor, corrector=corrector, rule=rule, eta=tau**2), x, sigmas, eps, drawn)
        for rule in ("bh1", "exact")
    )
    # SA-Solver corrects a point only once the model has been asked there, so the last one is as predicted, as is ours.
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)
    assert (exact - want).abs().max() > 1e-4


def test_the_rule_exact_is_sa_solver_as_its_paper_has_it():
    """One step of the 2-step SA-Predictor by eq. 14 there, its integrals by quadrature that owes nothing to ours."""
    sm, s0, s1, tau = 2.0, 1.3, 0.8, 0.7
    x, z, gm, g0 = (noise(2, scale=1.0, seed=i) for i in range(4))
    lam_m, lam_0, lam_1 = (-torch.tensor(s, dtype=torch.float64).log() for s in (sm, s0, s1))
    lam = torch.linspace(lam_0, lam_1, 20001, dtype=torch.float64)
    kernel = (1 + tau**2) * torch.exp(-(1 + tau**2) * (lam_1 - lam))
    slope = (lam - lam_0) / (lam_0 - lam_m)
    b0, bm = torch.trapezoid(kernel * (1 + slope), lam), torch.trapezoid(kernel * -slope, lam)
    kept = (s1 / s0) * torch.exp(-(tau**2) * (lam_1 - lam_0))
    want = kept * x + b0 * g0 + bm * gm + s1 * (1 - torch.exp(-2 * tau**2 * (lam_1 - lam_0))) ** 0.5 * z
    step = Multistep("data", predictor=2, corrector=0, eta=tau**2).step(State(x, (gm,), sigmas=(sm,)), s0, s1)
    step.send(None)
    step.send((x - g0) / s0)
    with pytest.raises(StopIteration) as stop:
        step.send(z)
    torch.testing.assert_close(stop.value.value.x, want, rtol=1e-8, atol=1e-8)


@same
def test_stochastic_midpoint_is_dpmpp_sde_of_k_diffusion(eps):
    """Written by hand with its sigma_down and sigma_up (their scheduler needs torchsde), on one Brownian motion."""
    x, (za, zb), (s0, s1) = noise(4), drawn_for(2), (2.0, 0.7)
    middle = (s0 * s1) ** 0.5
    wa, wb = (middle**-2 - s0**-2) ** 0.5 * za, (s1**-2 - middle**-2) ** 0.5 * zb
    y = x
    for to, w in ((middle, wa), (s1, wa + wb)):
        denoised = y - (middle if y is not x else s0) * eps(y, middle if y is not x else s0)
        up = to * (s0**2 - to**2) ** 0.5 / s0
        down = (to**2 - up**2) ** 0.5
        y = down / s0 * x + (1 - down / s0) * denoised + up * w / (to**-2 - s0**-2) ** 0.5
    torch.testing.assert_close(by_us(StochasticMidpoint(), x, [s0, s1], eps, [za, zb]), y, rtol=1e-12, atol=1e-12)


@same
def test_churn_is_edm_written_by_hand_but_never_above_the_top(eps):
    """Algorithm 2 with Euler's step, from the paper: the network is asked at x_hat and sigma_hat."""
    x, drawn = noise(4), drawn_for(STEPS)
    want, left, asked = x, list(drawn), []
    for s0, s1 in pairwise(INTO_ZERO):
        hat = min(s0 * (1 + min(3.0 / STEPS, 2**0.5 - 1)), INTO_ZERO[0]) if 0.3 <= s0 <= 2.5 else s0
        if hat > s0:
            want = want + (hat**2 - s0**2) ** 0.5 * 1.01 * left.pop(0)
        asked.append(hat)
        want = want + (s1 - hat) * eps(want, hat)
    assert len(left) == 2, "no churn at the top, nor at the last sigma, which is below s_tmin"
    solver = Churn(Euler(), s_churn=3.0, s_tmin=0.3, s_tmax=2.5, s_noise=1.01)
    torch.testing.assert_close(by_us(solver, x, INTO_ZERO, eps, drawn), want, rtol=1e-12, atol=1e-12)


@same
def test_the_churn_of_diffusers_asks_before_it_adds_noise_and_so_differs(theirs, eps):
    """EulerDiscrete takes eps at x and sigma for that at x_hat and sigma_hat; asked there, it is our Churn."""
    x, drawn = noise(4), drawn_for(STEPS)
    options = {"s_churn": 2.0, "s_tmax": 2.9}  # none at the top, where we do not either
    start = ("EulerDiscreteScheduler", "scheduling_euler_discrete", INTO_ZERO)
    theirs_as_it_is = by_them(theirs(*start, drawn), x, INTO_ZERO, eps, **options)
    got = by_us(Churn(Euler(), s_churn=2.0, s_tmax=2.9), x, INTO_ZERO, eps, drawn)
    assert (got - theirs_as_it_is).abs().max() > 1e-2
    scheduler, mended, left = theirs(*start, drawn), x, list(drawn)
    for t, s0 in zip(scheduler.timesteps, INNER, strict=True):
        hat, there = s0, mended
        if s0 <= 2.9:
            hat = s0 * (1 + min(2.0 / STEPS, 2**0.5 - 1))
            there = mended + (hat**2 - s0**2) ** 0.5 * left.pop(0)
        mended = scheduler.step(eps(there, hat), t, mended, **options).prev_sample
    torch.testing.assert_close(got, mended, rtol=1e-10, atol=1e-10)
