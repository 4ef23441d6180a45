"""The training loop: batches that belong to steps, learning rates, bounds, checkpoints a killed run resumes from."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from aios.model.fast_linear import repack, use_integer_products
from aios.model.score_network import TextScoreNetwork
from aios.training.allocation import keep_freed_memory
from aios.training.checkpoints import hold_while_paused, read_tensors, write_tensors
from aios.training.data import Corpus
from aios.training.distributed import Group
from aios.training.objective import Batch, Masked, Objective, Read, asked_of, bound, objective, token_losses
from aios.training.optimiser import AdamW, MuonAdam, Optimiser
from aios.training.precision import Precision, autocast, device_of, probe

LOG_EVERY_STEPS = 20
RNG_STRIDE = 1_000_000_007  # seeds of steps of different runs do not meet


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    """How long, how fast, in what batches and what for; `minutes` of wall time (pauses included) or exactly `steps`.

    objectives: name -> share of the steps; the first one's bound decides which weights are best. lengths: step i
    uses lengths[i % n], in tokens. decay_from: share of the run after which "wsd" falls linearly to zero. clip: the
    largest norm of a gradient, 0 for none. rows_at_once: rows of one pass, 0 for the whole batch. precision: "auto"
    is the faster of f32 and bf16; "int8" is for processors, where it is faster still.
    """

    seed: int
    minutes: float | None = None
    steps: int | None = None
    objectives: Mapping[str, float] = field(default_factory=lambda: {"spans": 1.0})
    block: int = 4
    onward: float = 0.0
    beside: float = 0.0
    forget: float = 0.0
    batch_tokens: int = 4096
    lengths: tuple[int, ...] = (128, 128, 128, 256)  # long windows cost 15% more
    rows_at_once: int = 0
    optimiser: Literal["muon", "adamw"] = "muon"
    muon_lr: float = 0.02
    adam_lr: float = 0.003
    weight_decay: float = 0.0
    clip: float = 0.0
    warmup_steps: int = 40
    schedule: Literal["wsd", "cosine"] = "wsd"
    decay_from: float = 0.4
    ema_decay: float = 0.997
    checkpoint_every_s: float = 180.0
    evaluations: int = 16
    evaluate_rows: int = 48
    evaluate_length: int = 128
    compile: bool = True
    device: str = "auto"
    precision: Literal["auto", "f32", "bf16", "int8"] = "auto"

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise ValueError("a run has either minutes or steps")
        if not self.objectives or min(self.objectives.values()) <= 0:
            raise ValueError("a run needs objectives, each with a share above 0")

    def progress(self, step: int, elapsed_s: float) -> float:
        """Return how much of the run is over, 0 to 1."""
        done = step / self.steps if self.steps else elapsed_s / ((self.minutes or 0) * 60)
        return min(1.0, done)

    def scale(self, step: int, progress: float) -> float:
        """Return the factor on the learning rates: warm-up, then plateau and linear decay, or half a cosine."""
        if self.schedule == "cosine":
            decay = 0.5 + 0.5 * math.cos(math.pi * progress)
        else:
            decay = min(1.0, (1.0 - progress) / (1.0 - self.decay_from))
        return min(1.0, (step + 1) / self.warmup_steps) * decay

    def tokens_of(self, step: int) -> int:
        """Return how many tokens step `step` trains on."""
        length = self.lengths[step % len(self.lengths)]
        return self.batch_tokens // length * length

    def optimiser_for(self, network: TextScoreNetwork) -> Optimiser:
        """Return a fresh optimiser."""
        if self.optimiser == "adamw":
            return AdamW(network, lr=self.adam_lr, weight_decay=self.weight_decay)
        return MuonAdam(network, muon_lr=self.muon_lr, adam_lr=self.adam_lr, weight_decay=self.weight_decay)


class Training:
    """One run in one folder: network, moving average, optimiser, and where it stands."""

    def __init__(self, network: TextScoreNetwork, corpus: Corpus, config: LoopConfig, folder: Path,
                 group: Group | None = None) -> None:
        self.device = device_of(config.device)
        self.precision: Precision = probe(self.device) if config.precision == "auto" else config.precision
        self.network, self.corpus = network.to(self.device), corpus
        if self.precision == "int8":
            use_integer_products(self.network)
            keep_freed_memory()
        self.config, self.folder, self.group = config, folder, group or Group()
        self.average = {name: p.detach().clone() for name, p in network.named_parameters()}
        self.optimiser = config.optimiser_for(network)
        self.objectives: dict[str, Objective] = {
            name: objective(name, block=config.block, forget=config.forget, onward=config.onward,
                            beside=config.beside) for name in config.objectives
        }
        if self.group.size > 1 and ("entropic" in self.objectives or config.steps is None):
            raise ValueError("several processes need a number of steps, and no entropic objective")
        self._readers: dict[tuple[str, int], Read] = {}
        score = partial(token_losses, self.network)
        # The logits are the largest tensor of a step; compiled, they are read once instead of five times. How many
        # tokens are asked for changes from step to step.
        self.score: Callable[[Tensor, Tensor], Tensor] = torch.compile(score, dynamic=True) if config.compile else score
        # A fast device must not wait for batches; "entropic" batches depend on the losses just before them.
        fast = self.device.type == "cuda" and "entropic" not in self.objectives
        self.ahead = ThreadPoolExecutor(1) if fast else None
        self._made: dict[int, Future[Batch]] = {}
        self.step, self.elapsed_s, self.tokens, self.best_bound = 0, 0.0, 0, math.inf
        self.stopping = False  # set from outside (a signal): the run is saved and ends after this step

    @property
    def checkpoint_path(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    @property
    def progress(self) -> float:
        """How much of the run is over, 0 to 1."""
        return self.config.progress(self.step, self.elapsed_s)

    def run(self) -> Iterator[float]:
        """Train to the end, or until `stopping`, yielding each step's loss (nats per token)."""
        started = time.monotonic() - self.elapsed_s
        saved = time.monotonic()
        while (progress := self.progress) < 1.0 and not self.group.agree(self.stopping):
            if self.group.leads:
                hold_while_paused(self.folder)
            self.group.wait()
            begin = time.monotonic()
            scale = self.config.scale(self.step, progress)
            loss = self.train_step(scale)
            now = time.monotonic()
            self.elapsed_s = now - started
            if self.step % LOG_EVERY_STEPS == 0:
                rate = self.config.tokens_of(self.step - 1) / (now - begin)
                self.log(loss=round(loss, 4), scale=round(scale, 4), tokens_per_s=round(rate))
            if int(self.progress * self.config.evaluations) > int(progress * self.config.evaluations):
                self.evaluate()
            if now - saved >= self.config.checkpoint_every_s:
                self.save()
                saved = time.monotonic()
            yield loss
        self.save()

    def train_step(self, scale: float) -> float:
        """Take one optimiser step on the batch that belongs to this step; return its loss."""
        config = self.config
        if self.precision == "int8":
            repack(self.network)
        chosen, batch = self.objective_of(self.step), self._batch_now()
        loss = torch.zeros((), device=self.device)
        read = self.reader(chosen, config.lengths[self.step % len(config.lengths)])
        for piece in batch.split(config.rows_at_once or len(batch.inputs)):
            moved = piece.to(self.device)
            with autocast(self.device, self.precision):
                losses = self.score(*asked_of(read(moved.inputs), moved))
            part = (losses * moved.weights[moved.where]).sum()
            part.backward()  # type: ignore[no-untyped-call]
            chosen.observe(piece, losses.detach())
            loss += part.detach()
        parameters = list(self.network.parameters())
        self.group.sum_gradients(parameters)
        if config.clip:
            torch.nn.utils.clip_grad_norm_(parameters, config.clip)
        self.optimiser.step(scale)
        self.tokens += config.tokens_of(self.step)
        self.step += 1
        decay = min(config.ema_decay, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.values()), [p.detach() for p in parameters], 1 - decay
            )
        return float(self.group.sum(loss))

    def batch_of(self, step: int) -> Batch:
        """Return this process's rows of a step: a function of seed and step (and of what "entropic" has learned)."""
        config = self.config
        length = config.lengths[step % len(config.lengths)]
        ids = self.corpus.batch(seed=config.seed, step=step, rows=config.batch_tokens // length, length=length)
        rng = torch.Generator().manual_seed(config.seed * RNG_STRIDE + step)
        batch = self.objective_of(step).batch(ids, rng, training=True)
        return batch.rows(self.group.rank, self.group.size)

    def _batch_now(self) -> Batch:
        """Return the batch of this step; with `ahead`, a thread makes the next one meanwhile."""
        if self.ahead is None:
            return self.batch_of(self.step)
        made = self._made.pop(self.step, None) or self.ahead.submit(self.batch_of, self.step)
        self._made = {self.step + 1: self.ahead.submit(self.batch_of, self.step + 1)}
        return made.result()

    def objective_of(self, step: int) -> Objective:
        """Return the objective of a step: drawn by share, from seed and step alone."""
        shares = np.array(list(self.config.objectives.values()))
        rng = np.random.default_rng((self.config.seed, step, len(shares)))
        return list(self.objectives.values())[int(rng.choice(len(shares), p=shares / shares.sum()))]

    def reader(self, chosen: Objective, length: int) -> Read:
        """Return the network as the objective reads it, compiled once for each length."""
        key = (chosen.name, length)
        if key not in self._readers:
            read = chosen.reader(self.network, length, self.device)
            self._readers[key] = torch.compile(read, dynamic=False) if self.config.compile else read
        return self._readers[key]

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
        """Log every objective's bound of the averaged weights for every held-out source; keep the best weights."""
        if not self.group.leads:
            return
        config = self.config
        found: dict[str, dict[str, float]] = {}
        with self.averaged() as network:
            for name, asked in self.objectives.items():
                found[name] = {
                    source: bound(network, asked, self.corpus.held_out_windows(
                        source, rows=config.evaluate_rows, length=config.evaluate_length))
                    for source in self.corpus.held_out
                }  # fmt: skip
        mixed = {
            name: sum(weight * bounds[source] for source, weight in self.corpus.weights.items())
            for name, bounds in found.items()
        }
        first = next(iter(found))
        plain = {name: round(value, 4) for name, value in found[first].items()}
        others = {name: round(value, 4) for name, value in mixed.items() if name != first}
        self.log(held_out=plain, mixture=round(mixed[first], 4), **({"others": others} if others else {}))
        if mixed[first] < self.best_bound:
            self.best_bound = mixed[first]
            write_tensors(
                self.average, self.folder / "best.safetensors", {"step": self.step, "mixture": mixed[first]}
            )

    def log(self, **row: Any) -> None:
        """Append one JSON line to the loss log."""
        if not self.group.leads:
            return
        stamp = {"step": self.step, "tokens": self.tokens, "elapsed_s": round(self.elapsed_s, 1)}
        with (self.folder / "log.jsonl").open("a") as stream:
            stream.write(json.dumps(stamp | row) + "\n")

    def _profiles(self) -> dict[str, Tensor]:
        """What objectives have learned about losses, by objective."""
        return {name: one.profile.squares for name, one in self.objectives.items()
                if isinstance(one, Masked) and one.profile is not None}  # fmt: skip

    def save(self) -> None:
        """Write everything that `resume` needs, atomically."""
        if not self.group.leads:
            return
        tensors: dict[str, Tensor] = {f"network/{name}": p for name, p in self.network.named_parameters()}
        tensors |= {f"average/{name}": p for name, p in self.average.items()}
        tensors |= {f"optimiser/{name}": p for name, p in self.optimiser.state().items()}
        tensors |= {f"profile/{name}": squares for name, squares in self._profiles().items()}
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
        groups: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "optimiser": {}, "profile": {}}
        for key, tensor in tensors.items():
            group, _, name = key.partition("/")
            groups[group][name] = tensor
        self.network.load_state_dict(groups["network"])
        self.average = {name: groups["average"][name].to(self.device) for name in self.average}
        self.optimiser.load(groups["optimiser"])
        for name, squares in self._profiles().items():
            squares.copy_(groups["profile"][name])
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]
        self.tokens, self.best_bound = state["tokens"], state["best"]
        if self.group.leads:
            self._forget_log_after_checkpoint()
        return True

    def _forget_log_after_checkpoint(self) -> None:
        """Drop the rows of steps that will be taken again."""
        path = self.folder / "log.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        path.write_text("".join(line for line in lines if json.loads(line)["step"] <= self.step))
