"""`aios bench train`: our training loop beside a plain one of transformers, and training that is killed and goes on.

Both loops train the network of the plan `nano-cpu` on the same random tokens with AdamW and clipping, on the next
token at every position; ours is what `aios train run` runs, with its moving average. The rates of the plan as it is
(its mixture of objectives, Muon) and of masked diffusion with AdamW stand beside.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from aios.lab.killed_training import equal_after_kills, synthetic
from aios.lab.machine import torch_threads
from aios.lab.report import LabOptions, Report, Row
from aios.lab.train_products import GAP, gap_rows, step_row

if TYPE_CHECKING:

    from aios.lab.peer_training import PeerTraining
    from aios.model.config import TransformerConfig
    from aios.training.loop import LoopConfig, Training

PLAN: Final = "nano-cpu"
VOCABULARY: Final = 2048
LENGTH: Final = 128                      # of every row, in both loops
ROWS_AT_ONCE: Final = 8                  # of ours: a layer's activations stay in the cache
REPEATS, REPEATS_QUICK = 15, 5
WARM_UP: Final = 2                       # steps: compilation, and the optimiser's first touch of its memory
LAYERS_QUICK: Final = 2                  # to compile a whole network takes longer than a quick run has
KILLS, KILLS_QUICK = 3, 1
RESAMPLES: Final = 1000

Seconds = list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is trained: the network's shape and the loop that the arms vary."""

    shape: TransformerConfig
    loop: LoopConfig
    threads: int
    seed: int

    @classmethod
    def of(cls, options: LabOptions) -> Setting:
        """The plan's, with rows of one length; fewer layers in a quick run."""
        from aios.training.plans import read_plan

        plan = read_plan(PLAN)
        loop = replace(next(iter(plan.full_runs({}))).loop, lengths=(LENGTH,), rows_at_once=ROWS_AT_ONCE)
        shape = replace(plan.network, num_layers=LAYERS_QUICK) if options.quick else plan.network
        return cls(shape=shape, loop=loop, threads=len(os.sched_getaffinity(0)), seed=options.seed)

    def ours(self, folder: Path, **changes: Any) -> Training:
        """Our loop with random weights."""
        import torch

        from aios.model.score_network import TextScoreNetwork
        from aios.training.loop import Training
        from aios.training.vocabulary import UNWRITTEN

        torch.manual_seed(self.seed)
        network = TextScoreNetwork(self.shape, VOCABULARY, never=UNWRITTEN)
        corpus = synthetic(self.seed, VOCABULARY, tokens=100_000)
        return Training(network, corpus, replace(self.loop, **changes), folder)

    def __str__(self) -> str:
        return (f"{self.shape.num_layers} layers of width {self.shape.hidden_dim}, "
                f"batches of {self.loop.batch_tokens} tokens in rows of {LENGTH} (ours in pieces of {ROWS_AT_ONCE} "
                f"rows), {self.threads} threads")


def run(options: LabOptions) -> Report:
    """All rows; a quarter of an hour, most of it for compiling and for the peers."""
    setting = Setting.of(options)
    with tempfile.TemporaryDirectory(prefix="aios-bench-") as scratch:
        with torch_threads(setting.threads):
            if options.only == GAP.metric:
                return Report.of("train", gap_rows(options, Path(scratch)), options)
            rows = _speed(setting, options, Path(scratch))
            rows.append(step_row(options, Path(scratch), interleaved, ratio, setting.threads))
            rows += gap_rows(options, Path(scratch))
        options.progress("killing a run", 0.95)
        rows.append(_resume_row(options, Path(scratch)))
    return Report.of("train", rows, options)


def _speed(setting: Setting, options: LabOptions, scratch: Path) -> list[Row]:
    """Every arm takes one step in turn; medians."""
    next_token = {"objectives": {"ar": 1.0}, "optimiser": "adamw", "weight_decay": 0.0}
    masked = {**next_token, "objectives": {"masked": 1.0}}
    shares = setting.loop.objectives
    ours = {f"plan {name}": setting.ours(scratch, objectives={name: 1.0}) for name in shares}
    ours |= {"ar": setting.ours(scratch, **next_token), "masked": setting.ours(scratch, **masked)}
    loop = ours["ar"].config
    peers = {"peer": _peer(setting, ours["ar"], compiled=False), "peer compiled": _peer(setting, ours["ar"],
                                                                                       compiled=True)}
    steps: dict[str, Callable[[], float]] = {name: _stepping(training) for name, training in ours.items()}
    steps |= {name: _peer_stepping(peer, ours["ar"]) for name, peer in peers.items() if peer is not None}
    seconds = interleaved(steps, REPEATS_QUICK if options.quick else REPEATS,
                          lambda name, done: options.progress(name, 0.05 + 0.8 * done))
    tokens = loop.tokens_of(0)
    note = f"{setting}, {ours['ar'].precision}, compiled"
    step = sum(share * median(seconds[f"plan {name}"]) for name, share in shares.items()) / sum(shares.values())
    each = ", ".join(f"{name} {tokens / median(seconds[f'plan {name}']):,.0f}" for name in shares)
    own = Row(metric="train_tokens_per_s", value=tokens / step, unit="tokens/s", better="higher",
              n=len(seconds["ar"]), reason=f"plan {PLAN} as it is (Muon; {each}), {note}")
    return [own, *_beside(seconds, peers, tokens, note, setting.seed)]


def _beside(seconds: Mapping[str, Seconds], peers: Mapping[str, PeerTraining | None], tokens: int, note: str,
            seed: int) -> list[Row]:
    """Ours beside the peer at its best."""
    from aios.lab.peer_training import INSTALL, PEER

    shape: dict[str, Any] = {"unit": "x", "better": "higher", "peer": PEER}
    known = {name: peer for name, peer in peers.items() if peer is not None}
    if not known:
        return [Row(metric="train_vs_plain_loop", value=None, must=1.0, aim=1.5, reason=INSTALL, **shape)]
    best = min(known, key=lambda name: median(seconds[name]))
    others = ", ".join(f"{name} {tokens / median(seconds[name]):,.0f} tokens/s" for name in known)
    facts = {**shape, "peer_version": known[best].version, "n": len(seconds[best])}
    rows = []
    for metric, arm, must, aim, what in (
        ("train_vs_plain_loop", "ar", 1.0, 1.5, "both next tokens with AdamW"),
        ("train_masked_vs_plain_loop", "masked", None, None, "ours masked diffusion, the peer next tokens, both AdamW"),
    ):
        value, interval = ratio(seconds[best], seconds[arm], seed)
        reason = f"{what}; {known[best].parameters:,} parameters, {note}; {others}"
        rows.append(Row(metric=metric, value=value, interval=interval, must=must, aim=aim, reason=reason, **facts))
    return rows


def ratio(theirs: Seconds, ours: Seconds, seed: int) -> tuple[float, tuple[float, float]]:
    """How many times faster ours is, by medians, with a 95 % bootstrap interval over the paired rounds."""
    rng = np.random.default_rng(seed)
    peer, own = np.array(theirs), np.array(ours)
    drawn = rng.integers(len(own), size=(RESAMPLES, len(own)))
    spread = np.median(peer[drawn], axis=1) / np.median(own[drawn], axis=1)
    low, high = np.quantile(spread, [0.025, 0.975])
    return float(np.median(peer) / np.median(own)), (float(low), float(high))


def interleaved(steps: Mapping[str, Callable[[], float]], repeats: int,
                progress: Callable[[str, float], None]) -> dict[str, Seconds]:
    """Seconds of every step of every arm, which take turns after a warm-up; ValueError for a loss that is no number."""
    seconds: dict[str, Seconds] = {name: [] for name in steps}
    rounds = WARM_UP + repeats
    for turn in range(rounds):
        for index, (name, step) in enumerate(steps.items()):
            progress(name, (turn + index / len(steps)) / rounds)
            began = time.perf_counter()
            loss = step()
            if turn >= WARM_UP:
                seconds[name].append(time.perf_counter() - began)
            if not math.isfinite(loss):
                raise ValueError(f"{name}: the loss is {loss}")
    return seconds


def _stepping(training: Training) -> Callable[[], float]:
    return lambda: training.train_step(training.config.scale(training.step, training.progress))


def _peer(setting: Setting, twin: Training, *, compiled: bool) -> PeerTraining | None:
    from aios.lab.peer_training import PeerTraining

    return PeerTraining.open(setting.shape, VOCABULARY, twin.config, twin.precision, compiled=compiled)


def _peer_stepping(peer: PeerTraining, twin: Training) -> Callable[[], float]:
    """The peer reads the very windows that our loop reads."""
    numbers = iter(range(1 << 30))

    def step() -> float:
        config = twin.config
        ids = twin.corpus.batch(seed=config.seed, step=next(numbers), rows=config.batch_tokens // LENGTH, length=LENGTH)
        return peer.step(ids)

    return step


def _resume_row(options: LabOptions, scratch: Path) -> Row:
    kills = KILLS_QUICK if options.quick else KILLS
    differs, compared = equal_after_kills(scratch, kills=kills, seed=options.seed)
    reason = (f"a small network, {kills} times killed by SIGKILL at work: losses of every step, weights, average and "
              "optimiser to the bit") if differs is None else differs
    return Row(metric="resume_equal", value=float(differs is None), unit="1 = true", better="higher", must=1.0,
               n=compared, reason=reason)
