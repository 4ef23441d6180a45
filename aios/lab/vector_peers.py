"""The peers of `aios bench vector`: what else finds near vectors, each behind the same two calls."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ids = NDArray[Any]
#: (queries, k, effort, threads) -> ids (n, k); an exact search passes over the effort.
Search = Callable[[Floats, int, int, int], Ids]

FAISS_DEGREES: Final = (16, 32)             # links on an upper layer; 32 is the library's own example
NUMPY_QUERIES = 50                          # of one product: 20 MB of scores over 100,000 vectors
USEARCH_TYPES: Final = ("f32", "f16", "i8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A library with its settings; `build` indexes unit vectors on so many threads."""

    name: str
    package: str
    build: Callable[[Floats, int], Search]

    @property
    def version(self) -> str:
        """Of the installed package; PackageNotFoundError without it."""
        return version(self.package)


def python_loop(vectors: Floats, queries: Floats, k: int) -> Ids:
    """The k nearest by a loop over the rows, as one writes it with NumPy for one vector at a time."""
    found = []
    for query in queries:
        scores = ((float(query @ row), at) for at, row in enumerate(vectors))
        found.append([at for _, at in heapq.nlargest(k, scores)])
    return np.array(found)


def numpy_search(vectors: Floats, queries: Floats, k: int) -> Ids:
    """The k nearest by products of matrices and a partial sort."""
    found = []
    for start in range(0, len(queries), NUMPY_QUERIES):
        scores = queries[start:start + NUMPY_QUERIES] @ vectors.T
        part = np.argpartition(-scores, k, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(scores, part, axis=1), axis=1)
        found.append(np.take_along_axis(part, order, axis=1))
    return np.concatenate(found)


def exact_peers() -> Sequence[Peer]:
    """Libraries that meet every vector."""
    return (Peer(name="faiss_flat", package="faiss-cpu", build=_faiss_flat),
            Peer(name="usearch", package="usearch", build=_usearch_exact))


def graph_peers() -> Sequence[Peer]:
    """Libraries that walk a graph, each with the settings that people use."""
    faiss = [Peer(name=f"faiss HNSW{degree}", package="faiss-cpu", build=_faiss_hnsw(degree))
             for degree in FAISS_DEGREES]
    usearch = [Peer(name=f"usearch {kind}", package="usearch", build=_usearch_graph(kind)) for kind in USEARCH_TYPES]
    return (*faiss, *usearch)


def _faiss_flat(vectors: Floats, threads: int) -> Search:
    faiss: Any = import_module("faiss")
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return _by_faiss(faiss, index)


def _faiss_hnsw(degree: int) -> Callable[[Floats, int], Search]:
    def build(vectors: Floats, threads: int) -> Search:
        faiss: Any = import_module("faiss")
        faiss.omp_set_num_threads(threads)
        index = faiss.IndexHNSWFlat(vectors.shape[1], degree, faiss.METRIC_INNER_PRODUCT)
        index.add(vectors)
        return _by_faiss(faiss, index)
    return build


def _by_faiss(faiss: Any, index: Any) -> Search:
    def search(queries: Floats, k: int, effort: int, threads: int) -> Ids:
        faiss.omp_set_num_threads(threads)
        if hasattr(index, "hnsw"):
            index.hnsw.efSearch = effort
        ids: Ids = index.search(queries, k)[1]
        return ids
    return search


def _usearch_exact(vectors: Floats, threads: int) -> Search:
    usearch: Any = import_module("usearch.index")

    def search(queries: Floats, k: int, effort: int, threads: int) -> Ids:
        found = usearch.search(vectors, queries, k, usearch.MetricKind.IP, exact=True, threads=threads)
        ids: Ids = found.keys.reshape(len(queries), k)
        return ids
    return search


def _usearch_graph(kind: str) -> Callable[[Floats, int], Search]:
    def build(vectors: Floats, threads: int) -> Search:
        usearch: Any = import_module("usearch.index")
        index = usearch.Index(ndim=vectors.shape[1], metric="cos", dtype=kind)
        index.add(np.arange(len(vectors)), vectors, threads=threads)

        def search(queries: Floats, k: int, effort: int, threads: int) -> Ids:
            index.expansion_search = effort
            ids: Ids = index.search(queries, k, threads=threads).keys.reshape(len(queries), k)
            return ids
        return search
    return build


@contextmanager
def lancedb_table(vectors: Floats) -> Iterator[Search]:
    """lancedb's exact search over a table on disk, which picks its threads itself."""
    lancedb: Any = import_module("lancedb")
    import pyarrow

    with TemporaryDirectory(prefix="aios-peer-") as folder:
        flat = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), vectors.shape[1])
        rows = pyarrow.table({"id": np.arange(len(vectors)), "vector": flat})
        table = lancedb.connect(str(Path(folder))).create_table("vectors", rows)

        def search(queries: Floats, k: int, effort: int, threads: int) -> Ids:
            found = []
            for query in queries:
                asked = table.search(query).distance_type("cosine").select(["id", "_distance"]).limit(k)
                found.append(asked.to_arrow().column("id").to_numpy())
            return np.array(found)
        yield search
