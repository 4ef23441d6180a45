"""Valid calls on the native store of memories, and its files as inputs to be damaged."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from aios import _native
from aios.lab.parsers.mutations import Sample

DIM = 3
KEY_BYTES = 60
KEY = bytes(range(32))           # of a store that is encrypted as a whole
STORES: Final[Mapping[str, bytes | None]] = {"clear": None, "sealed": KEY}
FRESH_SHARE = 0.01             # of the calls that write begin with an empty store
FILES: Final = ("manifest", "keys", "log-", "segment-", "forgotten-")

_WRITERS: Final[list[_native.MemoryStore]] = []     # the last one: there is one at a time

Make = Callable[[random.Random, Path], tuple[Callable[..., object], tuple[Any, ...]]]


def store_folder(scratch: Path, kind: str = "clear") -> Path:
    """A store with two memories and a forgotten one in a segment and two in the log; made once."""
    folder = scratch / "memories" / kind
    if not folder.exists():
        _native.MemoryStore.create(folder, DIM, False, bytes(16), STORES[kind])
        store = _native.MemoryStore(folder, True, STORES[kind])
        _remember(store, 3)
        store.forget([3])
        store.flush()
        _remember(store, 2)
        store.close()
    return folder


def samples(scratch: Path) -> list[Sample]:
    """Every file of a clear store and of an encrypted one; the name says which one it is."""
    found = [path for kind in STORES for prefix in FILES
             for path in sorted(store_folder(scratch, kind).glob(prefix + "*"))]
    return [Sample(name=f"{path.parent.name}/{path.name}", data=path.read_bytes()) for path in found]


def snapshot(folder: Path) -> list[object]:
    """Everything that a reader of this store can see; the folder is called as its kind is."""
    store = _native.MemoryStore(folder, False, STORES[folder.name])
    ids = np.frombuffer(store.select([], [], [], [], None, None), "<u8").tolist()
    return [ids, [store.read(number) for number in ids], store.vectors(ids), store.forgotten_ids(), store.shape()]


def _remember(store: _native.MemoryStore, count: int) -> None:
    first = store.reserve(count)
    store.append(*_memories(range(first, first + count)))


def _memories(ids: range) -> tuple[Any, ...]:
    """Arguments of `append`."""
    count = len(ids)
    return (tuple(ids), tuple(ids), (("space", ("tag",), "source", "owner"),) * count,
            np.ones((count, DIM), np.float32), (b"sealed",) * count, (b"k" * KEY_BYTES,) * count)


def _reader(rng: random.Random, scratch: Path) -> _native.MemoryStore:
    return _native.MemoryStore(store_folder(scratch), False)


def _writer(rng: random.Random, scratch: Path) -> _native.MemoryStore:
    """A store to be written, for a hundred calls or so: what was written before is part of the attack."""
    while _WRITERS:
        _WRITERS.pop().close()             # a call that was made may still hold it
    folder = scratch / "kept-memories"
    if rng.random() < FRESH_SHARE:
        _empty(folder)
    if not (folder / "manifest.json").exists():
        _native.MemoryStore.create(folder, DIM, False, bytes(16))
    _WRITERS.append(store := _native.MemoryStore(folder, True))
    return store


def _empty(folder: Path) -> None:
    for left in folder.glob("*"):
        left.unlink()


def _append(rng: random.Random, scratch: Path) -> tuple[Callable[..., object], tuple[Any, ...]]:
    store, count = _writer(rng, scratch), rng.randint(0, 3)
    first = store.reserve(count)
    return store.append, _memories(range(first, first + count))


def _create(rng: random.Random, scratch: Path) -> tuple[Callable[..., object], tuple[Any, ...]]:
    folder = scratch / "made-memories"
    _empty(folder)
    return _native.MemoryStore.create, (str(folder), DIM, rng.random() < 0.5, bytes(16), rng.choice((None, KEY)))


def _open(rng: random.Random, scratch: Path) -> tuple[Callable[..., object], tuple[Any, ...]]:
    return _native.MemoryStore, (str(store_folder(scratch)), False, None)


def _method(make: Callable[[random.Random, Path], _native.MemoryStore], name: str, *arguments: Any) -> Make:
    return lambda rng, scratch: (getattr(make(rng, scratch), name), arguments)


MAKERS: Final[Mapping[str, Make]] = {
    "MemoryStore": _open,
    "MemoryStore.create": _create,
    "MemoryStore.look": lambda rng, scratch: (_native.MemoryStore.look, (str(store_folder(scratch)),)),
    "MemoryStore.identity": _method(_reader, "identity"),
    "MemoryStore.shape": _method(_reader, "shape"),
    "MemoryStore.reserve": _method(_writer, "reserve", 2),
    "MemoryStore.append": _append,
    "MemoryStore.forget": _method(_writer, "forget", (1, 2)),
    "MemoryStore.read": _method(_reader, "read", 2),
    "MemoryStore.forgotten": _method(_reader, "forgotten", 3),
    "MemoryStore.forgotten_ids": _method(_reader, "forgotten_ids"),
    "MemoryStore.select": _method(_reader, "select", ("space",), ("tag",), (), (), 0, None),
    "MemoryStore.scan": _method(_reader, "scan", 0, 4, 1),
    "MemoryStore.vectors": _method(_reader, "vectors", (1, 5)),
    "MemoryStore.flush": _method(_writer, "flush"),
    "MemoryStore.compact": _method(_writer, "compact"),
    "MemoryStore.refresh": _method(_reader, "refresh"),
    "MemoryStore.verify": _method(_reader, "verify"),
    "MemoryStore.stats": _method(_reader, "stats"),
    "MemoryStore.close": _method(_reader, "close"),
}
