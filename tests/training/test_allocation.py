"""Memory that was freed is there for the next step."""

from __future__ import annotations

import resource

import pytest
import torch

from aios.training.allocation import keep_freed_memory

COUNT = 1 << 24      # numbers: 64 MiB, 16,384 pages


def faults() -> int:
    """Page faults for which nothing was read, of one large tensor after another."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.zeros(COUNT).add_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_what_was_freed_is_used_again_without_page_faults() -> None:
    if not keep_freed_memory():
        pytest.skip("the C library has no mallopt")
    faults()
    assert faults() < COUNT * 4 // 4096 // 8
