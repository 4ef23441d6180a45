"""The rows about conversion are measured on a model that is made for them."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from aios.lab import bench_convert
from aios.lab.report import LabOptions


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BYTES_QUICK": 300_000, "FFN": 64, "WIDTH": 32, "POOL_BYTES": 10_000}.items():
        monkeypatch.setattr(bench_convert, name, value)


def test_speed_and_memory_are_those_of_a_conversion_in_a_process_of_its_own() -> None:
    speed, peak = bench_convert.rows(LabOptions(quick=True, seed=1))
    assert (speed.metric, speed.ok) == ("convert_gb_per_s", None)
    assert speed.value is not None and speed.value > 0
    assert (peak.metric, peak.must, peak.ok) == ("convert_peak_mb", 1024, True)


def test_without_space_there_is_a_reason_instead_of_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    assert all(row.value is None and "no space" in str(row.reason)
               for row in bench_convert.rows(LabOptions(quick=True, seed=1)))
