"""What benchmarks of speed share: the facts of the machine, and times of rivals measured in turn."""

import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


def facts() -> str:
    """Date, processor and what is installed, in one line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {_processor()}, {cores} cores, "
        f"{torch.get_num_threads()} thread(s), torch {torch.__version__}, Python {platform.python_version()}"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def turns(rivals: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Processor seconds of every run, one run of each after another: what else the machine does befalls all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(repeats + 1):
        names = list(rivals) if turn % 2 else list(reversed(rivals))
        for name in names:
            began = time.process_time()
            rivals[name]()
            seconds[name].append(time.process_time() - began)
    return {name: runs[1:] for name, runs in seconds.items()}  # the first run warms up


def in_turn(rivals: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The median of each."""
    return {name: statistics.median(runs) for name, runs in turns(rivals, repeats).items()}


def ratio(first: list[float], second: list[float]) -> float:
    """The median over turns of first / second: a load that lasts for some turns cancels."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))
