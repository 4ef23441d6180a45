"""Training that is killed by SIGKILL and goes on, beside training that nobody disturbs: both must agree to the bit.

    python -m aios.lab.killed_training FOLDER SEED      # the victim: trains in FOLDER, tells every loss
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from aios.service.spawn import python_environ

if TYPE_CHECKING:
    from aios.training.data import Corpus
    from aios.training.loop import LoopConfig

STEPS: Final = 150
CHECKPOINT_EVERY_S: Final = 0.2    # steps take about 10 ms: a kill loses some, which are taken again
KILL_FROM, KILL_TO = 0.3, 0.8      # of the run: the victim is at work, and has work left
VOCABULARY: Final = 256    # some tokens behind the reserved ones
SECONDS_MAX: Final = 120.0         # of one victim; it takes some


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What one victim said: every step it took with the bits of its loss, and whether it was killed."""

    losses: tuple[tuple[int, str], ...]
    killed: bool


def equal_after_kills(folder: Path, *, kills: int, seed: int) -> tuple[str | None, int]:
    """Train once undisturbed and once with `kills`; (what differs, None if nothing does; steps compared)."""
    whole = _victim(folder / "whole", seed, kill_at=None)
    rng, parts = random.Random(seed), []
    for place in sorted(rng.uniform(KILL_FROM, KILL_TO) for _ in range(kills)):
        parts.append(_victim(folder / "killed", seed, kill_at=int(place * STEPS)))
    parts.append(_victim(folder / "killed", seed, kill_at=None))
    return _difference(whole, parts, folder), sum(len(part.losses) for part in parts)


def _difference(whole: Told, parts: list[Told], folder: Path) -> str | None:
    expected = dict(whole.losses)
    if [part.killed for part in parts] != [*(True for _ in parts[1:]), False]:
        return "a victim was not killed at its work"
    if any(part.losses[0][0] == 1 for part in parts[1:]):
        return "a killed run began anew instead of going on"
    for step, loss in (told for part in parts for told in part.losses):
        if expected.get(step) != loss:
            return f"the loss of step {step} is {float.fromhex(loss)!r}, undisturbed it is another"
    if parts[-1].losses[-1][0] != STEPS:
        return "the killed run did not come to its end"
    return _tensors_differ(folder / "whole", folder / "killed")


def _tensors_differ(one: Path, other: Path) -> str | None:
    """Weights, their average and the optimiser's memory at the end, bit by bit."""
    from aios.training.checkpoints import read_tensors

    (first, _), (second, _) = (read_tensors(path / "checkpoint.safetensors") for path in (one, other))
    if first.keys() != second.keys():
        return "the checkpoints hold different tensors"
    for name, tensor in first.items():
        if tensor.numpy().tobytes() != second[name].numpy().tobytes():
            return f"{name} differs at the end"
    return None


def _victim(folder: Path, seed: int, *, kill_at: int | None) -> Told:
    """Run a victim to its end, or kill it as soon as it has told step `kill_at` and saved a checkpoint."""
    words = [sys.executable, "-m", "aios.lab.killed_training", str(folder), str(seed)]
    # One thread: with more, sums may be taken in another order from one process to the next.
    environ = {**python_environ(), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stdout is not None
        try:
            told = _listen(process.stdout, process, folder, kill_at)
            code = process.wait(SECONDS_MAX)
        finally:
            process.kill()
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the victim ended with {code}")
    return Told(losses=tuple(told), killed=code == -signal.SIGKILL)


def _listen(lines: IO[str], process: subprocess.Popen[str], folder: Path,
            kill_at: int | None) -> list[tuple[int, str]]:
    told = []
    for line in lines:
        if not line.endswith("\n"):
            break   # cut by the kill
        step, loss = line.split()
        told.append((int(step), loss))
        if kill_at is not None and int(step) >= kill_at and (folder / "checkpoint.safetensors").exists():
            process.send_signal(signal.SIGKILL)
    return told


def _loop(seed: int) -> LoopConfig:
    """Everything that a run may carry over: two objectives, two lengths, Muon with Adam, averages, warm-up."""
    from aios.training.loop import LoopConfig

    return LoopConfig(
        seed=seed, steps=STEPS, objectives={"spans": 0.5, "ar": 0.3, "entropic": 0.2}, batch_tokens=512,
        lengths=(32, 64), rows_at_once=8, weight_decay=0.1, clip=1.0, checkpoint_every_s=CHECKPOINT_EVERY_S,
        evaluations=3, evaluate_rows=4, evaluate_length=32, compile=False, device="cpu", precision="f32")


def synthetic(seed: int, vocab_size: int, *, tokens: int = 20_000) -> Corpus:
    """Random tokens that may be written, as training data: what a step costs does not depend on what they say."""
    import numpy as np

    from aios.training.data import Corpus, Stream
    from aios.training.vocabulary import RESERVED

    ids = np.random.default_rng(seed).integers(len(RESERVED), vocab_size, size=tokens).astype(np.uint16)
    stream = Stream(tokens=ids, starts=np.arange(0, tokens, 16), bytes=tokens)
    return Corpus(train={"random": stream}, held_out={"random": stream}, weights={"random": 1.0})


def main(folder: Path, seed: int) -> None:
    """Be the victim: go on with the run in `folder`, and tell every step with its loss."""
    import torch

    from aios.model.config import TransformerConfig
    from aios.model.score_network import TextScoreNetwork
    from aios.training.loop import Training

    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    network = TextScoreNetwork(TransformerConfig.of(32, 2, head_dim=16, time_conditioning=False), VOCABULARY)
    training = Training(network, synthetic(seed, VOCABULARY), _loop(seed), folder)
    training.resume()
    for loss in training.run():
        sys.stdout.write(f"{training.step} {loss.hex()}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
