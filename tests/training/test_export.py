"""An exported run is a model folder that anyone can open and judge."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aios.contracts import SamplingDefaults
from aios.errors import BadInput
from aios.model.config import TransformerConfig
from aios.model.score_network import TextScoreNetwork
from aios.store.record import TENSORS, read_record, verify
from aios.store.weights import WeightLoader
from aios.training import card
from aios.training.build import build
from aios.training.card import strictest
from aios.training.data import Corpus
from aios.training.distributed import Group
from aios.training.export import PLAIN, Trained, export, halved
from aios.training.judge import Judged, TrigramJudge, best, candidates, chosen, compare, histogram_entropy, keep
from aios.training.objective import LeftToRight, measured_by
from aios.training.plans import Plan, read_plan
from aios.training.recipes.catalogue import Origin
from aios.training.recipes.mixtures import read_mixture
from aios.training.runner import work_off
from aios.training.samples import write
from aios.training.sources import Document
from aios.training.vocabulary import MASK_ID, UNWRITTEN

CONFIG = TransformerConfig.of(16, 1, head_dim=8, time_conditioning=False)
SAMPLING = SamplingDefaults(sampler="ancestral", steps_per_token=0.5, temperature=0.8, length=8)
RECIPE = """
description = ""
vocabulary = 2048
validation_percent = 10
test_percent = 10
[sources]
tales = { share = 0.8 }
files = { share = 0.2 }
elsewhere = { share = 0.0 }
"""
PLAN = """
description = "tiny"
data = "tales"
seeds = [1]
[network]
hidden_dim = 32
num_layers = 1
head_dim = 16
time_conditioning = false
[loop]
steps = 4
batch_tokens = 64
lengths = [16]
evaluations = 2
evaluate_rows = 2
evaluate_length = 16
compile = false
device = "cpu"
precision = "f32"
[arms.spans]
objectives = { spans = 1.0 }
[arms.blocks]
objectives = { block = 0.5, spans = 0.5 }
block = 2
onward = 0.5
beside = 1.0
[arms.ar]
objectives = { ar = 1.0 }
"""


def tales(_: Path) -> Iterator[Document]:
    for index in range(60):
        yield Document(name=str(index), lines=(f"The fox number {index} ran home to its {index * 7} cubs.",))


def files(_: Path) -> Iterator[Document]:
    for index in range(60):
        yield Document(name=str(index), lines=(f"<|code|>def number_{index}(value):", f"    return value + {index}"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data of text and code in `data`, and finished runs in `runs`."""
    root = tmp_path_factory.mktemp("plan")
    (root / "tales.toml").write_text(RECIPE)
    (root / "tiny.toml").write_text(PLAN)
    (root / "tales.txt").touch()
    made = {name: Origin(files={"tales.txt": ""}, origin="here", licence=licence, read=read)
            for name, licence, read in (("tales", "CC BY-SA 4.0", tales), ("files", "MIT", files),
                                        ("elsewhere", "a secret", tales))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aios.training.build.ORIGINS", made)
        patch.setattr("aios.training.recipes.mixtures.ORIGINS", made)
        build(read_mixture(str(root / "tales.toml")), [root], root / "data")
    list(work_off(plan(root), root / "data", root / "runs", group=Group()))
    return root


def plan(root: Path) -> Plan:
    return read_plan(str(root / "tiny.toml"))


def opened(root: Path, run: str = "spans-seed-1") -> Trained:
    return Trained.open(root / "runs" / run, root / "data")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds, and the samples of one request and one gap in code."""
    monkeypatch.setattr(card, "SAMPLE_SEEDS", range(2))
    monkeypatch.setattr(card, "SAMPLES", tuple(replace(one, length=4) for one in (card.SAMPLES[1], card.SAMPLES[-1])))


@pytest.mark.usefixtures("small")
def test_a_run_becomes_a_model_that_opens_and_tells_what_it_is(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "text-tiny"
    done = export(opened(trained), folder, sampling=SAMPLING, pack=halved, machine="an abacus")
    record = read_record(folder)
    verify(record)
    assert (record.kind, record.licence, record.source) == (
        "diffusion", "CC-BY-SA-4.0", "aios train export tiny/spans-seed-1")
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in folder.iterdir())
    spec = json.loads((folder / "config.json").read_text())
    assert spec["aios"]["modalities"] == ["text", "code"]
    assert spec["aios"]["sampling"]["length"] == 8
    assert spec["length_max"] == 16
    tensors = WeightLoader.open(folder / TENSORS)
    assert tensors.card == (folder / "README.md").read_text()
    network = TextScoreNetwork.open(spec, tensors)
    assert network(torch.full((1, 4), MASK_ID)).isfinite().any()
    assert done.before.keys() == done.after.keys() == {"tales", "files", "elsewhere"}
    assert opened(trained).mixture(done.after) == pytest.approx(opened(trained).mixture(done.before), rel=1e-3)

    text = (folder / "README.md").read_text()
    for wanted in ("CC BY-SA 4.0", "elsewhere (never trained on)", "bits per byte", "on an abacus", "4 steps",
                   "256 tokens", "text and code", "`aios train run tiny`", "float16 ("):
        assert wanted in text, wanted
    assert text.count("Seed 0:") == text.count("Seed 1:") == 2
    assert "[...]\n    return best" in text
    again = export(opened(trained), folder, sampling=SAMPLING, pack=halved, machine="an abacus")
    assert again.record.release == record.release


def test_what_cannot_become_a_model_is_refused_with_its_reason(trained: Path, tmp_path: Path) -> None:
    for folder, data, why in (
        (tmp_path, None, "no run of a plan"),
        (trained / "runs" / "ar-seed-1", None, "did not learn masked diffusion"),
        (trained / "runs" / "spans-seed-1", tmp_path, "no data in"),
    ):
        with pytest.raises(BadInput, match=why):
            Trained.open(folder, data)
    run = trained / "runs" / "spans-seed-1"
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    with pytest.raises(BadInput, match="no weights yet"):
        Trained.open(tmp_path, trained / "data")
    (tmp_path / "best.safetensors").write_bytes((run / "best.safetensors").read_bytes())
    told = json.loads((run / "config.json").read_text()) | {"data_sha256": "0" * 64}
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(BadInput, match="is not what"):
        Trained.open(tmp_path, trained / "data")


def test_the_strictest_licence_is_that_of_the_model() -> None:
    assert strictest(["MIT", "public domain"]) == "MIT"
    assert strictest(["MIT, BSD-3-Clause or Apache-2.0", "WordNet 3.0 license"]) == "Apache-2.0"
    assert strictest(["CC BY-SA 4.0", "CC BY 3.0"]) == "CC-BY-SA-4.0"
    with pytest.raises(BadInput, match="how strict"):
        strictest(["ask me"])


def test_samples_keep_their_prompt_and_tail_out_and_their_seed_in() -> None:
    network = TextScoreNetwork(CONFIG, 300, never=UNWRITTEN).eval()
    given, tail = torch.tensor([[240, 241, 242]]), torch.tensor([[243, 244]])
    first, calls = write(network, given, sampling=SAMPLING, seed=1)
    again, _ = write(network, given, sampling=SAMPLING, seed=1)
    assert torch.equal(first, again)
    assert first.shape == (1, 8) and 1 <= calls <= 4
    between, _ = write(network, given, sampling=SAMPLING, seed=1, tail=tail)
    assert between.shape == (1, 8)
    assert not torch.isin(torch.cat((first, between)), torch.tensor(UNWRITTEN)).any()


def test_the_judge_prefers_the_text_it_learned_from(corpus: Corpus) -> None:
    referee = TrigramJudge(corpus, vocab_size=320, tokens=20_000, length=20)
    real = corpus.held_out_windows("houses", rows=8, length=20)
    shuffled = real[:, torch.randperm(20)]
    assert referee.nats_per_token(real) < referee.nats_per_token(shuffled) - 1.0


def test_histogram_entropy_is_that_of_each_row() -> None:
    rows = torch.tensor([[1, 1, 2, 2], [3, 3, 3, 3]])
    assert histogram_entropy(rows) == pytest.approx(torch.tensor(2.0).log().item() / 2)


@pytest.mark.usefixtures("small")
def test_a_run_that_learned_blocks_becomes_a_model_that_writes_them(trained: Path, tmp_path: Path) -> None:
    run = opened(trained, "blocks-seed-1")
    done = export(run, tmp_path / "text-blocks", sampling=chosen(run), pack=halved, machine="an abacus")
    spec = json.loads((tmp_path / "text-blocks" / "config.json").read_text())
    assert spec["aios"]["sampling"]["block"] == 2
    asked = measured_by(chosen(run))
    assert asked == LeftToRight(block=2)
    assert done.before == run.bounds(run.network(), asked)
    text = (tmp_path / "text-blocks" / "README.md").read_text()
    assert "blocks of 2" in text and "a likelihood" in text and "Upper bound" not in text


def test_candidates_are_compared_with_held_out_text(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aios.training.judge.JUDGE_TOKENS", 10_000)
    network = TextScoreNetwork(CONFIG, 320).eval()
    real, tried = compare(network, corpus, [SAMPLING], rows=4)
    assert real.sampling is None and real.matched
    assert tried.judge > real.judge
    assert 1 <= tried.calls <= 4


def test_the_best_sampler_is_one_of_matched_entropy_and_is_kept(trained: Path, tmp_path: Path) -> None:
    def told(score: float, matched: bool, temperature: float | None) -> Judged:
        sampling = None if temperature is None else replace(SAMPLING, temperature=temperature)
        return Judged(sampling=sampling, judge=score, entropy=1.0, matched=matched, calls=1)

    found = [told(1.0, True, None), told(2.0, False, 0.1), told(4.0, True, 0.9), told(3.0, True, 0.8)]
    winner = best(found)
    assert winner is not None and winner.temperature == 0.8
    assert best(found[:2]) is None
    plain, blocks = (replace(opened(trained, name), folder=tmp_path) for name in ("spans-seed-1", "blocks-seed-1"))
    assert chosen(plain) == PLAIN
    assert (chosen(blocks).sampler, chosen(blocks).block, chosen(blocks).infill_sampler) == (
        "left_to_right", 2, "confidence")
    assert {one.block for one in candidates(2)} == {2} and {one.block for one in candidates(0)} == {0}
    keep(tmp_path, winner)
    assert chosen(plain) == chosen(blocks) == winner
