"""Run all benchmarks, or those that are named."""

import sys
from importlib import import_module

NAMES = (
    "import_time", "exact_problems", "defaults", "reversible", "inversion", "against_diffusers", "loop_overhead",
    "time_to_error", "heterogeneous", "throughput",
)  # fmt: skip

for name in sys.argv[1:] or NAMES:
    if name not in NAMES:
        sys.exit(f"unknown benchmark {name!r}; known: {', '.join(NAMES)}")
    print(f"== {name}", flush=True)
    import_module(f"tests.benchmarks.{name}").main()
