"""`aios train`: data, plans, runs that are held and asked for, and models made of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Run


def test_a_folder_that_is_not_there_is_named(run: Run, tmp_path: Path) -> None:
    done = run("train", "data", "build", "small", "--data", str(tmp_path / "nowhere"))
    assert done.code == 65
    assert "nowhere" in done.err


TINY = """
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
[arms.ar]
objectives = { ar = 1.0 }
[arms.masked]
objectives = { masked = 1.0 }
"""


@pytest.fixture
def tales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of one small source and a plan for it; returns the folder of the source."""
    from aios.training import build
    from aios.training.recipes import mixtures
    from aios.training.recipes.catalogue import Origin
    from aios.training.sources import Document

    def read(_: Path) -> Iterator[Document]:
        for index in range(60):
            yield Document(name=str(index), lines=(f"The fox number {index} ran home.",))

    origins = {"tales": Origin(files={"tales.txt": ""}, origin="here", licence="CC0", read=read)}
    monkeypatch.setattr(build, "ORIGINS", origins)
    monkeypatch.setattr(mixtures, "ORIGINS", origins)
    monkeypatch.setattr(os, "nice", lambda niceness: niceness)
    (tmp_path / "tales.txt").touch()
    (tmp_path / "tales.toml").write_text("description = ''\nvocabulary = 2048\nvalidation_percent = 10\n"
                                         "test_percent = 10\n[sources]\ntales = { share = 1.0 }\n")
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path


def test_from_recipe_to_recorded_runs_and_a_model(run: Run, tales: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aios.training import card, judge

    monkeypatch.setattr(card, "SAMPLE_SEEDS", range(1))
    monkeypatch.setattr(judge, "TEMPERATURES", judge.TEMPERATURES[:1])
    monkeypatch.setattr(judge, "WHOLE", judge.WHOLE[:1])
    monkeypatch.setattr(judge, "JUDGE_TOKENS", 10_000)
    built = run("train", "data", "build", str(tales / "tales.toml"), "--data", str(tales), "--out",
                str(tales / "built"), "--json")
    assert built.json["sources"]["tales"]["read"] == 60
    words = ("train", "run", str(tales / "tiny.toml"), "--data", str(tales / "built"), "--out", str(tales / "runs/t"))
    part = run(*words, "--for", "0", "--json")
    assert part.json == {"plan": "tiny", "folder": str(tales / "runs/t"), "finished_now": [], "next": "ar-seed-1"}
    done = run(*words, "--json")
    assert len(done.json["finished_now"]) == 2 and done.json["next"] is None
    (ledger,) = (tales / "ledger").glob("*.jsonl")
    entries = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [entry["id"] for entry in entries] == done.json["finished_now"]
    metrics = {row["metric"] for entry in entries for row in entry["rows"]}
    assert {"ar-seed-1_ar_nats_per_token_mixture", "masked-seed-1_masked_bound_nats_per_token_tales",
            "masked-seed-1_at_step_4"} <= metrics
    assert set(entries[0]["data"]) == {"tales", "config.json"}

    told = run("train", "status", "--runs", str(tales / "runs"), "--json").json["runs"]
    assert [one["state"] for one in told] == ["finished"] * 2
    assert "finished" in run("train", "status", "--runs", str(tales / "runs")).out
    check_export(run, tales)


def check_export(run: Run, tales: Path) -> None:
    """A finished run becomes a model in four bits; its sampler is the one that was judged best, if any was."""
    from aios.store.record import read_record, verify

    words = (str(tales / "runs/t/masked-seed-1"), "--data", str(tales / "built"))
    judged = run("train", "judge", *words, "--json").json
    assert judged["judged"][0]["sampling"] is None and len(judged["judged"]) == 2
    model = tales / "text-tiny"
    told = run("train", "export", *words, "--to", str(model), "--json").json
    assert (told["model"], told["step"], told["modalities"]) == ("text-tiny", 4, ["text"])
    assert abs(told["bound_increase_percent"]) < 2
    verify(read_record(model))
    card = (model / "README.md").read_text()
    for form in ("int4 in groups of 32 (8 tensors)", "float16 ("):
        assert form in card
    assert told["bytes"] < read_record(model).bytes
    assert run("train", "export", *words, "--bits", "5").code == 65
    assert run("train", "export", str(tales / "runs/t/ar-seed-1"), *words[1:]).code == 65


def test_runs_are_held_and_let_go(run: Run, tmp_path: Path) -> None:
    assert run("train", "pause", "--runs", str(tmp_path), "--json").json == {"held": str(tmp_path)}
    assert (tmp_path / "HOLD").exists()
    assert run("train", "resume", "--runs", str(tmp_path), "--json").json == {"resumed": True}
    assert run("train", "resume", "--runs", str(tmp_path)).out == "nothing was held\n"
    assert run("train", "pause", "--runs", str(tmp_path / "nowhere")).code == 65


def test_a_plan_without_its_data_names_the_command_that_builds_it(run: Run, tales: Path) -> None:
    done = run("train", "run", str(tales / "tiny.toml"), "--data", str(tales / "nothing"))
    assert done.code == 65
    assert "aios train data build tales" in done.err


def test_recipes_and_plans_are_listed(run: Run) -> None:
    assert {"ac1", "nano", "small"} <= {one["name"] for one in run("train", "data", "list", "--json").json["recipes"]}
    assert {"ac1", "nano", "nano-cpu"} <= {one["name"] for one in run("train", "plans", "--json").json["plans"]}
    assert "nano-cpu" in run("train", "plans").out and "2048" in run("train", "data", "list").out


def test_a_model_writes_text_in_batches(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aios.messages import Generate, Response, State, Usage, Verdict
    from aios.messages import Part as Piece

    class Engine:
        def generate_many(self, requests: Sequence[Generate]) -> Iterator[dict[int, Any]]:
            for index, request in enumerate(requests):
                yield {index: State(step=1, steps=2)}
                text = f"The answer to number {request.seed} is {request.seed} times as long as the day before it."
                verdict = Verdict(model="m", release="r", instruction_set="", threads=1, finish="stop")
                yield {index: Response(parts=(Piece(mime="text/plain", text=text),), modality=frozenset(),
                                       usage=Usage(), verdict=verdict)}

    monkeypatch.setattr("aios.engine.arrow.ArrowEngine.open", Engine)
    done = run("train", "data", "write", "--out", str(tmp_path / "w"), "--megabytes", "0.001", "--batch", "4", "--json")
    assert done.json["next"] == 8 and done.json["kept"] == 8
    rows = [json.loads(line) for line in (tmp_path / "w" / "written.jsonl").read_text().splitlines()]
    assert [row["number"] for row in rows] == list(range(8)) and rows[3]["text"].startswith("The answer to number 3")
