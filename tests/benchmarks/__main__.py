"""Run all benchmarks, or those that are named."""

import sys
from importlib import import_module

NAMES = (
    "import_time", "exact_problems", "defaults", "reversible", "inversion", "against_diffusers", "loop_overhead",
    "time_to_error", "heterogeneous", "throughput", "tune",
)  # fmt: skip

asked = sys.argv[1:2] if sys.argv[1:2] == ["tune"] else sys.argv[1:]  # the rest is for it to read
for name in asked or NAMES:
    if name not in NAMES:
        sys.exit(f"unknown benchmark {name!r}; known: {', '.join(NAMES)}")
    print(f"== {name}", flush=True)
    import_module(f"tests.benchmarks.{name}").main()
