"""Valid calls of the native products of a training step."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aios import _native
from aios.lab.parsers.arguments import Guarded
from aios.lab.parsers.vectors import Made, Make

ROWS, OUTPUTS, DEPTH = 7, 19, 21


def _floats(rng: random.Random, *shape: int) -> NDArray[np.float32]:
    return np.array([rng.uniform(-9, 9) for _ in range(int(np.prod(shape)))], np.float32).reshape(shape)


def _packed(guarded: Guarded) -> NDArray[np.uint8]:
    return guarded.array(np.zeros(_native.train_packed_len(OUTPUTS, DEPTH), np.uint8))


def _len(rng: random.Random, scratch: Path) -> Made:
    return _native.train_packed_len, (OUTPUTS, DEPTH), Guarded()


def _pack(rng: random.Random, scratch: Path) -> Made:
    guarded, transposed = Guarded(), rng.random() < 0.5
    weight = _floats(rng, *((DEPTH, OUTPUTS) if transposed else (OUTPUTS, DEPTH)))
    return _native.train_pack, (weight, _packed(guarded), transposed, 2), guarded


def _product(rng: random.Random, scratch: Path) -> Made:
    guarded = Guarded()
    packed = _packed(guarded)
    packed[:] = list(rng.randbytes(len(packed)))   # any bytes are a weight
    arguments: tuple[Any, ...] = (_floats(rng, ROWS, DEPTH), packed,
                                  guarded.array(np.zeros((ROWS, OUTPUTS), np.float32)), 2)
    return _native.train_product, arguments, guarded


def _gradient(rng: random.Random, scratch: Path) -> Made:
    guarded = Guarded()
    out = guarded.array(np.zeros((OUTPUTS, DEPTH), np.float32))
    return _native.train_weight_gradient, (_floats(rng, ROWS, OUTPUTS), _floats(rng, ROWS, DEPTH), out, 2), guarded


MAKERS: Final[Mapping[str, Make]] = {
    "train_packed_len": _len,
    "train_pack": _pack,
    "train_product": _product,
    "train_weight_gradient": _gradient,
}
