"""The training loop: steps, schedule, held-out bound, checkpoints that a killed run resumes from exactly."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from aios.diffusion.processes import hide
from aios.model.score_network import TextScoreNetwork
from aios.training.data import MASK_ID, Corpus
from aios.training.objective import editable_spans, held_out_bound, masked_losses
from aios.training.optimiser import MuonAdam

PAUSE_POLL_S = 1.0
LOG_EVERY_STEPS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    """How long, how fast and in what batches; `minutes` of wall time (pauses included) or exactly `steps`."""

    seed: int
    minutes: float | None = None
    steps: int | None = None
    batch_tokens: int = 4096
    lengths: tuple[int, ...] = (128, 128, 128, 256)  # step i uses lengths[i % 4]; long windows cost 15% more
    muon_lr: float = 0.02
    adam_lr: float = 0.003
    warmup_steps: int = 40
    decay_from: float = 0.4  # share of the run after which learning rates fall linearly to zero
    ema_decay: float = 0.997
    checkpoint_every_s: float = 180.0
    evaluate_every_s: float = 420.0
    evaluate_rows: int = 48
    compile: bool = True

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise ValueError("a run has either minutes or steps")

    def progress(self, step: int, elapsed_s: float) -> float:
        """Return how much of the run is over, 0 to 1."""
        done = step / self.steps if self.steps else elapsed_s / ((self.minutes or 0) * 60)
        return min(1.0, done)

    def scale(self, step: int, progress: float) -> float:
        """Return the factor on the learning rates: warm-up, plateau, linear decay to zero."""
        decay = min(1.0, (1.0 - progress) / (1.0 - self.decay_from))
        return min(1.0, (step + 1) / self.warmup_steps) * decay


class Training:
    """One run in one folder: network, moving average, optimiser, and where it stands."""

    def __init__(self, network: TextScoreNetwork, corpus: Corpus, config: LoopConfig, folder: Path) -> None:
        self.network, self.corpus, self.config, self.folder = network, corpus, config, folder
        self.average = {name: p.detach().clone() for name, p in network.named_parameters()}
        self.optimiser = MuonAdam(network, muon_lr=config.muon_lr, adam_lr=config.adam_lr)
        self.hidden = torch.compile(network.hidden, dynamic=False) if config.compile else network.hidden
        self.step, self.elapsed_s, self.tokens, self.best_bound = 0, 0.0, 0, math.inf

    @property
    def checkpoint_path(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    def run(self) -> Iterator[float]:
        """Train to the end, yielding each step's loss (a bound estimate in nats per token)."""
        started = time.monotonic() - self.elapsed_s
        saved = evaluated = time.monotonic()
        while (progress := self.config.progress(self.step, self.elapsed_s)) < 1.0:
            self._hold_while_paused()
            begin = time.monotonic()
            scale = self.config.scale(self.step, progress)
            loss = self.train_step(scale)
            now = time.monotonic()
            self.elapsed_s = now - started
            if self.step % LOG_EVERY_STEPS == 0:
                rate = self.tokens_per_step(self.step - 1) / (now - begin)
                self.log(loss=round(loss, 4), scale=round(scale, 4), tokens_per_s=round(rate))
            if now - evaluated >= self.config.evaluate_every_s:
                self.evaluate()
                evaluated = time.monotonic()
            if now - saved >= self.config.checkpoint_every_s:
                self.save()
                saved = time.monotonic()
            yield loss
        self.evaluate()
        self.save()

    def _hold_while_paused(self) -> None:
        while (self.folder.parent / "PAUSE").exists():
            time.sleep(PAUSE_POLL_S)

    def tokens_per_step(self, step: int) -> int:
        """Return how many tokens step `step` trains on."""
        length = self.config.lengths[step % len(self.config.lengths)]
        return self.config.batch_tokens // length * length

    def train_step(self, scale: float) -> float:
        """Take one optimiser step on the batch that belongs to this step; return its loss."""
        config = self.config
        length = config.lengths[self.step % len(config.lengths)]
        rows = config.batch_tokens // length
        ids = self.corpus.batch(seed=config.seed, step=self.step, rows=rows, length=length)
        rng = torch.Generator().manual_seed(config.seed * 1_000_000_007 + self.step)
        hidden = hide(ids, editable_spans(rows, length, rng), MASK_ID, rng)
        losses = masked_losses(self.network, self.hidden(hidden.ids), hidden, ids)
        loss = (losses * hidden.weights).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step(scale)
        self.step += 1
        self.tokens += ids.numel()
        decay = min(config.ema_decay, self.step / (self.step + 10))
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                self.average[name].lerp_(parameter, 1 - decay)
        return float(loss.detach())

    @contextmanager
    def averaged(self) -> Iterator[TextScoreNetwork]:
        """Lend the network with the averaged weights in it."""
        present = {name: p.detach().clone() for name, p in self.network.named_parameters()}
        self.network.load_state_dict(self.average)
        try:
            yield self.network
        finally:
            self.network.load_state_dict(present)

    def evaluate(self) -> None:
        """Log the held-out bound of the averaged weights for every source; keep the best weights."""
        bounds = {}
        with self.averaged() as network:
            for name in self.corpus.held_out:
                windows = self.corpus.held_out_windows(name, rows=self.config.evaluate_rows, length=128)
                bounds[name] = held_out_bound(network, windows, MASK_ID)
        mixed = sum(weight * bounds[name] for name, weight in self.corpus.weights.items())
        self.log(held_out={name: round(bound, 4) for name, bound in bounds.items()}, mixture=round(mixed, 4))
        if mixed < self.best_bound:
            self.best_bound = mixed
            write_tensors(
                self.average, self.folder / "best.safetensors", {"step": self.step, "mixture": mixed}
            )

    def log(self, **row: Any) -> None:
        """Append one JSON line to the loss log."""
        stamp = {"step": self.step, "tokens": self.tokens, "elapsed_s": round(self.elapsed_s, 1)}
        with (self.folder / "log.jsonl").open("a") as stream:
            stream.write(json.dumps(stamp | row) + "\n")

    def save(self) -> None:
        """Write everything that `resume` needs, atomically."""
        tensors = {f"network/{name}": p.detach() for name, p in self.network.named_parameters()}
        tensors |= {f"average/{name}": p for name, p in self.average.items()}
        tensors |= {f"optimiser/{name}": p for name, p in self.optimiser.state().items()}
        state = {
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "tokens": self.tokens,
            "best": self.best_bound,
        }
        write_tensors(tensors, self.checkpoint_path, state | {"config": asdict(self.config)})

    def resume(self) -> bool:
        """Go back to the last checkpoint, if there is one; the next step sees the batch it would have seen."""
        if not self.checkpoint_path.exists():
            return False
        tensors, state = read_tensors(self.checkpoint_path)
        groups: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "optimiser": {}}
        for key, tensor in tensors.items():
            group, _, name = key.partition("/")
            groups[group][name] = tensor
        self.network.load_state_dict(groups["network"])
        self.average = groups["average"]
        self.optimiser.load(groups["optimiser"])
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]
        self.tokens, self.best_bound = state["tokens"], state["best"]
        self._forget_log_after_checkpoint()
        return True

    def _forget_log_after_checkpoint(self) -> None:
        """Drop the rows of steps that will be taken again."""
        path = self.folder / "log.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        path.write_text("".join(line for line in lines if json.loads(line)["step"] <= self.step))


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a safetensors file with JSON metadata so that a crash leaves the old file or the new one."""
    temporary = path.with_suffix(".partial")
    save_file(
        {name: t.contiguous() for name, t in tensors.items()}, temporary, {"json": json.dumps(dict(metadata))}
    )
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the JSON metadata that `write_tensors` wrote."""
    with safe_open(path, framework="pt") as stored:
        metadata: dict[str, Any] = json.loads(stored.metadata()["json"])
        return {name: stored.get_tensor(name) for name in stored.keys()}, metadata  # noqa: SIM118
