"""Tuning a sampler: race, knots, table, and what was measured of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from odesampler.analysis.side_by_side import Samples, side_by_side
from odesampler.grid import Grid, make_grid
from odesampler.guidance import rows_a_sample
from odesampler.plan import Plan, eps_of
from odesampler.program import Solver
from odesampler.registry import find_solver
from odesampler.solvers.fitted import Fitted
from odesampler.tuned import Tuned
from odesampler.tuning.fitting import Clock, Goals, Recomputed, Stage, counted, descend, frozen
from odesampler.tuning.held_out import measured_held_out, warning_of
from odesampler.tuning.knots import measured_grid
from odesampler.tuning.race import FEW, Entry, entrants, errors_of, first_of, plan_for, raced
from odesampler.tuning.report import Case, Tuning
from odesampler.tuning.resumable import Resumable
from odesampler.tuning.shapes import FreeTable, Knots, MovedKnots
from odesampler.tuning.task import Task, as_json, scale_as_json, summary, times, unclear
from odesampler.tuning.weight_tables import table_of

STARTS = 3  # of the race, whose knots are fitted
SHARE = 0.1  # of all iterations, for the knots of each
RATES = {"knots": 0.03, "table": 0.01}  # of the shorter gap; of a step's length
NODES = 60  # of the reference trajectories, to choose knots from
TOP = 250.0  # the highest node where a model starts at infinity
WORST = 3.0  # a sample that misses so many times more than the worst untuned one: the table blows up
GAIN = 0.99  # less is not worth a table
SHOWN = 8  # pictures


@dataclass(frozen=True, eq=False)
class Found:
    """A solver on its grid, and its errors."""

    name: str
    solver: Solver
    grid: Grid
    plan: Plan
    train: Tensor  # (n,) rms from the truth
    valid: Tensor
    test: Tensor | None = None  # on latents that nothing was chosen by

    @property
    def sound(self) -> bool:
        """Whether it failed nowhere."""
        return bool(self.train.isfinite().all() and self.valid.isfinite().all())

    @property
    def score(self) -> float:
        """Geometric mean over the validation samples."""
        return self.valid.log().mean().exp().item()


def tuned_sampler(task: Task, others: Mapping[str, Task], saved: Resumable, clock: Clock) -> Tuned:
    """What `tune` finds to sample with."""
    sets = {"train": task.samples(validation=False), "validation": task.samples(validation=True), "test": task.unseen()}
    truths = {name: task.truth(name, samples, saved) for name, samples in sets.items()}
    entries = _race(task, sets["train"], truths["train"][0], saved)
    valid = errors_of(
        task.model,
        [e.plan for e in entries],
        sets["validation"],
        truths["validation"][0],
        max_batch=task.max_batch,
    )
    untuned = [
        Found(e.name, find_solver(e.solver), e.plan.grid, e.plan, e.error, v)  # type: ignore[arg-type]  # all are solvers
        for e, v in zip(entries, valid, strict=True)
    ]
    usual = next(u for u, e in zip(untuned, entries, strict=True) if e.usual)
    best = min((u for u in untuned if u.sound), key=lambda u: u.score, default=None)
    if best is None:
        raise FloatingPointError(
            f"every solver fails on some of the latents at {task.num_steps} steps: give more steps"
        )
    goals = [_goals(task, entries[0].plan, sets[k], truths[k][0]) for k in ("train", "validation")]
    with frozen(task.model):
        made, done = _fitted(task, _starts(entries), goals[0], goals[1], saved, clock)
    tuned = _as_found(task, made, sets, truths)
    refused = _refusal(tuned, best) if done else _nothing(clock)
    taken = replace(best, name=f"{best.name}, as it is") if refused else tuned
    usual, best, taken = _tested(task, (usual, best, taken), sets["test"], truths["test"][0])
    held = measured_held_out(others, taken.plan, usual.plan, saved)
    facts, floor = _errors(taken), truths["test"][1]
    measured = {
        "task": "sample",
        "evaluations": task.num_steps,
        **{k: {"samples": len(sets[k].seeds), **facts[k]} for k in sets},
        "untuned": {"name": best.name, **_errors(best)},
        "default": {"name": usual.name, **_errors(usual)},
        "ratio": facts["test"]["median"] / _errors(usual)["test"]["median"],
        "refused": refused,
        "reference": f"rk4, {task.reference_steps} steps; half as many differ by {floor:.1e}",
        "reference_floor": floor,
        "iterations": done,
        "iterations_asked": task.iterations,
        "cut_short_by_budget": clock.cut,
        "seconds": round(clock.spent, 1),
        "seeds": {k: [*s.seeds] if s.x_t is None else "latents were given" for k, s in sets.items()},
        "guidance_scale": scale_as_json(task.guidance_scale),
        "held_out": held,
    }
    report = _report(task, sets["test"], truths["test"][0], (usual, best, taken), measured)
    model = task.model
    return Tuned(
        taken.solver,
        taken.grid,
        model=model.name,
        fingerprint=model.fingerprint(),
        start=usual.name,
        measured=as_json(measured),
        warning=_warning(held, refused, _worse(taken, usual), unclear(floor, facts["test"]["median"])),
        report=report,
    )


def _race(task: Task, train: Samples, truth: Tensor, saved: Resumable) -> list[Entry]:
    """The best entries, and the default, best first."""
    model, scale = task.model, task.guidance_scale
    grids = [Grid(tuple(s), "measured") for s in saved.fact("measured grid", lambda: _measured(task, train))]
    entries = entrants(model, task.num_steps, scale, grids)
    run = raced(model, entries, train, truth, max_batch=task.max_batch, progress=task.progress)
    return [replace(e, usual=e.plan is entries[0][1]) for e in run]


def _starts(entries: list[Entry]) -> list[Entry]:
    """The best entries that have a table."""
    found = []
    for entry in entries:
        try:
            table_of(entry.walker, [s for s in entry.plan.grid if 0 < s < math.inf])
        except ValueError:
            continue
        found.append(entry)
    return found[:STARTS]


def _measured(task: Task, train: Samples) -> list[list[float]]:
    """The grid from local errors, if there are nodes enough for so many steps; for the default's guidance."""
    model, (low, high) = task.model, task.model.range
    first = () if math.isfinite(high) else (math.inf,)
    steps = task.num_steps - len(first)
    if not 2 <= steps <= NODES:
        return []
    top = min(high, TOP)
    plan = plan_for(model, None, None, task.num_steps, task.guidance_scale)
    nodes = make_grid(
        "log_snr", model.schedule, NODES - 1, into_zero=False, sigma_min=low, sigma_max=max(top, 2 * low)
    ).sigmas
    [x_t], _ = train.latents(model, [high], plan.state_dtype)
    x = model.schedule.from_model_scale(x_t[:FEW], high)
    if first:  # where the first node is, pure noise says all but the image
        x = x * nodes[0]
    cond = {k: v[:FEW] for k, v in train.cond.items()}
    found = measured_grid(eps_of(plan, model), x, cond, nodes, steps, first, max_batch=task.max_batch)
    return [[*found.sigmas]]


def _goals(task: Task, plan: Plan, samples: Samples, truth: Tensor) -> Goals:
    model, top = task.model, task.model.range[1]
    [x_t], _ = samples.latents(model, [top], plan.state_dtype)
    width = rows_a_sample(model, task.guidance_scale)
    return Goals(
        Recomputed(eps_of(plan, model)),
        model.schedule.from_model_scale(x_t, top),
        truth.to(model.device, plan.state_dtype),
        {k: v.detach() for k, v in samples.cond.items()},
        out_of_infinity=math.isinf(top),
        chunk=None if task.max_batch is None else max(1, task.max_batch // width),
    )


def _fitted(
    task: Task, starts: list[Entry], train: Goals, valid: Goals, saved: Resumable, clock: Clock
) -> tuple[tuple[str, Solver, Grid], int]:
    """The fitted solver, in words, itself and its grid, and how many iterations it took."""
    low, high = task.model.range
    each = round(SHARE * task.iterations)
    found = []
    with counted("tuning", task.iterations, show=task.progress) as tell:
        for i, entry in enumerate(starts):
            inner = tuple(s for s in entry.plan.grid if 0 < s < math.inf)
            shape = MovedKnots(entry.walker, Knots(inner, low, high, pinned=math.isfinite(high)))
            stage = Stage(f"knots {i}", shape, each, RATES["knots"], shape.allowed)
            theta, loss = descend(stage, shape.start(), train, valid, saved, clock, tell)
            found.append((loss, i, entry, tuple(shape(theta)[0].tolist())))
        _, _, entry, sigmas = min(found, key=lambda f: f[:2])
        knots = Knots(sigmas, low, high, pinned=math.isfinite(high))
        last = (FreeTable if task.coefficients else MovedKnots)(entry.walker, knots)
        kind = "table" if task.coefficients else "knots"
        stage = Stage("last", last, task.iterations - each * len(starts), RATES[kind], last.allowed)
        theta, _ = descend(stage, last.start(), train, valid, saved, clock, tell)
    nodes, weights = (v.tolist() for v in last(theta))
    first = () if math.isfinite(high) else (math.inf,)
    grid = Grid((*first, *nodes, 0.0), "tuned")
    done = sum(saved.facts[k]["done"] for k in saved.facts if k == "last" or k.startswith("knots "))
    if not task.coefficients:
        return (f"{entry.solver}, knots fitted", find_solver(entry.solver), grid), done  # type: ignore[return-value]
    rows = tuple(tuple(row[i::-1]) for i, row in enumerate(weights))
    return (f"{entry.solver}, knots and weights fitted", Fitted((*nodes, 0.0), rows), grid), done


def _as_found(
    task: Task, made: tuple[str, Solver, Grid], sets: Mapping[str, Samples], truths: Mapping[str, tuple[Tensor, float]]
) -> Found:
    """Measured as it will be used."""
    name, solver, grid = made
    plan = plan_for(task.model, solver, grid, None, task.guidance_scale)
    errors = [errors_of(task.model, [plan], sets[k], truths[k][0], max_batch=task.max_batch)[0] for k in sets]
    return Found(name, solver, grid, plan, *errors)


def _refusal(tuned: Found, best: Found) -> str:
    """Why what was fitted is not taken; nothing if it is."""
    if not tuned.sound or tuned.valid.max() > WORST * best.valid.max():
        most = max(tuned.train.max(), tuned.valid.max())
        return f"what was fitted blows up: {most:.1e} at worst, untuned {best.valid.max():.1e}"
    if not tuned.score < GAIN * best.score:
        return f"what was fitted is no better on the validation samples: {tuned.score:.1e}, untuned {best.score:.1e}"
    return ""


def _nothing(clock: Clock) -> str:
    """Why not a single iteration was done."""
    return "nothing was fitted" + (", since the budget was spent before" if clock.cut else "")


def _tested(task: Task, found: tuple[Found, Found, Found], samples: Samples, truth: Tensor) -> tuple[Found, ...]:
    errors = errors_of(task.model, [f.plan for f in found], samples, truth, max_batch=task.max_batch)
    return tuple(replace(f, test=error) for f, error in zip(found, errors, strict=True))


def _sets(found: Found) -> dict[str, Tensor]:
    assert found.test is not None
    return {"train": found.train, "validation": found.valid, "test": found.test}


def _errors(found: Found) -> dict[str, dict[str, float]]:
    """What a recipe says of each set of latents."""
    return {name: summary(error) for name, error in _sets(found).items()}


def _worse(taken: Found, usual: Found) -> str:
    """What is to be said where what was taken is worse on the test latents than the default; else nothing."""
    ratio = times(_errors(taken)["test"], _errors(usual)["test"])
    return "" if ratio <= 1 else f"worse on the test latents than the untuned default ({ratio:.3g} times its error)"


def _warning(held: Mapping[str, Any], refused: str, worse: str = "", unclear: str = "") -> str:
    said = [refused and f"{refused}; this is the best untuned solver", worse, *warning_of(held), unclear]
    return "; ".join(filter(None, said))


def _report(
    task: Task, samples: Samples, truth: Tensor, found: tuple[Found, ...], measured: Mapping[str, Any]
) -> Tuning:
    names = ("default", "best untuned", "tuned")
    cases = [Case(f"{kind}: {f.name}", f.grid, _sets(f)) for kind, f in zip(names, found, strict=True)]
    ran, _ = side_by_side(task.model, [f.plan for f in found], first_of(samples, SHOWN), max_batch=task.max_batch)
    called: dict[int, list[int]] = {}  # what is the same solve is shown once
    for i in (2, 0, 1):
        called.setdefault(id(found[i].plan), []).append(i)
    ends = {"\n= ".join(names[i] for i in same): ran[same[0]].x for same in called.values()}
    images = {"reference": truth[:SHOWN].to(ran[0].x.dtype), **ends}
    return Tuning(tuple(cases), images, task.model.name, task.num_steps, measured)
