"""What a tuned sampler does to what it was not tuned for, class by class.

    ratio = exp(mean over samples of log(error of the tuned / error of the untuned default))

One class can be lost where the others hide it in the mean, so that the worst class is what is warned of. What cannot be
measured there is said, and loses nothing of what was found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from odesampler.analysis.side_by_side import FAILURES
from odesampler.plan import Plan
from odesampler.tuning.race import errors_of
from odesampler.tuning.resumable import Resumable
from odesampler.tuning.task import Task, summary


def measured_held_out(others: Mapping[str, Task], tuned: Plan, usual: Plan, saved: Resumable) -> dict[str, Any]:
    """Of each task: errors of both, their ratio, the ratio of each class; or why there are none ("failed")."""
    found: dict[str, Any] = {}
    for i, (name, task) in enumerate(others.items()):
        try:
            found[name] = _measured(f"held out {i}", task, tuned, usual, saved)
        except FAILURES as error:  # of the model or the reference there; what was tuned is not to blame
            found[name] = {"failed": str(error)}
    return found


def _measured(name: str, task: Task, tuned: Plan, usual: Plan, saved: Resumable) -> dict[str, Any]:
    samples = task.all_of()
    truth, _ = task.truth(name, samples, saved)
    plans = [replace(plan, guidance_scale=task.guidance_scale) for plan in (tuned, usual)]
    errors = errors_of(task.model, plans, samples, truth, max_batch=task.max_batch)
    for error, which in zip(errors, ("tuned solver", "untuned default"), strict=True):
        if not bool(error.isfinite().all()):
            raise FloatingPointError(f"the {which} fails")
    after, before = errors
    labels = samples.cond["label"].tolist() if task.model.labels and "label" in samples.cond else []
    classes = {str(one): _ratio(after, before, [i for i, k in enumerate(labels) if k == one]) for one in {*labels}}
    return {
        "tuned": summary(after),
        "default": summary(before),
        "ratio": _ratio(after, before, range(len(after))),
        "classes": dict(sorted(classes.items())) if len(classes) > 1 else {},
    }


def _ratio(after: Tensor, before: Tensor, rows: Sequence[int]) -> float:
    ratio: float = (after[[*rows]].log() - before[[*rows]].log()).mean().exp().item()
    return ratio


def warning_of(held: Mapping[str, Any]) -> Iterable[str]:
    """What the user of a recipe should know of what was held out."""
    worse, lost = [], []
    for name, one in held.items():
        if "failed" in one:
            lost.append(f"{name} ({one['failed']})")
            continue
        classes = one.get("classes", {})
        worst = max(classes, key=classes.__getitem__, default=None)
        if worst is not None and not classes[worst] <= 1:
            said = f"{name} ({one['ratio']:.2g} times its error; label {worst} alone: {classes[worst]:.2g} times)"
            worse.append(said)
        elif not one["ratio"] <= 1:
            worse.append(f"{name} ({one['ratio']:.2g} times its error)")
    if worse:
        yield f"worse than the untuned default on what it was not tuned for: {', '.join(worse)}"
    if lost:
        yield f"could not be measured on {', '.join(lost)}"
