"""For every test: torch's threads neither multiply nor spin, however busy the machine is."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

# Read by OpenMP when torch is imported, here and in every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(autouse=True)
def same_numbers() -> Iterator[None]:
    """Seed torch's global generator, in tests whose modules import torch."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)
