"""Valid calls on native rows of logits."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from aios import _native
from aios.lab.parsers.arguments import Guarded
from aios.lab.parsers.vectors import Made, Make

ROWS, COLUMNS, BARRED = 6, 40, 3


def _rows(rng: random.Random) -> tuple[Any, ...]:
    logits = np.array([rng.uniform(-9, 9) for _ in range(ROWS * COLUMNS)], np.float32).reshape(ROWS, COLUMNS)
    return logits, np.array([5, 0, 0], np.int64), BARRED


def _new(rng: random.Random, scratch: Path) -> Made:
    return _native.LogitRows, _rows(rng), Guarded()


def _numbers(name: str) -> Make:
    def make(rng: random.Random, scratch: Path) -> Made:
        guarded = Guarded()
        method: Callable[..., object] = getattr(_native.LogitRows(*_rows(rng)), name)
        return method, (guarded.array(np.zeros(3, np.float32)), 2), guarded
    return make


def _draw(rng: random.Random, scratch: Path) -> Made:
    guarded = Guarded()
    uniforms = np.array([rng.random() for _ in range(3)])
    out = guarded.array(np.zeros(3, np.int64))
    return _native.LogitRows(*_rows(rng)).draw, (rng.choice([0.0, 0.5, 1.0]), uniforms, out, 2), guarded


MAKERS: Final[Mapping[str, Make]] = {
    "LogitRows": _new,
    "LogitRows.best": _numbers("best"),
    "LogitRows.entropy": _numbers("entropy"),
    "LogitRows.draw": _draw,
}
