"""The native store with its vault: memories go in sealed and come out opened, errors are AIOS's."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import numpy as np

from aios import _native
from aios.errors import (
    AiosError,
    BadInput,
    KeyRefused,
    LimitExceeded,
    MemoryBusy,
    MemoryCorrupt,
    MemoryStopped,
    MemoryStoreError,
)
from aios.memory import record
from aios.memory.record import Filter, Floats, Ids, Memory, Prepared
from aios.security.sealing import Encrypts, KeySource, SecretFile, Vault, create_vault, open_vault

IDENTITY_BYTES: Final = 16
MANIFEST_NAME: Final = "manifest.json"
SCAN_ROWS: Final = 4096              # 6 MB of vectors of 384 dimensions
FORGET_MAX: Final = 1 << 20          # ids of one native call
_KINDS: Final[dict[str, tuple[type[AiosError], str]]] = {
    "corrupt": (MemoryCorrupt, "restore the folder from a backup or an export"),
    "input": (BadInput, "look at the value"),
    "limit": (LimitExceeded, "write less at once"),
    "busy": (MemoryBusy, "stop the other process, or open the store for reading only"),
    "stopped": (MemoryStopped, "look at the disk, then open the store again")}


def make(folder: Path, dim: int, vector: Literal["f32", "f16"], key: KeySource | None,
         encrypts: Encrypts = "texts") -> None:
    """Make an empty store with its key unless there is one; several processes may try at once."""
    with translated():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if (folder / MANIFEST_NAME).exists():
                return
            identity = os.urandom(IDENTITY_BYTES)
            vault = create_vault(folder, identity, key or SecretFile(), encrypts)     # first: a store has its key
            _native.MemoryStore.create(folder, dim, vector == "f16", identity, vault.file_key)
        finally:
            os.close(descriptor)


class SealedStore:
    """One open store: the writer, or a reader's snapshot."""

    def __init__(self, folder: Path, *, writable: bool, key: KeySource | None) -> None:
        """Raises KeyRefused, MemoryBusy, MemoryCorrupt or MemoryStoreError."""
        with translated():
            found = _native.MemoryStore.look(folder)
        if found is None:
            raise MemoryStoreError(f"memory: No such file: {folder / MANIFEST_NAME}", remedy="remember something first",
                                   errno=errno.ENOENT)
        identity, whole = found
        with translated():
            self._vault: Vault = open_vault(folder, identity, key)
        self.encrypts: Encrypts = "all" if whole else "texts"
        if whole != (self._vault.file_key is not None):
            raise KeyRefused("manifest and master key disagree about what of this store is encrypted",
                             remedy="the store was put together from different ones; restore it as a whole")
        with translated():
            self._native = _native.MemoryStore(folder, writable, self._vault.file_key)
            self.dim, half = self._native.shape()
        self.vector: Literal["f32", "f16"] = "f16" if half else "f32"

    @property
    def file_key(self) -> bytes | None:
        """What files beside the store are encrypted under; None where vectors are in the clear."""
        return self._vault.file_key

    def append(self, memories: Sequence[Prepared], vectors: Floats) -> list[int]:
        """Keep memories with their vectors (n, dim), all or none; returns their ids when they are on the disk."""
        with translated():
            first = self._native.reserve(len(memories))
            ids = list(range(first, first + len(memories)))
            items = [self._vault.seal(number, one.content) for number, one in zip(ids, memories, strict=True)]
            self._native.append(ids, [one.time for one in memories], [one.columns for one in memories], vectors,
                                [sealed for _, sealed in items], [key for key, _ in items])
        return ids

    def read(self, number: int, score: float | None = None) -> Memory | None:
        """A memory, None if it was forgotten or never there."""
        with translated():
            found = self._native.read(number)
        if found is None:
            return None
        time, namespace, tags, source, provenance, sealed, key = found
        text, metadata = record.opened(self._vault.open(number, key, sealed))
        return Memory(id=number, text=text, metadata=metadata, namespace=namespace, tags=tuple(tags),
                      time=record.moment(time), source=source, provenance=provenance, score=score)

    def forget(self, ids: Sequence[int]) -> list[int]:
        """Forget memories, durably; returns the ids that were there."""
        gone: list[int] = []
        for start in range(0, len(ids), FORGET_MAX):
            with translated():
                gone += self._native.forget(list(ids[start:start + FORGET_MAX]))
        return gone

    def select(self, filter: Filter) -> Ids:
        """The ids of memories that pass."""
        conditions = filter.native()
        with translated():
            return np.frombuffer(self._native.select(*conditions), "<u8")

    def scan(self, above: int = 0) -> Iterator[tuple[Ids, Floats]]:
        """Ids above `above` and vectors of all memories, in pieces."""
        row = 0
        while True:
            with translated():
                ids, vectors, row = self._native.scan(row, SCAN_ROWS, above)
            if ids:
                yield np.frombuffer(ids, "<u8"), np.frombuffer(vectors, "<f4").reshape(-1, self.dim)
            if row == 0:
                return

    def vectors(self, ids: Sequence[int]) -> Floats:
        """The vectors (n, dim) of memories, each checked."""
        with translated():
            return np.frombuffer(self._native.vectors(list(ids)), "<f4").reshape(-1, self.dim)

    def forgotten(self) -> Ids:
        """Every id that was forgotten."""
        with translated():
            return np.frombuffer(self._native.forgotten_ids(), "<u8")

    def was_forgotten(self, number: int) -> bool:
        """Whether a memory of this id was there and is gone."""
        with translated():
            return self._native.forgotten(number)

    def flush(self) -> None:
        """Turn the log into a segment."""
        with translated():
            self._native.flush()

    def compact(self) -> bool:
        """Rewrite what holds forgotten memories; whether there was anything to do."""
        with translated():
            return self._native.compact()

    def refresh(self) -> None:
        """A reader's newer snapshot."""
        with translated():
            self._native.refresh()

    def verify(self) -> int:
        """Read and check every memory; how many there are."""
        with translated():
            return self._native.verify()

    def counts(self) -> tuple[int, int, int, int, int, int]:
        """live, forgotten, rows to compact, segments, rows in the log, bytes."""
        with translated():
            return self._native.stats()

    def close(self) -> None:
        """Let go of the files and the lock."""
        self._native.close()


@contextmanager
def translated() -> Iterator[None]:
    """Native errors become AIOS's."""
    try:
        yield
    except _native.StorageError as error:
        kind, _, why = error.args
        raise_as, remedy = _KINDS[kind]
        raise raise_as(f"memory: {why}", remedy=remedy) from error
    except OSError as error:
        raise MemoryStoreError(f"memory: {error.strerror or error}", remedy="look at the disk and its rights",
                               errno=error.errno) from error
    except (OverflowError, ValueError) as error:
        raise BadInput(f"memory: {error}", remedy="look at the value") from error
