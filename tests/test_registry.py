"""Names of solvers: from what a user types to an object, and back."""

import pytest

from odesampler.adaptive import Adaptive
from odesampler.integrate import OnGrid
from odesampler.program import Invertible
from odesampler.registry import SOLVERS, find_solver, loop_for, solvers, spec_of
from odesampler.solvers import Ancestral, Bosh3, Dopri5, Euler, Heun, Reversible, ReversibleHeun, Scipy, Torchdiffeq
from odesampler.solvers.external import SCIPY_METHODS, torchdiffeq_methods
from tests.problems import SOLVERS as INSTANCES

NAMES = [
    *(n for n in SOLVERS),
    *(f"torchdiffeq:{m}" for m in torchdiffeq_methods()),
    *(f"scipy:{m}" for m in SCIPY_METHODS),
    "ancestral(eta=0.5)",
    "adaptive:dopri5(rtol=1e-06)",
    "adaptive:rk23",
    "adaptive:singlestep(frame='data', rtol=0.001)",
    "adaptive:singlestep(fractions=(0.25, 0.75))",
    "reversible(base='rk4', coupling=0.9)",
    "scipy:LSODA(rtol=1e-08, atol=1e-08)",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_and_its_object_are_found_from_each_other(name):
    found = find_solver(name)
    assert find_solver(spec_of(found)) == found
    assert find_solver(found) is found


@pytest.mark.parametrize("solver", INSTANCES, ids=repr)
def test_every_solver_is_written_as_a_name_from_which_it_is_made_again(solver):
    assert find_solver(spec_of(solver)) == solver


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("ddim", Euler()),
        ("rk45", Dopri5()),
        ("rk23", Bosh3()),
        ("ddpm", Ancestral(eta=1.0)),
        ("euler_ancestral", Ancestral()),
        ("ddpm_sigma_hat", Ancestral(sigma_hat=True)),
        ("reversible_heun", ReversibleHeun()),
        ("reversible(base='euler')", Reversible(Euler())),
        ("adaptive:heun(rtol=1e-3, atol=0.0)", Adaptive(Heun(), 1e-3, 0.0)),
        ("torchdiffeq:rk4", Torchdiffeq("rk4")),
        ("scipy:DOP853", Scipy("DOP853")),
    ],
)
def test_names_mean_what_the_literature_means(name, solver):
    assert find_solver(name) == solver


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("huen", r"unknown solver 'huen'; did you mean heun or churn\? known: .*ddim.*heun.*torchdiffeq:"),
        ("scypy:RK45", "before the colon stands one of adaptive, torchdiffeq, scipy"),
        ("scipy:RK44", "scipy's solve_ivp has no method 'RK44'"),
        ("heun(", "cannot read solver"),
        ("ancestral(0.5)", "cannot read solver"),
        ("ancestral(eta=__import__('os'))", "cannot read solver"),
        ("ancestral(eta=0.5).step", "cannot read solver"),
        ("ancestral(beta=1)", "unexpected keyword argument 'beta'"),
        ("ancestral(eta=2.0)", "eta must be from 0"),
        ("adaptive:euler", "estimates no error"),
        ("", "unknown solver ''"),
    ],
)
def test_what_is_no_solver_is_refused_with_what_was_expected(name, message):
    with pytest.raises(ValueError, match=message):
        find_solver(name)


@pytest.mark.parametrize("thing", [None, 5, Heun, ["heun"]])
def test_what_is_neither_a_name_nor_a_solver_is_a_type_error(thing):
    with pytest.raises(TypeError, match="must be a name or an object"):
        find_solver(thing)


def test_steps_or_tolerances_choose_the_loop():
    assert loop_for("heun", 20, None, None) == OnGrid(Heun())
    assert loop_for("heun", None, None, None) == OnGrid(Heun())
    assert loop_for("heun", None, 1e-3, None) == Adaptive(Heun(), rtol=1e-3)
    assert loop_for("dopri5", None, None, None) == Adaptive(Dopri5())
    assert loop_for("dopri5", 20, None, None) == OnGrid(Dopri5())
    assert loop_for("torchdiffeq:rk4", 20, None, None) == Torchdiffeq("rk4")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("heun", 20, 1e-3, None), "give one"),
        (("scipy:RK45", 20, None, None), "num_steps=20 would have no effect"),
        (("torchdiffeq:dopri5", 20, None, None), "num_steps=20 would have no effect"),
        (("adaptive:heun", None, 1e-3, None), "has tolerances of its own"),
        (
            ("adaptive:bosh3(coordinate='flow')", None, 1e-3, None),
            r"write adaptive:bosh3\(rtol=0.001, coordinate='flow'\)",
        ),
        (("euler", None, 1e-3, None), "estimates no error"),
    ],
)
def test_contradictions_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        loop_for(*arguments)


def test_the_table_says_what_the_solvers_say_of_themselves():
    facts = {name: f for f in solvers() for name in (f.name, *f.aliases)}
    for name, kind in SOLVERS.items():
        one = kind()
        assert facts[name][2:7] == (
            one.order,
            one.evaluations,
            one.error_order is not None,
            isinstance(one, Invertible),
            one.stochastic,
        )
        assert facts[name].summary, "a solver without a line for listings"
    assert "ddim" in facts["euler"].aliases
    assert facts["scipy:RK45"].error_estimate
    assert not facts["torchdiffeq:euler"].error_estimate
    lines = str(solvers()).splitlines()
    assert len(lines) == 1 + len(solvers())
    assert ["euler", "ddim", "1", "1"] in [line.split()[:4] for line in lines]
