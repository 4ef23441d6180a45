"""Which sampler to ship: a trigram model of the training text judges what each writes, at matched entropy.

    python -m aios.training.judge --run runs/embedded

A sampler that repeats itself scores well with any language model, so that a score counts only where the entropy of
the samples' token histograms lies within 0.1 nat of that of held-out text of the same length.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from aios.contracts import SamplingDefaults
from aios.model.score_network import TextScoreNetwork
from aios.training.checkpoints import read_tensors
from aios.training.data import NEVER_WRITTEN, Corpus, open_corpus
from aios.training.embedded import NETWORK, SEED, VOCAB_SIZE
from aios.training.samples import write

JUDGE_TOKENS = (
    4_000_000  # of the training mixture; more changes the score of held-out text by under 0.02 nats
)
JUDGE_SHARES = (0.1, 0.35, 0.55)  # of unigram, bigram and trigram in the judge's mixture
ENTROPY_TOLERANCE_NATS = 0.1
ROWS = 48
CANDIDATES = tuple(
    SamplingDefaults(sampler=sampler, steps_per_token=1.0, temperature=temperature, length=64)
    for sampler in ("ancestral", "confidence", "entropy")
    for temperature in (0.85, 0.8, 0.75)
)


class TrigramJudge:
    """Interpolated trigrams of the training mixture; knows nothing of the network it judges."""

    def __init__(self, corpus: Corpus, *, tokens: int, length: int = 256) -> None:
        rows = tokens // length
        ids = corpus.batch(seed=SEED + 1, step=0, rows=rows, length=length).numpy()
        self.counts = [np.unique(self._keys(ids, order), return_counts=True) for order in (1, 2, 3)]
        self.total = rows * (length - 2)

    @staticmethod
    def _keys(ids: np.ndarray, order: int) -> np.ndarray:
        """Number the `order`-grams that end at every third and later token."""
        keys = np.zeros(ids[:, 2:].shape, dtype=np.int64)
        for back in range(order - 1, -1, -1):
            keys = keys * VOCAB_SIZE + ids[:, 2 - back : ids.shape[1] - back]
        return keys

    def _count(self, ids: np.ndarray, order: int) -> np.ndarray:
        keys, counts = self.counts[order - 1]
        wanted = self._keys(ids, order)
        at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
        return np.where(keys[at] == wanted, counts[at], 0)

    def nats_per_token(self, rows: Int[Tensor, "b s"]) -> float:
        """Return the mean -log p of every third and later token."""
        ids = rows.numpy()
        one, two, three = (self._count(ids, order) for order in (1, 2, 3))
        before = np.roll(ids, 1, axis=1)
        context_one, context_two = self._count(before, 1), self._count(before, 2)
        p = JUDGE_SHARES[0] * (one + 1) / (self.total + VOCAB_SIZE)
        p += JUDGE_SHARES[1] * two / np.maximum(context_one, 1)
        p += JUDGE_SHARES[2] * three / np.maximum(context_two, 1)
        return float(-np.log(p).mean())


def histogram_entropy(rows: Int[Tensor, "b s"]) -> float:
    """Return the mean entropy in nats of each row's token histogram."""
    entropies = []
    for row in rows:
        share = torch.unique(row, return_counts=True)[1] / len(row)
        entropies.append(float(torch.special.entr(share).sum()))
    return sum(entropies) / len(entropies)


def held_out_mixture(corpus: Corpus, *, rows: int, length: int) -> Int[Tensor, "b s"]:
    """Return held-out windows of every source, in the proportions of the mixture."""
    parts = [
        corpus.held_out_windows(name, rows=round(rows * weight), length=length)
        for name, weight in corpus.weights.items()
    ]
    return torch.cat(parts)


def compare(
    network: TextScoreNetwork, corpus: Corpus, candidates: Sequence[SamplingDefaults], *, rows: int = ROWS
) -> Iterator[dict[str, Any]]:
    """Yield one row for held-out text, then one per candidate: judge's nats a token, entropy, denoiser calls."""
    judge = TrigramJudge(corpus, tokens=JUDGE_TOKENS)
    length = candidates[0].length
    real = held_out_mixture(corpus, rows=rows * 8, length=length)
    reference = histogram_entropy(real)
    yield {"sampler": "held-out text", "judge": judge.nats_per_token(real), "entropy": reference}
    for candidate in candidates:
        nothing = torch.zeros(rows, 0, dtype=torch.long)
        written, calls = write(network, nothing, sampling=candidate, seed=SEED)
        entropy = histogram_entropy(written)
        yield asdict(candidate) | {
            "judge": judge.nats_per_token(written),
            "entropy": entropy,
            "matched": abs(entropy - reference) <= ENTROPY_TOLERANCE_NATS,
            "calls": calls,
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one JSON line per candidate."""
    parser = argparse.ArgumentParser(prog="python -m aios.training.judge", description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/embedded"), help="the run's folder")
    options = parser.parse_args(arguments)
    tensors, _ = read_tensors(options.run / "best.safetensors")
    network = TextScoreNetwork(NETWORK, VOCAB_SIZE, never=NEVER_WRITTEN)
    network.load_state_dict(tensors)
    for row in compare(network.eval(), open_corpus(options.run / "data"), CANDIDATES):
        print(
            json.dumps({key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()}),
            flush=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
