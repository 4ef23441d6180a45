"""One run of a plan from its first or last checkpoint to its result, and where the runs of a folder stand."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer

from aios.errors import BadInput
from aios.model.score_network import TextScoreNetwork
from aios.training.build import data_sha256
from aios.training.checkpoints import held_by, owner, read_tensors, sole_owner, write_json
from aios.training.curves import draw_curves
from aios.training.data import Corpus, open_corpus
from aios.training.distributed import Group
from aios.training.loop import Training
from aios.training.objective import BlockDiffusion, LeftToRight, Objective, bound
from aios.training.plans import Plan, Run, result, settings
from aios.training.vocabulary import UNWRITTEN

FINAL_ROWS, FINAL_DRAWS = 512, 4    # windows of each held-out source, and maskings of each window, for the result
Watch = Callable[[Training, float], None]   # called after every step with its loss
State = Literal["waiting", "running", "held", "stopped", "finished"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one call of `train` did: the run, its result if it is finished, and how long this took."""

    run: Run
    result: dict[str, Any] | None
    duration_s: float


def train(plan: Plan, run: Run, data: Path, folder: Path, *, group: Group, stop_after_s: float = math.inf,
          watch: Watch | None = None) -> Outcome:
    """Train one run of a plan in `folder`, from its checkpoint if there is one, until its end or `stop_after_s`."""
    began = time.monotonic()
    corpus = open_corpus(data)
    vocab_size = Tokenizer.from_file(str(data / "tokenizer.json")).get_vocab_size(with_added_tokens=True)
    if group.leads:
        _agree_on_settings(folder, settings(plan, run, data_sha256(data), vocab_size))
    group.wait()
    torch.manual_seed(run.loop.seed)
    network = TextScoreNetwork(plan.network, vocab_size, never=UNWRITTEN)
    training = Training(network, corpus, run.loop, folder, group)
    training.resume()
    with _stopped_by_signals(training):
        for loss in training.run():
            if watch is not None:
                watch(training, loss)
            training.stopping |= time.monotonic() - began > stop_after_s
    finished = training.progress >= 1.0
    told = finish(training, folder, data) if finished and group.leads else None
    if group.leads:
        draw_curves(folder)
    return Outcome(run=run, result=told, duration_s=time.monotonic() - began)


def work_off(plan: Plan, data: Path, folder: Path, *, group: Group, stop_after_s: float = math.inf,
             watch: Watch | None = None) -> Iterator[Outcome]:
    """Train the plan's runs one after another, yielding each; ends when all are finished or time is over."""
    began = time.monotonic()
    while (run := plan.next_run(folder)) is not None:
        left = stop_after_s - (time.monotonic() - began)
        if left <= 0:
            return
        if group.leads:
            with sole_owner(folder / run.name):
                outcome = train(plan, run, data, folder / run.name, group=group, stop_after_s=left, watch=watch)
        else:
            outcome = train(plan, run, data, folder / run.name, group=group, stop_after_s=left, watch=watch)
        group.wait()
        yield outcome
        if result(folder / run.name) is None:
            return   # stopped from outside, or out of time


def _agree_on_settings(folder: Path, wanted: dict[str, Any]) -> None:
    """Write what the run computes, or hold it against what it began with; BadInput where they differ."""
    path = folder / "config.json"
    wanted = json.loads(json.dumps(wanted))
    if not path.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(wanted, path)
        return
    begun = json.loads(path.read_text(encoding="utf-8"))
    differing = sorted(name for name in wanted if wanted[name] != begun.get(name))
    if differing:
        raise BadInput(f"{folder.name} was begun with another {differing[0]}",
                       remedy=f"name another folder with --out, or remove {folder}")


@contextmanager
def _stopped_by_signals(training: Training) -> Iterator[None]:
    """While this lasts, SIGTERM and Ctrl-C end the run behind its present step, with a checkpoint."""
    def stop(_number: int, _frame: object) -> None:
        training.stopping = True

    try:
        before = [(number, signal.signal(number, stop)) for number in (signal.SIGTERM, signal.SIGINT)]
    except ValueError:
        before = []   # not the main thread: whoever owns it stops us otherwise
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def finish(training: Training, folder: Path, data: Path) -> dict[str, Any]:
    """Measure the best weights on the validation split, every objective by itself, and write the result."""
    tensors, state = read_tensors(folder / "best.safetensors")
    training.network.load_state_dict(tensors)
    config, corpus = training.config, training.corpus
    measured: dict[str, Objective] = dict(training.objectives)
    for name, asked in training.objectives.items():
        if isinstance(asked, BlockDiffusion):
            measured[f"{name}_left_to_right"] = LeftToRight(block=asked.block)
    windows = {source: corpus.held_out_windows(source, rows=FINAL_ROWS, length=config.evaluate_length)
               for source in corpus.held_out}
    bounds: dict[str, dict[str, Any]] = {
        name: {"exact": asked.exact, "nats_per_token": {
            source: bound(training.network, asked, ids, draws=FINAL_DRAWS) for source, ids in windows.items()}}
        for name, asked in measured.items()}
    for told in bounds.values():
        told["mixture"] = sum(told["nats_per_token"][name] * weight for name, weight in corpus.weights.items())
    written = {
        "steps": training.step, "tokens": training.tokens, "train_s": round(training.elapsed_s, 1),
        "parameters": sum(p.numel() for p in training.network.parameters()), "best_step": state["step"],
        "best_bound": training.best_bound, "bounds": bounds, "bits_per_byte": _bits_per_byte(bounds, corpus),
        "precision": training.precision, "device": training.device.type,
        "data_sha256": data_sha256(data), "torch": torch.__version__,
    }
    write_json(written, folder / "result.json")
    return written


def _bits_per_byte(bounds: dict[str, Any], corpus: Corpus) -> dict[str, dict[str, float]]:
    rate = {name: len(stream.tokens) / stream.bytes / math.log(2) for name, stream in corpus.held_out.items()}
    return {name: {source: nats * rate[source] for source, nats in told["nats_per_token"].items()}
            for name, told in bounds.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a run stands."""

    folder: str
    state: State
    step: int = 0
    steps: int | None = None
    loss: float | None = None
    held_out: float | None = None
    tokens_per_s: int | None = None
    pid: int | None = None
    why: str = field(default="")


def standings(root: Path) -> list[Standing]:
    """Return where every run below `root` stands."""
    folders = sorted({path.parent for name in ("config.json", "log.jsonl") for path in root.rglob(name)
                      if (path.parent / "log.jsonl").exists() or (path.parent / ".lock").exists()})
    return [_standing(folder, str(folder.relative_to(root))) for folder in folders]


def _standing(folder: Path, name: str) -> Standing:
    rows = last_rows(folder)
    told = json.loads((folder / "config.json").read_text()) if (folder / "config.json").exists() else {}
    pid, held = owner(folder), held_by(folder)
    finished = result(folder) is not None
    state: State = "finished" if finished else "held" if pid and held else "running" if pid else "stopped"
    return Standing(
        folder=name, state=state, pid=pid, why=held.name if held and not finished else "",
        step=int(rows[-1]["step"]) if rows else 0, steps=told.get("loop", {}).get("steps"),
        loss=_latest(rows, "loss"), held_out=_latest(rows, "mixture"),
        tokens_per_s=int(_latest(rows, "tokens_per_s") or 0) or None)


def last_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's log; a line that is being written is left out."""
    try:
        lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _latest(rows: Sequence[dict[str, Any]], name: str) -> float | None:
    return next((float(row[name]) for row in reversed(rows) if name in row), None)
