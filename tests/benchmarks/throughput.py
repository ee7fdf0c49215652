"""Samples per second against the size of the batch and the number of processes; memory against steps and batch.

Digits, the default solver, 20 steps, one thread a process. Processes share a run of `ods.sample_many` by rank and
world, as on several machines. Memory: bytes of tensors alive at once in `ods.sample`, network included, at the most.
"""

import subprocess
import sys
import tempfile
import time

import torch

import odesampler as ods
from tests.counting import Live

from .side_by_side import facts, in_turn

STEPS = 20
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SHARE = """
import sys, time, torch, odesampler as ods
torch.set_num_threads(1)
rank, world, count, folder = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
model = ods.load("digits")
ods.sample(model, 1, num_steps=2)
print("ready", flush=True)
sys.stdin.readline()
ods.sample_many(model, count, folder, shard_size=64, num_steps=20, rank=rank, world=world)
"""


def main() -> None:
    """Print the three tables."""
    torch.set_num_threads(1)
    print(facts())
    with torch.no_grad():
        batches(BATCHES)
        memory((5, 20, 80), (1, 16, 64))
    processes((1, 2), 1024)


def processes(worlds: tuple[int, ...], count: int, repeats: int = 3) -> None:
    """Print samples a second of each number of processes, the best of a few runs in turn: waiting only ever adds."""
    took = [[shared(world, count) for world in worlds] for _ in range(repeats)]
    for world, seconds in zip(worlds, zip(*took, strict=True), strict=True):
        print(f"  {world} process(es): {count / min(seconds):.0f} samples a second", flush=True)


def batches(sizes: tuple[int, ...], repeats: int = 3) -> None:
    """Print samples a second."""
    model = ods.load("digits")
    runs = {f"{n}": lambda n=n: ods.sample(model, n, num_steps=STEPS) for n in sizes}
    print("  batch: samples a second, by processor time")
    for name, seconds in in_turn(runs, repeats).items():
        print(f"  {name:>6}{int(name) / seconds:8.0f}", flush=True)


def memory(steps: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    """Print the peak in KiB for each number of steps and size of the batch."""
    model = ods.load("digits")
    print("  KiB alive at once, batch: by " + ", ".join(f"{n} steps" for n in steps))
    for size in sizes:
        cells = "".join(f"{peak(model, size, n) / 1024:10.0f}" for n in steps)
        print(f"  {size:6}{cells}", flush=True)


def peak(model: ods.Model, size: int, steps: int) -> int:
    """Bytes alive at once, after a first solve that keeps what all need."""
    ods.sample(model, size, num_steps=2, solver="multistep")
    with Live() as live:
        ods.sample(model, size, num_steps=steps, solver="multistep")
    return live.peak


def shared(world: int, count: int) -> float:
    """Seconds from the moment that all processes are ready to that at which the last is done."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", SHARE]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes = [
            subprocess.Popen([*command, str(rank), str(world), str(count), folder], **pipes) for rank in range(world)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        began = time.perf_counter()
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        for process in processes:
            process.communicate()
            if process.returncode:
                raise RuntimeError(f"a process ended with {process.returncode}")
        return time.perf_counter() - began
