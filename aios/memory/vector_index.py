"""Nearest vectors by id: an exact scan while they are few, a graph once they are many; both score exact rows.

    index = VectorIndex(384, "cosine")
    index.add(ids, vectors)
    ids, scores = index.search(queries, 10)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aios import _native
from aios.errors import BadInput, LimitExceeded, MemoryCorrupt, MemoryStoreError

Ids = NDArray[np.uint64]
Floats = NDArray[np.float32]
Method = Literal["auto", "exact", "graph"]

METRICS: Final = ("cosine", "dot", "l2")
NOTHING: Final = int(np.iinfo(np.uint64).max)   # the id behind the last answer; its score is minus infinity
GRAPH_FROM = 50_000             # vectors: below, a scan takes about a millisecond, and there is no graph to keep
EFFORT = 192                    # what a walk over the graph keeps in sight; `aios bench vector` tells the recall
COMPACT_SHARE = 0.5             # of the places are those of removed vectors: leave them behind
K_MAX = 4096                    # answers to a query
ADD_ROWS = 65_536               # added in one piece: bounds what a conversion of types copies


class VectorIndex:
    """Vectors of `dim` coordinates under u64 ids; threads may search at once, changes wait for each other."""

    def __init__(self, dim: int, metric: str = "cosine", *, graph_from: int = GRAPH_FROM,
                 threads: int | None = None) -> None:
        """An empty index; `threads` defaults to the usable processors. BadInput for an unknown metric."""
        if metric not in METRICS:
            raise BadInput(f"no metric is called {metric!r}", remedy="one of: " + ", ".join(METRICS))
        with _told("make an index"):
            native = _native.VectorSearch(dim, metric)
        self._take(native, graph_from, threads)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, graph_from: int = GRAPH_FROM,
             threads: int | None = None) -> VectorIndex:
        """The index that `save` wrote, mapped in place; MemoryCorrupt where its header, ids or terms are damaged.

        Codes, vectors and links are read when they are needed; `verify` checks them all.
        """
        index = cls.__new__(cls)
        with _told("open", path):
            index._take(_native.VectorSearch.open(Path(path)), graph_from, threads)
        return index

    @classmethod
    def open_sealed(cls, path: str | os.PathLike[str], key: bytes, number: int, *, graph_from: int = GRAPH_FROM,
                    threads: int | None = None) -> VectorIndex:
        """The index that `save_sealed` wrote under this key and number, opened into memory; MemoryCorrupt otherwise."""
        index = cls.__new__(cls)
        with _told("open", path):
            index._take(_native.VectorSearch.open_sealed(Path(path), key, number), graph_from, threads)
        return index

    def _take(self, native: _native.VectorSearch, graph_from: int, threads: int | None) -> None:
        self._native, self._graph_from = native, graph_from
        self._threads = threads or len(os.sched_getaffinity(0))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index to `path`, owner-only and durable; the file that was there stays until it is complete."""
        with _told("save", path):
            self._native.save(Path(path))

    def save_sealed(self, path: str | os.PathLike[str], key: bytes, number: int) -> None:
        """Write the index as `save` does, encrypted with AES-256-GCM; it opens with the same key and number only."""
        with _told("save", path):
            self._native.save_sealed(Path(path), key, number)

    def verify(self) -> None:
        """Check every byte of the file it was opened from; MemoryCorrupt where one is wrong."""
        with _told("verify"):
            self._native.verify()

    def __len__(self) -> int:
        return self._native.facts()[1]

    @property
    def dim(self) -> int:
        """Coordinates of a vector."""
        return self._native.facts()[0]

    @property
    def metric(self) -> str:
        """cosine, dot or l2."""
        return self._native.metric

    @property
    def bytes_per_vector(self) -> int:
        """Bytes that a vector takes: exact row, code, terms, id, and its links once there is a graph."""
        return self._native.facts()[3]

    @property
    def has_graph(self) -> bool:
        """Whether `search` can walk."""
        return self._native.facts()[4]

    @property
    def ids(self) -> Ids:
        """The ids that are there, in no order."""
        return np.frombuffer(self._native.ids(), "<u8").astype(np.uint64)

    def add(self, ids: ArrayLike, vectors: ArrayLike) -> None:
        """Add vectors (n, dim), kept as f32, under ids (n) that are not there yet.

        BadInput for an id that is there and for a vector that is not finite: nothing of its piece of 65,536 is added.
        The call that reaches `graph_from` makes the graph, which takes some seconds.
        """
        names, rows = _ids(ids), _rows(vectors, self.dim)
        if len(names) != len(rows):
            raise BadInput(f"{len(names)} ids for {len(rows)} vectors", remedy="give one id for each vector")
        with _told("add vectors"):
            for start in range(0, len(names), ADD_ROWS):
                end = start + ADD_ROWS
                self._native.add(names[start:end], np.ascontiguousarray(rows[start:end], np.float32), self._threads)
        if self.metric != "dot" and not self.has_graph and len(self) >= self._graph_from:
            self.build_graph()

    def remove(self, ids: ArrayLike) -> int:
        """Remove ids and zero their vectors in memory; unknown ones are passed over. Returns how many were there.

        A file that was saved before still holds them until the next `save`.
        """
        removed = self._native.remove(_ids(ids))
        _, live, places, _, _ = self._native.facts()
        if places >= self._graph_from and live < places * (1 - COMPACT_SHARE):
            self.compact()
        return removed

    def compact(self) -> None:
        """Leave the places of removed vectors behind; the graph is made anew."""
        with _told("compact"):
            self._native.compact(self._threads)

    def build_graph(self) -> None:
        """Make the graph over all vectors now; BadInput for dot: neighbours by it are not near each other."""
        with _told("make a graph"):
            self._native.build_graph(self._threads)

    def search(self, queries: ArrayLike, k: int, allowed: ArrayLike | None = None, *, method: Method = "auto",
               effort: int = EFFORT, threads: int | None = None) -> tuple[Ids, Floats]:
        """Ids and scores (n, k) of the nearest to queries (n, dim), of all or of the ids `allowed`, best first.

        Scores are exact: cosine, inner product, or minus the squared distance. Where there are fewer than k the rest
        is the id 2^64 - 1 with minus infinity. `auto` walks the graph where there is one, keeping `effort` vectors in
        sight; few allowed ids are scanned.
        """
        rows = np.ascontiguousarray(_rows(queries, self.dim), np.float32)
        if k < 0:
            raise BadInput(f"k is {k}", remedy="ask for none or more")
        if method == "graph" and not self.has_graph:
            raise BadInput("there is no graph", remedy="call build_graph, or search with the method auto")
        with _told("search"):
            if k > K_MAX:
                raise OverflowError(f"a query has at most {K_MAX} answers, not {k}")
            found, scores = np.empty((len(rows), k), np.uint64), np.empty((len(rows), k), np.float32)
            self._native.search(rows, found, scores, None if allowed is None else _ids(allowed),
                                0 if method == "exact" else max(effort, 1), threads or self._threads)
        return found, scores


def _rows(vectors: ArrayLike, dim: int) -> Floats:
    rows = np.asarray(vectors)
    if rows.ndim != 2 or rows.shape[1] != dim or rows.dtype.kind not in "fiu":
        raise BadInput(f"vectors are numbers of shape (n, {dim}), not {rows.dtype} {rows.shape}",
                       remedy="give one row for each vector")
    return rows


def _ids(ids: ArrayLike | Sequence[int]) -> Ids:
    named = np.asarray(ids)
    if named.size == 0:
        return np.empty(0, np.uint64)
    if named.ndim != 1 or named.dtype.kind not in "ui" or (named.dtype.kind == "i" and named.min() < 0):
        raise BadInput("ids are a list of whole numbers from 0 to 2^64 - 2", remedy="give one number for each vector")
    return np.ascontiguousarray(named, np.uint64)


@contextmanager
def _told(doing: str, path: str | os.PathLike[str] | None = None) -> Iterator[None]:
    """The extension's refusals as errors of AIOS."""
    where = "" if path is None else f" {os.fspath(path)}"
    try:
        yield
    except OverflowError as error:
        raise LimitExceeded(f"cannot {doing}{where}: {error}", remedy="stay within the limit") from error
    except ValueError as error:
        raise BadInput(f"cannot {doing}{where}: {error}", remedy="see the message") from error
    except OSError as error:
        if error.errno is None:
            raise MemoryCorrupt(f"cannot {doing}{where}: {error}",
                               remedy="remove the file; it is made anew from the vectors") from error
        raise MemoryStoreError(f"cannot {doing}{where}: {error.strerror}", remedy="see the message") from error
