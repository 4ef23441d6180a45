"""The evaluation of text as a whole, on models and data small enough for a test."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from aios.config import Places
from aios.lab import eval_text, heldout, int4_bound, judged_text, known_source, scratch_home, training_roots
from aios.lab.report import LabOptions, Row
from aios.lab.text_model import TextModel
from aios.ledger import Entry, Ledger
from aios.model.config import TransformerConfig
from aios.model.score_network import TextScoreNetwork
from aios.quantisation.formats import Format
from aios.quantisation.recipe import Recipe
from aios.quantisation.release import compress
from aios.store import models
from aios.store.record import TENSORS, seal
from aios.store.weights import WeightWriter
from aios.training.build import stream_sha256
from aios.training.checkpoints import write_tensors
from aios.training.data import Stream, save_stream
from aios.training.objective import Masked
from aios.training.vocabulary import EOT_ID, UNWRITTEN, file_sha256, vocabulary_path
from tests.engine.conftest import write_language_model

SHAPE = TransformerConfig.of(32, 1, head_dim=16, time_conditioning=False)
SAMPLING = {"sampler": "ancestral", "steps_per_token": 0.05, "temperature": 1.0, "length": 64}
NAME = "tiny-nano"


def write_nano(folder: Path) -> TextScoreNetwork:
    """A diffusion model of random weights over the frozen vocabulary."""
    torch.manual_seed(3)
    network = TextScoreNetwork(SHAPE, 2048, never=UNWRITTEN)
    spec = {"model_type": "aios-score-network", "aios": {"kind": "diffusion", "sampling": SAMPLING},
            "transformer": SHAPE.to_dict(), "vocab_size": 2048, "length_max": 64,
            "tokens": {"mask": 1, "eot": EOT_ID, "never": list(UNWRITTEN)}}
    folder.mkdir(parents=True, mode=0o700)
    (folder / "config.json").write_text(json.dumps(spec))
    shutil.copyfile(vocabulary_path(2048), folder / "tokenizer.json")
    with WeightWriter(folder / TENSORS) as writer:
        for name, tensor in network.state_dict().items():
            writer.add(name, tensor)
        writer.finish(spec=spec, card="", tokenizer_sha256=sha256((folder / "tokenizer.json").read_bytes()).hexdigest())
    seal(folder, name=folder.name, source="a test", source_version="0", licence="none")
    return network


def write_data(folder: Path) -> None:
    """Built data of two sources, cut by the frozen vocabulary."""
    folder.mkdir(parents=True)
    rng, streams = np.random.default_rng(1), {}
    for name in ("task_dialogues", "novels"):
        for split in ("train", "held_out"):
            tokens = rng.integers(260, 300, 4000).astype(np.uint16)
            tokens[::200] = EOT_ID
            save_stream(Stream(tokens=tokens, starts=np.array([0]), bytes=9000), folder / f"{name}.{split}.npz")
            streams[f"{name}.{split}.npz"] = stream_sha256(folder / f"{name}.{split}.npz")
    sizes = {name: {"train_tokens": 4000, "held_out_tokens": 4000} for name in ("task_dialogues", "novels")}
    (folder / "corpus.json").write_text(json.dumps({"weights": {"task_dialogues": 0.5, "novels": 0.5}, "sizes": sizes}))
    (folder / "manifest.json").write_text(json.dumps(
        {"recipe": "small", "tokenizer_sha256": file_sha256(vocabulary_path(2048)), "streams": streams}))


class Daemon:
    """As much of a daemon as answering takes."""

    @contextmanager
    def connect(self) -> Iterator[Any]:
        yield SimpleNamespace(diffuse=lambda prompt, **options: None)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.setenv("AIOS_HOME", str(tmp_path / "h"))
    monkeypatch.setenv("AIOS_EXPERIMENTS", str(tmp_path / "book"))
    monkeypatch.delenv("AIOS_DATA", raising=False)
    (tmp_path / "root" / "runs").mkdir(parents=True)
    for module in (training_roots, eval_text):
        monkeypatch.setattr(module, "checkout", lambda: tmp_path / "root")

    @contextmanager
    def daemon(**options: Any) -> Iterator[Daemon]:
        yield Daemon()

    monkeypatch.setattr(scratch_home, "scratch_daemon", daemon)
    monkeypatch.setattr(known_source, "rows", lambda options: [])
    monkeypatch.setattr(eval_text, "WINDOWS", 3)
    monkeypatch.setattr(eval_text, "WINDOWS_QUICK", 1)
    monkeypatch.setattr(eval_text, "INT4_WINDOWS", 1)
    monkeypatch.setattr(eval_text, "INT4_WINDOWS_QUICK", 1)
    monkeypatch.setattr(judged_text, "SAMPLES", 30)
    monkeypatch.setattr(judged_text, "TUNING_SAMPLES", 4)
    places = Places.find()
    places.create()
    return places


def measured(options: LabOptions) -> dict[str, Row]:
    return {row.metric: row for row in eval_text.run(options).rows}


def options(**told: Any) -> LabOptions:
    return LabOptions(seed=1, extra={"model": NAME}, **told)


def test_without_the_model_every_row_is_null_with_the_remedy(places: Places) -> None:
    rows = measured(options(quick=True))
    assert set(eval_text.SHAPES) <= set(rows)
    assert all(rows[metric].value is None and "aios models list" in (rows[metric].reason or "")
               for metric in eval_text.SHAPES)


def test_a_clone_alone_measures_the_bound_and_says_what_the_rest_needs(places: Places) -> None:
    write_nano(places.models / NAME)
    rows = measured(options())
    bits = rows["nano_heldout_bits_per_byte"]
    assert bits.value is not None and 3 < bits.value < 8 and bits.interval is not None
    assert bits.interval[0] < bits.value < bits.interval[1] and "novels" in (bits.reason or "")
    assert 0.1 < (rows["nano_backbone_share_strict"].value or 0) < 0.3, "the embedding is the head's"
    assert 1 < (rows["zstd19_bits_per_byte"].value or 0) < 5
    assert rows["int4_bound_increase_percent"].value is not None and rows["nano_diffuse64_ms"].value is not None
    for metric, remedy in (("nano_vs_5gram", "aios train data build small"), ("nano_judge_position", "build small"),
                           ("nano_ar_twin_bits_per_byte", "aios train run nano-twin"),
                           ("smollm2_bits_per_byte", "aios models pull smollm2")):
        assert rows[metric].value is None and remedy in (rows[metric].reason or "")


def test_with_data_judge_and_twin_every_row_is_measured(places: Places, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    network = write_nano(places.models / NAME)
    write_language_model(places.models / "smollm2")
    write_data(tmp_path / "built")
    twin = tmp_path / "root" / "runs" / "nano-twin" / "twin-seed-7"
    twin.mkdir(parents=True)
    write_tensors(network.state_dict(), twin / "best.safetensors", {"step": 1})
    (twin / "config.json").write_text(json.dumps({"network": SHAPE.to_dict(), "vocab_size": 2048}))
    monkeypatch.setattr("aios.lab.continuations.ENTROPY_TOLERANCE_NATS", 9.0)
    monkeypatch.setattr(judged_text, "ENTROPY_TOLERANCE_NATS", 9.0)    # random weights cannot match it
    rows = measured(options(data=tmp_path / "built", plot=tmp_path / "plot"))
    for metric in eval_text.SHAPES:
        assert rows[metric].value is not None and rows[metric].kind == "live", (metric, rows[metric].reason)
    mine, floor = rows["nano_heldout_bits_per_byte"].value, rows["ngram5_bits_per_byte"].value
    assert mine and floor and rows["nano_vs_5gram"].value == pytest.approx(mine / floor, abs=1e-3)
    samples = [json.loads(line) for line in (tmp_path / "plot" / "eval-text-samples.jsonl").read_text().splitlines()]
    assert {one["arm"] for one in samples} == {"real", "5-gram", "model"}
    assert "twin-seed-7" in (rows["nano_ar_twin_bits_per_byte"].reason or "")


def test_unmatched_entropy_is_no_position(places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nano(places.models / NAME)
    write_language_model(places.models / "smollm2")
    write_data(tmp_path / "built")
    monkeypatch.setattr(judged_text, "ENTROPY_TOLERANCE_NATS", -1.0)
    row = measured(options(data=tmp_path / "built", plot=tmp_path / "plot"))["nano_judge_position"]
    assert row.value is None and "entropy not matched" in (row.reason or "")


def test_data_cut_by_another_tokenizer_is_not_compared(places: Places, tmp_path: Path) -> None:
    write_nano(places.models / NAME)
    write_data(tmp_path / "built")
    told = json.loads((tmp_path / "built" / "manifest.json").read_text())
    (tmp_path / "built" / "manifest.json").write_text(json.dumps({**told, "tokenizer_sha256": "another"}))
    row = measured(options(data=tmp_path / "built"))["nano_vs_5gram"]
    assert row.value is None and "another tokenizer" in (row.reason or "")


def test_a_quick_run_shows_slow_rows_of_the_last_full_run(places: Places) -> None:
    write_nano(places.models / NAME)
    book = Ledger.here()
    row = Row(metric="nano_vs_5gram", value=0.8, unit="x", better="lower", must=1.0)
    release = models.find(NAME, places).release
    for number, (quick, of) in enumerate(((False, release), (True, release), (False, "another model"))):
        book.append(Entry(id=f"2026010{number + 1}T000000000Z-000001", command="eval text", argv=(), commit=None,
                          seed=1, quick=quick, machine={}, started="", duration_s=1.0, rows=(row.to_json(),),
                          checkpoints={NAME: of}))
    rows = measured(options(quick=True))
    assert (rows["nano_vs_5gram"].value, rows["nano_vs_5gram"].kind) == (0.8, "ledger")
    assert rows["nano_vs_5gram"].run == "20260101T000000000Z-000001"
    assert rows["distinct_3"].value is None and "full run" in (rows["distinct_3"].reason or "")


def test_a_model_shipped_in_four_bits_is_compared_with_the_run_it_was_made_from(places: Places, tmp_path: Path) -> None:
    network = write_nano(places.models / NAME)
    recipe = Recipe(form=Format(bits=4, group_size=32), method="rtn")
    made = compress(models.find(NAME, places), recipe, name="nano4", places=places)
    model = TextModel.open(made.record.name, places)
    roots = training_roots.TrainingRoots.of(LabOptions(seed=1))
    assert int4_bound.pair(model, roots) is None
    for run, state in (("a", {name: torch.randn_like(tensor) for name, tensor in network.state_dict().items()}),
                       ("b", network.state_dict())):
        folder = tmp_path / "root" / "runs" / "nano-cpu" / run
        folder.mkdir(parents=True)
        write_tensors(state, folder / "best.safetensors", {"step": 1})
        (folder / "config.json").write_text(json.dumps({"network": SHAPE.to_dict(), "vocab_size": 2048}))
    found = int4_bound.pair(model, roots)
    assert found is not None and "run b" in found[2], "weights of another run are not what it was made from"
    windows = model.windows(heldout.read(), 3, 1)
    value, (low, high) = int4_bound.increase(found[0], found[1], windows, 1, Masked())
    assert low <= value <= high and abs(value) < 5
    assert int4_bound.increase(found[0], found[0], windows, 1, Masked())[0] == 0.0
