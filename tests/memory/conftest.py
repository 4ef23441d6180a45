"""A small store, and an encoder that tells texts apart by their words."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from aios.memory.vector_memory import ArrowStorage

DIM = 32


def encode(texts: list[str]) -> np.ndarray:
    """A vector of length one for each text: the sum of its words' random ones."""
    rows = []
    for text in texts:
        row = np.full(DIM, 1e-6)
        for word in text.lower().split():
            seed = int.from_bytes(hashlib.sha256(word.strip(".,?'").encode()).digest()[:4], "little")
            row = row + np.random.default_rng(seed).standard_normal(DIM)
        rows.append(row / np.linalg.norm(row))
    return np.array(rows, np.float32)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "memory"


@pytest.fixture
def reopen(home: Path) -> Callable[..., ArrowStorage]:
    """Opens the store of the test's home."""
    def opened(**options: object) -> ArrowStorage:
        return ArrowStorage.open(home, DIM, encode=encode, **options)
    return opened


@pytest.fixture
def store(reopen: Callable[..., ArrowStorage]) -> Iterator[ArrowStorage]:
    with reopen() as opened:
        yield opened
