"""Error against evaluations where eps is exact: what a solver can do with no network in its way.

The one fixed setting "adams_pc" on its grid, the defaults, and a few that are well known. Error as in `defaults`.
"""

import torch
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture

import odesampler as ods
from odesampler.noise import Streams

BUDGETS = (6, 10, 20, 50)
SAMPLES = 200
SETTINGS = {  # solver, grid
    "adams_pc on power": ("adams_pc", "power"),
    "default": (None, None),
    "ddim on log_snr": ("ddim", "log_snr"),
    "dpmpp_2m on log_snr": ("dpmpp_2m", "log_snr"),
    "unipc on log_snr": ("unipc", "log_snr"),
}


def problems() -> dict[str, ods.exact.Distribution]:
    """8 Gaussians on a ring in the plane, and 10 in 64 dimensions fitted to 8x8 digits."""
    fit = GaussianMixture(10, covariance_type="spherical", random_state=0).fit(load_digits().data / 8 - 1)
    means, variances, weights = (torch.tensor(v) for v in (fit.means_, fit.covariances_, fit.weights_))
    return {
        "ring": ods.exact.GaussianMixture.ring(std=0.05),
        "digits mixture": ods.exact.GaussianMixture(means, variances, weights),
    }


def main() -> None:
    """Print a table for each problem."""
    torch.set_num_threads(1)
    for name, problem in problems().items():
        print(f"{name}: {SAMPLES} samples; reference: dopri5, rtol 1e-10")
        for label, errors in table(problem).items():
            print(f"  {label:22}" + "".join(f"{error:>10.1e}" for error in errors), flush=True)


def table(problem: ods.exact.Distribution, budgets: tuple[int, ...] = BUDGETS) -> dict[str, list[float]]:
    """Median errors of every setting at `budgets` evaluations."""
    model = problem.model()
    x = Streams(range(SAMPLES)).draw(torch.empty(SAMPLES, *problem.shape, dtype=torch.float64))
    options = {"x": x, "state_dtype": torch.float64}
    truth = ods.sample(model, solver="dopri5", rtol=1e-10, atol=1e-12, **options).x

    def error(solver: str | None, grid: str | None, num_steps: int) -> float:
        found = ods.sample(model, solver=solver, num_steps=num_steps, grid=grid, **options).x
        return (found - truth).flatten(1).square().mean(1).sqrt().median().item()

    return {label: [error(*setting, n) for n in budgets] for label, setting in SETTINGS.items()}
