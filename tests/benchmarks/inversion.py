"""What comes back: to the bit, with the pair in float32, and from one tensor with polish.

Held-out digits as files have them, 8 bits a pixel, with their labels. "8-bit-exact": every pixel of the picture is the
byte that it was.
"""

import warnings

import torch
from torch import Tensor

import odesampler as ods
from odesampler.images import to_bytes, to_float
from odesampler.registry import SOLVERS
from tests.benchmarks.exact_problems import problems

STEPS = (10, 20, 50)


def main() -> None:
    """Print the three tables."""
    torch.set_num_threads(1)
    held = ods.held_out("digits")
    images, cond = to_float(to_bytes(held.images)), {"label": held.labels}
    print(f"largest |decode(encode(x)) - x| with exact='bits', {len(images)} held-out digits, and exact problems")
    for name, errors in bits(images, cond).items():
        print(f"  {name:36}" + "".join(f"{error:>9.1g}" for error in errors), flush=True)
    print("pair, float32 state: largest and median |error|, 8-bit-exact, for each solver that can be undone exactly")
    for name, cells in pairs(images, cond).items():
        print(f"  {name:36}" + "".join(f"{c:>28}" for c in cells), flush=True)
    print("one tensor, 20 steps: 8-bit-exact, wrong and not flagged, evaluations to encode (mean, most)")
    for name, cell in polished(images, cond).items():
        print(f"  {name:36}{cell}", flush=True)


def bits(images: Tensor, cond: dict[str, Tensor], steps: tuple[int, ...] = (10, 20, 50, 100)) -> dict[str, list[float]]:
    """Largest errors at `steps`, by case."""

    def worst(model: ods.Model, x: Tensor, num_steps: int, **how: object) -> float:
        latent = ods.encode(model, x, exact="bits", num_steps=num_steps, **how)
        return (ods.decode(model, latent).x - x).abs().max().item()

    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = ods.load("digits", dtype=dtype)
        for scale in (1.0, 7.5):
            errors = [worst(model, images, n, cond=cond, guidance_scale=scale) for n in steps]
            found[f"digits, {str(dtype)[6:]}, guidance {scale:g}"] = errors
    for name, problem in problems().items():
        found[name] = [worst(problem.model(), problem.sample(200), n) for n in steps]
    return found


def pairs(images: Tensor, cond: dict[str, Tensor], steps: tuple[int, ...] = STEPS) -> dict[str, list[str]]:
    """A cell for each of `steps`, by solver."""
    model = ods.load("digits")
    found: dict[str, list[str]] = {}
    for name, maker in SOLVERS.items():
        if isinstance(maker(), ods.Invertible):
            for n in steps:
                how = {"solver": name, "num_steps": n, "cond": cond, "state_dtype": torch.float32}
                back = ods.decode(model, ods.encode(model, images, **how)).x
                error = (back - images).abs().flatten(1).amax(1)
                cell = f"{error.max():.1e} {error.median():.1e} {same(back, images).double().mean():6.1%}"
                found.setdefault(name, []).append(cell)
    return found


def polished(images: Tensor, cond: dict[str, Tensor], num_steps: int = 20) -> dict[str, str]:
    """A line for each way of encoding into one tensor, by name: warnings are of what is counted here."""
    model = ods.load("digits")
    found = {}

    def line(latent: ods.Latent) -> str:
        good = same(ods.decode(model, latent).x, images)
        flagged = torch.zeros_like(good) if latent.converged is None else ~latent.converged
        assert latent.nfe is not None
        exact, unsaid, most = good.double().mean(), int((~good & ~flagged).sum()), int(latent.nfe.max())
        return f"{exact:9.1%}{unsaid:8d}{latent.nfe.double().mean():8.0f}{most:6d}"

    for solver, encoder, sweeps in (
        ("multistep", None, 5),
        ("heun", None, 5),
        ("dpmpp_2m", None, 5),
        ("ddim", "heun", 10),
    ):
        how = {"solver": solver, "num_steps": num_steps, "cond": cond}
        latent = ods.encode(model, images, **how)
        found[f"{solver}, explicit"] = line(latent)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            found[f"{solver}, polished"] = line(ods.polish(model, images, latent, encoder=encoder, sweeps=sweeps))
            found[f"{solver}, implicit"] = line(ods.encode(model, images, convention="implicit", **how))
    return found


def same(back: Tensor, images: Tensor) -> Tensor:
    """(batch,) whether every byte is."""
    return (to_bytes(back) == to_bytes(images)).flatten(1).all(1)
