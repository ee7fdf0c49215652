"""Error against evaluations for every pair of solver and grid on the embedded models: what the defaults are chosen by.

Error: per-sample root mean square difference from a tight reference solve of the same ODE from the same latents, median
over samples, float64. The reference is checked against itself at half its steps.
"""

import torch

import odesampler as ods

SOLVERS = {"ddim": 1, "heun": 2, "rk4": 4}
GRIDS = ("log_snr", "karras", "linspace", "trailing", "leading", "quadratic")
BUDGETS = (10, 20, 50, 100)
MODELS = {"digits": (30, 400), "emoji": (8, 150)}  # samples, steps of the reference


def main() -> None:
    """Print a table for each embedded model."""
    torch.set_num_threads(1)
    for name, (samples, reference) in MODELS.items():
        table(name, BUDGETS, samples, reference)


def table(name: str, budgets: tuple[int, ...], samples: int, reference: int) -> None:
    """Print the table of one model, its classes in turn, guidance off."""
    model = ods.load(name, dtype=torch.float64)
    options = {"cond": {"label": torch.arange(samples) % len(model.labels)}, "state_dtype": torch.float64}

    def solve(solver: str, num_steps: int, grid: str) -> ods.Solution:
        return ods.sample(model, samples, solver=solver, num_steps=num_steps, grid=grid, **options)

    def error(x: torch.Tensor, y: torch.Tensor) -> float:
        return (x - y).flatten(1).square().mean(1).sqrt().median().item()

    truth, half = (solve("rk4", n, "log_snr").x for n in (reference, reference // 2))
    print(
        f"{name}: {samples} samples; reference: rk4, {reference} steps, half of them differ by {error(half, truth):.1e}"
    )
    print("solver  grid      " + "".join(f"{f'about {b} evaluations':>22}" for b in budgets))
    for solver, cost in SOLVERS.items():
        for grid in GRIDS:
            cells = []
            for budget in budgets:
                found = solve(solver, max(1, (budget - 1) // cost + 1), grid)
                cells.append(f"{error(found.x, truth):.1e} ({int(found.nfe[0])})")
            print(f"{solver:7} {grid:10}" + "".join(f"{c:>22}" for c in cells), flush=True)
