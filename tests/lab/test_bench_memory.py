"""The rows of `aios bench memory` on a small store."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from aios.lab import bench_memory
from aios.lab.report import LabOptions


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACKS_QUICK": 600, "ALONE_S": 0.1, "MEMORIES_QUICK": 300, "ENCRYPTED_QUICK": 200,
                        "OPENS_QUICK": 1, "SYNCS": 3}.items():
        monkeypatch.setattr(bench_memory, name, value)


def test_acknowledgements_and_openings_are_measured() -> None:
    rows = {row.metric: row for row in bench_memory.run(LabOptions(quick=True, seed=1)).rows}
    assert (rows["append_acks_per_s"].must, rows["open_1m_s"].must) == (2000, 1.0)
    assert all(row.value is not None and row.value > 0 for row in rows.values())
    assert str(rows["open_1m_s"].reason).startswith("300 memories")
    assert str(rows["open_100k_encrypted_s"].reason).startswith("200 memories, all of them encrypted")


def test_without_space_there_is_a_reason_instead_of_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    rows = {row.metric: row for row in bench_memory.run(LabOptions(quick=True, seed=1)).rows}
    assert rows["open_1m_s"].value is None and "no space" in str(rows["open_1m_s"].reason)
