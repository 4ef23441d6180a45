"""`aios eval memory` with stand-ins for models: what is retrieved, what counts, what is said without models."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aios.config import Places
from aios.errors import ModelMissing
from aios.lab import eval_memory
from aios.lab.eval_memory import Asked, retrieved
from aios.lab.facts import TEMPLATES
from aios.lab.memory_judge import Judge
from aios.lab.memory_overhead import overhead
from aios.lab.memory_writers import ARMS, Writer
from aios.lab.report import LabOptions, Row


class Encoder:
    """Hashed words: alike sentences are alike, names are mostly told apart."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        rows = np.zeros((len(texts), 384), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in re.findall(r"\w+", text.lower()):
                row[sum(byte * 7 ** index for index, byte in enumerate(word.encode())) % 384] += 1.0
        unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit


class Copier:
    """Answers with the number in the best passage; without memory with nothing."""

    told = "it copies"

    def __init__(self) -> None:
        self.arms: list[str] = []

    def answers(self, asked: Sequence[Asked], arm: str, options: LabOptions) -> list[str]:
        self.arms.append(arm)
        return ["" if arm == "none" else (re.findall(r"\d{3,}", one.passages[0].text) or ["none"])[0] for one in asked]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[Asked]:
    engine: Any = Encoder()
    return retrieved(engine, tmp_path_factory.mktemp("eval"), LabOptions(quick=True, seed=5))


def test_five_passages_of_each_world_are_retrieved_one_of_them_true(asked: list[Asked]) -> None:
    assert len(asked) == len(TEMPLATES) * eval_memory.RANKED_QUICK
    assert all(len(one.passages) == 5 and len(one.others) == 5 - any(
        passage.text == one.fact.told for passage in one.passages) for one in asked)
    [row] = eval_memory._ranking(asked)
    assert row.value is not None and row.value >= 80.0 and row.n == len(asked)


def test_a_mistaken_memory_differs_in_the_value_alone(asked: list[Asked]) -> None:
    rng = random.Random(1)
    for one in asked:
        passages, value = one.mistaken(rng)
        assert value != one.fact.value and len(passages) == len(one.passages)
        changed = [(old, new) for old, new in zip(one.passages, passages, strict=True) if old != new]
        assert [new.text for _, new in changed] == [old.text.replace(one.fact.value, value) for old, _ in changed]
        assert all(old.text == one.fact.told for old, _ in changed)


def test_every_row_is_measured(asked: list[Asked], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> Any:
        raise ModelMissing("no judge", remedy="none")

    copier = Copier()
    monkeypatch.setattr(Writer, "open", lambda *_: copier)
    monkeypatch.setattr(Writer, "generated", missing)
    monkeypatch.setattr(Judge, "open", missing)
    chosen = [one for one in asked if one.fact.kind == "number" and one.first][:8]
    places: Any = None
    rows = {row.metric: row for row in eval_memory._answers(places, chosen, LabOptions(quick=True, seed=1))}
    assert rows["fact_used_percent"].value == 100.0 == rows["fact_used_percent"].must * 1.25  # type: ignore[operator]
    assert rows["wrong_memory_changes_answer_percent"].value == 100.0
    assert rows["fact_used_percent_none"].value == 0.0
    assert rows["relevant_percent"].value is None and "no judge" in (rows["relevant_percent"].reason or "")
    assert copier.arms == [*ARMS, "memory"]


def test_without_models_every_must_is_null_with_its_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Places, "find", lambda: Places(
        config=tmp_path, data=tmp_path, state=tmp_path, cache=tmp_path, runtime=tmp_path))
    report = eval_memory.run(LabOptions(quick=True, seed=1))
    assert {row.metric for row in report.rows} >= set(eval_memory.ROWS)
    assert all(row.value is None and row.reason and row.missed for row in report.rows)


def test_the_cost_of_conditioning_is_measured_with_the_query_beside(tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    from aios.lab import memory_overhead

    monkeypatch.setattr(memory_overhead, "MEMORIES_QUICK", 300)
    engine: Any = Encoder()
    rows: dict[str, Row] = {row.metric: row for row in overhead(engine, tmp_path, LabOptions(quick=True, seed=2))}
    assert set(rows) == {"conditioning_overhead_ms", "query_encoding_ms"}
    assert 0.0 < (rows["conditioning_overhead_ms"].value or 0.0) < 10_000.0
