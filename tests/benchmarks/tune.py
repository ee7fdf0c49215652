"""Tuned samplers against the best of diffusers and our best untuned: medians over latents that nothing was tuned on.

    python -m tests.benchmarks tune [digits|emoji|gmm64|kde64|ring|exact] [steps ...]
    python -m tests.benchmarks tune held_out [steps ...]        digits 0 to 6 tuned on; 7, 8, 9 and guidance 3 held out

Theirs: every deterministic scheduler with every sigma setting, as in `against_diffusers`. Ours untuned: the best of the
default and a few well-known ones on their default grids. Reference: RK4. The state is float64; the clock is that of the
processor, one thread. The seeds of the tuned latents are others than those that are measured.
"""

import sys
import warnings

import diffusers
import torch
from sklearn.datasets import load_digits

import odesampler as ods
from odesampler import defaults
from odesampler.tuning.tune import SAMPLES as SAMPLES_TUNED
from tests.benchmarks import against_diffusers, exact_problems

BUDGETS = {"digits": (5, 6, 8, 10, 20), "emoji": (6, 10), "exact": (5, 6, 8, 10, 20)}
SAMPLES = {
    "digits": (32, 8, 400),
    "emoji": (16, 3, 120),
    "exact": (64, 16, 400),
}  # measured, screening; reference
FEWER = {"emoji": {"num_samples": 48, "iterations": 150, "reference_steps": 100}}  # 23 times the network of digits
TRAINED = ("digits", "emoji")
SEED = 100_000  # of the first latent that is tuned on
KNOWN, OTHERS, GUIDANCE = range(7), [*[7, 8, 9] * 5, 7], 3.0  # classes tuned on; a class and a scale held out


def models() -> dict[str, ods.Model]:
    """The embedded digits, and problems whose eps is exact."""
    mixtures = exact_problems.problems()
    data = torch.from_numpy(load_digits().data[:500] / 8 - 1)
    kde = ods.exact.Empirical(data, bandwidth=0.1)
    return {
        "digits": ods.load("digits", dtype=torch.float32),
        "emoji": ods.load("emoji", dtype=torch.float32),
        "gmm64": mixtures["digits mixture"].model(),
        "kde64": kde.model(),
        "ring": mixtures["ring"].model(),
    }


def main() -> None:
    """Print a row for each problem and budget that is named after `tune`; all without any."""
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # their tensors, given to numpy
    warnings.filterwarnings("ignore", category=FutureWarning)  # their "dpmsolver" is to go
    named = sys.argv[2:] if sys.argv[1:2] == ["tune"] else []
    steps = [int(word) for word in named if word.isdigit()]
    if "held_out" in named:
        for num_steps in steps or (5, 10, 20):
            print(*held_out(num_steps), sep="\n", flush=True)
        return
    known = models()
    asked = [word for word in named if not word.isdigit()] or ["digits", "exact"]
    for name in asked:
        kind = name if name in TRAINED else "exact"
        for one in [m for m in known if m not in TRAINED] if name == "exact" else [name]:
            samples, few, reference = SAMPLES[kind]
            with torch.no_grad():
                problem = against_diffusers.Problem(one, samples, reference, known[one])
            for num_steps in steps or BUDGETS[kind]:
                print(row(problem, num_steps, few, **FEWER.get(one, {})), flush=True)


def row(problem: against_diffusers.Problem, num_steps: int, few: int, **how: int) -> str:
    """One line: errors of the best of theirs, of our best untuned, of the default and of the tuned; their ratios."""
    model = problem.model
    with torch.no_grad():
        [(theirs, scheduler), *_] = against_diffusers.best_of_theirs(problem, num_steps, few)
        untuned = against_diffusers.best_of_ours(problem, num_steps)
    how = {"num_samples": SAMPLES_TUNED, **how}
    cond = {"label": [i % len(model.labels) for i in range(how["num_samples"])]} if model.labels else None
    recipe = ods.tune(model, num_steps, seed=SEED, cond=cond, held_out=(), **how)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # where the fit was refused the row says so
        found = problem.ours(problem.samples, solver=recipe)
    what = "untuned, on the best grid raced" if recipe.measured["refused"] else "fitted"
    tuned, (ours, solver) = problem.error(found.x, 0.0), min(untuned, key=lambda one: one[0])
    default = next(error for error, spec in untuned if spec is None)
    minutes, other = recipe.measured["seconds"] / 60, solver or defaults.solver_for(num_steps, adaptive=False)
    return (
        f"| {problem.name} | {num_steps} | {theirs:.2e} ({scheduler}) | {ours:.2e} (`{other}`) | {default:.2e} | "
        f"{tuned:.2e} ({what}) | {tuned / theirs:.2f} | {tuned / ours:.2f} | {minutes:.1f} |"
    )


def held_out(num_steps: int, **how: int) -> list[str]:
    """A line for what was tuned for and for each setting held out: errors of the default and of the recipe.

    The ratio is the geometric mean over the samples; in brackets the worst class.
    """
    how = {"num_samples": SAMPLES_TUNED, **how}
    cond = {"label": [KNOWN[i % len(KNOWN)] for i in range(how["num_samples"])]}
    others = [{"cond": {"label": OTHERS}}, {"guidance_scale": GUIDANCE}]
    others.append(others[0] | others[1])
    model = models()["digits"]
    recipe = ods.tune(model, num_steps, seed=SEED, cond=cond, guidance_scale=1.0, held_out=others, **how)
    found, kind = recipe.measured, "untuned, the best of the race" if recipe.measured["refused"] else "fitted"
    test = found["test"], found["default"]["test"]
    ratio = test[0]["geometric_mean"] / test[1]["geometric_mean"]
    rows = [
        f"| {num_steps} ({kind}) | none: latents not seen | {test[1]['median']:.2e} | {test[0]['median']:.2e} | "
        f"{ratio:.2f} |"
    ]
    for name, one in found["held_out"].items():
        label, worst = max(one["classes"].items(), key=lambda pair: pair[1])
        medians = f"{one['default']['median']:.2e} | {one['tuned']['median']:.2e}"
        rows.append(f"| {num_steps} | {name} | {medians} | {one['ratio']:.2f} (label {label}: {worst:.2f}) |")
    return rows
