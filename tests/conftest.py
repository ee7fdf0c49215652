"""What all tests share: one thread, no network, examples that can be repeated."""

import os
from types import ModuleType

os.environ["HF_HUB_OFFLINE"] = "1"  # before diffusers is imported: a test never waits for a network
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # also the reason why sums come out the same each time

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session")
def diffusers() -> ModuleType:
    """The library whose schedulers are an oracle; imported by the tests that need it only."""
    return pytest.importorskip("diffusers")
