"""The reversible default, ALF: sampling against DPM-Solver++ 2M, under guidance, encoding, and where eps is exact.

Errors are medians over samples of the root mean square difference from a tight solve of the same ODE, all at equal
evaluations. DPM-Solver++ 2M gets the best of `GRIDS` at each budget, chosen on the very samples that it is judged on.
"""

import warnings

import torch
from torch import Tensor

import odesampler as ods
from tests.benchmarks.exact_problems import problems

BUDGETS = (10, 20, 50)
MODELS = {"digits": (32, 32, 300), "emoji": (8, 4, 120)}  # samples, held-out images, steps of the reference
GRIDS = (
    *(f"polyexponential(rho={rho}, last={last})" for rho in (0.9, 1.0, 1.1, 1.2) for last in (0.0101, 0.02, 0.05, 0.1)),
    *(f"power(rho={rho}, variable='t', last={last})" for rho in (1.5, 2, 2.5) for last in (0.0101, 0.02, 0.03, 0.05)),
    *(f"karras(rho={rho}, last={last})" for rho in (5, 7) for last in (0.0101, 0.03)),
    "ays",
)
IN_ANGLE = ("alf(coordinate='angle', damping=1.0, scale=1.0)", "angle")
DAMPINGS = (1.0, 2.0, 3.0, 10.0, 100.0)


def main() -> None:
    """Print all tables."""
    torch.set_num_threads(1)
    for name, (samples, images, reference) in MODELS.items():
        model = ods.load(name)
        sampling(model, samples, reference)
        guided(model, max(4, samples // 4), reference)
        encoding(model, images, reference)
    for name, problem in {**problems(), "image-like": ImageLike(), "guided": Guided()}.items():
        exact(name, problem)


def rms(difference: Tensor) -> Tensor:
    """(batch,) root mean square."""
    return difference.flatten(1).square().mean(1).sqrt()


def sampling(model: ods.Model, samples: int, reference: int, budgets: tuple[int, ...] = BUDGETS) -> None:
    """ALF and the best of DPM-Solver++ 2M."""
    how = {"cond": {"label": torch.arange(samples) % len(model.labels)}, "state_dtype": torch.float64, "seed": 5000}
    truth = ods.sample(model, samples, solver="rk4", num_steps=reference, grid="log_snr", **how).x
    print(f"{model.name}, sampling: {samples} samples; reference: rk4, {reference} steps")
    for n in budgets:
        ours = ods.sample(model, samples, solver="alf", num_steps=n, **how)
        error, cost = rms(ours.x - truth).median(), int(ours.nfe[0])
        angle = _error(model, samples, IN_ANGLE[0], n, IN_ANGLE[1], truth, how)
        best = min((_error(model, samples, "dpmpp_2m", n, grid, truth, how), grid) for grid in GRIDS)
        print(
            f"  {n:3}  {error:.2e} ({cost})   in the angle {angle:.2e}   dpmpp_2m {best[0]:.2e} on {best[1]}",
            flush=True,
        )


def _error(model: ods.Model, samples: int, solver: str, n: int, grid: str | None, truth: Tensor, how: dict) -> float:
    x = ods.sample(model, samples, solver=solver, num_steps=n, grid=grid, **how).x
    return rms(x - truth).median().item()


def guided(model: ods.Model, samples: int, reference: int) -> None:
    """Median and worst error at two scales of guidance, for several dampings."""
    for scale in (2.5, 7.5):
        labels = {"label": torch.arange(samples) % len(model.labels)}
        how = {"cond": labels, "state_dtype": torch.float64, "seed": 5000, "guidance_scale": scale}
        truth = ods.sample(model, samples, solver="rk4", num_steps=reference, grid="log_snr", **how).x
        for n in BUDGETS:
            cells = []
            for solver in ("alf", "alf(damping=10.0)", "alf(damping=1000.0)", "dpmpp_2m"):
                error = rms(ods.sample(model, samples, solver=solver, num_steps=n, **how).x - truth)
                cells.append(f"{solver} {error.median():.1e} worst {error.max():.1e}")
            print(f"  guidance {scale}, {n:3}: {'   '.join(cells)}", flush=True)


def encoding(model: ods.Model, count: int, reference: int, budgets: tuple[int, ...] = BUDGETS) -> None:
    """What damping costs: error and normality of the latents, round trips with and without the second tensor."""
    held = ods.held_out(model.name)
    images, cond = held.images[:count].double(), {"label": held.labels[:count]}
    truth = ods.encode(model, images, solver="rk4", num_steps=reference, grid="log_snr", cond=cond).x
    print(f"{model.name}, encoding: {count} held-out images; latents of the exact solution: {_normality(truth)}")
    for n in budgets:
        for damping in DAMPINGS:
            solver = f"alf(damping={damping})"
            latent = ods.encode(model, images, solver=solver, num_steps=n, cond=cond)
            single = ods.encode(model, images, solver=solver, num_steps=n, cond=cond, state_dtype=torch.float32)
            pair = (ods.decode(model, single).x - images).abs().max()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="this latent has no memory")
                alone = rms(ods.decode(model, latent.without_memory()).x - images).median()
            error = rms(latent.x - truth).median()
            print(
                f"  {n:3} D {damping:5g}  error {error:.3f}  {_normality(latent.x)}  pair {pair:.1e}  one {alone:.1e}"
            )


def _normality(latents: Tensor) -> str:
    z = latents.flatten().sort().values
    normal, n = torch.special.ndtr(z), len(z)
    steps = torch.arange(n + 1, dtype=z.dtype) / n
    distance = torch.maximum((normal - steps[:-1]).max(), (steps[1:] - normal).max())  # Kolmogorov-Smirnov
    kurtosis = ((z - z.mean()) / z.std()).pow(4).mean() - 3
    return f"mean {z.mean():+.3f} std {z.std():.3f} kurtosis {kurtosis:+.2f} KS {distance:.3f}"


class ImageLike(ods.exact.Distribution):
    """Eight Gaussians in 8x8 = 64 dimensions with the spectrum of pictures, written in the basis of its frequencies.

    Standard deviation at frequency (i, j): 1 / (1 + i^2 + j^2), times 0.25 .. 1 by component, and 0.008 at least; the
    means are drawn with the first of these. The rms of an error is the same in any orthonormal basis.
    """

    shape = (64,)

    def __init__(self) -> None:
        super().__init__()
        f = torch.arange(8, dtype=torch.float64)
        spectrum = (1 / (1 + f[:, None] ** 2 + f[None, :] ** 2)).flatten()
        generator = torch.Generator().manual_seed(0)
        self.means = spectrum * torch.randn(8, 64, generator=generator, dtype=torch.float64)
        self.variances = (spectrum * torch.linspace(0.25, 1, 8, dtype=torch.float64)[:, None]).clamp(min=0.008) ** 2

    def eps(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """sum_k p_k sigma (x - m_k) / (v_k + sigma^2), p_k the posterior weights."""
        s = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1)
        away, total = x[:, None] - self.means, self.variances + s[..., None] ** 2
        log_weights = -0.5 * (away.square() / total + total.log()).sum(2)
        return s * (log_weights.softmax(1)[..., None] * away / total).sum(1)

    def sample(self, num_samples: int, seed: int = 0) -> Tensor:
        """Data, (num_samples, 64)."""
        generator = torch.Generator().manual_seed(seed)
        which = torch.randint(8, (num_samples,), generator=generator)
        noise = torch.randn(num_samples, 64, generator=generator, dtype=torch.float64)
        return self.means[which] + self.variances[which].sqrt() * noise


class Guided(ods.exact.Distribution):
    """The digits mixture, guided at scale 7.5 towards its first component."""

    shape = (64,)

    def __init__(self) -> None:
        super().__init__()
        self.whole = problems()["digits mixture"]
        self.one = ods.exact.GaussianMixture(self.whole.means[:1], self.whole.variances[:1])

    def eps(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """eps_u + 7.5 (eps_c - eps_u)."""
        unguided = self.whole.eps(x, sigma)
        return unguided + 7.5 * (self.one.eps(x, sigma) - unguided)

    def sample(self, num_samples: int, seed: int = 0) -> Tensor:
        """Data of the component, (num_samples, 64)."""
        return self.one.sample(num_samples, seed)


def exact(name: str, problem: ods.exact.Distribution, samples: int = 128) -> None:
    """The default, ALF in the angle on the grid of the angle, and the best of DPM-Solver++ 2M."""
    model = problem.model()
    how = {"state_dtype": torch.float64, "seed": 5000}
    truth = ods.sample(model, samples, solver="dopri5", rtol=1e-9, atol=1e-11, **how).x
    print(f"{name}: {samples} samples; reference: dopri5, rtol 1e-9")
    settings = {"alf": ("alf", None), "alf(damping=10.0)": ("alf(damping=10.0)", None), "alf in the angle": IN_ANGLE}
    for label, (solver, grid) in settings.items():
        errors = [_error(model, samples, solver, n, grid, truth, how) for n in BUDGETS]
        print(f"  {label:18}" + "".join(f"{e:>10.1e}" for e in errors), flush=True)
    best = [min(_error(model, samples, "dpmpp_2m", n, grid, truth, how) for grid in GRIDS) for n in BUDGETS]
    print(f"  {'dpmpp_2m, best':18}" + "".join(f"{e:>10.1e}" for e in best), flush=True)


if __name__ == "__main__":
    main()
