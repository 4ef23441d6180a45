"""An exported run is a model folder that anyone can open and judge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from aios.contracts import SamplingDefaults
from aios.model.config import TransformerConfig
from aios.model.score_network import TextScoreNetwork
from aios.store.record import TENSORS, read_record, verify
from aios.store.weights import WeightLoader
from aios.training import card, embedded
from aios.training.data import NEVER_WRITTEN, Corpus, prepare
from aios.training.embedded import main
from aios.training.judge import TrigramJudge, compare, histogram_entropy
from aios.training.samples import write
from aios.training.sources import Document, Source
from aios.training.vocabulary import MASK_ID

CONFIG = TransformerConfig.of(32, 1, head_dim=16, time_conditioning=False)
SAMPLING = SamplingDefaults(sampler="ancestral", steps_per_token=0.5, temperature=0.8, length=8)


def some_text(_: Path) -> list[Document]:
    return [Document(name=str(index), lines=("The red house.", "Is it red?")) for index in range(300)]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of data, with every size of the command made small."""
    source = Source(name="s", file="s.parquet", weight=1.0, origin="here", licence="CC0", read=some_text)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / source.file).touch()
    for module in ("data", "card"):
        monkeypatch.setattr(f"aios.training.{module}.MIXTURE", (source,))
        elsewhere = Source(
            name="elsewhere", file="s.parquet", weight=0.0, origin="here", licence="CC0", read=some_text
        )
        monkeypatch.setattr(f"aios.training.{module}.ELSEWHERE", elsewhere)
    monkeypatch.setattr(embedded, "VOCAB_SIZE", 300)
    monkeypatch.setattr(embedded, "NETWORK", CONFIG)
    monkeypatch.setattr(embedded, "SAMPLING", SAMPLING)
    monkeypatch.setattr(embedded, "THREADS", 1)
    monkeypatch.setattr(embedded, "NICENESS", 0)
    monkeypatch.setattr(card, "SAMPLE_SEEDS", range(2))
    return tmp_path


def test_one_command_trains_and_exports_a_model_that_opens(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny / "text-tiny"
    arguments = ["--data", str(tiny / "data"), "--out", str(tiny / "run"), "--to", str(folder)]
    assert main([*arguments, "--steps", "2", "--eager"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 2

    record = read_record(folder)
    verify(record)
    assert (record.kind, record.architecture, record.licence) == (
        "diffusion",
        "aios-score-network",
        "CC-BY-SA-4.0",
    )
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in folder.iterdir())
    spec = json.loads((folder / "config.json").read_text())
    assert spec["aios"]["sampling"]["length"] == 8
    tensors = WeightLoader.open(folder / TENSORS)
    assert tensors.card == (folder / "README.md").read_text()
    assert all(record.dtype == "f16" for record in tensors.records.values())
    network = TextScoreNetwork.open(spec, tensors)
    assert network(torch.full((1, 4), MASK_ID)).isfinite().any()

    text = (folder / "README.md").read_text()
    for wanted in ("CC BY-SA 4.0", "Schema-Guided Dialogue", "elsewhere (never trained on)", "bits per byte"):
        assert wanted in text
    assert text.count("> [0]") == text.count("> [1]") == len(card.SAMPLE_PROMPTS)

    before = record.release
    assert main([*arguments, "--export", str(tiny / "run" / "checkpoint.safetensors")]) == 0
    assert read_record(folder).release == before


def test_missing_data_is_told_before_anything_is_written(tiny: Path) -> None:
    with pytest.raises(Exception, match=r"s\.parquet was not found"):
        main(["--data", str(tiny / "nowhere"), "--out", str(tiny / "run"), "--steps", "1", "--eager"])
    assert not list((tiny / "run" / "data").glob("*.npz"))


def test_prepared_data_is_used_again(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare([tiny / "data"], tiny / "run" / "data", vocab_size=300, seed=embedded.SEED)
    monkeypatch.setattr(embedded, "prepare", lambda *_, **__: pytest.fail("it is prepared already"))
    embedded.train_embedded([], tiny / "run", steps=1, compile_network=False)


def test_samples_keep_their_prompt_out_and_their_seed_in() -> None:
    network = TextScoreNetwork(CONFIG, 300, never=NEVER_WRITTEN).eval()
    given = torch.tensor([[40, 41, 42]])
    first, calls = write(network, given, sampling=SAMPLING, seed=1)
    again, _ = write(network, given, sampling=SAMPLING, seed=1)
    assert torch.equal(first, again)
    assert first.shape == (1, 8) and 1 <= calls <= 4
    assert not torch.isin(first, torch.tensor(NEVER_WRITTEN)).any()


def test_the_judge_prefers_the_text_it_learned_from(corpus: Corpus) -> None:
    judge = TrigramJudge(corpus, tokens=20_000, length=20)
    real = corpus.held_out_windows("houses", rows=8, length=20)
    shuffled = real[:, torch.randperm(20)]
    assert judge.nats_per_token(real) < judge.nats_per_token(shuffled) - 1.0


def test_histogram_entropy_is_that_of_each_row() -> None:
    rows = torch.tensor([[1, 1, 2, 2], [3, 3, 3, 3]])
    assert histogram_entropy(rows) == pytest.approx(torch.tensor(2.0).log().item() / 2)


def test_candidates_are_compared_with_held_out_text(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aios.training.judge.JUDGE_TOKENS", 10_000)
    network = TextScoreNetwork(CONFIG, 320, never=NEVER_WRITTEN).eval()
    real, tried = compare(network, corpus, [SAMPLING], rows=4)
    assert real["sampler"] == "held-out text"
    assert tried["judge"] > real["judge"]
    assert 1 <= tried["calls"] <= 4
