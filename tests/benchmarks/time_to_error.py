"""How long it takes to come within 1e-2 of the exact solution; and the same solver in our loop and in theirs.

1. Digits: the fewest evaluations at which the median error of a batch is 1e-2 or less, and the time they take: our
   default, diffusers' DDIM with the best of its timestep spacings, and the best of all its deterministic schedulers
   with all their sigma settings (those that did best in a screening). Errors as in `against_diffusers`, which also
   lets theirs hear the exact clock, where that is the better.
2. The same solver for as many steps: `ods.sample`, and the loop of their pipelines. Their scheduler is made before the
   clock starts, and set, as in each call of a pipeline, after.

All in float32. Time is that of one processor; rivals are measured in turn. Of times the median counts, of ratios that
over turns.
"""

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import diffusers
import torch
from torch import Tensor

import odesampler as ods

from .against_diffusers import IN_X, KEPT, SCHEDULERS, Problem, Setting, settings
from .diffusers_loop import denoised
from .side_by_side import facts, in_turn, ratio, turns

WANTED, MOST = 1e-2, 400
BATCHES = (1, 16, 64)
SAME = {"ddim": "DDIM", "heun": "Heun", "dpmpp_2m": "DPM++ 2 midpoint", "unipc": "UniPC 2 bh2"}


def main() -> None:
    """Print both tables."""
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # their tensors, given to numpy
    warnings.filterwarnings("ignore", category=FutureWarning)  # their "dpmsolver" is to go
    print(facts())
    with torch.no_grad():
        to_error(Problem("digits", 32, 400))
        for batch in BATCHES:
            equal_steps(ods.load("digits"), batch)


def to_error(problem: Problem, repeats: int = 9, among: Sequence[Setting] = tuple(settings())) -> None:
    """Print evaluations and time of each; theirs is the best `among` these."""
    count = problem.samples
    good = sorted((problem.measured(s, 12, 8, True), i, s) for i, s in enumerate(among))[:KEPT]
    choices = {
        "DDIM of diffusers": [s for s in among if s.name.startswith("DDIM")],
        "best of diffusers": [s for _, _, s in good],
    }
    n = fewest(lambda n: problem.error(problem.ours(count, num_steps=n).x, 0.0))
    x, cond = problem.x_t.float(), problem.cond
    found = {"odesampler": n}
    runs = {"odesampler": lambda n=n: ods.sample(problem.model, x=x, cond=cond, num_steps=n)}
    for name, those in choices.items():
        each = [(fewest(lambda n, s=s: theirs(problem, s, n)), i) for i, s in enumerate(those)]
        n, which = min(each)
        setting = those[which]
        name = f"{name}: {setting.name}"
        found[name] = n
        scheduler = setting.within(n, problem.prediction)
        runs[name] = lambda s=scheduler: pipeline(problem.model, s, x, cond)
    seconds = in_turn(runs, repeats)
    print(f"median error {WANTED:g}, {count} digits: evaluations, milliseconds, in brackets times ours")
    for name, took in seconds.items():
        times = took / seconds["odesampler"]
        print(f"  {name:44}{found[name]:5} ({found[name] / found['odesampler']:.1f}){1e3 * took:9.0f} ({times:.1f})")


def fewest(error: Callable[[int], float]) -> int:
    """The fewest evaluations that are good enough, found by halving."""
    good = 4
    while error(good) > WANTED:
        good *= 2
        if good > MOST:
            return good
    bad = good // 2
    while good - bad > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if error(middle) <= WANTED else (good, middle)
    return good


def theirs(problem: Problem, setting: Setting, budget: int) -> float:
    """Error of a setting of theirs, told the clock as it gives it, or the exact one."""
    return min(problem.measured(setting, budget, problem.samples, exact) for exact in (True, False))


class Timed:
    """A network, and the processor seconds that are spent in it."""

    def __init__(self, network: Callable[..., Tensor]) -> None:
        self.network, self.seconds = network, 0.0

    def __call__(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        began = time.process_time()
        answer = self.network(x_t, t, **cond)
        self.seconds += time.process_time() - began
        return answer


def equal_steps(model: ods.Model, batch: int, steps: int = 20, repeats: int = 101) -> None:
    """Print the time of ours and of theirs for the same solver and number of steps, whole and outside the network.

    The network takes nearly all of it, and not the same from run to run: what is outside tells the loops apart.
    """
    x = torch.randn(batch, *model.data_shape, generator=torch.Generator().manual_seed(0))
    cond = {"label": torch.arange(batch) % len(model.labels)}
    network = Timed(model.network)
    model = replace(model, network=network)
    for ours, name in SAME.items():
        nfe = steps if ours != "heun" else 2 * steps - 1
        scheduler = Setting(name, *SCHEDULERS[name]).within(nfe, "epsilon")
        inside: dict[str, list[float]] = {"ours": [], "theirs": []}

        def run(who: str, solve: Callable[[], object], inside: dict[str, list[float]] = inside) -> None:
            network.seconds = 0.0
            solve()
            inside[who].append(network.seconds)

        runs = {
            "ours": lambda s=ours: ods.sample(model, x=x, cond=cond, solver=s, num_steps=steps),
            "theirs": lambda s=scheduler: pipeline(model, s, x, cond),
        }
        took = turns({who: lambda w=who, s=solve: run(w, s) for who, solve in runs.items()}, repeats)
        outside = {who: [a - b for a, b in zip(took[who], inside[who][1:], strict=True)] for who in took}
        cells = "".join(
            f"{who} {1e3 * statistics.median(took[who]):.1f} ms, {1e3 * statistics.median(outside[who]):.2f} outside; "
            for who in took
        )
        ratios = [ratio(each["theirs"], each["ours"]) for each in (took, outside)]
        print(
            f"  batch {batch:3}, {ours:9} {nfe:3} evaluations: {cells}"
            f"theirs / ours {ratios[0]:.2f}, outside {ratios[1]:.2f}",
            flush=True,
        )


def pipeline(model: ods.Model, scheduler: Any, x: Tensor, cond: dict[str, Tensor]) -> Tensor:
    """A call of their pipelines, which begins by setting the timesteps anew, as ours by making a grid."""
    scheduler.set_timesteps(scheduler.num_inference_steps)
    if isinstance(scheduler, IN_X):
        x = x * scheduler.init_noise_sigma
    return denoised(scheduler, lambda x_t, t, _: model.network(x_t, t.float().expand(len(x)), **cond), x)
