"""Tuning an encoder: the reversible solver and grid whose latents are best, alone and without their memory.

    loss = mean over images of (log rms(decode(latent alone) - image) + log rms(latent - reference's)) / 2

With its memory every reversible solver gives the image back; without it (`Latent.without_memory`) only a good one does.
What is searched: the coordinate, its delta and scale and the damping of `ALF`, the delta, power and last sigma of its
grid; one setting after the other, by factors that shrink. No gradients.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odesampler.analysis.errors import quantile, rms
from odesampler.analysis.reference import grids_between
from odesampler.conventions import upward
from odesampler.grid import Grid, make_grid
from odesampler.plan import AnyGrid, AnySolver, Plan, clean_end, execute, make_plan
from odesampler.precision import finest_dtype
from odesampler.program import State
from odesampler.registry import spec_of
from odesampler.solvers.alf import ALF
from odesampler.tuned import Tuned
from odesampler.tuning.fitting import Clock, counted
from odesampler.tuning.report import Case, Tuning
from odesampler.tuning.resumable import Resumable
from odesampler.tuning.task import Task, as_json, scale_as_json, summary, times, unclear

COORDINATES = ("flow_asinh", "angle_asinh", "asinh", "flow", "angle")
FACTORS = (3.0, 1.7, 1.3, 1.1)  # of a setting, each until none of them helps
SHOWN = 8  # pictures
WORST, GAIN = 3.0, 0.99  # as of samplers: what is much worse for one image, or hardly better, is not taken
Setting = dict[str, Any]


class Missed(NamedTuple):
    """What came out of one setting: (n,) errors, and what came back."""

    round_trip: Tensor
    latent: Tensor
    x: Tensor  # (n, *shape)
    nfe: tuple[int, int]  # evaluations a sample, up and down

    @property
    def loss(self) -> float:
        """As above; infinite where something blew up."""
        both = torch.cat([self.round_trip, self.latent])
        return both.log().mean().item() if bool(both.isfinite().all()) else math.inf


def tuned_encoder(task: Task, others: Mapping[str, Task], saved: Resumable, clock: Clock) -> Tuned:
    """What `tune` finds to encode with."""
    model, usual = task.model, _plan(task, None, None)
    truth = saved.once("latents", lambda: _latents(task, 1))
    floor: float = saved.fact("floor", lambda: quantile(rms(_latents(task, 2) - truth), 0.5))
    sets = task.images()
    chosen, tried = _searched(task, usual, sets["train"], truth, saved, clock)
    plan = usual if chosen is None else _plan(task, *_meant(task, chosen))
    before, after = ({k: _missed(task, p, rows, truth) for k, rows in sets.items()} for p in (usual, plan))
    refused = "" if chosen is None else _refusal(after["validation"], before["validation"])
    if refused:
        plan, after = usual, before
    names = [f"{spec_of(p.loop)} on {p.grid.name}" for p in (usual, plan)]
    measured: dict[str, Any] = {
        "task": "encode",
        "evaluations": dict(zip(("encode", "decode"), after["test"].nfe, strict=True)),
        **{k: {"samples": len(m.latent), **_said(m)} for k, m in after.items()},
        "default": {"name": names[0], **{k: _said(m) for k, m in before.items()}},
        "ratio": math.exp(after["test"].loss - before["test"].loss),
        "refused": refused,
        "reference": f"rk4, {task.reference_steps} steps; half as many differ by {floor:.1e}",
        "reference_floor": floor,
        "iterations": tried,
        "iterations_asked": task.iterations,
        "cut_short_by_budget": clock.cut,
        "seconds": round(clock.spent, 1),
        "guidance_scale": scale_as_json(task.guidance_scale),
        "held_out": {},
    }
    assert task.given is not None
    shown = {kind: m["test"].x[:SHOWN] for kind, m in (("tuned", after), ("default", before))}
    originals = task.given[sets["test"]][:SHOWN].cpu().to(shown["default"].dtype)
    cases = []
    for kind, name, p, m in zip(("default", "tuned"), names, (usual, plan), (before, after), strict=True):
        errors = {"latent": m["test"].latent, "round trip": m["test"].round_trip}
        cases.append(Case(f"{kind}: {name}", p.grid, errors))
    report = Tuning(tuple(cases), {"image": originals, **shown}, model.name, task.num_steps, measured)
    solver = plan.loop.solver  # type: ignore[attr-defined]  # on a grid
    solver = replace(solver, course=None) if isinstance(solver, ALF) else solver
    told: dict[str, Any] = {
        "model": model.name,
        "fingerprint": model.fingerprint(),
        "task": "encode",
        "start": names[0],
        "measured": as_json(measured),
    }
    warning = [
        refused and f"{refused}; this is the default",
        _worse(after["test"], before["test"]),
        unclear(floor, measured["test"]["latent"]["median"]),
    ]
    return Tuned(solver, plan.grid, warning="; ".join(filter(None, warning)), report=report, **told)


def _refusal(after: Missed, before: Missed) -> str:
    """Why what was found is not taken, as for samplers; nothing if it is."""
    for errors, those in ((after.round_trip, before.round_trip), (after.latent, before.latent)):
        if not errors.max() <= WORST * those.max():
            return f"what was found blows up: {errors.max():.1e} at worst, untuned {those.max():.1e}"
    if not after.loss < before.loss + math.log(GAIN):
        return "what was found is no better on the validation images"
    return ""


def _worse(after: Missed, before: Missed) -> str:
    """What is to be said where one of the two errors is worse on the test images; else nothing."""
    both = {key: times(_said(after)[key], _said(before)[key]) for key in ("round_trip", "latent")}
    lost = [f"{key.replace('_', ' ')} ({v:.3g} times its error)" for key, v in both.items() if not v <= 1]
    return f"worse on the test images than the default: {', '.join(lost)}" if lost else ""


def _searched(
    task: Task, usual: Plan, rows: list[int], truth: Tensor, saved: Resumable, clock: Clock
) -> tuple[Setting | None, int]:
    """The best setting that was tried (None: the default), and how many were."""
    tried: dict[str, float] = saved.facts.setdefault("tried", {})

    def loss(setting: Setting | None) -> float:
        key = json.dumps(setting)
        if key not in tried:
            if len(tried) > task.iterations or clock.over():
                return math.inf
            tried[key] = _tried(task, setting, usual, rows, truth)
            saved.facts["seconds"] = clock.spent
            saved.write(sparing=True)
            tell(1)
        return tried[key]

    with counted("tuning", task.iterations, show=task.progress) as tell:
        best: Setting | None = None
        least, first = loss(None), _first(task)
        for coordinate in COORDINATES:
            setting = {**first, "coordinate": coordinate}
            if loss(setting) < least:
                best, least = setting, loss(setting)
        here = best or first
        for factor in FACTORS:
            better = True
            while better and len(tried) <= task.iterations and not clock.over():
                better = False
                for key, value in list(here.items()):
                    for one in () if key == "coordinate" else (value * factor, value / factor):
                        setting = {**here, key: one}
                        if loss(setting) < least:
                            here = best = setting
                            least, better = loss(setting), True
                            break
    return best, len(tried) - 1


def _first(task: Task) -> Setting:
    """Where the search begins: near the default."""
    low, high = task.model.range
    alf, top = ALF(), min(high, 1e6)
    last = min(max(low * 1.001, 2 / task.num_steps**2), math.sqrt(low * top))
    start = {"delta": alf.delta, "damping": alf.damping, "scale": alf.scale}
    return {"coordinate": alf.coordinate, **start, "grid_delta": 0.02, "rho": 1.0, "last": last}


def _tried(task: Task, setting: Setting | None, usual: Plan, rows: list[int], truth: Tensor) -> float:
    """The loss of a setting, of the default for None; infinite for one that cannot be."""
    try:
        plan = usual if setting is None else _plan(task, *_meant(task, setting))
        return _missed(task, plan, rows, truth).loss
    except (ValueError, ArithmeticError):
        return math.inf


def _meant(task: Task, setting: Setting) -> tuple[ALF, AnyGrid]:
    """Raises: ValueError: no such solver or grid."""
    alf = ALF(**{k: setting[k] for k in ("coordinate", "delta", "damping", "scale")})
    told = {"delta": setting["grid_delta"], "rho": setting["rho"], "last": setting["last"]}
    name = f"asinh({', '.join(f'{k}={v!r}' for k, v in told.items())})"
    low, high = task.model.range
    if math.isfinite(high):
        return alf, name
    inner = make_grid(name, task.model.schedule, task.num_steps - 1, into_zero=False, sigma_min=low, sigma_max=1e3)
    return alf, (high, *inner.sigmas)


def _plan(task: Task, solver: AnySolver | None, grid: AnyGrid | None) -> Plan:
    """To encode by; a given grid has its own number of steps."""
    return make_plan(
        task.model,
        solver,
        num_steps=None if isinstance(grid, Grid) else task.num_steps,
        grid=grid,
        rtol=None,
        atol=None,
        into_zero=False,
        guidance_scale=task.guidance_scale,
        state_dtype=finest_dtype(task.model.device),
    )


def _missed(task: Task, plan: Plan, rows: list[int], truth: Tensor) -> Missed:
    """There, and back without the memory."""
    assert task.given is not None
    model, images = task.model, task.given[rows]
    how: dict[str, Any] = {"cond": {k: v[rows] for k, v in task.cond.items()}, "max_batch": task.max_batch}
    up = replace(plan, loop=upward(plan.loop, None)[0])
    there = execute(up, model, clean_end(plan, model, images), rising=True, **how)
    back = execute(plan, model, State(there.solved.state.x), **how)
    latent = model.schedule.to_model_scale(there.solved.state.x, plan.grid[0]).cpu()
    x = model.schedule.to_model_scale(back.solved.state.x, plan.grid[-1]).cpu()
    nfe = int(there.nfe.max()), int(back.nfe.max())
    return Missed(rms(x - images.cpu()).clamp(min=1e-300), rms(latent - truth[rows]).clamp(min=1e-300), x, nfe)


def _latents(task: Task, part: int) -> Tensor:
    """The latents of the equation itself (n, *shape), by RK4 with the reference's steps, or half of them."""
    assert task.given is not None
    grid = grids_between(task.model, *task.model.range, task.reference_steps, into_zero=False)[part - 1]
    plan = _plan(task, "rk4", grid)
    start = clean_end(plan, task.model, task.given)
    bar = "reference" if task.progress else None
    found = execute(
        plan, task.model, start, rising=True, cond=task.cond, max_batch=task.max_batch, progress=bar
    ).solved.state.x
    return task.model.schedule.to_model_scale(found, grid[0]).cpu()


def _said(missed: Missed) -> dict[str, Any]:
    return {"round_trip": summary(missed.round_trip), "latent": summary(missed.latent)}
