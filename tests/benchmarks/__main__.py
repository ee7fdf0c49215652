"""Run all benchmarks, or those that are named. What begins with -- is for a benchmark."""

import sys
from importlib import import_module

NAMES = (
    "import_time", "exact_problems", "defaults", "reversible", "inversion", "round_trips", "against_diffusers",
    "loop_overhead", "time_to_error", "heterogeneous", "coordinates", "throughput", "gpu", "tune",
)  # fmt: skip

asked = [word for word in sys.argv[1:] if not word.startswith("--")]
for name in asked[:1] if asked[:1] == ["tune"] else asked or NAMES:  # after "tune" come words of its own
    if name not in NAMES:
        sys.exit(f"unknown benchmark {name!r}; known: {', '.join(NAMES)}")
    print(f"== {name}", flush=True)
    import_module(f"tests.benchmarks.{name}").main()
