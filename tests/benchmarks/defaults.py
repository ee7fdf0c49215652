"""Error against evaluations for every pair of solver and grid on the embedded model: what the defaults are chosen by.

Error: per-sample root mean square difference from a tight reference solve of the same ODE from the same latents, median
over samples, float64. The reference is checked against itself at half its steps.
"""

import torch

import odesampler as ods

SOLVERS = {"ddim": 1, "heun": 2, "rk4": 4}
GRIDS = ("log_snr", "karras", "linspace", "trailing", "leading", "quadratic")
BUDGETS = (10, 20, 50, 100)
SAMPLES = 30


def main() -> None:
    """Print a table for classes 0 .. 9 in turn, guidance off."""
    torch.set_num_threads(1)
    model = ods.load("digits", dtype=torch.float64)
    options = {"cond": {"label": torch.arange(SAMPLES) % 10}, "state_dtype": torch.float64}

    def solve(solver: str, num_steps: int, grid: str) -> ods.Solution:
        return ods.sample(model, SAMPLES, solver=solver, num_steps=num_steps, grid=grid, **options)

    def error(x: torch.Tensor, y: torch.Tensor) -> float:
        return (x - y).flatten(1).square().mean(1).sqrt().median().item()

    truth = solve("rk4", 400, "log_snr").x
    print(f"reference: rk4, 400 steps; at 200 it differs by {error(solve('rk4', 200, 'log_snr').x, truth):.1e}")
    print("solver  grid      " + "".join(f"{f'about {b} evaluations':>22}" for b in BUDGETS))
    for solver, cost in SOLVERS.items():
        for grid in GRIDS:
            cells = []
            for budget in BUDGETS:
                found = solve(solver, max(1, (budget - 1) // cost + 1), grid)
                cells.append(f"{error(found.x, truth):.1e} ({int(found.nfe[0])})")
            print(f"{solver:7} {grid:10}" + "".join(f"{c:>22}" for c in cells), flush=True)
