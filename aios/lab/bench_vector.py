"""`aios bench vector`: VectorIndex beside a Python loop, NumPy, faiss, usearch and lancedb on real sentence vectors.

Every recall is that of the ten nearest against an exact f32 search. Graphs are compared at the least effort at which
each reaches 0.99: a faster answer that misses neighbours is no answer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from statistics import median
from typing import Any, Final

import numpy as np

from aios.errors import AiosError
from aios.lab.report import LabOptions, Report, Row
from aios.lab.sentence_vectors import SENTENCES, SentenceVectors, sentence_vectors
from aios.lab.vector_peers import Floats, Ids, Peer, Search, exact_peers, graph_peers, lancedb_table, numpy_search
from aios.lab.vector_peers import python_loop as loop
from aios.memory.vector_index import VectorIndex

K = 10
VECTORS, VECTORS_QUICK, VECTORS_LARGE = 100_000, 10_000, 1_000_000
QUERIES, QUERIES_QUICK = 1000, 300
SINGLES, SINGLES_QUICK = 50, 20           # queries one after the other
LOOPED = 3                                # queries of the Python loop, which is slow
REPEATS, REPEATS_QUICK = 7, 3
EFFORTS: Final = (16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 256, 384, 512)
RECALL_EXACT, RECALL_GRAPH = 0.999, 0.99
ALLOWED_SHARE = 0.01
NOISE = 0.5                               # length of what is added to real unit vectors for the large index
SLICE = 100_000                           # vectors perturbed at once
INSTALL: Final = "install the peer: pip install 'aios-daemon[bench]'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Vectors to search, queries from the same source, and the true answers."""

    vectors: Floats
    queries: Floats
    truth: Ids
    threads: int
    repeats: int
    note: str

    def recall(self, found: Ids) -> float:
        """The share of the true ten that were found."""
        pairs = zip(found.tolist(), self.truth[:len(found)].tolist(), strict=True)
        return sum(len(set(one) & set(true)) for one, true in pairs) / (K * len(found))


def run(options: LabOptions) -> Report:
    """All rows; about ten minutes after the sentences were encoded once, which takes as long again."""
    count = VECTORS_QUICK if options.quick else VECTORS
    queries = QUERIES_QUICK if options.quick else QUERIES
    try:
        real = sentence_vectors(count + queries if options.quick else SENTENCES, options)
    except AiosError as error:
        reason = f"{error.message}: {error.remedy}"
        return Report.of("vector", [Row(metric="exact_single_vs_faiss_flat", value=None, unit="x", better="higher",
                                        must=1.0, aim=4.0, reason=reason)], options)
    task = _task(real, count, queries, options)
    index = VectorIndex(task.vectors.shape[1], graph_from=len(task.vectors) + 1)
    index.add(np.arange(len(task.vectors)), task.vectors)
    options.progress("exact search", 0.1)
    rows = [*_exact(index, task, options), *_graph(index, task, options), *_filtered(index, task)]
    if not options.quick:
        options.progress("a million vectors", 0.7)
        rows += _large(task, options)
    return Report.of("vector", rows, options, data=real.data, checkpoints={"minilm": real.release})


def _task(real: SentenceVectors, count: int, queries: int, options: LabOptions) -> Task:
    """Queries are drawn by the run's seed, and are not among the vectors."""
    order = np.random.default_rng(options.seed).permutation(len(real.vectors))
    chosen, rest = real.vectors[order[:queries]], real.vectors[order[queries:queries + count]]
    threads = len(os.sched_getaffinity(0))
    note = f"{len(rest):,} of the {real.origin}; {rest.shape[1]} dimensions, cosine"
    return Task(vectors=rest, queries=chosen, truth=numpy_search(rest, chosen, K), threads=threads,
                repeats=REPEATS_QUICK if options.quick else REPEATS, note=note)


def _exact(index: VectorIndex, task: Task, options: LabOptions) -> list[Row]:
    """One query at a time on one thread, and all together on all threads."""
    def ours(queries: Floats, k: int, effort: int, threads: int) -> Ids:
        return index.search(queries, k, method="exact", threads=threads)[0]

    recall = task.recall(ours(task.queries, K, 0, task.threads))
    rows = [Row(metric="exact_recall", value=recall, unit="", better="higher", must=RECALL_EXACT,
                n=len(task.queries), reason=task.note)]
    singles = task.queries[:SINGLES_QUICK if options.quick else SINGLES]
    mine, slow = _medians([lambda: ours(singles[:LOOPED], K, 0, 1), lambda: loop(task.vectors, singles[:LOOPED], K)], 3)
    rows.append(_times("exact_single_vs_python_loop", mine, slow, LOOPED, must=10, aim=50, peer="NumPy, row by row",
                       version=np.__version__, note="1 thread each, one query at a time"))
    rows += _beside(ours, lambda queries, k, effort, threads: numpy_search(task.vectors, queries, k), task, singles,
                    name="numpy", version=np.__version__, bars={})
    bars = {"faiss_flat": {"exact_single": (1.0, 4.0), "exact_batch": (1.0, 3.0)}}
    for peer in exact_peers():
        try:
            search, known = peer.build(task.vectors, task.threads), peer.version
        except (ImportError, PackageNotFoundError) as error:
            rows += [_absent(f"{way}_vs_{peer.name}", bar, error) for way, bar in bars.get(peer.name, {}).items()]
            continue
        rows += _beside(ours, search, task, singles, name=peer.name, version=known, bars=bars.get(peer.name, {}))
    return [*rows, *_lancedb(ours, task, singles)]


def _beside(ours: Search, theirs: Search, task: Task, singles: Floats, *, name: str, version: str,
            bars: dict[str, tuple[float, float]]) -> list[Row]:
    rows = []
    for way, queries, threads in (("exact_single", singles, 1), ("exact_batch", task.queries, task.threads)):
        one_by_one = way == "exact_single"
        mine, slow = _medians([_all(ours, queries, threads, one_by_one), _all(theirs, queries, threads, one_by_one)],
                              task.repeats)
        said = "1 thread each, one query at a time" if one_by_one else f"{threads} threads each, {len(queries)} queries"
        must, aim = bars.get(way, (None, None))
        recall = task.recall(theirs(queries, K, 0, threads))
        rows.append(_times(f"{way}_vs_{name}", mine, slow, len(queries), must=must, aim=aim, peer=name,
                           version=version, note=f"{said}; recall of the peer {recall:.4f}"))
    return rows


def _lancedb(ours: Search, task: Task, singles: Floats) -> list[Row]:
    """lancedb takes one query at a time and picks its threads, so that ours get as many as there are."""
    try:
        with lancedb_table(task.vectors) as search:
            mine, slow = _medians([_all(ours, singles, task.threads, True), _all(search, singles, task.threads, True)],
                                  task.repeats)
            recall = task.recall(search(singles, K, 0, task.threads))
    except ImportError as error:
        return [_absent("exact_single_vs_lancedb", (None, None), error)]
    from importlib.metadata import version

    return [_times("exact_single_vs_lancedb", mine, slow, len(singles), must=None, aim=None, peer="lancedb",
                   version=version("lancedb"), note=f"{task.threads} threads each; recall of the peer {recall:.4f}")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Walker:
    """A graph that was built, at the least effort that reaches the recall."""

    name: str
    search: Search
    build_s: float
    effort: int
    recall: float


def _graph(index: VectorIndex, task: Task, options: LabOptions) -> list[Row]:
    options.progress("building graphs", 0.2)
    began = time.perf_counter()
    index.build_graph()
    built = time.perf_counter() - began

    def search(queries: Floats, k: int, effort: int, threads: int) -> Ids:
        return index.search(queries, k, method="graph", effort=effort, threads=threads)[0]

    mine, peers, why = _tuned("ours", search, built, task), [], INSTALL
    for number, peer in enumerate(graph_peers()):
        options.progress(f"building {peer.name}", 0.25 + 0.08 * number)
        made, said = _built(peer, task)
        peers += [made] if made else []
        why = said or why
    facts: dict[str, Any] = {"unit": "x", "better": "higher", "must": 1.0, "aim": 1.5}
    if mine is None or not peers:
        reason = why if mine else f"ours does not reach a recall of {RECALL_GRAPH}"
        return [Row(metric=name, value=None, reason=reason, **facts)
                for name in ("graph_qps_vs_best_peer", "build_time_vs_best_peer")]
    times = _medians([lambda one=one: one.search(task.queries, K, one.effort, task.threads)  # type: ignore[misc]
                      for one in (mine, *peers)], task.repeats)
    qps = [len(task.queries) / seconds for seconds in times]
    told = "; ".join(f"{one.name} {rate:,.0f}/s at effort {one.effort}, recall {one.recall:.4f}, built in "
                     f"{one.build_s:.1f} s" for one, rate in zip((mine, *peers), qps, strict=True))
    best, fast = int(np.argmax(qps[1:])), min(peers, key=lambda one: one.build_s)
    return [Row(metric="graph_qps_vs_best_peer", value=qps[0] / qps[1 + best], peer=peers[best].name,
                n=task.repeats, reason=f"{task.threads} threads each, {len(task.queries)} queries; {told}", **facts),
            Row(metric="build_time_vs_best_peer", value=fast.build_s / mine.build_s, peer=fast.name, n=1,
                reason=f"{mine.build_s:.1f} s and {fast.build_s:.1f} s on {task.threads} threads each", **facts),
            Row(metric="graph_recall", value=mine.recall, unit="", better="higher", must=RECALL_GRAPH,
                n=len(task.queries), reason=f"effort {mine.effort}"),
            Row(metric="graph_qps", value=qps[0], unit="/s", better="higher", n=task.repeats)]


def _built(peer: Peer, task: Task) -> tuple[Walker | None, str | None]:
    """The peer at its least effort that reaches the recall, or why not."""
    try:
        began = time.perf_counter()
        search = peer.build(task.vectors, task.threads)
        built = time.perf_counter() - began
    except (ImportError, PackageNotFoundError) as error:
        return None, f"{INSTALL} ({error})"
    return _tuned(peer.name, search, built, task), f"no peer reaches a recall of {RECALL_GRAPH}"


def _tuned(name: str, search: Search, build_s: float, task: Task) -> Walker | None:
    for effort in EFFORTS:
        recall = task.recall(search(task.queries, K, effort, task.threads))
        if recall >= RECALL_GRAPH:
            return Walker(name=name, search=search, build_s=build_s, effort=effort, recall=recall)
    return None


def _filtered(index: VectorIndex, task: Task) -> list[Row]:
    """One vector in a hundred is allowed, drawn anew."""
    rng = np.random.default_rng(len(task.queries))
    allowed = np.sort(rng.choice(len(task.vectors), int(len(task.vectors) * ALLOWED_SHARE), replace=False))
    truth = allowed[numpy_search(task.vectors[allowed], task.queries, K)]
    few = Task(vectors=task.vectors, queries=task.queries, truth=truth, threads=task.threads, repeats=task.repeats,
               note=task.note)
    recall = few.recall(index.search(task.queries, K, allowed)[0])
    [one] = _medians([lambda: index.search(task.queries[:1], K, allowed, threads=1)], task.repeats)
    return [Row(metric="filtered_recall", value=recall, unit="", better="higher", must=0.99, n=len(task.queries),
                reason=f"{len(allowed)} of {len(task.vectors):,} allowed; one query {one * 1e3:.2f} ms"),
            Row(metric="bytes_per_vector", value=index.bytes_per_vector, unit="bytes", better="lower",
                reason="exact row 4 a coordinate, code 1/2, links 128, terms, id and table 32")]


def _large(task: Task, options: LabOptions) -> list[Row]:
    """A million vectors: the real ones, and perturbed copies of them. The peer is faiss's exact search."""
    index = VectorIndex(task.vectors.shape[1], graph_from=VECTORS_LARGE + 1)
    rng, pieces = np.random.default_rng(options.seed), [task.vectors]
    while sum(map(len, pieces)) < VECTORS_LARGE:
        picked = task.vectors[rng.integers(0, len(task.vectors), SLICE)]
        noise = rng.standard_normal(picked.shape, dtype=np.float32) * np.float32(NOISE / np.sqrt(picked.shape[1]))
        pieces.append((picked + noise) / np.linalg.norm(picked + noise, axis=1, keepdims=True))
    vectors = np.concatenate(pieces)[:VECTORS_LARGE]
    index.add(np.arange(len(vectors)), vectors)
    large = Task(vectors=vectors, queries=task.queries[:200], truth=numpy_search(vectors, task.queries[:200], K),
                 threads=task.threads, repeats=3, note=task.note)

    def ours(queries: Floats, k: int, effort: int, threads: int) -> Ids:
        return index.search(queries, k, method="exact", threads=threads)[0]

    said = f"{len(vectors):,} vectors: {len(task.vectors):,} real ones and copies of them with noise of length {NOISE}"
    recall = large.recall(ours(large.queries, K, 0, large.threads))
    [single] = _medians([_all(ours, large.queries[:10], 1, True)], large.repeats)
    rows = [Row(metric="exact_single_1m_ms", value=single / 10 * 1e3, unit="ms", better="lower", n=large.repeats,
                reason=f"{said}; 1 thread, recall {recall:.4f}")]
    options.progress("the graph of a million vectors", 0.8)
    began = time.perf_counter()
    index.build_graph()
    built = time.perf_counter() - began

    def walk(queries: Floats, k: int, effort: int, threads: int) -> Ids:
        return index.search(queries, k, method="graph", effort=effort, threads=threads)[0]

    found = _tuned("ours", walk, built, large)
    if found is None:
        return [*rows, Row(metric="graph_1m_qps", value=None, unit="/s", better="higher",
                           reason=f"it does not reach a recall of {RECALL_GRAPH}")]
    [seconds] = _medians([lambda: walk(large.queries, K, found.effort, large.threads)], large.repeats)
    return [*rows, Row(metric="graph_1m_qps", value=len(large.queries) / seconds, unit="/s", better="higher",
                       n=large.repeats, reason=f"{said}; effort {found.effort}, recall {found.recall:.4f}, "
                                               f"{large.threads} threads, built in {built:.0f} s")]


def _all(search: Search, queries: Floats, threads: int, one_by_one: bool) -> Callable[[], object]:
    if one_by_one:
        return lambda: [search(queries[at:at + 1], K, 0, threads) for at in range(len(queries))]
    return lambda: search(queries, K, 0, threads)


def _times(metric: str, mine: float, theirs: float, queries: int, *, must: float | None, aim: float | None, peer: str,
           version: str, note: str) -> Row:
    said = f"{queries / mine:,.0f} and {queries / theirs:,.0f} queries/s; {note}"
    return Row(metric=metric, value=theirs / mine, unit="x", better="higher", must=must, aim=aim, peer=peer,
               peer_version=version, reason=said)


def _absent(metric: str, bar: tuple[float | None, float | None], error: Exception) -> Row:
    return Row(metric=metric, value=None, unit="x", better="higher", must=bar[0], aim=bar[1],
               reason=f"{INSTALL} ({error})")


def _medians(arms: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each arm, which take turns, after a warm-up."""
    seconds: list[list[float]] = [[] for _ in arms]
    for turn in range(repeats + 1):
        for arm, taken in zip(arms, seconds, strict=True):
            began = time.perf_counter()
            arm()
            if turn:
                taken.append(time.perf_counter() - began)
    return [median(taken) for taken in seconds]
