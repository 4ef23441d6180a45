"""What VectorIndex promises to whoever keeps vectors in it."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from aios.errors import BadInput, LimitExceeded, MemoryCorrupt, MemoryStoreError
from aios.memory.vector_index import K_MAX, NOTHING, VectorIndex

DIM = 32


def vectors(count: int, seed: int = 0, dim: int = DIM) -> np.ndarray:
    """Vectors around twenty centres, as sentences lie around topics."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((20, dim))
    return (centres[rng.integers(0, 20, count)] + rng.standard_normal((count, dim))).astype(np.float32)


def scores(metric: str, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    q, x = queries.astype(np.float64), rows.astype(np.float64)
    if metric == "l2":
        return -((q[:, None] - x[None]) ** 2).sum(-1)
    if metric == "cosine":
        q, x = q / np.linalg.norm(q, axis=1, keepdims=True), x / np.linalg.norm(x, axis=1, keepdims=True)
    return q @ x.T


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    k = found.shape[1]
    best = np.argsort(-truth, axis=1)[:, :k]
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(found.tolist(), best.tolist(), strict=True)]))


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_few_vectors_are_searched_exactly(metric):
    rows, queries = vectors(700), vectors(25, seed=1)
    index = VectorIndex(DIM, metric)
    index.add(np.arange(700), rows)
    found, told = index.search(queries, 10)
    truth = scores(metric, queries, rows)
    assert not index.has_graph and found.dtype == np.uint64 and told.dtype == np.float32
    assert recall(found, truth) == 1.0
    np.testing.assert_allclose(told, -np.sort(-truth, axis=1)[:, :10], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_many_vectors_are_searched_by_a_graph_that_grows_with_them(metric):
    rows, queries = vectors(3000), vectors(40, seed=1)
    index = VectorIndex(DIM, metric, graph_from=2000, threads=2)
    for start in range(0, 3000, 500):
        index.add(np.arange(start, start + 500), rows[start:start + 500])
        assert index.has_graph == (start + 500 >= 2000)
    found, told = index.search(queries, 10)
    assert recall(found, scores(metric, queries, rows)) >= 0.98
    exact, best = index.search(queries, 10, method="exact")
    assert recall(exact, scores(metric, queries, rows)) == 1.0
    assert np.all(told <= best + 1e-5)


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_a_filter_is_kept_and_costs_no_neighbours(share):
    rows, queries = vectors(3000), vectors(30, seed=1)
    index = VectorIndex(DIM, graph_from=1000)
    index.add(np.arange(3000) * 7, rows)
    allowed = np.random.default_rng(3).choice(3000, int(3000 * share), replace=False)
    found, _ = index.search(queries, 10, allowed * 7)
    assert set(found.ravel() // 7) <= set(allowed)
    truth = scores("cosine", queries, rows)
    truth[:, np.setdiff1d(np.arange(3000), allowed)] = -2
    assert recall(found // 7, truth) >= 0.99


def test_what_is_missing_is_said():
    index = VectorIndex(DIM)
    found, told = index.search(vectors(2), 3)
    assert np.all(found == NOTHING) and np.all(told == -np.inf)
    index.add([5], vectors(1))
    found, told = index.search(vectors(2), 3, allowed=[5, 6])
    assert found[:, 0].tolist() == [5, 5] and np.all(found[:, 1:] == NOTHING)
    assert index.search(vectors(0), 3)[0].shape == (0, 3) and index.search(vectors(2), 0)[0].shape == (2, 0)
    assert np.all(index.search(vectors(2), 3, allowed=[])[0] == NOTHING)


def test_removed_vectors_are_gone_and_their_bytes_too(tmp_path):
    rows = vectors(400)
    index = VectorIndex(DIM, graph_from=100)
    index.add(np.arange(400), rows)
    assert index.remove([7, 8, 10_000]) == 2 and index.remove([7]) == 0
    assert len(index) == 398 and not {7, 8} & set(index.ids.tolist())
    assert 7 not in index.search(rows[7:8], 398)[0]
    index.save(tmp_path / "index")
    written = (tmp_path / "index").read_bytes()
    assert rows[7].tobytes() not in written and rows[9].tobytes() in written
    index.remove(np.arange(250))
    assert len(index) == 150 and index.search(rows[300:301], 1)[0].tolist() == [[300]]


def test_an_index_is_opened_in_place_owner_only_and_goes_on(tmp_path):
    rows, path = vectors(500), tmp_path / "index.vectors"
    index = VectorIndex(DIM, "l2", graph_from=200)
    index.add(np.arange(500), rows)
    index.save(path)
    assert path.stat().st_mode & 0o777 == 0o600 and list(tmp_path.iterdir()) == [path]
    opened = VectorIndex.open(path)
    opened.verify()
    assert (opened.dim, opened.metric, len(opened), opened.has_graph) == (DIM, "l2", 500, True)
    for one, other in zip(opened.search(rows[:9], 5), index.search(rows[:9], 5), strict=True):
        np.testing.assert_array_equal(one, other)
    opened.add([900], rows[:1] + 100)
    assert opened.search(rows[:1] + 100, 1)[0].tolist() == [[900]]
    opened.save(path)
    assert len(VectorIndex.open(path)) == 501


def test_a_damaged_or_missing_file_is_refused_with_the_reason(tmp_path):
    path = tmp_path / "index.vectors"
    index = VectorIndex(DIM)
    index.add(np.arange(100), vectors(100))
    index.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(MemoryCorrupt):
        VectorIndex.open(path)
    path.write_bytes(whole[:-10_000] + b"\x55" + whole[-9_999:])
    with pytest.raises(MemoryCorrupt, match="checksum"):
        VectorIndex.open(path).verify()
    with pytest.raises(MemoryStoreError):
        VectorIndex.open(tmp_path / "nowhere")


def test_a_file_that_shrinks_while_it_is_open_is_noticed(tmp_path):
    path = tmp_path / "index.vectors"
    index = VectorIndex(512)
    index.add(np.arange(9000), vectors(9000, dim=512))
    index.save(path)
    opened = VectorIndex.open(path)
    os.truncate(path, 100_000)
    with pytest.raises(MemoryCorrupt, match="shorter"):
        opened.search(vectors(3, dim=512), 5)


@pytest.mark.parametrize(("ids", "rows"), [
    ([1, 1], vectors(2)), ([-1, 2], vectors(2)), ([1], vectors(2)), ([1.5, 2], vectors(2)),
    ([1, 2], vectors(2, dim=DIM + 1)), ([1, 2], vectors(2)[0]), ([1, 2], np.full((2, DIM), np.nan)),
    ([1, 2], np.full((2, DIM), "x")), ([0, 2], vectors(2))])
def test_what_cannot_be_added_is_refused_and_nothing_is(ids, rows):
    index = VectorIndex(DIM)
    index.add([0], vectors(1))
    with pytest.raises(BadInput):
        index.add(ids, rows)
    assert index.ids.tolist() == [0]


def test_limits_and_unknown_metrics_are_named():
    with pytest.raises(BadInput, match="hamming"):
        VectorIndex(DIM, "hamming")
    with pytest.raises(LimitExceeded):
        VectorIndex(1 << 20)
    with pytest.raises(LimitExceeded):
        VectorIndex(DIM).search(vectors(1), K_MAX + 1)
    with pytest.raises(BadInput, match="cosine or l2"):
        VectorIndex(DIM, "dot").build_graph()
    with pytest.raises(BadInput, match="no graph"):
        VectorIndex(DIM).search(vectors(1), 1, method="graph")


def test_half_and_double_precision_are_taken_as_they_are():
    rows = vectors(50)
    for kind in (np.float16, np.float64):
        index = VectorIndex(DIM)
        index.add(np.arange(50, dtype=np.int32), rows.astype(kind))
        assert index.search(rows[:5].astype(kind), 1)[0].ravel().tolist() == [0, 1, 2, 3, 4]


def test_threads_search_while_one_adds():
    index, rows, wrong = VectorIndex(DIM, graph_from=500, threads=2), vectors(2000), []
    index.add(np.arange(400), rows[:400])

    def search() -> None:
        for at in range(200):
            if index.search(rows[at:at + 1], 1, threads=1)[0][0, 0] != at:
                wrong.append(at)

    searching = [threading.Thread(target=search) for _ in range(2)]
    for one in searching:
        one.start()
    for start in range(400, 2000, 400):
        index.add(np.arange(start, start + 400), rows[start:start + 400])
    for one in searching:
        one.join()
    assert not wrong and len(index) == 2000


def test_what_a_vector_costs_is_told():
    index = VectorIndex(384, graph_from=10)
    index.add(np.arange(9), vectors(9, dim=384))
    without = index.bytes_per_vector
    index.add([9], vectors(1, dim=384))
    assert (without, index.bytes_per_vector) == (1536 + 192 + 32, 1536 + 192 + 32 + 128)
