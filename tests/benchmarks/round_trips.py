"""What a round trip misses and why, what is said before decoding, null-text inversion, memory of gradients: digits.

The tables of docs/inversion.md that `inversion` and `reversible` do not print.
"""

import warnings

import torch
from torch import Tensor

import odesampler as ods
from odesampler.images import to_bytes, to_float

CASES = ((20, 3.0), (20, 7.5), (50, 3.0), (50, 7.5))  # steps, guidance
GRADIENTS = ("plain", "checkpointed", "reversible")


def main() -> None:
    """Print the four tables."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", RuntimeWarning)  # of what is counted here
    for table in (sources(), estimates(), null_texts(), saved()):
        for name, cells in table.items():
            print(f"  {name:36}" + "".join(f"{cell:>26}" for cell in cells), flush=True)


def held(count: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Held-out digits as files have them, with their labels."""
    found = ods.held_out("digits")
    return to_float(to_bytes(found.images[:count])), {"label": found.labels[:count]}


def sources(
    count: int = 8, scales: tuple[float, ...] = (1.0, 3.0), steps: int = 20, iterations: int = 4
) -> dict[str, list[str]]:
    """Where the error comes from, medians: rmse, with twice the steps, rounding, growth up and down."""
    print(f"error_sources, {steps} steps, {count} images: rmse, twice the steps, rounding, growth up, down (worst)")
    model, (images, cond) = ods.load("digits"), held(count)
    rows = {}
    for scale in scales:
        for solver in ("ddim", "heun", "rk4", "dpmpp_2m"):
            how = {"cond": cond, "guidance_scale": scale, "conventions": (), "iterations": iterations}
            found = ods.error_sources(model, images, solver, steps, **how)
            parts = [f"{rms(part):.1e}" for part in (found.error, found.finer, found.rounding)]
            up, down = ((g.most.median().item(), g.most.max().item()) for g in found.growth)
            rows[f"{solver}, guidance {scale:g}"] = [*parts, f"{up[0]:.0f}", f"{down[0]:.1f} ({down[1]:.1f})"]
    return rows


def estimates(count: int = 16, budgets: tuple[int, ...] = (10, 20, 50)) -> dict[str, list[str]]:
    """Estimate divided by truth: median (least to greatest)."""
    print(f"estimate / truth at {budgets} steps, {count} images: median (least to greatest), settled")
    model, (images, labels) = ods.load("digits"), held(count)
    rows: dict[str, list[str]] = {}
    for said, cond in (("with labels", labels), ("without", None)):
        for solver in ("ddim", "heun", "rk4", "dpmpp_2m", "plms"):
            for n in budgets:
                found = ods.estimate_round_trip(model, images, solver, n, cond=cond)
                ratio = found.rmse / each_rms(ods.decode(model, found.latent).x - images)
                cell = f"{ratio.median():.2f} ({ratio.min():.2f} to {ratio.max():.2f}) {int(found.settled.sum())}"
                rows.setdefault(f"{solver}, {said}", []).append(cell)
    return rows


def null_texts(
    count: int = 16, cases: tuple[tuple[int, float], ...] = ((20, 3), (20, 7.5), (50, 3), (50, 7.5))
) -> dict:
    """Root mean square error, mean over samples: of the pivot, with null-text inversion at two rates, unguided."""
    print(f"null_text, {count} images: the pivot guided, rate 0.1, rate 0.01, without guidance")
    model, images = ods.load("digits", embedded=True), ods.held_out("digits").images[:count]
    cond = {"embedding": model.network.embed(ods.held_out("digits").labels[:count])}

    def error(latent: ods.Latent) -> str:
        return f"{each_rms(ods.decode(model, latent).x - images).mean():.3f}"

    rows = {}
    for steps, scale in cases:
        how = {"cond": cond, "guidance_scale": scale, "num_steps": steps}
        found = [ods.null_text(model, images, learning_rate=rate, **how) for rate in (0.1, 0.01)]
        plain = ods.encode(model, images, solver="ddim", num_steps=steps, cond=cond)
        rows[f"{steps} steps, guidance {scale:g}"] = [
            error(latent) for latent in (found[0].without_null(), *found, plain)
        ]
    return rows


def saved(count: int = 16, budgets: tuple[int, ...] = (10, 40)) -> dict[str, list[str]]:
    """Bytes of tensors that are kept for the backward pass."""
    print(f"gradients, {count} digits, guidance 2, reversible(base='euler'), float64: kept at {budgets} steps")
    model, cond = ods.load("digits", dtype=torch.float64), {"label": torch.arange(count) % 10}
    rows: dict[str, list[str]] = {}
    for grad in GRADIENTS:
        for n in budgets:
            kept: dict[int, int] = {}

            def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
                storage = tensor.untyped_storage()
                kept[storage.data_ptr()] = storage.nbytes()
                return tensor

            x = torch.randn(count, 1, 8, 8, dtype=torch.float64, requires_grad=True)
            how = {"solver": "reversible(base='euler')", "num_steps": n, "state_dtype": torch.float64, "grad": grad}
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                ods.sample(model, x=x, cond=cond, guidance_scale=2.0, **how)
            rows.setdefault(grad, []).append(f"{sum(kept.values()) / 1e6:.2f} MB")
    return rows


def each_rms(difference: Tensor) -> Tensor:
    """(batch,) root mean square."""
    return difference.double().flatten(1).square().mean(1).sqrt()


def rms(difference: Tensor) -> float:
    """Its median."""
    return each_rms(difference).median().item()
