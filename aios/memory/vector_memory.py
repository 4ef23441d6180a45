"""ArrowStorage: memories that survive kill -9 and power loss, are found by meaning, and are forgotten for good.

    store = ArrowStorage.open(home / "memory", encode=encoder)
    number = store.remember("Mira's dentist is Dr. Oduya", {"kind": "fact"}, tags=["people"])
    store.recall("who looks after Mira's teeth?", k=5, filter=Filter(tags=["people"]))
    store.forget(number)

A memory is acknowledged when it is on the disk. Forgetting overwrites its key and zeroes its vector at once, here and
in what was saved; its sealed bytes, namespace, tags, source and provenance stay until `compact` and nobody can read
the sealed ones. What a journal, a snapshot, an SSD's spare blocks or an older backup keep of a wrapped key is worth
as much as the master key is kept secret. Clear on the disk: ids, times, namespaces, tags, sources, provenances, sizes
and vectors (from which a text can be guessed); where that matters, make the store with encrypts="all".
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike

from aios.errors import BadInput, LimitExceeded
from aios.memory import exchange, record, sealed_store
from aios.memory.record import NAMESPACE, Filter, Floats, Ids, Memory, NewMemory
from aios.memory.sealed_store import SealedStore
from aios.memory.search_index import SearchIndex
from aios.messages import ListMemories, MemoryPage, MemoryStats
from aios.security.sealing import Encrypts, KeySource

DIM: Final = 384                     # of MiniLM
GROUP_MAX: Final = 65_536            # memories of one remember_many
K_MAX: Final = 4096                  # the index gives no more
IMPORT_GROUP: Final = 512            # memories that share a sync
PAGE_CHARS_MAX: Final = 1 << 20      # of texts on one page: at four bytes each still below a frame
PAGE_NOTES_MAX: Final = 1 << 17      # of metadata: a frame takes 65,536 elements, of three characters and more
CONDITIONS: Final = ("namespaces", "tags", "sources", "provenances", "since", "until")


class Encoder(Protocol):
    """Texts -> vectors (n, dim)."""

    def __call__(self, texts: list[str], /) -> ArrayLike:
        """One vector for each text."""


class ArrowStorage:
    """The memories of one folder; threads may use it at once, and writes of several share a sync."""

    def __init__(self, folder: Path, store: SealedStore, *, metric: str, encode: Encoder | None,
                 read_only: bool) -> None:
        """Use `open`."""
        self._folder, self._store, self._encode, self._metric = folder, store, encode, metric
        self._read_only = read_only
        self._index: SearchIndex | None = None
        self._gate, self._writing = threading.Condition(), 0

    @classmethod
    def open(cls, home: Path | str, dim: int | None = DIM, key: KeySource | None = None, *,
             vector: Literal["f32", "f16"] = "f32", metric: str = "cosine", encode: Encoder | None = None,
             read_only: bool = False, encrypts: Encrypts | None = None) -> ArrowStorage:
        """Open the store in the folder `home`; made if there is none, unless `read_only`.

        dim, vector: of a new store; an existing one must have the same dimension, None takes it as it is. key: where
        the secret comes from; None: an owner-only file for a new store, the noted source for an old one. There is one
        writer at a time; any number of read-only snapshots never wait for it. encrypts: of a new store "texts" (the
        default) or "all", vectors and columns too; an existing one must be so, None takes it as it is. Raises
        MemoryBusy, KeyRefused, MemoryCorrupt, BadInput.
        """
        folder = Path(home)
        if not read_only:
            sealed_store.make(folder, DIM if dim is None else dim, vector, key, encrypts or "texts")
        store = SealedStore(folder, writable=not read_only, key=key)
        if dim is not None and store.dim != dim:
            store.close()
            raise BadInput(f"the store in {folder} has {store.dim} dimensions, not {dim}",
                           remedy="open it with the encoder it was made for, or export and import")
        if encrypts not in (None, store.encrypts):
            store.close()
            raise BadInput(f"the store in {folder} encrypts {store.encrypts}, not {encrypts}",
                           remedy="export it, and import into a new one that is made so")
        return cls(folder, store, metric=metric, encode=encode, read_only=read_only)

    def __enter__(self) -> ArrowStorage:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def remember(self, text: str, metadata: Mapping[str, Any] | None = None, *, vector: ArrayLike | None = None,
                 namespace: str = NAMESPACE, tags: Sequence[str] = (), time: datetime | None = None, source: str = "",
                 provenance: str = "") -> int:
        """Keep a memory; returns its id once it is on the disk. Without a vector the store's encoder makes one."""
        memory = NewMemory(text=text, metadata=metadata or {}, vector=vector, namespace=namespace, tags=tags,
                           time=time, source=source, provenance=provenance)
        return self.remember_many([memory])[0]

    def store(self, text: str, metadata: Mapping[str, Any] | None = None, *, vector: ArrayLike | None = None,
              namespace: str = NAMESPACE, tags: Sequence[str] = (), time: datetime | None = None, source: str = "",
              provenance: str = "") -> int:
        """The same as `remember`."""
        return self.remember(text, metadata, vector=vector, namespace=namespace, tags=tags, time=time, source=source,
                             provenance=provenance)

    def remember_many(self, memories: Sequence[NewMemory]) -> list[int]:
        """Keep memories with one sync: all of them or none; returns their ids."""
        if len(memories) > GROUP_MAX:
            raise LimitExceeded(f"{len(memories)} memories are more than {GROUP_MAX}", remedy="write them in groups")
        if not memories:
            return []
        prepared = [record.prepare(one) for one in memories]
        vectors = self._vectors(memories)
        with self._write():
            ids = self._store.append(prepared, vectors)
            if self._index is not None:
                self._index.add(ids, vectors)
        return ids

    def recall(self, query: str | ArrayLike, k: int = 10, filter: Filter | None = None) -> list[Memory]:
        """The k memories nearest to a text or vector, best first, of those that pass the filter."""
        found = (self._store.read(number, score) for number, score in self.nearest(query, k, filter))
        return [memory for memory in found if memory is not None]      # forgotten since the search

    def nearest(self, query: str | ArrayLike, k: int = 10, filter: Filter | None = None) -> list[tuple[int, float]]:
        """(id, score) of the same memories, which nobody has unsealed."""
        if not 1 <= k <= K_MAX:
            raise BadInput(f"k is {k}; it goes from 1 to {K_MAX}", remedy="ask for fewer")
        vector = self._query(query)
        allowed: Ids | None = None
        if filter is not None:
            allowed = self._store.select(filter)
            if len(allowed) == 0:
                return []
        return self._searching().search(vector, k, allowed)

    def search(self, query: str | ArrayLike, k: int = 10, filter: Filter | None = None) -> list[Memory]:
        """The same as `recall`."""
        return self.recall(query, k, filter)

    def read(self, number: int, score: float | None = None) -> Memory | None:
        """The memory of an id, with a score; None if it was forgotten (see `was_forgotten`) or never there."""
        return self._store.read(number, score)

    def vectors(self, numbers: Sequence[int]) -> Floats:
        """The vectors (n, dim) of memories that are there."""
        return self._store.vectors(numbers)

    def was_forgotten(self, number: int) -> bool:
        """Whether this id was a memory once."""
        return self._store.was_forgotten(number)

    def select(self, filter: Filter | None = None) -> list[int]:
        """The ids of all memories that pass, in order."""
        return sorted(self._store.select(filter or Filter()).tolist())

    def page(self, request: ListMemories) -> MemoryPage:
        """Some of the memories that pass a filter, in the order of their ids; large ones end a page early."""
        passing = self._store.select(Filter(**{name: getattr(request.filter, name) for name in CONDITIONS}))
        ids = np.sort(passing[passing > request.after])
        found, last, texts, notes = list[Memory](), request.after, 0, 0
        for number in ids[:request.limit].tolist():
            if (memory := self._store.read(number)) is not None:
                texts += len(memory.text) + (4 * self._store.dim if request.vectors else 0)
                notes += len(repr(memory.metadata))
                if found and (texts > PAGE_CHARS_MAX or notes > PAGE_NOTES_MAX):
                    break
                found.append(memory)
            last = number
        more = len(ids) > 0 and last < int(ids[-1])
        wanted = [one.id for one in found] if request.vectors else []
        vectors = tuple(np.asarray(row, "<f4").tobytes() for row in self._store.vectors(wanted)) if wanted else ()
        return MemoryPage(memories=tuple(found), total=len(ids), next=last if more else None, dim=self._store.dim,
                          vectors=vectors)

    def same(self, memory: NewMemory) -> int | None:
        """The id of a memory of the same namespace, time, source and text; None where there is none."""
        if memory.time is None:
            return None
        at = record.microseconds(memory.time)
        moment = Filter(namespaces=[memory.namespace], sources=[memory.source], since=record.moment(at),
                        until=record.moment(at + 1))
        known = (self._store.read(number) for number in self.select(moment))
        return next((one.id for one in known if one is not None and one.text == memory.text), None)

    def forget(self, what: int | Sequence[int] | Filter) -> list[int]:
        """Forget memories by id or filter; returns the ids that were there. It cannot be undone.

        A filter without any condition is refused: forgetting everything takes `select()`.
        """
        if isinstance(what, Filter):
            if what == Filter():
                raise BadInput("an empty filter would forget everything", remedy="forget(store.select()) does that")
            ids = self.select(what)
        else:
            ids = [what] if isinstance(what, int) else list(what)
        if not all(isinstance(number, int) and 0 <= number < 1 << 63 for number in ids):
            raise BadInput("an id is a whole number above 0", remedy="recall shows the ids")
        index = self._searching()                      # the saved copy goes even where nobody searched yet
        if all(self._store.was_forgotten(number) for number in ids):
            return []
        with self._write():
            index.forsake()
            gone = self._store.forget(ids)
            index.remove(gone)
        return gone

    def export(self, path: Path | str, filter: Filter | None = None) -> int:
        """Write memories to a JSONL file with everything but keys; returns how many. Refuses to replace a file."""
        target = Path(path)
        if target.exists():
            raise BadInput(f"{target} is there already", remedy="choose another name")
        return exchange.write(target, self._store.dim, self._all(self.select(filter)))

    def import_(self, path: Path | str, progress: Callable[[float], None] = lambda share: None) -> int:
        """Add the memories of an exported file under new ids, in groups; returns how many.

        Vectors of another dimension are made anew by the store's encoder. What was added before an error stays.
        """
        count, group = 0, list[NewMemory]()
        for memory in exchange.read(Path(path), self._store.dim, progress):
            group.append(memory)
            if len(group) == IMPORT_GROUP:
                count += len(self.remember_many(group))
                group.clear()
        return count + len(self.remember_many(group))

    def stats(self) -> MemoryStats:
        """Sizes and counts."""
        live, forgotten, to_compact, segments, log_rows, size = self._store.counts()
        return MemoryStats(memories=live, forgotten=forgotten, to_compact=to_compact, segments=segments,
                           log_rows=log_rows, bytes=size, dim=self._store.dim, vector=self._store.vector)

    def flush(self) -> None:
        """Turn the log into a segment and save the index, so that the next opening reads neither again."""
        with self._idle():
            self._store.flush()
            if self._index is not None:
                self._index.save()

    def compact(self) -> bool:
        """Rewrite what holds forgotten memories, without them; whether there was anything to do."""
        with self._idle():
            done = self._store.compact()
            if self._index is not None:
                self._index.save()
        return done

    def refresh(self) -> None:
        """A read-only store's newer snapshot."""
        if self._read_only and self._index is not None:
            self._index.refresh()
        elif self._read_only:
            self._store.refresh()

    def verify(self) -> int:
        """Read and check every memory; returns how many there are, raises MemoryCorrupt naming the damage.

        A damaged copy of the index is made anew.
        """
        count, index = self._store.verify(), self._searching()
        with self._idle():
            index.verify()
        return count

    def prepare(self) -> None:
        """Open the index now instead of at the first question."""
        self._searching()

    def settle(self) -> None:
        """Take what was remembered into an open index now, so that the next question need not wait for it."""
        if (index := self._index) is not None:
            index.settle()

    def close(self) -> None:
        """Save the index and let go of the files; what was acknowledged is safe without it."""
        with self._idle():
            try:
                if self._index is not None:
                    self._index.save()
            finally:
                self._index = None
                self._store.close()

    def _searching(self) -> SearchIndex:
        if (index := self._index) is not None:
            return index
        with self._idle():                             # what is remembered meanwhile would be added twice
            if self._index is None:
                self._index = SearchIndex(self._folder, self._store, self._metric, writable=not self._read_only)
            return self._index

    def _all(self, ids: list[int]) -> Iterator[tuple[Memory, Floats]]:
        for number in ids:
            memory = self._store.read(number)
            if memory is not None:
                yield memory, self._store.vectors([number])[0]

    def _query(self, query: str | ArrayLike) -> Floats:
        if isinstance(query, str):
            query = self._encoded([query])[0]
        vector: Floats = record.vectors([query], self._store.dim)[0]
        return vector

    def _vectors(self, memories: Sequence[NewMemory]) -> Floats:
        rows: list[ArrayLike | None] = [one.vector for one in memories]
        missing = [index for index, row in enumerate(rows) if row is None]
        if missing:
            for index, row in zip(missing, self._encoded([memories[index].text for index in missing]), strict=True):
                rows[index] = row
        return record.vectors([row for row in rows if row is not None], self._store.dim)

    def _encoded(self, texts: list[str]) -> list[ArrayLike]:
        if self._encode is None:
            raise BadInput("a text needs a vector to be kept or found", remedy="give one, or open with encode=...")
        return list(np.asarray(self._encode(texts), np.float32))

    @contextmanager
    def _write(self) -> Iterator[None]:
        """Many may write at once; nobody while the index is saved."""
        with self._gate:
            self._writing += 1
        try:
            yield
        finally:
            with self._gate:
                self._writing -= 1
                self._gate.notify_all()

    @contextmanager
    def _idle(self) -> Iterator[None]:
        """Wait until nobody writes, and let nobody begin."""
        with self._gate:
            self._gate.wait_for(lambda: self._writing == 0)
            yield
