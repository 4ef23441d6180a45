"""Valid calls on the native index of vectors, and its file as an input to be damaged."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from aios import _native
from aios.lab.parsers.arguments import Guarded
from aios.lab.parsers.mutations import Sample

DIM, COUNT = 20, 40
KEY = bytes(32)

Made = tuple[Callable[..., object], tuple[Any, ...], Guarded]
Make = Callable[[random.Random, Path], Made]


def index(graph: bool = True) -> _native.VectorSearch:
    """An index of forty vectors, one of them removed."""
    made = _native.VectorSearch(DIM, "l2" if graph else "cosine")
    made.add(np.arange(COUNT, dtype=np.uint64), _vectors(COUNT))
    if graph:
        made.build_graph()
    made.remove(np.array([3], np.uint64))
    return made


def samples(scratch: Path) -> list[Sample]:
    """The files of such indexes, with and without a graph."""
    found = []
    for graph in (False, True):
        path = scratch / f"sample-{graph}.vectors"
        index(graph).save(path)
        found.append(Sample(name=path.name, data=path.read_bytes()))
    return found


def search(made: _native.VectorSearch) -> list[object]:
    """Everything that an index answers; what a damaged file must survive once it was opened."""
    dim, _, _, _, graph = made.facts()
    queries = np.ones((5, dim), np.float32)
    ids, scores = np.zeros((5, 7), np.uint64), np.zeros((5, 7), np.float32)
    for effort in (0, 16) if graph else (0,):
        made.search(queries, ids, scores, None, effort)
    return [ids.tolist(), made.ids(), made.facts()]


def _vectors(count: int) -> Any:
    return np.random.default_rng(count).standard_normal((count, DIM), dtype=np.float32)


def _search(rng: random.Random, scratch: Path) -> Made:
    guarded, count, k = Guarded(), rng.randint(0, 6), rng.randint(0, 12)
    ids, scores = guarded.array(np.zeros((count, k), np.uint64)), guarded.array(np.zeros((count, k), np.float32))
    allowed = None if rng.random() < 0.5 else np.arange(rng.randint(0, COUNT), dtype=np.uint64)
    return (index(rng.random() < 0.5).search, (_vectors(count), ids, scores, allowed, rng.choice((0, 8)), 1), guarded)


def _add(rng: random.Random, scratch: Path) -> Made:
    count = rng.randint(0, 5)
    ids = np.arange(COUNT, COUNT + count, dtype=np.uint64)
    return (index(rng.random() < 0.5).add, (ids, _vectors(count), 1), Guarded())


def _open(rng: random.Random, scratch: Path) -> Made:
    path = scratch / "opened.vectors"
    if not path.exists():
        index().save(path)
    return (_native.VectorSearch.open, (str(path),), Guarded())


def _open_sealed(rng: random.Random, scratch: Path) -> Made:
    path = scratch / "opened.sealed"
    if not path.exists():
        index().save_sealed(path, KEY, 7)
    return (_native.VectorSearch.open_sealed, (str(path), KEY, 7), Guarded())


def _saved_sealed(rng: random.Random, scratch: Path) -> Made:
    return (index().save_sealed, ("begun.parquet", KEY, 7), Guarded())


def _saved(rng: random.Random, scratch: Path) -> Made:
    return (index().save, ("begun.parquet",), Guarded())    # relative: a part of it is too


def _method(name: str, *arguments: Any) -> Make:
    return lambda rng, scratch: (getattr(index(), name), arguments, Guarded())


MAKERS: Final[Mapping[str, Make]] = {
    "VectorSearch": lambda rng, scratch: (_native.VectorSearch, (DIM, "cosine"), Guarded()),
    "VectorSearch.open": _open,
    "VectorSearch.open_sealed": _open_sealed,
    "VectorSearch.save": _saved,
    "VectorSearch.save_sealed": _saved_sealed,
    "VectorSearch.verify": _method("verify"),
    "VectorSearch.add": _add,
    "VectorSearch.remove": _method("remove", np.array([1, 2, 99], np.uint64)),
    "VectorSearch.search": _search,
    "VectorSearch.build_graph": _method("build_graph", 1),
    "VectorSearch.compact": _method("compact", 1),
    "VectorSearch.ids": _method("ids"),
    "VectorSearch.facts": _method("facts"),
    "VectorSearch.metric": lambda rng, scratch: (lambda *nothing: index(False).metric, (), Guarded()),
}
