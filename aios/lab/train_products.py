"""Rows of `aios bench train`: a step of our loop in integers beside torch's fastest, and what integers do to the loss.

The peer is the loop of `peer_training` over transformers' Qwen3 with the sizes of our network: f32 and bf16, plain and
compiled, in pieces of a few rows and whole; the fastest two take turns with ours. The loss gap trains one network
twice on the same batches, the tokens of a random Markov chain, which a network can learn and nobody has to have.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from aios.config import Places
from aios.lab.report import LabOptions, Row
from aios.lab.training_roots import recorded
from aios.ledger import Ledger, checkout

if TYPE_CHECKING:
    from aios.model.config import TransformerConfig
    from aios.training.data import Corpus
    from aios.training.loop import LoopConfig, Training
    from aios.training.precision import Precision

GAP: Final = Row(metric="train_loss_gap_percent", value=None, unit="%", better="lower", must=0.5, aim=0.2,
                 reason="no run has measured it: aios bench train --rerun train_loss_gap_percent")
LIVE: Final = "train_loss_gap_small_percent"
STEP: Final = Row(metric="train_step_vs_torch", value=None, unit="x", better="higher", must=1.0, aim=2.0,
                  reason="not measured")
VOCABULARY: Final = 2048
LENGTH: Final = 128                  # of every row
ROWS_AT_ONCE: Final = 8              # of ours
PIECES: Final = (8, 0)               # rows at once that the peer tries; 0 is the whole batch
SUCCESSORS: Final = 8                # of a token in the chain, the i-th of them with a chance proportional to 1 / i
CHAINS: Final = 1024                 # side by side
LAST_SHARE: Final = 0.1              # of the steps: whose losses are compared
RESAMPLES: Final = 1000
PROBE_SIZE: Final = 512              # of a product that tells whether bf16 is worth a try
SHARE_MIN: Final = 0.5               # of the speed of f32, below which no setting could make up for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A network and how long it trains."""

    width: int
    layers: int
    batch_tokens: int
    steps: int

    def shape(self) -> TransformerConfig:
        """Heads of 64, a feed-forward part of 11/4 of the width."""
        from aios.model.config import TransformerConfig

        heads = self.width // 64
        return TransformerConfig.of(
            self.width, self.layers, num_heads=heads, num_kv_heads=heads, head_dim=64, ffn_dim=self.width * 11 // 4,
            time_conditioning=False)

    def loop(self, seed: int, **changes: Any) -> LoopConfig:
        """The next token with AdamW and clipping."""
        from aios.training.loop import LoopConfig

        told: dict[str, Any] = {
            "steps": self.steps, "objectives": {"ar": 1.0}, "batch_tokens": self.batch_tokens, "lengths": (LENGTH,),
            "rows_at_once": ROWS_AT_ONCE, "optimiser": "adamw", "adam_lr": 0.001, "clip": 1.0, "device": "cpu",
            "evaluations": 1, "warmup_steps": 20, **changes}
        return LoopConfig(seed=seed, **told)

    def ours(self, folder: Path, corpus: Corpus, seed: int, **changes: Any) -> Training:
        """Our loop with random weights, the same for every precision."""
        import torch

        from aios.model.score_network import TextScoreNetwork
        from aios.training.loop import Training

        torch.manual_seed(seed)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Training(TextScoreNetwork(self.shape(), VOCABULARY), corpus, self.loop(seed, **changes), folder)


SPEED: Final = Size(width=512, layers=8, batch_tokens=8192, steps=1000)              # 27 million parameters
SPEED_QUICK: Final = Size(width=512, layers=1, batch_tokens=1024, steps=1000)
LOSS: Final = Size(width=384, layers=6, batch_tokens=4096, steps=300)                # 11 million
LOSS_LIVE: Final = Size(width=192, layers=5, batch_tokens=2048, steps=60)            # 3 million
LOSS_QUICK: Final = Size(width=128, layers=2, batch_tokens=512, steps=40)


def chain(seed: int, tokens: int) -> Corpus:
    """At least so many tokens of a random Markov chain, as training data."""
    from aios.training.data import Corpus, Stream
    from aios.training.vocabulary import RESERVED

    rng = np.random.default_rng(seed)
    first = len(RESERVED)
    follows = rng.integers(first, VOCABULARY, size=(VOCABULARY, SUCCESSORS)).astype(np.uint16)
    chances = 1 / np.arange(1, SUCCESSORS + 1)
    length = max(LENGTH, -(-tokens // CHAINS))
    rows = np.empty((CHAINS, length), np.uint16)
    rows[:, 0] = rng.integers(first, VOCABULARY, size=CHAINS)
    for at in range(1, length):
        rows[:, at] = follows[rows[:, at - 1], rng.choice(SUCCESSORS, size=CHAINS, p=chances / chances.sum())]
    stream = Stream(tokens=rows.reshape(-1), starts=np.arange(0, rows.size, length), bytes=rows.size)
    return Corpus(train={"chain": stream}, held_out={"chain": stream}, weights={"chain": 1.0})


def step_row(options: LabOptions, scratch: Path, interleaved: Callable[..., Mapping[str, list[float]]],
             ratio: Callable[..., tuple[float, tuple[float, float]]], threads: int) -> Row:
    """Ours in integers beside the fastest that torch has; the scouting of the peer's settings goes first."""
    from aios.lab.peer_training import INSTALL, PEER

    size = SPEED_QUICK if options.quick else SPEED
    corpus = chain(options.seed, 100_000)
    compiled = not options.quick           # to compile a network takes longer than a quick run has
    ours = {precision: size.ours(scratch / f"speed-{precision}", corpus, options.seed, precision=precision,
                                 compile=compiled) for precision in ("int8", "f32")}
    share = bf16_share()
    peers = _peers(size, ours["f32"], share, compiled=compiled)
    if not peers:
        return replace(STEP, peer=PEER, reason=INSTALL)
    scouted: dict[str, float] = {}
    for at, (name, (_, step)) in enumerate(peers.items()):
        options.progress(f"scouting: {name}", 0.4 * at / len(peers))
        scouted[name] = _scouted(step)
    steps = {f"ours {name}": _stepping(training) for name, training in ours.items()}
    steps |= {name: peers[name][1] for name in sorted(scouted, key=scouted.__getitem__)[:2]}
    seconds = interleaved(steps, 3 if options.quick else 5, lambda name, done: options.progress(name, 0.4 + done / 2))
    best = min((name for name in steps if name in peers), key=lambda name: median(seconds[name]))
    value, interval = ratio(seconds[best], seconds["ours int8"], options.seed)
    tokens = size.batch_tokens
    told = ", ".join(f"{name} {tokens / median(taken):,.0f}" for name, taken in seconds.items())
    tried = ", ".join(f"{name} {tokens / taken:,.0f}" for name, taken in scouted.items())
    parameters = sum(p.numel() for p in ours["f32"].network.parameters())
    return replace(
        STEP, value=value, interval=interval, n=len(seconds[best]), peer=PEER, peer_version=peers[best][0],
        peer_value=tokens / median(seconds[best]),
        reason=f"{parameters:,} parameters, batches of {tokens} tokens in rows of {LENGTH} (ours in pieces of "
               f"{ROWS_AT_ONCE}), next tokens, AdamW, {threads} threads; tokens/s: {told}; one step each "
               f"before: {tried}; a matrix product in bf16 is {share:.2f} times as fast as in f32 here"
               f"{'' if share >= SHARE_MIN else ', so that no step was taken in it'}")


def bf16_share() -> float:
    """How many times as fast as in f32 torch multiplies matrices in bf16."""
    import torch

    seconds: dict[torch.dtype, float] = {}
    for kind in (torch.float32, torch.bfloat16):
        x = torch.ones(PROBE_SIZE, PROBE_SIZE, dtype=kind)
        x @ x
        began = time.perf_counter()
        x @ x
        seconds[kind] = time.perf_counter() - began
    return seconds[torch.float32] / seconds[torch.bfloat16]


def _peers(size: Size, twin: Training, share: float, *,
           compiled: bool) -> dict[str, tuple[str, Callable[[], float]]]:
    """Version and step of every setting of the peer, those in bf16 unless it is hopeless."""
    from aios.lab.peer_training import PeerTraining

    found: dict[str, tuple[str, Callable[[], float]]] = {}
    precisions: tuple[Precision, ...] = ("f32", "bf16") if share >= SHARE_MIN else ("f32",)
    for rows in PIECES if compiled else PIECES[:1]:
        for precision in precisions:
            for built in (False, True) if compiled else (False,):
                peer = PeerTraining.open(size.shape(), VOCABULARY, twin.config, precision, compiled=built, rows=rows)
                if peer is not None:
                    name = f"{precision}{' compiled' if built else ''}, {rows or 'all'} rows at once"
                    found[name] = peer.version, _on_windows(peer.step, twin)
    return found


def _on_windows(step: Callable[[Any], float], twin: Training) -> Callable[[], float]:
    """The peer reads the very windows that our loop reads."""
    numbers = iter(range(1 << 30))
    config = twin.config
    return lambda: step(twin.corpus.batch(seed=config.seed, step=next(numbers), rows=config.batch_tokens // LENGTH,
                                          length=LENGTH))


def _stepping(training: Training) -> Callable[[], float]:
    return lambda: training.train_step(1.0)


def _scouted(step: Callable[[], float]) -> float:
    step()
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def gap_rows(options: LabOptions, scratch: Path) -> list[Row]:
    """The long run's gap, from the ledger unless it is asked for, and that of a short run made now."""
    if options.only == GAP.metric:
        return [_gap(GAP, LOSS, options, _kept(options.seed))]
    live = replace(GAP, metric=LIVE, must=None, aim=None)
    row = _gap(live, LOSS_QUICK if options.quick else LOSS_LIVE, options, scratch)
    return [recorded(Ledger.here(), "bench train", GAP.metric) or GAP, row]


def _kept(seed: int) -> Path:
    """Where a long run leaves its checkpoints: the same command with the same seed goes on from there."""
    root = checkout()
    return (root / "runs" if root else Places.find().state) / "bench-train" / f"gap-{seed}"


def _gap(row: Row, size: Size, options: LabOptions, folder: Path) -> Row:
    """Train in f32 and in integers on the same batches from the same weights, and compare the last losses."""
    corpus = chain(options.seed, size.batch_tokens * size.steps)
    losses: dict[str, np.ndarray[Any, np.dtype[np.float64]]] = {}
    precisions: tuple[Precision, ...] = ("f32", "int8")
    for precision in precisions:
        training = size.ours(folder / f"gap-{precision}", corpus, options.seed, precision=precision,
                             compile=size is LOSS)
        losses[precision] = curve(training, partial(options.progress, f"training in {precision}"))
    last = max(1, int(LAST_SHARE * size.steps))
    exact, ours = losses["f32"][-last:], losses["int8"][-last:]
    drawn = np.random.default_rng(options.seed).integers(last, size=(RESAMPLES, last))
    spread = np.abs(ours[drawn].mean(axis=1) / exact[drawn].mean(axis=1) - 1) * 100
    low, high = np.quantile(spread, [0.025, 0.975])
    parameters = sum(p.numel() for p in training.network.parameters())
    return replace(
        row, value=float(abs(ours.mean() / exact.mean() - 1) * 100), interval=(float(low), float(high)), n=last,
        reason=f"{parameters:,} parameters, {size.steps} steps of {size.batch_tokens} tokens of a Markov chain, AdamW; "
               f"mean loss of the last {last} steps: f32 {exact.mean():.4f}, int8 {ours.mean():.4f}; of the first: "
               f"{losses['f32'][0]:.4f}, {losses['int8'][0]:.4f}; largest difference of a step "
               f"{np.abs(losses['int8'] - losses['f32']).max():.4f}")


def curve(training: Training, progress: Callable[[float], None]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Train to the end, or on from where it stopped, and return the loss of every step."""
    path = training.folder / "losses.jsonl"
    found: dict[int, float] = {}
    if training.resume() and path.exists():
        found = dict(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("]"))
    with path.open("a", encoding="utf-8") as stream:
        for loss in training.run():
            found[training.step - 1] = loss
            stream.write("\n" + json.dumps([training.step - 1, loss]))   # a torn line stays alone
            stream.flush()
            progress(training.progress)
    return np.array([found[step] for step in range(training.step)])
