"""AC-1's ratio: only from all nine runs on the same data, with its interval, on the test split where weights are."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aios.lab import ac1, training_roots
from aios.lab.report import LabOptions, Row
from aios.ledger import Entry, Ledger
from aios.model.config import TransformerConfig
from aios.model.score_network import TextScoreNetwork
from aios.training.build import data_sha256, stream_sha256
from aios.training.checkpoints import write_tensors
from aios.training.data import Stream, save_stream
from aios.training.plans import read_plan
from aios.training.vocabulary import UNWRITTEN, file_sha256

PLAN = read_plan(ac1.PLAN)
NAMES = [f"{arm}-seed-{seed}" for seed in PLAN.seeds for arm in PLAN.arms]
SHAPE = TransformerConfig.of(16, 1, head_dim=8, time_conditioning=False)
NATS = {"ar_nats": 2.0, "masked_bound_nats": 2.3, "block_bound_nats": 2.2, "block_left_to_right_nats": 2.1}


@pytest.fixture(autouse=True)
def _no_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(training_roots, "checkout", lambda: tmp_path)
    monkeypatch.delenv("AIOS_DATA", raising=False)


def entry(name: str, *, data: str = "d", steps: int | None = None, sha: str = "w", parameters: int = 7) -> Entry:
    arm, _, seed = name.partition("-seed-")
    objectives = {"ar": ["ar_nats"], "masked": ["masked_bound_nats"],
                  "block2": ["block_bound_nats", "block_left_to_right_nats"]}[arm]
    told = {"steps": steps or PLAN.loop["steps"], "parameters": parameters}
    told |= {f"{one}_per_token_mixture": NATS[one] + 0.01 * int(seed) * (arm != "ar") for one in objectives}
    rows = [Row(metric=f"{name}_{metric}", value=float(value), unit="", better="lower").to_json()
            for metric, value in told.items()]
    return Entry(id=f"20260101T00000{seed}000Z-{arm:0>6}", command="train ac1", argv=(), commit=None, seed=int(seed),
                 quick=False, machine={}, started="", duration_s=1.0, rows=tuple(rows), data={"ac1": data},
                 checkpoints={name: sha})


def by_metric(rows: list[Row]) -> dict[str, Row]:
    return {row.metric: row for row in rows}


def test_missing_and_foreign_runs_are_named(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "book")
    for name in NAMES[:-3]:
        book.append(entry(name))
    book.append(entry(NAMES[-3], data="other"))
    book.append(entry(NAMES[-2], parameters=8))
    book.append(entry(NAMES[-1], steps=10))    # shortened to see that everything works: no run of the plan
    row, = ac1.rows(LabOptions(seed=1), book)
    assert row.value is None and row.missed and row.metric == "ac1_ppl_ratio"
    assert f"{NAMES[-3]} (other data or parameters)" in (row.reason or "")
    assert f"{NAMES[-2]} (other data or parameters)" in (row.reason or "")
    assert NAMES[-1] in (row.reason or "") and NAMES[0] not in (row.reason or "")


def test_without_weights_the_recorded_validation_is_shown_and_said_to_be_one(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "book")
    for name in NAMES:
        book.append(entry(name))
    rows = by_metric(ac1.rows(LabOptions(seed=1), book))
    best = rows["ac1_ppl_ratio"]
    assert (best.value, best.kind, best.must, best.n) == (pytest.approx(math.exp(0.12), abs=1e-4), "ledger", 1.2, 3)
    assert "block2_left_to_right" in (best.reason or "") and "validation" in (best.reason or "")
    assert best.run is not None and best.interval is not None and best.interval[0] < (best.value or 0)
    assert rows["ac1_ppl_ratio_masked"].value == pytest.approx(math.exp(0.32), abs=1e-4)
    assert {row.kind for row in rows.values()} == {"ledger"}


def test_an_earlier_run_on_the_test_split_goes_before_validation(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "book")
    for name in NAMES:
        book.append(entry(name))
    live = Row(metric="ac1_ppl_ratio", value=1.05, unit="x", better="lower", must=1.2)
    book.append(Entry(id="20260102T000000000Z-aaaaaa", command="eval text", argv=(), commit=None, seed=1, quick=False,
                      machine={}, started="", duration_s=1.0, rows=(live.to_json(),)))
    row = by_metric(ac1.rows(LabOptions(seed=1), book))["ac1_ppl_ratio"]
    assert (row.value, row.kind, row.run) == (1.05, "ledger", "20260102T000000000Z-aaaaaa")


def test_the_interval_is_students_over_paired_seeds() -> None:
    value, interval = ac1.ratio([2.1, 2.2, 2.3], [2.0, 2.0, 2.0])
    half = 4.303 * 0.1 / math.sqrt(3)
    assert value == pytest.approx(math.exp(0.2))
    assert interval == pytest.approx((math.exp(0.2 - half), math.exp(0.2 + half)))
    assert ac1.ratio([2.1, 2.2], [2.0, 2.1])[1] == pytest.approx((math.exp(0.1), math.exp(0.1)))
    assert ac1.ratio([2.1], [2.0])[1] is None


def write_runs(root: Path) -> Ledger:
    """Nine untrained networks, data with a test split, and the ledger that belongs to them."""
    data, size = root / "runs" / "data" / "ac1", 300
    data.mkdir(parents=True)
    rng = np.random.default_rng(1)
    streams = {}
    for name in ("one", "two"):
        tokens = rng.integers(220, size, 700).astype(np.uint16)
        save_stream(Stream(tokens=tokens, starts=np.array([0]), bytes=2100), data / f"{name}.test.npz")
        streams[f"{name}.test.npz"] = stream_sha256(data / f"{name}.test.npz")
    (data / "corpus.json").write_text(json.dumps({"weights": {"one": 0.25, "two": 0.75}, "sizes": {}}))
    (data / "manifest.json").write_text(json.dumps({"recipe": "ac1", "tokenizer_sha256": "t", "streams": streams}))
    book = Ledger(root / "book")
    for number, name in enumerate(NAMES):
        folder = root / "runs" / "ac1" / name
        folder.mkdir(parents=True)
        torch.manual_seed(number)
        network = TextScoreNetwork(SHAPE, size, never=UNWRITTEN)
        write_tensors(network.state_dict(), folder / "best.safetensors", {"step": 1})
        config: dict[str, Any] = {"network": asdict(SHAPE), "vocab_size": size, "loop": {"block": 4, "onward": 0.5}}
        (folder / "config.json").write_text(json.dumps(config))
        book.append(entry(name, data=data_sha256(data), sha=file_sha256(folder / "best.safetensors")))
    return book


def test_with_weights_at_hand_every_run_is_judged_on_the_same_test_text(tmp_path: Path) -> None:
    book = write_runs(tmp_path)
    rows = by_metric(ac1.rows(LabOptions(seed=4, quick=True), book))
    again = by_metric(ac1.rows(LabOptions(seed=4, quick=True), book))
    best = rows["ac1_ppl_ratio"]
    assert best.kind == "live" and best.value == again["ac1_ppl_ratio"].value
    assert best.value == rows["ac1_ppl_ratio_block2_left_to_right"].value, "validation chose it, not the test split"
    assert best.value == pytest.approx(1.0, abs=0.3), "untrained networks know nothing"
    assert "test split" in (best.reason or "") and rows["ac1_ppl_ratio_validation"].kind == "ledger"


def test_weights_that_are_not_those_of_the_ledger_are_not_judged(tmp_path: Path) -> None:
    book = write_runs(tmp_path)
    with (tmp_path / "runs" / "ac1" / NAMES[0] / "best.safetensors").open("ab") as stream:
        stream.write(b" ")
    assert by_metric(ac1.rows(LabOptions(seed=4, quick=True), book))["ac1_ppl_ratio"].kind == "ledger"
