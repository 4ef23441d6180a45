"""Laws of `aios bench encode`: the judged configuration is the timed one, and what is absent is a reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aios.lab import bench_encode
from aios.lab.bench_encode import Arm
from aios.lab.report import LabOptions, Row


def arm(name: str, vectors: np.ndarray | None = None) -> Arm:
    return Arm(name=name, said=f"said of {name}", version="1.0",
               encode=lambda texts: np.ones((len(texts), 2), np.float32) if vectors is None else vectors)


def by_metric(rows: list[Row]) -> dict[str, Row]:
    assert len({row.metric for row in rows}) == len(rows)
    return {row.metric: row for row in rows}


def test_without_model_or_data_every_row_has_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOS_HOME", str(tmp_path))
    report = bench_encode.run(LabOptions(quick=True, seed=1))
    assert {row.metric for row in report.rows} == {
        "encode_vs_best_peer", "encode_sentences_per_s", "encode_one_ms", "encode_load_ms", "encode_memory_share",
        "sts_drop"}
    assert all(row.missed and row.reason and "aios models pull" in row.reason for row in report.rows)


def test_the_ratio_is_the_judged_arms_to_the_fastest_peers() -> None:
    rates = {"f32": 10.0, "int8": 20.0, "int4": 30.0, "slow": 5.0, "fast": 15.0}
    row = bench_encode._ratio(rates, arm("fast"), "here")
    assert row.value == pytest.approx(2.0) and row.peer == "fast" and row.ok
    assert row.reason is not None and "int4 30" in row.reason and "slow 5" in row.reason


def test_speed_rows_are_judged_for_one_configuration_and_shown_for_all() -> None:
    ours, peers = [arm("f32"), arm("int8"), arm("int4")], [arm("sentence-transformers"), arm("onnxruntime int8")]
    options = LabOptions(quick=True, seed=1)
    rows = by_metric(bench_encode._speed(ours, peers, ["a", "b"], options, 1))
    judged = {name for name, row in rows.items() if row.must is not None}
    assert judged == {"encode_vs_best_peer", "encode_sentences_per_s", "encode_one_ms"}
    assert {"encode_sentences_per_s_f32", "encode_one_ms_int8", "onnxruntime_int8_one_ms",
            "sentence_transformers_sentences_per_s"} <= rows.keys()
    alone = by_metric(bench_encode._speed(ours, [], ["a", "b"], options, 1))["encode_vs_best_peer"]
    assert alone.value is None and alone.missed and "pip install" in str(alone.reason)


def test_a_drop_is_what_the_timed_arm_loses_of_the_rank_correlation(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gold = np.arange(6.0)
    angles = np.linspace(1.5, 0.0, 6)
    unit = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    first = np.tile([[1.0, 0.0]], (6, 1))
    exact = np.concatenate([first, unit]).astype(np.float32)
    worse = np.concatenate([first, unit[[1, 0, 2, 3, 4, 5]]]).astype(np.float32)
    monkeypatch.setattr(bench_encode, "sts_pairs", lambda file, split: (["a"] * 6, ["b"] * 6, gold))
    arms = [arm("f32", exact), arm("int8", exact), arm("int4", worse)]
    rows = by_metric(bench_encode._drops(arms, [], tmp_path, LabOptions(seed=1)))
    assert rows["sts_drop_int8"].value == pytest.approx(0.0) and rows["sts_drop_int8"].must is None
    dropped = rows["sts_drop"]
    assert dropped.value == pytest.approx(1 - (1 - 6 * 2 / (6 * 35))) and dropped.missed
    assert replace(dropped, value=0.002).ok
