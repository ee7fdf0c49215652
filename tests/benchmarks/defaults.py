"""Error against evaluations for pairs of solver and grid on the embedded models: what the defaults are chosen by.

Error: per-sample root mean square difference from a tight reference solve of the same ODE from the same latents, median
over samples; the reference is checked against itself at half its steps. All of it is `ods.compare`.
"""

import torch

import odesampler as ods
from odesampler import defaults
from odesampler.registry import find_solver

BUDGETS = (6, 10, 20, 50)
SOLVERS = ("ddim", "dpmpp_2m", "deis", "unipc", "multistep", "heun", "rk4")
GRIDS = ("log_snr", "karras", "linspace", "trailing")
MODELS = {"digits": (32, torch.float64, 400), "emoji": (16, torch.float32, 150)}  # samples, network, reference steps


def main() -> None:
    """Print a table for each embedded model."""
    torch.set_num_threads(1)
    for name, (samples, dtype, reference) in MODELS.items():
        table(ods.load(name, dtype=dtype), BUDGETS, samples, reference)


def table(model: ods.Model, budgets: tuple[int, ...], samples: int, reference: int) -> None:
    """Print the table of one model, its classes in turn, guidance off."""
    how = {"cond": {"label": torch.arange(samples) % len(model.labels)}, "num_samples": samples, "max_batch": 256}
    known: ods.Comparison | None = None
    rows: dict[tuple[str, str], list[str]] = {}
    for budget in budgets:
        for solver in (None, *SOLVERS):
            spec = solver or defaults.solver_for(budget, adaptive=False)
            cost = find_solver(spec).cost
            steps = max(n for n in range(1, budget + 1) if cost(n - 1) + 1 <= budget)
            for grid in (None,) if solver is None else (None, *GRIDS):
                known = ods.compare(model, spec, steps, grid=grid, reference=known, reference_steps=reference, **how)
                cells = rows.setdefault((solver or "default", grid or "default"), [])
                cells += [f"{c.median:.1e} ({int(c.nfe[0])})" for c in known.cells] or ["fails"]
    print(f"{model.name}: {samples} samples; reference: {known.reference}")
    print("solver     grid      " + "".join(f"{f'up to {b} evaluations':>22}" for b in budgets))
    for (solver, grid), cells in rows.items():
        print(f"{solver:10} {grid:10}" + "".join(f"{c:>22}" for c in cells), flush=True)
