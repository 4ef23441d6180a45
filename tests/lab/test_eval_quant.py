"""The evaluation of compression, and the scores by kind of model, on models small enough for a test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from aios.config import Places
from aios.lab import eval_quant, model_scores
from aios.lab.model_scores import score
from aios.lab.report import LabOptions
from aios.quantisation.subject import Subject
from aios.store import models
from tests.engine.conftest import write_encoder, write_language_model, write_text_model
from tests.quantisation.conftest import TEXTS


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.setenv("AIOS_HOME", str(tmp_path / "h"))
    monkeypatch.delenv("AIOS_DATA", raising=False)
    places = Places.find()
    places.create()
    write_encoder(places.models / "minilm", width=32)
    return places


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"split": split, "a": first, "b": second, "score": float(len(first) % 5)}
            for split in ("train", "dev", "test") for first in TEXTS for second in TEXTS[:4 if split == "train" else 2]]
    rows.append({"split": "train", "a": "a cat ran", "b": "the park sat", "score": 1.0})
    parquet.write_table(pa.Table.from_pylist(rows), folder / model_scores.STSB)
    parquet.write_table(pa.table({"text": [" ".join(TEXTS)] * 30}), folder / model_scores.WIKITEXT)
    return folder


def test_every_row_has_bits_interval_and_reason(home: Places, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [replace(case, recipe=replace(case.recipe, bits_mean_max=7.0)) if case.recipe.budgeted else case
             for case in eval_quant.CASES]
    monkeypatch.setattr(eval_quant, "CASES", tuple(cases))   # 2.6 bits are too few for a model that is mostly norms
    report = eval_quant.run(LabOptions(data=data, seed=1))
    rows = {row.metric: row for row in report.rows}
    assert {"minilm_sts_drop_int8", "minilm_sts_drop_int4", "minilm_sts_drop_int2"} <= set(rows)
    for case in cases:
        row = rows[case.metric]
        assert row.value is not None and row.interval is not None and row.n == 16
        assert "bits a weight, everything counted" in (row.reason or "")
    bits = rows["minilm_bits_per_weight_int2"].value
    assert bits is not None and 2.5 < bits < 8
    assert report.checkpoints == {"minilm": models.find("minilm", home).release}
    assert not list(home.models.glob("case-*"))   # compressed copies live in a scratch home


def test_without_data_or_model_rows_are_null_with_the_reason(home: Places, data: Path) -> None:
    report = eval_quant.run(LabOptions(seed=1))
    assert all(row.value is None and "AIOS_DATA" in (row.reason or "") for row in report.rows)
    assert report.exit_code == 1
    models.remove("minilm", home)
    report = eval_quant.run(LabOptions(data=data, seed=1))
    assert all("aios models pull minilm" in (row.reason or "") for row in report.rows)


def test_calibration_texts_hold_no_sentence_of_the_development_set(data: Path) -> None:
    texts = eval_quant.calibration_texts(data / model_scores.STSB, 100)
    assert texts == ["a cat ran", "the park sat"]


def test_each_kind_of_model_has_its_measure(home: Places, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_scores, "WINDOW_TOKENS", 32)
    write_language_model(home.models / "chat")
    write_text_model(home.models / "text")
    found = {name: score(Subject.open(models.find(name, home)), data) for name in ("minilm", "chat", "text")}
    assert [each.metric for each in found.values()] == ["sts_dev_spearman", "perplexity", "held_out_bound_nats"]
    assert [each.better for each in found.values()] == ["higher", "lower", "lower"]
    assert all(each.value is not None and np.isfinite(each.value) for each in found.values())
    missing = score(Subject.open(models.find("chat", home)), None)
    assert missing.value is None and "wikitext2_valid.parquet" in (missing.reason or "")
