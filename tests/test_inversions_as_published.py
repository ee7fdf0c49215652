"""Exactly invertible solvers against their formulas as the papers print them, on the scale of a VP model."""

from itertools import pairwise

import pytest
import torch

import odesampler as ods
from odesampler.coordinates import COORDINATES
from odesampler.drive import run
from odesampler.integrate import on_grid
from odesampler.registry import find_solver
from odesampler.solvers import (
    ALF,
    EDICT,
    RK4,
    Euler,
    Heun,
    Midpoint,
    Multistep,
    Reversible,
    ReversibleHeun,
    Singlestep,
    TwoStep,
)
from odesampler.trial import reads_sigma
from tests.problems import Spy, by_hand, mixture, noise, start

SIGMAS = [3.0, 2.2, 1.9, 1.1, 0.7, 0.6, 0.3]  # steps of uneven length


def alpha(sigma):
    return (1 + sigma**2) ** -0.5


def eps(x_t, sigma):
    """A network of a VP model."""
    return mixture()(x_t / alpha(sigma), sigma)


def ddim(x_t, e, s0, s1):
    """From s0 to s1 with the noise `e`, eq. 12 of arXiv:2010.02502."""
    a0, a1 = alpha(s0) ** 2, alpha(s1) ** 2
    return a1**0.5 * (x_t - (1 - a0) ** 0.5 * e) / a0**0.5 + (1 - a1) ** 0.5 * e


def v(x_t, phi):
    sigma = torch.tensor(phi, dtype=torch.float64).tan().item()
    e, a = eps(x_t, sigma), alpha(sigma)
    return a * e - sigma * a * (x_t - sigma * a * e) / a


def walked(solver):
    """The states of `solver` along SIGMAS."""
    state = start(solver, noise(), SIGMAS[0], mixture())
    states = [state]
    for s0, s1 in pairwise(SIGMAS):
        states.append(by_hand(solver.step(states[-1], s0, s1), mixture()))
    return states


def check(solver, x_ts):
    """`solver` goes through these points, given on the VP scale."""
    for s, state, want in zip(SIGMAS, walked(solver), x_ts, strict=True):
        torch.testing.assert_close(alpha(s) * state.x, want, rtol=1e-11, atol=1e-11)


def first_two():
    x = alpha(SIGMAS[0]) * noise()
    return [x, ddim(x, eps(x, SIGMAS[0]), *SIGMAS[:2])]


def triples():
    return zip(SIGMAS, SIGMAS[1:], SIGMAS[2:], strict=False)


@pytest.mark.parametrize("gamma", [1.0, 0.96, 0.5])
def test_bdia_is_its_published_formula(gamma):
    xs = first_two()
    for above, here, below in triples():
        e = eps(xs[-1], here)
        back, on = ddim(xs[-1], e, here, above), ddim(xs[-1], e, here, below)
        xs.append(gamma * xs[-2] - gamma * back + on)
    check(find_solver(f"bdia(gamma={gamma})"), xs)


def test_o_belm_is_its_published_formula():
    xs = first_two()
    for above, here, below in triples():
        h, h1 = here - below, above - here  # of this step, of the last one
        weights = [h**2 / h1**2 * alpha(below) / alpha(above), (h1**2 - h**2) / h1**2 * alpha(below) / alpha(here)]
        noise_weight = -h * (h + h1) / h1 * alpha(below)
        xs.append(weights[0] * xs[-2] + weights[1] * xs[-1] + noise_weight * eps(xs[-1], here))
    check(find_solver("o_belm"), xs)


def angles():
    return torch.tensor(SIGMAS, dtype=torch.float64).atan().tolist()


def test_leapfrog_is_the_classical_one():
    phi, x = angles(), alpha(SIGMAS[0]) * noise()
    xs = [x, x + (phi[1] - phi[0]) * v(x, phi[0])]
    for i in range(1, len(phi) - 1):
        xs.append(xs[i - 1] + (phi[i + 1] - phi[i - 1]) * v(xs[i], phi[i]))
    check(TwoStep("angle", rule="leapfrog"), xs)


def test_edict_is_its_published_formula_with_the_copies_by_turns():
    p, x = 0.93, alpha(SIGMAS[0]) * noise()
    pair, pairs = [x, x], [[x, x]]
    for i, (s0, s1) in enumerate(pairwise(SIGMAS)):
        first, second = pair if i % 2 == 0 else pair[::-1]
        first = ddim(first, eps(second, s0), s0, s1)
        second = ddim(second, eps(first, s0), s0, s1)
        first = p * first + (1 - p) * second
        second = p * second + (1 - p) * first
        pair = [first, second] if i % 2 == 0 else [second, first]
        pairs.append(pair)
    check(EDICT(), [pair[i % 2] for i, pair in enumerate(pairs)])
    torch.testing.assert_close(alpha(SIGMAS[-1]) * walked(EDICT())[-1].memory[0], pairs[-1][1], rtol=1e-11, atol=1e-11)


def test_reversible_heun_is_its_published_formula():
    phi, y = angles(), alpha(SIGMAS[0]) * noise()
    ys, hat = [y], y
    for p0, p1 in pairwise(phi):
        ahead = 2 * ys[-1] - hat + (p1 - p0) * v(hat, p0)
        ys.append(ys[-1] + (p1 - p0) / 2 * (v(hat, p0) + v(ahead, p1)))
        hat = ahead
    check(ReversibleHeun("angle"), ys)


def mccallum_foster(y, times, slope, coupling=0.999):
    """Algorithm 1 of arXiv:2410.11648 around Heun, or around Euler's method if that is all that `slope` needs."""
    ys, z = [y], y
    for t0, t1 in pairwise(times):
        ys.append(coupling * ys[-1] + (1 - coupling) * z + slope(z, t0, t1))
        z = z - slope(ys[-1], t1, t0)
    return ys


def test_reversible_is_its_published_formula_in_the_angle():
    def heun(y, p0, p1):
        k0 = v(y, p0)
        return (p1 - p0) / 2 * (k0 + v(y + (p1 - p0) * k0, p1))

    check(Reversible(Heun(), coordinate="angle"), mccallum_foster(alpha(3.0) * noise(), angles(), heun))


def test_rex_is_euler_in_the_data_coordinate():
    def euler(y, t0, t1):
        x_t = alpha(1 / t0) * y / t0
        return (t1 - t0) * (x_t / alpha(1 / t0) - eps(x_t, 1 / t0) / t0)

    ys = mccallum_foster(noise() / 3.0, [1 / s for s in SIGMAS], euler)
    check(find_solver("rex"), [y * s * alpha(s) for y, s in zip(ys, SIGMAS, strict=True)])


def test_alf_is_the_leapfrog_on_the_middles_smoothed():
    phis = [1.2 - 0.1 * i for i in range(9)]
    sigmas = torch.tensor(phis, dtype=torch.float64).tan().tolist()
    alf = ALF("angle", damping=1.0, scale=1.0)
    state = start(alf, noise(), sigmas[0], mixture())
    at = [alpha(sigmas[0]) * state.x + -0.05 * state.memory[0]]  # the first middle
    at.append(at[0] - 0.2 * v(at[0], phis[0] - 0.05) + 0.1 * state.memory[0])  # two slopes less the first one
    for i in range(1, 7):
        at.append(at[i - 1] - 0.2 * v(at[i], phis[i] - 0.05))
    for i in range(7):
        state = by_hand(alf.step(state, sigmas[i], sigmas[i + 1]), mixture())
        torch.testing.assert_close(alpha(sigmas[i + 1]) * state.x, (at[i] + at[i + 1]) / 2, rtol=1e-10, atol=1e-10)


def test_a_two_step_method_needs_nobody_for_the_step_into_zero():
    model = ods.exact.GaussianMixture.ring().model()
    sampled = ods.sample(model, 4, solver="two_step", num_steps=40)
    assert sampled.nfe.tolist() == [40] * 4
    assert (sampled.x - ods.sample(model, 4, solver="rk4", num_steps=200).x).abs().max() < 0.02


@pytest.mark.parametrize("coordinate", COORDINATES)
@pytest.mark.parametrize("kind", [TwoStep, ReversibleHeun, Reversible])
def test_at_a_node_of_the_grid_the_model_is_asked_at_that_very_sigma(kind, coordinate):
    """Not at what is left of it after a way there and back through another clock: that may lie outside the range."""
    spy = Spy(mixture())
    run(on_grid(kind(coordinate=coordinate), noise(), SIGMAS), model=spy)
    assert set(spy.sigmas) == set(SIGMAS)


def test_a_base_that_needs_the_models_clock_is_told():
    ring = ods.exact.GaussianMixture.ring()
    base = Multistep("v", "t", 1, 0)
    latent = ods.encode(ring.model(), ring.sample(2), solver=Reversible(base, coordinate="sigma"), num_steps=5)
    assert (ods.decode(ring.model(), latent).x - ring.sample(2)).abs().max() < 1e-9


@pytest.mark.parametrize("base", [Singlestep("data", (0.5,)), Singlestep("noise", (0.5,), "dpm")], ids=repr)
def test_a_base_made_for_sigma_is_refused_where_it_would_be_shown_another_clock(base):
    assert reads_sigma(base)
    with pytest.raises(ValueError, match="coordinate='sigma'"):
        Reversible(base)
    assert Reversible(base, coordinate="sigma").base == base


@pytest.mark.parametrize("base", [Euler(), Heun(), Midpoint(), RK4()], ids=repr)
def test_methods_for_any_equation_do_not_read_sigma(base):
    assert not reads_sigma(base)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TwoStep("log"), "coordinate must be one of sigma, data, angle"),
        (lambda: TwoStep(delta=0.0), "delta must be above 0"),
        (lambda: TwoStep(rule="rabbit"), "rule must be one of leapfrog, bdia, belm; got 'rabbit'"),
        (lambda: TwoStep(gamma=1.5), r"gamma must be in \(0, 1\]; got 1.5"),
        (lambda: TwoStep(gamma=float("nan")), r"gamma must be in \(0, 1\]"),
        (lambda: ReversibleHeun("log"), "coordinate must be one of"),
        (lambda: EDICT(0.0), r"mixing must be in \(0, 1\]"),
        (lambda: Reversible(coordinate="log"), "coordinate must be one of"),
    ],
)
def test_what_makes_no_method_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
