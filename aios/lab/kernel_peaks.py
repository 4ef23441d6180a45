"""What this machine could do at best, in the very run that measures the kernels: exact byte products, and reading."""

from __future__ import annotations

import time
from typing import Any, Final

from aios import _native

ROUNDS: Final = 400_000            # of twelve vectors each: some 2 ms
SEQUENCES: Final = {"halves": "pmaddwd+paddd", "bytes": "pmaddubsw+pmaddwd+paddd"}   # both exact, see the Rust module


def operations(sequence: str, threads: int) -> float:
    """Operations of `run_products`, two a product; 0 where there is no such loop."""
    return 2.0 * ROUNDS * _native.peak_products(sequence, 1, threads)


def run_products(sequence: str, threads: int) -> None:
    """A loop of products without loads on so many threads."""
    _native.peak_products(sequence, ROUNDS, threads)


def read_bytes_per_s(memory: Any, threads: int) -> float:
    """The rate at which so many threads read a contiguous uint8 array once."""
    began = time.perf_counter()
    _native.peak_read(memory, threads)
    return float(memory.nbytes / (time.perf_counter() - began))
