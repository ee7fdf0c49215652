"""How long `import odesampler`, and all of it, takes beside what it stands on."""

import statistics
import subprocess
import sys
import time

BASE = "import torch, torchdiffeq, scipy, scipy.integrate"
EVERYTHING = "import odesampler as ods; [getattr(ods, n) for n in ods.__all__]; import odesampler.cli"
CASES = {"torch, torchdiffeq, scipy": BASE, "odesampler": "import odesampler", "odesampler, every name": EVERYTHING}


def main(repeats: int = 5) -> None:
    """Print the median over interleaved runs, each a process of its own, and its ratio to the first case."""
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(repeats + 1):
        for name, code in CASES.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(runs[1:]) for name, runs in seconds.items()}  # the first fills the disk cache
    first = next(iter(medians.values()))
    for name, median in medians.items():
        print(f"{name:28} {median:6.2f} s   {median / first:5.2f} x")
