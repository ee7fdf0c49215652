"""What the loop costs around a network that costs nothing: tensor operations, memory traffic, time.

Ours is the whole of `ods.sample`, theirs the loop of their pipelines; k-diffusion's loops are written here from the
published formulas (Karras et al. 2022, Algorithm 1; Lu et al. 2022, DPM-Solver++, Algorithm 2), without its look-up of
the clock. "eps free": our loop and driver are asked about eps itself, as torchdiffeq is, which takes the same grid and
keeps the ends only.

Operations and traffic are those of one more evaluation, from two numbers of steps, so that setting up is apart: "once".
Traffic is in states: how often an array as large as the state is read or written. Time is that of a whole solve,
setting up included, divided by its evaluations.

Waits: how often a value is read that would be on the device: the state, the network's answers, timesteps, which Stable
Diffusion's pipelines put there (DDIMPipeline does not), others' sigmas, and what is computed from these. A number on
the host may be read for nothing. Of the adaptive loops they are counted a round, in which Dormand-Prince asks six
times, without our driver: it looks for NaN among the answers, on a device once when all is done
(tests/test_loop_cost.py).
"""

import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import torch
import torchdiffeq
from torch import Tensor
from torch._inductor import config as inductor
from torch._inductor.utils import run_and_get_code

import odesampler as ods
from odesampler import drive
from odesampler.integrate import OnGrid, solve
from odesampler.program import State
from odesampler.registry import find_solver
from tests.counting import Counted, on_device
from tests.problems import by_hand, mixture, noise

from .diffusers_loop import denoised
from .side_by_side import facts, in_turn

STEPS = 50
FUSED_STEPS = 20  # each is compiled
SCHEDULE = ods.VP.linear()
SHAPES = ((1, 3, 32, 32), (64, 3, 32, 32))
THEIRS: dict[str, tuple[Any, dict[str, Any]]] = {
    "DDIM": (diffusers.DDIMScheduler, {"clip_sample": False}),
    "Euler": (diffusers.EulerDiscreteScheduler, {}),
    "Heun": (diffusers.HeunDiscreteScheduler, {}),
    "DPM-Solver++ 2M": (diffusers.DPMSolverMultistepScheduler, {}),
    "UniPC": (diffusers.UniPCMultistepScheduler, {}),
}
SAME = {  # ours: theirs of diffusers and of k-diffusion, the same method each
    "ddim": ("DDIM", "Euler", "k-diffusion euler"),
    "heun": ("Heun", "k-diffusion heun"),
    "dpmpp_2m": ("DPM-Solver++ 2M", "k-diffusion dpmpp_2m"),
    "unipc": ("UniPC",),
}
ENDS = (20.0, 0.01)  # of the adaptive loops, in sigma
GRIDS = ("euler", "midpoint", "rk4")  # of torchdiffeq, whose rk4 is the 3/8 rule: as many stages


class Free:
    """A network, or eps, that costs nothing, and counts. No answer lies where the one before does."""

    def __init__(self, like: Tensor) -> None:
        self.answers, self.evaluations = (torch.zeros_like(like), torch.zeros_like(like)), 0

    def __call__(self, *_: Any, **__: Any) -> Tensor:
        self.evaluations += 1
        return self.answers[self.evaluations % 2]


Run = Callable[[Free, Tensor, int], object]  # a solve, given the network, where to start, and the number of steps


class Cost(NamedTuple):
    """What a loop costs: of one more evaluation, and once."""

    operations: float
    traffic: float  # in states
    waits: float
    once: float  # operations


def cost_of(run: Run, x: Tensor) -> Cost:
    """Counted, once what is kept from solve to solve is there."""
    short, long = (counted(run, x, num_steps) for num_steps in (STEPS, 2 * STEPS))
    more = long.evaluations - short.evaluations
    operations = (len(long.names) - len(short.names)) / more
    traffic = (long.traffic - short.traffic) / more
    waits = (len(long.device_waits) - len(short.device_waits)) / more
    return Cost(operations, traffic, waits, len(short.names) - operations * short.evaluations)


def counted(run: Run, x: Tensor, num_steps: int) -> Counted:
    """A solve, counted after one that was not."""
    run(Free(x), x, num_steps)
    network, counts = Free(x), Counted(x.numel())
    on_device(x, *network.answers)
    with counts:
        run(network, x, num_steps)
    counts.evaluations = network.evaluations
    return counts


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # their tensors, given to numpy
    print(facts())
    with torch.no_grad():
        for shape in SHAPES:
            table(shape)
            fused(shape)
        adaptive()


def fused_cost(solver: str, x: Tensor) -> Cost:
    """What an evaluation costs in `ods.capture(..., fuse=True)`: kernels, and the arrays that they load and store.

    Read from the kernels as torch writes them for a CPU: each goes over the state in one loop. The first kernel asks
    the first question and the last is the step into zero: one more evaluation costs what those in the middle do.
    """
    with inductor.patch(force_disable_caches=True), warnings.catch_warnings():  # else they are not written again
        warnings.simplefilter("ignore", UserWarning)  # that caches are disabled
        _, sources = run_and_get_code(lambda: drawn_fused(solver, x, 6))
    kernels = [k for source in sources for k in re.findall(r"cpp_pybinding\(.*?'''\)", source, re.DOTALL)]
    moved = [len(re.findall(r"loadu\(in_ptr|\.store\(out_ptr", k)) for k in kernels]
    assert all(k.count("for(int64_t") == 1 for k in kernels)
    middle = moved[4:-2]
    return Cost(len(kernels) / len(sources), sum(middle) / len(middle), 0.0, 0.0)


def drawn_fused(solver: str, x: Tensor, num_steps: int) -> ods.Captured:
    """A fused solve around a network that costs next to nothing, each of whose answers is an array of its own."""
    model = ods.Model(lambda x_t, t: torch.zeros_like(x_t), SCHEDULE, data_shape=tuple(x.shape[1:]))
    return ods.capture(model, len(x), solver=solver, num_steps=num_steps, fuse=True)


def table(shape: tuple[int, ...], repeats: int = 9) -> None:
    """Print what each loop costs, and in brackets how many times ours of the same method, which is above."""
    print(f"state {shape}; {STEPS} steps for the time")
    heads = f"{'operations':>14}{'traffic':>14}{'microseconds':>16}{'waits':>8}{'once, operations':>18}"
    print(f"  {'an evaluation costs':24}{heads}")
    x = torch.randn(shape)
    for runs in rivals().values():
        seconds = in_turn({name: lambda run=run: run(Free(x), x, STEPS) for name, run in runs.items()}, repeats)
        first: tuple[float, ...] = ()
        for name, run in runs.items():
            cost = cost_of(run, x)
            micro = 1e6 * seconds[name] / counted(run, x, STEPS).evaluations
            found = (cost.operations, cost.traffic, micro)
            first = first or found
            cells = [f"{v:.1f} ({v / f:.1f})" for v, f in zip(found, first, strict=True)]
            print(
                f"  {name:24}{cells[0]:>14}{cells[1]:>14}{cells[2]:>16}{cost.waits:8.1f}{cost.once:18.0f}", flush=True
            )


def fused(shape: tuple[int, ...], solvers: tuple[str, ...] = tuple(SAME), repeats: int = 9) -> None:
    """Print what fused solves cost, beside the same solves as they are; the times are of replays."""
    print(f"state {shape}; ods.capture with and without fuse=True, {FUSED_STEPS} steps for the time")
    x = torch.randn(shape)
    for solver in solvers:
        model = ods.Model(lambda x_t, t: torch.zeros_like(x_t), SCHEDULE, data_shape=shape[1:])
        plain = ods.capture(model, len(x), solver=solver, num_steps=FUSED_STEPS)
        together = drawn_fused(solver, x, FUSED_STEPS)
        seconds = in_turn({"plain": lambda p=plain: p(x=x), "fused": lambda f=together: f(x=x)}, repeats)
        plain_us, fused_us = (1e6 * seconds[name] / plain(x=x).calls for name in ("plain", "fused"))
        cost = fused_cost(solver, x[:1, :, :8, :8])  # the kernels are the same, and simpler to read
        print(
            f"  {solver:24}{cost.operations:8.1f}{cost.traffic:8.1f}{fused_us:10.1f} us, plain {plain_us:.1f}",
            flush=True,
        )


def adaptive(batch: int = 16, tolerance: float = 1e-3) -> None:
    """Print how often Dormand-Prince waits, and its rounds: ours and torchdiffeq's, on a mixture of Gaussians."""
    print("adaptive, Dormand-Prince: rounds, waits, waits a round")
    problem = mixture()
    for name, run in {"ours": ours_by_hand, "torchdiffeq": of_torchdiffeq_adaptive}.items():
        x = on_device(20 * noise(batch))
        counts = Counted(x.numel())

        def eps(x: Tensor, sigma: Tensor, counts: Counted = counts) -> Tensor:
            counts.evaluations += 1
            return problem.eps(x, sigma)

        with counts:
            run(eps, x, tolerance)
        rounds, waits = (counts.evaluations - 2) // 6, len(counts.device_waits)  # two to find the first step
        print(f"  {name:24}{rounds:8}{waits:8}{waits / rounds:8.2f}", flush=True)


def ours_by_hand(eps: Callable[[Tensor, Tensor], Tensor], x: Tensor, tolerance: float) -> None:
    """`ods.Adaptive(ods.Dopri5())`, answered without the driver."""
    by_hand(solve(ods.Adaptive(ods.Dopri5(), tolerance, tolerance), State(x), ENDS), eps)


def of_torchdiffeq_adaptive(eps: Callable[[Tensor, Tensor], Tensor], x: Tensor, tolerance: float) -> None:
    """One step for all; the times are on the device."""
    ends = on_device(torch.tensor(ENDS, dtype=x.dtype))
    torchdiffeq.odeint(lambda sigma, x: eps(x, sigma), x, ends, rtol=tolerance, atol=tolerance, method="dopri5")


def rivals() -> dict[str, dict[str, Run]]:
    """Ours, by name, and the loops that it is compared with, ours first."""
    known: dict[str, Run] = {f"k-diffusion {f.__name__}": of_k_diffusion(f) for f in (euler, heun, dpmpp_2m)}
    known |= {name: of_diffusers(name) for name in THEIRS}
    verbs = {ours: {ours: of_ours(ours)} | {t: known[t] for t in theirs} for ours, theirs in SAME.items()}
    loops = {f"{m}, eps free": {f"{m}, eps free": of_driver(m), f"torchdiffeq {m}": of_torchdiffeq(m)} for m in GRIDS}
    return verbs | loops


def of_ours(solver: str) -> Run:
    """`ods.sample`."""

    def run(network: Free, x: Tensor, num_steps: int) -> object:
        model = ods.Model(network, SCHEDULE)
        return ods.sample(model, x=x, solver=solver, num_steps=num_steps)

    return run


def of_driver(solver: str) -> Run:
    """Our loop and driver, where `network` is eps itself."""

    def run(network: Free, x: Tensor, num_steps: int) -> object:
        return drive.run(solve(OnGrid(find_solver(solver)), State(x), sigmas(num_steps)[:-1]), model=network)

    return run


def of_diffusers(name: str) -> Run:
    """A scheduler, called as its pipelines do."""
    kind, options = THEIRS[name]

    def run(network: Free, x: Tensor, num_steps: int) -> object:
        scheduler = kind(**options)
        scheduler.set_timesteps(num_steps)
        return denoised(scheduler, network, x * scheduler.init_noise_sigma)

    return run


def of_torchdiffeq(method: str) -> Run:
    """`odeint` on our grid."""

    def run(network: Free, x: Tensor, num_steps: int) -> object:
        grid = on_device(torch.tensor(sigmas(num_steps)[:-1]))
        options = {"grid_constructor": lambda f, y, t: grid}
        return torchdiffeq.odeint(network, x, grid[[0, -1]], method=method, options=options)

    return run


def of_k_diffusion(sampler: Callable[[Callable[..., Tensor], Tensor, Tensor], Tensor]) -> Run:
    """A sampler of theirs around the network as their wrapper has it: c_in, and the denoised image."""

    def run(network: Free, x: Tensor, num_steps: int) -> object:
        def image(x: Tensor, sigma: Tensor) -> Tensor:
            column = sigma[(...,) + (None,) * (x.ndim - 1)]
            return x - network(x * (1 + column**2) ** -0.5, sigma) * column

        return sampler(image, x, on_device(torch.tensor(sigmas(num_steps))))

    return run


def euler(denoised: Callable[..., Tensor], x: Tensor, sigmas: Tensor) -> Tensor:
    """Euler, on d = (x - denoised) / sigma."""
    each = x.new_ones(len(x))
    for i in range(len(sigmas) - 1):
        d = (x - denoised(x, sigmas[i] * each)) / sigmas[i]
        x = x + d * (sigmas[i + 1] - sigmas[i])
    return x


def heun(denoised: Callable[..., Tensor], x: Tensor, sigmas: Tensor) -> Tensor:
    """Heun, Euler at the end."""
    each = x.new_ones(len(x))
    for i in range(len(sigmas) - 1):
        d = (x - denoised(x, sigmas[i] * each)) / sigmas[i]
        dt = sigmas[i + 1] - sigmas[i]
        if sigmas[i + 1] == 0:
            x = x + d * dt
        else:
            ahead = x + d * dt
            d1 = (ahead - denoised(ahead, sigmas[i + 1] * each)) / sigmas[i + 1]
            x = x + (d + d1) / 2 * dt
    return x


def dpmpp_2m(denoised: Callable[..., Tensor], x: Tensor, sigmas: Tensor) -> Tensor:
    """DPM-Solver++ 2M in lambda = -log sigma."""
    each, before = x.new_ones(len(x)), None
    for i in range(len(sigmas) - 1):
        now = denoised(x, sigmas[i] * each)
        here, there = -sigmas[i].log(), -sigmas[i + 1].log()
        h, wanted = there - here, now
        if before is not None and sigmas[i + 1] != 0:
            r = (here + sigmas[i - 1].log()) / h
            wanted = (1 + 1 / (2 * r)) * now - 1 / (2 * r) * before
        x = sigmas[i + 1] / sigmas[i] * x - torch.expm1(-h) * wanted
        before = now
    return x


def sigmas(num_steps: int) -> tuple[float, ...]:
    """The grid of all."""
    return ods.make_grid("log_snr", SCHEDULE, num_steps, into_zero=True).sigmas
