"""Laws of `aios bench text`: one network on both sides, the smaller ratio judged, absence a reason."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from aios.lab import bench_text, peer_llamacpp
from aios.lab.bench_text import Arm, Writer
from aios.lab.load_models import llama, random_tensors
from aios.lab.report import LabOptions
from aios.model.language import LanguageModel

SPEC = {**llama(2), "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "intermediate_size": 96, "vocab_size": 128, "max_position_embeddings": 256}
IDS = [3, 17, 99, 4, 101]


def arm(name: str) -> Arm:
    return Arm(name=name, read=lambda ids: None, write=lambda ids: None, logits=lambda: np.ones(2), said=name)


def test_without_the_model_every_row_has_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOS_HOME", str(tmp_path))
    report = bench_text.run(LabOptions(quick=True, seed=1))
    assert {row.metric for row in report.rows} == {"prompt128_vs_llamacpp", "decode_vs_llamacpp"}
    assert all(row.missed and "aios models pull" in str(row.reason) for row in report.rows)


def test_reading_at_once_and_writing_one_after_another_end_at_the_same_logits() -> None:
    with torch.inference_mode():
        writer = Writer(LanguageModel.open(SPEC, dict(random_tensors(SPEC, 1))))
        writer.read(IDS)
        at_once = writer.logits()
        writer.read(IDS[:2])
        writer.write(IDS[2:])
    np.testing.assert_allclose(writer.logits(), at_once, atol=1e-4)


def test_each_pair_is_a_ratio_and_says_both_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_llamacpp, "version", lambda: "1.0")
    speeds = {"INT4": (300.0, 50.0), "Q4_0": (100.0, 100.0)}
    read, written = (bench_text._pair(row, which, arm("INT4"), arm("Q4_0"), speeds, LabOptions(seed=1), 2)
                     for which, row in ((0, bench_text.PROMPT), (1, bench_text.DECODE)))
    assert read.value == pytest.approx(3.0) and read.ok
    assert written.value == pytest.approx(0.5) and written.missed
    assert "INT4 50" in str(written.reason) and "Q4_0 100" in str(written.reason)


def test_llamacpp_computes_the_same_network_from_the_file_that_is_made_for_it(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    monkeypatch.setenv("AIOS_HOME", str(tmp_path))
    tensors = {name: tensor * 8 if tensor.ndim == 2 else tensor for name, tensor in random_tensors(SPEC, 2)}
    file = peer_llamacpp.gguf_file("a release", SPEC, lambda: tensors.items(), "Q8_0")
    assert file == peer_llamacpp.gguf_file("a release", SPEC, lambda: pytest.fail("made twice"), "Q8_0")
    theirs = peer_llamacpp.LlamaCpp.open(file, "Q8_0", 1)
    with torch.inference_mode():
        ours = Writer(LanguageModel.open(SPEC, tensors))
        ours.read(IDS)
        theirs.read(IDS)
        assert np.corrcoef(ours.logits(), theirs.logits())[0, 1] > 0.999
        ours.write(IDS)
        theirs.write(IDS)
        assert np.corrcoef(ours.logits(), theirs.logits())[0, 1] > 0.999


def test_what_is_judged_rounds_activations_as_the_peer_and_the_default_stands_beside(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    monkeypatch.setenv("AIOS_HOME", str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(SPEC))
    monkeypatch.setattr(bench_text, "_plain", lambda record: random_tensors(SPEC, 2))
    record: Any = SimpleNamespace(path=tmp_path, release="a release")
    with torch.inference_mode():
        rows = {row.metric: row for row in bench_text._beside_llamacpp(record, LabOptions(quick=True, seed=1), 1)}
    assert {name for name, row in rows.items() if row.must is not None} == {
        "prompt128_vs_llamacpp", "decode_vs_llamacpp", "logits_agreement"}
    for metric in ("prompt128_vs_llamacpp", "decode_vs_llamacpp"):
        assert rows[metric].value == min(rows[f"int{bits}_a8_{metric}"].value or 0.0 for bits in (4, 8))
        assert {f"int4_{metric}", f"int8_{metric}"} <= rows.keys()
        assert "activations of 8 bits" in str(rows[metric].reason)
    assert {"q4_0_decode_tokens_per_s", "int8_a8_prompt128_tokens_per_s"} <= rows.keys()
