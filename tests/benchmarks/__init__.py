"""Measurements of speed and accuracy, run by hand: `python -m tests.benchmarks [name]`."""
