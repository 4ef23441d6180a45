"""One bit of a store's files is turned: what is read and found is as it was, or the store refuses."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from aios.errors import AiosError
from aios.lab.crashes.account import DIM, memory_of, vector_of
from aios.memory.vector_memory import ArrowStorage
from aios.security.sealing import Encrypts

ENCRYPTS: Final[tuple[Encrypts, ...]] = ("texts", "all")
MEMORIES: Final = 12                  # in a segment; half as many more in the log
SEARCHES: Final = 3
WRITER_SHARE: Final = 0.25            # of the stores that are opened to be written


@dataclass(slots=True)
class Turned:
    """Bits that were turned, and those that nobody noticed although something is another."""

    count: int = 0
    refused: int = 0
    undetected: list[str] = field(default_factory=list)


def turn(count: int, seed: int, scratch: Path, progress: Callable[[float], None]) -> Turned:
    """Turn `count` bits, one at a time, each in a whole store."""
    rng, turned = random.Random(seed), Turned()
    for encrypts in ENCRYPTS:
        whole, damaged = scratch / f"whole-{encrypts}", scratch / f"damaged-{encrypts}"
        _make(whole, encrypts)
        before, files = _content(whole), sorted(path.name for path in whole.iterdir() if path.name != "lock")
        shutil.copytree(whole, damaged)
        for _ in range(count // len(ENCRYPTS)):
            progress(turned.count / count)
            name, read_only = rng.choice(files), rng.random() > WRITER_SHARE
            _turn(damaged / name, rng, turned, before, read_only=read_only)
            (damaged / name).write_bytes((whole / name).read_bytes())
            if not read_only:                         # it may have mended, cut or removed files
                shutil.rmtree(damaged)
                shutil.copytree(whole, damaged)
    return turned


def _turn(path: Path, rng: random.Random, turned: Turned, before: object, *, read_only: bool) -> None:
    data = bytearray(path.read_bytes())
    bit = rng.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    turned.count += 1
    try:
        after = _content(path.parent, read_only=read_only)
    except AiosError:
        turned.refused += 1
        return
    if after != before:
        turned.undetected.append(f"bit {bit} of {path.name}")


def _make(folder: Path, encrypts: Encrypts) -> None:
    """A store with a segment, a log, forgotten memories in both, and a saved index."""
    folder.mkdir(mode=0o700)
    with ArrowStorage.open(folder, DIM, encrypts=encrypts) as store:
        store.remember_many([memory_of(f"{number:015x}") for number in range(1, MEMORIES + 1)])
        store.forget([2, 3])
        store.compact()
        store.remember_many([memory_of(f"{number:015x}") for number in range(MEMORIES + 1, 3 * MEMORIES // 2 + 1)])
        store.forget([4, MEMORIES + 1])
        store.recall(vector_of("1"))


def _content(folder: Path, *, read_only: bool = True) -> object:
    """Everything that can be read of a store, and what it finds."""
    with ArrowStorage.open(folder, DIM, read_only=read_only) as store:
        store.verify()
        ids = store.select()
        found = [[(one.id, one.score) for one in store.recall(vector_of(f"{number:x}"), k=5)]
                 for number in range(1, SEARCHES + 1)]
        forgotten = [number for number in range(2 * MEMORIES) if store.was_forgotten(number)]
        return [(number, store.read(number)) for number in ids], found, forgotten, store.stats().memories
