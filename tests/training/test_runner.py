"""Plans, their queue, and runs that are killed, held and asked where they stand."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aios.errors import AlreadyRunning, BadInput
from aios.training import plans
from aios.training.checkpoints import HOLD, PAUSE, held_by, owner, read_tensors, sole_owner
from aios.training.data import Corpus, save_stream
from aios.training.distributed import Group
from aios.training.plans import Plan, read_plan, result
from aios.training.runner import standings, train, work_off
from aios.training.vocabulary import RESERVED, train_vocabulary

PLAN = """
description = "tiny"
data = "houses"
seeds = [1, 2]
[network]
hidden_dim = 16
num_layers = 1
head_dim = 8
time_conditioning = false
[loop]
steps = 6
batch_tokens = 128
lengths = [16]
warmup_steps = 2
evaluations = 2
evaluate_rows = 4
evaluate_length = 16
compile = false
device = "cpu"
precision = "f32"
[arms.ar]
objectives = { ar = 1.0 }
[arms.both]
objectives = { spans = 0.5, block = 0.5 }
[trials]
steps = 3
grid = [{ muon_lr = 0.0 }, { optimiser = "adamw", adam_lr = 0.02 }]
"""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    (tmp_path / "tiny.toml").write_text(PLAN)
    return read_plan(str(tmp_path / "tiny.toml"))


@pytest.fixture
def data(tmp_path: Path, corpus: Corpus) -> Path:
    """The colours' corpus as `aios train data build` would have written it; ids move behind the reserved ones."""
    folder = tmp_path / "data"
    folder.mkdir()
    train_vocabulary(["red green blue"] * 9, 560).save(str(folder / "tokenizer.json"))
    for split, streams in (("train", corpus.train), ("held_out", corpus.held_out)):
        moved = replace(streams["houses"], tokens=streams["houses"].tokens % 200 + len(RESERVED))
        save_stream(moved, folder / f"houses.{split}.npz")
    sizes = {"houses": {"train_tokens": 1, "held_out_tokens": 1}}
    (folder / "corpus.json").write_text(json.dumps({"weights": {"houses": 1.0}, "sizes": sizes}))
    (folder / "manifest.json").write_text(json.dumps({"tokenizer_sha256": "0", "streams": {}}))
    return folder


def test_a_plan_tries_every_arm_alike_and_trains_the_best_with_every_seed(
    plan: Plan, data: Path, tmp_path: Path
) -> None:
    names = [outcome.run.name for outcome in work_off(plan, data, tmp_path / "out", group=Group())]
    assert names == plan.names() == [
        "trial-ar-0", "trial-ar-1", "trial-both-0", "trial-both-1",
        "ar-seed-1", "both-seed-1", "ar-seed-2", "both-seed-2"]  # fmt: skip
    chosen = plan.chosen(tmp_path / "out")
    for arm, number in chosen.items():
        tried = [result(tmp_path / "out" / f"trial-{arm}-{n}") for n in (0, 1)]
        assert tried[number]["best_bound"] == min(told["best_bound"] for told in tried)
        begun = json.loads((tmp_path / "out" / f"{arm}-seed-2" / "config.json").read_text())
        assert begun["loop"]["optimiser"] == ("adamw" if number else "muon")
    assert list(work_off(plan, data, tmp_path / "out", group=Group())) == []


def test_a_result_says_what_is_exact_and_what_a_bound(plan: Plan, data: Path, tmp_path: Path) -> None:
    arms = {"both": {"objectives": {"ar": 0.5, "block": 0.5}}}
    alone = replace(plan, arms=arms, trials=(), seeds=(1,))
    (outcome,) = work_off(alone, data, tmp_path / "out", group=Group())
    told = outcome.result
    assert told is not None
    assert (told["bounds"]["ar"]["exact"], told["bounds"]["block"]["exact"]) == (True, False)
    assert told["bounds"]["ar"]["mixture"] == pytest.approx(told["bounds"]["ar"]["nats_per_token"]["houses"])
    assert told["bits_per_byte"]["ar"]["houses"] > 0
    assert (tmp_path / "out" / "both-seed-1" / "curves.png").stat().st_size > 1000


def first(plan: Plan) -> plans.Run:
    return next(iter(plan.trial_runs()))


def test_a_stopped_run_goes_on_to_the_same_weights(plan: Plan, data: Path, tmp_path: Path) -> None:
    run = first(plan)
    whole = train(plan, run, data, tmp_path / "whole", group=Group())
    seen: list[float] = []

    def kill(_training: object, loss: float) -> None:
        seen.append(loss)
        if len(seen) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = train(plan, run, data, tmp_path / "part", group=Group(), watch=kill)
    assert len(seen) == 1 and stopped.result is None, "it ends behind the step, with a checkpoint"
    again = train(plan, run, data, tmp_path / "part", group=Group(), watch=lambda _, loss: seen.append(loss))
    assert len(seen) == 3
    assert whole.result is not None and again.result is not None
    assert again.result["bounds"] == whole.result["bounds"]
    for name, tensor in read_tensors(tmp_path / "whole" / "checkpoint.safetensors")[0].items():
        assert torch.equal(tensor, read_tensors(tmp_path / "part" / "checkpoint.safetensors")[0][name])


def test_a_window_of_time_ends_with_a_checkpoint(plan: Plan, data: Path, tmp_path: Path) -> None:
    outcome = train(plan, first(plan), data, tmp_path / "run", group=Group(), stop_after_s=0.0)
    assert outcome.result is None
    assert read_tensors(tmp_path / "run" / "checkpoint.safetensors")[1]["step"] == 1


def test_a_run_is_not_continued_with_other_settings(plan: Plan, data: Path, tmp_path: Path) -> None:
    train(plan, first(plan), data, tmp_path / "run", group=Group(), stop_after_s=0.0)
    other = replace(first(plan), loop=replace(first(plan).loop, muon_lr=0.5))
    with pytest.raises(BadInput, match="another loop"):
        train(plan, other, data, tmp_path / "run", group=Group())


def test_a_run_has_one_process(tmp_path: Path) -> None:
    with sole_owner(tmp_path / "run"):
        assert owner(tmp_path / "run") == os.getpid()
        with pytest.raises(AlreadyRunning), sole_owner(tmp_path / "run"):
            pass
    assert owner(tmp_path / "run") is None


def test_a_run_is_held_from_its_folders_above(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "ac1" / "one"
    folder.mkdir(parents=True)
    assert held_by(folder) is None
    (tmp_path / "runs" / HOLD).touch()
    assert held_by(folder) == tmp_path / "runs" / HOLD
    (tmp_path / "runs" / HOLD).unlink()
    pause = tmp_path / "runs" / PAUSE
    pause.write_text(f"{os.getpid()}\n")
    assert held_by(folder) == pause
    pause.write_text("4194304999\n")
    assert held_by(folder) is None, "whoever paused it is dead"


def test_standings_tell_what_runs_and_what_is_done(plan: Plan, data: Path, tmp_path: Path) -> None:
    work = work_off(plan, data, tmp_path / "out", group=Group())
    next(work)
    train(plan, list(plan.trial_runs())[1], data, tmp_path / "out" / "trial-ar-1", group=Group(), stop_after_s=0.0)
    with sole_owner(tmp_path / "out" / "trial-ar-1"):
        found = {one.folder: one for one in standings(tmp_path)}
        assert found["out/trial-ar-0"].state == "finished" and found["out/trial-ar-0"].step == 3
        assert found["out/trial-ar-1"].state == "running" and found["out/trial-ar-1"].pid == os.getpid()
        (tmp_path / "out" / HOLD).touch()
        assert {one.folder: one.state for one in standings(tmp_path)}["out/trial-ar-1"] == "held"
    stopped = {one.folder: one for one in standings(tmp_path)}["out/trial-ar-1"]
    assert (stopped.state, stopped.why, stopped.steps) == ("stopped", HOLD, 3)


@pytest.mark.parametrize("name", plans.names())
def test_the_plans_that_aios_brings_are_sound(name: str) -> None:
    found = read_plan(name)
    assert found.names()
    short = plans.shortened(found, 2)
    assert all(run.loop.steps == 2 for run in short.full_runs(dict.fromkeys(short.arms, 0)))


@pytest.mark.parametrize(
    ("line", "told", "wrong"),
    [
        ("seeds = [1, 2]", "seeds = [1]\nx = 1", "'x'"),
        ("seeds = [1, 2]", "seeds = []", "seeds"),
        ("steps = 6", "step = 6", "'step'"),
        ("steps = 6", "steps = 'six'", "Expected `int"),
        ("hidden_dim = 16", "hidden_dim = 16\nheads = 2", "heads"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(line: str, told: str, wrong: str, tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(PLAN.replace(line, told))
    with pytest.raises(BadInput, match=wrong):
        read_plan(str(tmp_path / "p.toml"))


def test_every_nano_is_backbone_for_the_most_part() -> None:
    from aios.model.score_network import TextScoreNetwork
    from aios.training.recipes.mixtures import read_mixture

    for name, most in (("nano", 30e6), ("nano-cpu", 7e6)):
        told = read_plan(name)
        network = TextScoreNetwork(told.network, read_mixture(told.data).vocabulary)
        total = sum(p.numel() for p in network.parameters())
        layers = sum(p.numel() for p in network.backbone.parameters())
        assert layers / total > 0.9
        assert total < most


