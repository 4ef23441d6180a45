"""The evaluation of the encoder, on an encoder small enough to know the answers of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from aios.lab import eval_encode
from aios.lab.peer_encoder import PeerEncoder
from aios.lab.report import LabOptions


def letters(texts: Sequence[str]) -> NDArray[np.float32]:
    """Unit vectors of letter counts: an honest, if modest, encoder."""
    counts = np.array([[1e-3 + text.lower().count(chr(97 + i)) for i in range(26)] for text in texts], dtype=np.float32)
    unit: NDArray[np.float32] = counts / np.linalg.norm(counts, axis=1, keepdims=True)
    return unit


class Model:
    """Stands in for the peer's model: the same vectors, of any length, the last turned by `angle`."""

    def __init__(self, angle: float) -> None:
        self.angle = angle

    def encode(self, texts: list[str], **_: object) -> NDArray[np.float32]:
        vectors = letters(texts) * 3
        across = np.roll(vectors[-1], 1)
        across -= (across @ vectors[-1]) / (vectors[-1] @ vectors[-1]) * vectors[-1]
        vectors[-1] += across / np.linalg.norm(across) * np.linalg.norm(vectors[-1]) * np.tan(self.angle)
        return vectors


def peer(angle: float = 0.0) -> PeerEncoder:
    return PeerEncoder(model=Model(angle), version="1.0", threads=1)


@pytest.mark.parametrize("angle", [0.0, 0.005, 0.1])
def test_the_smallest_cosine_is_that_of_the_worst_sentence(angle: float) -> None:
    texts = ["abc", "a longer sentence", "zebra"]
    row = eval_encode._equality(letters, peer(angle), texts, LabOptions())
    assert row.value == pytest.approx(np.cos(angle), abs=1e-6)
    assert row.ok == (angle < 0.014)   # cos 0.014 = 0.9999
    assert row.n == 3


def test_without_the_peer_equality_is_null_and_says_how_to_install_it() -> None:
    row = eval_encode._equality(letters, None, ["a"], LabOptions())
    assert (row.value, row.missed) == (None, True)
    assert "pip install" in (row.reason or "")


def test_without_the_data_quality_is_null_and_says_where_it_is_looked_for() -> None:
    row, = eval_encode._quality(letters, peer(), None, LabOptions())
    assert (row.value, row.missed) == (None, True)
    assert "AIOS_DATA" in (row.reason or "")


def test_quality_counts_the_development_split_and_stands_beside_a_floor(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"split": "dev", "a": "a cat sat", "b": "a cat sat", "score": 5.0},
            {"split": "dev", "a": "a cat sat", "b": "a cat ran", "score": 3.0},
            {"split": "dev", "a": "a cat sat", "b": "uuu vvv", "score": 0.0},
            {"split": "train", "a": "x", "b": "y", "score": 5.0}]
    file = tmp_path / eval_encode.STSB
    parquet.write_table(pa.Table.from_pylist(rows), file)
    quality, floor = eval_encode._quality(letters, peer(), file, LabOptions(seed=1))
    assert (quality.value, quality.n, quality.peer_value) == (1.0, 3, 1.0)
    assert (floor.metric, floor.value, floor.must) == ("sts_dev_spearman_floor", 1.0, None)


def test_without_the_model_every_must_is_null_and_says_how_to_get_it(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOS_HOME", str(tmp_path))
    report = eval_encode.run(LabOptions())
    assert [row.metric for row in report.rows] == ["min_cosine", "sts_dev_spearman"]
    assert report.exit_code == 1
    assert all("aios models pull minilm" in (row.reason or "") for row in report.rows)


def test_arms_take_turns() -> None:
    order: list[str] = []

    def arm(name: str) -> eval_encode.Encode:
        def encode(texts: Sequence[str]) -> NDArray[np.float32]:
            order.append(name)
            return letters(texts)
        return encode

    assert len(eval_encode._interleaved([arm("a"), arm("b")], ["x"], 3)) == 2
    assert order == ["a", "b"] * 4   # one warm-up each
