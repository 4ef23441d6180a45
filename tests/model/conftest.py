"""Two threads and fixed seeds: small networks, the same numbers every time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def same_numbers() -> Iterator[None]:
    """Seed torch's global generator, which fresh weights are drawn from."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
