"""The parts of `aios bench vector` that decide what a number means."""

from __future__ import annotations

import numpy as np
import pytest

from aios.lab import bench_vector
from aios.lab.report import LabOptions
from aios.lab.sentence_vectors import SentenceVectors
from aios.lab.vector_peers import numpy_search, python_loop


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A bench over random unit vectors, without peers."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((3000, 24), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    real = SentenceVectors(vectors=rows, release="r", origin="test", data={})
    monkeypatch.setattr(bench_vector, "sentence_vectors", lambda count, options: real)
    monkeypatch.setattr(bench_vector, "exact_peers", tuple)
    monkeypatch.setattr(bench_vector, "graph_peers", tuple)
    monkeypatch.setattr(bench_vector, "_lancedb", lambda *arguments: [])
    monkeypatch.setattr(bench_vector, "QUERIES_QUICK", 60)
    return bench_vector.run(LabOptions(quick=True, seed=5))


def test_the_two_plain_searches_agree():
    rng = np.random.default_rng(1)
    rows, queries = rng.standard_normal((200, 8)).astype("f4"), rng.standard_normal((3, 8)).astype("f4")
    np.testing.assert_array_equal(python_loop(rows, queries, 5), numpy_search(rows, queries, 5))


def test_every_row_of_the_table_is_there_and_a_missing_peer_counts_as_missed(small):
    rows = {row.metric: row for row in small.rows}
    assert rows["exact_recall"].value == 1.0 and rows["filtered_recall"].ok
    assert rows["exact_single_vs_python_loop"].value > 1
    assert rows["graph_qps_vs_best_peer"].value is None and rows["graph_qps_vs_best_peer"].missed
    assert rows["build_time_vs_best_peer"].missed and rows["bytes_per_vector"].value == 4 * 24 + 32 + 32 + 128
