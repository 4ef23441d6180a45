"""The index beside the store: taken in slice by slice, saved when the store is idle, made anew when in doubt.

The store alone knows what is true. The saved index is a copy whose name says up to which id it is complete; what is
newer is read from the store, what was forgotten is taken out. Because it holds vectors, the saved copy is removed
before anything is forgotten, and written again at the next save. Beside a store that is encrypted as a whole it is
encrypted too, and opened into memory instead of being mapped.

A graph takes in vectors slowly. Until it has, new ones are scanned beside it: a question waits for one slice of them at
most, and goes before the next one.
"""

from __future__ import annotations

import os
import re
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from aios.errors import AiosError, MemoryCorrupt
from aios.memory.record import Filter, Floats, Ids
from aios.memory.sealed_store import SCAN_ROWS, SealedStore, translated
from aios.memory.vector_index import VectorIndex
from aios.security import private_file

WAITING_MAX: Final = 4096            # new memories that are scanned beside the graph: in half a millisecond
SLICE_ROWS: Final = 16               # of them that a thread puts into the graph while a question waits: in 5 ms
_NAME: Final = re.compile(r"index-(\d{1,12})\.(vectors|sealed)")


class SearchIndex:
    """Ids by nearness of their vectors; threads may add, remove and search at once."""

    def __init__(self, folder: Path, store: SealedStore, metric: str, *, writable: bool) -> None:
        """Open the saved index and bring it up to the store."""
        self._folder, self._store, self._metric, self._writable = folder, store, metric, writable
        self._lock = threading.Lock()
        self._waiting = deque[tuple[Ids, Floats]]()
        self._fresh = VectorIndex(store.dim, metric)   # of at least those that wait
        self._slice_rows = SLICE_ROWS * len(os.sched_getaffinity(0))
        self._counting, self._asking, self._quiet = threading.Lock(), 0, threading.Event()
        self._quiet.set()
        self._known: Ids | None = None                 # of a reader's last snapshot
        self._saved = False
        self._index, self._covered = self._open()
        self._catch_up()

    def __len__(self) -> int:
        with self._lock:
            self._fold()
            return len(self._index)

    def add(self, ids: Sequence[int], vectors: Floats) -> None:
        """Memories that the store has acknowledged."""
        named = np.asarray(ids, np.uint64)
        with self._lock:
            self._fresh.add(named, vectors)
            self._waiting.append((named, vectors))
            self._saved = False
            full = len(self._fresh) >= WAITING_MAX
        if full:
            self.settle()

    def settle(self) -> None:
        """Take in what waits; questions that come meanwhile go first."""
        while self._waiting:
            self._quiet.wait()
            with self._lock:
                if self._waiting:
                    (ids, vectors), count = self._waiting[0], self._slice_rows
                    self._add(ids[:count], vectors[:count])
                    self._waiting[0] = ids[count:], vectors[count:]
                    if len(ids) <= count:
                        self._waiting.popleft()
                if not self._waiting:
                    self._fresh = VectorIndex(self._store.dim, self._metric)

    def remove(self, ids: Sequence[int]) -> None:
        """Memories that the store has forgotten."""
        self.settle()
        with self._lock:
            self._fold()
            self._index.remove(np.asarray(ids, np.uint64))

    def forsake(self) -> None:
        """The saved copy is gone, durably: what it holds is about to be forgotten."""
        with self._lock:
            self._saved = False
            if self._unlink():
                with translated():
                    private_file.sync_folder(self._folder)

    def search(self, query: Floats, k: int, allowed: Ids | None) -> list[tuple[int, float]]:
        """(id, score) of the k nearest of all or of the allowed, best first."""
        with self._first():
            asked = [self._index, self._fresh] if self._waiting else [self._index]
            answers = [index.search(query.reshape(1, -1), k, allowed=allowed) for index in asked]
        found = {int(number): float(score) for ids, scores in answers
                 for number, score in zip(ids[0], scores[0], strict=True) if number > 0 and np.isfinite(score)}
        return sorted(found.items(), key=lambda one: -one[1])[:k]

    @contextmanager
    def _first(self) -> Iterator[None]:
        """The lock, before any further slice is taken in."""
        with self._counting:
            self._asking += 1
            self._quiet.clear()
        try:
            with self._lock:
                yield
        finally:
            with self._counting:
                self._asking -= 1
                if not self._asking:
                    self._quiet.set()

    def refresh(self) -> None:
        """Bring store and index up to a newer snapshot."""
        with self._lock:
            self._store.refresh()
            self._catch_up()

    def save(self) -> None:
        """Write it down; nothing may be remembered meanwhile."""
        with self._lock:
            self._fold()
            if self._saved or not self._writable:
                return
            if len(self._index) > 0:
                self._unlink()
                self._write()
            self._saved = True

    def verify(self) -> None:
        """Check all of the saved index; a damaged one is made anew. Nothing may be remembered meanwhile."""
        with self._lock:
            try:
                self._index.verify()
            except MemoryCorrupt:
                self._unlink()
                self._waiting.clear()
                self._fresh = VectorIndex(self._store.dim, self._metric)
                self._index, self._covered = VectorIndex(self._store.dim, self._metric), 0
                self._known, self._saved = None, False
                self._catch_up()

    def _write(self) -> None:
        if (key := self._store.file_key) is None:
            self._index.save(self._folder / f"index-{self._covered}.vectors")
        else:
            self._index.save_sealed(self._folder / f"index-{self._covered}.sealed", key, self._covered)

    def _read(self, path: Path, covered: int) -> VectorIndex:
        if (key := self._store.file_key) is None:
            return VectorIndex.open(path)
        return VectorIndex.open_sealed(path, key, covered)

    def _open(self) -> tuple[VectorIndex, int]:
        """The saved index and the id up to which it is complete; an empty one where there is none or it is damaged."""
        for path, covered in self._files():
            try:
                index = self._read(path, covered)
                if index.dim == self._store.dim and index.metric == self._metric:
                    self._saved = True
                    return index, covered
            except AiosError:
                pass                                   # a copy: it is made anew
            if self._writable:
                with translated():
                    path.unlink(missing_ok=True)
        return VectorIndex(self._store.dim, self._metric), 0

    def _files(self) -> list[tuple[Path, int]]:
        with translated():
            found = [(path, match) for path in self._folder.iterdir() if (match := _NAME.fullmatch(path.name))]
        return sorted(((path, int(match[1])) for path, match in found), key=lambda one: -one[1])

    def _unlink(self) -> bool:
        """Remove what is saved; whether there was anything."""
        files = self._files() if self._writable else []
        with translated():
            for path, _ in files:
                path.unlink(missing_ok=True)
        return bool(files)

    def _catch_up(self) -> None:
        """Take out what was forgotten, put in what is new."""
        forgotten = self._store.forgotten()
        if len(forgotten):
            before = len(self._index)
            self._index.remove(forgotten)
            self._saved = self._saved and before == len(self._index)
        ids = None if self._writable else self._store.select(Filter())
        if ids is None or self._known is None:
            fresh = self._store.scan(self._covered)
        else:       # ids are not acknowledged in their order: a snapshot may lack one that is lower than its highest
            new = np.setdiff1d(ids, self._known)
            pieces = (new[at:at + SCAN_ROWS] for at in range(0, len(new), SCAN_ROWS))
            fresh = ((piece, self._store.vectors(piece.tolist())) for piece in pieces)
        for some, vectors in fresh:
            self._add(some, vectors)
            self._saved = False
        self._known = ids

    def _fold(self) -> None:
        if self._waiting:
            ids, vectors = zip(*self._waiting, strict=True)
            self._add(np.concatenate(ids), np.concatenate(vectors))
            self._waiting.clear()
            self._fresh = VectorIndex(self._store.dim, self._metric)

    def _add(self, ids: Ids, vectors: Floats) -> None:
        self._index.add(ids, vectors)
        self._covered = max(self._covered, int(ids.max()))
